//! Group descriptors: where each group's part of the inode table stands.
//!
//! Layout from the kernel's `Documentation/filesystems/ext4/group_descr.rst` and
//! `descriptor_loc` in `fs/ext4/super.c`.

use crate::Ext4Error;
use crate::bytes::{le16, le32, part, split64, to_usize};
use crate::checksum::{crc16, crc32c};
use crate::superblock::Superblock;
use crate::volume::Volume;

/// Where the checksum stands in a descriptor.
const CHECKSUM_AT: usize = 0x1E;

/// In the flags: no inode of the group was ever used.
const INODE_UNINIT: u16 = 1;

/// The groups' inode tables.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Their first blocks.
    tables: Vec<u64>,
    /// How many inodes of each may have been used.
    used: Vec<u32>,
}

impl Groups {
    /// Reads and checks all descriptors.
    pub(crate) fn read(volume: &Volume, superblock: &Superblock) -> Result<Self, Ext4Error> {
        let len = to_usize(superblock.group_desc_len);
        let per_block = superblock.block_len.checked_div(u64::from(superblock.group_desc_len));
        let per_block = per_block.unwrap_or(1).max(1);
        let (mut tables, mut used) = (Vec::new(), Vec::new());
        let mut group = 0_u64;
        for index in 0..superblock.groups.div_ceil(per_block) {
            let block = volume.block(location(superblock, index, per_block))?;
            for descriptor in block.chunks_exact(len) {
                if group >= superblock.groups {
                    break;
                }
                let found = table(superblock, group, descriptor);
                tables.push(found.map_err(|error| error.within(format!("group {group}")))?);
                used.push(used_inodes(superblock, descriptor));
                group = group.saturating_add(1);
            }
        }
        Ok(Self { tables, used })
    }

    /// For each group how many inodes, from its first on, were ever used.
    pub(crate) fn used(&self) -> impl Iterator<Item = u32> {
        self.used.iter().copied()
    }

    /// First block of `group`'s inode table.
    pub(crate) fn table(&self, group: u32) -> Option<u64> {
        self.tables.get(to_usize(group)).copied()
    }
}

/// The block that holds the `index`-th block of descriptors.
fn location(superblock: &Superblock, index: u64, per_block: u64) -> u64 {
    if !superblock.has_meta_bg() || index < superblock.first_meta_bg {
        // Right behind the superblock.
        let superblock_block = u64::from(superblock.block_len == 1024);
        return superblock_block.saturating_add(1).saturating_add(index);
    }
    let group = index.saturating_mul(per_block);
    let mut skip = u64::from(superblock.is_backed_up_in(group));
    if superblock.block_len == 1024 && index == 0 && superblock.first_data_block == 0 {
        skip = skip.saturating_add(1);
    }
    let first = group.saturating_mul(superblock.blocks_per_group);
    superblock.first_data_block.saturating_add(first).saturating_add(skip)
}

fn table(superblock: &Superblock, group: u64, descriptor: &[u8]) -> Result<u64, Ext4Error> {
    check_checksum(superblock, group, descriptor)?;
    let high = if descriptor.len() >= 64 { le32(descriptor, 0x28) } else { 0 };
    let table = split64(le32(descriptor, 0x8), high);
    let bytes =
        u64::from(superblock.inodes_per_group).saturating_mul(u64::from(superblock.inode_len));
    let end = table.saturating_add(bytes.div_ceil(superblock.block_len));
    if table == 0 || end > superblock.blocks {
        let message = format!("its inode table, blocks {table} to {end}, is not in the image");
        return Err(Ext4Error::damaged(message));
    }
    Ok(table)
}

/// Without checksums of descriptors nobody counts, and all of a table may be in use.
fn used_inodes(superblock: &Superblock, descriptor: &[u8]) -> u32 {
    if !superblock.has_group_checksums() && !superblock.has_checksums() {
        return superblock.inodes_per_group;
    }
    if le16(descriptor, 0x12) & INODE_UNINIT != 0 {
        return 0;
    }
    let high = if descriptor.len() >= 64 { le16(descriptor, 0x32) } else { 0 };
    let unused = u32::from(le16(descriptor, 0x1C)) | u32::from(high) << 16;
    superblock.inodes_per_group.saturating_sub(unused)
}

fn check_checksum(superblock: &Superblock, group: u64, descriptor: &[u8]) -> Result<(), Ext4Error> {
    let number = u32::try_from(group).unwrap_or(u32::MAX).to_le_bytes();
    let before = descriptor.get(..CHECKSUM_AT).unwrap_or(descriptor);
    let after = part(descriptor, 0x20, descriptor.len().saturating_sub(0x20));
    let expected = if superblock.has_checksums() {
        let seed = crc32c(crc32c(superblock.checksum_seed, &number), before);
        // The lower half of a CRC32C over everything but itself, which counts as zero.
        let [low, high, ..] = crc32c(crc32c(seed, &[0, 0]), after).to_le_bytes();
        u16::from_le_bytes([low, high])
    } else if superblock.has_group_checksums() {
        crc16(crc16(crc16(crc16(!0, &superblock.uuid), &number), before), after)
    } else {
        return Ok(());
    };
    if expected == le16(descriptor, CHECKSUM_AT) {
        return Ok(());
    }
    Err(Ext4Error::damaged("its descriptor has a wrong checksum"))
}
