//! Looking inside gzip files: their plain text makes small deltas, their compressed form large ones.
//!
//! A gzip file is taken apart into its plain text and a *recipe*, from which the same bytes come
//! again: RFC 1952's header and trailer as they are, and what crate preflate-rs needs to make the same
//! deflate stream, for which it does the compressor's search again. (No two deflate programs make the same choices: what GNU gzip writes, zlib cannot,
//! so a level alone is no recipe.) Whether it does come out the same is tried before it is relied on.
//! The recipe's form is that of preflate-rs's version, which is therefore pinned.
//!
//! Or it is turned into the text of its [`tokens`], which makes larger deltas than the plain text where
//! much changed, and hardly larger ones where little did, and which takes no time.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use preflate_rs::{PreflateConfig, preflate_whole_deflate_stream, recreate_whole_deflate_stream};

use crate::file::varint;
use crate::tokens;

/// Longest plain text of a gzip file that is looked into, in bytes: decoding holds it in memory.
pub(crate) const MAX_PLAIN_LEN: u64 = 4 << 20;

/// Longest gzip file that is looked into, in bytes.
pub(crate) const MAX_PACKED_LEN: u64 = 2 << 20;

/// Longest recipe, in bytes; real ones have about a hundred.
pub(crate) const MAX_RECIPE_LEN: u64 = 1 << 20;

/// RFC 1952: identification, and deflate as the method.
pub(crate) const MAGIC: &[u8] = &[0x1f, 0x8b, 8];
const HEADER_LEN: usize = 10;
const TRAILER_LEN: usize = 8;
const HAS_CHECK: u8 = 2;
const HAS_EXTRA: u8 = 4;
const HAS_NAME: u8 = 8;
const HAS_COMMENT: u8 = 16;
/// Bits of the flags that must be zero.
const RESERVED: u8 = 0xe0;

/// Candidates tried at each place by preflate's search for what the compressor did.
const CHAIN_LEN: u32 = 4096;

/// Whether a file with these first bytes may be a gzip file.
pub(crate) fn is_packed(file: &[u8]) -> bool {
    file.starts_with(MAGIC) && file.len() as u64 <= MAX_PACKED_LEN
}

/// The plain text of a gzip file and the recipe that makes the same file of it again; `None` if it is
/// no such file or does not come out the same.
pub(crate) fn unpack(file: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let header_len = header_len(file).filter(|_| is_packed(file))?;
    let end = file.len().checked_sub(TRAILER_LEN).filter(|end| *end > header_len)?;
    let config = PreflateConfig {
        max_chain_length: CHAIN_LEN,
        plain_text_limit: MAX_PLAIN_LEN as usize,
        verify_compression: false,
    };
    let stream = &file[header_len..end];
    let (result, plain) =
        catch_unwind(AssertUnwindSafe(|| preflate_whole_deflate_stream(stream, &config).ok()))
            .ok()??;
    let plain = plain.text().to_vec();
    let mut recipe = Vec::new();
    varint::put(&mut recipe, header_len as u64);
    recipe.extend_from_slice(&file[..header_len]);
    recipe.extend_from_slice(&file[end..]);
    recipe.extend_from_slice(&result.corrections);
    let good = plain.len() as u64 <= MAX_PLAIN_LEN
        && recipe.len() as u64 <= MAX_RECIPE_LEN
        && pack(&plain, &recipe).as_deref() == Some(file);
    good.then_some((plain, recipe))
}

/// The gzip file that `recipe` makes of `plain`; `None` if the recipe is damaged.
pub(crate) fn pack(plain: &[u8], recipe: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = recipe.iter();
    let header_len = varint::read(|| bytes.next().copied())?;
    let rest = bytes.as_slice();
    let (header, rest) = rest.split_at_checked(usize::try_from(header_len).ok()?)?;
    let (trailer, corrections) = rest.split_at_checked(TRAILER_LEN)?;
    // A recipe that nobody wrote may run into an assertion in there.
    let stream =
        catch_unwind(AssertUnwindSafe(|| recreate_whole_deflate_stream(plain, corrections).ok()))
            .ok()??;
    Some([header, &stream, trailer].concat())
}

/// The plain text of a gzip file, of which `plain_len` bytes are expected.
pub(crate) fn inflate(file: &[u8], plain_len: u64) -> Option<Vec<u8>> {
    let stream = file.get(header_len(file)?..)?;
    let mut plain = Vec::with_capacity(plain_len.min(MAX_PLAIN_LEN) as usize);
    let limit = plain_len.min(MAX_PLAIN_LEN) + 1;
    flate2::read::DeflateDecoder::new(stream).take(limit).read_to_end(&mut plain).ok()?;
    (plain.len() as u64 == plain_len).then_some(plain)
}

/// The plain text of a gzip file, whatever its length; `None` if that is beyond the limits.
pub(crate) fn inflate_all(file: &[u8]) -> Option<Vec<u8>> {
    if !is_packed(file) {
        return None;
    }
    let stream = file.get(header_len(file)?..)?;
    let mut plain = Vec::new();
    flate2::read::DeflateDecoder::new(stream)
        .take(MAX_PLAIN_LEN + 1)
        .read_to_end(&mut plain)
        .ok()?;
    (plain.len() as u64 <= MAX_PLAIN_LEN).then_some(plain)
}

/// The text of a gzip file's tokens, with its header and trailer; `None` if it is no such file.
pub(crate) fn read_tokens(file: &[u8]) -> Option<Vec<u8>> {
    let header_len = header_len(file).filter(|_| is_packed(file))?;
    let end = file.len().checked_sub(TRAILER_LEN).filter(|end| *end > header_len)?;
    let mut text = Vec::new();
    varint::put(&mut text, header_len as u64);
    text.extend_from_slice(&file[..header_len]);
    text.extend_from_slice(&file[end..]);
    let most = (MAX_PLAIN_LEN as usize).checked_sub(text.len())?;
    text.extend_from_slice(&tokens::read(&file[header_len..end], most)?);
    Some(text)
}

/// The gzip file that [`read_tokens`] made this text of, if its codes are zlib's; `None` if the text is
/// none.
pub(crate) fn write_tokens(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = text.iter();
    let header_len = varint::read(|| bytes.next().copied())?;
    let rest = bytes.as_slice();
    let (header, rest) = rest.split_at_checked(usize::try_from(header_len).ok()?)?;
    let (trailer, tokens) = rest.split_at_checked(TRAILER_LEN)?;
    Some([header, &tokens::write(tokens)?, trailer].concat())
}

/// Length of the header before the deflate stream. Files with extra fields are for [`crate::streams`].
fn header_len(file: &[u8]) -> Option<usize> {
    let flags = *file.get(3)?;
    if flags & !(HAS_NAME | HAS_COMMENT) != 0 {
        return None;
    }
    any_header_len(file)
}

/// Length of any header of a member (RFC 1952, 2.3) before its deflate stream.
pub(crate) fn any_header_len(member: &[u8]) -> Option<usize> {
    let flags = *member.get(3).filter(|flags| *flags & RESERVED == 0)?;
    let mut at = HEADER_LEN;
    if flags & HAS_EXTRA != 0 {
        let len = member.get(at..)?.first_chunk()?;
        at += len.len() + usize::from(u16::from_le_bytes(*len));
    }
    for text in [HAS_NAME, HAS_COMMENT] {
        if flags & text != 0 {
            at += member.get(at..)?.iter().position(|byte| *byte == 0)? + 1;
        }
    }
    if flags & HAS_CHECK != 0 {
        at += 2;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn zlib(plain: &[u8], level: u32) -> Vec<u8> {
        let mut writer = flate2::GzBuilder::new()
            .filename("a.txt")
            .write(Vec::new(), flate2::Compression::new(level));
        writer.write_all(plain).expect("memory writes");
        writer.finish().expect("memory writes")
    }

    fn text() -> Vec<u8> {
        (0..3000)
            .map(|n| format!("line {} of {}\n", n * 7919 % 1000, n % 13))
            .collect::<String>()
            .into()
    }

    #[test]
    fn gzip_files_come_out_the_same() {
        for level in [1, 6, 9] {
            let file = zlib(&text(), level);
            let (plain, recipe) = unpack(&file).expect("a gzip file");
            assert_eq!(plain, text());
            assert_eq!(pack(&plain, &recipe), Some(file.clone()));
            assert_eq!(inflate(&file, plain.len() as u64), Some(plain));
        }
    }

    #[test]
    fn what_gnu_gzip_wrote_comes_out_the_same_too() {
        let file = include_bytes!("../frozen/gnu-gzip-9n.gz");
        let (plain, recipe) = unpack(file).expect("a gzip file");
        assert_eq!(pack(&plain, &recipe).as_deref(), Some(&file[..]));
        assert!(recipe.len() < 400, "{} bytes of recipe", recipe.len());
    }

    #[test]
    fn tokens_make_the_file_again() {
        let file = include_bytes!("../frozen/gnu-gzip-9n.gz");
        let text = read_tokens(file).expect("a gzip file");
        assert_eq!(write_tokens(&text).as_deref(), Some(&file[..]));
        assert_eq!(read_tokens(b"text"), None);
        assert_eq!(read_tokens(&file[..file.len() / 2]), None);
        for at in 0..text.len() {
            let _made = write_tokens(&text[..at]);
        }
    }

    #[test]
    fn what_is_no_gzip_file_stays_as_it_is() {
        let file = zlib(&text(), 9);
        assert!(unpack(b"").is_none());
        assert!(unpack(b"text").is_none());
        assert!(unpack(&file[..file.len() / 2]).is_none());
        // Two members after another are a gzip file, but not one stream.
        assert!(unpack(&[&file[..], &file[..]].concat()).is_none());
        assert_eq!(inflate(&file, 10), None);
    }

    #[test]
    fn damaged_recipes_never_panic() {
        let file = zlib(&text(), 6);
        let (plain, recipe) = unpack(&file).expect("a gzip file");
        for at in 0..recipe.len() {
            let mut damaged = recipe.clone();
            damaged[at] ^= 0x55;
            // Not every bit of the parameters matters for every file; those of the header do.
            let made = pack(&plain, &damaged);
            assert!(at > HEADER_LEN || made.is_none_or(|made| made != file), "byte {at}");
            let cut = pack(&plain, &recipe[..at]);
            assert!(cut.is_none_or(|made| made.len() <= file.len() * 2), "cut at {at}");
        }
    }
}
