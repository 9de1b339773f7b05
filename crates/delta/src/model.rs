//! Text that is new, compressed by a model of it.
//!
//! zstd finds what was there before. In text that somebody has just written little was, but every byte
//! follows from those before it: PPMd (Shkarin, *PPM: one step to practicality*, 2002) makes a quarter less of
//! it. It reads some fifty times as slowly as zstd, so it is for frames of text alone in which it saves enough.

use std::io::{self, Read as _, Write as _};

use ppmd_rust::{Ppmd7Decoder, Ppmd7Encoder};

/// Bytes before that say what follows. Part of the format.
const ORDER: u32 = 5;

/// The model's memory in bytes, for writers and for readers; a full one begins anew. Half a megabyte of text
/// takes about as much. Part of the format.
const MEMORY_LEN: u32 = 1 << 20;

/// What decompressing a byte costs, in bytes of zstd's.
const BYTE_COST: u64 = 64;

/// What decompressing a frame of `len` bytes costs, in bytes of zstd's: its model is made anew for each.
pub(crate) fn cost(len: u64) -> u64 {
    (len * BYTE_COST).max(u64::from(MEMORY_LEN))
}

/// Frames of less are not tried, in bytes: zstd with its dictionary knows more about them.
pub(crate) const LEAST_LEN: usize = 8 << 10;

/// Most text of a bundle that is tried so, in bytes: a reader takes some two seconds for it.
pub(crate) const MOST_LEN: u64 = 32 << 20;

/// At least this share of zstd's frame has to be saved, in percent.
const LEAST_SAVED: usize = 10;

/// The frame that is worth to be taken instead of one of `zstd_len` bytes, if this makes one.
pub(crate) fn compress(plain: &[u8], zstd_len: usize) -> io::Result<Option<Vec<u8>>> {
    let mut encoder = Ppmd7Encoder::new(Vec::new(), ORDER, MEMORY_LEN).map_err(io::Error::other)?;
    encoder.write_all(plain)?;
    // Without an end mark: the manifest has the length.
    let frame = encoder.finish(false)?;
    let most = zstd_len - zstd_len * LEAST_SAVED / 100;
    Ok((frame.len() < most).then_some(frame))
}

/// Fills `plain` from a frame. Returns how much it is.
pub(crate) fn decompress(frame: &[u8], plain: &mut [u8]) -> io::Result<usize> {
    let mut decoder = Ppmd7Decoder::new(frame, ORDER, MEMORY_LEN).map_err(io::Error::other)?;
    let mut filled = 0;
    while filled < plain.len() {
        match decoder.read(&mut plain[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    if !decoder.into_inner().is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes are left"));
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sentences of words that nothing repeats.
    fn text(len: usize) -> Vec<u8> {
        let mut noise = vec![0; len];
        blake3::Hasher::new().update(b"text").finalize_xof().fill(&mut noise);
        let words = ["the ", "server ", "listens ", "on ", "port ", "again, ", "and ", "waits.\n"];
        let words = noise.iter().map(|byte| words[usize::from(byte % 11) % words.len()]);
        words.flat_map(str::bytes).take(len).collect()
    }

    #[test]
    fn text_comes_back_and_takes_less_than_by_zstd() {
        for len in [LEAST_LEN, 100_000, 512 << 10] {
            let plain = text(len);
            let zstd_len = zstd::bulk::compress(&plain, 19).expect("memory").len();
            let frame = compress(&plain, zstd_len).expect("memory").expect("worth it");
            let mut back = vec![0; len];
            assert_eq!(decompress(&frame, &mut back).expect("its own"), len);
            assert_eq!(back, plain);
        }
    }

    #[test]
    fn what_does_not_get_less_is_left_alone() {
        let mut noise = vec![0; 64 << 10];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
        assert_eq!(compress(&noise, noise.len()).expect("memory"), None);
    }

    #[test]
    fn damaged_frames_are_errors_or_other_bytes_and_never_more_than_asked_for() {
        let plain = text(20_000);
        let frame = compress(&plain, plain.len()).expect("memory").expect("worth it");
        let mut back = vec![0; plain.len()];
        for cut in [0, 1, 4, 5, frame.len() / 2, frame.len() - 1] {
            let found = decompress(&frame[..cut], &mut back);
            assert!(found.is_err() || back != plain, "cut to {cut}");
        }
        for at in (0..frame.len()).step_by(97) {
            let mut damaged = frame.clone();
            damaged[at] ^= 0x41;
            let found = decompress(&damaged, &mut back);
            assert!(found.is_err() || back != plain, "damaged at {at}");
        }
        let longer = [&frame[..], b"more"].concat();
        decompress(&longer, &mut back).expect_err("bytes are left");
    }

    #[test]
    fn the_frames_are_frozen() {
        let frame = compress(&text(20_000), 20_000).expect("memory").expect("worth it");
        let digest = vireo_model::Digest::of(&frame).to_string();
        assert_eq!(
            digest,
            include_str!("../frozen/model-digest.txt").trim_end(),
            "{}",
            frame.len()
        );
    }
}
