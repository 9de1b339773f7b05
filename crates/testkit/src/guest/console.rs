//! What every kind of guest has: a process on the host, its console in a file, an image in use.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::error::{ErrorKind, TestkitError, failed};
use crate::lab::Lab;
use crate::run::{exit_code, tail};
use crate::{http, leaks, wait};

/// Lines of the console that go into an error.
const CONSOLE_LINES: usize = 30;

/// Time for one attempt to reach a server that is perhaps not there yet.
const ATTEMPT: Duration = Duration::from_millis(500);

/// Time for the kernel to detach an image after the last process that used it.
const DETACH_DEADLINE: Duration = Duration::from_secs(10);

/// A guest's process on the host, from start to end.
#[derive(Debug)]
pub(super) struct Machine<'lab> {
    pub(super) lab: &'lab Lab,
    /// Name of its control group, and of everything else that needs one.
    pub(super) group: String,
    pub(super) number: u8,
    pub(super) ip: Ipv4Addr,
    pub(super) image: PathBuf,
    child: Option<Child>,
}

impl<'lab> Machine<'lab> {
    pub(super) fn new(lab: &'lab Lab, image: &Path) -> Result<Self, TestkitError> {
        let image = image.canonicalize().map_err(failed("find the image", image))?;
        let (number, ip) = lab.next_guest();
        Ok(Self { lab, group: format!("g{number}"), number, ip, image, child: None })
    }

    /// Starts `command`, its output into the console's file.
    pub(super) fn spawn(&mut self, mut command: Command) -> Result<(), TestkitError> {
        if self.child.is_some() {
            return Err(TestkitError::new(ErrorKind::Failed, "the guest runs already"));
        }
        let path = self.console_path();
        let console = File::options().create(true).append(true).open(&path);
        let console = console.map_err(failed("open", &path))?;
        let errors = console.try_clone().map_err(failed("open", &path))?;
        command.stdin(Stdio::null()).stdout(console).stderr(errors);
        self.child = Some(command.spawn().map_err(failed("start a guest from", &self.image))?);
        Ok(())
    }

    /// Waits until the web server and, if asked for, another port answer.
    pub(super) fn wait_answer(
        &mut self,
        also: Option<u16>,
        deadline: Duration,
    ) -> Result<(), TestkitError> {
        self.wait_for("the guest's servers to answer", deadline, |machine| {
            Ok(machine.answers(also)?.then_some(()))
        })
    }

    /// Waits for something that only a running guest can bring about.
    pub(super) fn wait_for<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        probe: impl Fn(&Self) -> Result<Option<T>, TestkitError>,
    ) -> Result<T, TestkitError> {
        let waited = wait::until(what, deadline, || match self.ended()? {
            None => probe(self),
            Some(code) => {
                let message = format!("the guest ended while booting, exit code {code}");
                Err(TestkitError::new(ErrorKind::Failed, message))
            }
        });
        waited.map_err(|error| error.with_detail(self.console()))
    }

    fn answers(&self, also: Option<u16>) -> Result<bool, TestkitError> {
        let ip = self.ip;
        self.lab.inside(|| {
            let page = http::get(SocketAddr::from((ip, super::HTTP_PORT)), "/", ATTEMPT);
            let other = |port| TcpStream::connect_timeout(&SocketAddr::from((ip, port)), ATTEMPT);
            page.is_ok() && also.is_none_or(|port| other(port).is_ok())
        })
    }

    /// The exit code, once the process has ended.
    fn ended(&mut self) -> Result<Option<i32>, TestkitError> {
        let Some(child) = &mut self.child else { return Ok(None) };
        Ok(child.try_wait().map_err(failed("wait for the guest of", &self.image))?.map(exit_code))
    }

    /// Waits for the process to end by itself and for its image to be detached.
    pub(super) fn wait_end(&mut self, deadline: Duration) -> Result<i32, TestkitError> {
        self.require_running()?;
        let waited = wait::until("the guest to end", deadline, || self.ended());
        let code = waited.map_err(|error| error.with_detail(self.console()))?;
        self.power_cut()?;
        Ok(code)
    }

    /// Kills what is left of it and waits until its image is detached.
    pub(super) fn power_cut(&mut self) -> Result<(), TestkitError> {
        self.lab.kill(&self.group)?;
        if let Some(mut child) = self.child.take() {
            child.wait().map_err(failed("wait for the guest of", &self.image))?;
        }
        let what = format!("{} to be detached", self.image.display());
        wait::until(&what, DETACH_DEADLINE, || {
            Ok(leaks::loops_on(&self.image).is_empty().then_some(()))
        })
    }

    pub(super) fn require_running(&self) -> Result<(), TestkitError> {
        match self.child {
            Some(_) => Ok(()),
            None => Err(TestkitError::new(ErrorKind::Failed, "the guest does not run")),
        }
    }

    pub(super) fn console(&self) -> String {
        let text = fs::read(self.console_path()).unwrap_or_default();
        tail(&String::from_utf8_lossy(&text), CONSOLE_LINES)
    }

    fn console_path(&self) -> PathBuf {
        self.lab.dir().join(format!("{}.console", self.group))
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if self.child.is_some() {
            // What does not die now, the lab's guard kills.
            drop(self.power_cut());
        }
    }
}
