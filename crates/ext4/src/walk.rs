//! All names of a file system with their inodes.
//!
//! Level by level: the directories of one depth are read in parallel, then the inodes that they
//! name, in the order in which these stand in the inode table. So every part of the table is
//! read in long runs and nothing is read that no name leads to.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use rayon::prelude::*;
use vireo_model::{Digest, Ignore, ImagePath, Timestamp};

use crate::budget::Budget;
use crate::bytes::{part, to_usize};
use crate::dir::Found;

use crate::extent::Extent;
use crate::inode::{BLOCK_FIELD_LEN, Inode, InodeKind};
use crate::reader::Reader;
use crate::{Ext4Error, dir, xattr};

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

/// What most files' maps of blocks take as bytes: flags and one or two extents.
const USUAL_MAP_LEN: usize = 4 + 2 * 4 * 8;

/// What the root directory of a further file system of a tree has of its own, as `vireo-tree`
/// leaves it out of mounted ones: what fsck(8) puts lost files into, and the state of updates.
const MOUNT_OWN: [&[u8]; 2] = [b"lost+found", b".vireo"];

/// What is read of a file system, and under which paths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    pub(crate) ignore: &'a Ignore,
    /// Where the file system's root directory is in the tree.
    pub(crate) at: &'a ImagePath,
    /// Where further file systems of the tree are: what is below is hidden.
    pub(crate) mounts: &'a [ImagePath],
}

impl Scope<'_> {
    /// Whether `path`, which stands in the directory `dir`, is no part of what is read.
    fn leaves_out(&self, dir: &ImagePath, path: &ImagePath) -> bool {
        let is_own = !self.at.is_root() && dir == self.at && MOUNT_OWN.contains(&path.name());
        let is_hidden = dir != self.at && self.mounts.contains(dir);
        is_own || is_hidden || self.ignore.matches(path)
    }
}

/// A name and the number of its inode.
type Child = (ImagePath, u32);

/// What the walk found.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) root: Inode,
    /// The inodes, as they were read.
    runs: Vec<Vec<Inode>>,
    /// The names in path order, without the root.
    pub(crate) items: Vec<Item>,
}

/// One name.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) path: ImagePath,
    pub(crate) inode: Place,
    /// Index of its listing, for a directory.
    listing: Option<usize>,
}

/// Where an inode stands in a [`Walk`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    run: usize,
    at: usize,
}

impl Walk {
    /// Everything below the root that `scope` does not leave out.
    pub(crate) fn new(
        reader: &Reader,
        scope: &Scope<'_>,
        budget: &Budget,
    ) -> Result<Self, Ext4Error> {
        let root = reader.root()?;
        let mut state = State {
            entered: HashSet::from([root.number]),
            runs: vec![vec![root.clone()]],
            ..State::default()
        };
        state.listings.push(Vec::new());
        let mut level = vec![Open { path: scope.at.clone(), inode: Place::default(), listing: 0 }];
        let mut depth = 0_usize;
        while let Some(first) = level.first() {
            if depth > MAX_DEPTH {
                let message =
                    format!("{}: directories are nested deeper than {MAX_DEPTH}", first.path);
                return Err(Ext4Error::limit(message));
            }
            level = state.level(reader, scope, budget, level)?;
            depth = depth.saturating_add(1);
        }
        Ok(Self { root, runs: state.runs, items: in_order(state.listings) })
    }

    pub(crate) fn inode(&self, place: Place) -> Result<&Inode, Ext4Error> {
        inode(&self.runs, place)
    }
}

fn inode(runs: &[Vec<Inode>], place: Place) -> Result<&Inode, Ext4Error> {
    let inode = runs.get(place.run).and_then(|run| run.get(place.at));
    // Every place comes from the walk itself.
    inode.ok_or_else(|| Ext4Error::damaged("an inode was lost"))
}

/// The names of all listings in path order: what a directory holds comes right behind it.
fn in_order(mut listings: Vec<Vec<Item>>) -> Vec<Item> {
    let mut take = |index: usize| listings.get_mut(index).map(std::mem::take).unwrap_or_default();
    let mut items = Vec::new();
    let mut open = vec![take(0).into_iter()];
    while let Some(listing) = open.last_mut() {
        match listing.next() {
            None => drop(open.pop()),
            Some(item) => {
                open.extend(item.listing.map(|index| take(index).into_iter()));
                items.push(item);
            }
        }
    }
    items
}

/// A directory that is still to be read.
struct Open {
    path: ImagePath,
    inode: Place,
    listing: usize,
}

#[derive(Default)]
struct State {
    runs: Vec<Vec<Inode>>,
    listings: Vec<Vec<Item>>,
    /// Where inodes with several names stand, by number; of others nobody asks again.
    several: HashMap<u32, Place>,
    /// Directories that have a place; a second one would be a loop.
    entered: HashSet<u32>,
    names: usize,
}

impl State {
    /// Reads the directories of one level and gives those of the next.
    fn level(
        &mut self,
        reader: &Reader,
        scope: &Scope<'_>,
        budget: &Budget,
        level: Vec<Open>,
    ) -> Result<Vec<Open>, Ext4Error> {
        let found: Vec<Vec<Child>> = level
            .par_iter()
            .map(|open| children(reader, inode(&self.runs, open.inode)?, &open.path, scope, budget))
            .collect::<Result<_, _>>()?;
        self.names = found.iter().fold(self.names, |sum, list| sum.saturating_add(list.len()));
        if self.names > MAX_NAMES {
            return Err(Ext4Error::limit(format!("there are more than {MAX_NAMES} names")));
        }
        let mut places = self.load(reader, &found)?.into_iter();
        let mut next = Vec::new();
        for (open, children) in level.iter().zip(found) {
            let items = self.items(children, &mut places, &mut next)?;
            if let Some(listing) = self.listings.get_mut(open.listing) {
                *listing = items;
            }
        }
        Ok(next)
    }

    /// Reads the inodes of all children, but for those of several names that were read already.
    /// Gives their places in the order of the children.
    fn load(&mut self, reader: &Reader, found: &[Vec<Child>]) -> Result<Vec<Place>, Ext4Error> {
        let numbers = found.iter().flatten().map(|(_, number)| *number);
        let mut wanted: Vec<(u32, usize)> = numbers.zip(0..).collect();
        wanted.sort_unstable();
        let mut numbers: Vec<u32> = wanted.iter().map(|(number, _)| *number).collect();
        numbers.dedup();
        numbers.retain(|number| !self.several.contains_key(number));
        let base = self.runs.len();
        let loaded: Vec<Vec<Inode>> = runs(&numbers, reader.superblock.inodes_per_group)
            .into_par_iter()
            .map_init(Vec::new, |table, run| {
                load_run(reader, numbers.get(run).unwrap_or(&[]), table)
            })
            .collect::<Result<_, _>>()?;

        let mut places = vec![Place::default(); wanted.len()];
        let place = |run: usize, at| Place { run: base.saturating_add(run), at };
        let mut inodes = loaded.iter().enumerate().flat_map(|(run, inodes)| {
            inodes.iter().enumerate().map(move |(at, inode)| (place(run, at), inode))
        });
        let mut here: Option<(Place, &Inode)> = None;
        // Both are sorted, so one pass finds all.
        for (number, position) in wanted {
            let known = self.several.get(&number).copied();
            while known.is_none() && here.is_none_or(|(_, inode)| inode.number < number) {
                here = inodes.next();
                if here.is_none() {
                    break;
                }
            }
            if let (Some(to), Some(place)) = (places.get_mut(position), known.or(here.map(|h| h.0)))
            {
                *to = place;
            }
        }
        for (run, inodes) in loaded.iter().enumerate() {
            for (at, inode) in inodes.iter().enumerate() {
                if inode.links > 1 && inode.kind != InodeKind::Dir {
                    self.several.insert(inode.number, place(run, at));
                }
            }
        }
        self.runs.extend(loaded);
        Ok(places)
    }

    /// Turns one directory's children into items, and opens the directories among them.
    fn items(
        &mut self,
        children: Vec<Child>,
        places: &mut impl Iterator<Item = Place>,
        next: &mut Vec<Open>,
    ) -> Result<Vec<Item>, Ext4Error> {
        let mut items = Vec::with_capacity(children.len());
        for ((path, number), place) in children.into_iter().zip(places) {
            let mut listing = None;
            if inode(&self.runs, place)?.kind == InodeKind::Dir {
                if !self.entered.insert(number) {
                    let message = format!("{path} is a directory that stands elsewhere too");
                    return Err(Ext4Error::damaged(message));
                }
                let at = self.listings.len();
                self.listings.push(Vec::new());
                next.push(Open { path: path.clone(), inode: place, listing: at });
                listing = Some(at);
            }
            items.push(Item { path, inode: place, listing });
        }
        Ok(items)
    }
}

/// The children of one directory in the order of their names, without ignored ones.
fn children(
    reader: &Reader,
    inode: &Inode,
    path: &ImagePath,
    scope: &Scope<'_>,
    budget: &Budget,
) -> Result<Vec<Child>, Ext4Error> {
    let mut children = Vec::new();
    let mut add = |name: &[u8], number: u32| {
        let child = path.join(name).map_err(|error| {
            Ext4Error::damaged(format!("it holds a name that cannot be carried: {error}"))
        })?;
        if !scope.leaves_out(path, &child) {
            children.push((child, number));
        }
        if children.len() > MAX_NAMES {
            return Err(Ext4Error::limit(format!("it has more than {MAX_NAMES} names")));
        }
        Ok(())
    };
    names(reader, inode, budget, &mut add)
        .map_err(|error| error.within(format!("directory {path}")))?;
    // They differ in their last component only, so the order of bytes is that of names.
    children.sort_unstable_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
    let mut pairs = children.iter().zip(children.iter().skip(1));
    if let Some(((twice, _), _)) = pairs.find(|(a, b)| a.0 == b.0) {
        return Err(Ext4Error::damaged(format!("{twice} stands in its directory twice")));
    }
    Ok(children)
}

/// Calls `found` with every name in the directory `inode`.
pub(crate) fn names(
    reader: &Reader,
    inode: &Inode,
    budget: &Budget,
    found: &mut Found<'_>,
) -> Result<(), Ext4Error> {
    let inodes = reader.superblock.inodes;
    if inode.has_inline_data() {
        // Four bytes with the parent, then entries; those that do not fit go on in the attribute.
        let first = part(&inode.block_field, 4, BLOCK_FIELD_LEN.saturating_sub(4));
        dir::parse(first, inodes, found)?;
        if inode.len > u64::try_from(BLOCK_FIELD_LEN).unwrap_or(u64::MAX) {
            dir::parse(&xattr::inline_rest(inode)?, inodes, found)?;
        }
        return Ok(());
    }
    let block_len = reader.block_len();
    let blocks = inode.len.checked_div(block_len).unwrap_or(0);
    budget.take_blocks(blocks)?;
    let mut next = 0;
    for extent in reader.extents_within(inode, budget)? {
        if extent.logical >= blocks || extent.logical != next || extent.unwritten {
            break;
        }
        next = extent.logical.saturating_add(extent.len).min(blocks);
        let len = next.saturating_sub(extent.logical);
        read_extent(reader, inode, &Extent { len, ..extent }, found)?;
    }
    if next < blocks || blocks.saturating_mul(block_len) != inode.len || blocks == 0 {
        return Err(Ext4Error::damaged("it has holes, or a length that is not one of blocks"));
    }
    Ok(())
}

/// Adds the names in one run of blocks.
fn read_extent(
    reader: &Reader,
    inode: &Inode,
    extent: &Extent,
    found: &mut Found<'_>,
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
            dir::parse(block, superblock.inodes, found)?;
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

/// Reads and parses one run; `table` is what it is read into.
fn load_run(
    reader: &Reader,
    numbers: &[u32],
    table: &mut Vec<u8>,
) -> Result<Vec<Inode>, Ext4Error> {
    let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
        return Ok(Vec::new());
    };
    let inode_len = to_usize(reader.superblock.inode_len);
    let count = to_usize(last.saturating_sub(*first)).saturating_add(1);
    table.resize(count.saturating_mul(inode_len), 0);
    reader.read_table(*first, table)?;
    let parse = |number: &u32| {
        let at = to_usize(number.saturating_sub(*first)).saturating_mul(inode_len);
        reader.parse_inode(*number, part(table, at, inode_len))
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
        let mut map = Vec::with_capacity(USUAL_MAP_LEN);
        map.extend_from_slice(&inode.storage_flags().to_le_bytes());
        let (mut first, mut sparse) = (0, false);
        if inode.kind == InodeKind::File && !inode.has_inline_data() {
            let content = reader.content_within(inode, budget)?;
            for extent in content.extents() {
                let unwritten = u64::from(extent.unwritten);
                for number in [extent.logical, extent.physical, extent.len, unwritten] {
                    map.extend_from_slice(&number.to_le_bytes());
                }
            }
            first = content.extents().first().map_or(0, |extent| extent.physical);
            sparse = content.is_sparse();
        } else {
            map.extend_from_slice(&inode.block_field);
            map.extend_from_slice(&inode.xattrs);
        }
        let state = Self {
            ino: inode.number,
            generation: inode.generation,
            len: inode.len,
            mtime: inode.mtime,
            ctime: inode.ctime,
            map: Digest::of(&map),
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
        self.walk_scope(&Scope { ignore, at: &ImagePath::root(), mounts: &[] })
    }

    pub(crate) fn walk_scope(&self, scope: &Scope<'_>) -> Result<Vec<Entry>, Ext4Error> {
        let budget = self.budget(u64::MAX);
        let mut walk = Walk::new(self, scope, &budget)?;
        let items = std::mem::take(&mut walk.items);
        let entry = |Item { path, inode, .. }: Item| -> Result<Entry, Ext4Error> {
            let inode = walk.inode(inode)?;
            let (state, _) =
                FileState::of(self, inode, &budget).map_err(|error| error.within(&path))?;
            Ok(Entry { path, kind: inode.kind, state })
        };
        items.into_par_iter().map(entry).collect()
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
