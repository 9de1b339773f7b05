//! The demonstration's places and files, and what happens at each step.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;
use vireo_testkit::image::{Agent, BaseImage, clone_image};
use vireo_testkit::{Cache, Guest, Lab, Nspawn, Uml, update, web};

use super::proof::Proof;
use super::report::{Activation, Package, Sizes};
use super::tools::{self, Programs, Server};
use crate::cargo;

/// The image's name in the repository.
const IMAGE: &str = "web";

/// Name of the file with what the repository writes.
const LOG: &str = "repository.log";

/// Longest for the agent to fetch and apply the update.
const APPLY_DEADLINE: Duration = Duration::from_secs(90);

/// Time between two looks at the agent.
const POLL: Duration = Duration::from_millis(200);

/// Prints the unit of each process in the guest that maps a replaced file of `/usr`.
const STALE: &str = r#"for maps in /proc/[0-9]*/maps; do
  if grep -q ' /usr/.* (deleted)$' "$maps" 2>/dev/null; then sed -n 's#^0::.*/##p' "${maps%maps}cgroup"; fi
done"#;

/// Everything that the steps share.
#[derive(Debug)]
pub(crate) struct Scene {
    cache: Cache,
    lab: Lab,
    programs: Programs,
    /// Where files go: the lab's directory, or one to be kept.
    dir: PathBuf,
}

impl Scene {
    pub(crate) fn new(programs: Programs, keep: Option<&Path>) -> anyhow::Result<Self> {
        let cache = Cache::open()?;
        let lab = Lab::new(&cache)?;
        let dir = match keep {
            Some(dir) => empty_directory(dir)?,
            None => lab.dir().to_owned(),
        };
        Ok(Self { cache, lab, programs, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The same as text, for command lines.
    fn arg(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// `vireo ARGS --json`, against the repository.
    fn vireo(&self, args: &[&str]) -> anyhow::Result<Value> {
        tools::run(&self.lab, &self.programs.vireo, args)
    }

    /// `vireo ARGS --json` with the repository's address and the administrator's token.
    fn vireo_at_repository(&self, args: &[&str]) -> anyhow::Result<Value> {
        let token = format!("@{}", self.arg("repository/admin-token"));
        let access = ["--repo", &tools::repository_url(), "--token", &token].map(str::to_owned);
        let access: Vec<&str> = access.iter().map(String::as_str).collect();
        self.vireo(&[args, &access].concat())
    }

    fn repository(&self, args: &[&str]) -> anyhow::Result<Value> {
        tools::run(&self.lab, &self.programs.repo, args)
    }

    /// The guest's image with the agent, as `base.img`.
    pub(crate) fn make_base(&self) -> anyhow::Result<()> {
        let unit = |name: &str| cargo::root().join("crates/agent").join(name);
        let units = ["vireo-agent.service", "vireo-agent-recover.service"].map(unit).to_vec();
        let agent = Agent { program: self.programs.agent.clone(), units };
        let made = BaseImage::with_agent(agent).build(&self.cache)?;
        Ok(clone_image(&made, &self.path("base.img"))?)
    }

    /// Keys, a running repository that trusts them, and the image in it.
    pub(crate) fn open_repository(&self) -> anyhow::Result<Server> {
        let keys = self.vireo(&["key", "generate", "--out", &self.arg("keys")])?;
        let public = field(&keys, "/public_key")?;
        let data = self.arg("repository");
        let init = ["init", &data, "--listen-name", &vireo_testkit::HOST_ADDRESS.to_string()];
        self.repository(&init)?;
        self.repository(&["trust", "--data", &data, &public])?;
        let log = self.path(LOG);
        let server = Server::start(&self.lab, &self.programs.repo, Path::new(&data), &log)?;
        self.vireo_at_repository(&["image", "create", IMAGE, &self.arg("base.img")])?;
        Ok(server)
    }

    /// What the repository wrote, for the report of a failure.
    pub(crate) fn repository_log(&self) -> String {
        match fs::read_to_string(self.path(LOG)) {
            Ok(text) if !text.is_empty() => format!("the repository wrote:\n{text}"),
            _ => String::new(),
        }
    }

    /// The machine that is to be updated, on its own copy of the base.
    pub(crate) fn guest(&self) -> anyhow::Result<Nspawn<'_>> {
        let disk = self.path("guest.img");
        clone_image(&self.path("base.img"), &disk)?;
        Ok(Nspawn::new(&self.lab, &disk)?)
    }

    /// Boots the guest and makes its agent an instance of the image.
    pub(crate) fn enrol(&self, guest: &mut dyn Guest) -> anyhow::Result<()> {
        guest.start()?;
        let made = self.repository(&[
            "token",
            "create",
            "--data",
            &self.arg("repository"),
            "--image",
            IMAGE,
        ])?;
        let token = field(&made, "/token")?;
        let url = tools::repository_url();
        tools::agent(guest, &["enroll", &url, "--token", &token, "--image", IMAGE])?;
        let restarted = guest.exec(&["systemctl", "restart", "vireo-agent"])?;
        if !restarted.success() {
            bail!("the agent's service does not start\n{}", restarted.tail());
        }
        Ok(())
    }

    /// The administrator's work: a really updated copy, `target.img`.
    pub(crate) fn update(&self) -> anyhow::Result<Vec<Package>> {
        let updated = update::make(&self.cache, &self.path("base.img"), &self.path("target.img"))?;
        let package = |package: update::Package| {
            let update::Package { name, base, target } = package;
            Package { name, base, target }
        };
        Ok(updated.packages.into_iter().map(package).collect())
    }

    /// The increment between both, signed: `update.vireo`.
    pub(crate) fn capture(&self) -> anyhow::Result<Sizes> {
        let key = self.arg("keys/vireo.key");
        self.vireo(&[
            "capture",
            "--base",
            &self.arg("base.img"),
            "--target",
            &self.arg("target.img"),
            "--key",
            &key,
            "-o",
            &self.arg("update.vireo"),
        ])?;
        let of = |name: &str| {
            let path = self.path(name);
            fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let image = of("target.img")?;
        Ok(Sizes {
            image_bytes: image.len(),
            image_used_bytes: image.blocks() * 512,
            bundle_bytes: of("update.vireo")?.len(),
        })
    }

    pub(crate) fn push(&self) -> anyhow::Result<()> {
        self.vireo_at_repository(&["push", &self.arg("update.vireo"), IMAGE]).map(drop)
    }

    /// Digest of the newest version, as the repository publishes it.
    fn version(&self) -> anyhow::Result<String> {
        let log = self.vireo_at_repository(&["log", IMAGE])?;
        let newest = log["versions"].as_array().and_then(|versions| versions.last());
        field(newest.context("the repository lists no version")?, "/tree")
    }

    /// Waits until the guest's agent says it is on the newest version; gives its receipt.
    pub(crate) fn wait_applied(&self, guest: &dyn Guest) -> anyhow::Result<Value> {
        let version = self.version()?;
        let started = Instant::now();
        loop {
            let status = tools::agent(guest, &["status"])?;
            let there = field(&status, "/tree").is_ok_and(|tree| tree == version);
            if there && status["under_way"] == false && status["last"].is_object() {
                self.keep("receipt.json", &status["last"])?;
                return Ok(status["last"].clone());
            }
            if started.elapsed() > APPLY_DEADLINE {
                let log =
                    guest.exec(&["journalctl", "--no-pager", "-n", "40", "-u", "vireo-agent"])?;
                bail!("the agent did not apply it in {APPLY_DEADLINE:?}: {status}\n{}", log.stdout);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Asks the kernel, not the agent: only what waits by the receipt still maps a replaced file.
    pub(crate) fn stale_processes(
        &self,
        guest: &dyn Guest,
        activation: &Activation,
    ) -> anyhow::Result<Proof> {
        let found = guest.exec(&["sh", "-c", STALE])?;
        let stale: BTreeSet<&str> = found.stdout.lines().collect();
        let waits = |unit: &str| activation.pending.iter().any(|pending| pending.subject == unit);
        let held = found.success() && stale.iter().all(|unit| waits(unit));
        let list: Vec<&str> = stale.into_iter().collect();
        let found = if list.is_empty() { "nobody does".to_owned() } else { list.join(", ") };
        Ok(Proof::new("replaced libraries are mapped only by what waits", held, found))
    }

    /// Image digest = version digest = guest digest, each computed anew by reading all of it.
    pub(crate) fn compare(&self, guest: &dyn Guest) -> anyhow::Result<Vec<Proof>> {
        let version = self.version()?;
        let captured = field(&self.vireo(&["show", &self.arg("update.vireo")])?, "/target")?;
        let image = self.vireo_at_repository(&["image", "verify", IMAGE])?;
        let on_guest = tools::agent(guest, &["verify"])?;
        let equal = |claim, found: &str| {
            Proof::new(claim, found == version, format!("{} and {}", short(found), short(&version)))
        };
        let verified = |claim, answer: &Value| {
            let proof = equal(claim, &field(answer, "/found")?);
            let differing = &answer["differing"];
            let more = if proof.held { String::new() } else { format!("; differing: {differing}") };
            Ok::<_, anyhow::Error>(Proof { found: proof.found + &more, ..proof })
        };
        Ok(vec![
            equal("the version is what was captured", &captured),
            verified("the repository's image is the version", &image)?,
            verified("the running guest is the version", &on_guest)?,
        ])
    }

    /// The new page, the changed one and the configuration's header, from the running guest.
    pub(crate) fn pages_of(&self, guest: &dyn Guest) -> anyhow::Result<Vec<Proof>> {
        Ok(vec![
            new_page("the guest serves the new page", guest)?,
            configuration("the guest's server has the new configuration", guest)?,
        ])
    }

    /// The repository's patched image, as `exported.img`.
    pub(crate) fn export(&self) -> anyhow::Result<PathBuf> {
        self.vireo_at_repository(&["image", "export", IMAGE, "-o", &self.arg("exported.img")])?;
        Ok(self.path("exported.img"))
    }

    /// A new machine from the patched image, with a kernel of its own.
    pub(crate) fn boot(&self, exported: &Path) -> anyhow::Result<Vec<Proof>> {
        let disk = self.lab.dir().join("machine.img");
        clone_image(exported, &disk)?;
        let mut machine = Uml::new(&self.lab, &disk)?;
        machine.start()?;
        let proofs = vec![
            new_page("a machine from the patched image serves the new page", &machine)?,
            configuration("its server has the new configuration", &machine)?,
        ];
        machine.power_cut()?;
        Ok(proofs)
    }

    /// Takes the lab down; fails if anything of it stays.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        Ok(self.lab.finish()?)
    }

    /// Writes a result beside the other files.
    fn keep(&self, name: &str, value: &Value) -> anyhow::Result<()> {
        let path = self.path(name);
        fs::write(&path, serde_json::to_vec_pretty(value)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

fn new_page(claim: &'static str, guest: &dyn Guest) -> anyhow::Result<Proof> {
    let page = guest.http_get(web::ADDED_PAGE)?;
    let held = page.status == 200 && page.text().contains(web::ADDED_TEXT);
    let found = format!("{} from {}{}", page.status, address(guest.ip()), web::ADDED_PAGE);
    Ok(Proof::new(claim, held, found))
}

fn configuration(claim: &'static str, guest: &dyn Guest) -> anyhow::Result<Proof> {
    let page = guest.http_get(web::CHANGED_PAGE)?;
    let header = page.header(update::RELEASE_HEADER);
    let found = format!("{}: {}", update::RELEASE_HEADER, header.unwrap_or("absent"));
    Ok(Proof::new(claim, header == Some("2") && page.text().contains("Release 2"), found))
}

fn address(ip: Ipv4Addr) -> String {
    format!("http://{ip}")
}

/// The first 12 digits, as people tell versions apart.
fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// The text at `pointer` (RFC 6901).
fn field(value: &Value, pointer: &str) -> anyhow::Result<String> {
    let text = value.pointer(pointer).and_then(Value::as_str);
    text.map(str::to_owned).with_context(|| format!("no {pointer} in {value}"))
}

/// Makes `dir`; refuses one that has something in it.
fn empty_directory(dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let dir = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
    if fs::read_dir(&dir)?.next().is_some() {
        bail!("{} is not empty: name a directory that is", dir.display());
    }
    Ok(dir)
}
