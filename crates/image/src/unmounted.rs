//! Images read by our own readers: without root, without a mount, without writing.
//!
//! The trees are those that a mount shows ([`read_tree`](crate::read_tree)), so either can stand
//! for the other. Only which of several file systems is the root is asked by a mount where XFS or btrfs may be it, no
//! type or number says so, and this process may mount. What two states of one image have in common need not be read twice: see
//! [`vireo_ext4::compare`] for what is trusted then.
//!
//! # Example
//!
//! ```no_run
//! use std::path::Path;
//! use vireo_image::{RootPartition, unmounted};
//! use vireo_model::Ignore;
//!
//! let image = Path::new("debian-12.qcow2");
//! let disk = unmounted::open(image, RootPartition::Find, unmounted::Unfinished::Refuse)?;
//! let scan = disk.scan(&Ignore::default(), &Default::default())?;
//! println!("{} paths, version {}", scan.tree.len(), scan.tree.digest());
//! # Ok::<(), vireo_image::ImageError>(())
//! ```

mod part;
mod scan;

use std::path::{Path, PathBuf};

use vireo_ext4::{Ext4Error, InodeKind};
pub use vireo_ext4::{FileState, Identity, Known, RACY_SECS, Reader, Unfinished};
use vireo_model::{Digest, Hasher, Ignore, ImagePath, Tree};
use vireo_sys::stamp::Stamp;

use crate::bytes::Bytes;
use crate::disk::no_mount_point;
use crate::layout::{self, LeftOut, Volume};
use crate::partition::{Partition, RootPartition, slots};
use crate::probe::FileSystemKind;
use crate::{ErrorKind, ImageError};
pub use part::Content;
use part::Part;
pub(crate) use part::open_fat;
pub use scan::{Compared, Scan, ScanOptions, compare, read_tree, read_tree_in};

/// Whether this process cannot mount, so that images can only be read as here.
#[must_use]
pub fn is_needed() -> bool {
    !vireo_sys::confine::can_mount()
}

/// The file systems of an image that make its tree, open for reading.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    stamp: Stamp,
    /// The root first, in path order.
    parts: Vec<(Volume, Part)>,
    left_out: Vec<LeftOut>,
}

/// Opens the file systems of `image` for reading. The image must not change meanwhile, which is looked at
/// after it was read ([`Disk::check_settled`]).
///
/// # Errors
///
/// `NotAnImage`, `UnknownPartition`, `Unclean`, `Unsupported` also where only a mount can read one
/// of its file systems, `Damaged`, `Io`.
pub fn open(image: &Path, root: RootPartition, unfinished: Unfinished) -> Result<Disk, ImageError> {
    // Before the first byte is read, so that no change goes unseen.
    let stamp = Stamp::of(image).map_err(|error| ImageError::io("open", image, error))?;
    let bytes = Bytes::open(image)?;
    let slots = slots(&bytes, image)?;
    let root = layout::find_root(&bytes, image, &slots, root)?;
    let reader = open_ext(&bytes, image, &root, unfinished)?;
    let text = layout::read_fstab(&reader, image)?.unwrap_or_default();
    let (volumes, left_out) = layout::arrange(image, &slots, &root, &text)?;
    let mut parts = vec![(root, Part::Ext(reader))];
    for volume in volumes {
        require_mount_point(&parts, &volume, image)?;
        let part = match volume.kind {
            FileSystemKind::Vfat => Part::Fat(open_fat(&bytes, image, &volume)?),
            _ => Part::Ext(open_ext(&bytes, image, &volume, unfinished)?),
        };
        parts.push((volume, part));
    }
    Ok(Disk { path: image.to_owned(), stamp, parts, left_out })
}

/// The text of the `/etc/fstab` in the root file system `root` of `image`, nothing if there is none.
/// `Unsupported` where a mount alone can read it.
pub(crate) fn read_fstab(image: &Path, root: &Volume) -> Result<Vec<u8>, ImageError> {
    let reader = open_ext(&Bytes::open(image)?, image, root, Unfinished::Refuse)?;
    Ok(layout::read_fstab(&reader, image)?.unwrap_or_default())
}

/// Our own reader of an ext file system whose place is known; it must be clean.
pub(crate) fn open_at(image: &Path, partition: &Partition) -> Result<Reader, ImageError> {
    layout::open_reader(&Bytes::open(image)?, partition, Unfinished::Refuse)
        .map_err(|error| ImageError::ext4(image, error))
}

fn open_ext(
    bytes: &Bytes,
    image: &Path,
    volume: &Volume,
    unfinished: Unfinished,
) -> Result<Reader, ImageError> {
    if volume.kind != FileSystemKind::Ext {
        let remedy = if bytes.qcow2().is_some() {
            "convert the image first (`qemu-img convert -O raw`), and run it as root"
        } else {
            "run it as root"
        };
        let message = format!(
            "{}: its {} is {}, which is read by mounting it alone; {remedy}",
            image.display(),
            volume.describe(),
            volume.kind.name()
        );
        return Err(ImageError::new(ErrorKind::Unsupported, message));
    }
    if unfinished == Unfinished::Refuse {
        // The same words as before a mount; the reader's own checks follow.
        volume.check(image)?;
    }
    layout::open_reader(bytes, &volume.partition, unfinished)
        .map_err(|error| ImageError::ext4(image, error))
}

/// Fails unless there is a real directory where `volume` is to be mounted.
fn require_mount_point(
    parts: &[(Volume, Part)],
    volume: &Volume,
    image: &Path,
) -> Result<(), ImageError> {
    let Some((outer, part)) = parts.iter().rev().find(|(outer, _)| volume.at.is_within(&outer.at))
    else {
        return Ok(());
    };
    let mut at = outer.at.clone();
    let mut inside = ImagePath::root();
    let below = volume.at.components().skip(outer.at.components().count());
    for name in below {
        let join = |path: &ImagePath| {
            path.join(name).map_err(|_| no_mount_point(&volume.at, image, false))
        };
        (at, inside) = (join(&at)?, join(&inside)?);
        let kind = part.kind_of(image, outer, &inside)?;
        if kind != Some(InodeKind::Dir) {
            return Err(no_mount_point(&volume.at, image, kind == Some(InodeKind::Symlink)));
        }
    }
    Ok(())
}

impl Disk {
    /// Where the image is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which ext file systems the tree is made of, and in which state each is; the root first.
    pub fn identities(&self) -> impl Iterator<Item = Identity> {
        self.parts.iter().filter_map(|(_, part)| part.ext()).map(Reader::identity)
    }

    /// What its `/etc/fstab` mounts and the tree is without.
    #[must_use]
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Where each of its file systems is mounted and lies, the root first.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.parts.iter().map(|(volume, _)| volume)
    }

    /// What `tree`, which is this disk's, says of the files in it; see [`Known::from_tree`].
    pub(crate) fn known_from(
        &self,
        tree: &Tree,
        ignore: &Ignore,
    ) -> Result<Vec<Known>, ImageError> {
        let mounts = self.mounts();
        let ext = self.parts.iter().filter_map(|(volume, part)| Some((volume, part.ext()?)));
        let known = |(volume, reader): (&Volume, &Reader)| {
            Known::from_tree_at(reader, tree, ignore, &volume.at, &mounts)
                .map_err(|error| self.failed(error))
        };
        ext.map(known).collect()
    }

    fn mounts(&self) -> Vec<ImagePath> {
        self.parts.iter().skip(1).map(|(volume, _)| volume.at.clone()).collect()
    }

    /// Whether the metadata of both shows that nothing in this one changed since `base`; `false`
    /// proves nothing. Costs reading the inode tables, and all that is on FAT. What is trusted says
    /// [`vireo_ext4::is_unchanged`].
    ///
    /// # Errors
    ///
    /// `Damaged`, `Io`.
    pub fn is_unchanged(&self, base: &Self) -> Result<bool, ImageError> {
        let places = |disk: &Self| -> Vec<(ImagePath, FileSystemKind)> {
            disk.volumes().map(|volume| (volume.at.clone(), volume.kind)).collect()
        };
        if places(self) != places(base) {
            return Ok(false);
        }
        for ((_, before), (volume, after)) in base.parts.iter().zip(&self.parts) {
            let same = match (before, after) {
                (Part::Ext(before), Part::Ext(after)) => {
                    let same = vireo_ext4::is_unchanged(before, after);
                    same.map_err(|error| self.failed(error))?
                }
                _ => before.state(base.path(), volume)? == after.state(self.path(), volume)?,
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A digest of the inodes of all its file systems, and of what is on FAT.
    ///
    /// # Errors
    ///
    /// `Damaged`, `Io`.
    pub fn inodes_digest(&self) -> Result<Digest, ImageError> {
        let mut hasher = Hasher::new();
        for (volume, part) in &self.parts {
            hasher.field(volume.at.as_bytes());
            hasher.update(part.state(&self.path, volume)?.as_bytes());
        }
        Ok(hasher.finish())
    }

    /// The content of the file `path`, which `state`, that a scan told, is about.
    ///
    /// # Errors
    ///
    /// As [`Reader::content`].
    pub fn content(&self, path: &ImagePath, state: &FileState) -> Result<Content<'_>, ImageError> {
        let part = self.parts.iter().rev().find(|(volume, _)| path.is_within(&volume.at));
        let Some((volume, part)) = part else {
            let message = format!("{} has no file system", self.path.display());
            return Err(ImageError::new(ErrorKind::NotAnImage, message));
        };
        part.content(&self.path, volume, state)
    }

    /// Fails if the image was written since it was opened: what was read of it may belong to no one state.
    ///
    /// # Errors
    ///
    /// `Busy`; `Io` if the image cannot be found any more.
    pub fn check_settled(&self) -> Result<(), ImageError> {
        let is_current = self.stamp.is_current();
        let is_current =
            is_current.map_err(|error| ImageError::io("look at", &self.path, error))?;
        if is_current {
            return Ok(());
        }
        Err(ImageError::new(ErrorKind::Busy, self.stamp.complaint()))
    }

    fn failed(&self, error: Ext4Error) -> ImageError {
        ImageError::ext4(&self.path, error)
    }
}
