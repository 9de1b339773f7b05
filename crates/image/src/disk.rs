//! An image, and the mount of its root file system.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::syncfs;
use vireo_sys::lease;
use vireo_sys::lock::FileLock;
use vireo_tree::Root;

use crate::host::{DetachedHost, HostMount, MountHost, Window};
use crate::partition::{Partition, RootPartition, find_root};
use crate::superblock::Superblock;
use crate::{ErrorKind, ImageError};

/// How long the kernel may take to let a closed mount's loop device go.
const RELEASE_TRIES: u32 = 100;
const RELEASE_INTERVAL: Duration = Duration::from_millis(10);

/// Whether a mount may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written, not even the journal or access times.
    ReadOnly,
    /// The tree may be changed. Nobody else may have the image open.
    ReadWrite,
}

/// A raw disk image whose root file system was found and looks mountable.
#[derive(Debug)]
pub struct DiskImage {
    path: PathBuf,
    partition: Partition,
    superblock: Superblock,
}

impl DiskImage {
    /// Opens the image at `path`. Nothing is attached or mounted yet.
    ///
    /// # Errors
    ///
    /// `NotAnImage`, `UnknownPartition`, `Unclean`, `Unsupported`, `Damaged`, `Io`.
    pub fn open(path: &Path, root: RootPartition) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(|error| ImageError::io("open", path, error))?;
        let is_file =
            file.metadata().map_err(|error| ImageError::io("open", path, error))?.is_file();
        if !is_file {
            let message =
                format!("{} is not a regular file, so it is no disk image", path.display());
            return Err(ImageError::new(ErrorKind::NotAnImage, message));
        }
        let (partition, superblock) = find_root(&file, path, root)?;
        superblock.check(path, &partition)?;
        Ok(Self { path: path.to_owned(), partition, superblock })
    }

    /// Where the root file system lies.
    #[must_use]
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// The image's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts the root file system where no other process can see it.
    ///
    /// # Errors
    ///
    /// `NoRoot` without CAP_SYS_ADMIN, `Busy` if the image is to be written and something has it
    /// open, `Damaged` or `Io` with the kernel's explanation.
    pub fn mount(self, access: Access) -> Result<Mounted, ImageError> {
        self.mount_by(&DetachedHost, access)
    }

    /// The same, by another host than [`DetachedHost`].
    ///
    /// # Errors
    ///
    /// As [`DiskImage::mount`].
    pub fn mount_by(self, host: &dyn MountHost, access: Access) -> Result<Mounted, ImageError> {
        let failed = |step: &'static str| {
            let path = self.path.clone();
            move |error: std::io::Error| ImageError::io(step, &path, error)
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
        let window =
            Window { offset: self.partition.offset, len: self.superblock.len, read_only: !write };
        let mount = host
            .mount(&file, window)
            .map_err(|error| ImageError::io(error.step, &self.path, error.source))?;
        let top = mount.open_root().map_err(failed("open the root of"))?;
        let root = Root::from_fd(top, self.path.clone());
        Ok(Mounted { path: self.path, root, write, mount, _lock: lock })
    }
}

pub(crate) fn busy(path: &Path) -> ImageError {
    let message = format!(
        "{} is in use: a virtual machine, a loop device or another process has it open; stop it and try again",
        path.display()
    );
    ImageError::new(ErrorKind::Busy, message)
}

/// A mounted root file system.
///
/// Call [`finish`](Self::finish) after writing: it alone says whether the last bytes reached the
/// image. Dropping unmounts too, and so does the end of the process.
#[derive(Debug)]
#[must_use = "dropping it unmounts at once"]
pub struct Mounted {
    path: PathBuf,
    root: Root,
    write: bool,
    mount: HostMount,
    _lock: Option<FileLock>,
}

impl Mounted {
    /// The tree in it.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Writes everything out, unmounts, and waits until the kernel has let the image go. What was
    /// written is in the image file then, but not necessarily on the disk.
    ///
    /// # Errors
    ///
    /// The last writes failed, or something still holds the image.
    pub fn finish(self) -> Result<(), ImageError> {
        let Self { path, root, write, mount, _lock } = self;
        if write {
            let synced = mount.open_root().and_then(|top| Ok(syncfs(top)?));
            synced.map_err(|error| ImageError::io("write out", &path, error))?;
        }
        drop((root, mount, _lock));
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
