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
//! let image = Path::new("debian-12.qcow2");
//! let disk = unmounted::open(image, RootPartition::Find, unmounted::Unfinished::Refuse)?;
//! let scan = disk.scan(&Ignore::default(), &Default::default())?;
//! println!("{} paths, version {}", scan.tree.len(), scan.tree.digest());
//! # Ok::<(), vireo_image::ImageError>(())
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use vireo_ext4::{Content, FileState, Identity, Known, Reader, Unfinished};
use vireo_ext4::{DEFAULT_MAX_CONTENT_LEN, Ext4Error, InodeKind};
use vireo_model::{ChangeSet, Digest, Hasher, Ignore, ImagePath, Timestamp, Tree};

use crate::bytes::Bytes;
use crate::disk::no_mount_point;
use crate::layout::{self, LeftOut, Volume};
use crate::partition::{Partition, RootPartition, slots};
use crate::probe::FileSystemKind;
use crate::{ErrorKind, ImageError};

/// Whether this process cannot mount, so that images can only be read as here.
#[must_use]
pub fn is_needed() -> bool {
    !vireo_sys::confine::can_mount()
}

/// The file systems of an image that make its tree, open for reading.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    /// The root first, in path order.
    parts: Vec<(Volume, Reader)>,
    left_out: Vec<LeftOut>,
}

/// How a tree is read.
#[derive(Clone, Copy, Debug)]
pub struct ScanOptions<'a> {
    /// Digests of earlier or later states of the same file systems: files that they show to be
    /// unchanged are not read. What is trusted then: see [`vireo_ext4::compare`].
    pub known: &'a [Known],
    /// Most bytes of content of each file system, holes included.
    pub max_content_len: u64,
}

impl Default for ScanOptions<'_> {
    fn default() -> Self {
        Self { known: &[], max_content_len: DEFAULT_MAX_CONTENT_LEN }
    }
}

/// What reading a tree gave.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The tree, the same that a mount shows.
    pub tree: Tree,
    /// Which file systems it is made of, and in which state each is; the root first.
    pub identities: Vec<Identity>,
    /// The states of the regular files of each, those with further names under the first.
    pub files: Vec<BTreeMap<ImagePath, FileState>>,
    /// Times of modification of the directories; no part of the tree.
    pub dir_times: BTreeMap<ImagePath, Timestamp>,
    /// How many files' content was read.
    pub hashed: usize,
    /// How many bytes that were.
    pub hashed_len: u64,
}

impl Scan {
    /// What was read, for the next scan of the same file systems.
    #[must_use]
    pub fn known(&self) -> Vec<Known> {
        let parts = self.identities.iter().zip(&self.files);
        parts.map(|(identity, files)| Known::of_part(*identity, files, &self.tree)).collect()
    }
}

/// Opens the file systems of `image` for reading. The image must not change meanwhile.
///
/// # Errors
///
/// `NotAnImage`, `UnknownPartition`, `Unclean`, `Unsupported` also where only a mount can read one
/// of its file systems, `Damaged`, `Io`.
pub fn open(image: &Path, root: RootPartition, unfinished: Unfinished) -> Result<Disk, ImageError> {
    let bytes = Bytes::open(image)?;
    let slots = slots(&bytes, image)?;
    let root = layout::find_root(&bytes, image, &slots, root)?;
    let reader = open_volume(&bytes, image, &root, unfinished)?;
    let text = layout::read_fstab(&reader, image)?.unwrap_or_default();
    let (volumes, left_out) = layout::arrange(image, &slots, &root, &text)?;
    let mut parts = vec![(root, reader)];
    for volume in volumes {
        require_mount_point(&parts, &volume, image)?;
        let reader = open_volume(&bytes, image, &volume, unfinished)?;
        parts.push((volume, reader));
    }
    Ok(Disk { path: image.to_owned(), parts, left_out })
}

/// The file system of `image`, which messages call `name`, whose tree has to be in one alone.
pub(crate) fn only_volume(
    image: &Path,
    name: &Path,
    root: RootPartition,
) -> Result<Volume, ImageError> {
    let mut volumes = open(image, root, Unfinished::Refuse)?.parts.into_iter().map(|(v, _)| v);
    match (volumes.next(), volumes.next()) {
        (Some(volume), None) => {
            if let Some(superblock) = &volume.fs.superblock {
                superblock.check_writable(name)?;
            }
            Ok(volume)
        }
        _ => {
            let message = format!(
                "the tree of {} is in several file systems, and only one is patched without mounting; \
                 patch it as root",
                name.display()
            );
            Err(ImageError::new(ErrorKind::Unsupported, message))
        }
    }
}

/// Our own reader of a file system whose place is known; it must be clean.
pub(crate) fn open_at(image: &Path, partition: &Partition) -> Result<Reader, ImageError> {
    layout::open_reader(&Bytes::open(image)?, partition, Unfinished::Refuse)
        .map_err(|error| ImageError::ext4(image, error))
}

fn open_volume(
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
    parts: &[(Volume, Reader)],
    volume: &Volume,
    image: &Path,
) -> Result<(), ImageError> {
    let Some((outer, reader)) =
        parts.iter().rev().find(|(outer, _)| volume.at.is_within(&outer.at))
    else {
        return Ok(());
    };
    let failed = |error| ImageError::ext4(image, error);
    let mut at = outer.at.clone();
    let mut inside = ImagePath::root();
    let below = volume.at.components().skip(outer.at.components().count());
    for name in below {
        let join = |path: &ImagePath| {
            path.join(name).map_err(|_| no_mount_point(&volume.at, image, false))
        };
        (at, inside) = (join(&at)?, join(&inside)?);
        let kind = reader.find(&inside).map_err(failed)?.map(|inode| inode.kind);
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

    /// Which file systems the tree is made of, and in which state each is; the root first.
    pub fn identities(&self) -> impl Iterator<Item = Identity> {
        self.parts.iter().map(|(_, reader)| reader.identity())
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
        let known = |(volume, reader): &(Volume, Reader)| {
            Known::from_tree_at(reader, tree, ignore, &volume.at, &mounts)
                .map_err(|error| self.failed(volume, error))
        };
        self.parts.iter().map(known).collect()
    }

    fn mounts(&self) -> Vec<ImagePath> {
        self.parts.iter().skip(1).map(|(volume, _)| volume.at.clone()).collect()
    }

    /// Whether the metadata of both shows that nothing in this one changed since `base`; `false`
    /// proves nothing. Costs reading the inode tables. What is trusted says
    /// [`vireo_ext4::is_unchanged`].
    ///
    /// # Errors
    ///
    /// `Damaged`, `Io`.
    pub fn is_unchanged(&self, base: &Self) -> Result<bool, ImageError> {
        let places = |disk: &Self| -> Vec<ImagePath> {
            disk.parts.iter().map(|(volume, _)| volume.at.clone()).collect()
        };
        if places(self) != places(base) {
            return Ok(false);
        }
        for ((_, before), (volume, after)) in base.parts.iter().zip(&self.parts) {
            let same = vireo_ext4::is_unchanged(before, after);
            if !same.map_err(|error| self.failed(volume, error))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A digest of the inodes of all its file systems.
    ///
    /// # Errors
    ///
    /// `Damaged`, `Io`.
    pub fn inodes_digest(&self) -> Result<Digest, ImageError> {
        let mut hasher = Hasher::new();
        for (volume, reader) in &self.parts {
            let inodes = reader.inodes_digest().map_err(|error| self.failed(volume, error))?;
            hasher.field(volume.at.as_bytes());
            hasher.update(inodes.as_bytes());
        }
        Ok(hasher.finish())
    }

    /// Reads the tree without what `ignore` leaves out.
    ///
    /// # Errors
    ///
    /// As [`Reader::scan`].
    pub fn scan(&self, ignore: &Ignore, options: &ScanOptions<'_>) -> Result<Scan, ImageError> {
        let mounts = self.mounts();
        let mut whole: Option<Scan> = None;
        for (volume, reader) in &self.parts {
            // As a directory that is left out is not entered where it is mounted, either.
            if !volume.at.is_root() && is_left_out(ignore, &volume.at) {
                continue;
            }
            let identity = reader.identity();
            let known = options.known.iter().filter(|known| known.is_of(&identity));
            let options = vireo_ext4::ScanOptions {
                // What was learned from this very state knows all of it.
                known: known
                    .clone()
                    .find(|known| *known.identity() == identity)
                    .or(known.clone().next()),
                max_content_len: options.max_content_len,
                at: Some(&volume.at),
                mounts: &mounts,
            };
            let part = reader.scan(ignore, &options).map_err(|error| self.failed(volume, error))?;
            whole = Some(match whole {
                None => of_part(part),
                Some(whole) => joined(whole, part),
            });
        }
        whole.ok_or_else(|| {
            let message = format!("{} has no file system", self.path.display());
            ImageError::new(ErrorKind::NotAnImage, message)
        })
    }

    /// The content of the file `path`, whose inode number a scan told.
    ///
    /// # Errors
    ///
    /// As [`Reader::content`].
    pub fn content(&self, path: &ImagePath, ino: u32) -> Result<Content<'_>, ImageError> {
        let part = self.parts.iter().rev().find(|(volume, _)| path.is_within(&volume.at));
        let Some((volume, reader)) = part else {
            let message = format!("{} has no file system", self.path.display());
            return Err(ImageError::new(ErrorKind::NotAnImage, message));
        };
        let content = reader.inode(ino).and_then(|inode| reader.content(&inode));
        content.map_err(|error| self.failed(volume, error))
    }

    fn failed(&self, _: &Volume, error: Ext4Error) -> ImageError {
        ImageError::ext4(&self.path, error)
    }
}

/// Whether `ignore` leaves out `path` or a directory that it is in.
fn is_left_out(ignore: &Ignore, path: &ImagePath) -> bool {
    let mut path = Some(path.clone());
    while let Some(at) = path {
        if !at.is_root() && ignore.matches(&at) {
            return true;
        }
        path = at.parent();
    }
    false
}

fn of_part(part: vireo_ext4::Scan) -> Scan {
    let vireo_ext4::Scan { identity, tree, files, dir_times, hashed, hashed_len } = part;
    let (identities, files) = (vec![identity], vec![files]);
    Scan { tree, identities, files, dir_times, hashed, hashed_len }
}

/// `part` is in front of what `whole` has at its place: its root directory hides the mount point.
fn joined(mut whole: Scan, part: vireo_ext4::Scan) -> Scan {
    for (path, node) in part.tree.iter() {
        whole.tree.insert(path.clone(), node.clone());
    }
    whole.identities.push(part.identity);
    whole.files.push(part.files);
    whole.dir_times.extend(part.dir_times);
    whole.hashed += part.hashed;
    whole.hashed_len += part.hashed_len;
    whole
}

/// Reads the tree in `image`, as [`read_tree`](crate::read_tree) does through a mount.
///
/// # Errors
///
/// As [`open`] and [`Disk::scan`].
pub fn read_tree(image: &Path, ignore: &Ignore) -> Result<Tree, ImageError> {
    let disk = open(image, RootPartition::Find, Unfinished::Refuse)?;
    Ok(disk.scan(ignore, &ScanOptions::default())?.tree)
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
/// As [`Disk::scan`].
pub fn compare(
    base: &Disk,
    target: &Disk,
    ignore: &Ignore,
    paranoid: bool,
) -> Result<Compared, ImageError> {
    let before = base.scan(ignore, &ScanOptions::default())?;
    let known = if paranoid { Vec::new() } else { before.known() };
    let after = target.scan(ignore, &ScanOptions { known: &known, ..ScanOptions::default() })?;
    let changes = ChangeSet::between(&before.tree, &after.tree);
    Ok(Compared { changes, base: before, target: after })
}
