//! One inode.
//!
//! Layout from the kernel's `Documentation/filesystems/ext4/inodes.rst`; what is believed of it,
//! and when, from `__ext4_iget` in `fs/ext4/inode.c`.

use vireo_model::{DeviceKind, Timestamp};

use crate::Ext4Error;
use crate::bytes::{copy, le16, le32, part, split32, split64, to_usize};
use crate::checksum::crc32c;
use crate::superblock::Superblock;

/// The root directory.
pub(crate) const ROOT: u32 = 2;

/// Length of the part that every inode has, in bytes.
const OLD_LEN: usize = 128;
/// Length of `i_block`: the map of blocks, or data that is small enough.
pub(crate) const BLOCK_FIELD_LEN: usize = 60;
/// First bytes of attributes kept in the inode itself.
const XATTR_MAGIC: u32 = 0xEA02_0000;

const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_INDEXED: u32 = 0x1000;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_EA_INODE: u32 = 0x20_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;

/// What an inode is, from its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InodeKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A device node.
    Device(DeviceKind),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// An inode as the file system keeps it.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its number.
    pub number: u32,
    /// How often the number was given out anew.
    pub generation: u32,
    /// What it is.
    pub kind: InodeKind,
    /// Permission bits with set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// How many names it has.
    pub links: u16,
    /// Length in bytes.
    pub len: u64,
    /// Last modification of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    pub(crate) flags: u32,
    /// Blocks that it takes, in the unit that `flags` says.
    pub(crate) blocks: u64,
    /// The block with its attributes; 0 for none.
    pub(crate) xattr_block: u64,
    /// `i_block`.
    pub(crate) block_field: [u8; BLOCK_FIELD_LEN],
    /// Attributes in the inode itself, without their magic number; empty if there are none.
    pub(crate) xattrs: Box<[u8]>,
}

impl Inode {
    /// Reads inode `number` from its bytes in the inode table.
    pub(crate) fn parse(
        superblock: &Superblock,
        number: u32,
        raw: &[u8],
    ) -> Result<Self, Ext4Error> {
        let extra_len = extra_len(raw)?;
        check_checksum(superblock, number, raw, extra_len)?;
        let has = |end: usize| OLD_LEN.saturating_add(extra_len) >= end;
        let extra = |at: usize| if has(at.saturating_add(4)) { le32(raw, at) } else { 0 };
        let mode = u32::from(le16(raw, 0x0));
        let links = le16(raw, 0x1A);
        if links == 0 {
            return Err(Ext4Error::damaged("it is not in use, yet a name leads to it"));
        }
        let kind = kind(mode)?;
        let is_long = kind == InodeKind::File || superblock.has_large_dir();
        let len_high = if is_long { le32(raw, 0x6C) } else { 0 };
        let flags = le32(raw, 0x20);
        if flags & FLAG_ENCRYPTED != 0 {
            return Err(Ext4Error::unsupported("it is encrypted, which is not supported"));
        }
        let xattrs_at = OLD_LEN.saturating_add(extra_len);
        let xattrs = match raw.get(xattrs_at..) {
            Some(area) if extra_len > 0 && le32(area, 0) == XATTR_MAGIC => {
                area.get(4..).unwrap_or(&[]).into()
            }
            _ => Box::default(),
        };
        let inode = Self {
            number,
            generation: le32(raw, 0x64),
            kind,
            mode: mode & 0o7777,
            uid: split32(le16(raw, 0x2), le16(raw, 0x78)),
            gid: split32(le16(raw, 0x18), le16(raw, 0x7A)),
            links,
            len: split64(le32(raw, 0x4), len_high),
            mtime: time(le32(raw, 0x10), extra(0x88))?,
            ctime: time(le32(raw, 0xC), extra(0x84))?,
            flags,
            blocks: split64(le32(raw, 0x1C), u32::from(le16(raw, 0x74))),
            xattr_block: split64(le32(raw, 0x68), u32::from(le16(raw, 0x76))),
            block_field: copy(raw, 0x28),
            xattrs,
        };
        if i64::try_from(inode.len).is_err() {
            return Err(Ext4Error::damaged(format!("its length is {} bytes", inode.len)));
        }
        Ok(inode)
    }

    pub(crate) fn has_extents(&self) -> bool {
        self.flags & FLAG_EXTENTS != 0
    }

    pub(crate) fn has_inline_data(&self) -> bool {
        self.flags & FLAG_INLINE_DATA != 0
    }

    pub(crate) fn is_indexed(&self) -> bool {
        self.flags & FLAG_INDEXED != 0
    }

    /// Whether it holds an attribute's value for others.
    pub(crate) fn is_ea_inode(&self) -> bool {
        self.flags & FLAG_EA_INODE != 0
    }

    /// The flags that say how its content is stored.
    pub(crate) fn storage_flags(&self) -> u32 {
        self.flags & (FLAG_EXTENTS | FLAG_INLINE_DATA)
    }

    /// Whether it is a symbolic link whose target stands in the inode itself: then it has no
    /// blocks but, perhaps, that of its attributes.
    pub(crate) fn is_fast_symlink(&self, xattr_sectors: u64) -> bool {
        let for_xattrs = if self.xattr_block > 0 { xattr_sectors } else { 0 };
        self.kind == InodeKind::Symlink
            && !self.has_inline_data()
            && !self.is_ea_inode()
            && self.blocks == for_xattrs
    }

    /// Major and minor number of a device.
    pub(crate) fn device_numbers(&self) -> (u32, u32) {
        // 8 bits each, as before 2.6; else 12 and 20 bits in the next word (`new_decode_dev`).
        let short = le32(&self.block_field, 0);
        if short != 0 {
            return (short >> 8 & 0xFF, short & 0xFF);
        }
        let long = le32(&self.block_field, 4);
        ((long & 0xF_FF00) >> 8, (long & 0xFF) | (long >> 12 & 0xF_FF00))
    }

    /// What the checksums of its blocks start from.
    pub(crate) fn checksum_seed(&self, superblock: &Superblock) -> u32 {
        checksum_seed(superblock, self.number, self.generation)
    }
}

fn kind(mode: u32) -> Result<InodeKind, Ext4Error> {
    Ok(match mode >> 12 {
        0o1 => InodeKind::Fifo,
        0o2 => InodeKind::Device(DeviceKind::Char),
        0o4 => InodeKind::Dir,
        0o6 => InodeKind::Device(DeviceKind::Block),
        0o10 => InodeKind::File,
        0o12 => InodeKind::Symlink,
        0o14 => InodeKind::Socket,
        _ => return Err(Ext4Error::damaged(format!("its mode is {mode:#o}"))),
    })
}

/// How many bytes of the fields behind the first 128 are in use.
fn extra_len(raw: &[u8]) -> Result<usize, Ext4Error> {
    if raw.len() <= OLD_LEN {
        return Ok(0);
    }
    let len = to_usize(le16(raw, 0x80));
    if !len.is_multiple_of(4) || OLD_LEN.saturating_add(len) > raw.len() {
        return Err(Ext4Error::damaged(format!("it has {len} bytes of further fields")));
    }
    Ok(len)
}

/// 32 bits of signed seconds; where there are further fields, two more bits of seconds and 30
/// bits of nanoseconds.
fn time(secs: u32, extra: u32) -> Result<Timestamp, Ext4Error> {
    let nanos = extra >> 2;
    if nanos >= 1_000_000_000 {
        return Err(Ext4Error::damaged(format!("a time has {nanos} nanoseconds")));
    }
    let epoch = i64::from(extra & 3) << 32;
    Ok(Timestamp { secs: i64::from(secs.cast_signed()).saturating_add(epoch), nanos })
}

fn checksum_seed(superblock: &Superblock, number: u32, generation: u32) -> u32 {
    let seed = crc32c(superblock.checksum_seed, &number.to_le_bytes());
    crc32c(seed, &generation.to_le_bytes())
}

/// The checksum is over the whole inode, itself counted as zero. Its lower half always stands in
/// the first 128 bytes, its upper half only where there are fields enough.
fn check_checksum(
    superblock: &Superblock,
    number: u32,
    raw: &[u8],
    extra_len: usize,
) -> Result<(), Ext4Error> {
    const LOW_AT: usize = 0x7C;
    const HIGH_AT: usize = 0x82;
    if !superblock.has_checksums() {
        return Ok(());
    }
    let mut crc = checksum_seed(superblock, number, le32(raw, 0x64));
    crc = crc32c(crc, part(raw, 0, LOW_AT));
    crc = crc32c(crc, &[0, 0]);
    let low = u32::from(le16(raw, LOW_AT));
    let matches = if extra_len >= 4 {
        crc = crc32c(crc, part(raw, 0x7E, 4));
        crc = crc32c(crc, &[0, 0]);
        crc = crc32c(crc, raw.get(0x84..).unwrap_or(&[]));
        crc == split32(le16(raw, LOW_AT), le16(raw, HIGH_AT))
    } else {
        crc = crc32c(crc, raw.get(0x7E..).unwrap_or(&[]));
        crc & 0xFFFF == low
    };
    if matches { Ok(()) } else { Err(Ext4Error::damaged("it has a wrong checksum")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_reach_from_1901_to_2446() {
        let at = |secs, extra| time(secs, extra).expect("a time");
        assert_eq!(at(0, 0), Timestamp::default());
        assert_eq!(at(u32::MAX, 0), Timestamp { secs: -1, nanos: 0 });
        assert_eq!(at(0x8000_0000, 0).secs, -0x8000_0000);
        // The table in Documentation/filesystems/ext4/inodes.rst: epoch bits 0b01, seconds
        // 0x8000_0000 is 2038-01-19; the last second is 0x3_7fff_ffff, 2446-05-10.
        assert_eq!(at(0x8000_0000, 1).secs, 0x8000_0000);
        assert_eq!(
            at(0x7FFF_FFFF, 999_999_999 << 2 | 3),
            Timestamp { secs: 0x3_7FFF_FFFF, nanos: 999_999_999 }
        );
        assert!(time(0, 1_000_000_000 << 2).is_err());
    }

    #[test]
    fn both_forms_of_device_numbers_are_read() {
        let numbers = |field: [u32; 2]| {
            let mut raw = [0; 128];
            raw[..2].copy_from_slice(&0o20666_u16.to_le_bytes());
            raw[0x1A] = 1;
            raw[0x28..0x2C].copy_from_slice(&field[0].to_le_bytes());
            raw[0x2C..0x30].copy_from_slice(&field[1].to_le_bytes());
            let mut superblock = vec![0; crate::superblock::LEN];
            superblock[0x38..0x3A].copy_from_slice(&0xEF53_u16.to_le_bytes());
            superblock[0x0] = 16;
            superblock[0x5] = 2;
            superblock[0x21] = 2;
            superblock[0x28] = 16;
            superblock[0x14] = 0;
            let superblock = Superblock::parse(&superblock).expect("revision 0");
            Inode::parse(&superblock, 12, &raw).expect("an inode").device_numbers()
        };
        assert_eq!(numbers([0x0103, 0]), (1, 3));
        // makedev(511, 1_048_575) in the kernel's long form.
        assert_eq!(numbers([0, 0xFFF1_FFFF]), (0x1FF, 0xF_FFFF));
    }
}
