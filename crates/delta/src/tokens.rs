//! Deflate streams as text: what their compressor chose, without how it found it.
//!
//! To make a gzip file again from its plain text, its compressor's search has to be done again, at some
//! megabytes a second. Its *tokens* (bytes, and references back) say the same and need no search: where
//! two releases of a file differ little so do their tokens, and writing them as bits again takes
//! microseconds. Most compressors have zlib's way of making codes from the tokens' frequencies (that of
//! its ancestor, GNU gzip, is the same), so the codes need not travel either. Streams that were coded
//! otherwise come out differently, which whoever makes a text finds out before relying on it.
//!
//! The text, as `docs/format/bundle.md` has it: the blocks, by kind and number of tokens, then the
//! tokens of all, each in one to three bytes.

mod bits;
mod token;
mod trees;

use bits::{BitReader, BitWriter};
use token::{Token, WHATS};
use trees::{Decoder, Tree};

use crate::file::varint;

/// Most blocks of a stream. Common compressors begin another one after some ten thousand tokens;
/// codes for a block cost as much as a thousand of these.
pub(crate) const MAX_BLOCKS: u64 = 1024;

const STORED: u8 = 0;
const FIXED: u8 = 1;
const DYNAMIC: u8 = 2;

/// Bytes of text that are collected before they are kept.
const STAGED_LEN: usize = 4 << 10;

/// Symbol that ends a block (RFC 1951, 3.2.5).
const END: usize = 256;

/// What reading it as a token gives.
const END_VALUE: u32 = WHATS as u32;

/// Longest code of a byte, a length or a distance.
const MAX_BITS: usize = 15;

/// The text of a whole deflate stream; `None` if it is none, or the text would be longer than `most`.
pub(crate) fn read(stream: &[u8], most: usize) -> Option<Vec<u8>> {
    read_first(stream, most).filter(|(_, len)| *len == stream.len()).map(|(text, _)| text)
}

/// The same of the stream that `bytes` start with, and the stream's length.
pub(crate) fn read_first(bytes: &[u8], most: usize) -> Option<(Vec<u8>, usize)> {
    let mut bits = BitReader::new(bytes);
    let (mut blocks, mut tokens) = (Vec::new(), Vec::new());
    let mut count = 0;
    loop {
        count += 1;
        let is_last = bits.take(1)? == 1;
        let kind = bits.take(2)? as u8;
        let len = match kind {
            STORED => stored(&mut bits, &mut tokens)?,
            FIXED => coded(&mut bits, &trees::fixed_decoders()?, &mut tokens, most)?,
            DYNAMIC => {
                let decoders = trees::read_decoders(&mut bits)?;
                coded(&mut bits, &decoders, &mut tokens, most)?
            }
            _ => return None,
        };
        if count > MAX_BLOCKS || tokens.len() > most {
            return None;
        }
        blocks.push(kind);
        varint::put(&mut blocks, len);
        if is_last {
            break;
        }
    }
    let mut text = Vec::with_capacity(blocks.len() + tokens.len() + 2);
    varint::put(&mut text, count);
    text.extend_from_slice(&blocks);
    text.extend_from_slice(&tokens);
    (text.len() <= most).then(|| (text, bits.end()))
}

/// A block that is bytes. Returns their number.
fn stored(bits: &mut BitReader<'_>, tokens: &mut Vec<u8>) -> Option<u64> {
    let bytes = bits.stored()?;
    tokens.extend_from_slice(bytes);
    Some(bytes.len() as u64)
}

/// The tokens of a block up to its end. Returns their number.
fn coded(
    bits: &mut BitReader<'_>,
    (literals, distances): &(Decoder, Decoder),
    tokens: &mut Vec<u8>,
    most: usize,
) -> Option<u64> {
    let (mut staged, mut len) = ([0; STAGED_LEN], 0);
    let mut count = 0;
    while tokens.len() <= most {
        bits.fill();
        let what = literals.next(bits)?;
        if what == END_VALUE {
            tokens.extend_from_slice(&staged[..len]);
            return Some(count);
        }
        let distance = if what < 256 { 0 } else { distances.next(bits)? };
        let (text, text_len) = Token { what, distance }.text();
        staged.get_mut(len..len + 4)?.copy_from_slice(&text.to_le_bytes());
        len += text_len;
        count += 1;
        if len > STAGED_LEN - 4 {
            tokens.extend_from_slice(&staged[..len]);
            len = 0;
        }
    }
    None
}

/// The deflate stream that `text` stands for; `None` if it stands for none.
pub(crate) fn write(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = text.iter();
    let count = varint::read(|| bytes.next().copied()).filter(|count| *count <= MAX_BLOCKS)?;
    let mut blocks = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let kind = *bytes.next()?;
        blocks.push((kind, varint::read(|| bytes.next().copied())?));
    }
    let mut tokens = bytes.as_slice();
    let mut bits = BitWriter::new(text.len());
    for (number, (kind, len)) in blocks.iter().enumerate() {
        bits.put(u32::from(number + 1 == blocks.len()), 1);
        bits.put(u32::from(*kind), 2);
        if *kind == STORED {
            let (block, rest) = tokens.split_at_checked(usize::try_from(*len).ok()?)?;
            bits.stored(block)?;
            tokens = rest;
            continue;
        }
        let (literals, distances, rest) = frequencies(tokens, *len)?;
        let block = &tokens[..tokens.len() - rest.len()];
        tokens = rest;
        let (literals, distances) = match *kind {
            FIXED => trees::fixed_trees(),
            DYNAMIC => {
                let trees = (Tree::of(&literals, MAX_BITS), Tree::of(&distances, MAX_BITS));
                trees::write_trees(&trees.0, &trees.1, &mut bits);
                trees
            }
            _ => return None,
        };
        write_block(block, &Codes::of(&literals, &distances), &mut bits)?;
        literals.put(END, &mut bits);
    }
    (tokens.is_empty() && !blocks.is_empty()).then(|| bits.finish())
}

/// How often a block of `len` tokens has each symbol; and what is behind it.
fn frequencies(
    tokens: &[u8],
    len: u64,
) -> Option<([u32; trees::LITERALS], [u32; trees::DISTANCES], &[u8])> {
    let (mut whats, mut distances) = ([0_u32; WHATS], [0; DISTANCE_SYMBOLS]);
    let mut rest = tokens;
    for _ in 0..len {
        let (token, behind) = Token::next(rest)?;
        whats[token.what as usize % WHATS] += 1;
        distances[distance_symbol(token).0] += 1;
        rest = behind;
    }
    let mut literals = [0; trees::LITERALS];
    literals[END] = 1;
    for (what, count) in whats.iter().enumerate() {
        literals[symbol_of(what).0] += count;
    }
    let mut used = [0; trees::DISTANCES];
    used.copy_from_slice(&distances[..trees::DISTANCES]);
    Some((literals, used, rest))
}

/// Symbols of distances, [`NO_DISTANCE`] among them; a power of two.
const DISTANCE_SYMBOLS: usize = 32;

/// What bytes have in the place of a symbol for their distance.
const NO_DISTANCE: usize = DISTANCE_SYMBOLS - 1;

/// The symbol of a token's distance, its further bits and how many.
#[inline(always)]
fn distance_symbol(token: Token) -> (usize, u32, u32) {
    let (symbol, extra, width) = trees::distance_code(token.distance);
    let symbol = if token.is_reference() { symbol } else { NO_DISTANCE };
    (symbol % DISTANCE_SYMBOLS, extra, width)
}

/// The symbol of what a token is, its further bits and how many.
fn symbol_of(what: usize) -> (usize, u32, u32) {
    match what.checked_sub(256) {
        None => (what, 0, 0),
        Some(len) => trees::length_code(len as u8),
    }
}

/// What is written for each token of a block.
struct Codes {
    /// By [`Token::what`]: the bits, and above the lowest 24 how many.
    whats: [u32; WHATS],
    /// By the symbol of the distance: the code, and above the lowest 24 its length.
    distances: [u32; DISTANCE_SYMBOLS],
}

impl Codes {
    fn of(literals: &Tree, distances: &Tree) -> Self {
        let mut codes = Self { whats: [0; WHATS], distances: [0; DISTANCE_SYMBOLS] };
        for (what, code) in codes.whats.iter_mut().enumerate() {
            let (symbol, extra, width) = symbol_of(what);
            let (bits, len) = literals.code(symbol);
            *code = bits | extra << len | (len + width) << 24;
        }
        for (symbol, code) in codes.distances.iter_mut().enumerate().take(trees::DISTANCES) {
            let (bits, len) = distances.code(symbol);
            *code = bits | len << 24;
        }
        codes
    }
}

fn write_block(block: &[u8], codes: &Codes, bits: &mut BitWriter) -> Option<()> {
    const CODE: u32 = (1 << 24) - 1;
    let mut rest = block;
    while !rest.is_empty() {
        let (token, behind) = Token::next(rest)?;
        let (symbol, extra, width) = distance_symbol(token);
        let (what, distance) = (codes.whats[token.what as usize % WHATS], codes.distances[symbol]);
        let (what_len, distance_len) = (what >> 24, distance >> 24);
        // Nothing of a byte: its distance is zero, and the code of none is empty.
        let distance = u64::from(distance & CODE | extra << distance_len);
        let both = u64::from(what & CODE) | distance << what_len;
        bits.put_long(both, what_len + distance_len + width);
        rest = behind;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn deflate(plain: &[u8], level: u32) -> Vec<u8> {
        let mut writer =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(level));
        writer.write_all(plain).expect("memory writes");
        writer.finish().expect("memory writes")
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
        bytes
    }

    const MOST: usize = 4 << 20;

    #[test]
    fn what_gnu_gzip_wrote_comes_out_the_same() {
        let file = include_bytes!("../frozen/gnu-gzip-9n.gz");
        let stream = &file[10..file.len() - 8];
        let text = read(stream, MOST).expect("a deflate stream");
        assert_eq!(write(&text).as_deref(), Some(stream));
    }

    #[test]
    fn blocks_of_bytes_come_out_the_same() {
        for len in [0, 1, 1000] {
            let bytes = noise(len);
            let mut bits = BitWriter::new(0);
            bits.put(1, 1);
            bits.put(0, 2);
            bits.stored(&bytes).expect("short");
            let stream = bits.finish();
            let text = read(&stream, MOST).expect("a deflate stream");
            assert_eq!(write(&text), Some(stream));
        }
    }

    #[test]
    fn a_long_file_of_many_blocks_keeps_its_plain_text() {
        let plain: Vec<u8> = (0..200_000_u32)
            .flat_map(|n| format!("{} ", n.wrapping_mul(2_654_435_761) % 5003).into_bytes())
            .collect();
        for level in [1, 6, 9] {
            let stream = deflate(&plain, level);
            let text = read(&stream, MOST).expect("a stream of deflate");
            // Not every program codes as zlib does, but what is written means the same.
            let again = write(&text).expect("its own text");
            let mut found = Vec::new();
            std::io::Read::read_to_end(
                &mut flate2::read::DeflateDecoder::new(&again[..]),
                &mut found,
            )
            .expect("a deflate stream");
            assert_eq!(found, plain);
        }
    }

    #[test]
    fn damage_never_panics() {
        let file = include_bytes!("../frozen/gnu-gzip-9n.gz");
        let stream = &file[10..file.len() - 8];
        let text = read(stream, MOST).expect("a deflate stream");
        for at in 0..stream.len() {
            let mut damaged = stream.to_vec();
            damaged[at] ^= 0x5a;
            if let Some(text) = read(&damaged, MOST) {
                let _written = write(&text);
            }
            assert_eq!(read(&stream[..at], MOST), None, "cut at {at}");
        }
        for at in 0..text.len() {
            let mut damaged = text.clone();
            damaged[at] ^= 0x5a;
            let _written = write(&damaged);
            let _written = write(&text[..at]);
        }
        assert_eq!(read(stream, text.len() - 1), None, "too long a text");
    }

    #[test]
    fn a_text_of_too_many_blocks_is_none() {
        let mut text = Vec::new();
        varint::put(&mut text, MAX_BLOCKS + 1);
        text.extend([FIXED, 0].repeat(MAX_BLOCKS as usize + 1));
        assert_eq!(write(&text), None);
    }
}
