//! What a partition holds, by the bytes in it.
//!
//! Places and magic numbers as in util-linux's `libblkid/src/superblocks` and the formats' own
//! documentation. What holds other things (LVM, RAID, LUKS, ZFS) is looked for first: the file
//! system in a mirror begins at the mirror's first byte.

use std::io;

use vireo_ext4::Source;

use crate::bytes::{le32, le64};
use crate::superblock::Superblock;

/// Length of what is read at a partition's start, in bytes.
const HEAD_LEN: usize = 8 << 10;
/// Where btrfs keeps its superblock, in bytes.
const BTRFS_AT: u64 = 64 << 10;
/// Where a ZFS label keeps its ring of uberblocks, how long that is, and the distance from one to
/// the next, in bytes.
const ZFS_RING: (u64, usize, usize) = (128 << 10, 128 << 10, 1 << 10);
const ZFS_MAGIC: u64 = 0x00BA_B10C;
/// Linux RAID metadata.
const RAID_MAGIC: u32 = 0xA92B_4EFC;

/// What a partition holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// A file system that can be part of a tree.
    FileSystem(FileSystem),
    /// Something that is known by name alone, such as swap space.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// A file system in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileSystem {
    pub(crate) kind: FileSystemKind,
    /// As `blkid` prints it.
    pub(crate) uuid: String,
    pub(crate) label: Vec<u8>,
    /// Length in bytes, as far as the superblock says it.
    pub(crate) len: u64,
    /// ext's own superblock.
    pub(crate) superblock: Option<Superblock>,
    /// How many devices it is spread over.
    pub(crate) devices: u64,
    /// Its log was not played back.
    pub(crate) has_log: bool,
}

/// Kinds of file systems in images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileSystemKind {
    /// ext2, ext3 or ext4: read with and without a mount.
    Ext,
    /// XFS: read through a mount.
    Xfs,
    /// btrfs: read through a mount.
    Btrfs,
    /// FAT, as on EFI system partitions: read and written without a mount, in its normal form.
    Vfat,
}

impl FileSystemKind {
    /// `ext4`, `xfs`, `btrfs` or `vfat`: what the kernel's driver is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            // ext4's driver serves ext2 and ext3 as well.
            Self::Ext => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
        }
    }

    /// Whether it can hold the root of a system.
    fn can_be_root(self) -> bool {
        self != Self::Vfat
    }
}

impl Contents {
    /// The file system, if it can hold the root of a system.
    pub(crate) fn root(&self) -> Option<&FileSystem> {
        match self {
            Self::FileSystem(fs) if fs.kind.can_be_root() => Some(fs),
            _ => None,
        }
    }

    /// What messages call it; none for what is not known.
    pub(crate) fn name(&self) -> Option<&'static str> {
        match self {
            Self::FileSystem(fs) => Some(fs.kind.name()),
            Self::Other(name) => Some(name),
            Self::Unknown => None,
        }
    }

    /// Looks at the `len` bytes from `offset` on.
    pub(crate) fn of(disk: &dyn Source, offset: u64, len: u64) -> io::Result<Self> {
        let part = Part { disk, offset, len };
        let mut head = vec![0; HEAD_LEN];
        // A shorter one is filled up with zeros, in which nothing is found.
        let there = usize::try_from(len).unwrap_or(HEAD_LEN).min(HEAD_LEN);
        part.read(0, &mut head[..there])?;
        if let Some(name) = container(&part, &head)? {
            return Ok(Self::Other(name));
        }
        let mut btrfs = vec![0; 4096];
        if !part.read(BTRFS_AT, &mut btrfs)? {
            btrfs.fill(0);
        }
        let found = xfs(&head).or_else(|| ext(&head)).or_else(|| vfat(&head));
        Ok(match found.or_else(|| self::btrfs(&btrfs)) {
            Some(fs) => Self::FileSystem(fs),
            None => other(&head).map_or(Self::Unknown, Self::Other),
        })
    }
}

/// The bytes of one partition.
struct Part<'a> {
    disk: &'a dyn Source,
    offset: u64,
    len: u64,
}

impl Part<'_> {
    /// Fills `buffer` from `at` on; `false` if the partition or the image ends before.
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let end = at.checked_add(buffer.len() as u64);
        let Some(from) = self.offset.checked_add(at).filter(|_| end.is_some_and(|e| e <= self.len))
        else {
            return Ok(false);
        };
        match self.disk.read_exact_at(buffer, from) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn u32_at(&self, at: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    le64(bytes, at).swap_bytes()
}

fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// Up to the first NUL, without the spaces that FAT fills labels up with.
fn text(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes[..end].trim_ascii_end().to_vec()
}

fn uuid(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let hex = hex.concat();
    let cut = |from, to| hex.get(from..to).unwrap_or("");
    format!("{}-{}-{}-{}-{}", cut(0, 8), cut(8, 12), cut(12, 16), cut(16, 20), cut(20, 32))
}

/// What holds something else that is not looked into.
fn container(part: &Part<'_>, head: &[u8]) -> io::Result<Option<&'static str>> {
    if has(head, 0, b"LUKS\xba\xbe") {
        return Ok(Some("crypto_LUKS"));
    }
    let is_lvm = |sector: usize| {
        has(head, sector * 512, b"LABELONE") && has(head, sector * 512 + 24, b"LVM2 001")
    };
    if (0..4).any(is_lvm) {
        return Ok(Some("LVM2_member"));
    }
    // Versions 1.1 and 1.2 at the start, 1.0 and 0.90 at the end.
    let sectors = part.len / 512;
    let at_end = sectors.checked_sub(16).map(|sector| sector / 8 * 8 * 512);
    let old = (part.len / (64 << 10)).checked_sub(1).map(|block| block * (64 << 10));
    let is_raid = |at: Option<u64>| match at {
        Some(at) => Ok::<_, io::Error>(part.u32_at(at)? == RAID_MAGIC),
        None => Ok(false),
    };
    if le32(head, 0) == RAID_MAGIC
        || le32(head, 4096) == RAID_MAGIC
        || is_raid(at_end)?
        || is_raid(old)?
    {
        return Ok(Some("linux_raid_member"));
    }
    let (at, len, step) = ZFS_RING;
    let mut ring = vec![0; len];
    let is_zfs = part.read(at, &mut ring)?
        && ring.chunks(step).any(|block| {
            let magic = le64(block, 0);
            magic == ZFS_MAGIC || magic.swap_bytes() == ZFS_MAGIC
        });
    Ok(is_zfs.then_some("zfs_member"))
}

fn plain(kind: FileSystemKind, uuid: String, label: Vec<u8>, len: u64) -> FileSystem {
    FileSystem { kind, uuid, label, len, superblock: None, devices: 1, has_log: false }
}

fn ext(head: &[u8]) -> Option<FileSystem> {
    let bytes: &[u8; 1024] = head.get(1024..2048)?.try_into().ok()?;
    let superblock = Superblock::from_bytes(bytes)?;
    let (uuid, label) = (uuid(&bytes[0x68..0x78]), text(&bytes[0x78..0x88]));
    let fs = plain(FileSystemKind::Ext, uuid, label, superblock.len);
    Some(FileSystem { superblock: Some(superblock), ..fs })
}

/// All numbers of XFS are big-endian (`xfs_dsb` in the kernel's `xfs_format.h`).
fn xfs(head: &[u8]) -> Option<FileSystem> {
    if !has(head, 0, b"XFSB") {
        return None;
    }
    let block_len = u64::from(le32(head, 4).swap_bytes());
    let len = be64(head, 8).checked_mul(block_len)?;
    Some(plain(FileSystemKind::Xfs, uuid(&head[32..48]), text(&head[108..120]), len))
}

/// `struct btrfs_super_block` in the kernel's `uapi/linux/btrfs_tree.h`.
fn btrfs(bytes: &[u8]) -> Option<FileSystem> {
    if !has(bytes, 0x40, b"_BHRfS_M") {
        return None;
    }
    let (uuid, label) = (uuid(&bytes[0x20..0x30]), text(&bytes[0x12B..0x22B]));
    let fs = plain(FileSystemKind::Btrfs, uuid, label, le64(bytes, 0x70));
    Some(FileSystem { devices: le64(bytes, 0x88), has_log: le64(bytes, 0x60) != 0, ..fs })
}

fn vfat(head: &[u8]) -> Option<FileSystem> {
    let is_boot = has(head, 510, &[0x55, 0xAA]) && matches!(head.first(), Some(0xEB | 0xE9));
    let (serial, label) = if has(head, 0x52, b"FAT32   ") {
        (le32(head, 0x43), &head[0x47..0x52])
    } else if has(head, 0x36, b"FAT16   ") || has(head, 0x36, b"FAT12   ") {
        (le32(head, 0x27), &head[0x2B..0x36])
    } else {
        return None;
    };
    let uuid = format!("{:04X}-{:04X}", serial >> 16, serial & 0xFFFF);
    is_boot.then(|| plain(FileSystemKind::Vfat, uuid, text(label), 0))
}

fn other(head: &[u8]) -> Option<&'static str> {
    let magics: &[(usize, &[u8], &str)] = &[
        (4096 - 10, b"SWAPSPACE2", "swap"),
        (0, b"hsqs", "squashfs"),
        (1024, &[0xE2, 0xE1, 0xF5, 0xE0], "erofs"),
        (1024, &[0x10, 0x20, 0xF5, 0xF2], "f2fs"),
        (3, b"NTFS    ", "ntfs"),
        (3, b"EXFAT   ", "exfat"),
    ];
    magics.iter().find(|(at, magic, _)| has(head, *at, magic)).map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(parts: &[(usize, &[u8])]) -> Contents {
        let mut disk = vec![0; 1 << 20];
        for (at, bytes) in parts {
            disk[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        // Behind something else, so that offsets count.
        let mut whole = vec![0xFF; 4096];
        whole.extend_from_slice(&disk);
        Contents::of(&whole, 4096, 1 << 20).expect("readable")
    }

    #[test]
    fn what_holds_other_things_is_named() {
        let raid = RAID_MAGIC.to_le_bytes();
        let zfs = ZFS_MAGIC.to_le_bytes();
        for (parts, name) in [
            (vec![(0, b"LUKS\xba\xbe".as_slice())], "crypto_LUKS"),
            (vec![(512, b"LABELONE".as_slice()), (536, b"LVM2 001")], "LVM2_member"),
            (vec![(4096, raid.as_slice()), (1024 + 0x38, &[0x53, 0xEF])], "linux_raid_member"),
            (vec![((1 << 20) - 8192, raid.as_slice())], "linux_raid_member"),
            (vec![((1 << 20) - 65536, raid.as_slice())], "linux_raid_member"),
            (vec![((128 << 10) + 3072, zfs.as_slice())], "zfs_member"),
            (vec![(4086, b"SWAPSPACE2".as_slice())], "swap"),
            (vec![(0, b"hsqs".as_slice())], "squashfs"),
        ] {
            assert_eq!(probe(&parts), Contents::Other(name));
        }
        assert_eq!(probe(&[]), Contents::Unknown);
    }

    #[test]
    fn uuids_and_labels_are_those_that_blkid_prints() {
        let boot: &[u8] = &[0xEB, 0x58, 0x90];
        let fat = [
            (0, boot),
            (510, &[0x55, 0xAA]),
            (0x43, &[0x34, 0x12, 0xCD, 0xAB]),
            (0x47, b"EFI SYSTEM "),
            (0x52, b"FAT32   "),
        ];
        let Contents::FileSystem(found) = probe(&fat) else { panic!("a file system") };
        assert_eq!(
            (found.uuid.as_str(), found.label.as_slice()),
            ("ABCD-1234", &b"EFI SYSTEM"[..])
        );
        assert_eq!(uuid(&[0xAB; 16]), "abababab-abab-abab-abab-abababababab");
    }

    #[test]
    fn a_short_partition_holds_nothing() {
        let disk = vec![0xFF; 600];
        assert_eq!(Contents::of(&disk, 0, 600).expect("readable"), Contents::Unknown);
        assert_eq!(Contents::of(&disk, 512, 4096).expect("readable"), Contents::Unknown);
    }
}
