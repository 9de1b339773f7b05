//! What is in a FAT file system: paths, and where the contents of files lie.
//!
//! Layout as in Microsoft's *FAT32 File System Specification* 1.03, which the UEFI specification (13.3) refers to.
//! No number in it is believed: work and memory are bounded by the limits here and by the partition's length.
//!
//! # Not here
//!
//! Attributes and times, which belong to no version. Writing ([`write`]).

mod copy;
mod names;
#[cfg(test)]
mod tests;
mod tree;
mod write;

use std::io;

use vireo_ext4::Source;

pub(crate) use copy::{MAX_COPY_LEN, copy_to};
use names::entries;
pub(crate) use tree::{Content, Item};
pub(crate) use write::{change_fat, refuse_unholdable};

use crate::bytes::{le16, le32};

/// Bytes of a directory entry.
const ENTRY_LEN: usize = 32;
/// Longest directory, in bytes: the specification's own limit of 65,536 entries.
const MAX_DIR_LEN: usize = 65_536 * ENTRY_LEN;
/// Longest cluster, in bytes: the specification's is 32 KiB, and some tools make them twice as long.
const MAX_CLUSTER_LEN: u64 = 64 << 10;

/// Fewest clusters of FAT16, and of FAT32.
const FAT16_FROM: u64 = 4085;
const FAT32_FROM: u64 = 65_525;

/// Why it cannot be read: what is wrong with it, or the cause.
#[derive(Debug)]
pub(crate) enum FatError {
    Damaged(&'static str),
    Io(io::Error),
}

impl From<io::Error> for FatError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Where a directory lies.
#[derive(Clone, Debug)]
enum Place {
    /// At a fixed place, the root of FAT12 and FAT16: first byte and length in bytes.
    Fixed(u64, usize),
    /// In the chain that begins with this cluster.
    Chain(u32),
}

/// Bits of an entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Bits12,
    Bits16,
    Bits32,
}

/// A FAT file system.
#[derive(Debug)]
pub(crate) struct Fat<S> {
    disk: S,
    /// First byte of the partition, of the table, and of the first cluster behind the partition's first byte.
    offset: u64,
    table: u64,
    data: u64,
    /// Length of the partition in bytes.
    len: u64,
    cluster_len: u64,
    clusters: u64,
    width: Width,
    root: Place,
}

impl<S: Source> Fat<S> {
    /// The file system in the `len` bytes from `offset` on.
    pub(crate) fn open(disk: S, offset: u64, len: u64) -> Result<Self, FatError> {
        let mut head = [0; 512];
        disk.read_exact_at(&mut head, offset)?;
        let u16_at = |at: usize| u64::from(le16(&head, at));
        let u32_at = |at: usize| u64::from(le32(&head, at));
        let first_of = |one: u64, other: u64| if one == 0 { other } else { one };

        let (sector, per_cluster) = (u16_at(11), u64::from(head[13]));
        let cluster_len = sector * per_cluster;
        let is_plain = [512, 1024, 2048, 4096].contains(&sector)
            && per_cluster.is_power_of_two()
            && cluster_len <= MAX_CLUSTER_LEN;
        let (reserved, root_entries) = (u16_at(14), u16_at(17));
        let table_len = first_of(u16_at(22), u32_at(36));
        let sectors = first_of(u16_at(19), u32_at(32));
        if !is_plain || reserved == 0 || head[16] == 0 || table_len == 0 {
            return Err(FatError::Damaged("its first sector makes no sense"));
        }
        let root_at = (reserved + u64::from(head[16]) * table_len) * sector;
        let root_len = root_entries * ENTRY_LEN as u64;
        let data = root_at + root_len.div_ceil(sector) * sector;
        let end = sectors * sector;
        if end > len {
            return Err(FatError::Damaged("it is longer than its partition"));
        }
        let clusters = end.saturating_sub(data) / cluster_len;
        // By the specification the number of clusters alone tells. Linux, dosfstools and EDK2 go by the field that
        // FAT32 has not, and tools make a FAT32 of any size.
        let (width, root) = if u16_at(22) == 0 {
            let first = u32_at(44);
            (Width::Bits32, Place::Chain(u32::try_from(first).unwrap_or(0)))
        } else {
            let width = if clusters >= FAT16_FROM { Width::Bits16 } else { Width::Bits12 };
            (width, Place::Fixed(offset + root_at, usize::try_from(root_len).unwrap_or(0)))
        };
        let table = offset + reserved * sector;
        Ok(Self { disk, offset, table, data, len, cluster_len, clusters, width, root })
    }

    /// Whether it has as many clusters as the specification says of its kind.
    fn is_regular(&self) -> bool {
        (self.width == Width::Bits32) == (self.clusters >= FAT32_FROM)
    }

    /// First byte of a cluster; the first has number 2.
    fn place_of(&self, cluster: u32) -> Result<u64, FatError> {
        let index = u64::from(cluster).checked_sub(2).filter(|index| *index < self.clusters);
        let index = index.ok_or(FatError::Damaged("a chain of clusters leads out of it"))?;
        Ok(self.offset + self.data + index * self.cluster_len)
    }

    /// What the table says follows `cluster`; none at the end of a chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>, FatError> {
        let mut bytes = [0; 4];
        let (at, len) = match self.width {
            Width::Bits12 => (u64::from(cluster) * 3 / 2, 2),
            Width::Bits16 => (u64::from(cluster) * 2, 2),
            Width::Bits32 => (u64::from(cluster) * 4, 4),
        };
        self.disk.read_exact_at(&mut bytes[..len], self.table + at)?;
        let raw = u32::from_le_bytes(bytes);
        let (next, end) = match self.width {
            Width::Bits12 => ((raw >> (cluster % 2 * 4)) & 0xFFF, 0xFF8),
            Width::Bits16 => (raw, 0xFFF8),
            // The upper four bits are reserved.
            Width::Bits32 => (raw & 0x0FFF_FFFF, 0x0FFF_FFF8),
        };
        Ok((next < end).then_some(next))
    }

    /// Hands the places of the chain from `first` on to `take`, cluster by cluster, until that has enough or the
    /// chain ends.
    fn walk(
        &self,
        first: u32,
        mut take: impl FnMut(u64) -> Result<bool, FatError>,
    ) -> Result<(), FatError> {
        let mut cluster = first;
        for _ in 0..self.clusters {
            if !take(self.place_of(cluster)?)? {
                return Ok(());
            }
            match self.next(cluster)? {
                Some(next) => cluster = next,
                None => return Ok(()),
            }
        }
        Err(FatError::Damaged("a chain of clusters has no end"))
    }

    /// The bytes of a directory.
    fn dir(&self, place: &Place) -> Result<Vec<u8>, FatError> {
        let cluster_len = usize::try_from(self.cluster_len).unwrap_or(0);
        match *place {
            Place::Fixed(at, len) => {
                let mut bytes = vec![0; len];
                self.disk.read_exact_at(&mut bytes, at)?;
                Ok(bytes)
            }
            Place::Chain(first) => {
                let mut bytes = Vec::new();
                self.walk(first, |at| {
                    let len = bytes.len();
                    if len + cluster_len > MAX_DIR_LEN {
                        return Err(FatError::Damaged("a directory is too long"));
                    }
                    bytes.resize(len + cluster_len, 0);
                    self.disk.read_exact_at(&mut bytes[len..], at)?;
                    Ok(true)
                })?;
                Ok(bytes)
            }
        }
    }
}
