//! Copies of large files: shared blocks where the file system can, else data without the holes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

/// How a copy was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloneKind {
    /// Blocks are shared until written (btrfs, XFS): milliseconds, no space.
    Reflink,
    /// Data was copied, holes were left out.
    Sparse,
}

/// Makes the empty file `to` hold what `from` holds, as cheaply as the file systems allow.
/// Nothing is synced.
///
/// # Errors
///
/// As `ioctl_ficlone(2)`, `copy_file_range(2)`, `lseek(2)`: no space among them.
pub fn clone(from: &File, to: &File) -> io::Result<CloneKind> {
    match ioctl_ficlone(to, from) {
        Ok(()) => return Ok(CloneKind::Reflink),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY) => {}
        Err(error) => return Err(error.into()),
    }
    let len = from.metadata()?.len();
    ftruncate(to, len)?;
    let mut end = 0;
    while let Some(range) = next_data(from, end, len)? {
        copy_range(from, to, range.start, range.end)?;
        end = range.end;
    }
    Ok(CloneKind::Sparse)
}

/// The first range of data at or after `at` in a file of `len` bytes; `None` if only a hole is
/// left. File systems without holes report one range.
///
/// # Errors
///
/// As `lseek(2)` with `SEEK_DATA`.
pub fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    if at >= len {
        return Ok(None);
    }
    let start = match seek(file.as_fd(), SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file.as_fd(), SeekFrom::Hole(start))?.min(len);
    Ok((start < end).then_some(start..end))
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let want = usize::try_from((end - read_at).min(1 << 30)).unwrap_or(1 << 30);
        let copied = match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), want)
        {
            Ok(copied) => copied,
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return copy_bytes(from, to, read_at, end);
            }
            Err(error) => return Err(error.into()),
        };
        if copied == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file got shorter while it was copied",
            ));
        }
    }
    Ok(())
}

/// For pairs of file systems that cannot copy inside the kernel.
fn copy_bytes(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let mut buffer = vec![0; 1 << 20];
    let mut at = start;
    while at < end {
        let want = usize::try_from((end - at).min(buffer.len() as u64)).unwrap_or(buffer.len());
        from.read_exact_at(&mut buffer[..want], at)?;
        to.write_all_at(&buffer[..want], at)?;
        at += want as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn a_copy_equals_its_source_and_keeps_its_holes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let open = |name: &str| {
            let path = dir.path().join(name);
            File::options().create_new(true).read(true).write(true).open(path).expect("opens")
        };
        let (from, to) = (open("from"), open("to"));
        from.set_len(64 << 20).expect("a hole");
        from.write_all_at(b"start", 0).expect("written");
        from.write_all_at(&[7; 70_000], 33 << 20).expect("written");

        clone(&from, &to).expect("copied");
        let mut read = vec![1; 70_002];
        to.read_exact_at(&mut read, (33 << 20) - 1).expect("readable");
        assert_eq!((read[0], read[1], read[70_000], read[70_001]), (0, 7, 7, 0));
        let blocks = to.metadata().expect("metadata").blocks();
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks: the holes were filled");
        assert_eq!(to.metadata().expect("metadata").len(), 64 << 20);
    }
}
