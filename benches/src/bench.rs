//! The material that is measured on, and the place where that is done.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use vireo_model::DEFAULT_IGNORE;
use vireo_testkit::image::BaseImage;
use vireo_testkit::{Cache, Key, TestkitError, host, programs, update};

use crate::measured::{Meter, argv, run};
use crate::report::occupied;

/// Rounds of a real run: enough for a median.
const ROUNDS: usize = 3;

/// Debian packages of contestants beyond those that the tests need, each with a program it brings.
const PACKAGES: &[(&str, &str)] = &[("xdelta3", "xdelta3")];

/// Runs a command with images mounted; see there.
pub(crate) const MOUNTED: &str = include_str!("../recipes/mounted.sh");

/// What the update is made from: another recipe makes another target.
const UPDATE: [&str; 2] = [
    include_str!("../../crates/testkit/recipes/update.sh"),
    include_str!("../../crates/testkit/src/web.rs"),
];

/// Everything that the parts share. Its directory has, under fixed names: `base.img`, `target.img` (never
/// to be written), `key`, `exclude` and `rsh`.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) cache: Cache,
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    pub(crate) vireo: PathBuf,
    pub(crate) meter: Meter,
    pub(crate) pair: Pair,
    dir: PathBuf,
    _lock: File,
}

/// The two images.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Pair {
    pub(crate) image_bytes: u64,
    pub(crate) image_used_bytes: u64,
    /// The tree digests.
    pub(crate) base: String,
    pub(crate) target: String,
    pub(crate) paths: u64,
    pub(crate) added: u64,
    pub(crate) modified: u64,
    pub(crate) removed: u64,
    pub(crate) metadata: u64,
    /// Bytes of the files whose content differs.
    pub(crate) changed_bytes: u64,
}

impl Bench {
    /// Checks the host, makes the images if the cache has them not, and reads them once.
    pub(crate) fn open(quick: bool) -> anyhow::Result<Self> {
        host::require_root()?;
        let wanted = [host::PACKAGES, PACKAGES, crate::workloads::PACKAGES].concat();
        host::install(&wanted, |what| eprintln!("{what}"))?;
        let vireo = programs::find("vireo")?;
        let cache = Cache::open()?;
        let lock = lock(&cache)?;
        let dir = cache.dir().join("bench");
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot empty {}", dir.display()));
            }
            _ => fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?,
        }
        eprintln!("making the images, unless they are there");
        let base = BaseImage::default().build(&cache)?;
        let target = target(&cache, &base)?;
        let rounds = if quick { 1 } else { ROUNDS };
        let meter = Meter::new(&dir);
        let mut bench =
            Self { cache, quick, rounds, vireo, meter, pair: Pair::default(), dir, _lock: lock };
        bench.prepare(&base, &target)?;
        Ok(bench)
    }

    /// The directory of all files and runs.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// `vireo ARGS --json`, not measured.
    pub(crate) fn vireo(&self, args: &[&str]) -> anyhow::Result<Value> {
        let mut argv = argv![&self.vireo];
        argv.extend(args.iter().map(OsString::from));
        argv.push("--json".into());
        Ok(serde_json::from_str(&run(&self.dir, argv)?)?)
    }

    /// The command line that runs `inner` in the directory with images mounted there, each given as access
    /// (`ro`, `rw`), file and name of the mount.
    pub(crate) fn mounted(&self, mounts: &[[&str; 3]], inner: Vec<OsString>) -> Vec<OsString> {
        let mut argv = argv![
            "unshare",
            "-m",
            "--propagation",
            "private",
            "bash",
            "-c",
            MOUNTED,
            "mounted.sh",
            &self.dir
        ];
        argv.extend(mounts.iter().flatten().map(OsString::from));
        argv.push("--".into());
        argv.extend(inner);
        argv
    }

    /// rsync with the options that preserve what Vireo preserves and leave out what it leaves out, followed
    /// by `more`.
    pub(crate) fn rsync(&self, more: &[&str]) -> Vec<OsString> {
        let mut argv =
            argv!["rsync", "-aHAX", "--numeric-ids", "--delete", "--exclude-from=exclude"];
        argv.extend(more.iter().map(OsString::from));
        argv
    }

    /// Compares the tree in an image with the target's.
    pub(crate) fn check_image(&self, name: &str) -> anyhow::Result<()> {
        let found = text(&self.vireo(&["digest", name])?["digest"])?;
        self.check_digest(name, &found)
    }

    /// Compares the trees in two images.
    pub(crate) fn same_tree(&self, name: &str, other: &str) -> anyhow::Result<()> {
        let digest = |name: &str| text(&self.vireo(&["digest", name])?["digest"]);
        let (found, expected) = (digest(name)?, digest(other)?);
        ensure!(found == expected, "{name} has tree {found}, {other} has {expected}");
        Ok(())
    }

    pub(crate) fn check_digest(&self, name: &str, found: &str) -> anyhow::Result<()> {
        ensure!(
            found == self.pair.target,
            "{name} has tree {found}, not the target's {}",
            self.pair.target
        );
        Ok(())
    }

    /// Removes a file that the next run makes again, if it is there.
    pub(crate) fn remove(&self, name: &str) -> anyhow::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {name}"))
            }
            _ => Ok(()),
        }
    }

    /// Length of a file in bytes.
    pub(crate) fn len(&self, name: &str) -> anyhow::Result<u64> {
        let path = self.path(name);
        Ok(fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len())
    }

    fn prepare(&mut self, base: &Path, target: &Path) -> anyhow::Result<()> {
        for (image, name) in [(base, "base.img"), (target, "target.img")] {
            symlink(image, self.path(name)).with_context(|| format!("cannot link {name}"))?;
            // Into the page cache: measured is the work, not the disk's first read.
            let mut file =
                File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
            io::copy(&mut file, &mut io::sink())
                .with_context(|| format!("cannot read {}", image.display()))?;
        }
        let write = |name: &str, text: &str| {
            fs::write(self.path(name), text).with_context(|| format!("cannot write {name}"))
        };
        write("exclude", &(DEFAULT_IGNORE.join("\n") + "\n"))?;
        write("rsh", include_str!("../recipes/rsh.sh"))?;
        fs::set_permissions(self.path("rsh"), fs::Permissions::from_mode(0o755))
            .context("cannot make rsh runnable")?;
        self.vireo(&["key", "generate", "--out", "key"])?;
        let captured = self.capture("base.img", "target.img", "update.vireo")?;
        let number = |name: &str| {
            captured[name].as_u64().with_context(|| format!("capture does not say {name}"))
        };
        self.pair = Pair {
            image_bytes: self.len("target.img")?,
            image_used_bytes: occupied(target)?,
            base: text(&captured["base"])?,
            target: text(&captured["target"])?,
            paths: number("paths")?,
            added: number("added")?,
            modified: number("modified")?,
            removed: number("removed")?,
            metadata: number("metadata")?,
            changed_bytes: number("changed_bytes")?,
        };
        Ok(())
    }

    /// Captures one image against another, not measured.
    pub(crate) fn capture(&self, base: &str, target: &str, out: &str) -> anyhow::Result<Value> {
        self.vireo(&[
            "capture",
            "--base",
            base,
            "--target",
            target,
            "--key",
            "key/vireo.key",
            "-o",
            out,
            "--no-cache",
        ])
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What is left is emptied by the next run.
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// A string in JSON.
pub(crate) fn text(value: &Value) -> anyhow::Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("{value} is no text"))
}

/// Held for the whole run: two at a time would measure each other.
fn lock(cache: &Cache) -> anyhow::Result<File> {
    let path = cache.dir().join("bench.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another run has {}: wait for it", path.display()),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// The updated copy of `base`, made or from the cache; made anew every week, as the base is.
fn target(cache: &Cache, base: &Path) -> Result<PathBuf, TestkitError> {
    let key =
        UPDATE.iter().fold(Key::of(&base.to_string_lossy()), |key, text| key.and(text)).and_week();
    cache.entry("bench-target", "img", &key, |out| update::make(cache, base, out).map(drop))
}
