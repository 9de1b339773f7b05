//! The mounted file systems of an image, and letting them go.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::fs::syncfs;
use vireo_sys::lease;
use vireo_sys::lock::FileLock;
use vireo_tree::Root;

use super::busy;
use crate::host::HostMount;
use crate::layout::{LeftOut, Volume};
use crate::{ErrorKind, ImageError};

/// How long the kernel may take to let a closed mount's loop device go.
const RELEASE_TRIES: u32 = 100;
const RELEASE_INTERVAL: Duration = Duration::from_millis(10);

/// The mounted file systems of an image.
///
/// Call [`finish`](Self::finish) after writing: it alone says whether the last bytes reached the
/// image. Dropping unmounts too, and so does the end of the process.
#[derive(Debug)]
#[must_use = "dropping it unmounts at once"]
pub struct Mounted {
    path: PathBuf,
    root: Root,
    volumes: Vec<Volume>,
    left_out: Vec<LeftOut>,
    write: bool,
    mounts: Vec<HostMount>,
    lock: Option<FileLock>,
}

impl Mounted {
    pub(super) fn new(
        path: PathBuf,
        (volumes, tops, mounts): (Vec<Volume>, Vec<OwnedFd>, Vec<HostMount>),
        left_out: Vec<LeftOut>,
        write: bool,
        lock: Option<FileLock>,
    ) -> Result<Self, ImageError> {
        let mut parts = volumes.iter().zip(tops);
        let Some((_, top)) = parts.next() else {
            let message = format!("{} has no file system", path.display());
            return Err(ImageError::new(ErrorKind::NotAnImage, message));
        };
        let root = Root::from_fd(top, path.clone());
        let root = parts.fold(root, |root, (volume, top)| root.with_mount(volume.at.clone(), top));
        Ok(Self { path, root, volumes, left_out, write, mounts, lock })
    }

    /// The tree in it.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The file systems that the tree is made of, the root first.
    #[must_use]
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// What its `/etc/fstab` mounts and the tree is without.
    #[must_use]
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Writes everything out, unmounts, and waits until the kernel has let the image go. What was
    /// written is in the image file then, but not necessarily on the disk.
    ///
    /// # Errors
    ///
    /// The last writes failed, or something still holds the image.
    pub fn finish(self) -> Result<(), ImageError> {
        let Self { path, root, write, mounts, lock, .. } = self;
        if write {
            for mount in &mounts {
                let synced = mount.open_root().and_then(|top| Ok(syncfs(top)?));
                synced.map_err(|error| ImageError::io("write out", &path, error))?;
            }
        }
        drop((root, mounts, lock));
        if !write {
            return Ok(());
        }
        for _ in 0..RELEASE_TRIES {
            let file = File::options().read(true).write(true).open(&path);
            let file = file.map_err(|error| ImageError::io("open", &path, error))?;
            if lease::is_exclusive(&file)
                .map_err(|error| ImageError::io("ask who uses", &path, error))?
            {
                return Ok(());
            }
            drop(file);
            thread::sleep(RELEASE_INTERVAL);
        }
        Err(busy(&path))
    }
}
