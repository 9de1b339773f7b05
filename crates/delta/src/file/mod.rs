//! The delta of one file: from the bytes of the base's file to the target's.
//!
//! A script of *ops*, each of which copies a range of the base and adds bytes of its own, in the
//! manner of bsdiff (Percival 2003). Copies need not be exact: references in programs are predicted
//! from the moves of what they point at ([`refs`], [`moves`]), wrong predictions are corrected, and
//! what then still differs is patched. What goes into a delta is kept apart by kind, so that the
//! same kind of many files is compressed together:
//!
//! | stream  | holds                                                                  |
//! |---------|------------------------------------------------------------------------|
//! | control | the layout of programs, then per op: length copied, length added, jump |
//! | patch   | pairs: bytes that are right as copied, then bytes that are not         |
//! | diff    | the differences (modulo 256) of those that are not                     |
//! | extra   | the bytes added                                                        |
//! | refs    | pairs: references predicted right, then a correction                   |
//!
//! Decoding needs a block of the base at a time, whatever the file's size, and checks every number.

mod align;
mod elf;
mod moves;
mod refs;
#[cfg(test)]
mod tests;
pub(crate) mod varint;

pub(crate) use align::Search;

use moves::Moves;
use refs::{Layout, Reference};

use crate::frames::Class;

/// How much of the base is read at a time, in bytes.
const BLOCK_LEN: usize = 64 << 10;

/// Most bytes of one file's control stream: bounds what a decoder keeps of the script in memory to
/// 16 MiB.
pub(crate) const MAX_CONTROL_LEN: u64 = 2 << 20;

/// Largest base or target of a delta.
pub(crate) const MAX_DELTA_LEN: u64 = 64 << 20;

/// An equal byte between two wrong ones is patched with them: another pair costs more.
const BRIDGED: usize = 1;

/// Copies a range of the base, then adds bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) base_at: u64,
    pub(crate) copy_len: u64,
    pub(crate) extra_len: u64,
}

/// A file's delta, by stream.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    pub(crate) control: Vec<u8>,
    pub(crate) patch: Vec<u8>,
    pub(crate) diff: Vec<u8>,
    pub(crate) extra: Vec<u8>,
    pub(crate) refs: Vec<u8>,
}

/// The delta that makes `target` from `base`; `search` says how hard places of the base are
/// looked for. `None` if it would be of no use or beyond the limits.
pub(crate) fn encode(base: &[u8], target: &[u8], search: Search) -> Option<Delta> {
    if base.len() as u64 > MAX_DELTA_LEN || target.len() as u64 > MAX_DELTA_LEN {
        return None;
    }
    let shapes = elf::shape(base).zip(elf::shape(target));
    let layout = shapes.as_ref().and_then(|(base, target)| elf::layout(base, target));
    let margin = margin(target);
    let ops = match (&shapes, &layout) {
        (Some((base_shape, target_shape)), Some(_)) => {
            let (base, target) = (elf::marked(base, base_shape), elf::marked(target, target_shape));
            align::align(&base, &target, search, margin)
        }
        _ => align::align(base, target, search, margin),
    };
    let mut delta = Delta { control: control(layout.as_ref(), &ops), ..Delta::default() };
    if delta.control.len() as u64 > MAX_CONTROL_LEN {
        return None;
    }
    let layout = layout.unwrap_or_default();
    let mut moves = Moves::new(&layout, &ops);
    let (mut patch, mut at) = (Patch::default(), 0);
    let mut right = 0;
    for op in &ops {
        let base_at = op.base_at as usize;
        let mut copied = base[base_at..base_at + op.copy_len as usize].to_vec();
        let wanted = &target[at..at + copied.len()];
        for reference in found(&layout, op.base_at, &copied) {
            let place = (reference.at - op.base_at) as usize;
            let Some(predicted) = moves.predict(&reference, (at + place) as u64) else { continue };
            let end = place + usize::from(reference.len);
            let correction = difference(predicted, &wanted[place..end]);
            copied[place..end].copy_from_slice(&wanted[place..end]);
            if correction == 0 {
                right += 1;
            } else {
                varint::put(&mut delta.refs, right);
                varint::put_signed(&mut delta.refs, correction);
                right = 0;
                moves.learn(&reference, correction);
            }
        }
        patch.add(&copied, wanted, &mut delta);
        at += copied.len();
        let extra = op.extra_len as usize;
        delta.extra.extend_from_slice(&target[at..at + extra]);
        at += extra;
    }
    Some(delta)
}

/// The delta that makes `target` of nothing.
pub(crate) fn whole(target: &[u8]) -> Delta {
    let op = Op { base_at: 0, copy_len: 0, extra_len: target.len() as u64 };
    Delta { control: control(None, &[op]), extra: target.to_vec(), ..Delta::default() }
}

/// How many more right bytes than going on has another place of the base must have to be taken. A jump
/// costs four or five bytes: as much as eight bytes of a program, or some twenty of text, cost when
/// they travel themselves, compressed among their like.
fn margin(target: &[u8]) -> usize {
    match Class::of(target) {
        Class::Text => 24,
        Class::Program | Class::Other => 8,
    }
}

fn found(layout: &Layout, offset: u64, bytes: &[u8]) -> Vec<Reference> {
    let mut found = Vec::new();
    refs::scan(layout, offset, bytes, true, &mut |reference| found.push(reference));
    found
}

/// What has to be added to `predicted` to get the number that is `wanted`.
fn difference(predicted: u64, wanted: &[u8]) -> i64 {
    match wanted.try_into().map(u64::from_le_bytes) {
        Ok(number) => number.wrapping_sub(predicted).cast_signed(),
        Err(_) => {
            let mut number = [0; 4];
            number.copy_from_slice(wanted);
            let difference = u32::from_le_bytes(number).wrapping_sub(predicted as u32);
            i64::from(difference.cast_signed())
        }
    }
}

fn control(layout: Option<&Layout>, ops: &[Op]) -> Vec<u8> {
    let mut out = vec![u8::from(layout.is_some())];
    if let Some(layout) = layout {
        layout.write(&mut out);
    }
    varint::put(&mut out, ops.len() as u64);
    let mut expected = 0;
    for op in ops {
        varint::put(&mut out, op.copy_len);
        varint::put(&mut out, op.extra_len);
        varint::put_signed(&mut out, op.base_at.wrapping_sub(expected).cast_signed());
        expected = op.base_at + op.copy_len;
    }
    out
}

/// Collects what differs between copied and wanted bytes.
#[derive(Debug, Default)]
struct Patch {
    /// Bytes that were right since the last wrong one.
    right: u64,
}

impl Patch {
    fn add(&mut self, copied: &[u8], wanted: &[u8], delta: &mut Delta) {
        let mut at = 0;
        while at < copied.len() {
            let same = equal_len(&copied[at..], &wanted[at..]);
            self.right += same as u64;
            at += same;
            if at == copied.len() {
                break;
            }
            let mut end = at + 1;
            while end < copied.len() {
                let ahead = copied.len().min(end + BRIDGED + 1);
                let next = equal_len(&copied[end..ahead], &wanted[end..ahead]);
                if next > BRIDGED || end + next == copied.len() {
                    break;
                }
                end += next + 1;
            }
            varint::put(&mut delta.patch, self.right);
            varint::put(&mut delta.patch, (end - at) as u64);
            delta.diff.extend((at..end).map(|i| wanted[i].wrapping_sub(copied[i])));
            self.right = 0;
            at = end;
        }
    }
}

fn equal_len(a: &[u8], b: &[u8]) -> usize {
    let (a_words, b_words) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    let start = 8 * a_words.iter().zip(b_words).take_while(|(a, b)| a == b).count();
    start + a[start..].iter().zip(&b[start..]).take_while(|(a, b)| a == b).count()
}

/// The script of a delta, read and checked.
#[derive(Debug)]
pub(crate) struct Script {
    layout: Layout,
    ops: Vec<Op>,
}

impl Script {
    /// Reads the control stream of a content of `len` bytes; `None` if it is damaged.
    pub(crate) fn read(control: &[u8], len: u64) -> Option<Self> {
        let mut bytes = control.iter().copied();
        let mut next = || bytes.next();
        let layout = match next()? {
            0 => Layout::default(),
            1 => Layout::read(&mut next)?,
            _ => return None,
        };
        let count = varint::read(&mut next)?;
        // Each op has three numbers of at least a byte.
        if count > control.len() as u64 / 3 {
            return None;
        }
        let mut ops = Vec::with_capacity(count as usize);
        let (mut expected, mut sum) = (0_u64, 0_u64);
        for _ in 0..count {
            let (copy_len, extra_len) = (varint::read(&mut next)?, varint::read(&mut next)?);
            let jump = varint::signed(varint::read(&mut next)?);
            let base_at = expected.checked_add_signed(jump)?;
            expected = base_at.checked_add(copy_len).filter(|end| *end <= MAX_DELTA_LEN)?;
            sum = sum.checked_add(copy_len)?.checked_add(extra_len)?;
            ops.push(Op { base_at, copy_len, extra_len });
        }
        (sum == len && next().is_none()).then_some(Self { layout, ops })
    }
}

/// Where a decoder gets its numbers and bytes from. What fails is reported by `None` and kept by the
/// implementer.
pub(crate) trait Streams {
    /// The next number of the patch stream; `None` at its end.
    fn patch(&mut self) -> Option<u64>;
    /// The next number of the reference stream; `None` at its end.
    fn refs(&mut self) -> Option<u64>;
    /// Adds the next differences to `bytes`, modulo 256; `None` if there are fewer.
    fn diff(&mut self, bytes: &mut [u8]) -> Option<()>;
    /// Hands `len` added bytes to `sink`; `None` if there are fewer, or `sink` failed.
    fn extra(&mut self, len: u64, sink: &mut dyn FnMut(&[u8]) -> Option<()>) -> Option<()>;
    /// Fills `buffer` from the base.
    fn base(&mut self, offset: u64, buffer: &mut [u8]) -> Option<()>;
}

/// Makes the target, piece by piece. `None` if the streams do not fit the script or one of the
/// parties failed.
pub(crate) fn decode(
    script: &Script,
    streams: &mut impl Streams,
    sink: &mut dyn FnMut(&[u8]) -> Option<()>,
) -> Option<()> {
    let mut decoder = Decoder {
        moves: Moves::new(&script.layout, &script.ops),
        layout: &script.layout,
        right_bytes: streams.patch(),
        wrong_bytes: 0,
        right_refs: streams.refs(),
        found: Vec::new(),
        buffer: Vec::with_capacity(BLOCK_LEN),
    };
    let mut at = 0;
    for op in &script.ops {
        decoder.copy(op, at, streams, sink)?;
        streams.extra(op.extra_len, sink)?;
        at += op.copy_len + op.extra_len;
    }
    Some(())
}

struct Decoder<'a> {
    moves: Moves<'a>,
    layout: &'a Layout,
    /// Bytes that are right before the next that are not; `None` once all are.
    right_bytes: Option<u64>,
    wrong_bytes: u64,
    /// References that are predicted right before the next that is not; `None` once all are.
    right_refs: Option<u64>,
    found: Vec<Reference>,
    buffer: Vec<u8>,
}

impl Decoder<'_> {
    /// Copies the range of `op`, which goes to `target_at`.
    fn copy(
        &mut self,
        op: &Op,
        target_at: u64,
        streams: &mut impl Streams,
        sink: &mut dyn FnMut(&[u8]) -> Option<()>,
    ) -> Option<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let (mut at, mut left) = (op.base_at, op.copy_len);
        while left > 0 || !buffer.is_empty() {
            let held = buffer.len();
            let step = left.min((BLOCK_LEN - held) as u64) as usize;
            buffer.resize(held + step, 0);
            streams.base(at + held as u64, &mut buffer[held..])?;
            left -= step as u64;
            let done = self.predict(op, target_at, at, &mut buffer, left == 0, streams)?;
            self.patch(&mut buffer[..done], streams)?;
            sink(&buffer[..done])?;
            buffer.drain(..done);
            at += done as u64;
        }
        self.buffer = buffer;
        Some(())
    }

    /// Moves the references in `buffer`, which stands at `at` of the base, and corrects them.
    /// Returns how many bytes are done with.
    fn predict(
        &mut self,
        op: &Op,
        target_at: u64,
        at: u64,
        buffer: &mut [u8],
        last: bool,
        streams: &mut impl Streams,
    ) -> Option<usize> {
        if self.layout.regions.is_empty() {
            return Some(buffer.len());
        }
        let found = &mut self.found;
        found.clear();
        let done = refs::scan(self.layout, at, buffer, last, &mut |one| found.push(one));
        for reference in found {
            let place = (reference.at - at) as usize;
            let goes_to = target_at + (reference.at - op.base_at);
            let Some(mut number) = self.moves.predict(reference, goes_to) else { continue };
            match &mut self.right_refs {
                Some(0) => {
                    let correction = varint::signed(streams.refs()?);
                    number = number.wrapping_add_signed(correction);
                    self.moves.learn(reference, correction);
                    self.right_refs = streams.refs();
                }
                Some(right) => *right -= 1,
                None => {}
            }
            let len = usize::from(reference.len);
            buffer[place..place + len].copy_from_slice(&number.to_le_bytes()[..len]);
        }
        Some(done)
    }

    fn patch(&mut self, bytes: &mut [u8], streams: &mut impl Streams) -> Option<()> {
        let mut at = 0;
        while at < bytes.len() {
            let room = (bytes.len() - at) as u64;
            if self.wrong_bytes > 0 {
                let step = self.wrong_bytes.min(room);
                streams.diff(&mut bytes[at..at + step as usize])?;
                at += step as usize;
                self.wrong_bytes -= step;
                continue;
            }
            let Some(right) = self.right_bytes else { break };
            if right >= room {
                self.right_bytes = Some(right - room);
                break;
            }
            at += right as usize;
            self.wrong_bytes = streams.patch().filter(|wrong| *wrong > 0)?;
            self.right_bytes = streams.patch();
        }
        Some(())
    }
}
