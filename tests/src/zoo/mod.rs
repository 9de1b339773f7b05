//! Many services in one guest, and changes of their files: what each needs, what it gets, and what
//! other programs make of it.
//!
//! A [`Case`] is one row of a list in `cases/`. Cases that can be told apart share an update. Each
//! update is a real bundle, made from a tree of the guest's own files, applied by the agent in the
//! running guest, judged from outside ([`Zoo::run`]), and taken back.

mod case;
mod cases;
mod edit;
mod machine;
mod plan;
mod round;
mod score;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use vireo_capture::{CaptureOptions, capture};
use vireo_delta::SecretKey;
use vireo_testkit::image::{BaseImage, clone_image};
use vireo_testkit::{Cache, Guest, Lab, Nspawn, Run, fixture, programs};
use vireo_tree::Root;

pub use case::{Case, Kind, Probe, rounds};
pub use cases::cases;
pub use edit::Edit;
pub use round::{Verdict, Zoo};
pub use score::{Count, Row, Score, TOOLS};

use crate::require_host;
use crate::scene::permissive;

/// Puts the agent in and copies the files that cases change and the directories above them.
const PREPARE: &str = r#"
install -m755 "$2" "$1/usr/bin/vireo-agent"; install -m755 "$3" "$1/usr/local/bin/vireo"
install -d -m700 "$1/var/lib/vireo"; mkdir -p "$1/etc/vireo/policy.d"
# Services that end later than so are none of these.
printf 'version = 1\n[defaults]\nsettle = "1s"\n' > "$1/etc/vireo/policy.d/zoo.toml"
mkdir "$4"; cd "$1"
for path in "${@:5}"; do for file in .$path; do
  while [ "$file" != . ]; do
    if [ -e "$file" ] || [ -L "$file" ]; then echo "$file"; fi
    file=${file%/*}
  done
done; done | sort -u > "$4.list"
tar -c --no-recursion --xattrs --xattrs-include='*' -T "$4.list" | tar -xp --xattrs --xattrs-include='*' --numeric-owner -C "$4""#;

/// Longest for the guest's services to have started.
const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// Longest for one update, others' answers included.
const APPLY_DEADLINE: Duration = Duration::from_secs(120);

const APPLY: &str = include_str!("apply.sh");

/// Which unit reads which file, seen as an administrator sees it: each unit reloads and starts once,
/// then what serves something is asked for it twice.
const RECORD: &str = "vireo record --each-unit -o /run/reads.json -- bash -c 'for i in 1 2; do \
    curl -s localhost:8000; curl -s localhost/v.html; curl -sk https://localhost:8443/v.php; \
    curl -s localhost:8080/a/go; head -1 </dev/tcp/127.0.0.1/7009; sleep 1; done' >&2 && \
    cat /run/reads.json";

/// Longest for it: some forty services, a second or two each.
const RECORD_DEADLINE: Duration = Duration::from_secs(240);

/// Every service of the zoo has started and answers.
const READY: &str = "until s=$(systemctl is-system-running); [ $s = running ] || [ $s = degraded ]; \
    do sleep 0.1; done; systemctl list-units --failed --plain --no-legend";

/// The place for a zoo: its lab, the guest's disk, the tree that updates are made from.
#[derive(Debug)]
pub struct Ground {
    lab: Lab,
    key: SecretKey,
    read_map: OnceLock<Vec<u8>>,
}

impl Ground {
    /// Makes it for these cases. Cost: some seconds; some minutes the first time.
    ///
    /// # Errors
    ///
    /// The host lacks something, nothing has been built, or making it failed.
    pub fn new(cases: &[Case]) -> anyhow::Result<Self> {
        require_host()?;
        let cache = Cache::open()?;
        let image = BaseImage::zoo(&cache)?;
        let lab = Lab::new(&cache)?;
        let ground = Self { lab, key: SecretKey::generate()?, read_map: OnceLock::new() };
        let disk = ground.path("guest.img");
        clone_image(&image, &disk)?;
        let program = |name| programs::find(name).map(|path| path.display().to_string());
        let (agent, vireo) = (program("vireo-agent")?, program("vireo")?);
        let base = ground.path("base").display().to_string();
        let paths: BTreeSet<&str> = cases.iter().flat_map(Case::needed).collect();
        let mut arguments = vec![agent.as_str(), &vireo, &base];
        arguments.extend(paths);
        fixture::edit(&disk, 0, PREPARE, &arguments)?;
        Ok(ground)
    }

    /// The guest, booted, with all its services up.
    ///
    /// # Errors
    ///
    /// It does not boot, or a service does not start.
    pub fn guest(&self) -> anyhow::Result<Nspawn<'_>> {
        let mut guest = Nspawn::new(&self.lab, &self.path("guest.img"))?;
        guest.start()?;
        let failed = guest.exec_with(&["bash", "-c", READY], &[], BOOT_DEADLINE)?;
        ensure!(failed.success() && failed.stdout.is_empty(), "the zoo: {}", failed.tail());
        Ok(guest)
    }

    /// Records in the guest who reads what; updates bring it from then on. Gives what the recorder
    /// says about it.
    ///
    /// # Errors
    ///
    /// The recorder fails.
    pub fn record(&self, guest: &dyn Guest) -> anyhow::Result<String> {
        let recorded = guest.exec_with(&["bash", "-c", RECORD], &[], RECORD_DEADLINE)?;
        ensure!(recorded.success(), "cannot record: {}", recorded.tail());
        let _ = self.read_map.set(recorded.stdout.into_bytes());
        Ok(recorded.stderr)
    }

    /// What was recorded, if it was.
    #[must_use]
    pub fn read_map(&self) -> Option<&[u8]> {
        self.read_map.get().map(Vec::as_slice)
    }

    /// Takes everything down and expects that nothing of it stays.
    ///
    /// # Errors
    ///
    /// Something does.
    pub fn finish(self) -> anyhow::Result<()> {
        Ok(self.lab.finish()?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.dir().join(name)
    }

    /// A bundle that makes `round`'s changes, in the guest as `/run/update.vireo`.
    fn deliver(&self, guest: &dyn Guest, round: &[Case]) -> anyhow::Result<()> {
        let (base, target, out) =
            (self.path("base"), self.path("target"), self.path("update.vireo"));
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        Run::new("cp").args(["-aT"]).args([&base, &target]).text()?;
        for edit in round.iter().flat_map(|case| &case.edits) {
            edit.apply(&target)?;
        }
        let options = CaptureOptions { read_map: self.read_map.get().cloned(), ..permissive() };
        capture(&Root::open(&base)?, &Root::open(&target)?, &options, &self.key, &out)?;
        let bundle = fs::read(&out)?;
        fs::remove_file(&out)?;
        let put =
            guest.exec_with(&["sh", "-c", "cat > /run/update.vireo"], &bundle, APPLY_DEADLINE)?;
        ensure!(put.success(), "{}", put.tail());
        Ok(())
    }

    /// The real path of a case's path, in the guest.
    fn real_path(&self, path: &str) -> anyhow::Result<String> {
        let base = self.path("base");
        let found = edit::resolve(&base, path)?;
        let relative = found.strip_prefix(&base).unwrap_or(Path::new(""));
        Ok(format!("/{}", relative.to_str().context("a path of plain letters")?))
    }

    fn public_key(&self) -> String {
        self.key.public().to_string()
    }
}

/// Runs a script in the guest if there is one.
fn run_script(guest: &dyn Guest, script: Option<&str>) -> anyhow::Result<()> {
    match script {
        Some(script) => {
            let output = guest.exec(&["bash", "-ec", script])?;
            ensure!(output.success(), "in the guest: {script}\n{}", output.tail());
            Ok(())
        }
        None => Ok(()),
    }
}
