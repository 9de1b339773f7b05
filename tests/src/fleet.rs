//! A running repository and a machine launched from its image: real systemd, real nginx.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use vireo_testkit::image::{Agent, BaseImage, clone_image};
use vireo_testkit::{Cache, Guest, HOST_ADDRESS, Lab, Nspawn, Output, Run, programs, update};

use crate::program::{Ran, vireo, vireo_repo};
use crate::{capture_args, require_host};

/// The image's name in the repository.
pub const IMAGE: &str = "web";

const PORT: u16 = 8443;
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);
const SERVE_DEADLINE: Duration = Duration::from_secs(20);
const APPLY_DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

/// A lab with a Debian image `base.img`, its really updated copy `target.img`, the bundle
/// `update.vireo` between them, and a repository that has the image and trusts the bundle's signer.
#[derive(Debug)]
pub struct Fleet {
    lab: Lab,
    server: Option<Daemon>,
}

impl Fleet {
    /// Builds it all and starts the repository. Cost: about 8 s with a warm cache.
    ///
    /// # Errors
    ///
    /// The host lacks something, or a step failed.
    pub fn new() -> anyhow::Result<Self> {
        require_host()?;
        let cache = Cache::open()?;
        let unit = PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../crates/agent/vireo-agent.service"
        ));
        let agent = Agent { program: programs::find("vireo-agent")?, unit };
        let made = BaseImage::with_agent(agent).build(&cache)?;
        let mut fleet = Self { lab: Lab::new(&cache)?, server: None };
        clone_image(&made, &fleet.path("base.img"))?;
        update::make(&cache, &fleet.path("base.img"), &fleet.path("target.img"))?;
        vireo(["key", "generate", "--out", &fleet.arg("keys")])?.ok()?;
        fleet.capture("base.img", "target.img", "update.vireo")?;
        let data = fleet.arg("repository");
        vireo_repo(["init", &data, "--listen-name", &HOST_ADDRESS.to_string()])?.ok()?;
        let key = fleet.public_key()?;
        vireo([
            "image",
            "create",
            IMAGE,
            &fleet.arg("base.img"),
            "--trust",
            &key,
            "--repo",
            &data,
        ])?
        .ok()?;
        fleet.serve()?;
        Ok(fleet)
    }

    /// `name` in the lab's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.lab.dir().join(name)
    }

    /// The same as text, for command lines.
    #[must_use]
    pub fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The lab it is in.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The public key of the administrator, as text.
    ///
    /// # Errors
    ///
    /// Its file cannot be read.
    pub fn public_key(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.path("keys/vireo.pub"))?.trim().to_owned())
    }

    /// Captures the bundle `out` between two images of the lab.
    ///
    /// # Errors
    ///
    /// `vireo capture` failed.
    pub fn capture(&self, base: &str, target: &str, out: &str) -> anyhow::Result<()> {
        let [base, target, key, out] =
            [base, target, "keys/vireo.key", out].map(|name| self.arg(name));
        vireo(capture_args(&base, &target, &key, &out))?.ok().map(drop)
    }

    /// `vireo ARGS` against the running repository, inside the lab's network.
    ///
    /// # Errors
    ///
    /// It cannot be started or misses its deadline.
    pub fn vireo(&self, args: &[&str]) -> anyhow::Result<Ran> {
        let mut command = self.lab.command(programs::find("vireo")?);
        command.args(args).args(["--repo", &Self::url()]);
        command.args(["--token", &format!("@{}", self.arg("repository/admin-token"))]);
        let label = format!("vireo {}", args.join(" "));
        Ran::of(Run::of(command, &label).deadline(COMMAND_DEADLINE), label)
    }

    /// The repository's address.
    #[must_use]
    pub fn url() -> String {
        format!("https://{HOST_ADDRESS}:{PORT}")
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        let address = SocketAddr::from((HOST_ADDRESS, PORT));
        let log =
            File::create(self.path("serve.log")).context("cannot make the repository's log")?;
        let mut command = self.lab.command(programs::find("vireo-repo")?);
        command.args([
            "serve",
            "--data",
            &self.arg("repository"),
            "--listen",
            &address.to_string(),
        ]);
        command.stdout(log.try_clone()?).stderr(log);
        self.server = Some(Daemon(command.spawn().context("cannot start the repository")?));
        let started = Instant::now();
        while self.lab.inside(|| TcpStream::connect_timeout(&address, POLL))?.is_err() {
            if started.elapsed() > SERVE_DEADLINE {
                let log = fs::read_to_string(self.path("serve.log")).unwrap_or_default();
                bail!("the repository does not listen on {address}:\n{log}");
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Boots a machine from its own copy of the base and enrols it. Its agent does not run yet.
    ///
    /// # Errors
    ///
    /// It does not boot, or cannot be enrolled.
    pub fn launch(&self) -> anyhow::Result<Nspawn<'_>> {
        let disk = self.path("guest.img");
        clone_image(&self.path("base.img"), &disk)?;
        let mut guest = Nspawn::new(&self.lab, &disk)?;
        guest.start()?;
        run(&guest, &["systemctl", "stop", "vireo-agent"])?;
        let data = self.arg("repository");
        let made =
            vireo_repo(["token", "create", "--data", &data, "--image", IMAGE, "--json"])?.ok()?;
        let made: Value = serde_json::from_str(&made.output().stdout)?;
        let token = made["token"].as_str().context("no token in the answer")?;
        run(&guest, &["vireo-agent", "enroll", &Self::url(), "--token", token, "--image", IMAGE])?;
        Ok(guest)
    }

    /// Pushes `update.vireo` and gives the digest of the version that it makes.
    ///
    /// # Errors
    ///
    /// The push failed.
    pub fn push(&self) -> anyhow::Result<String> {
        let pushed = self.vireo(&["push", &self.arg("update.vireo"), IMAGE, "--json"])?.ok()?;
        let pushed: Value = serde_json::from_str(&pushed.output().stdout)?;
        Ok(pushed["version"]["tree"].as_str().context("no tree in the answer")?.to_owned())
    }

    /// Waits until the guest's agent says that it is on the version `tree`; gives its receipt.
    ///
    /// # Errors
    ///
    /// It does not get there in time.
    pub fn wait_applied(&self, guest: &dyn Guest, tree: &str) -> anyhow::Result<Value> {
        let started = Instant::now();
        loop {
            let status = agent_json(guest, &["status"])?;
            if status["tree"] == tree && status["under_way"] == false && status["last"].is_object()
            {
                return Ok(status["last"].clone());
            }
            if started.elapsed() > APPLY_DEADLINE {
                let log =
                    guest.exec(&["journalctl", "--no-pager", "-n", "40", "-u", "vireo-agent"])?;
                bail!("the agent does not get to {tree}: {status}\n{}", log.stdout);
            }
            thread::sleep(POLL);
        }
    }

    /// Copies a file of the lab into the guest, to where nothing belongs to a version.
    ///
    /// # Errors
    ///
    /// It cannot be read or written.
    pub fn send(&self, guest: &dyn Guest, name: &str) -> anyhow::Result<String> {
        let bytes = fs::read(self.path(name))?;
        let to = format!("/var/tmp/{name}");
        let script = ["sh", "-c", "cat > \"$0\"", &to];
        let output = guest.exec_with(&script, &bytes, COMMAND_DEADLINE)?;
        ensure!(output.success(), "cannot send {name}\n{}", output.tail());
        Ok(to)
    }

    /// Takes everything down; fails if anything of it stays.
    ///
    /// # Errors
    ///
    /// What stays.
    pub fn finish(self) -> anyhow::Result<()> {
        let Self { lab, server } = self;
        drop(server);
        Ok(lab.finish()?)
    }
}

/// A daemon that is killed when dropped.
#[derive(Debug)]
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing of it stays.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Runs a program in the guest, which must succeed.
///
/// # Errors
///
/// It failed.
pub fn run(guest: &dyn Guest, argv: &[&str]) -> anyhow::Result<Output> {
    let output = guest.exec(argv)?;
    ensure!(
        output.success(),
        "{} in the guest: exit code {}\n{}",
        argv.join(" "),
        output.code,
        output.tail()
    );
    Ok(output)
}

/// `vireo-agent ARGS --json` in the guest, whatever its exit code.
///
/// # Errors
///
/// It printed no JSON.
pub fn agent_json(guest: &dyn Guest, args: &[&str]) -> anyhow::Result<Value> {
    let output = guest.exec(&[&["vireo-agent"], args, &["--json"]].concat())?;
    serde_json::from_str(&output.stdout).with_context(|| {
        format!("vireo-agent {} printed no JSON but\n{}", args.join(" "), output.tail())
    })
}
