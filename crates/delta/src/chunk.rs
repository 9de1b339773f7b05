//! Content-defined chunks: cut points that follow the content, so that an insertion moves the
//! chunks behind it without changing them.

use std::io::{self, Read};

use fastcdc::v2020::{Normalization, cut, select_masks};
use vireo_model::Digest;

use crate::error::{DeltaError, io_step};

/// The sizes of the chunker, in bytes: FastCDC (Xia et al., *The Design of Fast Content-Defined
/// Chunking*, IEEE TPDS 2020), seed 0, level 1 normalisation, as crate fastcdc 5.0.0 implements it.
/// The cut points are frozen by a test, because two Vireos must find the same chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunker {
    /// No chunk but a file's last is shorter.
    pub min: usize,
    /// The aim.
    pub avg: usize,
    /// No chunk is longer.
    pub max: usize,
}

impl Chunker {
    /// 2, 8 and 64 KiB: small enough to find what two builds of a program share.
    pub const DEFAULT: Self = Self { min: 2 << 10, avg: 8 << 10, max: 64 << 10 };
}

/// One chunk of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First byte in the file.
    pub offset: u64,
    /// Digest of the bytes.
    pub digest: Digest,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// How much is read at a time, in bytes: chunks are cut out of a window, which is moved when less than
/// the longest chunk is left in it.
const WINDOW_LEN: usize = 1 << 20;

/// Cuts what `content` yields into chunks, in order. Cost: one pass, with hashing about 1.4 GB/s on
/// one core; memory for the window and one chunk.
///
/// # Errors
///
/// As `content`'s reads.
pub fn chunks(
    content: impl Read,
    sizes: Chunker,
) -> impl Iterator<Item = Result<Chunk, DeltaError>> {
    let mut cutter = Cutter::new(content, sizes);
    std::iter::from_fn(move || match cutter.next() {
        Ok(None) => None,
        Ok(Some((offset, bytes))) => {
            Some(Ok(Chunk { offset, digest: Digest::of(bytes), bytes: bytes.to_vec() }))
        }
        Err(error) => Some(Err(io_step("read the content to be cut into chunks")(error))),
    })
}

/// Hands out chunks without copying them.
pub(crate) struct Cutter<R> {
    content: R,
    sizes: Chunker,
    masks: (u64, u64),
    window: Vec<u8>,
    /// What of the window is still to be cut.
    start: usize,
    end: usize,
    /// Where `start` stands in the content.
    offset: u64,
    is_at_end: bool,
}

impl<R: Read> Cutter<R> {
    pub(crate) fn new(content: R, sizes: Chunker) -> Self {
        Self {
            content,
            sizes,
            masks: select_masks(sizes.avg, Normalization::Level1),
            window: Vec::new(),
            start: 0,
            end: 0,
            offset: 0,
            is_at_end: false,
        }
    }

    /// The next chunk and where it stands; `None` at the end. After an error there is nothing more.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        if self.end - self.start < self.sizes.max && !self.is_at_end {
            self.fill()?;
        }
        let stop = self.end.min(self.start + self.sizes.max);
        let rest = &self.window[self.start..stop];
        if rest.is_empty() {
            return Ok(None);
        }
        let Chunker { min, avg, max } = self.sizes;
        let (small, large) = self.masks;
        let (_, len) = cut(rest, min, avg, max, small, large, small << 1, large << 1);
        let offset = self.offset;
        self.start += len;
        self.offset += len as u64;
        Ok(Some((offset, &rest[..len])))
    }

    fn fill(&mut self) -> io::Result<()> {
        // Short contents take no more than they need.
        let room = WINDOW_LEN.max(2 * self.sizes.max);
        self.window.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        self.window.truncate(self.end);
        let wanted = (room - self.end) as u64;
        // Until the end is reached nothing is given up: an error ends it for good.
        self.is_at_end = true;
        let read = self.content.by_ref().take(wanted).read_to_end(&mut self.window)?;
        self.is_at_end = (read as u64) < wanted;
        self.end += read;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that look random and are the same everywhere.
    fn noise(len: usize) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"noise");
        let mut bytes = vec![0; len];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn the_cut_points_are_frozen() {
        let cuts: Vec<u64> = chunks(&noise(100_000)[..], Chunker::DEFAULT)
            .map(|chunk| chunk.expect("memory reads").offset)
            .collect();
        let frozen: Vec<u64> = include_str!("../frozen/cut-points.txt")
            .split_whitespace()
            .map(|number| number.parse().expect("numbers"))
            .collect();
        assert_eq!(cuts, frozen);
    }

    #[test]
    fn the_window_changes_no_cut() {
        use fastcdc::v2020::StreamCDC;
        let Chunker { min, avg, max } = Chunker::DEFAULT;
        for len in [0, 1, 100_000, WINDOW_LEN - 1, WINDOW_LEN, WINDOW_LEN + 1, 3 * WINDOW_LEN + 5] {
            let content = noise(len);
            let found: Vec<(u64, usize)> = chunks(&content[..], Chunker::DEFAULT)
                .map(|chunk| chunk.expect("memory reads"))
                .map(|chunk| (chunk.offset, chunk.bytes.len()))
                .collect();
            let expected: Vec<(u64, usize)> = StreamCDC::new(&content[..], min, avg, max)
                .map(|chunk| chunk.expect("memory reads"))
                .map(|chunk| (chunk.offset, chunk.length))
                .collect();
            assert_eq!(found, expected, "of {len} bytes");
        }
    }

    #[test]
    fn a_failing_read_is_told_once() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let outcomes: Vec<_> = chunks(Failing, Chunker::DEFAULT).collect();
        assert!(matches!(outcomes.as_slice(), [Err(_)]));
    }

    #[test]
    fn an_insertion_changes_few_chunks() {
        let base = noise(1 << 20);
        let mut target = base.clone();
        target.splice(500_000..500_000, *b"inserted");
        let digests = |bytes: &[u8]| -> std::collections::BTreeSet<Digest> {
            chunks(bytes, Chunker::DEFAULT).map(|c| c.expect("memory reads").digest).collect()
        };
        let (base, target) = (digests(&base), digests(&target));
        assert!(
            target.difference(&base).count() <= 3,
            "{} of {}",
            target.difference(&base).count(),
            target.len()
        );
    }

    #[test]
    fn chunks_cover_the_content_in_order() {
        let content = noise(300_001);
        let mut at = 0;
        for chunk in chunks(&content[..], Chunker::DEFAULT) {
            let chunk = chunk.expect("memory reads");
            assert_eq!(chunk.offset, at);
            let from = usize::try_from(at).expect("small");
            assert_eq!(chunk.bytes, content[from..from + chunk.bytes.len()]);
            at += chunk.bytes.len() as u64;
        }
        assert_eq!(at, content.len() as u64);
        assert_eq!(chunks(&b""[..], Chunker::DEFAULT).count(), 0);
    }
}
