//! An image, and the mount of its file systems as one tree.

mod mounted;
mod mounter;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use vireo_sys::confine::can_mount;
use vireo_sys::lease;
use vireo_sys::lock::FileLock;
use vireo_sys::stamp::Stamp;

use crate::bytes::Bytes;
use crate::host::{DetachedHost, MountHost};
use crate::layout::{self, Volume};
use crate::partition::{Partition, RootPartition, Slot, slots};
use crate::probe::FileSystemKind;
use crate::{ErrorKind, ImageError, unmounted};
use mounter::{Mounter, require_mount_point};

pub use mounted::Mounted;
pub(crate) use mounted::is_released;
pub(crate) use mounter::no_mount_point;

/// Whether a mount may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written, not even the journal or access times.
    ReadOnly,
    /// The tree may be changed. Nobody else may have the image open.
    ReadWrite,
}

/// A disk image whose root file system was found and looks mountable.
#[derive(Debug)]
pub struct DiskImage {
    path: PathBuf,
    stamp: Stamp,
    slots: Vec<Slot>,
    root: Volume,
    is_raw: bool,
}

impl DiskImage {
    /// Opens the image at `path`. Nothing is attached or mounted yet.
    ///
    /// # Errors
    ///
    /// `NotAnImage`, `UnknownPartition`, `Unclean`, `Unsupported`, `Damaged`, `Io`.
    pub fn open(path: &Path, root: RootPartition) -> Result<Self, ImageError> {
        let image = Self::open_unclean(path, root)?;
        image.root.check(path)?;
        Ok(image)
    }

    /// As [`DiskImage::open`], also of a machine that was not shut down cleanly, if e2fsck can repair that.
    pub(crate) fn open_unclean(path: &Path, root: RootPartition) -> Result<Self, ImageError> {
        // Before the first byte is read, so that no change goes unseen.
        let stamp = Stamp::of(path).map_err(|error| ImageError::io("open", path, error))?;
        let bytes = Bytes::open(path)?;
        let slots = slots(&bytes, path)?;
        let root = layout::find_root(&bytes, path, &slots, root)?;
        root.check_usable(path)?;
        Ok(Self { path: path.to_owned(), stamp, slots, root, is_raw: bytes.qcow2().is_none() })
    }

    /// Where the root file system lies.
    #[must_use]
    pub fn partition(&self) -> &Partition {
        &self.root.partition
    }

    /// What the root file system is.
    #[must_use]
    pub fn kind(&self) -> FileSystemKind {
        self.root.kind
    }

    /// Where what lies behind every partition but the root's begins, in bytes.
    pub(crate) fn end_of_others(&self) -> u64 {
        let others = self.slots.iter().map(|slot| &slot.partition);
        let others = others.filter(|partition| **partition != self.root.partition);
        others.map(|partition| partition.offset.saturating_add(partition.len)).max().unwrap_or(0)
    }

    /// The root file system.
    pub(crate) fn root(&self) -> &Volume {
        &self.root
    }

    /// The file systems of its tree, the root first. Where our own reader cannot read the root, `host`
    /// mounts it for that, read-only, and lets it go again; nothing else is mounted.
    pub(crate) fn volumes(&self, host: Option<&dyn MountHost>) -> Result<Vec<Volume>, ImageError> {
        let mut root = self.root.clone();
        let text = match (unmounted::read_fstab(&self.path, &root), host) {
            (Err(error), Some(host)) if error.kind() == ErrorKind::Unsupported => {
                let file = File::open(&self.path)
                    .map_err(|error| ImageError::io("open", &self.path, error))?;
                Mounter { path: &self.path, file: &file, host }.look(&mut root)?
            }
            (text, _) => text?,
        };
        let (others, _) = layout::arrange(&self.path, &self.slots, &root, &text)?;
        Ok(std::iter::once(root).chain(others).collect())
    }

    /// The image's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts the root file system, and those that its `/etc/fstab` puts beneath it, where no other
    /// process can see them.
    ///
    /// Each is a mount of its own; [`Root`] puts them together. So there is no mount namespace
    /// to leave behind, and the agent of a running machine reads the same tree in the same way.
    /// Of a mount that only reads, reading the tree fails if somebody writes the image meanwhile
    /// ([`Root::check_settled`](vireo_tree::Root::check_settled)).
    ///
    /// # Errors
    ///
    /// `NoRoot` without CAP_SYS_ADMIN, `Busy` if the image is to be written and something has it
    /// open, `Unclean`, `Unsupported` for a kernel without the driver and for qcow2, which has to be
    /// expanded first, `Damaged` or `Io` with the kernel's explanation.
    pub fn mount(self, access: Access) -> Result<Mounted, ImageError> {
        self.mount_by(&DetachedHost, access)
    }

    /// The same, by another host than [`DetachedHost`].
    ///
    /// # Errors
    ///
    /// As [`DiskImage::mount`].
    pub fn mount_by(self, host: &dyn MountHost, access: Access) -> Result<Mounted, ImageError> {
        if !self.is_raw {
            let message = format!(
                "{} is a qcow2 image, which cannot be mounted; convert it first (`qemu-img convert -O raw`)",
                self.path.display()
            );
            return Err(ImageError::new(ErrorKind::Unsupported, message));
        }
        let failed = |step: &'static str| {
            let path = self.path.clone();
            move |error: io::Error| ImageError::io(step, &path, error)
        };
        let write = access == Access::ReadWrite;
        let file =
            File::options().read(true).write(write).open(&self.path).map_err(failed("open"))?;
        let mut lock = None;
        if write {
            if !lease::is_exclusive(&file).map_err(failed("ask who uses"))? {
                return Err(busy(&self.path));
            }
            let handle = file.try_clone().map_err(failed("lock"))?;
            lock = Some(
                FileLock::on(handle).map_err(failed("lock"))?.ok_or_else(|| busy(&self.path))?,
            );
        }
        let mounter = Mounter { path: &self.path, file: &file, host };
        let mut root = self.root;
        // Read-only at first: a kernel plays a log back only where it can write, and says so where it
        // cannot. An image with such a log is one of a machine that runs or crashed.
        let text = mounter.look(&mut root)?;
        let (others, left_out) = layout::arrange(&self.path, &self.slots, &root, &text)?;
        others.iter().try_for_each(|volume| volume.check(&self.path))?;
        let is_xfs = |volume: &&Volume| volume.kind == FileSystemKind::Xfs;
        for volume in others.iter().filter(is_xfs).filter(|_| write) {
            drop(mounter.mount_one(volume, false)?);
        }
        let mut volumes = vec![root];
        volumes.extend(others);
        let mounts = mounter.mount_all(&volumes, write)?;
        let mut tops: Vec<OwnedFd> = Vec::new();
        for (volume, mount) in volumes.iter().zip(&mounts) {
            require_mount_point(&volumes, &tops, volume, &self.path)?;
            tops.push(mounter.open(volume, mount)?);
        }
        drop(file);
        let stamp = (!write).then_some(self.stamp);
        Mounted::new(self.path, (volumes, tops, mounts), left_out, stamp, lock)
    }
}

/// The text of the `/etc/fstab` in `volume`, by a mount that is let go again; `None` if there is none, or
/// it cannot be mounted, or not by this process.
pub(crate) fn fstab_by_mount(
    (image, path): (&Bytes, &Path),
    mut volume: Volume,
) -> Option<Vec<u8>> {
    if !can_mount() || image.qcow2().is_some() {
        return None;
    }
    volume.check(path).ok()?;
    let file = File::open(path).ok()?;
    Mounter { path, file: &file, host: &DetachedHost }.look(&mut volume).ok()
}

pub(crate) fn busy(path: &Path) -> ImageError {
    let message = format!(
        "{} is in use: a virtual machine, a loop device or another process has it open; stop it and try again",
        path.display()
    );
    ImageError::new(ErrorKind::Busy, message)
}
