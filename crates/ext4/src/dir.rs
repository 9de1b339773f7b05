//! The entries of one block of a directory.
//!
//! Layout from the kernel's `Documentation/filesystems/ext4/directory.rst`. An index (htree) is
//! made so that a reader who knows nothing of it sees its blocks as blocks without entries;
//! directories are therefore read from their first block to their last. Rules from
//! `__ext4_check_dir_entry` in `fs/ext4/dir.c`, checksums from `fs/ext4/namei.c`.

use crate::Ext4Error;
use crate::bytes::{byte, le16, le32, part, to_usize};
use crate::checksum::crc32c;

/// Length of an entry's fields before its name, in bytes.
const HEADER_LEN: usize = 8;
/// Shortest entry, in bytes.
const MIN_LEN: usize = 12;
/// Length of the entry without a name that ends a block and holds its checksum, in bytes.
const TAIL_LEN: usize = 12;
/// What stands as the kind of file in that entry.
const TAIL_KIND: u8 = 0xDE;

/// Takes a name and the number of its inode.
pub(crate) type Found<'a> = dyn FnMut(&[u8], u32) -> Result<(), Ext4Error> + 'a;

/// Calls `found` with each name in `block` and its inode, but for `.` and `..`. `inodes` is how
/// many the file system has.
pub(crate) fn parse(block: &[u8], inodes: u32, found: &mut Found<'_>) -> Result<(), Ext4Error> {
    let bad = |at: usize| Ext4Error::damaged(format!("it has a broken entry at byte {at}"));
    let mut at = 0_usize;
    while at < block.len() {
        let len = entry_len(le16(block, at.saturating_add(4)), block.len());
        let name_len = usize::from(byte(block, at.saturating_add(6)));
        let end = at.saturating_add(len);
        let needs = HEADER_LEN.saturating_add(name_len);
        if len < MIN_LEN || !len.is_multiple_of(4) || end > block.len() || needs > len {
            return Err(bad(at));
        }
        let inode = le32(block, at);
        let name = part(block, at.saturating_add(HEADER_LEN), name_len);
        if inode > inodes || (inode != 0 && name.is_empty()) {
            return Err(bad(at));
        }
        if inode != 0 && name != b"." && name != b".." {
            found(name, inode)?;
        }
        at = end;
    }
    Ok(())
}

/// Blocks of 64 KiB are longer than 16 bits can say (`ext4_rec_len_from_disk`).
fn entry_len(len: u16, block_len: usize) -> usize {
    if block_len < 1 << 16 {
        return usize::from(len);
    }
    match len {
        0 | u16::MAX => block_len,
        len => usize::from(len & 0xFFFC) | usize::from(len & 3) << 16,
    }
}

/// Compares the checksum of `block`, whose inode's checksums start from `seed`; `indexed` if the
/// directory has an index.
pub(crate) fn check(block: &[u8], seed: u32, indexed: bool) -> Result<(), Ext4Error> {
    let index_at = if indexed { index_at(block) } else { None };
    let matches = match index_at {
        Some(at) => index_checksum(block, seed, at),
        None => leaf_checksum(block, seed),
    };
    if matches == Some(true) {
        return Ok(());
    }
    let what = if matches.is_none() { "no place for a checksum" } else { "a wrong checksum" };
    Err(Ext4Error::damaged(format!("it has a block with {what}; run `e2fsck -fD`")))
}

fn leaf_checksum(block: &[u8], seed: u32) -> Option<bool> {
    let at = block.len().checked_sub(TAIL_LEN)?;
    let tail = block.get(at..)?;
    let is_tail = le32(tail, 0) == 0
        && usize::from(le16(tail, 4)) == TAIL_LEN
        && byte(tail, 6) == 0
        && byte(tail, 7) == TAIL_KIND;
    is_tail.then(|| crc32c(seed, part(block, 0, at)) == le32(tail, 8))
}

/// Where the count of entries stands, if this is a block of an index.
fn index_at(block: &[u8]) -> Option<usize> {
    let first = entry_len(le16(block, 4), block.len());
    if first == block.len() {
        return Some(HEADER_LEN);
    }
    // The root: `.`, then `..` over all the rest, then what describes the index.
    let second = entry_len(le16(block, 16), block.len());
    let is_root = first == MIN_LEN && second == block.len().saturating_sub(MIN_LEN);
    let info = is_root && le32(block, 24) == 0 && byte(block, 29) == 8;
    info.then_some(32)
}

fn index_checksum(block: &[u8], seed: u32, at: usize) -> Option<bool> {
    const ENTRY_LEN: usize = 8;
    let limit = to_usize(le16(block, at));
    let count = to_usize(le16(block, at.checked_add(2)?));
    let tail_at = at.checked_add(limit.checked_mul(ENTRY_LEN)?)?;
    let tail = block.get(tail_at..tail_at.checked_add(ENTRY_LEN)?)?;
    if count > limit {
        return None;
    }
    let covered = block.get(..at.checked_add(count.checked_mul(ENTRY_LEN)?)?)?;
    let crc = crc32c(seed, covered);
    let crc = crc32c(crc, part(tail, 0, 4));
    Some(crc32c(crc, &[0; 4]) == le32(tail, 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(inode: u32, len: u16, name: &[u8]) -> Vec<u8> {
        let mut bytes = inode.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.push(u8::try_from(name.len()).expect("short"));
        bytes.push(1);
        bytes.extend(name);
        bytes.resize(len.into(), 0);
        bytes
    }

    fn names(block: &[u8]) -> Result<Vec<String>, Ext4Error> {
        let mut names = Vec::new();
        parse(block, 100, &mut |name, _| {
            names.push(String::from_utf8_lossy(name).into_owned());
            Ok(())
        })?;
        Ok(names)
    }

    #[test]
    fn deleted_entries_and_the_two_dots_are_left_out() {
        let block = [
            entry(2, 12, b"."),
            entry(2, 12, b".."),
            entry(0, 16, b"gone"),
            entry(12, 88, b"here"),
        ];
        assert_eq!(names(&block.concat()).expect("fine"), ["here"]);
    }

    #[test]
    fn broken_entries_are_refused() {
        for (block, what) in [
            (entry(12, 12, b"a"), None),
            ([entry(12, 12, b"a"), vec![0; 12]].concat(), Some("of no length")),
            ([entry(12, 8, b""), vec![0; 4]].concat(), Some("too short")),
            (entry(101, 12, b"a"), Some("an inode that is not there")),
            (entry(12, 12, b""), Some("no name")),
            ([&entry(12, 16, b"a")[..12]].concat(), Some("longer than the block")),
            ([&entry(12, 16, b"long-name")[..12]].concat(), Some("a name longer than it")),
        ] {
            assert_eq!(names(&block).is_err(), what.is_some(), "{what:?}");
        }
    }

    #[test]
    fn an_entry_can_be_64_kib_long() {
        assert_eq!(entry_len(0, 1 << 16), 1 << 16);
        assert_eq!(entry_len(u16::MAX, 1 << 16), 1 << 16);
        assert_eq!(entry_len(12, 1 << 16), 12);
        assert_eq!(entry_len(12, 4096), 12);
    }
}
