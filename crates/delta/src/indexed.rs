//! Files of the base by their chunks: where a chunk is, and which file is most like another.

use std::collections::HashMap;
use std::io::Read;

use vireo_model::{Digest, ImagePath};

use crate::chunk::{self, Chunker, Cutter};
use crate::error::{DeltaError, io_step};
use crate::manifest::Segment;

/// A file of the base is like a target's if it has the chunks of one part in so many of it. With less,
/// chunks from several files may make more of it than a delta against one.
const LEAST_ALIKE: u64 = 3;

/// Of short files smaller pieces are remembered, too: an edit leaves none of two or three chunks whole.
const SMALL: Chunker = Chunker { min: 128, avg: 512, max: 4 << 10 };

/// Longest beginning of a file of which small pieces are remembered, in bytes.
const SHORT_LEN: u64 = 128 << 10;

/// Most small pieces that are remembered: bounds memory to some 50 MB.
const MAX_SMALL: usize = 1 << 20;

/// Most chunks that are remembered, whatever the files' sizes: some 8 GiB of them. As full as a table of a
/// power of two gets, bounds memory to some 60 MB, and to half as much more while it grows.
pub(crate) const MAX_CHUNKS: usize = (1 << 20) / 8 * 7;

/// Some files of the base.
#[derive(Debug)]
pub(crate) struct Indexed {
    /// Where a chunk is, by its digest; the first one found.
    chunks: HashMap<Digest, Segment>,
    /// Which file has a small piece, by the beginning of its digest; the first one found. Only a hint.
    small: HashMap<u64, u32>,
    /// The files by number, with their lengths.
    files: HashMap<u32, (ImagePath, u64)>,
    most_chunks: usize,
}

impl Default for Indexed {
    fn default() -> Self {
        let (chunks, small, files) = Default::default();
        Self { chunks, small, files, most_chunks: MAX_CHUNKS }
    }
}

impl Indexed {
    /// Adds the file with this number.
    pub(crate) fn add(
        &mut self,
        source: u32,
        path: &ImagePath,
        content: impl Read,
    ) -> Result<(), DeltaError> {
        let failed = io_step("read the content to be cut into chunks");
        let mut cutter = Cutter::new(content, Chunker::DEFAULT);
        let mut file_len = 0;
        while let Some((offset, bytes)) = cutter.next().map_err(&failed)? {
            self.add_chunk(source, offset, bytes);
            if offset < SHORT_LEN && self.small.len() < MAX_SMALL {
                for piece in chunk::chunk_slices(bytes, SMALL) {
                    self.small.entry(beginning(piece)).or_insert(source);
                }
            }
            file_len = offset + bytes.len() as u64;
        }
        self.files.insert(source, (path.clone(), file_len));
        Ok(())
    }

    /// Adds what `content` has of a file, from `start` on: of its chunks alone, for files that are too large
    /// to be like another one.
    pub(crate) fn add_part(
        &mut self,
        source: u32,
        start: u64,
        content: impl Read,
    ) -> Result<(), DeltaError> {
        let failed = io_step("read the content to be cut into chunks");
        let mut cutter = Cutter::new(content, Chunker::DEFAULT);
        while !self.is_full()
            && let Some((offset, bytes)) = cutter.next().map_err(&failed)?
        {
            self.add_chunk(source, start + offset, bytes);
        }
        Ok(())
    }

    fn add_chunk(&mut self, source: u32, offset: u64, bytes: &[u8]) {
        if !self.is_full() {
            let segment = Segment::Base { source, offset, len: bytes.len() as u64 };
            self.chunks.entry(Digest::of(bytes)).or_insert(segment);
        }
    }

    fn is_full(&self) -> bool {
        self.chunks.len() >= self.most_chunks
    }

    /// Whether the whole file was added.
    pub(crate) fn has(&self, source: u32) -> bool {
        self.files.contains_key(&source)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How many chunks are remembered.
    #[cfg(test)]
    pub(crate) fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// Where the base has this chunk.
    pub(crate) fn get(&self, chunk: &Digest) -> Option<Segment> {
        self.chunks.get(chunk).copied()
    }

    /// The file that has most chunks of `content`, with its length, if it has enough of them; if none has,
    /// the one with most small pieces.
    pub(crate) fn most_alike(&self, content: &[u8]) -> Option<(ImagePath, u64)> {
        let chunks = chunk::chunk_slices(content, Chunker::DEFAULT);
        let by_chunks = chunks.filter_map(|chunk| match self.get(&Digest::of(chunk))? {
            Segment::Base { source, len, .. } => Some((source, len)),
            _ => None,
        });
        let start = &content[..content.len().min(SHORT_LEN as usize)];
        let by_pieces = || {
            let pieces = chunk::chunk_slices(start, Chunker::DEFAULT);
            let pieces = pieces.flat_map(|chunk| chunk::chunk_slices(chunk, SMALL));
            pieces
                .filter_map(|piece| Some((*self.small.get(&beginning(piece))?, piece.len() as u64)))
        };
        let source = most(by_chunks, content.len()).or_else(|| most(by_pieces(), start.len()))?;
        self.files.get(&source).cloned()
    }
}

/// The source that has most bytes of `len`, if these are enough.
fn most(found: impl Iterator<Item = (u32, u64)>, len: usize) -> Option<u32> {
    let mut sums: HashMap<u32, u64> = HashMap::new();
    for (source, len) in found {
        *sums.entry(source).or_default() += len;
    }
    // Of equal ones the first, so that the output is always the same.
    let best = sums.into_iter().max_by_key(|(source, sum)| (*sum, u32::MAX - *source));
    best.filter(|(_, sum)| *sum >= len as u64 / LEAST_ALIKE).map(|(source, _)| source)
}

fn beginning(piece: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&Digest::of(piece).as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn no_more_chunks_are_remembered_than_there_is_room_for() {
        let path = ImagePath::parse(b"/large").expect("a valid path");
        let mut indexed = Indexed { most_chunks: 10, ..Indexed::default() };
        let content = noise(1, 1 << 20);
        indexed.add_part(1, 0, &content[..]).expect("memory reads");
        assert_eq!(indexed.chunk_count(), 10);
        indexed.add(2, &path, &content[..]).expect("memory reads");
        assert_eq!(indexed.chunk_count(), 10);
        let first = chunk::chunk_slices(&content, Chunker::DEFAULT).next().expect("one");
        let len = first.len() as u64;
        assert_eq!(
            indexed.get(&Digest::of(first)),
            Some(Segment::Base { source: 1, offset: 0, len })
        );
    }

    #[test]
    fn the_file_with_most_of_the_chunks_is_found() {
        let path = |name: &str| ImagePath::parse(name.as_bytes()).expect("a valid path");
        let (mut indexed, long, short) = (Indexed::default(), noise(1, 100_000), noise(2, 40_000));
        indexed.add(7, &path("/long"), &long[..]).expect("memory reads");
        indexed.add(8, &path("/short"), &short[..]).expect("memory reads");
        let mixed = [&long[..], b"new", &short[..]].concat();
        assert_eq!(indexed.most_alike(&mixed), Some((path("/long"), 100_000)));
        let mostly_new = [noise(3, 200_000), short].concat();
        assert_eq!(indexed.most_alike(&mostly_new), None);
        assert_eq!(indexed.most_alike(b""), None);
        // One chunk, and that was edited.
        let mut edited = noise(4, 5000);
        indexed.add(9, &path("/little"), &edited[..]).expect("memory reads");
        edited.splice(700..700, *b"inserted");
        assert_eq!(indexed.most_alike(&edited), Some((path("/little"), 5000)));
    }
}
