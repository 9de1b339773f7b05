//! Huffman codes of a deflate stream: read as anybody may have made them, made as zlib makes them.
//!
//! RFC 1951 leaves open which of many equally good codes a compressor takes and how it writes them
//! down. zlib and GNU gzip agree: of nodes of equal frequency the one of less depth comes first (then the
//! order of their heap decides), codes that became too long are shortened from the last on, and runs of
//! equal lengths are written as soon as there is an escape for them. Tests compare with their streams.

use super::bits::{BitReader, BitWriter};
use super::{END, END_VALUE, MAX_BITS};

/// Symbols of bytes, the end and lengths that zlib counts.
pub(super) const LITERALS: usize = 286;
pub(super) const DISTANCES: usize = 30;
/// Symbols with which lengths of codes are written.
const LENGTHS: usize = 19;

/// The order in which the lengths of those stand (RFC 1951, 3.2.7).
const ORDER: [usize; LENGTHS] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Longest code of the length of a code.
const MAX_LENGTH_BITS: usize = 7;

/// The symbol of a length less 3, its further bits and how many (RFC 1951, 3.2.5).
#[inline]
pub(super) fn length_code(len: u8) -> (usize, u32, u32) {
    let len = u32::from(len);
    match len {
        255 => (285, 0, 0),
        0..8 => (257 + len as usize, 0, 0),
        _ => {
            let width = len.ilog2() - 2;
            let symbol = 257 + 4 * (width + 1) + ((len >> width) & 3);
            (symbol as usize, len & ((1 << width) - 1), width)
        }
    }
}

/// The same of a distance less 1.
#[inline(always)]
pub(super) fn distance_code(distance: u32) -> (usize, u32, u32) {
    // The first two have symbols as if they had a bit less than one.
    let width = (distance | 2).ilog2() - 1;
    let symbol = 2 * width + 2 + ((distance >> width) & 1) - 2 * u32::from(distance < 2);
    (symbol as usize, distance & ((1 << width) - 1), width)
}

/// The least length less 3 that a symbol means, and how many bits follow.
fn length_of(symbol: usize) -> Option<(u32, u32)> {
    let code = symbol.checked_sub(257)? as u32;
    match code {
        0..8 => Some((code, 0)),
        8..28 => {
            let width = code / 4 - 1;
            Some(((4 + code % 4) << width, width))
        }
        28 => Some((255, 0)),
        _ => None,
    }
}

/// The same of a distance less 1.
fn distance_of(symbol: usize) -> Option<(u32, u32)> {
    let code = symbol as u32;
    match code {
        0..4 => Some((code, 0)),
        4..30 => {
            let width = code / 2 - 1;
            Some(((2 + code % 2) << width, width))
        }
        _ => None,
    }
}

/// Bits that are looked up at once: longer codes are rare, and a table for all would take longer to make
/// than most files to read.
const SHORT_BITS: u32 = 9;

/// A symbol's value and how many further bits are added to it; `None` if it has no meaning.
type Meaning = fn(usize) -> Option<(u32, u32)>;

/// Reads values by the codes of their symbols.
#[derive(Debug)]
pub(super) struct Decoder {
    bits: u32,
    /// How many of them are looked up in `short`.
    short_bits: u32,
    /// By the next bits: the length of the code in the lowest four, the number of further bits in the next
    /// four, above them the value; 0 for none. For longer codes the number of a part of `long`, counted from 1, in
    /// the place of the value and nothing else.
    short: Vec<u32>,
    /// The same by the bits that follow.
    long: Vec<u32>,
}

impl Decoder {
    /// The code whose symbols have these lengths and mean that; `None` if there is no such code.
    fn new(lens: &[u8], meaning: Meaning) -> Option<Self> {
        let bits = u32::from(lens.iter().copied().max()?).max(1);
        let taken: u32 =
            lens.iter().filter(|len| **len > 0).map(|len| 1 << (bits - u32::from(*len))).sum();
        if taken > 1 << bits {
            return None;
        }
        let short_bits = bits.min(SHORT_BITS);
        let more = bits - short_bits;
        let (mut short, mut long) = (vec![0; 1 << short_bits], Vec::new());
        for ((symbol, len), code) in lens.iter().enumerate().zip(codes(lens)) {
            let (len, code) = (u32::from(*len), usize::from(code));
            let Some((value, width)) = meaning(symbol).filter(|_| len > 0) else { continue };
            let entry = value << 8 | width << 4 | len;
            if len <= short_bits {
                fill(&mut short, code, len, entry);
                continue;
            }
            let link = &mut short[code & ((1 << short_bits) - 1)];
            if *link == 0 {
                long.resize(long.len() + (1 << more), 0);
                *link = ((long.len() >> more) as u32) << 8;
            }
            let part = ((*link >> 8) as usize - 1) << more;
            fill(&mut long[part..part + (1 << more)], code >> short_bits, len - short_bits, entry);
        }
        Some(Self { bits, short_bits, short, long })
    }

    /// The value of the next symbol with its further bits; `None` if it has none, or the stream has ended. Takes
    /// at most 28 bits, which have to be [filled](BitReader::fill) before.
    #[inline(always)]
    pub(super) fn next(&self, bits: &mut BitReader<'_>) -> Option<u32> {
        let ahead = bits.ahead();
        let mut entry = *self.short.get(ahead as usize & ((1 << self.short_bits) - 1))?;
        if entry & 15 == 0 {
            entry = self.long_entry(entry, ahead)?;
        }
        let (len, width) = (entry & 15, (entry >> 4) & 15);
        bits.skip(len + width)?;
        Some((entry >> 8) + ((ahead >> len) as u32 & ((1 << width) - 1)))
    }

    #[inline(never)]
    fn long_entry(&self, link: u32, ahead: u64) -> Option<u32> {
        let part = (link >> 8).checked_sub(1)? as usize;
        let code = ahead as usize & ((1 << self.bits) - 1);
        let place = part << (self.bits - self.short_bits) | code >> self.short_bits;
        self.long.get(place).copied().filter(|entry| *entry != 0)
    }
}

/// Puts `entry` wherever the lowest `len` bits are `code`.
fn fill(table: &mut [u32], code: usize, len: u32, entry: u32) {
    table.iter_mut().skip(code).step_by(1 << len).for_each(|at| *at = entry);
}

/// The codes for symbols of these lengths, the first bit lowest (RFC 1951, 3.2.2).
fn codes(lens: &[u8]) -> Vec<u16> {
    let mut next = [0_u32; MAX_BITS + 2];
    for len in lens.iter().filter(|len| **len > 0) {
        next[usize::from(*len) + 1] += 1;
    }
    // So far the number of codes a bit shorter.
    for len in 1..next.len() {
        next[len] = (next[len - 1] + next[len]) << 1;
    }
    let code = |len: &u8| {
        if *len == 0 {
            return 0;
        }
        let code = next[usize::from(*len)];
        next[usize::from(*len)] += 1;
        (code as u16).reverse_bits() >> (16 - u16::from(*len))
    };
    lens.iter().map(code).collect()
}

/// The lengths of the fixed codes (RFC 1951, 3.2.6).
fn fixed_lens() -> (Vec<u8>, Vec<u8>) {
    let literals = [(144, 8), (112, 9), (24, 7), (8, 8)];
    let literals = literals.into_iter().flat_map(|(count, len)| std::iter::repeat_n(len, count));
    (literals.collect(), vec![5; DISTANCES + 2])
}

pub(super) fn fixed_decoders() -> Option<(Decoder, Decoder)> {
    let (literals, distances) = fixed_lens();
    decoders(&literals, &distances)
}

/// Those of tokens: of bytes and lengths as [`Token::what`](super::Token), the end as the next number, and of distances.
fn decoders(literals: &[u8], distances: &[u8]) -> Option<(Decoder, Decoder)> {
    let what = |symbol: usize| match symbol {
        0..=255 => Some((symbol as u32, 0)),
        END => Some((END_VALUE, 0)),
        _ => length_of(symbol).map(|(len, width)| (256 + len, width)),
    };
    Some((Decoder::new(literals, what)?, Decoder::new(distances, distance_of)?))
}

pub(super) fn fixed_trees() -> (Tree, Tree) {
    let (literals, distances) = fixed_lens();
    (Tree::new(literals), Tree::new(distances))
}

/// Reads the codes at the head of a block (RFC 1951, 3.2.7).
pub(super) fn read_decoders(bits: &mut BitReader<'_>) -> Option<(Decoder, Decoder)> {
    let (literals, distances) = (257 + bits.take(5)? as usize, 1 + bits.take(5)? as usize);
    let count = 4 + bits.take(4)? as usize;
    let mut lens = [0; LENGTHS];
    for place in &ORDER[..count] {
        lens[*place] = bits.take(3)? as u8;
    }
    let decoder = Decoder::new(&lens, |symbol| Some((symbol as u32, 0)))?;
    let mut lens = Vec::with_capacity(literals + distances);
    while lens.len() < literals + distances {
        bits.fill();
        let (len, times) = match decoder.next(bits)? {
            16 => (*lens.last()?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            len => (len as u8, 1),
        };
        lens.extend(std::iter::repeat_n(len, times as usize));
    }
    if lens.len() > literals + distances {
        return None;
    }
    let (literals, distances) = lens.split_at(literals);
    decoders(literals, distances)
}

/// A code to write with.
#[derive(Debug)]
pub(super) struct Tree {
    lens: Vec<u8>,
    /// Each with its length in the upper half.
    codes: Vec<u32>,
}

impl Tree {
    fn new(lens: Vec<u8>) -> Self {
        let codes = codes(&lens).into_iter().zip(&lens);
        Self {
            codes: codes.map(|(code, len)| u32::from(*len) << 16 | u32::from(code)).collect(),
            lens,
        }
    }

    /// The code that zlib makes of these frequencies, none of which is longer than `max_bits`.
    pub(super) fn of(counts: &[u32], max_bits: usize) -> Self {
        Self::new(lens_of(counts, max_bits))
    }

    /// The code of a symbol and its length.
    pub(super) fn code(&self, symbol: usize) -> (u32, u32) {
        let code = self.codes[symbol];
        (code & 0xffff, code >> 16)
    }

    pub(super) fn put(&self, symbol: usize, bits: &mut BitWriter) {
        let (code, len) = self.code(symbol);
        bits.put(code, len);
    }

    /// The lengths up to the last symbol that is used.
    fn used_lens(&self, least: usize) -> &[u8] {
        let used = self.lens.iter().rposition(|len| *len > 0).map_or(0, |last| last + 1);
        &self.lens[..used.max(least)]
    }
}

/// Writes both codes as the head of a block.
pub(super) fn write_trees(literals: &Tree, distances: &Tree, bits: &mut BitWriter) {
    let (literals, distances) = (literals.used_lens(257), distances.used_lens(1));
    let runs = [runs(literals), runs(distances)].concat();
    let mut counts = [0; LENGTHS];
    runs.iter().for_each(|(symbol, _, _)| counts[*symbol] += 1);
    let tree = Tree::of(&counts, MAX_LENGTH_BITS);
    let count =
        ORDER.iter().rposition(|place| tree.lens[*place] > 0).map_or(4, |last| (last + 1).max(4));
    bits.put(literals.len() as u32 - 257, 5);
    bits.put(distances.len() as u32 - 1, 5);
    bits.put(count as u32 - 4, 4);
    for place in &ORDER[..count] {
        bits.put(u32::from(tree.lens[*place]), 3);
    }
    for (symbol, extra, width) in runs {
        tree.put(symbol, bits);
        bits.put(extra, width);
    }
}

/// Lengths as symbols, each with further bits and how many of them. Runs end with their table, although
/// the format would let them go on into the next.
fn runs(lens: &[u8]) -> Vec<(usize, u32, u32)> {
    let mut out = Vec::new();
    let mut last = None;
    let mut at = 0;
    while at < lens.len() {
        let len = lens[at];
        // A length is first written itself, unless it is zero or that of the run before.
        let most = match len {
            0 => 138,
            _ if last == Some(len) => 6,
            _ => 7,
        };
        let count = lens[at..].iter().take(most).take_while(|next| **next == len).count();
        at += count;
        let repeated = if len == 0 || last == Some(len) { count } else { count - 1 };
        if repeated < 3 {
            out.extend(std::iter::repeat_n((usize::from(len), 0, 0), count));
        } else if len == 0 {
            let repeated = repeated as u32;
            out.push(if repeated <= 10 { (17, repeated - 3, 3) } else { (18, repeated - 11, 7) });
        } else {
            if repeated < count {
                out.push((usize::from(len), 0, 0));
            }
            out.push((16, repeated as u32 - 3, 2));
        }
        last = Some(len);
    }
    out
}

/// A node of the tree that lengths are taken from, packed for quick comparison: how often what is below it
/// occurs, its depth, its number.
#[derive(Clone, Copy)]
struct TreeNode(u64);

impl TreeNode {
    fn new(count: u32, depth: u16, number: usize) -> Self {
        Self(u64::from(count) << 32 | u64::from(depth) << 16 | number as u64 & 0xffff)
    }

    fn count(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn depth(self) -> u16 {
        (self.0 >> 16) as u16
    }

    fn number(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    /// Of two that are equal by count and depth each is before the other.
    fn is_before(self, other: Self) -> bool {
        self.0 >> 16 <= other.0 >> 16
    }
}

/// Lets the node at `place` of the heap (counted from 0) sink to where it belongs.
fn sink(heap: &mut [TreeNode], mut place: usize) {
    let node = heap[place];
    loop {
        let mut child = 2 * place + 1;
        if child >= heap.len() {
            break;
        }
        if child + 1 < heap.len() && heap[child + 1].is_before(heap[child]) {
            child += 1;
        }
        if node.is_before(heap[child]) {
            break;
        }
        heap[place] = heap[child];
        place = child;
    }
    heap[place] = node;
}

/// The lengths of the codes for symbols of these frequencies.
fn lens_of(frequencies: &[u32], max_bits: usize) -> Vec<u8> {
    let symbols = frequencies.len();
    let used = frequencies.iter().enumerate().filter(|(_, count)| **count > 0);
    let mut heap: Vec<TreeNode> =
        used.map(|(symbol, count)| TreeNode::new(*count, 0, symbol)).collect();
    // A code has at least two symbols.
    while heap.len() < 2 {
        let symbol = match heap.last().map(|last| last.number()) {
            Some(last) if last >= 2 => 0,
            last => last.map_or(0, |last| last + 1),
        };
        heap.push(TreeNode::new(1, 0, symbol));
    }
    // Every node of the tree from the root on, in the order that shortening needs.
    let mut sorted = Vec::with_capacity(2 * heap.len());
    let mut parents = vec![0; 2 * symbols];
    for place in (0..heap.len() / 2).rev() {
        sink(&mut heap, place);
    }
    let mut nodes = symbols;
    while heap.len() > 1 {
        let first = heap.swap_remove(0);
        sink(&mut heap, 0);
        let second = heap[0];
        sorted.extend([first.number(), second.number()]);
        (parents[first.number()], parents[second.number()]) = (nodes, nodes);
        let depth = first.depth().max(second.depth()) + 1;
        heap[0] = TreeNode::new(first.count() + second.count(), depth, nodes);
        nodes += 1;
        sink(&mut heap, 0);
    }
    sorted.reverse();
    limited(&sorted, &parents, symbols, nodes - 1, max_bits)
}

/// The lengths by depth in the tree of which `sorted` has all nodes but the `root`; none above `max_bits`.
fn limited(
    sorted: &[usize],
    parents: &[usize],
    symbols: usize,
    root: usize,
    max_bits: usize,
) -> Vec<u8> {
    let mut depths = vec![0_usize; root + 1];
    let mut of_len = vec![0_usize; max_bits + 1];
    let mut too_long = 0_i64;
    for node in sorted {
        let mut depth = depths[parents[*node]] + 1;
        if depth > max_bits {
            depth = max_bits;
            too_long += 1;
        }
        depths[*node] = depth;
        if *node < symbols {
            of_len[depth] += 1;
        }
    }
    if too_long == 0 {
        return depths[..symbols].iter().map(|depth| *depth as u8).collect();
    }
    while too_long > 0 {
        // The deepest leaf that can go down takes one of those that are too long beside it.
        let shorter = (1..max_bits).rev().find(|len| of_len[*len] > 0).unwrap_or(0);
        of_len[shorter] = of_len[shorter].saturating_sub(1);
        of_len[shorter + 1] += 2;
        of_len[max_bits] = of_len[max_bits].saturating_sub(1);
        too_long -= 2;
    }
    // The rarest symbols get the longest codes.
    let mut lens = vec![0; symbols];
    let mut leaves = sorted.iter().rev().filter(|node| **node < symbols);
    for (len, count) in of_len.iter().enumerate().rev() {
        for node in leaves.by_ref().take(*count) {
            lens[*node] = len as u8;
        }
    }
    lens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(symbol: usize) -> Option<(u32, u32)> {
        Some((symbol as u32, 0))
    }

    #[test]
    fn symbols_and_numbers_agree() {
        for len in 0..=255 {
            let (symbol, extra, width) = length_code(len);
            let (first, more) = length_of(symbol).expect("a symbol of a length");
            assert_eq!((first + extra, more), (u32::from(len), width));
        }
        for distance in 0..32768 {
            let (symbol, extra, width) = distance_code(distance);
            let (first, more) = distance_of(symbol).expect("a symbol of a distance");
            assert_eq!((first + extra, more), (distance, width));
        }
        assert_eq!((length_of(256), length_of(286), distance_of(30)), (None, None, None));
    }

    #[test]
    fn codes_are_complete_and_never_too_long() {
        // Fibonacci's numbers make the deepest trees.
        let mut counts = vec![1, 1];
        while counts.len() < 24 {
            counts.push(counts[counts.len() - 1] + counts[counts.len() - 2]);
        }
        for max_bits in [7, 15] {
            let lens = lens_of(&counts, max_bits);
            let sum: u32 = lens.iter().map(|len| 1 << (max_bits - usize::from(*len))).sum();
            assert_eq!(sum, 1 << max_bits, "{lens:?}");
            assert!(lens.iter().all(|len| (1..=max_bits).contains(&usize::from(*len))));
        }
    }

    #[test]
    fn a_code_has_two_symbols_at_least() {
        assert_eq!(lens_of(&[0; 30], 15)[..3], [1, 1, 0]);
        assert_eq!(lens_of(&[5, 0, 0], 15), [1, 1, 0]);
        assert_eq!(lens_of(&[0, 5, 0], 15), [0, 1, 1]);
        assert_eq!(lens_of(&[0, 0, 0, 5], 15), [1, 0, 0, 1]);
    }

    #[test]
    fn symbols_are_found_by_codes_of_every_length() {
        for lens in [
            vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15],
            vec![15, 1, 13, 10, 14, 12, 9, 2, 11, 15, 3, 8, 7, 6, 5, 4],
            // Every other code of eleven bits, so that parts of the second table alternate.
            [[11, 10].repeat(400), vec![2, 0, 12]].concat(),
            vec![0, 3, 0, 15, 12],
        ] {
            let decoder = Decoder::new(&lens, plain).expect("a code");
            let tree = Tree::new(lens.clone());
            let used = || (0..lens.len()).filter(|symbol| lens[*symbol] > 0);
            let mut bits = BitWriter::new(0);
            used().for_each(|symbol| tree.put(symbol, &mut bits));
            let stream = bits.finish();
            let mut bits = BitReader::new(&stream);
            let mut next = || {
                bits.fill();
                decoder.next(&mut bits)
            };
            assert!(used().all(|symbol| next() == Some(symbol as u32)), "{lens:?}");
        }
        let decoder = Decoder::new(&[1, 0, 12, 15], plain).expect("a code, if not all of one");
        for stream in [[0xff, 0xff], [0x01, 0x02]] {
            let mut bits = BitReader::new(&stream);
            bits.fill();
            assert_eq!(decoder.next(&mut bits), None, "{stream:?}");
        }
    }

    #[test]
    fn lengths_that_are_no_code_are_refused() {
        assert!(Decoder::new(&[], plain).is_none());
        assert!(Decoder::new(&[1, 1, 1], plain).is_none());
        assert!(Decoder::new(&[1, 2, 2], plain).is_some());
        assert!(Decoder::new(&[1], plain).is_some(), "one distance alone");
    }
}
