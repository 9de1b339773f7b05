//! Disks in qcow2 files, by the crate `imago`: read in place, expanded to be patched, packed again.
//!
//! The header and the tables are checked ([`header`]) before `imago` sees the file.

mod header;

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
use header::Kept;

/// Length of a cluster of the files written here, in bytes: QEMU's default.
const CLUSTER_LEN: u64 = 64 << 10;
/// Bytes copied or compared at a time; a multiple of [`CLUSTER_LEN`].
const PIECE_LEN: u64 = 1 << 20;

/// An open qcow2 file, for reading.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    access: FormatAccess<ImagoFile>,
    kept: Kept,
}

impl Qcow2 {
    pub(crate) fn open(path: &Path, file: File) -> Result<Self, ImageError> {
        let kept = header::check(path, &file)?;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData => header::damaged(path, &error.to_string()),
            _ => ImageError::io("read the qcow2 image", path, error),
        };
        let storage = ImagoFile::from_open_file(file, StorageOpenOptions::new()).map_err(failed)?;
        let image = imago::qcow2::Qcow2::<ImagoFile>::builder(storage)
            .backing(None)
            .open(DenyImplicitOpenGate::default())
            .map_err(failed)?;
        Ok(Self { access: FormatAccess::new(image), kept })
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

    /// Fails if patching would lose what it keeps beside its disk: snapshots, or the bitmaps of backups
    /// (libvirt's checkpoints).
    pub(crate) fn refuse_kept(&self, path: &Path) -> Result<(), ImageError> {
        let Kept { snapshots, bitmaps } = self.kept;
        let (what, delete) = match (snapshots, bitmaps) {
            (0, false) => return Ok(()),
            (0, true) => ("the bitmaps of backups".to_owned(), "qemu-img bitmap --remove"),
            (snapshots, _) => (format!("{snapshots} snapshots"), "qemu-img snapshot -d"),
        };
        let message = format!(
            "{} keeps {what} inside, which a patched image would not have; delete them (`{delete}`), or \
             patch a copy made by `qemu-img convert`",
            path.display()
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
    let packed = Qcow2 { access: FormatAccess::new(image), kept: Kept::default() };
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

#[cfg(test)]
mod tests {
    use super::*;

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
