//! Which ranges of the target are copied from where in the base.
//!
//! As bsdiff does (Percival, *Naive differences of executable code*, 2003), a copy goes on as long
//! as most bytes agree, and another place of the base has to be better by a margin to be taken. The
//! places are found by hashes of eight bytes, not by sorted suffixes: what suffixes find more lies in
//! repetitions, and memory and time are a third.

use std::cell::LazyCell;

use super::Op;

/// Bytes that are hashed together; no shorter match is found.
const KEY_LEN: usize = 8;
/// Bytes of the second key, which finds long matches where the short key is frequent.
const LONG_KEY_LEN: usize = 24;
/// Matches are compared up to this length; longer is good enough.
const ENOUGH: usize = 4096;

/// One wrong byte in so many is not worth looking for a better place.
const FEW: usize = 200;

/// That many more wrong bytes than right ones, and a copy does not go on backwards.
const GIVE_UP: i64 = 256;

const NOWHERE: u32 = u32::MAX;

/// Places of the base by what stands there.
#[derive(Debug)]
struct Index<'a> {
    base: &'a [u8],
    /// By short keys; empty if these are not looked for.
    heads: Vec<u32>,
    /// For each indexed place the one before it with the same hash.
    chain: Vec<u32>,
    /// By long keys: a place, and above it more of the hash. Most of what is looked for is nowhere, and
    /// is told so without a look at the base, which takes longer than all else.
    long_heads: Vec<u64>,
    bits: u32,
    search: Search,
}

/// How hard places are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Search {
    /// Places that are tried for each short key; with none only long matches are found.
    pub(crate) depth: usize,
    /// Every how many bytes of the base are indexed; a match that long more is always found.
    pub(crate) step: usize,
    /// Every how many bytes of the target places are looked for, where nothing goes on.
    pub(crate) stride: usize,
    /// Going on for that many equal bytes, nothing better is looked for.
    pub(crate) good_run: usize,
}

impl<'a> Index<'a> {
    fn new(base: &'a [u8], search: Search) -> Self {
        let bits = (base.len() / search.step).max(256).ilog2().clamp(10, 22);
        let has_short = search.depth > 0;
        let mut index = Self {
            base,
            heads: vec![NOWHERE; if has_short { 1 << bits } else { 0 }],
            chain: vec![NOWHERE; if has_short { base.len() / search.step + 1 } else { 0 }],
            long_heads: vec![u64::from(NOWHERE); 1 << bits],
            bits,
            search,
        };
        let mut last = None;
        for at in (0..base.len().saturating_sub(KEY_LEN - 1)).step_by(search.step) {
            let key = key(base, at);
            // Of a run of one byte the first place is enough.
            if last == Some(key) {
                continue;
            }
            last = Some(key);
            if has_short {
                let hash = index.hash(key);
                index.chain[at / search.step] = index.heads[hash];
                index.heads[hash] = at as u32;
            }
            if at + LONG_KEY_LEN <= base.len() {
                let (hash, more) = index.long_hash(base, at);
                index.long_heads[hash] = more | at as u64;
            }
        }
        index
    }

    fn hash(&self, key: u64) -> usize {
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - self.bits)) as usize
    }

    /// Where the long key stands in the table, and more of its hash in the upper half.
    #[inline]
    fn long_hash(&self, bytes: &[u8], at: usize) -> (usize, u64) {
        let mix =
            |sum: u64, key: u64| (sum ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let sum = mix(mix(key(bytes, at), key(bytes, at + 8)), key(bytes, at + 16));
        (self.hash(sum), sum << 32)
    }

    /// The last place of the long key, most likely.
    fn long_place(&self, target: &[u8], at: usize) -> Option<usize> {
        let (hash, more) = self.long_hash(target, at);
        let found = self.long_heads[hash];
        let place = found as u32;
        (found ^ u64::from(place) == more && place != NOWHERE).then_some(place as usize)
    }

    /// The longest match found for `target[at..]`: length and place.
    fn find(&self, target: &[u8], at: usize) -> (usize, usize) {
        let mut best = (0, 0);
        if at + KEY_LEN > target.len() {
            return best;
        }
        let mut consider = |place: usize| {
            // Longer than the best only if the byte behind it agrees, too.
            let behind = (self.base.get(place + best.0), target.get(at + best.0));
            if best.0 == 0 || behind.0.is_some() && behind.0 == behind.1 {
                let len = common(&self.base[place..], &target[at..]);
                if len > best.0 {
                    best = (len, place);
                }
            }
            best.0
        };
        if at + LONG_KEY_LEN <= target.len()
            && let Some(place) = self.long_place(target, at)
            && consider(place) >= ENOUGH
        {
            return best;
        }
        if self.search.depth == 0 {
            return best;
        }
        let mut place = self.heads[self.hash(key(target, at))];
        for _ in 0..self.search.depth {
            if place == NOWHERE || consider(place as usize) >= ENOUGH {
                break;
            }
            place = self.chain[place as usize / self.search.step];
        }
        best
    }
}

fn key(bytes: &[u8], at: usize) -> u64 {
    let mut key = [0; KEY_LEN];
    key.copy_from_slice(&bytes[at..at + KEY_LEN]);
    u64::from_le_bytes(key)
}

/// How many bytes `a` and `b` have in common at their start, up to [`ENOUGH`].
fn common(a: &[u8], b: &[u8]) -> usize {
    let most = a.len().min(b.len()).min(ENOUGH);
    let mut len = 0;
    while len + 8 <= most {
        let differ = key(a, len) ^ key(b, len);
        if differ != 0 {
            return len + (differ.trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    while len < most && a[len] == b[len] {
        len += 1;
    }
    len
}

/// The copies and additions that make `target` from `base`; every op copies before it adds.
pub(crate) fn align(base: &[u8], target: &[u8], search: Search, margin: usize) -> Vec<Op> {
    if is_edited_in_place(base, target) {
        return vec![Op { base_at: 0, copy_len: target.len() as u64, extra_len: 0 }];
    }
    // Made when a place is first looked for: what only grows at its end needs none.
    let index = LazyCell::new(|| Index::new(base, search));
    let mut ops = Vec::new();
    // The copy at hand: where it started in both.
    let (mut start, mut base_start) = (0, 0);
    let mut scan = 0;
    while scan < target.len() {
        let going_on = (base_start + (scan - start)).min(base.len());
        let run = common(&base[going_on..], &target[scan..]);
        if run >= search.good_run {
            scan += run;
            continue;
        }
        let (len, place) = index.find(target, scan);
        let right = agreeing(&base[going_on..], &target[scan..], len);
        if len > right + margin {
            let copy = Copy { start, base_start };
            (start, base_start) = copy.end(base, target, scan, place, &mut ops);
            scan += len.min(target.len() - scan);
        } else {
            scan += run + search.stride;
        }
    }
    let copy = Copy { start, base_start };
    let len = copy.forward(base, target, target.len());
    ops.push(Op {
        base_at: base_start as u64,
        copy_len: len as u64,
        extra_len: (target.len() - start - len) as u64,
    });
    ops
}

/// Whether the files are equally long and differ in less than a byte of [`FEW`].
fn is_edited_in_place(base: &[u8], target: &[u8]) -> bool {
    base.len() == target.len()
        && agreeing(base, target, target.len()) + target.len() / FEW >= target.len()
}

fn agreeing(base: &[u8], target: &[u8], len: usize) -> usize {
    base.iter().zip(target).take(len).filter(|(a, b)| a == b).count()
}

struct Copy {
    start: usize,
    base_start: usize,
}

impl Copy {
    /// How far the copy goes on before more bytes are wrong than right, at most to `stop`.
    fn forward(&self, base: &[u8], target: &[u8], stop: usize) -> usize {
        let base = &base[self.base_start.min(base.len())..];
        let target = &target[self.start..stop];
        let most = base.len().min(target.len());
        let (mut score, mut best, mut len, mut at) = (0_i64, 0, 0, 0);
        // What is left cannot make up for what is wrong so far: nothing better comes.
        while at < most && score + (most - at) as i64 > best {
            let run = common(&base[at..], &target[at..]);
            (score, at) = (score + run as i64, at + run);
            if score > best {
                (best, len) = (score, at);
            }
            if run == 0 {
                (score, at) = (score - 1, at + 1);
            }
        }
        len
    }

    /// Ends this copy where the one that has `target[scan..]` at `place` is better. Returns where
    /// that one starts.
    fn end(
        &self,
        base: &[u8],
        target: &[u8],
        scan: usize,
        place: usize,
        ops: &mut Vec<Op>,
    ) -> (usize, usize) {
        let mut forward = self.forward(base, target, scan);
        // The next copy backwards.
        let (mut score, mut best, mut back) = (0_i64, 0, 0);
        let most = (scan - self.start).min(place);
        for count in 1..=most {
            score += if base[place - count] == target[scan - count] { 1 } else { -1 };
            if score > best {
                (best, back) = (score, count);
            }
            if score + (most - count) as i64 <= best || score + GIVE_UP < best {
                break;
            }
        }
        // Where both want the same bytes, cut where the sum of right bytes is greatest.
        let (end, begin) = (self.start + forward, scan - back);
        if end > begin {
            let (mut score, mut best, mut cut) = (0_i64, 0, 0);
            for count in 0..end - begin {
                let at = begin + count;
                score += i64::from(base[self.base_start + (at - self.start)] == target[at]);
                score -= i64::from(base[place - (scan - at)] == target[at]);
                if score > best {
                    (best, cut) = (score, count + 1);
                }
            }
            forward = begin + cut - self.start;
            back = scan - (begin + cut);
        }
        ops.push(Op {
            base_at: self.base_start as u64,
            copy_len: forward as u64,
            extra_len: (scan - back - self.start - forward) as u64,
        });
        (scan - back, place - back)
    }
}
