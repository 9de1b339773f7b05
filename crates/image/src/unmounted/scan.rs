//! Reading the tree of an image that is open.

use std::collections::BTreeMap;
use std::path::Path;

use vireo_ext4::{DEFAULT_MAX_CONTENT_LEN, FileState, Identity, Known, Reader, Unfinished};
use vireo_model::{ChangeSet, Digest, Ignore, ImagePath, Timestamp, Tree, plain_dir, plain_file};

use super::part::{self, Part, state_of};
use super::{Disk, open};
use crate::bytes::Bytes;
use crate::fat::Fat;
use crate::layout::Volume;
use crate::partition::RootPartition;
use crate::{ErrorKind, ImageError};

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
    /// Which ext file systems it is made of, and in which state each is; the root first.
    pub identities: Vec<Identity>,
    /// The states of the regular files of each, those with further names under the first.
    pub files: Vec<BTreeMap<ImagePath, FileState>>,
    /// Where the files on FAT begin, and how long they are. They have no inodes, so that all are always read.
    pub plain_files: BTreeMap<ImagePath, FileState>,
    /// Times of modification of the directories; no part of the tree. Those on FAT have none.
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

    /// Where the content of the regular file `path` stands.
    #[must_use]
    pub fn state(&self, path: &ImagePath) -> Option<&FileState> {
        let ext = self.files.iter().find_map(|files| files.get(path));
        ext.or_else(|| self.plain_files.get(path))
    }

    fn of_ext(part: vireo_ext4::Scan) -> Self {
        let vireo_ext4::Scan { identity, tree, files, dir_times, hashed, hashed_len } = part;
        let (identities, files) = (vec![identity], vec![files]);
        let plain_files = BTreeMap::new();
        Self { tree, identities, files, plain_files, dir_times, hashed, hashed_len }
    }

    /// `part` is in front of what this has at its place: its root directory hides the mount point.
    fn join(&mut self, part: Self) {
        for (path, node) in part.tree.iter() {
            self.tree.insert(path.clone(), node.clone());
        }
        self.identities.extend(part.identities);
        self.files.extend(part.files);
        self.plain_files.extend(part.plain_files);
        self.dir_times.extend(part.dir_times);
        self.hashed += part.hashed;
        self.hashed_len += part.hashed_len;
    }
}

impl Disk {
    /// Reads the tree without what `ignore` leaves out.
    ///
    /// # Errors
    ///
    /// As [`Reader::scan`]; `Busy` if the image was written meanwhile.
    pub fn scan(&self, ignore: &Ignore, options: &ScanOptions<'_>) -> Result<Scan, ImageError> {
        let outcome = self.scan_parts(ignore, options);
        // What looks damaged may be half of what somebody writes.
        self.check_settled()?;
        outcome
    }

    fn scan_parts(&self, ignore: &Ignore, options: &ScanOptions<'_>) -> Result<Scan, ImageError> {
        let mounts = self.mounts();
        let mut whole: Option<Scan> = None;
        for (volume, part) in &self.parts {
            // As a directory that is left out is not entered where it is mounted, either.
            if !volume.at.is_root() && is_left_out(ignore, &volume.at) {
                continue;
            }
            let part = match part {
                Part::Ext(reader) => {
                    let scan = scan_ext(reader, volume, ignore, options, &mounts);
                    Scan::of_ext(scan.map_err(|error| self.failed(error))?)
                }
                Part::Fat(fat) => scan_fat(fat, &self.path, volume, ignore, &mounts)?,
            };
            match &mut whole {
                None => whole = Some(part),
                Some(whole) => {
                    // The mount point's own time is hidden with it.
                    whole.dir_times.remove(&volume.at);
                    whole.join(part);
                }
            }
        }
        whole.ok_or_else(|| {
            let message = format!("{} has no file system", self.path.display());
            ImageError::new(ErrorKind::NotAnImage, message)
        })
    }
}

fn scan_ext(
    reader: &Reader,
    volume: &Volume,
    ignore: &Ignore,
    options: &ScanOptions<'_>,
    mounts: &[ImagePath],
) -> Result<vireo_ext4::Scan, vireo_ext4::Ext4Error> {
    let identity = reader.identity();
    let known = options.known.iter().filter(|known| known.is_of(&identity));
    // What was learned from this very state knows all of it.
    let exact = known.clone().find(|known| *known.identity() == identity);
    let options = vireo_ext4::ScanOptions {
        known: exact.or(known.clone().next()),
        max_content_len: options.max_content_len,
        at: Some(&volume.at),
        mounts,
    };
    reader.scan(ignore, &options)
}

/// What is on FAT, in its normal form.
fn scan_fat(
    fat: &Fat<Bytes>,
    image: &Path,
    volume: &Volume,
    ignore: &Ignore,
    mounts: &[ImagePath],
) -> Result<Scan, ImageError> {
    let failed = part::failed(image, volume);
    let inner: Vec<&ImagePath> =
        mounts.iter().filter(|at| **at != volume.at && at.is_within(&volume.at)).collect();
    let mut scan = Scan {
        tree: Tree::new(),
        identities: Vec::new(),
        files: Vec::new(),
        plain_files: BTreeMap::new(),
        dir_times: BTreeMap::new(),
        hashed: 0,
        hashed_len: 0,
    };
    scan.tree.insert(volume.at.clone(), plain_dir());
    for (below, item) in fat.items().map_err(&failed)? {
        let path = below.components().try_fold(volume.at.clone(), |path, name| path.join(name));
        let path = path.map_err(|error| {
            let message = format!(
                "{}: {below} on its {} cannot be carried: {error}",
                image.display(),
                volume.describe()
            );
            ImageError::new(ErrorKind::Unsupported, message)
        })?;
        let is_hidden = inner.iter().any(|at| path != **at && path.is_within(at));
        if is_hidden || is_left_out(ignore, &path) {
            continue;
        }
        if item.is_dir {
            scan.tree.insert(path, plain_dir());
            continue;
        }
        let content = fat.content(item.cluster, item.len).and_then(|content| content.digest());
        let content: Digest = content.map_err(&failed)?;
        scan.tree.insert(path.clone(), plain_file(item.len, content));
        scan.plain_files.insert(path, state_of(&item, content));
        scan.hashed += 1;
        scan.hashed_len += item.len;
    }
    Ok(scan)
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

/// Reads the tree in `image`, as [`read_tree`](crate::read_tree) does through a mount.
///
/// # Errors
///
/// As [`open`] and [`Disk::scan`].
pub fn read_tree(image: &Path, ignore: &Ignore) -> Result<Tree, ImageError> {
    read_tree_in(image, RootPartition::Find, ignore)
}

/// As [`read_tree`], of an image with this root.
///
/// # Errors
///
/// As [`read_tree`].
pub fn read_tree_in(
    image: &Path,
    root: RootPartition,
    ignore: &Ignore,
) -> Result<Tree, ImageError> {
    let disk = open(image, root, Unfinished::Refuse)?;
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
