//! Loop devices and mounts as kernels before 5.8 know them, by the crates loopdev-3 and sys-mount.
//!
//! A crash leaves nothing once [`MountHost::mount`] has returned. In it there are two moments, of
//! some milliseconds together, in which a `kill -9` leaves a loop device or a visible mount behind:
//! between `LOOP_SET_FD` and `LOOP_SET_STATUS64`, and between `mount(2)` and `umount2(2)` with
//! `MNT_DETACH`. What stays is beneath this host's directory and is undone by
//! [`leaks::undo`](crate::leaks::undo).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::loopdev::{LoopControl, LoopDevice};
use rustix::fs::{Mode, OFlags, open};
use sys_mount::{Mount, MountFlags, Unmount as _, UnmountFlags};
use vireo_sys::lock::FileLock;
use vireo_sys::loopdev::Window;

use super::{HostMount, MountError, MountHost};

/// How often a device that another process took first is followed by a try with the next.
const ATTACH_TRIES: u32 = 64;

/// Longest wait for others of our processes that attach: each takes milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// Where mounts are made for a moment, unless told otherwise.
const DEFAULT_DIR: &str = "/run/vireo/mounts";

/// Attaches by `LOOP_SET_FD` and mounts at a private mount point, which is taken away at once:
/// the mount lives on behind its handle alone. For kernels before 5.8.
#[derive(Clone, Debug)]
pub struct LoopdevHost {
    dir: PathBuf,
}

impl Default for LoopdevHost {
    fn default() -> Self {
        Self::new(DEFAULT_DIR)
    }
}

impl LoopdevHost {
    /// A host that mounts for moments in the directory `dir`, which it makes (mode 0700).
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where mounts are made for a moment.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One attach at a time among all our processes: finding a free device and taking it are two
    /// steps here. Others can still come in between, hence the tries.
    fn lock(&self) -> io::Result<FileLock> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let lock = FileLock::exclusive_wait(&self.dir.join("lock"), LOCK_WAIT)?;
        lock.ok_or_else(|| io::ErrorKind::ResourceBusy.into())
    }

    fn attach(image: &File, window: Window) -> io::Result<LoopDevice> {
        let control = LoopControl::open()?;
        let mut last = io::ErrorKind::ResourceBusy.into();
        for _ in 0..ATTACH_TRIES {
            let device = control.next_free()?;
            let options = device.with().offset(window.offset).size_limit(window.len);
            let options = options.read_only(window.read_only).autoclear(true);
            match options.attach_fd(image.as_raw_fd()) {
                Ok(()) => return Ok(device),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn mount_device(&self, device: &Path, read_only: bool) -> io::Result<OwnedFd> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let point = self.dir.join(format!("{}-{number}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&point)?;
        let place = mount_at(device, &point, read_only);
        // What is still mounted is not removed: rmdir(2) refuses.
        fs::remove_dir(&point)?;
        place
    }
}

/// Mounts `device` at `point` and takes the mount out of sight again.
fn mount_at(device: &Path, point: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let mut flags =
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    // ext4's driver serves ext2 and ext3 as well. A corrupt file system must not stop the host's
    // kernel, whatever its own superblock asks for.
    let builder = Mount::builder().fstype("ext4").flags(flags).data("errors=remount-ro");
    let mount = builder.mount(device, point)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = open(point, flags, Mode::empty());
    mount.unmount(UnmountFlags::DETACH)?;
    Ok(place?)
}

impl MountHost for LoopdevHost {
    fn mount(&self, image: &File, window: Window) -> Result<HostMount, MountError> {
        let attach = MountError::at("attach");
        let lock = self.lock().map_err(&attach)?;
        let device = Self::attach(image, window).map_err(&attach)?;
        let unnamed = || attach(io::Error::other("the loop device has no name"));
        let path = device.path().ok_or_else(unnamed)?;
        let place = self.mount_device(&path, window.read_only).map_err(MountError::at("mount"))?;
        drop(lock);
        // The device is the mount's alone now, and goes with it.
        drop(device);
        Ok(HostMount::new(place, ()))
    }
}
