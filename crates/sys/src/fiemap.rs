//! Which blocks of the disk a file's content is in (`FS_IOC_FIEMAP`), and whether two files have the same
//! ones: then they have the same bytes, and neither has to be read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::fstatfs;

/// Most extents of a file that are asked for. Of 128 MiB each on btrfs: a file with more is scattered, and
/// reading it costs little more than its map.
pub const MAX_EXTENTS: usize = 1 << 16;

/// Extents that one call gives: 28 KiB of them.
const BATCH: usize = 512;

/// `FS_IOC_FIEMAP` of <linux/fs.h>: `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
/// `FS_IOC_FSGETXATTR` of <linux/fs.h>: `_IOR('X', 31, struct fsxattr)`.
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;

// Flags of <linux/fiemap.h>.
/// Dirty pages are written first, so that the map is that of the content.
const FLAG_SYNC: u32 = 1;
const EXTENT_LAST: u32 = 0x1;
const EXTENT_UNWRITTEN: u32 = 0x800;
const EXTENT_MERGED: u32 = 0x1000;
const EXTENT_SHARED: u32 = 0x2000;
/// What an extent may be whose address says where its bytes are, one by one. Not so where the address is
/// unknown or not yet given (UNKNOWN, DELALLOC), or the bytes are not what the blocks hold (ENCODED,
/// DATA_INLINE, NOT_ALIGNED); nor, perhaps, with flags that come later.
const PLAIN: u32 = EXTENT_LAST | EXTENT_UNWRITTEN | EXTENT_MERGED | EXTENT_SHARED;

/// `FS_XFLAG_REALTIME` of <linux/fs.h>: the file's content is on XFS's second device.
const XFLAG_REALTIME: u32 = 1;

// What statfs(2) calls the file systems that share blocks and of which an address is of one disk.
const BTRFS: u32 = 0x9123_683e;
const XFS: u32 = 0x5846_5342;

/// `struct fiemap_extent` of <linux/fiemap.h>.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    len: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` of <linux/fiemap.h>, with room for extents behind it.
#[repr(C)]
struct Request {
    start: u64,
    len: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

/// `struct fsxattr` of <linux/fs.h>.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Attributes {
    xflags: u32,
    extent_len: u32,
    extents: u32,
    project: u32,
    cow_extent_len: u32,
    padding: [u8; 8],
}

const _: () = assert!(size_of::<RawExtent>() == 56);
const _: () = assert!(size_of::<Request>() == 32 + BATCH * 56);
const _: () = assert!(size_of::<Attributes>() == 28);

/// Some bytes of a file that follow each other on the disk, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where they begin in the file, in bytes.
    pub logical: u64,
    /// Where they begin on the disk, in bytes.
    pub physical: u64,
    /// How many they are.
    pub len: u64,
    /// They were set aside and never written: they read as zeros.
    pub is_unwritten: bool,
    /// Another file may have the same blocks; a write goes elsewhere.
    pub is_shared: bool,
}

/// Where the content of `file` is on the disk, in the order of the file; what no extent covers is a hole.
///
/// `None` if the file system does not tell, if the addresses do not stand for the bytes (not yet given,
/// compressed, encrypted, within metadata), or there are more than [`MAX_EXTENTS`].
///
/// # Errors
///
/// As writing the file's dirty pages.
pub fn map(file: &File) -> io::Result<Option<Vec<Extent>>> {
    // What is set aside behind the end is no content.
    let end = file.metadata()?.len();
    let mut extents: Vec<Extent> = Vec::new();
    loop {
        let start = extents.last().map_or(0, |last| last.logical.saturating_add(last.len));
        if start >= end {
            return Ok(Some(extents));
        }
        let request = match ask(file, start..end) {
            Ok(request) => request,
            Err(error) if is_unsupported(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = &request.extents[..BATCH.min(request.mapped as usize)];
        for raw in found {
            let (Some(extent), true) = (plain(raw), extents.len() < MAX_EXTENTS) else {
                return Ok(None);
            };
            // It would be asked for without end.
            if extent.len == 0 || extent.logical.saturating_add(extent.len) <= start {
                return Ok(None);
            }
            extents.push(extent);
        }
        if found.last().is_none_or(|last| last.flags & EXTENT_LAST != 0) {
            return Ok(Some(extents));
        }
    }
}

/// Whether all of `base` and `target` is in the same blocks: then they had the same bytes while this was
/// asked. `false` proves nothing.
///
/// # Why that is so
///
/// Both are on one mounted file system, where an address stands for one place: btrfs and XFS alone, and of XFS
/// only what is not on its real-time device. What programs wrote before the call is on the disk by then
/// (`FIEMAP_FLAG_SYNC`). Shared blocks are never written in place, but what is written goes to other
/// blocks; so blocks that one file has do not change as long as it has them. `base` is asked before
/// and after `target`: it had its blocks at the time when `target` had them, and nobody else could have
/// been given them in between. What is set aside and was never written reads as zeros in both, as do holes.
/// The lengths are equal, so that both end at the same byte of the last block.
///
/// It says nothing about the time before and after. Who has to know that neither was written since it was
/// read compares the times of change, as after reading.
///
/// # Errors
///
/// As `fstat(2)`, `fstatfs(2)` and [`map`].
pub fn share_all(base: &File, target: &File) -> io::Result<bool> {
    let (before, after) = (base.metadata()?, target.metadata()?);
    if before.dev() != after.dev() || before.len() != after.len() || !has_addresses(target)? {
        return Ok(false);
    }
    let Some(blocks) = map(base)?.filter(|blocks| is_all_shared(blocks)) else { return Ok(false) };
    if is_on_second_device(base) || is_on_second_device(target) {
        return Ok(false);
    }
    let blocks = Some(blocks);
    Ok(map(target)? == blocks && map(base)? == blocks)
}

/// Whether `file` is on a file system that shares blocks and in which an address is one place.
fn has_addresses(file: &File) -> io::Result<bool> {
    // The type has another width and sign on other processors.
    let kind = fstatfs(file)?.f_type as u32;
    Ok(kind == BTRFS || kind == XFS)
}

/// Nothing is proven by nothing: a file of holes is read, which is cheap.
fn is_all_shared(extents: &[Extent]) -> bool {
    !extents.is_empty() && extents.iter().all(|extent| extent.is_shared)
}

fn plain(raw: &RawExtent) -> Option<Extent> {
    if raw.flags & !PLAIN != 0 {
        return None;
    }
    Some(Extent {
        logical: raw.logical,
        physical: raw.physical,
        len: raw.len,
        is_unwritten: raw.flags & EXTENT_UNWRITTEN != 0,
        is_shared: raw.flags & EXTENT_SHARED != 0,
    })
}

fn is_unsupported(error: &io::Error) -> bool {
    // EBADR: a flag that the file system does not know.
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EBADR))
}

/// The first extents of `file` that have something of `range`.
fn ask(file: &File, range: Range<u64>) -> io::Result<Box<Request>> {
    let mut request = Box::new(Request {
        start: range.start,
        len: range.end - range.start,
        flags: FLAG_SYNC,
        mapped: 0,
        room: BATCH as u32,
        reserved: 0,
        extents: [RawExtent::default(); BATCH],
    });
    let address = std::ptr::from_mut(&mut *request);
    // SAFETY: FS_IOC_FIEMAP reads and writes one `struct fiemap` at the address given, and writes at most
    // `room` structures of extents right behind it. `Request` has that layout (sizes asserted above), as
    // many extents as `room` says, and is ours alone.
    #[expect(unsafe_code, reason = "an ioctl without a safe wrapper; this crate is the fence")]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, address) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
}

/// Whether the content may be on another device than most files' of the file system. btrfs, which has none
/// such, answers, too.
fn is_on_second_device(file: &File) -> bool {
    let mut attributes = Attributes::default();
    let address = std::ptr::from_mut(&mut attributes);
    // SAFETY: FS_IOC_FSGETXATTR writes one `struct fsxattr` at the address given; `attributes` has that layout
    // (its size is asserted above) and is ours alone.
    #[expect(unsafe_code, reason = "an ioctl without a safe wrapper; this crate is the fence")]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, address) };
    result < 0 || attributes.xflags & XFLAG_REALTIME != 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn file(dir: &tempfile::TempDir, name: &str) -> File {
        let path = dir.path().join(name);
        File::options().create_new(true).read(true).write(true).open(path).expect("opens")
    }

    #[test]
    fn an_extent_whose_address_does_not_stand_for_its_bytes_is_none() {
        let raw =
            |flags| RawExtent { logical: 1, physical: 2, len: 3, flags, ..Default::default() };
        let known = [EXTENT_LAST, EXTENT_UNWRITTEN, EXTENT_MERGED, EXTENT_SHARED];
        for bit in 0..u32::BITS {
            let flag = 1 << bit;
            assert_eq!(plain(&raw(flag)).is_some(), known.contains(&flag), "{flag:#x}");
        }
        let extent = plain(&raw(EXTENT_SHARED)).expect("plain");
        assert!(extent.is_shared && !extent.is_unwritten && is_all_shared(&[extent]));
        let own = Extent { is_shared: false, ..extent };
        assert!(!is_all_shared(&[extent, own]) && !is_all_shared(&[]));
    }

    #[test]
    fn a_map_has_every_block_of_data_in_order_also_over_several_calls() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = file(&dir, "f");
        let (step, count) = (16_384_u64, BATCH as u64 + 100);
        for number in 0..count {
            file.write_all_at(&[7; 4096], number * step).expect("written");
        }
        // A file system that does not tell is one as well.
        let Some(extents) = map(&file).expect("asked") else { return };
        for number in 0..count {
            let at = number * step;
            let covers =
                |extent: &&Extent| extent.logical <= at && at < extent.logical + extent.len;
            assert_eq!(extents.iter().filter(covers).count(), 1, "byte {at}");
        }
        assert!(extents.is_sorted_by(|a, b| a.logical + a.len <= b.logical));
    }

    #[test]
    fn what_has_no_map_is_none_and_a_file_of_ones_own_shares_nothing() {
        assert_eq!(
            map(&File::open("/sys/kernel/uevent_seqnum").expect("opens")).expect("asked"),
            None
        );
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (one, other) = (file(&dir, "one"), file(&dir, "other"));
        for file in [&one, &other] {
            file.write_all_at(&[7; 70_000], 0).expect("written");
        }
        assert!(!share_all(&one, &other).expect("asked"));
        assert!(!share_all(&one, &one).expect("asked"), "nobody else has its blocks");
    }
}
