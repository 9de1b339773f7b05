//! Where the bytes come from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that can be read at any position, by several threads at once.
pub trait Source: Send + Sync {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    ///
    /// As reading; also if the bytes end before `buffer` is full.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// How many bytes there are.
    ///
    /// # Errors
    ///
    /// As asking for a file's metadata.
    fn byte_len(&self) -> io::Result<u64>;
}

impl Source for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Source for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = at.checked_add(buffer.len()).and_then(|end| self.get(at..end));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn byte_len(&self) -> io::Result<u64> {
        Ok(u64::try_from(self.len()).unwrap_or(u64::MAX))
    }
}

/// A part of a file, or of other bytes: one partition of a disk image.
#[derive(Debug)]
pub struct Partition<S = File> {
    disk: S,
    offset: u64,
    len: u64,
}

impl<S: Source> Partition<S> {
    /// The `len` bytes of `disk` from `offset` on.
    #[must_use]
    pub fn new(disk: S, offset: u64, len: u64) -> Self {
        Self { disk, offset, len }
    }
}

impl<S: Source> Source for Partition<S> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let len = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let within = offset.checked_add(len).is_some_and(|end| end <= self.len);
        let at = self.offset.checked_add(offset).filter(|_| within);
        self.disk.read_exact_at(buffer, at.ok_or(io::ErrorKind::UnexpectedEof)?)
    }

    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_ends_where_it_says() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(b"0123456789", 0).expect("written");
        let partition = Partition::new(file, 2, 5);
        let mut buffer = [0; 3];
        partition.read_exact_at(&mut buffer, 2).expect("within");
        assert_eq!(&buffer, b"456");
        assert!(partition.read_exact_at(&mut buffer, 3).is_err(), "its neighbour's bytes");
        assert!(partition.read_exact_at(&mut buffer, u64::MAX).is_err());
        assert!(b"01".to_vec().read_exact_at(&mut buffer, 0).is_err());
    }
}
