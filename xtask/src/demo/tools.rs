//! Vireo's own programs, driven by their command lines as an administrator would.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;
use vireo_testkit::{Guest, HOST_ADDRESS, Lab, Output, Run};

use crate::cargo;

/// Port that the repository listens on.
const PORT: u16 = 8443;

/// Longest for one command of ours.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// Longest for the repository to answer after its start.
const SERVE_DEADLINE: Duration = Duration::from_secs(20);

/// Time between two looks.
const POLL: Duration = Duration::from_millis(50);

/// Where the three programs are.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) vireo: PathBuf,
    pub(crate) repo: PathBuf,
    pub(crate) agent: PathBuf,
}

impl Programs {
    /// Builds them.
    pub(crate) fn build() -> anyhow::Result<Self> {
        let built = cargo::build()?;
        let find = |name: &str| {
            built.get(name).cloned().with_context(|| format!("the build made no program {name}"))
        };
        Ok(Self { vireo: find("vireo")?, repo: find("vireo-repo")?, agent: find("vireo-agent")? })
    }
}

/// Where the repository is called.
pub(crate) fn repository_url() -> String {
    format!("https://{HOST_ADDRESS}:{PORT}")
}

/// Runs a program of the host inside the lab with `--json`, and gives what it printed as JSON.
pub(crate) fn run(lab: &Lab, program: &Path, args: &[&str]) -> anyhow::Result<Value> {
    let mut command = lab.command(program);
    command.args(args).arg("--json");
    let label = label(program, args);
    let output = Run::of(command, &label).deadline(COMMAND_DEADLINE).output()?;
    json(&label, &output)
}

/// Runs the agent inside a guest with `--json`, and gives what it printed as JSON.
pub(crate) fn agent(guest: &dyn Guest, args: &[&str]) -> anyhow::Result<Value> {
    let argv = [&["vireo-agent"], args, &["--json"]].concat();
    let label = argv.join(" ");
    json(&label, &guest.exec(&argv)?)
}

fn label(program: &Path, args: &[&str]) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    format!("{name} {}", args.join(" "))
}

/// What a finished command printed; 1 with an answer is how a comparison says that it found
/// differences.
fn json(label: &str, output: &Output) -> anyhow::Result<Value> {
    let compared = output.code == 1 && output.stdout.trim_start().starts_with('{');
    if !output.success() && !compared {
        bail!("{label} failed with exit code {}\n{}", output.code, output.tail());
    }
    serde_json::from_str(&output.stdout)
        .with_context(|| format!("{label} printed no JSON but\n{}", output.tail()))
}

/// A running repository. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Starts it, writing to `log`, and waits until it listens.
    pub(crate) fn start(
        lab: &Lab,
        program: &Path,
        data: &Path,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let address = SocketAddr::from((HOST_ADDRESS, PORT));
        let mut command = lab.command(program);
        command.arg("serve").arg("--data").arg(data).arg("--listen").arg(address.to_string());
        command.stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().context("cannot start the repository")?;
        let mut server = Self { child };
        let started = Instant::now();
        loop {
            if lab.inside(|| TcpStream::connect_timeout(&address, POLL))?.is_ok() {
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                bail!("the repository ended: {status}");
            }
            if started.elapsed() > SERVE_DEADLINE {
                bail!("the repository does not listen on {address} after {SERVE_DEADLINE:?}");
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing of it stays.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
