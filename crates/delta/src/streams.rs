//! Files with deflate streams in places: gzip files of several members, zip and jar files, ar archives.
//!
//! What stands between the streams stays as it is, and each stream becomes the text of its [`tokens`], so
//! that whatever way the streams are packed needs no understanding: where one begins is found by looking
//! for the headers of gzip members and of zip's files, where it ends says itself. Both sides do that
//! search, the reader in the base's file, so its rules are part of the format (`docs/format/bundle.md`).
//!
//! A stream that does not come out the same stays as it is, too.

use crate::file::varint;
use crate::gzip::{self, MAX_PACKED_LEN, MAX_PLAIN_LEN};
use crate::tokens::{self, MAX_BLOCKS};

/// Headers without a stream behind them after which no more are looked for. Each may cost as much as
/// reading the file; in noise of a file's length there is one in eight files.
const MAX_FALSE: u32 = 8;

/// What looking for streams may cost for a byte of the file, in bytes of plain text.
pub(crate) const SEARCH_COST: u64 = MAX_FALSE as u64;

/// APPNOTE.TXT 6.3.10, 4.3.7: signature of a local file header, and its length before the name.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
const ZIP_HEADER_LEN: usize = 30;
const ZIP_ENCRYPTED: u8 = 1;
const ZIP_DEFLATE: [u8; 2] = [8, 0];

/// First bytes of archives that have gzip files as members, as Debian's packages do.
const AR_MAGIC: &[u8] = b"!<arch>\n";

/// Whether a file with these first bytes may have streams worth looking for.
pub(crate) fn may_be_in(file: &[u8]) -> bool {
    let starts = [gzip::MAGIC, ZIP_MAGIC, AR_MAGIC];
    file.len() as u64 <= MAX_PACKED_LEN && starts.iter().any(|start| file.starts_with(start))
}

/// The text of a file's streams and of what is between them; `None` if there are none that come out the
/// same, or it would be too long.
pub(crate) fn read(file: &[u8]) -> Option<Vec<u8>> {
    if file.len() as u64 > MAX_PACKED_LEN {
        return None;
    }
    let (mut text, mut blocks, mut wrong) = (Vec::new(), 0, 0);
    // Up to `done` the text has it all, before `at` no stream starts that is not there.
    let (mut done, mut at) = (0, 0);
    while wrong < MAX_FALSE
        && let Some(header) = find_header(file, at)
    {
        let most = (MAX_PLAIN_LEN as usize).saturating_sub(text.len());
        let found = stream_start(file, header)
            .and_then(|start| Some((start, tokens::read_first(file.get(start..)?, most)?)));
        let Some((start, (stream_text, len))) = found else {
            wrong += 1;
            at = header + 1;
            continue;
        };
        blocks += block_count(&stream_text)?;
        if blocks > MAX_BLOCKS {
            break;
        }
        at = start + len;
        if tokens::write(&stream_text).as_deref() != file.get(start..at) {
            continue;
        }
        put(&mut text, file.get(done..start)?);
        put(&mut text, &stream_text);
        done = at;
    }
    if done == 0 {
        return None;
    }
    put(&mut text, file.get(done..)?);
    (text.len() as u64 <= MAX_PLAIN_LEN).then_some(text)
}

/// The file that this text stands for; `None` if it stands for none.
pub(crate) fn write(text: &[u8]) -> Option<Vec<u8>> {
    let (mut file, mut blocks) = (Vec::new(), 0);
    let mut rest = text;
    loop {
        file.extend_from_slice(take(&mut rest)?);
        if rest.is_empty() {
            return Some(file);
        }
        let stream_text = take(&mut rest)?;
        blocks += block_count(stream_text).filter(|count| *count <= MAX_BLOCKS)?;
        if blocks > MAX_BLOCKS || file.len() as u64 > MAX_PACKED_LEN {
            return None;
        }
        file.extend_from_slice(&tokens::write(stream_text)?);
    }
}

/// Appends `part` behind its length.
fn put(text: &mut Vec<u8>, part: &[u8]) {
    varint::put(text, part.len() as u64);
    text.extend_from_slice(part);
}

/// What stands behind its length at the start of `rest`, which goes on behind it.
fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut bytes = rest.iter();
    let len = varint::read(|| bytes.next().copied())?;
    let (part, behind) = bytes.as_slice().split_at_checked(usize::try_from(len).ok()?)?;
    *rest = behind;
    Some(part)
}

/// The number that the text of a stream begins with.
fn block_count(stream_text: &[u8]) -> Option<u64> {
    let mut bytes = stream_text.iter();
    varint::read(|| bytes.next().copied())
}

/// Where the next header starts, at `from` or behind it.
fn find_header(file: &[u8], from: usize) -> Option<usize> {
    let rest = file.get(from..)?;
    let is_header = |at: &usize| {
        let here = rest.get(*at..).unwrap_or_default();
        here.starts_with(gzip::MAGIC) || zip_header_len(here).is_some()
    };
    (0..rest.len()).find(is_header).map(|at| from + at)
}

/// Where the stream behind the header at `header` starts.
fn stream_start(file: &[u8], header: usize) -> Option<usize> {
    let rest = file.get(header..)?;
    let len = zip_header_len(rest).or_else(|| gzip::any_header_len(rest))?;
    Some(header + len)
}

/// Length of a local file header with name and extra field, if a deflate stream that is not encrypted is
/// behind it.
fn zip_header_len(rest: &[u8]) -> Option<usize> {
    let fields = rest.first_chunk::<ZIP_HEADER_LEN>().filter(|_| rest.starts_with(ZIP_MAGIC))?;
    let is_deflated = fields[8..10] == ZIP_DEFLATE && fields[6] & ZIP_ENCRYPTED == 0;
    let short = |at: usize| usize::from(u16::from_le_bytes([fields[at], fields[at + 1]]));
    is_deflated.then(|| ZIP_HEADER_LEN + short(26) + short(28))
}

#[cfg(test)]
mod tests;
