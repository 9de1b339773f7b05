//! The layout of ELF programs and libraries, as far as references need it.
//!
//! Only the encoder looks: what it gets wrong costs bytes, never correctness. Field names and
//! offsets are those of elf(5).

use super::refs::{Layout, Region, RegionKind, Segment, scan};

const X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PF_X: u32 = 1;
const SHT_NOBITS: u32 = 8;
const SHF_EXECINSTR: u64 = 4;
/// More headers than this has no program that we know.
const MAX_HEADERS: usize = 4096;
/// Most regions; the layout's own limit is 64.
const MAX_REGIONS: usize = 40;
/// Bytes at a place that tell it from others.
const LABEL_LEN: usize = 20;

/// What one file says about itself.
#[derive(Debug)]
pub(crate) struct Shape {
    segments: Vec<Segment>,
    code: (u64, u64),
    regions: Vec<Region>,
}

fn field<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    field(file, at).map(u16::from_le_bytes)
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    field(file, at).map(u32::from_le_bytes)
}

fn u64_at(file: &[u8], at: usize) -> Option<u64> {
    // Larger is damaged; smaller can be added without a care.
    field(file, at).map(u64::from_le_bytes).filter(|number| *number < 1 << 60)
}

/// Reads the shape of a 64-bit little-endian ELF file; `None` for everything else.
pub(crate) fn shape(file: &[u8]) -> Option<Shape> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let machine = u16_at(file, 18)?;
    let (mut segments, mut code) = (Vec::new(), (u64::MAX, 0));
    let (first, size, count) =
        (u64_at(file, 32)? as usize, u16_at(file, 54)? as usize, u16_at(file, 56)? as usize);
    for number in 0..count.min(16) {
        let at = first.checked_add(number * size)?;
        if u32_at(file, at)? != PT_LOAD {
            continue;
        }
        let segment = Segment {
            offset: u64_at(file, at + 8)?,
            address: u64_at(file, at + 16)?,
            file_len: u64_at(file, at + 32)?,
            memory_len: u64_at(file, at + 40)?,
        };
        if u32_at(file, at + 4)? & PF_X != 0 {
            code.0 = code.0.min(segment.address);
            code.1 = code.1.max(segment.address + segment.memory_len);
        }
        segments.push(segment);
    }
    if code.0 >= code.1 {
        return None;
    }
    let regions = regions(file, machine)?;
    Some(Shape { segments, code, regions })
}

fn regions(file: &[u8], machine: u16) -> Option<Vec<Region>> {
    let (first, size, count, names) = (
        u64_at(file, 40)? as usize,
        u16_at(file, 58)? as usize,
        u16_at(file, 60)? as usize,
        u16_at(file, 62)? as usize,
    );
    let names_at = u64_at(file, first.checked_add(names * size)? + 24)? as usize;
    let mut regions: Vec<Region> = Vec::new();
    for number in 0..count.min(MAX_HEADERS) {
        let at = first.checked_add(number * size)?;
        let name_at = names_at.checked_add(u32_at(file, at)? as usize)?;
        let name = file.get(name_at..)?.split(|byte| *byte == 0).next()?;
        let (kind, flags) = (u32_at(file, at + 4)?, field(file, at + 8).map(u64::from_le_bytes)?);
        let (offset, len) = (u64_at(file, at + 24)?, u64_at(file, at + 32)?);
        if kind == SHT_NOBITS || kind == 0 || len == 0 || offset + len > file.len() as u64 {
            continue;
        }
        let is_code = flags & SHF_EXECINSTR != 0;
        let kind = match name {
            _ if is_code && machine == X86_64 => RegionKind::Code,
            b".eh_frame" => RegionKind::Relative,
            b".eh_frame_hdr" => RegionKind::RegionRelative,
            b".rela.dyn"
            | b".rela.plt"
            | b".data.rel.ro"
            | b".data.rel.ro.local"
            | b".got"
            | b".got.plt"
            | b".init_array"
            | b".fini_array"
            | b".dynamic"
            | b".data"
            | b".dynsym"
            | b".symtab" => RegionKind::Absolute,
            _ => continue,
        };
        regions.push(Region { kind, offset, len });
    }
    regions.sort_by_key(|region| region.offset);
    let mut end = 0;
    regions.retain(|region| {
        let good = region.offset >= end;
        end = end.max(region.offset + region.len);
        good
    });
    regions.truncate(MAX_REGIONS);
    Some(regions)
}

/// What both layouts together are, if they are of the same kind.
pub(crate) fn layout(base: &Shape, target: &Shape) -> Option<Layout> {
    (base.segments.len() == target.segments.len()).then(|| Layout {
        base: base.segments.clone(),
        target: target.segments.clone(),
        code: base.code,
        regions: base.regions.clone(),
    })
}

/// The file with every reference replaced by a mark of what it points at, so that code that was
/// merely moved looks the same.
pub(crate) fn marked(file: &[u8], shape: &Shape) -> Vec<u8> {
    let layout = Layout {
        base: shape.segments.clone(),
        target: Vec::new(),
        code: shape.code,
        regions: shape.regions.clone(),
    };
    let mut found = Vec::new();
    scan(&layout, 0, file, true, &mut |reference| found.push(reference));
    let mut blank = file.to_vec();
    for reference in &found {
        let at = reference.at as usize;
        blank[at..at + usize::from(reference.len)].fill(0);
    }
    let mut marked = blank.clone();
    for reference in &found {
        let mark = mark(&blank, shape, reference.points_at);
        let at = reference.at as usize;
        marked[at..at + 4].copy_from_slice(&mark.to_le_bytes());
    }
    marked
}

fn mark(blank: &[u8], shape: &Shape, address: u64) -> u32 {
    let holds = |s: &&Segment| address >= s.address && address - s.address < s.memory_len.max(1);
    let Some(segment) = shape.segments.iter().find(holds) else { return 1 };
    let within = address - segment.address;
    if within >= segment.file_len {
        return (within - segment.file_len) as u32;
    }
    let offset = (segment.offset + within) as usize;
    let bytes = blank.get(offset..).unwrap_or_default();
    // Any hash would do: only this encoder sees it.
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (words, rest) = bytes[..bytes.len().min(LABEL_LEN)].as_chunks::<4>();
    let words = words.iter().map(|word| u64::from(u32::from_le_bytes(*word)));
    let hash = words.fold(1, |hash, word| mix(hash, word).rotate_left(29));
    (rest.iter().fold(hash, |hash, byte| mix(hash, u64::from(*byte))) >> 32) as u32
}
