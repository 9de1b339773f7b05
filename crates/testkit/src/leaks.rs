//! What guests could leave behind on the host, and the assertion that they did not.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{ErrorKind, TestkitError};
use crate::lab::{NETNS_DIR, cgroup_root};
use crate::logdisk::SERVER;
use crate::wait;

/// How every lab's name begins; the owner's process number follows.
pub const PREFIX: &str = "vireo-";

/// Where the kernel tells about block devices.
const BLOCK_DEVICES: &str = "/sys/block";

/// Something that was left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leak {
    /// A loop device that still has a file of ours.
    Loop {
        /// The device's name.
        device: String,
        /// The file.
        file: PathBuf,
    },
    /// A control group.
    ControlGroup(PathBuf),
    /// A network namespace.
    Network(String),
    /// A directory with a lab's files.
    Files(PathBuf),
    /// A mount that anybody can walk into.
    Mount(PathBuf),
    /// The server of a recording disk ([`logdisk`](crate::logdisk)), and so its mount.
    Disk {
        /// Its process number.
        pid: u32,
        /// The disk's file.
        file: PathBuf,
    },
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loop { device, file } => write!(f, "loop device {device} on {}", file.display()),
            Self::ControlGroup(path) => write!(f, "control group {}", path.display()),
            Self::Network(name) => write!(f, "network namespace {name}"),
            Self::Files(path) => write!(f, "files {}", path.display()),
            Self::Mount(path) => write!(f, "mount {}", path.display()),
            Self::Disk { pid, file } => {
                write!(f, "recording disk {} (process {pid})", file.display())
            }
        }
    }
}

/// Control groups and networks whose names begin with `prefix` ([`PREFIX`]: those of all labs), and
/// loop devices, recording disks and mounts in `dir`, which itself counts if it is a lab's.
#[must_use]
pub fn leaks(prefix: &str, dir: &Path) -> Vec<Leak> {
    let mut found: Vec<Leak> = loops_on(dir);
    found.extend(mounts_in(dir));
    found.extend(disks_in(dir));
    if let Ok(root) = cgroup_root() {
        found.extend(named(&root, prefix).into_iter().map(Leak::ControlGroup));
    }
    let name = |path: PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let networks = named(Path::new(NETNS_DIR), prefix);
    found.extend(networks.into_iter().filter_map(name).map(Leak::Network));
    let of_lab = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    found.extend((of_lab && dir.exists()).then(|| Leak::Files(dir.to_owned())));
    found
}

/// Asserts that there are no [`leaks`], giving the kernel `deadline` to tidy up.
///
/// # Errors
///
/// What leaked, listed.
pub fn none(prefix: &str, dir: &Path, deadline: Duration) -> Result<(), TestkitError> {
    let mut left = Vec::new();
    let waited = wait::until("everything to be taken down", deadline, || {
        left = leaks(prefix, dir);
        Ok(left.is_empty().then_some(()))
    });
    waited.map_err(|error| {
        let list: Vec<String> = left.iter().map(Leak::to_string).collect();
        match error.kind() {
            ErrorKind::Deadline => {
                let message = format!("left behind: {}", list.join(", "));
                TestkitError::new(ErrorKind::Failed, message)
            }
            _ => error,
        }
    })
}

/// Loop devices whose file is `path` or is in it.
pub(crate) fn loops_on(path: &Path) -> Vec<Leak> {
    let mut found = Vec::new();
    for entry in fs::read_dir(BLOCK_DEVICES).into_iter().flatten().flatten() {
        // Only attached loop devices have this file.
        let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        let file = PathBuf::from(file.trim_end().trim_end_matches(" (deleted)"));
        if file.starts_with(path) {
            let device = entry.file_name().to_string_lossy().into_owned();
            found.push(Leak::Loop { device, file });
        }
    }
    found
}

/// Mount points of this process's namespace in `dir`, which may itself be one.
fn mounts_in(dir: &Path) -> Vec<Leak> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // proc_pid_mountinfo(5): the fifth word is the mount point.
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(dir) && point != dir).map(Leak::Mount).collect()
}

/// Servers of recording disks whose files are in `dir`. Their mounts are in no namespace, and the
/// loop devices on them have no file that could be found by its path.
fn disks_in(dir: &Path) -> Vec<Leak> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        let mut words = command.split(|byte| *byte == 0).map(OsStr::from_bytes).map(Path::new);
        let is_server = words.next().and_then(Path::file_name) == Some(OsStr::new(SERVER));
        let file = words.next().filter(|file| is_server && file.starts_with(dir));
        found.extend(file.map(|file| Leak::Disk { pid, file: file.to_owned() }));
    }
    found
}

/// Entries of `dir` whose names begin with `prefix`.
fn named(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    ours.map(|entry| entry.path()).collect()
}
