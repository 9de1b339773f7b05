//! Real systemd in a container on a loop-mounted image.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::console::Machine;
use super::{Exit, Guest};
use crate::error::{ErrorKind, TestkitError, failed};
use crate::lab::Lab;
use crate::run::{Output, Run, search_path};

const BOOT: &str = include_str!("../../recipes/nspawn.sh");
const EXEC: &str = include_str!("../../recipes/exec.sh");

/// Longest for a container to boot; one or two seconds are usual.
const START_DEADLINE: Duration = Duration::from_secs(45);

/// What systemd-nspawn exits with if the guest asked for a reboot.
const REBOOT_CODE: i32 = 133;

/// systemd's signal for "shut down and power off" (systemd(1)).
const POWEROFF_SIGNAL: &str = "RTMIN+4";

/// A container: real systemd and services on the host's kernel. Boots in one or two seconds, and
/// `/proc/PID/maps` names the same device and inode as `stat`.
#[derive(Debug)]
pub struct Nspawn<'lab> {
    machine: Machine<'lab>,
    mount: PathBuf,
    init: Option<Init>,
}

/// The container's first process, as the host sees it.
#[derive(Debug)]
struct Init {
    pid: u32,
    /// The control group it is in; commands join it.
    cgroup: PathBuf,
}

impl<'lab> Nspawn<'lab> {
    /// A container that will boot `image`, an unpartitioned ext4 image, and write to it.
    ///
    /// # Errors
    ///
    /// The image is not there.
    pub fn new(lab: &'lab Lab, image: &Path) -> Result<Self, TestkitError> {
        let machine = Machine::new(lab, image)?;
        let mount = lab.dir().join(format!("{}.root", machine.group));
        fs::create_dir(&mount).map_err(failed("make directory", &mount))?;
        Ok(Self { machine, mount, init: None })
    }

    fn boot(&self) -> Command {
        let machine = &self.machine;
        let mut command = machine.lab.command_in(&machine.group, Path::new("unshare"));
        command.args(["-m", "--propagation", "private", "bash", "-c", BOOT, "nspawn.sh"]);
        command.args([&machine.image, &self.mount]).arg(&machine.group);
        command.arg(Lab::with_prefix(machine.ip));
        command
    }

    /// The first process, once there is one that has moved to its final control group.
    fn find_init(&mut self) -> Result<Init, TestkitError> {
        let root = self.machine.lab.cgroup(&self.machine.group);
        let cgroup = root.join("payload/init.scope");
        self.machine.wait_for("the container's first process", START_DEADLINE, |_| {
            let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            let mut pids = listed.lines().filter_map(|line| line.parse().ok());
            Ok(pids.find(|pid| is_first(*pid)).map(|pid| Init { pid, cgroup: cgroup.clone() }))
        })
    }

    fn init(&self) -> Result<&Init, TestkitError> {
        self.machine.require_running()?;
        let none = || TestkitError::new(ErrorKind::Failed, "the container has not booted");
        self.init.as_ref().ok_or_else(none)
    }

    /// What systemd says about a boot that went wrong.
    fn complaints(&self) -> String {
        let ask = |argv: &[&str]| self.exec(argv).map(|output| output.tail()).unwrap_or_default();
        let failed = ask(&["systemctl", "--no-pager", "--failed"]);
        format!("{failed}\n{}", ask(&["journalctl", "--no-pager", "-n", "25"]))
    }
}

/// Whether `pid` is number 1 in its own namespace.
fn is_first(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.is_some_and(|ids| ids.split_whitespace().count() > 1 && ids.ends_with("\t1"))
}

impl Guest for Nspawn<'_> {
    fn kind(&self) -> &'static str {
        "nspawn"
    }

    fn ip(&self) -> Ipv4Addr {
        self.machine.ip
    }

    fn lab(&self) -> &Lab {
        self.machine.lab
    }

    fn start(&mut self) -> Result<Duration, TestkitError> {
        let started = Instant::now();
        self.machine.spawn(self.boot())?;
        self.init = Some(self.find_init()?);
        match self.machine.wait_answer(None, START_DEADLINE) {
            Ok(()) => Ok(started.elapsed()),
            Err(error) => Err(error.with_detail(self.complaints())),
        }
    }

    fn exec_with(
        &self,
        argv: &[&str],
        input: &[u8],
        deadline: Duration,
    ) -> Result<Output, TestkitError> {
        let init = self.init()?;
        let mut command = Command::new("sh");
        command.env("PATH", search_path()).args(["-c", EXEC, "exec.sh"]);
        command.arg(&init.cgroup).arg(init.pid.to_string()).args(argv);
        Run::of(command, argv.join(" ")).input(input).deadline(deadline).output()
    }

    fn wait_end(&mut self, deadline: Duration) -> Result<Exit, TestkitError> {
        let code = self.machine.wait_end(deadline)?;
        self.init = None;
        Ok(match code {
            0 => Exit::Off,
            REBOOT_CODE => Exit::Reboot,
            code => Exit::Broken(code),
        })
    }

    fn request_poweroff(&mut self) -> Result<(), TestkitError> {
        let pid = self.init()?.pid.to_string();
        Run::new("kill").args(["-s", POWEROFF_SIGNAL, &pid]).text().map(drop)
    }

    fn power_cut(&mut self) -> Result<(), TestkitError> {
        self.init = None;
        self.machine.power_cut()
    }

    fn console(&self) -> String {
        self.machine.console()
    }
}
