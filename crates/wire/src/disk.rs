//! How a raw disk image travels: one zstd frame; zeros become holes again where it arrives.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;

/// zstd's fastest ordinary level: on a fast network the compressor is what one waits for.
const LEVEL: i32 = 1;

/// Granularity of holes, in bytes: the page size and usual block size.
const BLOCK_LEN: usize = 4096;

/// How much is read at once, in bytes.
const BUFFER_LEN: usize = 1 << 20;

/// Compresses `image` into `out`, and gives back the image's length. `out` is flushed.
///
/// # Errors
///
/// As reading and writing report them.
pub fn pack(image: &mut impl Read, out: impl Write) -> io::Result<u64> {
    let mut encoder = zstd::Encoder::new(out, LEVEL)?;
    encoder.include_checksum(true)?;
    let len = io::copy(&mut io::BufReader::with_capacity(BUFFER_LEN, image), &mut encoder)?;
    encoder.finish()?.flush()?;
    Ok(len)
}

/// Decompresses `stream` into the empty file `out`, leaves blocks of zeros as holes, and gives back
/// the image's length. Not synced.
///
/// # Errors
///
/// The stream is no complete zstd frame, is empty or holds more than `len_max` bytes
/// (`InvalidData`); else as reading and writing report it. `out` then holds a part.
pub fn unpack(stream: impl Read, out: &File, len_max: u64) -> io::Result<u64> {
    let mut decoder = zstd::Decoder::new(stream)?;
    let mut buffer = vec![0; BUFFER_LEN];
    let mut at = 0;
    loop {
        let len = fill(&mut decoder, &mut buffer)?;
        if len == 0 {
            break;
        }
        if at + len as u64 > len_max {
            let why = format!("the image has more than {len_max} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        write_blocks(out, &buffer[..len], at)?;
        at += len as u64;
    }
    if at == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the image is empty"));
    }
    out.set_len(at)?;
    Ok(at)
}

/// Reads until `buffer` is full or the data ends, so that blocks stay aligned.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match reader.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Writes runs of blocks that are not all zeros.
fn write_blocks(out: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let is_zero = |block: &&[u8]| block.iter().all(|b| *b == 0);
    let mut run_start = 0;
    let mut run_len = 0;
    for block in bytes.chunks(BLOCK_LEN) {
        if is_zero(&block) {
            out.write_all_at(&bytes[run_start..run_start + run_len], at + run_start as u64)?;
            run_start += run_len + block.len();
            run_len = 0;
        } else {
            run_len += block.len();
        }
    }
    out.write_all_at(&bytes[run_start..run_start + run_len], at + run_start as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn sample() -> Vec<u8> {
        let mut image = vec![0; 4 * BUFFER_LEN + 100];
        image[..3].copy_from_slice(b"abc");
        image[BUFFER_LEN + 5000] = 7;
        let end = image.len() - 1;
        image[end] = 9;
        image
    }

    #[test]
    fn an_image_arrives_whole_and_with_its_holes() {
        let image = sample();
        let mut packed = Vec::new();
        pack(&mut image.as_slice(), &mut packed).expect("memory does not fail");
        let mut file = tempfile::tempfile().expect("a temporary file");
        let len = unpack(packed.as_slice(), &file, u64::MAX).expect("a whole frame");
        assert_eq!(len, image.len() as u64);
        let mut read = Vec::new();
        io::Seek::rewind(&mut file).expect("a file can be rewound");
        file.read_to_end(&mut read).expect("a file can be read");
        assert!(read == image, "content differs");
        let blocks = file.metadata().expect("an open file").blocks();
        assert!(blocks * 512 < image.len() as u64 / 4, "{blocks} blocks are not sparse");
    }

    #[test]
    fn a_cut_or_too_long_stream_is_refused() {
        let mut packed = Vec::new();
        pack(&mut sample().as_slice(), &mut packed).expect("memory does not fail");
        let file = tempfile::tempfile().expect("a temporary file");
        for len in [0, 1, packed.len() / 2, packed.len() - 1] {
            assert!(unpack(&packed[..len], &file, u64::MAX).is_err(), "{len} bytes");
        }
        let error = unpack(packed.as_slice(), &file, 1000).expect_err("longer than 1000");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
