//! A running repository, to be killed and started again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;
use vireo_testkit::programs;

/// Longest for it to listen.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// Time between two looks.
const POLL: Duration = Duration::from_millis(10);

/// `vireo-repo serve`. Killed, as by `kill -9`, when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    url: String,
    log: PathBuf,
}

impl Server {
    /// Serves the repository in `data` on a free port of the loopback address.
    ///
    /// # Errors
    ///
    /// It ends or does not listen; the message has what it wrote.
    pub fn start(data: &Path) -> anyhow::Result<Self> {
        Self::start_at(data, "127.0.0.1:0")
    }

    /// The same at an address of the host.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn start_at(data: &Path, address: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(programs::find("vireo-repo")?);
        command.args(["serve", "--listen", address, "--data"]).arg(data);
        Self::spawn(command, &data.with_extension("log"))
    }

    /// Starts `command`, a `vireo-repo serve`, and waits until it listens. Its output goes to `log`.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        command.arg("--json").stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().context("cannot start the repository")?;
        let mut server = Self { child, url: String::new(), log: log.to_owned() };
        let started = Instant::now();
        while server.url.is_empty() {
            if let Some(status) = server.child.try_wait()? {
                bail!("the repository ended: {status}\n{}", server.log());
            }
            if started.elapsed() > START_DEADLINE {
                bail!("the repository does not listen\n{}", server.log());
            }
            thread::sleep(POLL);
            server.url = server.find_url().unwrap_or_default();
        }
        Ok(server)
    }

    fn find_url(&self) -> Option<String> {
        let text = self.log();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ready = lines.find(|line| line["schema"] == "vireo.serve/1")?;
        ready["url"].as_str().map(str::to_owned)
    }

    /// Its address, `https://HOST:PORT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    ///
    /// The system does not say.
    pub fn is_alive(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait().context("cannot ask for the repository's end")?.is_none())
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed already; either way it is gone afterwards.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
