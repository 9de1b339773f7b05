//! References: numbers in a program's file that say where something else in it lies.
//!
//! When a function grows, everything behind it moves, and every number that points across the
//! growth changes though nothing else does. A reference found in the base is therefore moved along:
//! what it points at is looked up in the map of copied ranges, and the number that points at the new
//! place is the prediction. What is predicted wrongly is corrected explicitly, so what is taken for
//! a reference need not be one: recognising is a heuristic, the result is exact.
//!
//! The layouts (where the file's parts are loaded, which parts hold which references) are the
//! encoder's to find and travel with the delta; the decoder never looks at an ELF header.

use super::varint;

/// Most parts of one layout; programs have four or five segments and some ten regions.
const MAX_PARTS: u64 = 64;

/// A part of the file and the addresses it is loaded at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) address: u64,
    /// Bytes in the file.
    pub(crate) file_len: u64,
    /// Bytes in memory; what the file lacks is zeros.
    pub(crate) memory_len: u64,
}

/// What references in a region of the file look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegionKind {
    /// x86-64 instructions: calls, jumps, operands relative to the instruction pointer.
    Code,
    /// Aligned 32-bit numbers relative to their own address (`.eh_frame`).
    Relative,
    /// Aligned 32-bit numbers relative to the region's address (`.eh_frame_hdr`).
    RegionRelative,
    /// Aligned 64-bit addresses (relocations, tables of pointers, symbols).
    Absolute,
}

/// A range of the base's file that holds references of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) kind: RegionKind,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Where the base's and the target's parts are loaded, and where the base has references.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) base: Vec<Segment>,
    /// As many as `base` has.
    pub(crate) target: Vec<Segment>,
    /// Addresses that instructions lie at, first and end, in the base.
    pub(crate) code: (u64, u64),
    /// In order, not overlapping.
    pub(crate) regions: Vec<Region>,
}

impl Layout {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        varint::put(out, self.base.len() as u64);
        for segment in &self.base {
            for number in [segment.offset, segment.address, segment.file_len, segment.memory_len] {
                varint::put(out, number);
            }
        }
        // The target's are near the base's.
        for (base, target) in self.base.iter().zip(&self.target) {
            for (base, target) in [
                (base.offset, target.offset),
                (base.address, target.address),
                (base.file_len, target.file_len),
                (base.memory_len, target.memory_len),
            ] {
                varint::put_signed(out, target.wrapping_sub(base).cast_signed());
            }
        }
        varint::put(out, self.code.0);
        varint::put(out, self.code.1.wrapping_sub(self.code.0));
        varint::put(out, self.regions.len() as u64);
        let mut at = 0;
        for region in &self.regions {
            out.push(region.kind as u8);
            varint::put(out, region.offset - at);
            varint::put(out, region.len);
            at = region.offset + region.len;
        }
    }

    /// `None` if it is damaged.
    pub(crate) fn read(next: &mut impl FnMut() -> Option<u8>) -> Option<Self> {
        let count = varint::read(&mut *next).filter(|count| *count <= MAX_PARTS)?;
        let mut layout = Self::default();
        for _ in 0..count {
            let mut number = || varint::read(&mut *next).filter(|n| *n < 1 << 62);
            layout.base.push(Segment {
                offset: number()?,
                address: number()?,
                file_len: number()?,
                memory_len: number()?,
            });
        }
        for index in 0..layout.base.len() {
            let near = layout.base[index];
            let mut number = |base: u64| {
                let moved = base.checked_add_signed(varint::signed(varint::read(&mut *next)?))?;
                (moved < 1 << 62).then_some(moved)
            };
            layout.target.push(Segment {
                offset: number(near.offset)?,
                address: number(near.address)?,
                file_len: number(near.file_len)?,
                memory_len: number(near.memory_len)?,
            });
        }
        let first = varint::read(&mut *next)?;
        layout.code = (first, first.checked_add(varint::read(&mut *next)?)?);
        let count = varint::read(&mut *next).filter(|count| *count <= MAX_PARTS)?;
        let mut at = 0_u64;
        for _ in 0..count {
            let kind = match next()? {
                0 => RegionKind::Code,
                1 => RegionKind::Relative,
                2 => RegionKind::RegionRelative,
                3 => RegionKind::Absolute,
                _ => return None,
            };
            let offset = at.checked_add(varint::read(&mut *next)?)?;
            let len = varint::read(&mut *next)?;
            at = offset.checked_add(len).filter(|end| *end < 1 << 62)?;
            layout.regions.push(Region { kind, offset, len });
        }
        Some(layout)
    }

    /// The address that byte `offset` of the base is loaded at.
    fn base_address(&self, offset: u64) -> Option<u64> {
        let holds = |s: &&Segment| offset >= s.offset && offset - s.offset < s.file_len;
        let segment = self.base.iter().find(holds)?;
        Some(segment.address + (offset - segment.offset))
    }

    fn is_code(&self, address: u64) -> bool {
        (self.code.0..self.code.1).contains(&address)
    }

    fn is_loaded(&self, address: u64) -> bool {
        // Behind the last byte, too: ends of arrays.
        self.base.iter().any(|s| address >= s.address && address - s.address <= s.memory_len)
    }

    /// The first and the last address for which [`is_loaded`](Self::is_loaded) may hold.
    fn loaded_within(&self) -> (u64, u64) {
        let first = self.base.iter().map(|s| s.address).min();
        let last = self.base.iter().map(|s| s.address.saturating_add(s.memory_len)).max();
        first.zip(last).unwrap_or((1, 0))
    }
}

/// One reference in the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Where its number stands in the file.
    pub(crate) at: u64,
    /// 4 or 8.
    pub(crate) len: u8,
    /// The address it points at.
    pub(crate) points_at: u64,
    /// What the number is relative to.
    pub(crate) from: From,
}

/// What a reference's number is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// The number's own address and that many bytes more.
    Itself(u64),
    /// The address of the byte of the base's file at this offset.
    Offset(u64),
    /// Nothing.
    Zero,
}

/// Finds the references that lie wholly in `bytes`, which stand at `offset` of the base's file, and
/// hands them to `found` in order. Returns how many bytes are done with: what is left belongs before
/// the bytes that follow, unless there are none (`last`).
pub(crate) fn scan(
    layout: &Layout,
    offset: u64,
    bytes: &[u8],
    last: bool,
    found: &mut impl FnMut(Reference),
) -> usize {
    let end = offset + bytes.len() as u64;
    let mut done = bytes.len();
    for region in &layout.regions {
        let (first, stop) = (region.offset.max(offset), (region.offset + region.len).min(end));
        if first >= stop {
            continue;
        }
        let part = &bytes[(first - offset) as usize..(stop - offset) as usize];
        let more = !last && stop == end && region.offset + region.len > end;
        let used = match region.kind {
            RegionKind::Code => scan_code(layout, first, part, found),
            RegionKind::Relative => scan_words(layout, region, first, part, found),
            RegionKind::RegionRelative => scan_words(layout, region, first, part, found),
            RegionKind::Absolute => scan_addresses(layout, first, part, found),
        };
        if more {
            done = (first - offset) as usize + used;
        }
    }
    done
}

/// Bytes of code that are looked at together.
const BLOCK_LEN: usize = 64;

/// Begins a conditional jump, if the next byte says so.
const ESCAPE: u8 = 0x0f;

/// Mode 0, register 5: an operand relative to the instruction pointer follows.
fn is_operand(byte: u8) -> bool {
    byte & 0xc7 == 0x05
}

/// A call or a jump.
fn is_call(byte: u8) -> bool {
    byte & 0xfe == 0xe8
}

/// A bit for each of these bytes that may begin a reference. Without a branch: the compiler makes vectors of it.
#[inline(always)]
fn marks(block: &[u8; BLOCK_LEN]) -> u64 {
    let flags = block.map(|byte| u8::from(is_operand(byte) | is_call(byte) | (byte == ESCAPE)));
    let mut marks = 0;
    for (place, flags) in flags.as_chunks::<8>().0.iter().enumerate() {
        // Gathers the lowest bit of each byte in the highest byte of the product.
        let gathered = u64::from_le_bytes(*flags).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        marks |= gathered << (8 * place);
    }
    marks
}

/// The longest pattern is two bytes and an operand of four.
const LONGEST: usize = 6;

/// Returns the first byte from which a reference could start that needs bytes behind `code`.
fn scan_code(
    layout: &Layout,
    offset: u64,
    code: &[u8],
    found: &mut impl FnMut(Reference),
) -> usize {
    let Some(address) = layout.base_address(offset) else { return code.len() };
    let places = Places::of(layout);
    let mut at = 0;
    while at < code.len() {
        let mut next = at + BLOCK_LEN;
        let mut marks = match code[at..].first_chunk() {
            Some(block) => marks(block),
            None => marks(&padded(&code[at..])),
        };
        while marks != 0 {
            let place = at + marks.trailing_zeros() as usize;
            if place + LONGEST > code.len() {
                return place;
            }
            marks &= marks - 1;
            if let Some((operand, points_at)) = places.reference(layout, address, code, place) {
                let stands_at = offset + operand as u64;
                found(Reference { at: stands_at, len: 4, points_at, from: From::Itself(4) });
                // Nothing begins within it.
                let behind = operand + 4;
                next = next.max(behind);
                marks &= u64::MAX.checked_shl((behind - at) as u32).unwrap_or(0);
            }
        }
        at = next;
    }
    code.len()
}

/// The last bytes of code, and zeros, which begin nothing.
fn padded(code: &[u8]) -> [u8; BLOCK_LEN] {
    let mut block = [0; BLOCK_LEN];
    block.iter_mut().zip(code).for_each(|(to, from)| *to = *from);
    block
}

/// The addresses that references in code may point at: the first, and how many there are.
struct Places {
    of_jumps: (u64, u64),
    /// All that are loaded lie within; what lies within need not be loaded.
    of_operands: (u64, u64),
}

impl Places {
    fn of(layout: &Layout) -> Self {
        let (first, end) = layout.code;
        let (loaded, last) = layout.loaded_within();
        Self {
            of_jumps: (first, end.saturating_sub(first)),
            of_operands: (loaded, last.saturating_add(1).saturating_sub(loaded)),
        }
    }

    /// Where the operand of the reference that begins at `place` stands, and the address it points at; `None`
    /// if none does. `address` is that of `code`.
    #[inline(always)]
    fn reference(
        &self,
        layout: &Layout,
        address: u64,
        code: &[u8],
        place: usize,
    ) -> Option<(usize, u64)> {
        let (byte, next) = (code[place], code[place + 1]);
        let (is_operand, is_escape) = (is_operand(byte), byte == ESCAPE);
        if is_escape && next & 0xf0 != 0x80 {
            return None;
        }
        let operand = place + 1 + usize::from(is_escape);
        let number = i32::from_le_bytes(*code.get(operand..)?.first_chunk()?);
        let behind = address + operand as u64 + 4;
        let points_at = behind.wrapping_add_signed(i64::from(number));
        // Most of what looks like an operand is none and would point anywhere.
        let (first, count) = if is_operand { self.of_operands } else { self.of_jumps };
        let good =
            points_at.wrapping_sub(first) < count && (!is_operand || layout.is_loaded(points_at));
        good.then_some((operand, points_at))
    }
}

fn scan_words(
    layout: &Layout,
    region: &Region,
    offset: u64,
    bytes: &[u8],
    found: &mut impl FnMut(Reference),
) -> usize {
    let Some(start) = layout.base_address(region.offset) else { return bytes.len() };
    let mut at = (4 - (offset - region.offset) % 4) as usize % 4;
    while at + 4 <= bytes.len() {
        let number = i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let place = offset + at as u64;
        let own = start + (place - region.offset);
        let (points_at, from, good) = if region.kind == RegionKind::Relative {
            let points_at = own.wrapping_add_signed(i64::from(number));
            (points_at, From::Itself(0), layout.is_code(points_at))
        } else {
            let points_at = start.wrapping_add_signed(i64::from(number));
            (points_at, From::Offset(region.offset), layout.is_loaded(points_at))
        };
        if good {
            found(Reference { at: place, len: 4, points_at, from });
        }
        at += 4;
    }
    at.min(bytes.len())
}

fn scan_addresses(
    layout: &Layout,
    offset: u64,
    bytes: &[u8],
    found: &mut impl FnMut(Reference),
) -> usize {
    let mut at = (8 - offset % 8) as usize % 8;
    while at + 8 <= bytes.len() {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[at..at + 8]);
        let points_at = u64::from_le_bytes(number);
        // Smaller numbers are lengths and flags.
        if points_at >= layout.code.0 && layout.is_loaded(points_at) {
            found(Reference { at: offset + at as u64, len: 8, points_at, from: From::Zero });
        }
        at += 8;
    }
    at.min(bytes.len())
}
