//! Where the base's bytes went: the copied ranges as a map, and what it predicts.

use std::cell::Cell;
use std::collections::HashMap;

use super::Op;
use super::refs::{From, Layout, Reference, Segment};

/// Most entries of the table that leads into the sorted ranges; bounds its memory to 256 KiB.
const TABLE_LEN: u64 = 1 << 16;

/// Most addresses whose corrections are remembered: bounds memory to some 50 MB, for streams that
/// nobody wrote; large programs have some ten thousand.
const MAX_LEARNED: usize = 1 << 20;

/// Bits of the filter before the corrections learned.
const FILTER_BITS: u32 = 16;

/// Copied ranges by their place in the base, not overlapping.
#[derive(Debug, Default)]
struct Ranges {
    /// First byte in the base, first byte in the target.
    starts: Vec<(u64, u64)>,
    /// For every `1 << shift` bytes of the base, how many ranges start at or before them.
    table: Vec<u32>,
    shift: u32,
}

impl Ranges {
    fn of(ops: &[Op]) -> Self {
        let mut list: Vec<(u64, u64, u64)> = Vec::with_capacity(ops.len());
        let mut target = 0;
        for op in ops {
            if op.copy_len > 0 {
                list.push((op.base_at, target, op.copy_len));
            }
            target += op.copy_len + op.extra_len;
        }
        list.sort_unstable();
        let mut starts: Vec<(u64, u64)> = Vec::with_capacity(list.len());
        let mut covered = 0;
        for (base, target, len) in list {
            // What two ranges copy, the first one has.
            let skip = covered.max(base) - base;
            if skip < len {
                starts.push((base + skip, target + skip));
                covered = base + len;
            }
        }
        let mut shift = 8;
        while covered >> shift >= TABLE_LEN {
            shift += 1;
        }
        let mut table = Vec::with_capacity((covered >> shift) as usize + 2);
        let mut count = 0;
        for bucket in 0..=(covered >> shift) {
            while starts.get(count).is_some_and(|(base, _)| *base <= bucket << shift) {
                count += 1;
            }
            table.push(count as u32);
        }
        table.push(starts.len() as u32);
        Self { starts, table, shift }
    }

    /// Where byte `offset` of the base went; what was not copied goes with what lies before it.
    #[inline]
    fn place(&self, offset: u64) -> Option<u64> {
        let last = self.table.len().checked_sub(2)?;
        let bucket = ((offset >> self.shift) as usize).min(last);
        let (low, high) = (self.table[bucket] as usize, self.table[bucket + 1] as usize);
        // Ranges that start in the bucket; beyond the table, all that is left.
        let within = &self.starts[low.min(self.starts.len())..high.max(low)];
        let count = low + within.partition_point(|(base, _)| *base <= offset);
        let (base, target) = *self.starts.get(count.checked_sub(1)?)?;
        target.checked_add(offset - base)
    }
}

/// Predicts what references say in the target.
#[derive(Debug)]
pub(crate) struct Moves<'a> {
    layout: &'a Layout,
    ranges: Ranges,
    /// By address in the base: how much the map was wrong about it the last time.
    learned: HashMap<u64, i64>,
    filter: Vec<u64>,
    /// The segments that were needed last, of the base and of the target: most likely those that are
    /// needed next. Of segments that overlap the first counts, so that these are looked through.
    last: Option<(Cell<usize>, Cell<usize>)>,
}

impl<'a> Moves<'a> {
    pub(crate) fn new(layout: &'a Layout, ops: &[Op]) -> Self {
        let filter = if layout.regions.is_empty() { 0 } else { 1 << (FILTER_BITS - 6) };
        let is_simple = are_disjoint(layout.base.iter().map(|s| (s.address, s.file_len)))
            && are_disjoint(layout.target.iter().map(|s| (s.offset, s.file_len)));
        let last = is_simple.then(Default::default);
        let ranges = Ranges::of(ops);
        Self { layout, ranges, learned: HashMap::new(), filter: vec![0; filter], last }
    }

    /// What the number of `reference` is in the target, where it stands at `target_at`; `None` if
    /// that cannot be told.
    #[inline]
    pub(crate) fn predict(&self, reference: &Reference, target_at: u64) -> Option<u64> {
        let mut points_at = self.address(reference.points_at)?;
        let (word, bit) = filter_place(reference.points_at);
        if self.filter[word] & bit != 0
            && let Some(correction) = self.learned.get(&reference.points_at)
        {
            points_at = points_at.wrapping_add_signed(*correction);
        }
        let from = match reference.from {
            From::Itself(more) => self.target_address(target_at)?.wrapping_add(more),
            From::Offset(offset) => self.target_address(self.ranges.place(offset)?)?,
            From::Zero => 0,
        };
        Some(points_at.wrapping_sub(from))
    }

    /// Remembers that the prediction has to be corrected by that much.
    pub(crate) fn learn(&mut self, reference: &Reference, correction: i64) {
        if self.learned.len() == MAX_LEARNED && !self.learned.contains_key(&reference.points_at) {
            return;
        }
        let (word, bit) = filter_place(reference.points_at);
        self.filter[word] |= bit;
        let known = self.learned.entry(reference.points_at).or_default();
        *known = known.wrapping_add(correction);
    }

    /// The address that byte `offset` of the target is loaded at.
    #[inline]
    fn target_address(&self, offset: u64) -> Option<u64> {
        let last = self.last.as_ref().map(|(_, target)| target);
        let holds = |s: &Segment| offset >= s.offset && offset - s.offset < s.file_len;
        let segment = find(&self.layout.target, last, holds)?;
        Some(segment.address + (offset - segment.offset))
    }

    /// Where what the base has at `address` lies in the target.
    #[inline]
    fn address(&self, address: u64) -> Option<u64> {
        let holds = |s: &Segment| address >= s.address && address - s.address < s.file_len;
        let last = self.last.as_ref().map(|(base, _)| base);
        if let Some(segment) = find(&self.layout.base, last, holds) {
            let offset = segment.offset + (address - segment.address);
            return self.target_address(self.ranges.place(offset)?);
        }
        // Beyond the file's part of a segment: keeps its distance from there.
        let pairs = self.layout.base.iter().zip(&self.layout.target);
        let (base, target) = pairs
            .rev()
            .find(|(s, _)| address >= s.address && address - s.address <= s.memory_len)?;
        let beyond = address - base.address - base.file_len;
        Some(target.address + target.file_len + beyond)
    }
}

/// Whether no two of these ranges, given as start and length, have a byte in common.
fn are_disjoint(ranges: impl Iterator<Item = (u64, u64)>) -> bool {
    let mut ranges: Vec<(u64, u64)> = ranges.collect();
    ranges.sort_unstable();
    ranges.windows(2).all(|pair| pair[0].0.saturating_add(pair[0].1) <= pair[1].0)
}

/// The segment for which `holds`; the `last` one found first.
#[inline]
fn find<'a>(
    segments: &'a [Segment],
    last: Option<&Cell<usize>>,
    holds: impl Fn(&Segment) -> bool,
) -> Option<&'a Segment> {
    let Some(last) = last else { return segments.iter().find(|segment| holds(segment)) };
    if let Some(segment) = segments.get(last.get()).filter(|segment| holds(segment)) {
        return Some(segment);
    }
    let at = segments.iter().position(holds)?;
    last.set(at);
    segments.get(at)
}

fn filter_place(address: u64) -> (usize, u64) {
    // Fibonacci hashing (Knuth, volume 3, 6.4).
    let hash = address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - FILTER_BITS);
    ((hash >> 6) as usize, 1 << (hash & 63))
}
