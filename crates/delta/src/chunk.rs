//! Content-defined chunks: cut points that follow the content, so that an insertion moves the
//! chunks behind it without changing them.

use std::io::Read;

use fastcdc::v2020::StreamCDC;
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

/// Cuts what `content` yields into chunks, in order. Cost: one pass, about 0.8 GB/s on one core
/// with hashing; memory for one chunk and the reader's buffer of `max` bytes.
///
/// # Errors
///
/// As `content`'s reads.
pub fn chunks(
    content: impl Read,
    sizes: Chunker,
) -> impl Iterator<Item = Result<Chunk, DeltaError>> {
    StreamCDC::new(content, sizes.min, sizes.avg, sizes.max).map(|chunk| {
        let chunk = chunk
            .map_err(|error| io_step("read the content to be cut into chunks")(error.into()))?;
        Ok(Chunk { offset: chunk.offset, digest: Digest::of(&chunk.data), bytes: chunk.data })
    })
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
