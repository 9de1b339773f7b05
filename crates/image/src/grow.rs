//! Growing an image: the file, the partition at its end, the file system in it.
//!
//! For clones alone, which are thrown away if a step fails. The table's own crate cannot be used
//! for writing: it numbers partitions anew, and machines name theirs by number. What is changed is
//! one entry and the two headers (UEFI specification, 5.3), each with its checksum.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use vireo_model::ChangeSet;
use vireo_sys::loopdev::{LoopDevice, Window};

use crate::bytes::{le32, le64};
use crate::disk::DiskImage;
use crate::fsck::run_on;
use crate::partition::{Layout, Partition, RootPartition};
use crate::probe::FileSystemKind;
use crate::{ErrorKind, ImageError};

/// How much an image may grow for an update that needs more space than its root file system has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grow {
    /// Not at all: the update is refused.
    #[default]
    No,
    /// By what the update needs.
    Auto,
    /// To this length of the image in bytes.
    To(u64),
}

/// Lengths of images are multiples of this, in bytes, as tools align partitions.
const ALIGNMENT: u64 = 1 << 20;
/// What a file system needs beside the content of its files, in bytes, at least.
const MIN_SLACK: u64 = 32 << 20;
/// Length of a block that every file's content is rounded up to, in bytes.
const BLOCK: u64 = 4096;
/// Longest image that one is grown to, in bytes: a bundle can claim any length.
const MAX_LEN: u64 = 16 << 40;

/// How often an image is grown anew because an update still does not fit.
const MAX_TRIES: u32 = 3;

const SECTOR: u64 = 512;
const HEADER_LEN: usize = 92;
const ENTRY_LEN: usize = 128;
/// Most entries of a table; those with more are not read at all.
const MAX_ENTRIES: usize = 1024;

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

    /// What to try next; twice as much each time. None if nothing is left to be tried.
    pub(crate) fn next(&mut self) -> Option<Len> {
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

/// Grows the raw image `image`, which nobody uses and which messages call `name`.
///
/// # Errors
///
/// `Unsupported` if its root is no ext file system at the end of the image or `resize2fs` cannot grow
/// it, `NoSpace` if it is that long already or would become too long.
pub(crate) fn grow(
    image: &Path,
    name: &Path,
    root: RootPartition,
    by: Len,
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
    check(&disk, len, to).map_err(refused)?;
    file.set_len(to).map_err(failed)?;
    let partition = disk.partition();
    let grown = grow_partition(&file, partition, to).map_err(failed)?.map_err(refused)?;
    file.sync_all().map_err(failed)?;
    let window = Window { offset: partition.offset, len: grown, read_only: false };
    resize((image, name), &file, window)
}

fn check(disk: &DiskImage, len: u64, to: u64) -> Result<(), Refusal> {
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
    if to <= len || to > MAX_LEN {
        let why = format!("it has {len} bytes, should have {to}, and the most is {MAX_LEN}");
        return Err((ErrorKind::NoSpace, why));
    }
    Ok(())
}

/// Has the table, if there is one, say that `partition` reaches to the end of the image, which has `to`
/// bytes; gives its length.
fn grow_partition(file: &File, partition: &Partition, to: u64) -> io::Result<Result<u64, Refusal>> {
    let (grown, kind, why) = match partition.layout {
        Layout::Whole => return Ok(Ok(to)),
        Layout::Gpt => {
            let why = format!("{to} bytes leave no room behind it for the copy of its table");
            (grow_gpt(file, partition, to)?, ErrorKind::NoSpace, why)
        }
        Layout::Mbr => {
            let why = "its root is a logical partition, has another one behind it, or would be longer than \
                       an MBR can say; make room by hand (sfdisk, resize2fs)";
            (grow_mbr(file, partition, to)?, ErrorKind::Unsupported, why.to_owned())
        }
    };
    Ok(grown.ok_or((kind, why)))
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
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            let message = format!("{} cannot be grown: {program}: {said}", name.display());
            return Err(ImageError::new(ErrorKind::Unsupported, message));
        }
    }
    Ok(())
}

/// Gives the entry of `partition` all up to the second copy of the table, which moves to the end of
/// the `len` bytes; gives the partition's length, `None` if there is no room between.
fn grow_gpt(file: &File, partition: &Partition, len: u64) -> io::Result<Option<u64>> {
    let bad = || io::Error::other("its GUID partition table cannot be changed");
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, SECTOR)?;
    let count = usize::try_from(le32(&header, 80)).unwrap_or(usize::MAX);
    let plain = header.starts_with(b"EFI PART")
        && le32(&header, 12) == HEADER_LEN as u32
        && le32(&header, 84) == ENTRY_LEN as u32
        && (1..=MAX_ENTRIES).contains(&count);
    if !plain {
        return Err(bad());
    }
    let mut entries = vec![0; count * ENTRY_LEN];
    let first = le64(&header, 72).checked_mul(SECTOR).ok_or_else(bad)?;
    file.read_exact_at(&mut entries, first)?;
    let crc = |bytes: &[u8]| crc32fast::hash(bytes);
    if crc(&entries) != le32(&header, 88) {
        return Err(bad());
    }
    // At the end: the entries, then the header.
    let table = (entries.len() as u64).div_ceil(SECTOR);
    let last = len / SECTOR - 1;
    let end = (last - table) * SECTOR / ALIGNMENT * ALIGNMENT / SECTOR - 1;
    let index = usize::try_from(partition.number).ok().and_then(|n| n.checked_sub(1));
    let entry = index.and_then(|index| entries.get_mut(index * ENTRY_LEN..)).ok_or_else(bad)?;
    if le64(entry, 32).checked_mul(SECTOR) != Some(partition.offset) {
        return Err(bad());
    }
    // Lengths that no tool has aligned: rounding down must not cut it.
    let end = end.max(le64(entry, 40));
    if end >= last - table {
        return Ok(None);
    }
    entry[40..48].copy_from_slice(&end.to_le_bytes());
    let head = |own: u64, other: u64, entries_at: u64| {
        let mut head = header;
        head[24..32].copy_from_slice(&own.to_le_bytes());
        head[32..40].copy_from_slice(&other.to_le_bytes());
        head[48..56].copy_from_slice(&(last - table - 1).to_le_bytes());
        head[72..80].copy_from_slice(&entries_at.to_le_bytes());
        head[88..92].copy_from_slice(&crc(&entries).to_le_bytes());
        head[16..20].fill(0);
        let sum = crc(&head);
        head[16..20].copy_from_slice(&sum.to_le_bytes());
        head
    };
    file.write_all_at(&entries, (last - table) * SECTOR)?;
    file.write_all_at(&head(last, 1, last - table), last * SECTOR)?;
    file.write_all_at(&entries, first)?;
    file.write_all_at(&head(1, last, first / SECTOR), SECTOR)?;
    // The protective entry covers the whole disk, as far as it can say.
    let covers = u32::try_from(last).unwrap_or(u32::MAX);
    file.write_all_at(&covers.to_le_bytes(), 446 + 12)?;
    Ok(Some((end + 1) * SECTOR - partition.offset))
}

/// The same for a primary partition of a master boot record; `None` where that cannot say it.
fn grow_mbr(file: &File, partition: &Partition, len: u64) -> io::Result<Option<u64>> {
    let new_len = len - partition.offset;
    let (1..=4, Ok(sectors)) = (partition.number, u32::try_from(new_len / SECTOR)) else {
        return Ok(None);
    };
    let mut table = [0; 64];
    file.read_exact_at(&mut table, 446)?;
    let first = u32::try_from(partition.offset / SECTOR).unwrap_or(u32::MAX);
    // An extended partition can be empty: it is among no partitions then, and has its place all the same.
    let is_behind = table.chunks_exact(16).any(|entry| {
        let begins = le32(entry, 8);
        entry[4] != 0 && begins > first
    });
    if is_behind {
        return Ok(None);
    }
    let entry = 446 + 16 * u64::from(partition.number - 1);
    file.write_all_at(&sectors.to_le_bytes(), entry + 12)?;
    Ok(Some(u64::from(sectors) * SECTOR))
}
