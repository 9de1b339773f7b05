//! The mounted file systems of an image, and letting them go.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::syncfs;
use vireo_model::{Ignore, ImagePath, is_machines_own};
use vireo_sys::lease;
use vireo_sys::lock::FileLock;
use vireo_sys::stamp::Stamp;
use vireo_tree::{Root, ScanOptions, scan};

use super::busy;
use crate::fat::change_fat;
use crate::host::HostMount;
use crate::layout::{LeftOut, Volume};
use crate::probe::FileSystemKind;
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
    /// Without a `stamp` it is one that may be written.
    pub(super) fn new(
        path: PathBuf,
        (volumes, tops, mounts): (Vec<Volume>, Vec<OwnedFd>, Vec<HostMount>),
        left_out: Vec<LeftOut>,
        stamp: Option<Stamp>,
        lock: Option<FileLock>,
    ) -> Result<Self, ImageError> {
        let mut parts = volumes.iter().zip(tops);
        let Some((_, top)) = parts.next() else {
            let message = format!("{} has no file system", path.display());
            return Err(ImageError::new(ErrorKind::NotAnImage, message));
        };
        let root = Root::from_fd(top, path.clone());
        let root = parts.fold(root, |root, (volume, top)| match volume.kind {
            FileSystemKind::Vfat => root.with_plain_copy(volume.at.clone(), top),
            _ => root.with_mount(volume.at.clone(), top),
        });
        let write = stamp.is_none();
        let root = match stamp {
            Some(stamp) => root.with_stamp(stamp),
            None => root,
        };
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
    /// The last writes failed, or something still holds the image; `NoSpace` and `Unsupported` for what
    /// does not fit on FAT.
    pub fn finish(self) -> Result<(), ImageError> {
        let Self { path, root, volumes, write, mounts, lock, .. } = self;
        if write {
            for mount in &mounts {
                let synced = mount.open_root().and_then(|top| Ok(syncfs(top)?));
                synced.map_err(|error| ImageError::io("write out", &path, error))?;
            }
        }
        let (copies, mounts): (Vec<_>, Vec<_>) =
            volumes.iter().zip(mounts).partition(|(volume, _)| volume.kind == FileSystemKind::Vfat);
        drop((root, mounts));
        if !write {
            return Ok(());
        }
        for (volume, copy) in &copies {
            write_back(&path, volume, copy)?;
        }
        drop((copies, lock));
        if is_released(&path)? { Ok(()) } else { Err(busy(&path)) }
    }
}

/// Waits for a while until nobody has `image` open. A loop device goes with its last user, which may be udev,
/// looking at what was attached.
pub(crate) fn is_released(image: &Path) -> Result<bool, ImageError> {
    for _ in 0..RELEASE_TRIES {
        let file = File::options().read(true).write(true).open(image);
        let file = file.map_err(|error| ImageError::io("open", image, error))?;
        if lease::is_exclusive(&file)
            .map_err(|error| ImageError::io("ask who uses", image, error))?
        {
            return Ok(true);
        }
        drop(file);
        thread::sleep(RELEASE_INTERVAL);
    }
    Ok(false)
}

/// Makes the FAT file system that `volume` is what its copy was made.
fn write_back(image: &Path, volume: &Volume, copy: &HostMount) -> Result<(), ImageError> {
    let top = copy.open_root().map_err(|error| ImageError::io("open the copy of", image, error))?;
    let root = Root::from_fd(top, image.to_owned());
    let options = ScanOptions::default();
    let scan = scan(&root, &Ignore::nothing(), &options);
    let scan = scan.map_err(|error| ImageError::tree(image, error))?;
    let nodes = scan.tree.iter().filter(|(path, _)| !is_machines_own(path.relative()));
    let wanted = nodes.map(|(path, node)| (path.clone(), node.clone())).collect();
    let open =
        |path: &ImagePath| root.open_file(path).map_err(|error| ImageError::tree(image, error));
    change_fat(image, volume, &wanted, &open).map(drop)
}
