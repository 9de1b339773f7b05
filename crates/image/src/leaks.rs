//! Loop devices and mounts that a process left behind when it was killed, found by the file behind
//! them and undone.
//!
//! [`DetachedHost`](crate::DetachedHost) leaves nothing; older ways to attach, other programs and
//! mounts that a container's start copied do.
//!
//! # Not here
//!
//! Mounts in other namespaces: they cannot be seen from here. Their device stays in use, and says so.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use vireo_model::mount_table;
use vireo_sys::{loopdev, mounts};

use crate::ImageError;

/// How often it is looked whether a device that was told to go has gone, and how long in between.
const GONE_TRIES: u32 = 50;
const GONE_INTERVAL: Duration = Duration::from_millis(10);

/// What [`undo`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undone {
    /// Mount points that were unmounted.
    pub mounts: Vec<PathBuf>,
    /// Files that loop devices were taken from.
    pub files: Vec<PathBuf>,
    /// Files that loop devices still show, because something uses them: end it, or restart the host.
    pub in_use: Vec<PathBuf>,
}

impl Undone {
    /// Whether there was nothing to be undone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mounts.is_empty() && self.files.is_empty() && self.in_use.is_empty()
    }
}

/// Unmounts and detaches every loop device whose file is beneath `dir` and `is_left` by its owner.
/// Mounts that somebody uses stay, as do their devices.
///
/// Cost: one look at each loop device of the host, 20 microseconds.
///
/// # Errors
///
/// `Io` if the host does not tell its devices; `NoRoot` if there is something that only root can
/// undo.
pub fn undo(dir: &Path, is_left: &dyn Fn(&Path) -> bool) -> Result<Undone, ImageError> {
    let dir = dir.canonicalize().map_err(|error| ImageError::io("open", dir, error))?;
    let failed = |step| {
        let dir = dir.clone();
        move |error: std::io::Error| ImageError::io(step, &dir, error)
    };
    let mut undone = Undone::default();
    let listed = loopdev::attached().map_err(failed("list the loop devices on files in"))?;
    let left = listed.iter().filter(|at| at.backing.starts_with(&dir) && is_left(&at.backing));
    for device in left {
        let table = mounts::table().map_err(failed("list the mounts of files in"))?;
        let table = mount_table::parse(&table);
        // The last one first: mounts can lie above each other.
        for mount in table.iter().rev().filter(|mount| mount.source == device.device) {
            if mounts::unmount(&mount.point).is_ok() {
                undone.mounts.push(mount.point.clone());
            }
        }
        loopdev::detach(&device.device)
            .map_err(|error| ImageError::io("take its loop device from", &device.backing, error))?;
        let list = if is_gone(device)? { &mut undone.files } else { &mut undone.in_use };
        list.push(device.backing.clone());
    }
    Ok(undone)
}

/// The kernel lets a device go when its last user has; that takes a moment.
fn is_gone(device: &loopdev::Attached) -> Result<bool, ImageError> {
    for _ in 0..GONE_TRIES {
        let listed = loopdev::attached()
            .map_err(|error| ImageError::io("find the loop device of", &device.backing, error))?;
        let same =
            |at: &loopdev::Attached| at.device == device.device && at.backing == device.backing;
        if !listed.iter().any(same) {
            return Ok(true);
        }
        thread::sleep(GONE_INTERVAL);
    }
    Ok(false)
}
