//! Mounts that are in no mount namespace: nobody can walk into them, and they end with their
//! handle, whichever way the process ends (`fsopen(2)`, `fsmount(2)`; Linux 5.2).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

/// Longest piece of the kernel's own explanation that is kept, in bytes.
const MAX_LOG_LEN: usize = 1024;

/// Mounts the block device `device` as `fs_type` (`ext4`) without a mount point, never honouring
/// set-user-ID bits, device nodes or execution in it, and without access times.
///
/// The answer is a handle on the mount's root directory; when it and all files opened beneath
/// it are closed, the file system is unmounted. A corrupt file system turns read-only instead of
/// stopping the host's kernel, whatever its own superblock asks for.
///
/// # Errors
///
/// As the system calls; the kernel's explanation, where it gives one, is the message.
pub fn mount(device: &Path, fs_type: &str, read_only: bool) -> io::Result<OwnedFd> {
    mount_with(device, fs_type, read_only, &[])
}

/// As [`mount`], with the file system's own options: names, with values where they have one.
///
/// # Errors
///
/// As [`mount`]; also an option that the file system does not know.
pub fn mount_with(
    device: &Path,
    fs_type: &str,
    read_only: bool,
    options: &[(&str, Option<&str>)],
) -> io::Result<OwnedFd> {
    let fs = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let explain = |error: rustix::io::Errno| explained(&fs, error);
    fsconfig_set_string(fs.as_fd(), "source", device).map_err(explain)?;
    if read_only {
        fsconfig_set_flag(fs.as_fd(), "ro").map_err(explain)?;
    }
    if fs_type.starts_with("ext") {
        fsconfig_set_string(fs.as_fd(), "errors", "remount-ro").map_err(explain)?;
    }
    for (name, value) in options {
        match value {
            Some(value) => fsconfig_set_string(fs.as_fd(), *name, *value),
            None => fsconfig_set_flag(fs.as_fd(), *name),
        }
        .map_err(explain)?;
    }
    fsconfig_create(fs.as_fd()).map_err(explain)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    if read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(explain)
}

/// `error`, with what the kernel wrote into the handle's log about it.
fn explained(fs: &OwnedFd, error: rustix::io::Errno) -> io::Error {
    let mut log = Vec::new();
    let mut line = [0; 256];
    while log.len() < MAX_LOG_LEN {
        match rustix::io::read(fs, &mut line) {
            Ok(len) if len > 0 => log.extend_from_slice(&line[..len]),
            _ => break,
        }
    }
    let error = io::Error::from(error);
    if log.is_empty() {
        return error;
    }
    let text = String::from_utf8_lossy(&log).trim().replace('\n', "; ");
    io::Error::new(error.kind(), format!("{error} ({text})"))
}
