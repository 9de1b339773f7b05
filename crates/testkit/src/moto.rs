//! A server that speaks EC2's interface on this host: moto, installed once into the cache.
//!
//! It is right for machine images, launch templates, instances and tags; its EBS direct interface is
//! not (blocks of 512 bytes, no parents, no checksums), so tests bring their own.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::cache::{Cache, Key};
use crate::error::{ErrorKind, TestkitError, failed};
use crate::run::Run;

/// What is installed, with its version.
const REQUIREMENTS: &str = include_str!("../recipes/moto.txt");

/// The distribution's own Python.
const PYTHON: &str = "/usr/bin/python3";

/// Time for the installation.
const INSTALL_DEADLINE: Duration = Duration::from_secs(600);

/// Time for the server to say its address.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    address: SocketAddr,
}

impl Moto {
    /// Starts a server on a free port of the loopback device. It has the machine images that the JSON
    /// file `images` lists, in moto's form, and nothing else.
    ///
    /// # Errors
    ///
    /// Python or the package index is not there, or the server did not start.
    pub fn start(cache: &Cache, images: &Path) -> Result<Self, TestkitError> {
        let python = install(cache)?.join("bin/python");
        let mut child = Command::new(&python)
            .args(["-u", "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"])
            .env("MOTO_AMIS_PATH", images)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed("start", &python))?;
        let Some(stderr) = child.stderr.take() else {
            return Err(TestkitError::new(ErrorKind::Failed, "the server has no standard error"));
        };
        let (send, receive) = mpsc::channel();
        // Reads on to the end: a full pipe would stop the server.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some(address) = address_in(&line) {
                    // Nobody waits any more once it is known.
                    let _ = send.send(address);
                }
            }
        });
        match receive.recv_timeout(START_DEADLINE) {
            Ok(address) => Ok(Self { child, address }),
            Err(_) => {
                let mut server = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
                server.stop();
                Err(TestkitError::new(ErrorKind::Deadline, "moto did not say its address in time"))
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The address in the server's line ` * Running on http://127.0.0.1:5000`.
fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("Running on http://")?;
    rest.trim().parse().ok()
}

/// The virtual environment with the server in it; made under a lock, whole or not at all.
fn install(cache: &Cache) -> Result<std::path::PathBuf, TestkitError> {
    let version = Run::new(PYTHON).arg("--version").text()?;
    let dir = cache.dir().join(format!("moto-{}", Key::of(REQUIREMENTS).and(&version).short()));
    let complete = dir.join("complete");
    if complete.exists() {
        return Ok(dir);
    }
    let _lock = cache.lock("moto")?;
    if complete.exists() {
        return Ok(dir);
    }
    // What an interrupted installation left.
    if dir.exists() {
        fs::remove_dir_all(&dir).map_err(failed("remove", &dir))?;
    }
    Run::new(PYTHON).args(["-m", "venv"]).arg(&dir).deadline(INSTALL_DEADLINE).text()?;
    let requirements = dir.join("requirements.txt");
    fs::write(&requirements, REQUIREMENTS).map_err(failed("write", &requirements))?;
    Run::new(dir.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"])
        .arg(&requirements)
        .deadline(INSTALL_DEADLINE)
        .text()?;
    fs::write(&complete, "").map_err(failed("write", &complete))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_line_has_its_address() {
        let line = " * Running on http://127.0.0.1:36005";
        assert_eq!(address_in(line), Some(SocketAddr::from(([127, 0, 0, 1], 36_005))));
        assert_eq!(address_in("Press CTRL+C to quit"), None);
    }

    #[test]
    fn every_requirement_is_pinned() {
        let lines = REQUIREMENTS.lines().filter(|line| !line.starts_with('#'));
        assert!(lines.clone().count() > 20);
        for line in lines {
            assert!(line.contains("=="), "{line}");
        }
    }
}
