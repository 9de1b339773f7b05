//! All names of a file system with their inodes.
//!
//! Level by level: the directories of one depth are read in parallel, then the inodes that they
//! name, in the order in which these stand in the inode table. So every part of the table is
//! read in long runs and nothing is read that no name leads to.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use rayon::prelude::*;
use vireo_model::{Digest, Hasher, Ignore, ImagePath, Timestamp};

use crate::budget::Budget;
use crate::bytes::{part, to_usize};
use crate::dir::{self, Name};
use crate::extent::Extent;
use crate::inode::{BLOCK_FIELD_LEN, Inode, InodeKind};
use crate::reader::Reader;
use crate::{Ext4Error, xattr};

/// Deepest directory that is read, as `vireo-tree` reads mounted ones.
const MAX_DEPTH: usize = 512;
/// Most names of one file system.
const MAX_NAMES: usize = 8_000_000;
/// Blocks of a directory read at a time, in bytes.
const DIR_CHUNK_LEN: u64 = 256 << 10;
/// Inodes that nobody asked for are read too where that saves a system call.
const MAX_INODE_GAP: u32 = 32;
/// Longest run of inodes read at a time.
const MAX_INODE_RUN: u32 = 2048;

/// What the walk found. The root directory is the first inode and the first listing.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) inodes: Vec<Inode>,
    listings: Vec<Vec<Item>>,
}

/// One name.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) path: ImagePath,
    /// Index of its inode.
    pub(crate) inode: usize,
    /// Index of its listing, for a directory.
    listing: Option<usize>,
}

impl Walk {
    /// Everything below the root that `ignore` does not leave out.
    pub(crate) fn new(
        reader: &Reader,
        ignore: &Ignore,
        budget: &Budget,
    ) -> Result<Self, Ext4Error> {
        let root = reader.root()?;
        let mut state = State {
            seen: HashMap::from([(root.number, 0)]),
            entered: HashSet::from([root.number]),
            walk: Self { inodes: vec![root], listings: vec![Vec::new()] },
            names: 1,
        };
        let mut level = vec![Open { path: ImagePath::root(), inode: 0, listing: 0 }];
        let mut depth = 0_usize;
        while !level.is_empty() {
            if depth > MAX_DEPTH {
                let message = format!(
                    "{}: directories are nested deeper than {MAX_DEPTH}",
                    level_name(&level)
                );
                return Err(Ext4Error::limit(message));
            }
            level = state.level(reader, ignore, budget, level)?;
            depth = depth.saturating_add(1);
        }
        Ok(state.walk)
    }

    /// The names in the order of paths, without the root itself.
    pub(crate) fn in_order(&self) -> Vec<&Item> {
        let mut items = Vec::new();
        let mut open = vec![self.listings.first().map(|items| items.iter()).unwrap_or_default()];
        while let Some(listing) = open.last_mut() {
            let Some(item) = listing.next() else {
                open.pop();
                continue;
            };
            items.push(item);
            if let Some(below) = item.listing.and_then(|index| self.listings.get(index)) {
                open.push(below.iter());
            }
        }
        items
    }

    pub(crate) fn inode(&self, item: &Item) -> Option<&Inode> {
        self.inodes.get(item.inode)
    }
}

fn level_name(level: &[Open]) -> String {
    level.first().map(|open| open.path.to_string()).unwrap_or_default()
}

/// A directory that is still to be read.
struct Open {
    path: ImagePath,
    inode: usize,
    listing: usize,
}

struct State {
    walk: Walk,
    /// Where the inodes that were read stand, by number.
    seen: HashMap<u32, usize>,
    /// Directories that have a place; a second one would be a loop.
    entered: HashSet<u32>,
    names: usize,
}

impl State {
    /// Reads the directories of one level and gives those of the next.
    fn level(
        &mut self,
        reader: &Reader,
        ignore: &Ignore,
        budget: &Budget,
        level: Vec<Open>,
    ) -> Result<Vec<Open>, Ext4Error> {
        let found: Vec<Vec<(ImagePath, u32)>> = level
            .par_iter()
            .map(|open| match self.walk.inodes.get(open.inode) {
                Some(inode) => children(reader, inode, &open.path, ignore, budget),
                None => Ok(Vec::new()),
            })
            .collect::<Result<_, _>>()?;
        self.load(reader, found.iter().flatten().map(|(_, number)| *number))?;
        let mut next = Vec::new();
        for (open, children) in level.iter().zip(found) {
            let items = self.items(children, &mut next)?;
            if let Some(listing) = self.walk.listings.get_mut(open.listing) {
                *listing = items;
            }
        }
        Ok(next)
    }

    /// Reads the inodes that were not read yet.
    fn load(
        &mut self,
        reader: &Reader,
        numbers: impl Iterator<Item = u32>,
    ) -> Result<(), Ext4Error> {
        let mut numbers: Vec<u32> =
            numbers.filter(|number| !self.seen.contains_key(number)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let runs = runs(&numbers, reader.superblock.inodes_per_group);
        let loaded: Vec<Vec<Inode>> = runs
            .into_par_iter()
            .map(|run| load_run(reader, numbers.get(run).unwrap_or(&[])))
            .collect::<Result<_, _>>()?;
        for inode in loaded.into_iter().flatten() {
            self.seen.insert(inode.number, self.walk.inodes.len());
            self.walk.inodes.push(inode);
        }
        Ok(())
    }

    fn items(
        &mut self,
        children: Vec<(ImagePath, u32)>,
        next: &mut Vec<Open>,
    ) -> Result<Vec<Item>, Ext4Error> {
        self.names = self.names.saturating_add(children.len());
        if self.names > MAX_NAMES {
            return Err(Ext4Error::limit(format!("there are more than {MAX_NAMES} names")));
        }
        let mut items = Vec::with_capacity(children.len());
        for (path, number) in children {
            let Some(index) = self.seen.get(&number).copied() else {
                continue;
            };
            let kind = self.walk.inodes.get(index).map(|inode| inode.kind);
            let mut listing = None;
            if kind == Some(InodeKind::Dir) {
                if !self.entered.insert(number) {
                    let message = format!("{path} is a directory that stands elsewhere too");
                    return Err(Ext4Error::damaged(message));
                }
                let at = self.walk.listings.len();
                self.walk.listings.push(Vec::new());
                next.push(Open { path: path.clone(), inode: index, listing: at });
                listing = Some(at);
            }
            items.push(Item { path, inode: index, listing });
        }
        Ok(items)
    }
}

/// The sorted names in one directory, joined to its path, without ignored ones.
fn children(
    reader: &Reader,
    inode: &Inode,
    path: &ImagePath,
    ignore: &Ignore,
    budget: &Budget,
) -> Result<Vec<(ImagePath, u32)>, Ext4Error> {
    let mut names =
        names(reader, inode, budget).map_err(|error| error.within(format!("directory {path}")))?;
    names.sort_unstable_by(|a, b| a.bytes.cmp(&b.bytes));
    let mut children = Vec::with_capacity(names.len());
    let mut before: Option<Box<[u8]>> = None;
    for name in names {
        if before.as_deref() == Some(&*name.bytes) {
            let message = format!("directory {path} has a name twice");
            return Err(Ext4Error::damaged(message));
        }
        let child = path.join(&name.bytes).map_err(|error| {
            let message = format!("directory {path} holds a name that cannot be carried: {error}");
            Ext4Error::damaged(message)
        })?;
        if !ignore.matches(&child) {
            children.push((child, name.inode));
        }
        before = Some(name.bytes);
    }
    Ok(children)
}

fn names(reader: &Reader, inode: &Inode, budget: &Budget) -> Result<Vec<Name>, Ext4Error> {
    let inodes = reader.superblock.inodes;
    let mut names = Vec::new();
    if inode.has_inline_data() {
        // Four bytes with the parent, then entries; those that do not fit go on in the attribute.
        dir::parse(
            part(&inode.block_field, 4, BLOCK_FIELD_LEN.saturating_sub(4)),
            inodes,
            &mut names,
        )?;
        if inode.len > u64::try_from(BLOCK_FIELD_LEN).unwrap_or(u64::MAX) {
            dir::parse(&xattr::inline_rest(inode)?, inodes, &mut names)?;
        }
        return Ok(names);
    }
    let block_len = reader.block_len();
    let blocks = inode.len.checked_div(block_len).unwrap_or(0);
    budget.take_blocks(blocks)?;
    let mut next = 0;
    for extent in reader.extents_within(inode, budget)? {
        if extent.logical >= blocks {
            break;
        }
        if extent.logical != next || extent.unwritten {
            break;
        }
        next = extent.logical.saturating_add(extent.len).min(blocks);
        read_extent(
            reader,
            inode,
            &Extent { len: next.saturating_sub(extent.logical), ..extent },
            &mut names,
        )?;
    }
    if next < blocks || blocks.saturating_mul(block_len) != inode.len || blocks == 0 {
        return Err(Ext4Error::damaged("it has holes, or a length that is not one of blocks"));
    }
    Ok(names)
}

/// Adds the names in one run of blocks.
fn read_extent(
    reader: &Reader,
    inode: &Inode,
    extent: &Extent,
    names: &mut Vec<Name>,
) -> Result<(), Ext4Error> {
    let superblock = &reader.superblock;
    let seed = superblock.has_checksums().then(|| inode.checksum_seed(superblock));
    let block_len = reader.block_len();
    let mut at = extent.physical.saturating_mul(block_len);
    let end = at.saturating_add(extent.len.saturating_mul(block_len));
    let mut buffer = Vec::new();
    while at < end {
        let len = end.saturating_sub(at).min(DIR_CHUNK_LEN);
        buffer.resize(to_usize(len), 0);
        reader.volume.read(at, &mut buffer)?;
        for block in buffer.chunks_exact(to_usize(block_len)) {
            if let Some(seed) = seed {
                dir::check(block, seed, inode.is_indexed())?;
            }
            dir::parse(block, superblock.inodes, names)?;
        }
        if names.len() > MAX_NAMES {
            return Err(Ext4Error::limit(format!("it has more than {MAX_NAMES} names")));
        }
        at = at.saturating_add(len);
    }
    Ok(())
}

/// Cuts sorted inode numbers into runs that are read in one piece each: indexes into `numbers`.
fn runs(numbers: &[u32], per_group: u32) -> Vec<Range<usize>> {
    let group = |number: u32| number.saturating_sub(1).checked_div(per_group);
    let mut runs: Vec<Range<usize>> = Vec::new();
    let (mut first, mut last) = (0, 0);
    for (index, number) in numbers.iter().copied().enumerate() {
        let goes_on = number.saturating_sub(last) <= MAX_INODE_GAP
            && number.saturating_sub(first) < MAX_INODE_RUN
            && group(number) == group(first);
        match runs.last_mut() {
            Some(run) if goes_on => run.end = index.saturating_add(1),
            _ => {
                first = number;
                runs.push(index..index.saturating_add(1));
            }
        }
        last = number;
    }
    runs
}

fn load_run(reader: &Reader, numbers: &[u32]) -> Result<Vec<Inode>, Ext4Error> {
    let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
        return Ok(Vec::new());
    };
    let inode_len = to_usize(reader.superblock.inode_len);
    let count = to_usize(last.saturating_sub(*first)).saturating_add(1);
    let mut table = vec![0; count.saturating_mul(inode_len)];
    reader.read_table(*first, &mut table)?;
    let parse = |number: &u32| {
        let at = to_usize(number.saturating_sub(*first)).saturating_mul(inode_len);
        reader.parse_inode(*number, part(&table, at, inode_len))
    };
    numbers.iter().map(parse).collect()
}

/// What can be known of a name without reading content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The path.
    pub path: ImagePath,
    /// What stands there.
    pub kind: InodeKind,
    /// Where its content stands and what the inode says of it.
    pub state: FileState,
}

/// What identifies a state of an inode's content without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileState {
    /// Inode number.
    pub ino: u32,
    /// How often the number was given out anew.
    pub generation: u32,
    /// Length in bytes.
    pub len: u64,
    /// Last modification of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Digest of where its blocks stand; of the content itself where that stands in the inode.
    pub map: Digest,
    /// Whether some of its length takes no blocks.
    pub sparse: bool,
}

impl FileState {
    /// The state of `inode`, and the first block of its content.
    pub(crate) fn of(
        reader: &Reader,
        inode: &Inode,
        budget: &Budget,
    ) -> Result<(Self, u64), Ext4Error> {
        let mut hasher = Hasher::new();
        hasher.update(&inode.storage_flags().to_le_bytes());
        let (mut first, mut sparse) = (0, false);
        if inode.kind == InodeKind::File && !inode.has_inline_data() {
            let content = reader.content_within(inode, budget)?;
            for extent in content.extents() {
                for number in
                    [extent.logical, extent.physical, extent.len, u64::from(extent.unwritten)]
                {
                    hasher.update(&number.to_le_bytes());
                }
            }
            first = content.extents().first().map_or(0, |extent| extent.physical);
            sparse = content.is_sparse();
        } else {
            hasher.update(&inode.block_field).update(&inode.xattrs);
        }
        let state = Self {
            ino: inode.number,
            generation: inode.generation,
            len: inode.len,
            mtime: inode.mtime,
            ctime: inode.ctime,
            map: hasher.finish(),
            sparse,
        };
        Ok((state, first))
    }
}

impl Reader {
    /// Every path that `ignore` does not leave out, in path order, with what can be known of it
    /// without reading content.
    ///
    /// # Errors
    ///
    /// As [`Reader::inode`] and [`Reader::extents`]; `Limit` beyond 8 million names or a depth of
    /// 512.
    pub fn walk_metadata(&self, ignore: &Ignore) -> Result<Vec<Entry>, Ext4Error> {
        let budget = self.budget(u64::MAX);
        let walk = Walk::new(self, ignore, &budget)?;
        let items = walk.in_order();
        let entry = |item: &&Item| -> Result<Option<Entry>, Ext4Error> {
            let Some(inode) = walk.inode(item) else {
                return Ok(None);
            };
            let (state, _) =
                FileState::of(self, inode, &budget).map_err(|error| error.within(&item.path))?;
            Ok(Some(Entry { path: item.path.clone(), kind: inode.kind, state }))
        };
        let entries: Vec<Option<Entry>> = items.par_iter().map(entry).collect::<Result<_, _>>()?;
        Ok(entries.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_at_gaps_and_groups_and_hold_every_number_once() {
        assert!(runs(&[], 100).is_empty());
        let numbers = [1, 2, 30, 90, 100, 101, 150];
        assert_eq!(runs(&numbers, 100), [0..3, 3..5, 5..6, 6..7]);
        let many: Vec<u32> = (1..10_000).collect();
        let runs = runs(&many, 1 << 20);
        assert_eq!(runs.iter().map(Range::len).sum::<usize>(), many.len());
        assert!(runs.iter().all(|run| run.len() <= MAX_INODE_RUN as usize));
    }
}
