//! The tree in a file system.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;
use vireo_model::{Digest, Ignore, ImagePath, Node, NodeKind, Timestamp, Tree};

use crate::Ext4Error;
use crate::budget::Budget;
use crate::compare::Known;
use crate::content::BUFFER_LEN;
use crate::inode::{Inode, InodeKind};
use crate::reader::{Identity, Reader};
use crate::walk::{FileState, Item, Place, Scope, Walk};

/// Most bytes of all files together, holes included, that are read unless the caller says
/// otherwise: half an hour of hashing. A sparse file can claim any length.
pub const DEFAULT_MAX_CONTENT_LEN: u64 = 4 << 40;

/// How a tree is read.
#[derive(Clone, Copy, Debug)]
pub struct ScanOptions<'a> {
    /// Digests of an earlier or later state of the same file system: files that it shows to be
    /// unchanged are not read. What is trusted then: see [`compare`](crate::compare).
    pub known: Option<&'a Known>,
    /// Most bytes of content, holes included.
    pub max_content_len: u64,
    /// Where the file system's root directory is in a tree of several; none: it is the tree's. What
    /// such a root has of its own (`lost+found`, `.vireo`) is no part of the tree then.
    pub at: Option<&'a ImagePath>,
    /// Where further file systems of the tree are, of which this one has the mount point. What is
    /// below such a directory is hidden.
    pub mounts: &'a [ImagePath],
}

impl Default for ScanOptions<'_> {
    fn default() -> Self {
        Self { known: None, max_content_len: DEFAULT_MAX_CONTENT_LEN, at: None, mounts: &[] }
    }
}

/// What reading a tree gave.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Which file system it is, and in which state.
    pub identity: Identity,
    /// The tree, the same that a kernel's mount shows.
    pub tree: Tree,
    /// The states of the regular files, those with further names under the first.
    pub files: BTreeMap<ImagePath, FileState>,
    /// Times of modification of the directories; no part of the tree.
    pub dir_times: BTreeMap<ImagePath, Timestamp>,
    /// How many files' content was read.
    pub hashed: usize,
    /// How many bytes that were.
    pub hashed_len: u64,
}

/// A node that lacks, at most, the digest of its content.
struct Draft {
    path: ImagePath,
    node: Node,
    file: Option<Job>,
}

/// A regular file.
struct Job {
    inode: Place,
    state: FileState,
    /// First block, for the order of reading.
    first: u64,
    digest: Option<Digest>,
}

impl Reader {
    /// The tree without what `ignore` leaves out; all content is read.
    ///
    /// # Errors
    ///
    /// As [`Reader::scan`].
    pub fn tree(&self, ignore: &Ignore) -> Result<Tree, Ext4Error> {
        Ok(self.scan(ignore, &ScanOptions::default())?.tree)
    }

    /// Reads the tree without what `ignore` leaves out: metadata first, then the contents of
    /// regular files on rayon's threads, in the order in which they stand in the image.
    ///
    /// Memory: about 1 KiB for each name, 256 KiB for each thread.
    ///
    /// # Errors
    ///
    /// The first path that cannot be read, with its reason: `Damaged`, `Unsupported`, `Io`;
    /// `Limit` beyond 8 million names, a depth of 512 or [`ScanOptions::max_content_len`].
    pub fn scan(&self, ignore: &Ignore, options: &ScanOptions<'_>) -> Result<Scan, Ext4Error> {
        let budget = self.budget(options.max_content_len);
        let root = ImagePath::root();
        let at = options.at.unwrap_or(&root);
        let scope = Scope { ignore, at, mounts: options.mounts };
        let mut walk = Walk::new(self, &scope, &budget)?;
        let items = std::mem::take(&mut walk.items);
        let mut drafts = self.drafts(&walk, items, options, &budget)?;
        let (hashed, hashed_len) = self.hash(&walk, &mut drafts, &budget)?;
        // All in path order, so that each map is built in one pass.
        let dirs = drafts.iter().filter(|draft| draft.node.is_dir());
        let dir_times = dirs.map(|draft| (draft.path.clone(), draft.node.mtime)).collect();
        let state = |draft: &Draft| Some((draft.path.clone(), draft.file.as_ref()?.state));
        let files = drafts.iter().filter_map(state).collect();
        let node = |Draft { path, mut node, file }: Draft| {
            if let Some(Job { state, digest: Some(content), .. }) = file {
                node.kind = NodeKind::File { len: state.len, content };
            }
            (path, node)
        };
        let tree = drafts.into_iter().map(node).collect();
        Ok(Scan { identity: self.identity(), tree, files, dir_times, hashed, hashed_len })
    }

    fn drafts(
        &self,
        walk: &Walk,
        items: Vec<Item>,
        options: &ScanOptions<'_>,
        budget: &Budget,
    ) -> Result<Vec<Draft>, Ext4Error> {
        let leaders = leaders(walk, &items)?;
        let known = options.known.map(|known| known.usable_for(&self.identity()));
        let draft = |(item, leader): (Item, Option<ImagePath>)| -> Result<Draft, Ext4Error> {
            let path = item.path;
            if let Some(leader) = leader {
                return Ok(Draft { path, node: Node::hard_link(leader), file: None });
            }
            let inode = walk.inode(item.inode)?;
            let node = self.node(inode, budget).map_err(|error| error.within(&path))?;
            let mut file = None;
            if inode.kind == InodeKind::File {
                let (state, first) =
                    FileState::of(self, inode, budget).map_err(|error| error.within(&path))?;
                let digest = if state.len == 0 {
                    Some(Digest::of(b""))
                } else {
                    known.as_ref().and_then(|known| known.digest(&state))
                };
                file = Some(Job { inode: item.inode, state, first, digest });
            }
            Ok(Draft { path, node, file })
        };
        let at = options.at.cloned().unwrap_or_else(ImagePath::root);
        let root = self.node(&walk.root, budget).map_err(|error| error.within(&at))?;
        let mut drafts = Vec::with_capacity(items.len().saturating_add(1));
        drafts.push(Draft { path: at, node: root, file: None });
        // Errors are looked for afterwards: so every draft is written once, where it stays.
        let below: Vec<Result<Draft, Ext4Error>> =
            items.into_par_iter().zip(leaders).map(draft).collect();
        for draft in below {
            drafts.push(draft?);
        }
        Ok(drafts)
    }

    /// The node of `inode`, for a regular file without its digest.
    fn node(&self, inode: &Inode, budget: &Budget) -> Result<Node, Ext4Error> {
        let kind = match inode.kind {
            InodeKind::File => NodeKind::File { len: inode.len, content: Digest::of(b"") },
            InodeKind::Dir => NodeKind::Dir,
            InodeKind::Symlink => {
                NodeKind::Symlink { target: self.link_target_within(inode, budget)? }
            }
            InodeKind::Device(kind) => {
                let (major, minor) = inode.device_numbers();
                NodeKind::Device { kind, major, minor }
            }
            InodeKind::Fifo => NodeKind::Fifo,
            InodeKind::Socket => NodeKind::Socket,
        };
        Ok(Node {
            kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: self.xattrs_within(inode, budget)?,
        })
    }

    /// Reads what has no digest yet. Returns how many files and bytes that were.
    fn hash(
        &self,
        walk: &Walk,
        drafts: &mut [Draft],
        budget: &Budget,
    ) -> Result<(usize, u64), Ext4Error> {
        let mut jobs: Vec<(&ImagePath, &mut Job)> = drafts
            .iter_mut()
            .filter_map(|draft| draft.file.as_mut().map(|job| (&draft.path, job)))
            .filter(|(_, job)| job.digest.is_none())
            .collect();
        jobs.sort_by_key(|(_, job)| job.first);
        let len = jobs.iter().fold(0_u64, |sum, (_, job)| sum.saturating_add(job.state.len));
        budget.take_content(len)?;
        jobs.par_iter_mut().try_for_each_init(
            || vec![0; BUFFER_LEN],
            |buffer, (path, job)| {
                let content = walk.inode(job.inode).and_then(|inode| self.content(inode));
                let digest = content.and_then(|content| content.digest(buffer));
                job.digest = Some(digest.map_err(|error| error.within(path))?);
                Ok::<(), Ext4Error>(())
            },
        )?;
        Ok((jobs.len(), len))
    }
}

/// For each name, the first name of its inode, if that is another.
fn leaders(walk: &Walk, items: &[Item]) -> Result<Vec<Option<ImagePath>>, Ext4Error> {
    let mut first: HashMap<Place, &ImagePath> = HashMap::new();
    let mut leaders = Vec::with_capacity(items.len());
    for item in items {
        let inode = walk.inode(item.inode)?;
        let has_several = inode.links > 1 && inode.kind != InodeKind::Dir;
        let leader = has_several.then(|| *first.entry(item.inode).or_insert(&item.path));
        leaders.push(leader.filter(|leader| **leader != item.path).cloned());
    }
    Ok(leaders)
}
