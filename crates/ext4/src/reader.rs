//! A file system, open for reading.

use vireo_model::Timestamp;

use crate::budget::Budget;
use crate::bytes::{le32, part, to_usize};
use crate::content::Content;
use crate::extent::{self, Extent};
use crate::group::Groups;
use crate::inode::{BLOCK_FIELD_LEN, Inode, InodeKind, ROOT};
use crate::source::Source;
use crate::superblock::{self, Superblock};
use crate::volume::Volume;
use crate::xattr;
use crate::{ErrorKind, Ext4Error, journal};

/// What a multiple mount protection block says when nobody has the file system mounted.
const MMP_CLEAN: u32 = 0xFF4D_4D50;
/// First bytes of such a block.
const MMP_MAGIC: u32 = 0x004D_4D50;

/// What is done with a journal that was not played back: the machine crashed, or its image was
/// copied while it ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unfinished {
    /// The file system is refused.
    #[default]
    Refuse,
    /// It is read as if the journal had been played back; nothing is written.
    Replay,
}

/// A file system in an image, open for reading. Nothing is ever written.
#[derive(Debug)]
pub struct Reader {
    pub(crate) volume: Volume,
    pub(crate) superblock: Superblock,
    pub(crate) groups: Groups,
    replayed: bool,
}

/// What tells one file system from another, and its states apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its UUID; copies have the same.
    pub uuid: [u8; 16],
    /// What its hashed directories are salted with; as random as the UUID.
    pub hash_seed: [u8; 16],
    /// When it was made.
    pub made: Timestamp,
    /// When it was mounted last.
    pub mounted: Timestamp,
    /// When its superblock was written last: when it was unmounted, if it was.
    pub written: Timestamp,
    /// Whether a journal had to be played back to read it.
    pub replayed: bool,
}

impl Reader {
    /// Opens the file system that begins at the first byte of `source`.
    ///
    /// # Errors
    ///
    /// `NotExt4`; `Unsupported` with the feature's name; `Unclean` for one that is or was in use;
    /// `Damaged`; `Limit`; `Io`.
    pub fn open(source: impl Source + 'static, unfinished: Unfinished) -> Result<Self, Ext4Error> {
        let mut bytes = vec![0; superblock::LEN];
        source.read_exact_at(&mut bytes, superblock::OFFSET).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                let message = "there is no ext2, ext3 or ext4 file system: it is too short";
                return Ext4Error::new(ErrorKind::NotExt4, message);
            }
            Ext4Error::io("cannot read the superblock", error)
        })?;
        let superblock = Superblock::parse(&bytes)?;
        superblock.check_state()?;
        let volume = Volume::new(Box::new(source), superblock.block_len, superblock.blocks)?;
        let groups = Groups::read(&volume, &superblock)?;
        let mut reader = Self { volume, superblock, groups, replayed: false };
        if reader.superblock.needs_recovery() {
            reader.recover(unfinished)?;
        }
        reader.refuse_mounted_elsewhere()?;
        Ok(reader)
    }

    /// Lays what the journal would write over the file system, then reads again what everything
    /// else rests on.
    fn recover(&mut self, unfinished: Unfinished) -> Result<(), Ext4Error> {
        if unfinished == Unfinished::Refuse {
            let message = "the file system has an unfinished journal: its machine is running or was \
                           not shut down cleanly; shut it down, or run `e2fsck -p` on it";
            return Err(Ext4Error::new(ErrorKind::Unclean, message));
        }
        if !self.superblock.has_journal() || self.superblock.journal_inode == 0 {
            let message = "the unfinished journal is on another device; run `e2fsck -p` first";
            return Err(Ext4Error::unsupported(message));
        }
        let within = |error: Ext4Error| error.within("the journal");
        let inode = self.inode(self.superblock.journal_inode).map_err(within)?;
        if inode.kind != InodeKind::File {
            return Err(Ext4Error::damaged("the journal is no file"));
        }
        let extents = self.extents(&inode).map_err(within)?;
        self.volume.overlay(journal::replay(&self.volume, &extents)?);
        let mut bytes = vec![0; superblock::LEN];
        self.volume.read(superblock::OFFSET, &mut bytes)?;
        let replayed = Superblock::parse(&bytes)?;
        let same = replayed.blocks == self.superblock.blocks
            && replayed.block_len == self.superblock.block_len;
        if !same {
            let message = "the journal changes the file system's size; run `e2fsck -p` first";
            return Err(Ext4Error::unsupported(message));
        }
        replayed.check_state()?;
        self.superblock = replayed;
        self.replayed = true;
        self.groups = Groups::read(&self.volume, &self.superblock)?;
        Ok(())
    }

    fn refuse_mounted_elsewhere(&self) -> Result<(), Ext4Error> {
        if !self.superblock.has_mmp() || self.superblock.mmp_block == 0 {
            return Ok(());
        }
        let block = self.volume.block(self.superblock.mmp_block)?;
        if le32(&block, 0) == MMP_MAGIC && le32(&block, 4) == MMP_CLEAN {
            return Ok(());
        }
        let message = "the file system is in use (multiple mount protection); unmount it there";
        Err(Ext4Error::new(ErrorKind::Unclean, message))
    }

    /// What tells it from others.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let time = |secs| Timestamp { secs: i64::try_from(secs).unwrap_or(i64::MAX), nanos: 0 };
        Identity {
            uuid: self.superblock.uuid,
            hash_seed: self.superblock.hash_seed,
            made: time(self.superblock.made),
            mounted: time(self.superblock.mounted),
            written: time(self.superblock.written),
            replayed: self.replayed,
        }
    }

    /// Length of a block in bytes.
    #[must_use]
    pub fn block_len(&self) -> u64 {
        self.volume.block_len()
    }

    /// The root directory.
    ///
    /// # Errors
    ///
    /// As [`Reader::inode`]; `Damaged` if it is no directory.
    pub fn root(&self) -> Result<Inode, Ext4Error> {
        let root = self.inode(ROOT)?;
        if root.kind != InodeKind::Dir {
            return Err(Ext4Error::damaged("the root directory is none"));
        }
        Ok(root)
    }

    /// The inode with this number.
    ///
    /// # Errors
    ///
    /// `Damaged` if there is no such inode or it cannot be believed, `Unsupported` if it is
    /// encrypted, `Io`.
    pub fn inode(&self, number: u32) -> Result<Inode, Ext4Error> {
        let mut raw = vec![0; to_usize(self.superblock.inode_len)];
        self.read_table(number, &mut raw)?;
        self.parse_inode(number, &raw)
    }

    pub(crate) fn parse_inode(&self, number: u32, raw: &[u8]) -> Result<Inode, Ext4Error> {
        Inode::parse(&self.superblock, number, raw)
            .map_err(|error| error.within(format!("inode {number}")))
    }

    /// Fills `buffer` with the inode table from inode `number` on, within its group.
    pub(crate) fn read_table(&self, number: u32, buffer: &mut [u8]) -> Result<(), Ext4Error> {
        let absent = || Ext4Error::damaged(format!("there is no inode {number}"));
        let index = number
            .checked_sub(1)
            .filter(|_| number <= self.superblock.inodes)
            .ok_or_else(absent)?;
        let group = index.checked_div(self.superblock.inodes_per_group).ok_or_else(absent)?;
        let within = index.checked_rem(self.superblock.inodes_per_group).ok_or_else(absent)?;
        let table = self.groups.table(group).ok_or_else(absent)?;
        let skip = u64::from(within).saturating_mul(u64::from(self.superblock.inode_len));
        let at = table.saturating_mul(self.volume.block_len()).saturating_add(skip);
        self.volume.read(at, buffer)
    }

    /// The extents of `inode`; none if its content stands in the inode itself.
    ///
    /// # Errors
    ///
    /// `Damaged` if the map of blocks cannot be, `Io`.
    pub fn extents(&self, inode: &Inode) -> Result<Vec<Extent>, Ext4Error> {
        self.extents_within(inode, &self.budget(u64::MAX))
    }

    pub(crate) fn extents_within(
        &self,
        inode: &Inode,
        budget: &Budget,
    ) -> Result<Vec<Extent>, Ext4Error> {
        if inode.has_inline_data() {
            return Ok(Vec::new());
        }
        extent::map(&self.volume, &self.superblock, inode, budget)
            .map_err(|error| error.within(format!("inode {}", inode.number)))
    }

    pub(crate) fn budget(&self, content_len: u64) -> Budget {
        Budget::new(self.volume.blocks(), content_len)
    }

    /// The content of `inode`, whatever its kind.
    ///
    /// # Errors
    ///
    /// As [`Reader::extents`].
    pub fn content(&self, inode: &Inode) -> Result<Content<'_>, Ext4Error> {
        self.content_within(inode, &self.budget(u64::MAX))
    }

    pub(crate) fn content_within(
        &self,
        inode: &Inode,
        budget: &Budget,
    ) -> Result<Content<'_>, Ext4Error> {
        if !inode.has_inline_data() {
            let extents = self.extents_within(inode, budget)?;
            return Ok(Content::in_blocks(&self.volume, inode.len, extents));
        }
        let mut bytes = inode.block_field.to_vec();
        if inode.len > u64::try_from(BLOCK_FIELD_LEN).unwrap_or(u64::MAX) {
            let rest = xattr::inline_rest(inode)
                .map_err(|error| error.within(format!("inode {}", inode.number)))?;
            bytes.extend_from_slice(&rest);
        }
        if to_usize(inode.len) > bytes.len() {
            let message = format!("inode {} is longer than what stands in it", inode.number);
            return Err(Ext4Error::damaged(message));
        }
        bytes.truncate(to_usize(inode.len));
        Ok(Content::inline(&self.volume, inode.len, bytes))
    }

    /// Fills `buffer` with the content of `inode` from `offset` on, as far as there is any, and
    /// returns how many bytes that were. For more than one read take [`Reader::content`] once.
    ///
    /// # Errors
    ///
    /// As [`Reader::extents`].
    pub fn read_at(
        &self,
        inode: &Inode,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Ext4Error> {
        self.content(inode)?.read_at(offset, buffer)
    }

    /// Where the symbolic link `inode` points.
    ///
    /// # Errors
    ///
    /// `Damaged` if it points nowhere, or as [`Reader::extents`].
    pub fn link_target(&self, inode: &Inode) -> Result<Vec<u8>, Ext4Error> {
        self.link_target_within(inode, &self.budget(u64::MAX))
    }

    pub(crate) fn link_target_within(
        &self,
        inode: &Inode,
        budget: &Budget,
    ) -> Result<Vec<u8>, Ext4Error> {
        let sectors = self.superblock.cluster_len >> 9;
        let len = to_usize(inode.len);
        let mut target = if inode.is_fast_symlink(sectors) {
            part(&inode.block_field, 0, len).to_vec()
        } else if inode.len <= self.volume.block_len() {
            let mut target = vec![0; len];
            self.content_within(inode, budget)?.read_at(0, &mut target)?;
            target
        } else {
            Vec::new()
        };
        // As the kernel, which keeps targets as C strings.
        target.truncate(target.iter().position(|byte| *byte == 0).unwrap_or(target.len()));
        if target.is_empty() {
            let message = format!("inode {} is a symbolic link that points nowhere", inode.number);
            return Err(Ext4Error::damaged(message));
        }
        Ok(target)
    }

    /// The extended attributes of `inode`, as the kernel hands them to root.
    ///
    /// # Errors
    ///
    /// `Damaged` if they cannot be, `Limit` for values that the kernel would not hand out.
    pub fn xattrs(&self, inode: &Inode) -> Result<vireo_model::Xattrs, Ext4Error> {
        self.xattrs_within(inode, &self.budget(u64::MAX))
    }

    pub(crate) fn xattrs_within(
        &self,
        inode: &Inode,
        budget: &Budget,
    ) -> Result<vireo_model::Xattrs, Ext4Error> {
        if inode.xattrs.is_empty() && inode.xattr_block == 0 {
            return Ok(vireo_model::Xattrs::new());
        }
        xattr::read(&self.superblock, inode, &XattrStore { reader: self, budget })
            .map_err(|error| error.within(format!("inode {}", inode.number)))
    }
}

/// Where a file system keeps attributes besides the inode.
struct XattrStore<'a> {
    reader: &'a Reader,
    budget: &'a Budget,
}

impl xattr::Store for XattrStore<'_> {
    fn block(&self, block: u64) -> Result<Vec<u8>, Ext4Error> {
        if !self.reader.volume.has_blocks(block, 1) {
            let message = format!("its block of attributes {block} lies outside the file system");
            return Err(Ext4Error::damaged(message));
        }
        self.reader.volume.block(block)
    }

    fn value(&self, number: u32, len: u32) -> Result<Vec<u8>, Ext4Error> {
        let inode = self.reader.inode(number)?;
        let is_value = self.reader.superblock.has_ea_inode()
            && inode.is_ea_inode()
            && inode.kind == InodeKind::File
            && inode.len == u64::from(len);
        if !is_value {
            let message = format!("its attribute should stand in inode {number}, but does not");
            return Err(Ext4Error::damaged(message));
        }
        let mut value = vec![0; to_usize(len)];
        self.reader.content_within(&inode, self.budget)?.read_at(0, &mut value)?;
        Ok(value)
    }

    fn take(&self, len: usize) -> Result<(), Ext4Error> {
        self.budget.take_xattrs(len)
    }
}
