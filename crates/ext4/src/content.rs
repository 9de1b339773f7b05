//! What a file, a directory or a symbolic link contains.

use std::ops::Range;

use vireo_model::{Digest, Hasher};

use crate::Ext4Error;
use crate::bytes::to_usize;
use crate::extent::Extent;
use crate::volume::Volume;

/// Bytes read at a time for hashing; also the memory that each thread needs.
pub(crate) const BUFFER_LEN: usize = 256 << 10;

/// Zeros for holes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The bytes of one inode.
#[derive(Debug)]
pub struct Content<'a> {
    volume: &'a Volume,
    len: u64,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// In blocks.
    Blocks(Vec<Extent>),
    /// In the inode itself.
    Inline(Vec<u8>),
}

impl<'a> Content<'a> {
    pub(crate) fn in_blocks(volume: &'a Volume, len: u64, extents: Vec<Extent>) -> Self {
        Self { volume, len, place: Place::Blocks(extents) }
    }

    pub(crate) fn inline(volume: &'a Volume, len: u64, bytes: Vec<u8>) -> Self {
        Self { volume, len, place: Place::Inline(bytes) }
    }

    /// Length in bytes.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.len
    }

    /// The extents; none if it stands in the inode itself.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        match &self.place {
            Place::Blocks(extents) => extents,
            Place::Inline(_) => &[],
        }
    }

    /// Whether some of its length takes no blocks.
    #[must_use]
    pub fn is_sparse(&self) -> bool {
        match &self.place {
            Place::Blocks(extents) => {
                let blocks = extents.iter().fold(0_u64, |sum, e| sum.saturating_add(e.len));
                blocks.saturating_mul(self.volume.block_len()) < self.len
            }
            Place::Inline(_) => false,
        }
    }

    /// Fills `buffer` from `offset` on, as far as there is content; returns how many bytes that
    /// were. Holes read as zeros.
    ///
    /// # Errors
    ///
    /// As reading the image.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Ext4Error> {
        let left = self.len.saturating_sub(offset);
        let len = to_usize(left).min(buffer.len());
        let buffer = buffer.get_mut(..len).unwrap_or(&mut []);
        match &self.place {
            Place::Inline(bytes) => {
                let from = bytes.get(to_usize(offset)..).unwrap_or(&[]);
                buffer.fill(0);
                buffer.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
            Place::Blocks(extents) => self.read_blocks(extents, offset, buffer)?,
        }
        Ok(len)
    }

    fn read_blocks(
        &self,
        extents: &[Extent],
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), Ext4Error> {
        let end = offset.saturating_add(u64::try_from(buffer.len()).unwrap_or(u64::MAX));
        let first = extents.partition_point(|extent| self.span(extent).1 <= offset);
        let mut done = 0;
        for extent in extents.iter().skip(first) {
            let (start, extent_end) = self.span(extent);
            if start >= end {
                break;
            }
            if extent.unwritten {
                continue;
            }
            let (from, until) = (start.max(offset), extent_end.min(end));
            let (low, high) = (from.saturating_sub(offset), until.saturating_sub(offset));
            // What lies before is a hole.
            zero(buffer, done..to_usize(low));
            let Some(part) = buffer.get_mut(to_usize(low)..to_usize(high)) else {
                continue;
            };
            let physical = extent.physical.saturating_mul(self.volume.block_len());
            self.volume.read(physical.saturating_add(from.saturating_sub(start)), part)?;
            done = to_usize(high);
        }
        zero(buffer, done..buffer.len());
        Ok(())
    }

    /// First byte of `extent` within the content, and the one behind its last.
    fn span(&self, extent: &Extent) -> (u64, u64) {
        let start = extent.logical.saturating_mul(self.volume.block_len());
        (start, start.saturating_add(extent.len.saturating_mul(self.volume.block_len())))
    }

    /// Where the next byte that is not in a hole stands, at `offset` or behind it, and where the
    /// data that it begins ends.
    fn next_data(&self, offset: u64) -> Option<(u64, u64)> {
        let Place::Blocks(extents) = &self.place else {
            return (offset < self.len).then_some((offset, self.len));
        };
        let first = extents.partition_point(|extent| self.span(extent).1 <= offset);
        let extent = extents.iter().skip(first).find(|extent| !extent.unwritten)?;
        let (start, end) = self.span(extent);
        (start < self.len).then(|| (start.max(offset), end.min(self.len)))
    }

    /// The digest of the whole content; `buffer` is what is read into.
    pub(crate) fn digest(&self, buffer: &mut [u8]) -> Result<Digest, Ext4Error> {
        let mut hasher = Hasher::new();
        let mut at = 0;
        while at < self.len {
            let (start, end) = self.next_data(at).unwrap_or((self.len, self.len));
            while at < start {
                let step = to_usize(start.saturating_sub(at)).min(ZEROS.len());
                hasher.update(ZEROS.get(..step).unwrap_or(&ZEROS));
                at = at.saturating_add(u64::try_from(step).unwrap_or(u64::MAX));
            }
            while at < end {
                let step = to_usize(end.saturating_sub(at)).min(buffer.len());
                let part = buffer.get_mut(..step).unwrap_or(&mut []);
                self.read_at(at, part)?;
                hasher.update(part);
                at = at.saturating_add(u64::try_from(step).unwrap_or(u64::MAX).max(1));
            }
        }
        Ok(hasher.finish())
    }
}

fn zero(buffer: &mut [u8], range: Range<usize>) {
    if let Some(part) = buffer.get_mut(range) {
        part.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_unwritten_blocks_read_as_zeros_wherever_a_read_begins() {
        let disk: Vec<u8> = (0..=255).collect();
        let volume = Volume::new(Box::new(disk.clone()), 16, 16).expect("long enough");
        let extent =
            |logical, physical, len, unwritten| Extent { logical, physical, len, unwritten };
        let extents = vec![extent(1, 4, 2, false), extent(3, 9, 1, true), extent(5, 2, 1, false)];
        let content = Content::in_blocks(&volume, 100, extents);
        let mut expected = vec![0; 100];
        expected[16..48].copy_from_slice(&disk[64..96]);
        expected[80..96].copy_from_slice(&disk[32..48]);
        for offset in 0..=100_usize {
            for len in [0, 1, 15, 16, 17, 100] {
                let mut buffer = vec![0xFF; len];
                let read = content.read_at(offset as u64, &mut buffer).expect("read");
                assert_eq!(read, len.min(100 - offset));
                assert_eq!(buffer[..read], expected[offset..offset + read]);
            }
        }
        for len in [1, 7, 16, 100, 1000] {
            let digest = content.digest(&mut vec![0; len]).expect("read");
            assert_eq!(digest, Digest::of(&expected), "in steps of {len}");
        }
        assert!(content.is_sparse());
    }
}
