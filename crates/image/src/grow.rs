//! Growing an image: the file, the partition at its end, the file system in it.
//!
//! For clones alone, which are thrown away if a step fails. The table's own crate cannot be used
//! for writing: it numbers partitions anew, and machines name theirs by number. What is changed is
//! one entry and the two headers (UEFI specification, 5.3), each with its checksum.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use vireo_model::{ChangeSet, Grow};
use vireo_sys::loopdev::{LoopDevice, Window};
use vireo_tree::Shortage;

use crate::bytes::{le32, le64};
use crate::disk::DiskImage;
use crate::fsck::{excerpt, run_on, said};
use crate::partition::{
    GPT_ENTRY_LEN, GPT_HEADER_LEN, Layout, MAX_GPT_ENTRIES, MBR_ENTRIES, MBR_ENTRY_LEN, MBR_FIRST,
    MBR_KIND, MBR_PROTECTIVE, MBR_SECTORS, Partition, RootPartition, SECTOR,
};
use crate::probe::FileSystemKind;
use crate::{ErrorKind, ImageError};

/// Lengths of images are multiples of this, in bytes, as tools align partitions.
const ALIGNMENT: u64 = 1 << 20;
/// What a file system needs beside the content of its files, in bytes, at least.
const MIN_SLACK: u64 = 32 << 20;
/// Length of a block that every file's content is rounded up to, in bytes.
const BLOCK: u64 = 4096;
/// Longest image that one is grown to, in bytes: a bundle can claim any length.
pub const MAX_GROWN_LEN: u64 = 16 << 40;

/// How often an image is grown anew because an update still does not fit.
const MAX_TRIES: u32 = 3;

/// Length of an entry of a GUID partition table, for counting in memory.
const ENTRY_LEN: usize = GPT_ENTRY_LEN as usize;
/// Length of the four entries of an MBR, in bytes.
const MBR_TABLE_LEN: usize = 4 * MBR_ENTRY_LEN;

/// How many bytes of space staging `changes` takes, at most: what is replaced stays until the end.
fn needed(changes: &ChangeSet) -> u64 {
    let len = |change: &vireo_model::Change| {
        let after = change.after.as_ref()?.content()?;
        let before = change.before.as_ref().and_then(|node| node.content());
        (before != Some(after)).then(|| after.0.div_ceil(BLOCK).saturating_mul(BLOCK))
    };
    let content = changes.changes.iter().fold(0_u64, |sum, change| {
        sum.saturating_add(len(change).unwrap_or(0).saturating_add(BLOCK))
    });
    // Maps of blocks, directories, the journal's share: an eighth, and some.
    content.saturating_add(content / 8).saturating_add(MIN_SLACK)
}

/// How an image that is too small grows from one try to the next.
#[derive(Debug)]
pub(crate) struct Growth {
    grow: Grow,
    needed: u64,
    tries: u32,
}

/// To which length, or by how many bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Len {
    To(u64),
    By(u64),
}

impl Growth {
    pub(crate) fn new(grow: Grow, changes: &ChangeSet) -> Self {
        Self { grow, needed: needed(changes), tries: 0 }
    }

    /// What to try next; twice as much each time. None if nothing is left to be tried, or growing would
    /// not help: `shortage` is what was seen to lack.
    pub(crate) fn next(&mut self, shortage: Option<&Shortage>) -> Option<Len> {
        if let Some(shortage) = shortage {
            if !shortage.at.is_root() {
                return None;
            }
            // ext4 makes inodes with the groups of blocks that a longer file system has.
            let inodes = shortage.inodes.saturating_mul(shortage.len_per_inode);
            self.needed = self.needed.max(inodes.saturating_add(inodes / 8));
        }
        self.tries += 1;
        match self.grow {
            Grow::To(len) if self.tries == 1 => Some(Len::To(len)),
            Grow::Auto if self.tries <= MAX_TRIES => {
                Some(Len::By(self.needed.saturating_mul(1 << (self.tries - 1))))
            }
            _ => None,
        }
    }
}

/// Why something is not grown.
type Refusal = (ErrorKind, String);

/// Grows the raw image `image`, which nobody uses and which messages call `name`, to at most `most`
/// bytes.
///
/// # Errors
///
/// `Unsupported` if its root is no ext file system at the end of the image or `resize2fs` cannot grow
/// it, `Damaged` if its file system or its table is, `NoSpace` if it is that long already or would
/// become too long.
pub(crate) fn grow(
    (image, name): (&Path, &Path),
    root: RootPartition,
    by: Len,
    most: u64,
) -> Result<(), ImageError> {
    let failed = |error: io::Error| ImageError::io("grow", name, error);
    let refused = |(kind, why): Refusal| {
        ImageError::new(kind, format!("{} cannot be grown: {why}", name.display()))
    };
    let disk = DiskImage::open(image, root)?;
    let file = File::options().read(true).write(true).open(image).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let to = match by {
        Len::To(to) => to,
        Len::By(more) => len.saturating_add(more),
    };
    let to = to.div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT);
    check(&disk, len, to, most).map_err(refused)?;
    file.set_len(to).map_err(failed)?;
    let partition = disk.partition();
    let grown = grow_partition(&file, partition, to).map_err(failed)?.map_err(refused)?;
    file.sync_all().map_err(failed)?;
    let window = Window { offset: partition.offset, len: grown, read_only: false };
    resize((image, name), &file, window)
}

fn check(disk: &DiskImage, len: u64, to: u64, most: u64) -> Result<(), Refusal> {
    let (partition, kind) = (disk.partition(), disk.kind());
    if kind != FileSystemKind::Ext {
        let why = format!("its root is {}, and only ext4 is grown; grow it by hand", kind.name());
        return Err((ErrorKind::Unsupported, why));
    }
    if partition.offset < disk.end_of_others() {
        let why = format!(
            "its root, {}, is not the last one; make room by hand (sfdisk, resize2fs)",
            partition.describe()
        );
        return Err((ErrorKind::Unsupported, why));
    }
    if to <= len {
        let why = format!("it has {len} bytes already, and should have {to}; ask for more");
        return Err((ErrorKind::NoSpace, why));
    }
    if to > most {
        let why = format!("it would have {to} bytes, and the most is {most}; make room in it");
        return Err((ErrorKind::NoSpace, why));
    }
    Ok(())
}

/// Has the table, if there is one, say that `partition` reaches to the end of the image, which has `to`
/// bytes; gives its length.
fn grow_partition(file: &File, partition: &Partition, to: u64) -> io::Result<Result<u64, Refusal>> {
    match partition.layout {
        Layout::Whole => Ok(Ok(to)),
        Layout::Gpt => grow_gpt(file, partition, to),
        Layout::Mbr => {
            let why = "its root is a logical partition, has another one behind it, or would be longer than \
                       an MBR can say; make room by hand (sfdisk, resize2fs)";
            let grown = grow_mbr(file, partition, to)?;
            Ok(grown.ok_or((ErrorKind::Unsupported, why.to_owned())))
        }
    }
}

/// Has the file system in `window` take all of it.
fn resize((image, name): (&Path, &Path), file: &File, window: Window) -> Result<(), ImageError> {
    let device =
        LoopDevice::attach(file, window).map_err(|error| ImageError::io("attach", image, error))?;
    // resize2fs wants it checked since it was last mounted.
    for command in [&["e2fsck", "-fp"][..], &["resize2fs"]] {
        let output = run_on(device.path(), image, command, "e2fsprogs")?;
        let program = command.first().copied().unwrap_or_default();
        // e2fsck's 1 says that it corrected something, in a clone.
        if !matches!((program, output.status.code()), (_, Some(0)) | ("e2fsck", Some(1))) {
            // What e2fsck found is on its standard output. The device is gone when this is read.
            let said = said(&output.stdout, name) + &said(&output.stderr, name);
            let said = said.replace(&*device.path().to_string_lossy(), "it");
            let (kind, remedy) = match program {
                "e2fsck" => {
                    (ErrorKind::Damaged, "repair it (`e2fsck -f`), or begin with a sound image")
                }
                _ => (ErrorKind::Unsupported, "make room by hand (sfdisk, resize2fs)"),
            };
            let (name, said) = (name.display(), excerpt(said.trim_end_matches("; ")));
            let message = format!("{name} cannot be grown: {program}: {said}; {remedy}");
            return Err(ImageError::new(kind, message));
        }
    }
    Ok(())
}

/// Gives the entry of `partition` all up to the second copy of the table, which moves to the end of
/// the `len` bytes; gives the partition's length.
fn grow_gpt(file: &File, partition: &Partition, len: u64) -> io::Result<Result<u64, Refusal>> {
    let Some((mut header, mut entries)) = read_gpt(file)? else {
        let why = "the first copy of its GUID partition table is damaged; repair it (`sgdisk -v`, `gdisk`)";
        return Ok(Err((ErrorKind::Damaged, why.to_owned())));
    };
    // At the end: the entries, then the header.
    let table = (entries.len() as u64).div_ceil(SECTOR);
    let last = (len / SECTOR).saturating_sub(1);
    let end_of_table = last.saturating_sub(table);
    let end = (end_of_table * SECTOR / ALIGNMENT * ALIGNMENT / SECTOR).saturating_sub(1);
    let index = usize::try_from(partition.number).ok().and_then(|n| n.checked_sub(1));
    let entry = index.and_then(|index| entries.get_mut(index * ENTRY_LEN..));
    let entry = entry.filter(|e| le64(e, 32).checked_mul(SECTOR) == Some(partition.offset));
    let Some(entry) = entry else {
        let why =
            "the two copies of its GUID partition table differ; repair it (`sgdisk -v`, `gdisk`)";
        return Ok(Err((ErrorKind::Damaged, why.to_owned())));
    };
    // Lengths that no tool has aligned: rounding down must not cut it.
    let end = end.max(le64(entry, 40));
    if end >= end_of_table {
        let why = format!("{len} bytes leave no room behind it for the copy of its table");
        return Ok(Err((ErrorKind::NoSpace, why)));
    }
    entry[40..48].copy_from_slice(&end.to_le_bytes());
    let first = le64(&header, 72);
    header[48..56].copy_from_slice(&(end_of_table - 1).to_le_bytes());
    header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
    file.write_all_at(&entries, end_of_table * SECTOR)?;
    file.write_all_at(&head(header, (last, 1), end_of_table), last * SECTOR)?;
    file.write_all_at(&entries, first * SECTOR)?;
    file.write_all_at(&head(header, (1, last), first), SECTOR)?;
    protect(file, last)?;
    Ok(Ok(((end + 1) * SECTOR).saturating_sub(partition.offset)))
}

/// The first header of a table and its entries; `None` if they are not as they should be.
fn read_gpt(file: &File) -> io::Result<Option<([u8; GPT_HEADER_LEN], Vec<u8>)>> {
    let mut header = [0; GPT_HEADER_LEN];
    file.read_exact_at(&mut header, SECTOR)?;
    let count = le32(&header, 80);
    let plain = header.starts_with(b"EFI PART")
        && le32(&header, 12) == GPT_HEADER_LEN as u32
        && le32(&header, 84) == GPT_ENTRY_LEN
        && (1..=MAX_GPT_ENTRIES).contains(&count);
    let first = le64(&header, 72).checked_mul(SECTOR);
    let Some(first) = first.filter(|_| plain) else { return Ok(None) };
    let mut entries = vec![0; count as usize * ENTRY_LEN];
    file.read_exact_at(&mut entries, first)?;
    let is_whole = crc32fast::hash(&entries) == le32(&header, 88);
    Ok(is_whole.then_some((header, entries)))
}

/// The header of one of two copies, with where it, the other one and its entries are.
fn head(
    mut head: [u8; GPT_HEADER_LEN],
    (own, other): (u64, u64),
    entries_at: u64,
) -> [u8; GPT_HEADER_LEN] {
    head[24..32].copy_from_slice(&own.to_le_bytes());
    head[32..40].copy_from_slice(&other.to_le_bytes());
    head[72..80].copy_from_slice(&entries_at.to_le_bytes());
    head[16..20].fill(0);
    let sum = crc32fast::hash(&head);
    head[16..20].copy_from_slice(&sum.to_le_bytes());
    head
}

/// Has the protective entry of the MBR cover the disk up to the sector `last`, as far as it can say. In
/// a hybrid MBR it need not be the first; where partitions begin behind it, it ends before them, and stays.
fn protect(file: &File, last: u64) -> io::Result<()> {
    let mut table = [0; MBR_TABLE_LEN];
    file.read_exact_at(&mut table, MBR_ENTRIES as u64)?;
    let entries = || table.chunks_exact(MBR_ENTRY_LEN).filter(|entry| entry[MBR_KIND] != 0);
    let Some(begins) = entries().map(|entry| le32(entry, MBR_FIRST)).max() else { return Ok(()) };
    for (index, entry) in table.chunks_exact(MBR_ENTRY_LEN).enumerate() {
        if entry[MBR_KIND] == MBR_PROTECTIVE && le32(entry, MBR_FIRST) == begins {
            let covers = (last + 1).saturating_sub(begins.into());
            let covers = u32::try_from(covers).unwrap_or(u32::MAX);
            file.write_all_at(&covers.to_le_bytes(), in_entry(index, MBR_SECTORS))?;
        }
    }
    Ok(())
}

/// Where the entry of that number of an MBR has `field`, in the file.
fn in_entry(index: usize, field: usize) -> u64 {
    (MBR_ENTRIES + index * MBR_ENTRY_LEN + field) as u64
}

/// The same for a primary partition of a master boot record; `None` where that cannot say it.
fn grow_mbr(file: &File, partition: &Partition, len: u64) -> io::Result<Option<u64>> {
    let new_len = len - partition.offset;
    let (1..=4, Ok(sectors)) = (partition.number, u32::try_from(new_len / SECTOR)) else {
        return Ok(None);
    };
    let mut table = [0; MBR_TABLE_LEN];
    file.read_exact_at(&mut table, MBR_ENTRIES as u64)?;
    let first = u32::try_from(partition.offset / SECTOR).unwrap_or(u32::MAX);
    // An extended partition can be empty: it is among no partitions then, and has its place all the same.
    let is_behind = table
        .chunks_exact(MBR_ENTRY_LEN)
        .any(|entry| entry[MBR_KIND] != 0 && le32(entry, MBR_FIRST) > first);
    if is_behind {
        return Ok(None);
    }
    let index = (partition.number - 1) as usize;
    file.write_all_at(&sectors.to_le_bytes(), in_entry(index, MBR_SECTORS))?;
    Ok(Some(u64::from(sectors) * SECTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of `len` bytes with a GUID table, of which partition 1 begins at `first` and ends at `end`,
    /// both in sectors.
    fn disk(len: u64, first: u64, end: u64) -> (File, Partition) {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(len).expect("sized");
        let mut entries = vec![0; 128 * ENTRY_LEN];
        entries[32..40].copy_from_slice(&first.to_le_bytes());
        entries[40..48].copy_from_slice(&end.to_le_bytes());
        let mut header = [0; GPT_HEADER_LEN];
        header[..8].copy_from_slice(b"EFI PART");
        header[12] = GPT_HEADER_LEN as u8;
        header[80] = 128;
        header[84] = ENTRY_LEN as u8;
        header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        file.write_all_at(&head(header, (1, len / SECTOR - 1), 2), SECTOR).expect("written");
        file.write_all_at(&entries, 2 * SECTOR).expect("written");
        let whole = Partition::whole(len);
        let partition =
            Partition { layout: Layout::Gpt, number: 1, offset: first * SECTOR, ..whole };
        (file, partition)
    }

    #[test]
    fn a_table_in_a_mebibyte_grows_without_cutting_what_it_has() {
        let (file, partition) = disk(600 << 10, 40, 1100);
        file.set_len(ALIGNMENT).expect("longer");
        let grown = grow_gpt(&file, &partition, ALIGNMENT).expect("readable").expect("it fits");
        assert_eq!(grown, (1101 - 40) * SECTOR, "all that it had");
        let (kind, why) =
            grow_gpt(&file, &partition, 540 << 10).expect("readable").expect_err("too short");
        assert_eq!(kind, ErrorKind::NoSpace, "{why}");
    }

    #[test]
    fn a_damaged_table_is_named_as_one_with_what_to_do() {
        let (file, partition) = disk(4 << 20, 40, 1100);
        file.write_all_at(b"x", 2 * SECTOR).expect("written");
        let refused = grow_gpt(&file, &partition, 8 << 20).expect("readable");
        let (kind, why) = refused.expect_err("its sum is wrong");
        assert_eq!(kind, ErrorKind::Damaged);
        assert!(why.contains("sgdisk -v"), "{why}");
    }

    #[test]
    fn the_protective_entry_grows_wherever_it_is_and_no_other_one() {
        let entry = |kind: u8, first: u32, sectors: u32| {
            let mut entry = [0; 16];
            entry[4] = kind;
            entry[8..12].copy_from_slice(&first.to_le_bytes());
            entry[12..].copy_from_slice(&sectors.to_le_bytes());
            entry
        };
        let none = [0; 16];
        let plain = [entry(0xEE, 1, 99), none, none, none];
        // What is made bootable first, and what lies behind it.
        let last = [entry(0x0C, 2, 8), entry(0x83, 10, 20), entry(0xEE, 30, 70), none];
        // As gdisk makes it: it ends where the first partition begins.
        let first = [entry(0xEE, 1, 9), entry(0x83, 10, 89), none, none];
        let with = |table: [[u8; 16]; 4], at: usize, grown: [u8; 16]| {
            let mut table = table;
            table[at] = grown;
            table
        };
        for (table, expected) in [
            (plain, with(plain, 0, entry(0xEE, 1, 199))),
            (last, with(last, 2, entry(0xEE, 30, 170))),
            (first, first),
        ] {
            let file = tempfile::tempfile().expect("a temporary file");
            file.write_all_at(table.as_flattened(), MBR_ENTRIES as u64).expect("written");
            protect(&file, 199).expect("there");
            let mut found = [0; MBR_TABLE_LEN];
            file.read_exact_at(&mut found, MBR_ENTRIES as u64).expect("there");
            assert_eq!(found, expected.as_flattened());
        }
    }
}
