//! The superblock: what kind of file system it is, and whether it may be read at all.
//!
//! Offsets, names of features and rules from the kernel's `Documentation/filesystems/ext4`
//! (`super.rst`) and from what `ext4_fill_super` refuses.

use crate::bytes::{byte, copy, le16, le32, le64, split64};
use crate::checksum::crc32c;
use crate::{ErrorKind, Ext4Error};

/// Where the superblock begins, in bytes.
pub(crate) const OFFSET: u64 = 1024;
/// How long it is, in bytes.
pub(crate) const LEN: usize = 1024;

const MAGIC: u16 = 0xEF53;
const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;
const CHECKSUM_CRC32C: u8 = 1;

/// Largest power of two of a block in KiB: 64 KiB.
const MAX_LOG_BLOCK_LEN: u32 = 6;
/// Largest power of two of a cluster in KiB: 512 MiB, the most that mke2fs makes.
const MAX_LOG_CLUSTER_LEN: u32 = 19;
/// Fewest blocks of a group that mke2fs makes; fewer would mean more descriptors than data.
const MIN_BLOCKS_PER_GROUP: u64 = 256;
/// Most groups: 128 TiB in blocks of 4 KiB. Bounds the memory for descriptors to 24 MiB.
const MAX_GROUPS: u64 = 1 << 20;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;

pub(crate) const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_MMP: u32 = 0x100;
const INCOMPAT_EA_INODE: u32 = 0x400;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const INCOMPAT_LARGEDIR: u32 = 0x4000;

const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

/// `incompat` features that are read: filetype, needs_recovery, meta_bg, extent, 64bit, mmp,
/// flex_bg, ea_inode, metadata_csum_seed, large_dir, inline_data.
const INCOMPAT_READ: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000;

/// Names of the `incompat` features that are refused.
const INCOMPAT_REFUSED: &[(u32, &str)] = &[
    (0x1, "compression"),
    (0x8, "journal_dev"),
    (0x1000, "dirdata"),
    (0x1_0000, "encrypt"),
    (0x2_0000, "casefold"),
];

/// What the superblock says, checked as far as it can be alone.
#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    pub(crate) inodes: u32,
    pub(crate) blocks: u64,
    pub(crate) block_len: u64,
    /// What is allocated at a time: a block, or with bigalloc several.
    pub(crate) cluster_len: u64,
    pub(crate) first_data_block: u64,
    pub(crate) blocks_per_group: u64,
    pub(crate) inodes_per_group: u32,
    pub(crate) groups: u64,
    pub(crate) inode_len: u16,
    pub(crate) group_desc_len: u16,
    pub(crate) first_meta_bg: u64,
    pub(crate) backup_groups: [u32; 2],
    pub(crate) journal_inode: u32,
    pub(crate) mmp_block: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) hash_seed: [u8; 16],
    pub(crate) made: u64,
    pub(crate) mounted: u64,
    pub(crate) written: u64,
    pub(crate) checksum_seed: u32,
    log_cluster_len: u32,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
    state: u16,
}

impl Superblock {
    /// Reads the superblock from its bytes and checks that it describes a file system that can
    /// be read here.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Ext4Error> {
        let u32_at = |at| le32(bytes, at);
        let log_block_len = u32_at(0x18);
        if bytes.len() < LEN || le16(bytes, 0x38) != MAGIC || log_block_len > MAX_LOG_BLOCK_LEN {
            let message = "there is no ext2, ext3 or ext4 file system";
            return Err(Ext4Error::new(ErrorKind::NotExt4, message));
        }
        // Revision 0 is ext2 of before 1995: no features, inodes of 128 bytes.
        let is_dynamic = u32_at(0x4C) > 0;
        let if_dynamic = |value: u32| if is_dynamic { value } else { 0 };
        let incompat = if_dynamic(u32_at(0x60));
        let has_64bit = incompat & INCOMPAT_64BIT != 0;
        let blocks_high = if has_64bit { u32_at(0x150) } else { 0 };
        let time = |low, high| split64(u32_at(low), u32::from(byte(bytes, high)));
        let mut superblock = Self {
            inodes: u32_at(0x0),
            blocks: split64(u32_at(0x4), blocks_high),
            block_len: 1024 << log_block_len,
            cluster_len: 1024 << log_block_len,
            first_data_block: u64::from(u32_at(0x14)),
            blocks_per_group: u64::from(u32_at(0x20)),
            inodes_per_group: u32_at(0x28),
            groups: 0,
            inode_len: if is_dynamic { le16(bytes, 0x58) } else { 128 },
            group_desc_len: if has_64bit { le16(bytes, 0xFE) } else { 32 },
            first_meta_bg: u64::from(u32_at(0x104)),
            backup_groups: [u32_at(0x24C), u32_at(0x250)],
            journal_inode: u32_at(0xE0),
            mmp_block: le64(bytes, 0x168),
            uuid: copy(bytes, 0x68),
            hash_seed: copy(bytes, 0xEC),
            made: time(0x108, 0x276),
            mounted: time(0x2C, 0x275),
            written: time(0x30, 0x274),
            checksum_seed: 0,
            log_cluster_len: u32_at(0x1C),
            compat: if_dynamic(u32_at(0x5C)),
            incompat,
            ro_compat: if_dynamic(u32_at(0x64)),
            state: le16(bytes, 0x3A),
        };
        superblock.refuse_features()?;
        superblock.checksum_seed = if incompat & INCOMPAT_CSUM_SEED != 0 {
            u32_at(0x270)
        } else {
            crc32c(!0, &superblock.uuid)
        };
        superblock.check_checksum(bytes)?;
        superblock.check_geometry()?;
        Ok(superblock)
    }

    fn refuse_features(&self) -> Result<(), Ext4Error> {
        let odd = self.incompat & !INCOMPAT_READ;
        if odd == 0 {
            return Ok(());
        }
        let mut names: Vec<String> = INCOMPAT_REFUSED
            .iter()
            .filter(|(bit, _)| odd & bit != 0)
            .map(|(_, name)| (*name).to_owned())
            .collect();
        let named = INCOMPAT_REFUSED.iter().fold(0, |named, (bit, _)| named | bit);
        if odd & !named != 0 {
            names.push(format!("incompat {:#x}", odd & !named));
        }
        let names = names.join(", ");
        let message = format!("the file system uses the feature {names}, which is not supported");
        Err(Ext4Error::unsupported(message))
    }

    fn check_checksum(&self, bytes: &[u8]) -> Result<(), Ext4Error> {
        if !self.has_checksums() {
            return Ok(());
        }
        if byte(bytes, 0x175) != CHECKSUM_CRC32C {
            let message = "the file system uses an unknown kind of checksum";
            return Err(Ext4Error::unsupported(message));
        }
        let covered = bytes.get(..0x3FC).unwrap_or(bytes);
        if crc32c(!0, covered) != le32(bytes, 0x3FC) {
            return Err(Ext4Error::damaged("the superblock has a wrong checksum"));
        }
        Ok(())
    }

    /// Checks the numbers that everything else is computed from, and counts the groups.
    fn check_geometry(&mut self) -> Result<(), Ext4Error> {
        let bad = |what: String| Err(Ext4Error::damaged(format!("the superblock has {what}")));
        let bits = self.block_len.saturating_mul(8);
        let inode_len = u64::from(self.inode_len);
        if !inode_len.is_power_of_two() || inode_len < 128 || inode_len > self.block_len {
            return bad(format!("inodes of {inode_len} bytes"));
        }
        let desc_len = u64::from(self.group_desc_len);
        let desc_min = if self.has(INCOMPAT_64BIT) { 64 } else { 32 };
        if !desc_len.is_power_of_two() || desc_len < desc_min || desc_len > 1024 {
            return bad(format!("group descriptors of {desc_len} bytes"));
        }
        let per_group = self.blocks_per_group;
        // With bigalloc a bit of the bitmap stands for a cluster of many blocks.
        let bigalloc = self.ro_compat & RO_COMPAT_BIGALLOC != 0;
        if bigalloc {
            self.cluster_len = 1024_u64.checked_shl(self.log_cluster_len).unwrap_or(0);
        }
        if bigalloc
            && (self.cluster_len < self.block_len || self.log_cluster_len > MAX_LOG_CLUSTER_LEN)
        {
            return bad("a size of clusters that cannot be".to_owned());
        }
        if per_group < MIN_BLOCKS_PER_GROUP || (per_group > bits && !bigalloc) {
            return bad(format!("{per_group} blocks in a group"));
        }
        if self.first_data_block > 1 || self.first_data_block >= self.blocks {
            return bad(format!("its first block of data at {}", self.first_data_block));
        }
        let data = self.blocks.saturating_sub(self.first_data_block);
        self.groups = data.div_ceil(per_group);
        if self.groups > MAX_GROUPS {
            return Err(Ext4Error::limit(format!(
                "the file system has {} groups of blocks, the most is {MAX_GROUPS}",
                self.groups
            )));
        }
        let inodes = u64::from(self.inodes_per_group).saturating_mul(self.groups);
        if u64::from(self.inodes_per_group) > bits || u64::from(self.inodes) != inodes {
            return bad(format!("{} inodes in {} groups", self.inodes, self.groups));
        }
        if inodes < u64::from(crate::inode::ROOT) {
            return bad("no room for the root directory".to_owned());
        }
        Ok(())
    }

    /// Refuses a file system with recorded errors, or, where it has no journal, one that was not
    /// unmounted.
    pub(crate) fn check_state(&self) -> Result<(), Ext4Error> {
        let unclean = |why: &str| {
            let message = format!(
                "the file system {why}: shut its machine down cleanly, or run `e2fsck -p` on it"
            );
            Err(Ext4Error::new(ErrorKind::Unclean, message))
        };
        if self.state & STATE_ERRORS != 0 {
            return unclean("has recorded errors");
        }
        // With a journal the kernel leaves the bit set while it is mounted.
        if self.state & STATE_CLEAN == 0 && !self.needs_recovery() {
            return unclean("was not unmounted cleanly");
        }
        Ok(())
    }

    fn has(&self, incompat: u32) -> bool {
        self.incompat & incompat != 0
    }

    pub(crate) fn needs_recovery(&self) -> bool {
        self.has(INCOMPAT_RECOVER)
    }

    pub(crate) fn has_journal(&self) -> bool {
        self.compat & COMPAT_HAS_JOURNAL != 0
    }

    pub(crate) fn has_mmp(&self) -> bool {
        self.has(INCOMPAT_MMP)
    }

    pub(crate) fn has_meta_bg(&self) -> bool {
        self.has(INCOMPAT_META_BG)
    }

    pub(crate) fn has_large_dir(&self) -> bool {
        self.has(INCOMPAT_LARGEDIR)
    }

    pub(crate) fn has_ea_inode(&self) -> bool {
        self.has(INCOMPAT_EA_INODE)
    }

    /// Whether metadata carries CRC32C checksums (metadata_csum).
    pub(crate) fn has_checksums(&self) -> bool {
        self.ro_compat & RO_COMPAT_METADATA_CSUM != 0
    }

    /// Whether group descriptors alone carry checksums (uninit_bg).
    pub(crate) fn has_group_checksums(&self) -> bool {
        self.ro_compat & RO_COMPAT_GDT_CSUM != 0
    }

    /// Whether `group` begins with a copy of the superblock.
    pub(crate) fn is_backed_up_in(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat & COMPAT_SPARSE_SUPER2 != 0 {
            return self.backup_groups.iter().any(|backup| u64::from(*backup) == group);
        }
        if group == 1 || self.ro_compat & RO_COMPAT_SPARSE_SUPER == 0 {
            return true;
        }
        [3_u64, 5, 7].into_iter().any(|base| {
            (1..).map_while(|n| base.checked_pow(n)).take_while(|p| *p <= group).any(|p| p == group)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(change: impl Fn(&mut [u8])) -> Result<Superblock, Ext4Error> {
        let mut bytes = vec![0; LEN];
        let mut put = |at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(0x0, 2048);
        put(0x4, 8192);
        put(0x18, 2);
        put(0x20, 8192);
        put(0x28, 2048);
        put(0x38, 0x1_EF53);
        put(0x4C, 1);
        put(0x58, 256);
        change(&mut bytes);
        Superblock::parse(&bytes)
    }

    #[test]
    fn a_plain_superblock_is_read() {
        let superblock = sample(|_| ()).expect("fine");
        assert_eq!((superblock.block_len, superblock.groups), (4096, 1));
        superblock.check_state().expect("clean");
    }

    #[test]
    fn numbers_that_cannot_be_are_refused_before_anything_is_computed_from_them() {
        let put = |at: usize, value: u32| {
            move |bytes: &mut [u8]| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes())
        };
        for (at, value, says) in [
            (0x58, 0, "inodes of 0 bytes"),
            (0x58, 8192, "inodes of 8192 bytes"),
            (0x20, 0, "0 blocks in a group"),
            (0x20, u32::MAX, "blocks in a group"),
            (0x28, 0, "2048 inodes in 1 groups"),
            (0x28, u32::MAX, "2048 inodes in 1 groups"),
            (0x14, 9000, "its first block of data"),
            (0x4, 0, "its first block of data"),
        ] {
            let error = sample(put(at, value)).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Damaged);
            assert!(error.to_string().contains(says), "{error}");
        }
        assert_eq!(sample(put(0x38, 0)).expect_err("none").kind(), ErrorKind::NotExt4);
        assert_eq!(sample(put(0x18, 7)).expect_err("none").kind(), ErrorKind::NotExt4);
    }

    #[test]
    fn features_that_hide_the_tree_are_refused_by_name() {
        for (bit, name) in
            [(0x1_0000_u32, "encrypt"), (0x2_0000, "casefold"), (0x800_0000, "incompat 0x8000000")]
        {
            let change = |bytes: &mut [u8]| bytes[0x60..0x64].copy_from_slice(&bit.to_le_bytes());
            let error = sample(change).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn recorded_errors_and_an_unclean_end_are_refused() {
        for state in [0, 3] {
            let superblock = sample(|bytes| bytes[0x3A] = state).expect("readable");
            let error = superblock.check_state().expect_err("not clean");
            assert_eq!(error.kind(), ErrorKind::Unclean);
            assert!(error.to_string().contains("e2fsck -p"), "{error}");
        }
    }

    #[test]
    fn copies_of_the_superblock_are_where_the_format_puts_them() {
        let sparse = sample(|bytes| bytes[0x64] = 1).expect("fine");
        let groups: Vec<u64> = (0..60).filter(|group| sparse.is_backed_up_in(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49]);
        let all = sample(|_| ()).expect("fine");
        assert!((0..60).all(|group| all.is_backed_up_in(group)));
        let two = sample(|bytes| {
            bytes[0x5D] = 2;
            bytes[0x24C] = 1;
            bytes[0x250] = 41;
        });
        let two = two.expect("fine");
        assert_eq!((0..60).filter(|group| two.is_backed_up_in(*group)).count(), 3);
    }
}
