//! The entries of a directory, and their names.

use super::{ENTRY_LEN, FatError, Width};
use crate::bytes::{le16, le32};

const ATTRIBUTE_VOLUME: u8 = 0x08;
const ATTRIBUTE_DIR: u8 = 0x10;
/// Marks a piece of a long name.
const ATTRIBUTE_LONG: u8 = 0x0F;

/// First byte of an entry that is not one any more.
pub(super) const DELETED: u8 = 0xE5;

/// One file or directory.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) is_dir: bool,
    pub(super) cluster: u32,
    pub(super) len: u64,
}

/// What a directory's bytes name, without itself, its parent and what was deleted.
pub(super) fn entries(bytes: &[u8], width: Width) -> Result<Vec<Entry>, FatError> {
    let mut found = Vec::new();
    let mut long = LongName::default();
    // Other systems have something else there where numbers are short.
    let upper = |half: u32| if width == Width::Bits32 { half } else { 0 };
    for raw in bytes.chunks_exact(ENTRY_LEN) {
        let attributes = raw[11];
        match raw[0] {
            0x00 => break,
            DELETED => long = LongName::default(),
            _ if attributes & 0x3F == ATTRIBUTE_LONG => long.add(raw),
            _ => {
                let long = std::mem::take(&mut long);
                let is_itself = raw.starts_with(b".          ") || raw.starts_with(b"..         ");
                if attributes & ATTRIBUTE_VOLUME != 0 || is_itself {
                    continue;
                }
                let name = match long.finish(raw) {
                    Some(units) => String::from_utf16(&units)
                        .map_err(|_| FatError::Damaged("a name in it is no text"))?,
                    None => short_name(raw)?,
                };
                found.push(Entry {
                    name,
                    is_dir: attributes & ATTRIBUTE_DIR != 0,
                    cluster: upper(u32::from(le16(raw, 20))) << 16 | u32::from(le16(raw, 26)),
                    len: u64::from(le32(raw, 28)),
                });
            }
        }
    }
    Ok(found)
}

/// A long name whose pieces, the last one first, stand before the entry that they name.
#[derive(Default)]
struct LongName {
    /// The pieces' text, in its right order.
    units: Vec<u16>,
    /// Number of the last piece that was read, and the checksum that all have.
    number: u8,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, raw: &[u8]) {
        let (number, is_first, checksum) = (raw[0] & 0x3F, raw[0] & 0x40 != 0, raw[13]);
        if is_first {
            *self = Self { number, checksum, ..Self::default() };
        } else if number.checked_add(1) != Some(self.number) || checksum != self.checksum {
            *self = Self::default();
            return;
        }
        self.number = number;
        let places = [1..11, 14..26, 28..32];
        let bytes: Vec<u8> = places.into_iter().flat_map(|place| raw[place].to_vec()).collect();
        let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        self.units.splice(0..0, units);
    }

    /// The name, if its pieces are whole and are this entry's.
    fn finish(mut self, raw: &[u8]) -> Option<Vec<u16>> {
        let sum = |sum: u8, byte: &u8| sum.rotate_right(1).wrapping_add(*byte);
        if self.number != 1 || raw[..11].iter().fold(0, sum) != self.checksum {
            return None;
        }
        let end = self.units.iter().position(|unit| *unit == 0).unwrap_or(self.units.len());
        self.units.truncate(end);
        Some(self.units)
    }
}

/// `NAME.EXT`, in small letters where the entry says so, as Linux shows it (`shortname=mixed`, mount(8)).
fn short_name(raw: &[u8]) -> Result<String, FatError> {
    if !raw[..11].is_ascii() {
        // Which one, nothing in it tells; 05h stands for E5h.
        return Err(FatError::Damaged("a name in it has characters of an old code page"));
    }
    let part = |bytes: &[u8], is_small: bool| {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let text = text.trim_end_matches(' ').to_owned();
        if is_small { text.to_ascii_lowercase() } else { text }
    };
    let (name, end) =
        (part(&raw[..8], raw[12] & 0x08 != 0), part(&raw[8..11], raw[12] & 0x10 != 0));
    Ok(if end.is_empty() { name } else { format!("{name}.{end}") })
}
