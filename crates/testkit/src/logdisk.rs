//! A disk that remembers every write and every flush, so that power cuts can be replayed.
//!
//! The disk is one file in a FUSE file system; a loop device on it carries any file system of the
//! kernel's. Writes reach the server in the order in which they reach a real disk, `fsync` of the
//! file is the disk's flush (the kernel's loop driver turns `REQ_PREFLUSH` and `REQ_FUA` into it).
//! No device mapper and no libfuse is needed, but root.
//!
//! # What a kill leaves
//!
//! Nothing. The mount is in no namespace and ends with this process's handle on it. The server is
//! a process of its own (`vireo-logdisk`), so that a file system on the disk can still write while
//! a killed owner's handles are closed; it ends when the mount does. If the server itself is
//! killed, the disk answers with I/O errors.
//!
//! # Not here
//!
//! What a cut leaves of the writes ([`powercut`](crate::powercut)); loop devices.

mod log;
mod server;

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use crate::error::{ErrorKind, TestkitError, failed};
use crate::{programs, wait};

pub use log::{Log, Record};
pub use server::serve;

/// The server's name; leaks are found by it.
pub const SERVER: &str = "vireo-logdisk";

const FUSE_DEVICE: &str = "/dev/fuse";

/// Time for the server to see that the mount has ended.
const FINISH_DEADLINE: Duration = Duration::from_secs(10);

/// The disk. Dropping it takes it away from under whatever uses it: finish it instead.
#[derive(Debug)]
pub struct LogDisk {
    mount: Option<OwnedFd>,
    server: Child,
    log: PathBuf,
}

impl LogDisk {
    /// A disk whose content is that of the file `disk`, which is written to; its writes and flushes
    /// go to the new file `log`. Takes a few milliseconds.
    ///
    /// # Errors
    ///
    /// `Host` if there is no `/dev/fuse`, this is not root, or the server was not built; else what
    /// failed.
    pub fn new(disk: &Path, log: &Path) -> Result<Self, TestkitError> {
        crate::host::require_root()?;
        let program = programs::find(SERVER)?;
        if !Path::new(FUSE_DEVICE).exists() {
            let message =
                format!("{FUSE_DEVICE} is absent: load the kernel module (modprobe fuse)");
            return Err(TestkitError::new(ErrorKind::Host, message));
        }
        File::create_new(log).map_err(failed("create", log))?;
        let device = File::options().read(true).write(true).open(FUSE_DEVICE);
        let device = device.map_err(failed("open", FUSE_DEVICE))?;
        let mount =
            mount(&device).map_err(|error| failed("mount", "a recording disk")(error.into()))?;
        // The server is the only holder of the device: when it ends, so does the connection.
        let mut server = Command::new(&program);
        server.arg(disk).arg(log).stdin(Stdio::from(device)).stdout(Stdio::null());
        // What interrupts the owner from a terminal must not take the disk from under it.
        server.process_group(0);
        let server = server.spawn().map_err(failed("start", &program))?;
        Ok(Self { mount: Some(mount), server, log: log.to_owned() })
    }

    /// Opens the disk for reading and writing.
    ///
    /// # Errors
    ///
    /// The server failed; it has said why on standard error.
    pub fn open(&self) -> Result<File, TestkitError> {
        let fd = self.mount.as_ref().map_or(-1, OwnedFd::as_raw_fd);
        let path = format!("/proc/self/fd/{fd}/{}", server::FILE_NAME);
        let file = File::options().read(true).write(true).open(&path);
        file.map_err(failed("open", &path))
    }

    /// How much has been recorded by now; every write that was answered is in it.
    ///
    /// # Errors
    ///
    /// The log is gone.
    pub fn position(&self) -> Result<u64, TestkitError> {
        Ok(fs::metadata(&self.log).map_err(failed("read", &self.log))?.len())
    }

    /// Ends the disk and waits for its server; gives the log.
    ///
    /// # Errors
    ///
    /// Something still uses the disk, or the server failed.
    pub fn finish(mut self) -> Result<Log, TestkitError> {
        drop(self.mount.take());
        let status = wait::until("the recording disk's last user", FINISH_DEADLINE, || {
            self.server.try_wait().map_err(failed("wait for", SERVER))
        })?;
        if !status.success() {
            let message = format!("{SERVER} failed: {status}");
            return Err(TestkitError::new(ErrorKind::Failed, message));
        }
        Log::read(&self.log)
    }
}

impl Drop for LogDisk {
    fn drop(&mut self) {
        drop(self.mount.take());
        // Without its server the connection is aborted, whatever still uses the disk.
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

/// Mounts what the server of `device` will serve, in no namespace (mount.fuse3(8) on the options).
fn mount(device: &File) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fd = device.as_raw_fd().to_string();
    let options = [
        ("source", SERVER),
        ("fd", &fd),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    for (name, value) in options {
        fsconfig_set_string(&fs, name, value)?;
    }
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

#[cfg(test)]
mod tests;
