//! The header of a qcow2 file and where its tables lead, checked before anything is read by them.
//!
//! Refused is what would make `imago` open other files (a backing file, an external data file), what
//! it cannot read (encryption, zstd, extended entries), numbers that would cost memory, and places beyond
//! the file's end, which it would read as zeros. Offsets and bits from QEMU's `docs/interop/qcow2.rst`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::{ErrorKind, ImageError};

/// Longest disk in a qcow2 file, in bytes: a header can claim any length, and expanding it for a
/// patch makes a sparse file of it.
const MAX_VIRTUAL_LEN: u64 = 16 << 40;

/// Most entries of the first table, of 8 bytes each: as much memory as QEMU grants it.
const MAX_L1_ENTRIES: u32 = (32 << 20) / 8;
/// Length of the header as far as it is looked at, in bytes.
const HEADER_LEN: usize = 112;
/// Cluster sizes that the format allows, as powers of two.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Length of a sector in bytes: the unit of compressed clusters, and what the ends of files are rounded to.
const SECTOR: u64 = 512;

const INCOMPAT_DIRTY: u64 = 1;
const INCOMPAT_CORRUPT: u64 = 2;
const INCOMPAT_DATA_FILE: u64 = 4;
const INCOMPAT_COMPRESSION: u64 = 8;
const INCOMPAT_EXTENDED: u64 = 16;

/// Set while the file's dirty bitmaps are right.
const AUTOCLEAR_BITMAPS: u64 = 1;

/// Length of an entry of a table, in bytes.
const ENTRY_LEN: u64 = 8;
/// Where an entry's table or cluster begins: bits 9 to 55.
const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZEROS: u64 = 1;

/// What a file keeps beside its disk, and a patched image would not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) snapshots: u32,
    /// Whether it has bitmaps that say which blocks changed since a backup.
    pub(super) bitmaps: bool,
}

/// Checks what `imago` does not, or not by name; gives what it keeps beside its disk.
pub(super) fn check(path: &Path, file: &File) -> Result<Kept, ImageError> {
    let mut header = [0; HEADER_LEN];
    let read = file.read_at(&mut header, 0);
    let read = read.map_err(|error| ImageError::io("read", path, error))?;
    let refuse = |kind, why: String| {
        Err(ImageError::new(kind, format!("the qcow2 image {} {why}", path.display())))
    };
    let u32_at = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| header[at + i]));
    let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
    let version = u32_at(4);
    if read < 72 || !(2..=3).contains(&version) || !CLUSTER_BITS.contains(&u32_at(20)) {
        return refuse(
            ErrorKind::NotAnImage,
            "has a damaged header, or is of another version".into(),
        );
    }
    let convert = "convert it first (`qemu-img convert -O qcow2`)";
    if u64_at(8) != 0 {
        let why =
            format!("has a backing file, which is never opened: {convert}, which makes it whole");
        return refuse(ErrorKind::Unsupported, why);
    }
    if u32_at(32) != 0 {
        let why = format!("is encrypted; decrypt it first: {convert} with its secret");
        return refuse(ErrorKind::Unsupported, why);
    }
    let len = u64_at(24);
    if len > MAX_VIRTUAL_LEN {
        let why = format!("says that its disk has {len} bytes, the most is {MAX_VIRTUAL_LEN}");
        return refuse(ErrorKind::Unsupported, why);
    }
    if u32_at(36) > MAX_L1_ENTRIES {
        return refuse(ErrorKind::Damaged, "has a first table longer than any disk needs".into());
    }
    if version == 3 {
        let incompat = u64_at(72);
        let has = |bit| incompat & bit != 0;
        let zstd = has(INCOMPAT_COMPRESSION) && header[104] != 0;
        let known = INCOMPAT_DIRTY | INCOMPAT_CORRUPT | INCOMPAT_COMPRESSION;
        if has(INCOMPAT_DATA_FILE) {
            let why = format!("keeps its data in another file, which is never opened: {convert}");
            return refuse(ErrorKind::Unsupported, why);
        }
        if zstd || has(INCOMPAT_EXTENDED) || incompat & !(known | INCOMPAT_EXTENDED) != 0 {
            let what = if zstd {
                "zstd".to_owned()
            } else if has(INCOMPAT_EXTENDED) {
                "extended_l2".to_owned()
            } else {
                format!("{incompat:#x}")
            };
            let why = format!("uses the feature {what}, which is not supported; {convert}");
            return refuse(ErrorKind::Unsupported, why);
        }
        if has(INCOMPAT_CORRUPT) {
            let why = "is marked as corrupt; look at it with `qemu-img check`".to_owned();
            return refuse(ErrorKind::Damaged, why);
        }
        if has(INCOMPAT_DIRTY) {
            let why = "was not closed cleanly: its machine is running or crashed; shut it down, or \
                       run `qemu-img check -r all`";
            return refuse(ErrorKind::Unclean, why.to_owned());
        }
    }
    let tables = Tables {
        cluster_len: 1 << u32_at(20),
        len,
        l1_entries: u32_at(36),
        l1_at: u64_at(40),
        has_zero_flag: version == 3,
    };
    tables.check(path, file)?;
    let bitmaps = version == 3 && u64_at(88) & AUTOCLEAR_BITMAPS != 0;
    Ok(Kept { snapshots: u32_at(60), bitmaps })
}

/// The file is not to be used.
pub(super) fn damaged(path: &Path, why: &str) -> ImageError {
    let message = format!(
        "the qcow2 image {} is damaged: {why}; look at it with `qemu-img check`, or copy it again",
        path.display()
    );
    ImageError::new(ErrorKind::Damaged, message)
}

/// Where the tables say that the disk's clusters are.
struct Tables {
    cluster_len: u64,
    /// Length of the disk.
    len: u64,
    l1_entries: u32,
    l1_at: u64,
    /// Whether an entry's lowest bit says that its cluster reads as zeros.
    has_zero_flag: bool,
}

impl Tables {
    /// Fails unless the first table covers the disk, and every table and cluster lies where it can, within
    /// the file: what is beyond its end would read as zeros, so a file that was cut would pass for a disk
    /// with holes. Of the disk's last cluster only what is of the disk has to be there, of compressed ones
    /// all sectors; the file's own last sector may be short.
    ///
    /// Cost: reads every table once, 8 bytes for each cluster that the disk can have.
    fn check(&self, path: &Path, file: &File) -> Result<(), ImageError> {
        let failed = |error| ImageError::io("read", path, error);
        let cut = |what: &str| {
            damaged(path, &format!("{what} lies beyond the end of the file, which was cut short"))
        };
        let askew =
            |what: &str| damaged(path, &format!("{what} does not begin where a cluster does"));
        let file_len = file.metadata().map_err(failed)?.len();
        let is_askew = |at: u64| at & (self.cluster_len - 1) != 0;
        let needed = self.len.div_ceil(self.cluster_len * self.cluster_len / ENTRY_LEN);
        if u64::from(self.l1_entries) < needed {
            let why = format!("its first table has {} of {needed} entries", self.l1_entries);
            return Err(damaged(path, &why));
        }
        if self.l1_at.checked_add(needed * ENTRY_LEN).is_none_or(|end| end > file_len) {
            return Err(cut("its first table"));
        }
        if is_askew(self.l1_at) {
            return Err(askew("its first table"));
        }
        let mut table = vec![0; usize::try_from(needed * ENTRY_LEN).unwrap_or(0)];
        file.read_exact_at(&mut table, self.l1_at).map_err(failed)?;
        // Each once: a hostile file can name one of them many times.
        let mut tables: BTreeMap<u64, u64> = BTreeMap::new();
        for (index, entry) in (0..).zip(entries(&table)) {
            tables.entry(entry & OFFSET).or_insert(index);
        }
        let mut table = vec![0; usize::try_from(self.cluster_len).unwrap_or(0)];
        for (at, index) in tables.into_iter().filter(|(at, _)| *at != 0) {
            if is_askew(at) {
                return Err(askew("a table"));
            }
            if at.checked_add(self.cluster_len).is_none_or(|end| end > file_len) {
                return Err(cut("a table"));
            }
            file.read_exact_at(&mut table, at).map_err(failed)?;
            let first = index * (self.cluster_len / ENTRY_LEN);
            for (cluster, entry) in (first..).zip(entries(&table)) {
                if entry & COMPRESSED == 0 && is_askew(entry & OFFSET) {
                    return Err(askew("a cluster of data"));
                }
                if self.end(entry, cluster) > file_len.next_multiple_of(SECTOR) {
                    return Err(cut("a cluster"));
                }
            }
        }
        Ok(())
    }

    /// Where in the file the bytes of an entry of a second table end, which is of the disk's cluster of
    /// that number; 0 if it has none.
    fn end(&self, entry: u64, cluster: u64) -> u64 {
        if entry & COMPRESSED != 0 {
            // Above the place is how many sectors it takes, beside the one that it begins in.
            let bits = 62 - (self.cluster_len.trailing_zeros() - 8);
            let (at, more) = (entry & ((1 << bits) - 1), (entry & (COMPRESSED - 1)) >> bits);
            return (at / SECTOR + 1 + more).saturating_mul(SECTOR);
        }
        let at = entry & OFFSET;
        if at == 0 || self.has_zero_flag && entry & READS_AS_ZEROS != 0 {
            return 0;
        }
        let left = self.len.saturating_sub(cluster.saturating_mul(self.cluster_len));
        at + left.min(self.cluster_len).next_multiple_of(SECTOR)
    }
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table
        .chunks_exact(ENTRY_LEN as usize)
        .map(|entry| entry.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&mut [u8])) -> (ErrorKind, String) {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        header[23] = 16;
        header[28..32].copy_from_slice(&(1_u32 << 30).to_be_bytes());
        header[39] = 2;
        change(&mut header);
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&header, 0).expect("written");
        let outcome = check(Path::new("x.qcow2"), &file);
        let error = outcome.expect_err("refused");
        (error.kind(), error.to_string())
    }

    #[test]
    fn what_would_open_other_files_or_take_too_much_is_refused_by_the_header() {
        for (at, value, kind, says) in [
            (15, 1, ErrorKind::Unsupported, "backing file"),
            (35, 2, ErrorKind::Unsupported, "encrypted"),
            (24, 1, ErrorKind::Unsupported, "the most is"),
            (36, 1, ErrorKind::Damaged, "first table"),
            (79, 1, ErrorKind::Unclean, "qemu-img check -r all"),
            (79, 2, ErrorKind::Damaged, "corrupt"),
            (79, 4, ErrorKind::Unsupported, "another file"),
            (79, 16, ErrorKind::Unsupported, "extended_l2"),
            (79, 128, ErrorKind::Unsupported, "0x80"),
            (7, 9, ErrorKind::NotAnImage, "another version"),
            (23, 60, ErrorKind::NotAnImage, "damaged header"),
        ] {
            let (found, message) = refused(|header| header[at] = value);
            assert_eq!(found, kind, "{message}");
            assert!(message.contains(says), "{message}");
        }
        let (_, message) = refused(|header| {
            header[79] = 8;
            header[104] = 1;
        });
        assert!(message.contains("zstd"), "{message}");
    }

    /// A disk of 1 GiB in clusters of 64 KiB: a header, its first table and one second table, in which
    /// `change` can write; cut to `len`.
    fn table(len: u64, change: impl Fn(&mut [u8])) -> Result<Kept, ImageError> {
        let mut bytes = vec![0; 4 << 16];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[23] = 16;
        bytes[28..32].copy_from_slice(&(1_u32 << 30).to_be_bytes());
        bytes[39] = 2;
        bytes[40..48].copy_from_slice(&(1_u64 << 16).to_be_bytes());
        let entry = |bytes: &mut [u8], at: usize, entry: u64| {
            bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        };
        entry(&mut bytes, 1 << 16, 1 << 63 | 2 << 16);
        entry(&mut bytes, 2 << 16, 1 << 63 | 3 << 16);
        change(&mut bytes);
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&bytes, 0).expect("written");
        file.set_len(len).expect("cut");
        check(Path::new("x.qcow2"), &file)
    }

    #[test]
    fn what_lies_beyond_the_end_of_the_file_is_no_hole() {
        let whole = 4 << 16;
        assert_eq!(table(whole, |_| ()).expect("whole"), Kept::default());
        // The file's last sector may be short, and of the disk's last cluster what is not of the disk.
        table(whole - 100, |_| ()).expect("it ends in the last sector");
        let short_disk = |bytes: &mut [u8]| bytes[24..32].copy_from_slice(&700_u64.to_be_bytes());
        table((3 << 16) + 1024, short_disk).expect("two sectors are of the disk");
        let says = |len: u64, change: &dyn Fn(&mut [u8]), what: &str| {
            let error = table(len, change).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
            assert!(error.to_string().contains(what), "{error} does not say {what}");
        };
        says(3 << 16, &|_| (), "a cluster lies beyond");
        says(whole - 512, &|_| (), "a cluster lies beyond");
        says((3 << 16) + 512, &short_disk, "a cluster lies beyond");
        says((2 << 16) + 512, &|_| (), "a table lies beyond");
        says(1 << 16, &|_| (), "its first table lies beyond");
        says(whole, &|bytes| bytes[40] = 0xFF, "its first table lies beyond");
        says(whole, &|bytes| bytes[39] = 1, "has 1 of 2 entries");
        // Compressed: a place in the middle of a cluster.
        let far = |bytes: &mut [u8]| {
            bytes[(2 << 16) + 8..][..8].copy_from_slice(&(1_u64 << 62 | 5 << 16).to_be_bytes())
        };
        says(whole, &far, "a cluster lies beyond");
        // That begins in the last sector but one: it has a second sector, and has not a third.
        let near = |more: u64| {
            move |bytes: &mut [u8]| {
                let entry = 1_u64 << 62 | more << 54 | ((4 << 16) - 1000);
                bytes[(2 << 16) + 8..][..8].copy_from_slice(&entry.to_be_bytes());
            }
        };
        table(whole, near(1)).expect("within");
        says(whole, &near(2), "a cluster lies beyond");
        // Zeros wherever the cluster is.
        let zeros = |bytes: &mut [u8]| {
            bytes[(2 << 16) + 8..][..8].copy_from_slice(&(9_u64 << 16 | 1).to_be_bytes())
        };
        table(whole, zeros).expect("nothing is read there");
        // Between clusters: what reads it would refuse it later, in other words.
        for (at, entry, what) in [
            (40, 1 << 16 | 512, "its first table does not begin where a cluster does"),
            (1 << 16, 1_u64 << 63 | 2 << 16 | 512, "a table does not begin where a cluster does"),
            (
                (2 << 16) + 8,
                1_u64 << 63 | 3 << 16 | 512,
                "a cluster of data does not begin where a cluster does",
            ),
        ] {
            let askew = |bytes: &mut [u8]| bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
            says(whole, &askew, what);
        }
    }

    #[test]
    fn bitmaps_count_only_where_the_file_says_that_they_are_right() {
        let with = |version: u8| {
            let kept = table(4 << 16, |bytes| {
                bytes[7] = version;
                bytes[95] = 1;
            });
            kept.expect("it can be read").bitmaps
        };
        assert!(with(3) && !with(2));
    }
}
