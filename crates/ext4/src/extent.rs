//! Where the blocks of a file stand: extent trees, and the block maps of ext2 and ext3.
//!
//! Layout from the kernel's `Documentation/filesystems/ext4/ifork.rst`, rules from
//! `__ext4_ext_check` in `fs/ext4/extents.c`.

use crate::Ext4Error;
use crate::budget::Budget;
use crate::bytes::{le16, le32, part, split64, to_usize};
use crate::checksum::crc32c;
use crate::inode::{BLOCK_FIELD_LEN, Inode};
use crate::superblock::Superblock;
use crate::volume::Volume;

const MAGIC: u16 = 0xF30A;
/// Deepest tree that can be needed, and the deepest that the kernel takes.
const MAX_DEPTH: u16 = 5;
/// Length of the header and of every entry, in bytes.
const ENTRY_LEN: usize = 12;
/// Longer extents are that much shorter and unwritten.
const MAX_WRITTEN_LEN: u16 = 1 << 15;
/// Numbers of blocks within a file have 32 bits.
const LOGICAL_END: u64 = 1 << 32;
/// Blocks that a block map names in the inode itself.
const DIRECT: usize = 12;

/// A run of blocks of a file. What no extent covers is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block within the file.
    pub logical: u64,
    /// First block within the file system.
    pub physical: u64,
    /// How many blocks.
    pub len: u64,
    /// Reserved but never written: reads as zeros.
    pub unwritten: bool,
}

/// The extents of `inode`, in ascending order and without overlap.
pub(crate) fn map(
    volume: &Volume,
    superblock: &Superblock,
    inode: &Inode,
    budget: &Budget,
) -> Result<Vec<Extent>, Ext4Error> {
    let checksum_seed = superblock.has_checksums().then(|| inode.checksum_seed(superblock));
    let mut walk = Walk { volume, budget, checksum_seed, extents: Vec::new() };
    if inode.has_extents() {
        walk.node(&inode.block_field, None, 0..LOGICAL_END)?;
    } else {
        walk.block_map(&inode.block_field, inode.len)?;
    }
    Ok(walk.extents)
}

struct Walk<'a> {
    volume: &'a Volume,
    budget: &'a Budget,
    checksum_seed: Option<u32>,
    extents: Vec<Extent>,
}

impl Walk<'_> {
    /// Reads a node of an extent tree that covers the blocks `range` of the file. The depth must
    /// fall by one and the ranges must ascend, so every walk ends.
    fn node(
        &mut self,
        node: &[u8],
        depth: Option<u16>,
        range: std::ops::Range<u64>,
    ) -> Result<(), Ext4Error> {
        let found = le16(node, 6);
        let count = le16(node, 2);
        let room = node.len().saturating_sub(ENTRY_LEN).checked_div(ENTRY_LEN).unwrap_or(0);
        let is_fine = le16(node, 0) == MAGIC
            && count <= le16(node, 4)
            && to_usize(le16(node, 4)) <= room
            && depth.map_or(found <= MAX_DEPTH, |depth| depth == found)
            // Only the root, of an empty file, may be empty.
            && (count > 0 || depth.is_none());
        if !is_fine {
            return Err(Ext4Error::damaged("its extent tree has a node that is none"));
        }
        let entries = part(node, ENTRY_LEN, to_usize(count).saturating_mul(ENTRY_LEN));
        let mut entries = entries.chunks_exact(ENTRY_LEN).peekable();
        let mut next = range.start;
        while let Some(entry) = entries.next() {
            let logical = u64::from(le32(entry, 0));
            let end = entries.peek().map_or(range.end, |entry| u64::from(le32(entry, 0)));
            if logical < next || logical >= end || end > range.end {
                return Err(Ext4Error::damaged("its extent tree is out of order"));
            }
            match found.checked_sub(1) {
                None => next = self.leaf(entry, logical, end)?,
                Some(below) => {
                    self.child(entry, below, logical..end)?;
                    next = end;
                }
            }
        }
        Ok(())
    }

    fn leaf(&mut self, entry: &[u8], logical: u64, end: u64) -> Result<u64, Ext4Error> {
        let len = le16(entry, 4);
        let unwritten = len > MAX_WRITTEN_LEN;
        let len = u64::from(if unwritten { len.saturating_sub(MAX_WRITTEN_LEN) } else { len });
        let physical = split64(le32(entry, 8), u32::from(le16(entry, 6)));
        let next = logical.saturating_add(len);
        if len == 0 || next > end || !self.volume.has_blocks(physical, len) {
            let message = format!(
                "its extent of {len} blocks at {physical} overlaps another or lies outside the file system"
            );
            return Err(Ext4Error::damaged(message));
        }
        self.extents.push(Extent { logical, physical, len, unwritten });
        Ok(next)
    }

    fn child(
        &mut self,
        entry: &[u8],
        depth: u16,
        range: std::ops::Range<u64>,
    ) -> Result<(), Ext4Error> {
        let block = split64(le32(entry, 4), u32::from(le16(entry, 8)));
        let bytes = self.map_block(block)?;
        if let Some(seed) = self.checksum_seed {
            // Behind the last possible entry.
            let at = to_usize(le16(&bytes, 4)).saturating_add(1).saturating_mul(ENTRY_LEN);
            let covered = bytes.get(..at).unwrap_or(&bytes);
            if at.saturating_add(4) > bytes.len() || crc32c(seed, covered) != le32(&bytes, at) {
                let message = format!("its extent tree has a wrong checksum in block {block}");
                return Err(Ext4Error::damaged(message));
            }
        }
        self.node(&bytes, Some(depth), range)
    }

    fn map_block(&self, block: u64) -> Result<Vec<u8>, Ext4Error> {
        if !self.volume.has_blocks(block, 1) {
            let message = format!("its map has a part in block {block}, outside the file system");
            return Err(Ext4Error::damaged(message));
        }
        self.budget.take_blocks(1)?;
        self.volume.block(block)
    }

    /// Reads the map of ext2 and ext3: twelve blocks, then trees of one, two and three levels.
    /// Only as far as the file is long: behind that there may be anything.
    fn block_map(&mut self, field: &[u8; BLOCK_FIELD_LEN], len: u64) -> Result<(), Ext4Error> {
        let blocks = len.div_ceil(self.volume.block_len());
        let (direct, trees) = field.split_at(DIRECT.saturating_mul(4));
        let mut logical = 0;
        for pointer in direct.chunks_exact(4) {
            self.pointer(le32(pointer, 0), 0, &mut logical, blocks)?;
        }
        for (pointer, level) in trees.chunks_exact(4).zip(1..) {
            self.pointer(le32(pointer, 0), level, &mut logical, blocks)?;
        }
        if logical < blocks {
            return Err(Ext4Error::damaged("it is longer than its block map can be"));
        }
        Ok(())
    }

    /// What `pointer` leads to, `level` steps above the data; moves `logical` behind it.
    fn pointer(
        &mut self,
        pointer: u32,
        level: u32,
        logical: &mut u64,
        blocks: u64,
    ) -> Result<(), Ext4Error> {
        if *logical >= blocks {
            return Ok(());
        }
        let per_block = self.volume.block_len() >> 2;
        let block = u64::from(pointer);
        if block == 0 {
            *logical = logical.saturating_add(per_block.saturating_pow(level));
            return Ok(());
        }
        let Some(below) = level.checked_sub(1) else {
            self.add_block(*logical, block)?;
            *logical = logical.saturating_add(1);
            return Ok(());
        };
        let bytes = self.map_block(block)?;
        bytes
            .chunks_exact(4)
            .try_for_each(|pointer| self.pointer(le32(pointer, 0), below, logical, blocks))
    }

    /// Adds one block, to the last extent if it goes on there.
    fn add_block(&mut self, logical: u64, physical: u64) -> Result<(), Ext4Error> {
        if !self.volume.has_blocks(physical, 1) {
            let message = format!("its block {logical} at {physical} lies outside the file system");
            return Err(Ext4Error::damaged(message));
        }
        match self.extents.last_mut() {
            Some(last)
                if last.logical.saturating_add(last.len) == logical
                    && last.physical.saturating_add(last.len) == physical =>
            {
                last.len = last.len.saturating_add(1);
            }
            _ => self.extents.push(Extent { logical, physical, len: 1, unwritten: false }),
        }
        Ok(())
    }
}
