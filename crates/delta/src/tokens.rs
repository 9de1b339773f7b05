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
mod trees;

use bits::{BitReader, BitWriter};
use trees::{Decoder, Tree};

use crate::file::varint;

/// Most blocks of a stream. Common compressors begin another one after some ten thousand tokens;
/// codes for a block cost as much as a thousand of these.
const MAX_BLOCKS: u64 = 1024;

const STORED: u8 = 0;
const FIXED: u8 = 1;
const DYNAMIC: u8 = 2;

/// Before a byte of which the first bit is set, or that is zero.
const ESCAPE: u8 = 0;
/// First bit of a reference.
const REFERENCE: u8 = 0x80;
/// Second byte of a reference's distance: the eighth bit of its length.
const LONG: u8 = 0x80;

/// Symbol that ends a block (RFC 1951, 3.2.5).
const END: usize = 256;

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// Length less 3, distance less 1.
    Reference(u8, u16),
}

/// The text of a whole deflate stream; `None` if it is none, or the text would be longer than `most`.
pub(crate) fn read(stream: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut bits = BitReader::new(stream);
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
    if !bits.is_at_end() {
        return None;
    }
    let mut text = Vec::with_capacity(blocks.len() + tokens.len() + 2);
    varint::put(&mut text, count);
    text.extend_from_slice(&blocks);
    text.extend_from_slice(&tokens);
    (text.len() <= most).then_some(text)
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
    let mut count = 0;
    while tokens.len() <= most {
        let symbol = literals.next(bits)?;
        if symbol == END {
            return Some(count);
        }
        count += 1;
        if let Ok(byte) = u8::try_from(symbol) {
            put(Token::Byte(byte), tokens);
            continue;
        }
        let (first, extra) = trees::length_of(symbol)?;
        let len = first + bits.take(extra)?;
        let (first, extra) = trees::distance_of(distances.next(bits)?)?;
        let distance = first + bits.take(extra)?;
        put(Token::Reference(u8::try_from(len).ok()?, u16::try_from(distance).ok()?), tokens);
    }
    None
}

#[inline]
fn put(token: Token, text: &mut Vec<u8>) {
    match token {
        Token::Byte(byte) if byte == 0 || byte & REFERENCE != 0 => text.extend([ESCAPE, byte]),
        Token::Byte(byte) => text.push(byte),
        Token::Reference(len, distance) => {
            let [low, high] = distance.to_le_bytes();
            text.extend([REFERENCE | (len & 0x7f), low, high | (len & LONG)]);
        }
    }
}

/// The token at the start of `text`, and what is behind it.
#[inline]
fn next(text: &[u8]) -> Option<(Token, &[u8])> {
    let (first, rest) = text.split_first()?;
    if first & REFERENCE != 0 {
        let ([low, high], rest) = rest.split_first_chunk()?;
        let len = (first & 0x7f) | (high & LONG);
        let distance = u16::from_le_bytes([*low, high & !LONG]);
        return Some((Token::Reference(len, distance), rest));
    }
    if *first != ESCAPE {
        return Some((Token::Byte(*first), rest));
    }
    let (byte, rest) = rest.split_first()?;
    let needs_it = *byte == 0 || byte & REFERENCE != 0;
    needs_it.then_some((Token::Byte(*byte), rest))
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
        let (literal_counts, distance_counts, rest) = frequencies(tokens, *len)?;
        let block = &tokens[..tokens.len() - rest.len()];
        tokens = rest;
        match *kind {
            FIXED => write_block(block, &trees::fixed_trees(), &mut bits)?,
            DYNAMIC => {
                let trees = (Tree::of(&literal_counts, 15), Tree::of(&distance_counts, 15));
                trees::write_trees(&trees.0, &trees.1, &mut bits);
                write_block(block, &trees, &mut bits)?;
            }
            _ => return None,
        }
    }
    (tokens.is_empty() && !blocks.is_empty()).then(|| bits.finish())
}

/// How often a block of `len` tokens has each symbol; and what is behind it.
fn frequencies(
    tokens: &[u8],
    len: u64,
) -> Option<([u32; trees::LITERALS], [u32; trees::DISTANCES], &[u8])> {
    let (mut literals, mut distances) = ([0; trees::LITERALS], [0; trees::DISTANCES]);
    literals[END] = 1;
    let mut rest = tokens;
    for _ in 0..len {
        let (token, behind) = next(rest)?;
        match token {
            Token::Byte(byte) => literals[usize::from(byte)] += 1,
            Token::Reference(len, distance) => {
                literals[trees::length_code(len).0] += 1;
                distances[trees::distance_code(distance).0] += 1;
            }
        }
        rest = behind;
    }
    Some((literals, distances, rest))
}

fn write_block(
    block: &[u8],
    (literals, distances): &(Tree, Tree),
    bits: &mut BitWriter,
) -> Option<()> {
    let mut rest = block;
    while !rest.is_empty() {
        let (token, behind) = next(rest)?;
        match token {
            Token::Byte(byte) => literals.put(usize::from(byte), bits),
            Token::Reference(len, distance) => {
                let (symbol, extra, width) = trees::length_code(len);
                literals.put_with(symbol, extra, width, bits);
                let (symbol, extra, width) = trees::distance_code(distance);
                distances.put_with(symbol, extra, width, bits);
            }
        }
        rest = behind;
    }
    literals.put(END, bits);
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
    fn tokens_have_one_form() {
        for token in [
            Token::Byte(0),
            Token::Byte(1),
            Token::Byte(0x7f),
            Token::Byte(0x80),
            Token::Byte(0xff),
            Token::Reference(0, 0),
            Token::Reference(127, 255),
            Token::Reference(128, 256),
            Token::Reference(255, 32767),
        ] {
            let mut text = Vec::new();
            put(token, &mut text);
            assert_eq!(next(&text), Some((token, &b""[..])));
        }
    }

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
            let Some(text) = read(&stream, MOST) else { continue };
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
