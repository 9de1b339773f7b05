//! Disks in qcow2 files, by the crate `imago`: read in place, expanded to be patched, packed again.
//!
//! The header is checked here before `imago` sees the file: what would make it open other files
//! (a backing file, an external data file), what it cannot read (encryption, zstd, extended
//! entries), and numbers that would cost memory. Offsets and bits from QEMU's
//! `docs/interop/qcow2.rst`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use imago::file::File as ImagoFile;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder as _, FormatDriverBuilder as _,
    Mapping, StorageOpenOptions,
};
use vireo_sys::copy::next_data;

use crate::{ErrorKind, ImageError};

/// Longest disk in a qcow2 file, in bytes: a header can claim any length, and expanding it for a
/// patch makes a sparse file of it.
pub(crate) const MAX_VIRTUAL_LEN: u64 = 16 << 40;

/// Most entries of the first table, of 8 bytes each: as much memory as QEMU grants it.
const MAX_L1_ENTRIES: u32 = (32 << 20) / 8;
/// Length of the header as far as it is looked at, in bytes.
const HEADER_LEN: usize = 112;
/// Cluster sizes that the format allows, as powers of two.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Length of a cluster of the files written here, in bytes: QEMU's default.
const CLUSTER_LEN: u64 = 64 << 10;
/// Bytes copied or compared at a time; a multiple of [`CLUSTER_LEN`].
const PIECE_LEN: u64 = 1 << 20;

const INCOMPAT_DIRTY: u64 = 1;
const INCOMPAT_CORRUPT: u64 = 2;
const INCOMPAT_DATA_FILE: u64 = 4;
const INCOMPAT_COMPRESSION: u64 = 8;
const INCOMPAT_EXTENDED: u64 = 16;

/// An open qcow2 file, for reading.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    access: FormatAccess<ImagoFile>,
    snapshots: u32,
}

impl Qcow2 {
    pub(crate) fn open(path: &Path, file: File) -> Result<Self, ImageError> {
        let snapshots = check_header(path, &file)?;
        let failed = |error: io::Error| ImageError::io("read the qcow2 image", path, error);
        let storage = ImagoFile::from_open_file(file, StorageOpenOptions::new()).map_err(failed)?;
        let image = imago::qcow2::Qcow2::<ImagoFile>::builder(storage)
            .backing(None)
            .open(DenyImplicitOpenGate::default())
            .map_err(failed)?;
        Ok(Self { access: FormatAccess::new(image), snapshots })
    }

    /// Length of the disk in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.access.size()
    }

    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.access.read(buffer, offset)
    }

    /// Fails if patching would lose the snapshots that it keeps inside.
    pub(crate) fn refuse_snapshots(&self, path: &Path) -> Result<(), ImageError> {
        if self.snapshots == 0 {
            return Ok(());
        }
        let message = format!(
            "{} keeps {} snapshots inside, which a patched image would not have; delete them \
             (`qemu-img snapshot -d`), or patch a copy made by `qemu-img convert`",
            path.display(),
            self.snapshots
        );
        Err(ImageError::new(ErrorKind::Unsupported, message))
    }

    /// Writes the disk to the empty raw file `to`, with holes where it has nothing but zeros.
    pub(crate) fn expand(&self, to: &File) -> io::Result<()> {
        to.set_len(self.len())?;
        let mut at = 0;
        let mut buffer = vec![0; PIECE_LEN as usize];
        while let Some((start, len)) = self.next_data(at)? {
            let piece = &mut buffer[..len];
            self.access.read(&mut *piece, start)?;
            if piece.iter().any(|byte| *byte != 0) {
                to.write_all_at(piece, start)?;
            }
            at = start + len as u64;
        }
        Ok(())
    }

    /// The next piece at or after `at` that may hold something, at most [`PIECE_LEN`] long.
    fn next_data(&self, mut at: u64) -> io::Result<Option<(u64, usize)>> {
        while at < self.len() {
            let (mapping, len) = self.access.get_mapping(at, self.len() - at)?;
            if len == 0 {
                break;
            }
            if !matches!(mapping, Mapping::Zero { .. }) {
                let len = len.min(PIECE_LEN - at % PIECE_LEN);
                return Ok(Some((at, usize::try_from(len).unwrap_or(1))));
            }
            at += len;
        }
        Ok(None)
    }
}

/// Writes the raw disk `raw` as a qcow2 file into the empty file `to`, which is open for reading
/// and writing, then reads it back and compares.
pub(crate) fn pack(raw: &File, to: File) -> io::Result<()> {
    let len = raw.metadata()?.len();
    let compared = to.try_clone()?;
    let options = StorageOpenOptions::new().write(true);
    let storage = ImagoFile::from_open_file(to, options)?;
    let builder =
        imago::qcow2::Qcow2CreateBuilder::<ImagoFile, FormatAccess<ImagoFile>>::new(storage)
            .size(len)
            .cluster_size(CLUSTER_LEN as usize);
    let image = builder.create_open(DenyImplicitOpenGate::default(), |storage| {
        Ok(imago::qcow2::Qcow2::builder(storage).backing(None).write(true))
    })?;
    let access = FormatAccess::new(image);
    let mut buffer = vec![0; PIECE_LEN as usize];
    each_piece(raw, len, &mut buffer, &mut |piece, start| {
        let clusters = (start..).step_by(CLUSTER_LEN as usize);
        for (cluster, at) in piece.chunks(CLUSTER_LEN as usize).zip(clusters) {
            if cluster.iter().any(|byte| *byte != 0) {
                access.write(cluster, at)?;
            }
        }
        Ok(())
    })?;
    access.flush()?;
    access.sync()?;
    drop(access);
    compare(raw, len, compared)
}

/// Fails unless the qcow2 file `packed` holds the disk `raw`.
fn compare(raw: &File, len: u64, packed: File) -> io::Result<()> {
    let storage = ImagoFile::from_open_file(packed, StorageOpenOptions::new())?;
    let image = imago::qcow2::Qcow2::<ImagoFile>::builder(storage)
        .backing(None)
        .open(DenyImplicitOpenGate::default())?;
    let packed = Qcow2 { access: FormatAccess::new(image), snapshots: 0 };
    let differs = || io::Error::other("what was written as qcow2 reads back differently");
    if packed.len() != len {
        return Err(differs());
    }
    // What either has is compared; where both have nothing there are zeros on both sides.
    let (mut ours, mut theirs) = (vec![0; PIECE_LEN as usize], vec![0; PIECE_LEN as usize]);
    each_piece(raw, len, &mut ours, &mut |piece, start| {
        let other = &mut theirs[..piece.len()];
        packed.access.read(&mut *other, start)?;
        if piece == other { Ok(()) } else { Err(differs()) }
    })?;
    let mut at = 0;
    while let Some((start, len)) = packed.next_data(at)? {
        packed.access.read(&mut theirs[..len], start)?;
        raw.read_exact_at(&mut ours[..len], start)?;
        if ours[..len] != theirs[..len] {
            return Err(differs());
        }
        at = start + len as u64;
    }
    Ok(())
}

/// Calls `take` with the data of the raw disk `raw`, in pieces that begin at a multiple of the
/// length of a cluster.
fn each_piece(
    raw: &File,
    len: u64,
    buffer: &mut [u8],
    take: &mut dyn FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0;
    while let Some(data) = next_data(raw, at, len)? {
        let mut start = data.start.max(at) / CLUSTER_LEN * CLUSTER_LEN;
        start = start.max(at);
        while start < data.end {
            let piece = PIECE_LEN.min(len - start);
            let piece = &mut buffer[..usize::try_from(piece).unwrap_or(1)];
            raw.read_exact_at(piece, start)?;
            take(piece, start)?;
            start += piece.len() as u64;
        }
        at = start;
    }
    Ok(())
}

/// Checks what `imago` does not, or not by name; gives how many snapshots it keeps inside.
fn check_header(path: &Path, file: &File) -> Result<u32, ImageError> {
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
    Ok(u32_at(60))
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
        let outcome = check_header(Path::new("x.qcow2"), &file);
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

    #[test]
    fn a_packed_disk_expands_to_the_same_bytes_and_holes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let open = |name: &str| {
            let path = dir.path().join(name);
            let mut options = File::options();
            options.create(true).truncate(true).read(true).write(true);
            options.open(path).expect("made")
        };
        let raw = open("raw");
        // Not a multiple of a cluster.
        let len = (40 << 20) + 512;
        raw.set_len(len).expect("sized");
        for (at, text) in [(0, "first"), (70_000, "second"), (9 << 20, "third"), (len - 4, "last")]
        {
            raw.write_all_at(text.as_bytes(), at).expect("written");
        }
        pack(&raw, open("disk.qcow2")).expect("packed");
        let path = dir.path().join("disk.qcow2");
        assert!(std::fs::metadata(&path).expect("there").len() < 2 << 20, "it has holes");
        let packed = Qcow2::open(&path, File::open(&path).expect("opens")).expect("its own");
        let expanded = open("expanded");
        packed.expand(&expanded).expect("expanded");
        let read = |file: &File| {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, 0).expect("read");
            bytes
        };
        assert!(read(&raw) == read(&expanded), "other bytes");
        let mut beyond = [0; 2];
        assert!(packed.read_exact_at(&mut beyond, len - 1).is_err());
    }
}
