//! The blocks of one file system, with what its journal holds laid over them.

use std::collections::BTreeMap;

use crate::bytes::to_usize;
use crate::source::Source;
use crate::{ErrorKind, Ext4Error};

/// First bytes of every block of a journal; a block of data that begins with them is stored in
/// the journal with zeros instead, and marked.
pub(crate) const JOURNAL_MAGIC: [u8; 4] = [0xC0, 0x3B, 0x39, 0x98];

/// Where the newest content of a block stands: in the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Journalled {
    /// Block of the file system that holds the copy.
    pub(crate) copy: u64,
    /// The copy's first bytes are zeros where [`JOURNAL_MAGIC`] belongs.
    pub(crate) escaped: bool,
}

/// Bytes of the file system. Every position is checked against its length.
pub(crate) struct Volume {
    source: Box<dyn Source>,
    block_len: u64,
    blocks: u64,
    journalled: BTreeMap<u64, Journalled>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("block_len", &self.block_len)
            .field("blocks", &self.blocks)
            .field("journalled", &self.journalled.len())
            .finish_non_exhaustive()
    }
}

impl Volume {
    /// `blocks` blocks of `block_len` bytes, all of which the source must have.
    pub(crate) fn new(
        source: Box<dyn Source>,
        block_len: u64,
        blocks: u64,
    ) -> Result<Self, Ext4Error> {
        let has = source
            .byte_len()
            .map_err(|error| Ext4Error::io("cannot ask for the image's length", error))?;
        match blocks.checked_mul(block_len) {
            Some(needs) if needs <= has => {
                Ok(Self { source, block_len, blocks, journalled: BTreeMap::new() })
            }
            _ => Err(Ext4Error::damaged(format!(
                "the file system has {blocks} blocks of {block_len} bytes, the image only {has} bytes: \
                 it is cut short; copy it again"
            ))),
        }
    }

    pub(crate) fn block_len(&self) -> u64 {
        self.block_len
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Lays the journal's blocks over the file system's own.
    pub(crate) fn overlay(&mut self, journalled: BTreeMap<u64, Journalled>) {
        self.journalled = journalled;
    }

    /// Whether the `len` blocks from `first` on are blocks of the file system. The first one,
    /// with the boot sector or the superblock, belongs to no file.
    pub(crate) fn has_blocks(&self, first: u64, len: u64) -> bool {
        first > 0 && first.checked_add(len).is_some_and(|end| end <= self.blocks)
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Ext4Error> {
        let len = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let end = offset.saturating_add(len);
        if end > self.blocks.saturating_mul(self.block_len) {
            return Err(Ext4Error::damaged(format!(
                "bytes {offset} to {end} lie beyond the file system's end"
            )));
        }
        self.source.read_exact_at(buffer, offset).map_err(|error| cannot_read(offset, error))?;
        if !self.journalled.is_empty() && len > 0 {
            self.patch(offset, buffer)?;
        }
        Ok(())
    }

    /// One whole block.
    pub(crate) fn block(&self, block: u64) -> Result<Vec<u8>, Ext4Error> {
        let mut bytes = vec![0; to_usize(self.block_len)];
        self.read(block.saturating_mul(self.block_len), &mut bytes)?;
        Ok(bytes)
    }

    /// Puts the journal's bytes over those of `buffer`, which were read at `offset`.
    fn patch(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Ext4Error> {
        let len = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let end = offset.saturating_add(len);
        let first = offset.checked_div(self.block_len).unwrap_or(0);
        let last = end.saturating_sub(1).checked_div(self.block_len).unwrap_or(0);
        for (block, journalled) in self.journalled.range(first..=last) {
            let start = block.saturating_mul(self.block_len);
            let from = offset.max(start);
            let until = end.min(start.saturating_add(self.block_len));
            let skip = from.saturating_sub(start);
            let (low, high) = (from.saturating_sub(offset), until.saturating_sub(offset));
            let Some(part) = buffer.get_mut(to_usize(low)..to_usize(high)) else {
                continue;
            };
            let at = journalled.copy.saturating_mul(self.block_len).saturating_add(skip);
            self.source.read_exact_at(part, at).map_err(|error| cannot_read(at, error))?;
            if journalled.escaped {
                let magic = JOURNAL_MAGIC.iter().skip(to_usize(skip));
                part.iter_mut().zip(magic).for_each(|(byte, magic)| *byte = *magic);
            }
        }
        Ok(())
    }
}

fn cannot_read(offset: u64, error: std::io::Error) -> Ext4Error {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        let message = format!("the image ends before byte {offset}, within its file system");
        return Ext4Error::new(ErrorKind::Damaged, message);
    }
    Ext4Error::io(format!("cannot read the image at byte {offset}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Volume {
        let bytes = (0..16 * 4_u8).collect::<Vec<u8>>();
        Volume::new(Box::new(bytes), 16, 4).expect("long enough")
    }

    #[test]
    fn what_lies_beyond_the_end_is_refused() {
        let volume = volume();
        let mut buffer = [0; 2];
        volume.read(62, &mut buffer).expect("the last bytes");
        assert_eq!(buffer, [62, 63]);
        let error = volume.read(63, &mut buffer).expect_err("one byte too far");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(volume.read(u64::MAX, &mut buffer).is_err());
        assert!(volume.has_blocks(1, 3) && !volume.has_blocks(1, 4) && !volume.has_blocks(0, 1));
        let error = Volume::new(Box::new(vec![0; 63]), 16, 4).expect_err("cut short");
        assert!(error.to_string().contains("cut short"), "{error}");
    }

    #[test]
    fn journalled_blocks_lie_over_the_others_wherever_a_read_begins() {
        let mut volume = volume();
        volume.overlay(BTreeMap::from([(1, Journalled { copy: 3, escaped: true })]));
        let mut all = [0; 64];
        volume.read(0, &mut all).expect("read");
        let mut expected: Vec<u8> = (0..64).collect();
        expected.copy_within(48..64, 16);
        expected[16..20].copy_from_slice(&JOURNAL_MAGIC);
        assert_eq!(all.to_vec(), expected);
        for from in 0..60 {
            let mut some = [0; 4];
            volume.read(from, &mut some).expect("read");
            let at = usize::try_from(from).expect("small");
            assert_eq!(some.to_vec(), expected[at..at + 4]);
        }
    }
}
