//! Extended attributes, in the form in which the kernel hands them to programs.
//!
//! Layout from the kernel's `Documentation/filesystems/ext4/attributes.rst`, what is listed from
//! `ext4_xattr_handler_map` in `fs/ext4/xattr.c`, ACLs from `fs/ext4/acl.h` and
//! `linux/posix_acl_xattr.h`, capabilities from `cap_inode_getsecurity`.

use vireo_model::Xattrs;

use crate::bytes::{byte, le16, le32, part, to_usize};
use crate::checksum::crc32c;
use crate::inode::{Inode, InodeKind};
use crate::superblock::Superblock;
use crate::{Ext4Error, bytes};

const BLOCK_MAGIC: u32 = 0xEA02_0000;
/// Length of a block's header, in bytes.
const BLOCK_HEADER_LEN: usize = 32;
/// Length of an entry's fields before its name, in bytes.
const ENTRY_LEN: usize = 16;
/// Longest value that the kernel hands out (`XATTR_SIZE_MAX`), in bytes.
pub(crate) const MAX_VALUE_LEN: u32 = 1 << 16;

const INDEX_USER: u8 = 1;
const INDEX_ACL_ACCESS: u8 = 2;
const INDEX_ACL_DEFAULT: u8 = 3;
const INDEX_TRUSTED: u8 = 4;
const INDEX_SECURITY: u8 = 6;
const INDEX_SYSTEM: u8 = 7;
const INDEX_HURD: u8 = 10;

/// One attribute as it is stored.
struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value: Value<'a>,
}

enum Value<'a> {
    Here(&'a [u8]),
    /// In the content of another inode, this long.
    Inode(u32, u32),
}

/// Where attributes are kept besides the inode itself.
pub(crate) trait Store {
    /// The content of the block.
    fn block(&self, block: u64) -> Result<Vec<u8>, Ext4Error>;
    /// The value that inode `number` holds, `len` bytes long.
    fn value(&self, number: u32, len: u32) -> Result<Vec<u8>, Ext4Error>;
    /// Takes `len` bytes from what all attributes together may have.
    fn take(&self, len: usize) -> Result<(), Ext4Error>;
}

/// All attributes of `inode` that the kernel would list to root.
pub(crate) fn read(
    superblock: &Superblock,
    inode: &Inode,
    store: &dyn Store,
) -> Result<Xattrs, Ext4Error> {
    let mut xattrs = Xattrs::new();
    let mut add = |entry: Entry<'_>| -> Result<(), Ext4Error> {
        let Some(name) = full_name(&entry, inode.kind) else {
            return Ok(());
        };
        // What stands in the inode itself comes first and counts.
        if xattrs.contains_key(&name) {
            return Ok(());
        }
        if let Some(value) = value(&entry, store)? {
            store.take(name.len().saturating_add(value.len()))?;
            xattrs.insert(name, value);
        }
        Ok(())
    };
    entries(&inode.xattrs, 0, 0, &mut add)?;
    if inode.xattr_block != 0 {
        let block = store.block(inode.xattr_block)?;
        check_block(superblock, inode.xattr_block, &block)?;
        entries(&block, BLOCK_HEADER_LEN, 0, &mut add)?;
    }
    Ok(xattrs)
}

/// The part of a small file or directory that did not fit into `i_block`.
pub(crate) fn inline_rest(inode: &Inode) -> Result<Vec<u8>, Ext4Error> {
    let mut rest = None;
    entries(&inode.xattrs, 0, 0, &mut |entry| {
        if let (INDEX_SYSTEM, b"data", Value::Here(bytes)) = (entry.index, entry.name, &entry.value)
        {
            rest = Some(bytes.to_vec());
        }
        Ok(())
    })?;
    rest.ok_or_else(|| Ext4Error::damaged("its content should stand in the inode, but does not"))
}

fn check_block(superblock: &Superblock, number: u64, block: &[u8]) -> Result<(), Ext4Error> {
    if le32(block, 0) != BLOCK_MAGIC || le32(block, 8) != 1 {
        let message = format!("its block of attributes {number} is none");
        return Err(Ext4Error::damaged(message));
    }
    if superblock.has_checksums() {
        let seed = crc32c(superblock.checksum_seed, &number.to_le_bytes());
        let crc = crc32c(crc32c(seed, part(block, 0, 16)), &[0; 4]);
        if crc32c(crc, block.get(20..).unwrap_or(&[])) != le32(block, 16) {
            let message = format!("its block of attributes {number} has a wrong checksum");
            return Err(Ext4Error::damaged(message));
        }
    }
    Ok(())
}

/// Calls `add` with each entry from `at` on; values stand relative to `base`.
fn entries(
    area: &[u8],
    mut at: usize,
    base: usize,
    add: &mut dyn FnMut(Entry<'_>) -> Result<(), Ext4Error>,
) -> Result<(), Ext4Error> {
    let bad = || Ext4Error::damaged("its attributes are broken");
    // Four zero bytes end the list; beyond the area everything reads as zero.
    while le32(area, at) != 0 {
        let name_len = usize::from(byte(area, at));
        let name = part(area, at.saturating_add(ENTRY_LEN), name_len);
        if name.len() != name_len || at.saturating_add(ENTRY_LEN) > area.len() {
            return Err(bad());
        }
        let offset = to_usize(le16(area, at.saturating_add(2)));
        let inode = le32(area, at.saturating_add(4));
        let len = le32(area, at.saturating_add(8));
        let value = if inode != 0 {
            Value::Inode(inode, len)
        } else {
            let value = part(area, base.saturating_add(offset), to_usize(len));
            if value.len() != to_usize(len) {
                return Err(bad());
            }
            Value::Here(value)
        };
        add(Entry { index: byte(area, at.saturating_add(1)), name, value })?;
        let padded = name_len.saturating_add(3) & !3;
        at = at.saturating_add(ENTRY_LEN).saturating_add(padded);
    }
    Ok(())
}

/// The attribute's name, if the kernel lists it.
fn full_name(entry: &Entry<'_>, kind: InodeKind) -> Option<Vec<u8>> {
    let prefix: &[u8] = match entry.index {
        // The kernel refuses these on what is neither file nor directory (`xattr_permission`).
        INDEX_USER if matches!(kind, InodeKind::File | InodeKind::Dir) => b"user.",
        INDEX_TRUSTED => b"trusted.",
        INDEX_SECURITY => b"security.",
        INDEX_HURD => b"gnu.",
        INDEX_ACL_ACCESS => return Some(b"system.posix_acl_access".to_vec()),
        INDEX_ACL_DEFAULT => return Some(b"system.posix_acl_default".to_vec()),
        _ => return None,
    };
    Some([prefix, entry.name].concat())
}

/// The attribute's value as programs see it; none for an ACL without entries.
fn value(entry: &Entry<'_>, store: &dyn Store) -> Result<Option<Vec<u8>>, Ext4Error> {
    let stored = match entry.value {
        Value::Here(bytes) => bytes.to_vec(),
        Value::Inode(number, len) if len <= MAX_VALUE_LEN => store.value(number, len)?,
        Value::Inode(_, len) => {
            let message =
                format!("it has an attribute of {len} bytes, the most is {MAX_VALUE_LEN}");
            return Err(Ext4Error::limit(message));
        }
    };
    match (entry.index, entry.name) {
        (INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT, _) => acl(&stored),
        (INDEX_SECURITY, b"capability") => Ok(Some(capability(stored))),
        _ => Ok(Some(stored)),
    }
}

/// An ACL: on the disk only entries that need one have an identity; programs see all with one.
fn acl(stored: &[u8]) -> Result<Option<Vec<u8>>, Ext4Error> {
    const STORED_VERSION: u32 = 1;
    const SEEN_VERSION: u32 = 2;
    const TAGS_WITH_ID: [u16; 2] = [0x02, 0x08];
    const TAGS_WITHOUT_ID: [u16; 4] = [0x01, 0x04, 0x10, 0x20];
    const NO_ID: u32 = u32::MAX;
    let bad = || Ext4Error::damaged("it has a broken access control list");
    if le32(stored, 0) != STORED_VERSION {
        return Err(bad());
    }
    let mut left = stored.get(4..).unwrap_or(&[]);
    let mut seen = SEEN_VERSION.to_le_bytes().to_vec();
    while !left.is_empty() {
        let tag = le16(left, 0);
        let (id, len) = match tag {
            tag if TAGS_WITH_ID.contains(&tag) => (le32(left, 4), 8),
            tag if TAGS_WITHOUT_ID.contains(&tag) => (NO_ID, 4),
            _ => return Err(bad()),
        };
        let entry = left.get(..4).ok_or_else(bad)?;
        left = left.get(len..).ok_or_else(bad)?;
        seen.extend_from_slice(entry);
        seen.extend_from_slice(&id.to_le_bytes());
    }
    Ok((seen.len() > 4).then_some(seen))
}

/// Capabilities that name the user root of the first user namespace are shown without that name,
/// in the older form.
fn capability(stored: Vec<u8>) -> Vec<u8> {
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    const REVISION_MASK: u32 = 0xFF00_0000;
    const EFFECTIVE: u32 = 1;
    const LEN_2: usize = 20;
    const LEN_3: usize = 24;
    let magic = le32(&stored, 0);
    let names_root = stored.len() == LEN_3 && le32(&stored, LEN_2) == 0;
    if magic & REVISION_MASK != REVISION_3 || !names_root {
        return stored;
    }
    let mut seen = (REVISION_2 | magic & EFFECTIVE).to_le_bytes().to_vec();
    seen.extend_from_slice(bytes::part(&stored, 4, 16));
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_is_shown_as_the_kernel_shows_it() {
        // u::rw-,u:1000:r--,g::r--,m::r--,o::---
        let stored = [
            1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xE8, 3, 0, 0, 4, 0, 4, 0, 0x10, 0, 4, 0, 0x20, 0,
            0, 0,
        ];
        let no_id = [0xFF; 4];
        let seen = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0],
            &no_id,
            &[2, 0, 4, 0, 0xE8, 3, 0, 0],
            &[4, 0, 4, 0],
            &no_id,
            &[0x10, 0, 4, 0],
            &no_id,
            &[0x20, 0, 0, 0],
            &no_id,
        ];
        assert_eq!(acl(&stored).expect("fine"), Some(seen.concat()));
        assert_eq!(acl(&stored[..4]).expect("fine"), None, "without entries");
        for cut in [2, 6, 10, 15] {
            assert!(acl(&stored[..cut]).is_err(), "cut to {cut}");
        }
        assert!(acl(&[1, 0, 0, 0, 3, 0, 0, 0]).is_err(), "an unknown tag");
    }

    #[test]
    fn capabilities_of_the_first_namespace_lose_their_owner() {
        let mut stored = vec![0; 24];
        stored[3] = 3;
        stored[0] = 1;
        stored[5] = 0x20;
        let mut seen = stored[..20].to_vec();
        seen[3] = 2;
        assert_eq!(capability(stored.clone()), seen);
        stored[20] = 1;
        assert_eq!(capability(stored.clone()), stored, "of another namespace");
        assert_eq!(capability(seen.clone()), seen);
    }

    #[test]
    fn values_outside_their_area_are_refused() {
        let mut area = vec![0; 40];
        area[0] = 1;
        area[1] = INDEX_USER;
        area[16] = b'a';
        let count = |area: &[u8]| {
            let mut count = 0;
            entries(area, 0, 0, &mut |_| {
                count += 1;
                Ok(())
            })
            .map(|()| count)
        };
        assert_eq!(count(&area).expect("an empty value"), 1);
        area[8] = 8;
        area[2] = 32;
        assert_eq!(count(&area).expect("it just fits"), 1);
        area[8] = 9;
        assert!(count(&area).is_err());
        area[0] = 200;
        assert!(count(&area).is_err(), "a name that is too long");
    }
}
