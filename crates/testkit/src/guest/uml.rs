//! A real kernel: User-mode Linux booting the disk image.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::console::Machine;
use super::{Exit, Guest};
use crate::error::TestkitError;
use crate::lab::Lab;
use crate::run::{Output, Run};

/// The kernel, a program of the distribution.
const KERNEL: &str = "linux.uml";

/// Memory of the guest.
const MEMORY: &str = "128M";

/// Longest for the kernel to boot; ten seconds are usual on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// Port of the guest's ssh server, by which commands are run.
const SSH_PORT: u16 = 22;

/// Longest for ssh to get a connection, in seconds.
const SSH_TIMEOUT: u32 = 20;

/// What ssh exits with if it, and not the command, failed.
const SSH_FAILED: i32 = 255;

/// A machine with a kernel of its own: boots the image through the real ext4 and its journal. About
/// ten seconds to the first answer; commands run over ssh.
#[derive(Debug)]
pub struct Uml<'lab> {
    machine: Machine<'lab>,
    tap: String,
}

impl<'lab> Uml<'lab> {
    /// A machine that will boot `image`, an unpartitioned ext4 image, and write to it.
    ///
    /// # Errors
    ///
    /// The image is not there, or the network device cannot be made.
    pub fn new(lab: &'lab Lab, image: &Path) -> Result<Self, TestkitError> {
        let machine = Machine::new(lab, image)?;
        let tap = format!("tap{}", machine.number);
        let ip = |args: &[&str]| Run::of(in_lab(lab, "ip", args), "ip").text().map(drop);
        ip(&["tuntap", "add", "dev", &tap, "mode", "tap"])?;
        ip(&["link", "set", &tap, "master", "br0", "up"])?;
        Ok(Self { machine, tap })
    }

    fn boot(&self) -> Result<Command, TestkitError> {
        let Machine { lab, group, number, ip, image, .. } = &self.machine;
        // A name that an earlier run of this machine left behind would be taken for a running one.
        drop(fs::remove_dir_all(lab.dir().join(group)));
        let mut command = lab.command_in(group, Path::new("unshare"));
        command.args(["--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", KERNEL]);
        command.args([format!("mem={MEMORY}"), format!("umid={group}")]);
        command.arg(format!("uml_dir={}", lab.dir().display()));
        command.arg(format!("ubd0={}", image.display()));
        command.args(["root=/dev/ubda", "rw", "con0=null,fd:1", "con=null", "ssl=null"]);
        let network =
            format!("vec0:transport=tap,ifname={},mac=02:00:00:00:00:{number:02x}", self.tap);
        command.arg(network).arg(format!("vireo.ip={}", Lab::with_prefix(*ip)));
        // Rebooting in place would lose the network device: the process ends instead.
        command.args(["quiet", "systemd.show_status=0", "panic=1", "noreboot"]);
        Ok(command)
    }

    fn ssh(&self, argv: &[&str]) -> Command {
        let lab = self.machine.lab;
        let mut ssh = in_lab(lab, "ssh", &["-F", "none", "-o", "LogLevel=ERROR"]);
        ssh.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.args(["-o", "BatchMode=yes", "-o", &format!("ConnectTimeout={SSH_TIMEOUT}"), "-i"]);
        ssh.arg(lab.login_key()).arg(format!("root@{}", self.machine.ip)).arg("--");
        ssh.args(argv.iter().map(|word| quote(word)));
        ssh
    }
}

/// A program in the lab's network and control group for helpers.
fn in_lab(lab: &Lab, program: &str, args: &[&str]) -> Command {
    let mut command = lab.command(program);
    command.args(args);
    command
}

/// `word` as one word of the shell that ssh starts.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl Guest for Uml<'_> {
    fn kind(&self) -> &'static str {
        "uml"
    }

    fn ip(&self) -> Ipv4Addr {
        self.machine.ip
    }

    fn lab(&self) -> &Lab {
        self.machine.lab
    }

    fn start(&mut self) -> Result<Duration, TestkitError> {
        let started = Instant::now();
        self.machine.spawn(self.boot()?)?;
        self.machine.wait_answer(Some(SSH_PORT), START_DEADLINE)?;
        Ok(started.elapsed())
    }

    fn exec_with(
        &self,
        argv: &[&str],
        input: &[u8],
        deadline: Duration,
    ) -> Result<Output, TestkitError> {
        self.machine.require_running()?;
        let run = Run::of(self.ssh(argv), argv.join(" ")).input(input).deadline(deadline);
        run.output()
    }

    fn wait_end(&mut self, deadline: Duration) -> Result<Exit, TestkitError> {
        Ok(match self.machine.wait_end(deadline)? {
            0 => Exit::Off,
            code => Exit::Broken(code),
        })
    }

    fn request_poweroff(&mut self) -> Result<(), TestkitError> {
        let output = self.exec(&["systemctl", "poweroff"])?;
        // The connection may break before the command has said that it is done.
        if output.success() || output.code == SSH_FAILED {
            return Ok(());
        }
        let message = format!("the guest refused to power off: {}", output.tail());
        Err(TestkitError::new(crate::ErrorKind::Failed, message))
    }

    fn power_cut(&mut self) -> Result<(), TestkitError> {
        self.machine.power_cut()
    }

    fn console(&self) -> String {
        self.machine.console()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_reach_the_other_shell_as_they_are() {
        let word = "it's $HOME; `x` \"y\" \\";
        let out = Run::new("sh").args(["-c", &format!("printf %s {}", quote(word))]).text();
        assert_eq!(out.expect("sh runs"), word);
    }
}
