//! A base image with the agent, its really updated target, a repository, and guests in a lab.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_testkit::image::{Agent, BaseImage, clone_image};
use vireo_testkit::{Cache, Guest, HOST_ADDRESS, Key, Lab, Nspawn, Run, fixture, programs, update};

use crate::program::{Ran, vireo, vireo_repo};
use crate::scene::capture_args;
use crate::{Server, require_host};

/// What an updated image is made from, beside the base: it is made anew when it changes.
const UPDATE: [&str; 3] = [
    include_str!("../../crates/testkit/recipes/update.sh"),
    include_str!("../../crates/testkit/src/update.rs"),
    include_str!("../../crates/testkit/src/web.rs"),
];

/// Longest for a bundle to get into a guest.
const PUT_DEADLINE: Duration = Duration::from_secs(20);

/// The agent's units.
const UNITS: [&str; 2] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/agent/vireo-agent.service"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/agent/vireo-agent-recover.service"),
];

/// Where the repository is called in the lab.
const LISTEN_PORT: u16 = 8443;

/// A lab with the images, the bundle between them, and a repository that has the base as `web@1`.
#[derive(Debug)]
pub struct World {
    lab: Lab,
    base: PathBuf,
    target: PathBuf,
}

impl World {
    /// Makes it; the images come from the cache. Cost: about 3 s, some minutes the first time.
    ///
    /// # Errors
    ///
    /// The host lacks something, nothing has been built, or making it failed.
    pub fn new() -> anyhow::Result<Self> {
        require_host()?;
        let cache = Cache::open()?;
        let base = base_image(&cache)?;
        let key = Key::of(&UPDATE.concat()).and(&base.to_string_lossy()).and_week();
        let target = cache
            .entry("updated", "img", &key, |out| update::make(&cache, &base, out).map(drop))?;
        Self::of(Lab::new(&cache)?, base, target)
    }

    /// The same with other images: the base is changed by the script (bash) `base`, which finds the
    /// root in `$1`, and the target is the base changed by `target`.
    ///
    /// # Errors
    ///
    /// As [`World::new`]; a script failed.
    pub fn edited(base: &str, target: &str) -> anyhow::Result<Self> {
        require_host()?;
        let cache = Cache::open()?;
        let lab = Lab::new(&cache)?;
        let [from, to] = ["base.img", "target.img"].map(|name| lab.dir().join(name));
        edit_copy(&base_image(&cache)?, &from, base)?;
        edit_copy(&from, &to, target)?;
        Self::of(lab, from, to)
    }

    /// The same between two images that are there already.
    ///
    /// # Errors
    ///
    /// As [`World::new`].
    pub fn between(base: &Path, target: &Path) -> anyhow::Result<Self> {
        require_host()?;
        Self::of(Lab::new(&Cache::open()?)?, base.to_owned(), target.to_owned())
    }

    /// The same, where the target is a copy of `target` whose file system at `offset` is changed by the
    /// script (bash) `edit`; that finds it in `$1` and has `arguments`.
    ///
    /// # Errors
    ///
    /// As [`World::edited`].
    pub fn beyond(
        base: &Path,
        target: &Path,
        (offset, edit, arguments): (u64, &str, &[&str]),
    ) -> anyhow::Result<Self> {
        require_host()?;
        let lab = Lab::new(&Cache::open()?)?;
        let to = lab.dir().join("target.img");
        clone_image(target, &to)?;
        fixture::edit(&to, offset, edit, arguments)?;
        Self::of(lab, base.to_owned(), to)
    }

    fn of(lab: Lab, base: PathBuf, target: PathBuf) -> anyhow::Result<Self> {
        let world = Self { lab, base, target };
        vireo(["key", "generate", "--out", &world.arg("keys")])?.ok()?;
        world.capture(&world.base, &world.target, "update.vireo")?;
        Ok(world)
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The base image. Shared: not to be written to.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The target image. Shared likewise.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// `name` in the lab's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.lab.dir().join(name)
    }

    /// The same as text.
    #[must_use]
    pub fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The public key that bundles are signed by.
    ///
    /// # Errors
    ///
    /// Its file cannot be read.
    pub fn public_key(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.path("keys/vireo.pub"))?.trim().to_owned())
    }

    /// Captures what turns one image into another as the bundle `out` in the lab's directory.
    ///
    /// # Errors
    ///
    /// `vireo capture` failed.
    pub fn capture(&self, base: &Path, target: &Path, out: &str) -> anyhow::Result<()> {
        let text = |path: &Path| path.display().to_string();
        let key = self.arg("keys/vireo.key");
        vireo(capture_args(&text(base), &text(target), &key, &self.arg(out)))?.ok()?;
        Ok(())
    }

    /// Makes the image `out` in the lab's directory, a copy of `from` changed by the script (bash)
    /// `edit`, which finds the root in `$1`.
    ///
    /// # Errors
    ///
    /// As [`World::edited`].
    pub fn edit(&self, from: &Path, edit: &str, out: &str) -> anyhow::Result<PathBuf> {
        let out = self.path(out);
        edit_copy(from, &out, edit)?;
        Ok(out)
    }

    /// Puts the file `name` of the lab's directory into the guest as `/tmp/NAME`, where no version
    /// reaches.
    ///
    /// # Errors
    ///
    /// It cannot be read or written.
    pub fn put(&self, guest: &dyn Guest, name: &str) -> anyhow::Result<()> {
        let content = std::fs::read(self.path(name))?;
        let to = format!("cat > /tmp/{name}");
        let put = guest.exec_with(&["sh", "-c", &to], &content, PUT_DEADLINE)?;
        ensure!(put.success(), "{}", put.tail());
        Ok(())
    }

    /// Makes a repository with the base as `web@1` and serves it in the lab.
    ///
    /// # Errors
    ///
    /// A program failed.
    pub fn serve(&self) -> anyhow::Result<Server> {
        let (data, name) = (self.arg("repo"), HOST_ADDRESS.to_string());
        vireo_repo(["init", &data, "--listen-name", &name])?.ok()?;
        vireo_repo(["trust", "--data", &data, &self.public_key()?])?.ok()?;
        let base = self.base.display().to_string();
        vireo(["image", "create", "web", &base, "--repo", &data])?.ok()?;
        let mut command = self.lab.command(programs::find("vireo-repo")?);
        let listen = format!("{name}:{LISTEN_PORT}");
        command.args(["serve", "--data", &data, "--listen", &listen]);
        Server::spawn(command, &self.path("repo.log"))
    }

    /// `vireo ARGS` at the repository, in the lab.
    ///
    /// # Errors
    ///
    /// It cannot be run.
    pub fn ask(&self, server: &Server, args: &[&str]) -> anyhow::Result<Ran> {
        let mut command = self.lab.command(programs::find("vireo")?);
        let token = format!("@{}", self.arg("repo/admin-token"));
        command.args(args).args(["--repo", server.url(), "--token", &token]);
        let label = format!("vireo {}", args.join(" "));
        Ran::of(Run::of(command, &label), label)
    }

    /// Digest of the newest version of `web`.
    ///
    /// # Errors
    ///
    /// The repository does not say.
    pub fn version(&self, server: &Server) -> anyhow::Result<String> {
        let log = self.ask(server, &["log", "web", "--json"])?.ok()?.json("log")?;
        let newest = log["versions"].as_array().and_then(|versions| versions.last());
        let tree = newest.and_then(|version| version["tree"].as_str());
        Ok(tree.context("a newest version")?.to_owned())
    }

    /// A guest on its own copy of the base, booted. Its agent does not run.
    ///
    /// # Errors
    ///
    /// It does not boot.
    pub fn guest(&self) -> anyhow::Result<Nspawn<'_>> {
        let disk = self.path("guest.img");
        clone_image(&self.base, &disk)?;
        let mut guest = Nspawn::new(&self.lab, &disk)?;
        guest.start()?;
        Ok(guest)
    }

    /// Makes a guest an instance of `web`. Its agent's service is not started.
    ///
    /// # Errors
    ///
    /// A program failed.
    pub fn enrol(&self, server: &Server, guest: &dyn Guest) -> anyhow::Result<()> {
        let data = self.arg("repo");
        let made = vireo_repo(["token", "create", "--data", &data, "--image", "web", "--json"])?;
        let made = made.ok()?.json("token")?;
        let token = made["token"].as_str().context("a token")?;
        agent(guest, &["enroll", server.url(), "--token", token, "--image", "web"])?.ok()?;
        Ok(())
    }

    /// Takes the lab down and expects that nothing of it stays.
    ///
    /// # Errors
    ///
    /// Something does.
    pub fn finish(self) -> anyhow::Result<()> {
        Ok(self.lab.finish()?)
    }
}

fn base_image(cache: &Cache) -> anyhow::Result<PathBuf> {
    let units = UNITS.map(PathBuf::from).to_vec();
    let agent = Agent { program: programs::find("vireo-agent")?, units };
    Ok(BaseImage::with_agent(agent).build(cache)?)
}

fn edit_copy(from: &Path, to: &Path, script: &str) -> anyhow::Result<()> {
    clone_image(from, to)?;
    Ok(fixture::edit(to, 0, script, &[])?)
}

/// `vireo-agent ARGS --json` in a guest.
///
/// # Errors
///
/// It cannot be run.
pub fn agent(guest: &dyn Guest, args: &[&str]) -> anyhow::Result<Ran> {
    let argv = [&["vireo-agent"], args, &["--json"]].concat();
    Ok(Ran::in_guest(guest.exec(&argv)?, argv.join(" ")))
}

/// Runs a shell script in a guest and gives what it printed.
///
/// # Errors
///
/// It failed.
pub fn shell(guest: &dyn Guest, script: &str) -> anyhow::Result<String> {
    let output = guest.exec(&["sh", "-ec", script])?;
    ensure!(output.success(), "in the guest: {script}\n{}", output.tail());
    Ok(output.stdout)
}

/// The text at `pointer` (RFC 6901).
///
/// # Errors
///
/// There is none.
pub fn text_at(value: &Value, pointer: &str) -> anyhow::Result<String> {
    let text = value.pointer(pointer).and_then(Value::as_str);
    text.map(str::to_owned).with_context(|| format!("no {pointer} in {value}"))
}
