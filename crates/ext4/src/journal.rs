//! What an unfinished journal would write, without writing it.
//!
//! The journal is big-endian. Layout from the kernel's `Documentation/filesystems/ext4/journal.rst`
//! and `linux/jbd2.h`, rules from `fs/jbd2/recovery.c`. Nothing is copied: the result says for each
//! block of the file system which block of the journal holds its newest content.

use std::collections::{BTreeMap, HashMap};

use crate::bytes::{be16, be32, be64, byte, copy, le16, le32, part, split64, to_usize};
use crate::checksum::crc32c;
use crate::extent::Extent;
use crate::volume::{JOURNAL_MAGIC, Journalled, Volume};
use crate::{ErrorKind, Ext4Error};

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

const COMPAT_CHECKSUM: u32 = 0x1;
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// revoke, 64bit, async_commit, csum_v2, csum_v3, fast_commit.
const INCOMPAT_READ: u32 = 0x3F;

const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

const HEADER_LEN: usize = 12;
/// Blocks for fast commits at the journal's end where its superblock does not say.
const DEFAULT_FAST_COMMIT_BLOCKS: u64 = 256;
/// First record of a fast commit, little-endian as all of them.
const FAST_COMMIT_HEAD: u16 = 9;

/// Reads the journal that stands in `extents` and gives what it would write.
pub(crate) fn replay(
    volume: &Volume,
    extents: &[Extent],
) -> Result<BTreeMap<u64, Journalled>, Ext4Error> {
    let Some(log) = Log::open(volume, extents)? else {
        return Ok(BTreeMap::new());
    };
    let scan = log.scan()?;
    log.refuse_fast_commits(scan.next_sequence)?;
    let revoked = log.revoked(&scan)?;
    let mut newest = BTreeMap::new();
    for tag in &scan.tags {
        let is_revoked =
            revoked.get(&tag.block).is_some_and(|sequence| is_at_or_after(*sequence, tag.sequence));
        if !is_revoked {
            log.check_data(tag)?;
            newest.insert(tag.block, Journalled { copy: tag.copy, escaped: tag.escaped });
        }
    }
    Ok(newest)
}

/// Sequence numbers wrap.
fn is_at_or_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() >= 0
}

fn damaged(what: &str) -> Ext4Error {
    Ext4Error::damaged(format!("its journal {what}; run `e2fsck -p`"))
}

struct Log<'a> {
    volume: &'a Volume,
    extents: &'a [Extent],
    /// Blocks of the ring, within the journal.
    first: u64,
    last: u64,
    start: u64,
    sequence: u32,
    incompat: u32,
    checksum_seed: u32,
}

/// A block of the file system whose content stands in the journal.
struct Tag {
    sequence: u32,
    block: u64,
    copy: u64,
    escaped: bool,
    checksum: u32,
}

#[derive(Default)]
struct Scan {
    tags: Vec<Tag>,
    /// Blocks that list revoked ones, with their transactions.
    revokes: Vec<(u32, Vec<u64>)>,
    next_sequence: u32,
}

impl<'a> Log<'a> {
    /// Reads the journal's superblock; none if there is nothing to replay.
    fn open(volume: &'a Volume, extents: &'a [Extent]) -> Result<Option<Self>, Ext4Error> {
        let unsupported = |what: String| {
            Ext4Error::unsupported(format!("the unfinished journal {what}; run `e2fsck -p` first"))
        };
        let mut log = Self {
            volume,
            extents,
            first: 0,
            last: u64::MAX,
            start: 0,
            sequence: 0,
            incompat: 0,
            checksum_seed: 0,
        };
        let bytes = log.block(0)?;
        let kind = be32(&bytes, 4);
        let is_one = part(&bytes, 0, 4) == JOURNAL_MAGIC
            && [SUPERBLOCK_V1, SUPERBLOCK_V2].contains(&kind)
            && u64::from(be32(&bytes, 12)) == volume.block_len();
        if !is_one {
            return Err(damaged("has no superblock"));
        }
        if be32(&bytes, 32) != 0 {
            let message = "its journal has recorded an error; run `e2fsck -f`";
            return Err(Ext4Error::new(ErrorKind::Unclean, message));
        }
        if kind == SUPERBLOCK_V2 {
            log.incompat = be32(&bytes, 40);
            if be32(&bytes, 36) & COMPAT_CHECKSUM != 0 {
                return Err(unsupported("has checksums of the first kind".to_owned()));
            }
        }
        if log.incompat & !INCOMPAT_READ != 0 {
            let odd = log.incompat & !INCOMPAT_READ;
            return Err(unsupported(format!("uses the unknown feature {odd:#x}")));
        }
        log.checksum_seed = crc32c(!0, &copy::<16>(&bytes, 48));
        if log.has_checksums() {
            let crc = crc32c(crc32c(!0, part(&bytes, 0, 252)), &[0; 4]);
            if crc32c(crc, part(&bytes, 256, 768)) != be32(&bytes, 252) {
                return Err(damaged("has a superblock with a wrong checksum"));
            }
        }
        log.start = u64::from(be32(&bytes, 28));
        log.sequence = be32(&bytes, 24);
        log.first = u64::from(be32(&bytes, 20));
        log.last = u64::from(be32(&bytes, 16));
        if log.incompat & INCOMPAT_FAST_COMMIT != 0 {
            let blocks = match be32(&bytes, 84) {
                0 => DEFAULT_FAST_COMMIT_BLOCKS,
                blocks => u64::from(blocks),
            };
            log.last = log.last.saturating_sub(blocks);
        }
        if log.start == 0 {
            return Ok(None);
        }
        if log.first == 0 || log.first >= log.last || !(log.first..log.last).contains(&log.start) {
            return Err(damaged("has a superblock that cannot be"));
        }
        Ok(Some(log))
    }

    fn has_checksums(&self) -> bool {
        self.incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0
    }

    /// The block of the file system in which the journal's block `index` stands.
    fn place(&self, index: u64) -> Result<u64, Ext4Error> {
        let after = self.extents.partition_point(|extent| extent.logical <= index);
        let extent = after.checked_sub(1).and_then(|at| self.extents.get(at));
        let place = extent.and_then(|extent| {
            let skip = index.checked_sub(extent.logical)?;
            (skip < extent.len && !extent.unwritten).then(|| extent.physical.saturating_add(skip))
        });
        place.ok_or_else(|| damaged("has a hole"))
    }

    fn block(&self, index: u64) -> Result<Vec<u8>, Ext4Error> {
        self.volume.block(self.place(index)?)
    }

    /// The block after `index`, round the ring.
    fn after(&self, index: u64) -> u64 {
        let next = index.saturating_add(1);
        if next >= self.last { self.first } else { next }
    }

    /// Reads the log up to its last complete transaction.
    fn scan(&self) -> Result<Scan, Ext4Error> {
        let mut scan = Scan { next_sequence: self.sequence, ..Scan::default() };
        let (mut tags, mut revokes) = (Vec::new(), Vec::new());
        let mut at = self.start;
        // Each step goes on by at least one block; once round the ring is all there can be.
        let mut left = self.last.saturating_sub(self.first);
        while left > 0 {
            let bytes = self.block(at)?;
            let is_next =
                part(&bytes, 0, 4) == JOURNAL_MAGIC && be32(&bytes, 8) == scan.next_sequence;
            if !is_next {
                break;
            }
            let (here, before) = (at, tags.len());
            at = self.after(at);
            match be32(&bytes, 4) {
                DESCRIPTOR => {
                    self.check_tail(&bytes)?;
                    self.tags(&bytes, scan.next_sequence, &mut at, left, &mut tags)?;
                }
                REVOKE => {
                    self.check_tail(&bytes)?;
                    revokes.push(here);
                }
                COMMIT => {
                    self.check_commit(&bytes)?;
                    scan.tags.append(&mut tags);
                    scan.revokes.push((scan.next_sequence, std::mem::take(&mut revokes)));
                    scan.next_sequence = scan.next_sequence.wrapping_add(1);
                }
                _ => break,
            }
            let data = u64::try_from(tags.len().saturating_sub(before)).unwrap_or(u64::MAX);
            left = left.saturating_sub(data.saturating_add(1));
        }
        Ok(scan)
    }

    /// Reads a descriptor: which blocks the blocks from `at` on are copies of.
    fn tags(
        &self,
        bytes: &[u8],
        sequence: u32,
        at: &mut u64,
        left: u64,
        tags: &mut Vec<Tag>,
    ) -> Result<(), Ext4Error> {
        let v3 = self.incompat & INCOMPAT_CSUM_V3 != 0;
        let high_at = 8;
        let tail = if self.has_checksums() { 4 } else { 0 };
        let bytes = part(bytes, 0, bytes.len().saturating_sub(tail));
        let mut offset = HEADER_LEN;
        let mut count = 0_u64;
        while offset.saturating_add(self.tag_len()) <= bytes.len() {
            let tag = part(bytes, offset, self.tag_len());
            let flags = if v3 { be32(tag, 4) } else { u32::from(be16(tag, 6)) };
            let has_high = v3 || self.incompat & INCOMPAT_64BIT != 0;
            let high = if has_high { be32(tag, high_at) } else { 0 };
            let block = split64(be32(tag, 0), high);
            count = count.saturating_add(1);
            if count >= left || block >= self.volume.blocks() {
                return Err(damaged("names a block that cannot be"));
            }
            tags.push(Tag {
                sequence,
                block,
                copy: self.place(*at)?,
                escaped: flags & TAG_ESCAPED != 0,
                checksum: if v3 { be32(tag, 12) } else { u32::from(be16(tag, 4)) },
            });
            *at = self.after(*at);
            offset = offset.saturating_add(self.tag_len());
            if flags & TAG_SAME_UUID == 0 {
                offset = offset.saturating_add(16);
            }
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(())
    }

    /// Length of a tag in bytes (`journal_tag_bytes`).
    fn tag_len(&self) -> usize {
        if self.incompat & INCOMPAT_CSUM_V3 != 0 {
            return 16;
        }
        let checksum = if self.incompat & INCOMPAT_CSUM_V2 != 0 { 2 } else { 0 };
        let high = if self.incompat & INCOMPAT_64BIT != 0 { 4 } else { 0 };
        [8, checksum, high].iter().sum()
    }

    /// Descriptors and lists of revoked blocks end with their checksum.
    fn check_tail(&self, bytes: &[u8]) -> Result<(), Ext4Error> {
        let at = bytes.len().saturating_sub(4);
        let crc = crc32c(crc32c(self.checksum_seed, part(bytes, 0, at)), &[0; 4]);
        if self.has_checksums() && crc != be32(bytes, at) {
            return Err(damaged("has a block with a wrong checksum"));
        }
        Ok(())
    }

    fn check_commit(&self, bytes: &[u8]) -> Result<(), Ext4Error> {
        const AT: usize = 16;
        let crc = crc32c(crc32c(self.checksum_seed, part(bytes, 0, AT)), &[0; 4]);
        let crc = crc32c(crc, bytes.get(20..).unwrap_or(&[]));
        if self.has_checksums() && crc != be32(bytes, AT) {
            return Err(damaged("has an end of a transaction with a wrong checksum"));
        }
        Ok(())
    }

    fn check_data(&self, tag: &Tag) -> Result<(), Ext4Error> {
        if !self.has_checksums() {
            return Ok(());
        }
        let data = self.volume.block(tag.copy)?;
        let crc = crc32c(crc32c(self.checksum_seed, &tag.sequence.to_be_bytes()), &data);
        let kept = if self.incompat & INCOMPAT_CSUM_V3 != 0 { crc } else { crc & 0xFFFF };
        if kept != tag.checksum {
            return Err(damaged("has a block of data with a wrong checksum"));
        }
        Ok(())
    }

    /// Which of the blocks that `scan` found were given up later, and in which transaction last.
    fn revoked(&self, scan: &Scan) -> Result<HashMap<u64, u32>, Ext4Error> {
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        let journalled: std::collections::HashSet<u64> =
            scan.tags.iter().map(|tag| tag.block).collect();
        let is_long = self.incompat & INCOMPAT_64BIT != 0;
        for (sequence, blocks) in &scan.revokes {
            for index in blocks {
                let bytes = self.block(*index)?;
                let end = to_usize(be32(&bytes, HEADER_LEN));
                let records = bytes.get(16..end).unwrap_or(&[]);
                for record in records.chunks_exact(if is_long { 8 } else { 4 }) {
                    let block = if is_long { be64(record, 0) } else { u64::from(be32(record, 0)) };
                    if journalled.contains(&block) {
                        // Transactions come in order, so the last one stays.
                        revoked.insert(block, *sequence);
                    }
                }
            }
        }
        Ok(revoked)
    }

    /// Fast commits behind the last transaction cannot be replayed here.
    fn refuse_fast_commits(&self, next_sequence: u32) -> Result<(), Ext4Error> {
        if self.incompat & INCOMPAT_FAST_COMMIT == 0 {
            return Ok(());
        }
        let bytes = self.block(self.last)?;
        let is_head = le16(&bytes, 0) == FAST_COMMIT_HEAD && byte(&bytes, 2) >= 8;
        if is_head && le32(&bytes, 8) == next_sequence {
            let message = "the unfinished journal has fast commits, which are not replayed here; \
                           run `e2fsck -p` first";
            return Err(Ext4Error::unsupported(message));
        }
        Ok(())
    }
}
