//! Two states of one file system: what need not be read.
//!
//! # What is trusted
//!
//! A file of the target is taken to have the content that the base's file of the same inode has,
//! without reading it, if in both the inode number, its generation, the length, the times of
//! modification *and of change*, and the whole map of blocks are equal, and
//!
//! - both are states of one file system: UUID, hash seed and time of making are equal;
//! - both were unmounted cleanly: no journal had to be played back. A running machine's image can
//!   hold new data whose time of change is still in memory;
//! - the time of change lies more than [`RACY_SECS`] before the end of the earlier state. What
//!   was changed twice within one tick of the clock shows only one time.
//!
//! Programs cannot set the time of change: the kernel does, at every write, truncation, hole and
//! attribute. So this is sound if *one image is a copy of the other, or both of a third, and only
//! kernels wrote to them since*. What nobody can see in the metadata is a write past the file
//! system: `dd` into the image, a hex editor, `debugfs`; a swap file in use; an image builder that
//! gives two builds one UUID and one time. Where that can have happened, read everything: pass no
//! [`Known`].

use std::collections::HashMap;

use vireo_model::{Digest, Ignore, ImagePath, Node, Tree};

use crate::Ext4Error;
use crate::inode::InodeKind;
use crate::reader::{Identity, Reader};
use crate::tree::{Scan, ScanOptions};
use crate::walk::{Entry, FileState, Scope};

/// Seconds before the end of the earlier state within which a time of change proves nothing.
/// Covers the tick of every kernel, and the whole seconds in which inodes of 128 bytes and
/// superblocks keep time.
pub const RACY_SECS: i64 = 2;

/// Why nothing can be told from the metadata of two images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Distrust {
    /// They are not states of one file system.
    OtherFileSystem,
    /// One was copied while its machine ran, or after it crashed.
    Unfinished,
}

/// Checks whether the metadata of two images can be compared at all. Gives the time before which
/// equal times of change prove equal content.
pub(crate) fn trusted_until(base: &Identity, target: &Identity) -> Result<i64, Distrust> {
    let same =
        base.uuid == target.uuid && base.hash_seed == target.hash_seed && base.made == target.made;
    if !same {
        return Err(Distrust::OtherFileSystem);
    }
    if base.replayed || target.replayed {
        return Err(Distrust::Unfinished);
    }
    Ok(base.written.secs.min(target.written.secs).saturating_sub(RACY_SECS))
}

/// Digests of a file system's files, by the state that they are in.
#[derive(Clone, Debug)]
pub struct Known {
    identity: Identity,
    /// By inode number, each once.
    files: Vec<(FileState, Digest)>,
}

impl Known {
    /// What an earlier scan read.
    #[must_use]
    pub fn from_scan(scan: &Scan) -> Self {
        Self::of_part(scan.identity, &scan.files, &scan.tree)
    }

    /// What a scan read of one of the file systems of `tree`: of the files `files`, the states of
    /// which it found in the file system `identity`.
    #[must_use]
    pub fn of_part(
        identity: Identity,
        files: &std::collections::BTreeMap<ImagePath, FileState>,
        tree: &Tree,
    ) -> Self {
        // Both are in path order.
        let mut nodes = tree.iter().peekable();
        let file = |(path, state): (&ImagePath, &FileState)| {
            while nodes.next_if(|(found, _)| *found < path).is_some() {}
            let (_, node) = nodes.next_if(|(found, _)| *found == path)?;
            let (_, digest) = node.content()?;
            Some((*state, digest))
        };
        Self::of_parts(identity, files.iter().filter_map(file).collect())
    }

    /// What `tree` says of the files in `reader`, whose tree it is. No content is read: that the
    /// tree is this file system's is trusted, but a file whose length or time is another
    /// in it is left out.
    ///
    /// # Errors
    ///
    /// As [`Reader::walk_metadata`].
    pub fn from_tree(reader: &Reader, tree: &Tree, ignore: &Ignore) -> Result<Self, Ext4Error> {
        Self::from_tree_at(reader, tree, ignore, &ImagePath::root(), &[])
    }

    /// The same for a file system that is a part of `tree`: with its root directory at `at`, and
    /// others of the tree at `mounts`.
    ///
    /// # Errors
    ///
    /// As [`Reader::walk_metadata`].
    pub fn from_tree_at(
        reader: &Reader,
        tree: &Tree,
        ignore: &Ignore,
        at: &ImagePath,
        mounts: &[ImagePath],
    ) -> Result<Self, Ext4Error> {
        let entries = reader.walk_scope(&Scope { ignore, at, mounts })?;
        let fits = |entry: &Entry, node: &Node| {
            node.content().is_some_and(|(len, _)| len == entry.state.len)
                && node.mtime == entry.state.mtime
        };
        let file = |entry: &Entry| {
            let node = tree.get(&entry.path)?;
            let (_, digest) = node.content().filter(|_| fits(entry, node))?;
            Some((entry.state, digest))
        };
        let files = entries.iter().filter(|entry| entry.kind == InodeKind::File);
        Ok(Self::of_parts(reader.identity(), files.filter_map(file).collect()))
    }

    /// Which file system it is about, and in which state.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether it is about this file system, in whatever state.
    #[must_use]
    pub fn is_of(&self, identity: &Identity) -> bool {
        trusted_until(&self.identity, identity) != Err(Distrust::OtherFileSystem)
    }

    pub(crate) fn parts(&self) -> (&Identity, &[(FileState, Digest)]) {
        (&self.identity, &self.files)
    }

    pub(crate) fn of_parts(identity: Identity, mut files: Vec<(FileState, Digest)>) -> Self {
        // Mostly what was written in this order before.
        if !files.is_sorted_by(|(a, _), (b, _)| a.ino < b.ino) {
            files.sort_by_cached_key(|(state, _)| state.ino);
            files.dedup_by_key(|(state, _)| state.ino);
        }
        Self { identity, files }
    }

    /// Prepares for a file system with this identity.
    pub(crate) fn usable_for(&self, identity: &Identity) -> Usable<'_> {
        Usable { known: self, until: trusted_until(&self.identity, identity).ok() }
    }
}

/// [`Known`], as far as it holds for one other image.
#[derive(Debug)]
pub(crate) struct Usable<'a> {
    known: &'a Known,
    until: Option<i64>,
}

impl Usable<'_> {
    /// The digest of the file in this state.
    pub(crate) fn digest(&self, state: &FileState) -> Option<Digest> {
        let until = self.until?;
        let files = &self.known.files;
        let at = files.binary_search_by_key(&state.ino, |(known, _)| known.ino).ok()?;
        let (known, digest) = files.get(at)?;
        (known == state && state.ctime.secs < until).then_some(*digest)
    }
}

/// What comparing the metadata of two images gave.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// The target's regular files that have to be read to know their content: those that the base
    /// does not have in the same state. In path order, each inode once.
    pub doubtful: Vec<ImagePath>,
    /// Bytes of these files.
    pub doubtful_len: u64,
    /// How many regular files of the target need not be read.
    pub unchanged: usize,
    /// Why nothing can be told and all files are doubtful, if that is so.
    pub distrust: Option<Distrust>,
}

/// Compares the metadata of two images and gives the files of `target` that may have another
/// content than in `base`. No content is read. What is trusted stands at the head of this module's
/// documentation and in the crate's.
///
/// # Errors
///
/// As [`Reader::walk_metadata`].
pub fn compare(base: &Reader, target: &Reader, ignore: &Ignore) -> Result<Candidates, Ext4Error> {
    let until = trusted_until(&base.identity(), &target.identity());
    let (before, after) =
        rayon::join(|| base.walk_metadata(ignore), || target.walk_metadata(ignore));
    let states = |entries: Vec<Entry>| -> Vec<(ImagePath, FileState)> {
        let files = entries.into_iter().filter(|entry| entry.kind == InodeKind::File);
        files.map(|entry| (entry.path, entry.state)).collect()
    };
    let before: HashMap<u32, FileState> =
        states(before?).into_iter().map(|(_, state)| (state.ino, state)).collect();
    let mut seen = std::collections::HashSet::new();
    let mut candidates =
        Candidates { doubtful: Vec::new(), doubtful_len: 0, unchanged: 0, distrust: until.err() };
    for (path, state) in states(after?) {
        if !seen.insert(state.ino) {
            continue;
        }
        let same = before.get(&state.ino) == Some(&state);
        if state.len == 0 || (same && until.is_ok_and(|until| state.ctime.secs < until)) {
            candidates.unchanged = candidates.unchanged.saturating_add(1);
        } else {
            candidates.doubtful_len = candidates.doubtful_len.saturating_add(state.len);
            candidates.doubtful.push(path);
        }
    }
    Ok(candidates)
}

/// Reads `target`, a later or earlier state of `base` whose tree is `base_tree`: unchanged files
/// are not read, their digests are taken from `base_tree`.
///
/// # Errors
///
/// As [`Reader::scan`].
pub fn tree_like(
    target: &Reader,
    base: &Reader,
    base_tree: &Tree,
    ignore: &Ignore,
) -> Result<Scan, Ext4Error> {
    let known = Known::from_tree(base, base_tree, ignore)?;
    target.scan(ignore, &ScanOptions { known: Some(&known), ..ScanOptions::default() })
}
