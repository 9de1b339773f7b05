//! Images read by our own reader: without root, without a mount, without writing.
//!
//! The trees are those that a mount shows ([`read_tree`](crate::read_tree)), so either can stand
//! for the other. What two states of one image have in common need not be read twice: see
//! [`vireo_ext4::compare`] for what is trusted then.
//!
//! # Example
//!
//! ```no_run
//! use std::path::Path;
//! use vireo_image::{RootPartition, unmounted};
//! use vireo_model::Ignore;
//!
//! let image = Path::new("debian-12.img");
//! let reader = unmounted::open(image, RootPartition::Find, unmounted::Unfinished::Refuse)?;
//! let scan = unmounted::scan(image, &reader, &Ignore::default(), &Default::default())?;
//! println!("{} paths, version {}", scan.tree.len(), scan.tree.digest());
//! # Ok::<(), vireo_image::ImageError>(())
//! ```

use std::fs::File;
use std::path::Path;

pub use vireo_ext4::{Content, FileState, Identity, Known, Reader, Scan, ScanOptions, Unfinished};
use vireo_model::{ChangeSet, Digest, Ignore, Tree};

use crate::partition::{Partition, RootPartition, find_root};
use crate::{ErrorKind, ImageError};

/// Whether this process cannot mount, so that images can only be read as here.
#[must_use]
pub fn is_needed() -> bool {
    !vireo_sys::confine::can_mount()
}

/// Opens the root file system of `image` for reading. The image must not change meanwhile.
///
/// # Errors
///
/// `NotAnImage`, `UnknownPartition`, `Unclean`, `Unsupported`, `Damaged`, `Io`.
pub fn open(
    image: &Path,
    root: RootPartition,
    unfinished: Unfinished,
) -> Result<Reader, ImageError> {
    let failed = |error| ImageError::io("open", image, error);
    let file = File::open(image).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        let message = format!("{} is not a regular file, so it is no disk image", image.display());
        return Err(ImageError::new(ErrorKind::NotAnImage, message));
    }
    let (partition, superblock) = find_root(&file, image, root)?;
    if unfinished == Unfinished::Refuse {
        // The same words as before a mount; the reader's own checks follow.
        superblock.check(image, &partition)?;
    }
    let source = vireo_ext4::Partition::new(file, partition.offset, partition.len);
    Reader::open(source, unfinished).map_err(|error| ImageError::ext4(image, error))
}

/// The same for a file system whose place is known; it must be clean.
pub(crate) fn open_at(image: &Path, partition: &Partition) -> Result<Reader, ImageError> {
    let file = File::open(image).map_err(|error| ImageError::io("open", image, error))?;
    let source = vireo_ext4::Partition::new(file, partition.offset, partition.len);
    Reader::open(source, Unfinished::Refuse).map_err(|error| ImageError::ext4(image, error))
}

/// Whether the metadata of both shows that nothing in `target` changed since `base`; `false` proves
/// nothing. Costs reading the inode tables. What is trusted says [`vireo_ext4::is_unchanged`].
///
/// # Errors
///
/// `Damaged`, `Io`.
pub fn is_unchanged(base: (&Path, &Reader), target: (&Path, &Reader)) -> Result<bool, ImageError> {
    vireo_ext4::is_unchanged(base.1, target.1).map_err(|error| ImageError::ext4(target.0, error))
}

/// A digest of the inodes in `reader`, which messages call `image`.
///
/// # Errors
///
/// `Damaged`, `Io`.
pub fn inodes_digest(image: &Path, reader: &Reader) -> Result<Digest, ImageError> {
    reader.inodes_digest().map_err(|error| ImageError::ext4(image, error))
}

/// Reads the tree in `reader`, which messages call `image`.
///
/// # Errors
///
/// As [`Reader::scan`].
pub fn scan(
    image: &Path,
    reader: &Reader,
    ignore: &Ignore,
    options: &ScanOptions<'_>,
) -> Result<Scan, ImageError> {
    reader.scan(ignore, options).map_err(|error| ImageError::ext4(image, error))
}

/// Reads the tree in `image`, as [`read_tree`](crate::read_tree) does through a mount.
///
/// # Errors
///
/// As [`open`] and [`scan`].
pub fn read_tree(image: &Path, ignore: &Ignore) -> Result<Tree, ImageError> {
    let reader = open(image, RootPartition::Find, Unfinished::Refuse)?;
    Ok(scan(image, &reader, ignore, &ScanOptions::default())?.tree)
}

/// What [`compare`] found.
#[derive(Clone, Debug)]
pub struct Compared {
    /// What turns the base's tree into the target's.
    pub changes: ChangeSet,
    /// The base.
    pub base: Scan,
    /// The target; `hashed` says how many of its files were read.
    pub target: Scan,
}

/// Compares the trees of two images. Of the target only files are read that the base's metadata
/// leaves in doubt, or, if `paranoid`, all.
///
/// # Errors
///
/// As [`scan`].
pub fn compare(
    base: (&Path, &Reader),
    target: (&Path, &Reader),
    ignore: &Ignore,
    paranoid: bool,
) -> Result<Compared, ImageError> {
    let before = scan(base.0, base.1, ignore, &ScanOptions::default())?;
    let known = (!paranoid).then(|| Known::from_scan(&before));
    let options = ScanOptions { known: known.as_ref(), ..ScanOptions::default() };
    let after = scan(target.0, target.1, ignore, &options)?;
    let changes = ChangeSet::between(&before.tree, &after.tree);
    Ok(Compared { changes, base: before, target: after })
}
