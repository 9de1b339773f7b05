//! Content-defined chunks: cut points that follow the content, so that an insertion moves the
//! chunks behind it without changing them.

use std::io::{self, Read};

use fastcdc::v2020::{Normalization, get_gear_with_seed, select_masks};
use vireo_model::Digest;

use crate::error::{DeltaError, io_step};

/// The sizes of the chunker, in bytes: FastCDC (Xia et al., *The Design of Fast Content-Defined
/// Chunking*, IEEE TPDS 2020), seed 0, level 1 normalisation, as crate fastcdc 5.0.0 implements it.
/// The cut points are frozen by a test, because two Vireos must find the same chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunker {
    /// No chunk but a file's last is shorter.
    pub min: usize,
    /// The aim.
    pub avg: usize,
    /// No chunk is longer.
    pub max: usize,
}

impl Chunker {
    /// 2, 8 and 64 KiB: small enough to find what two builds of a program share.
    pub const DEFAULT: Self = Self { min: 2 << 10, avg: 8 << 10, max: 64 << 10 };
}

/// One chunk of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First byte in the file.
    pub offset: u64,
    /// Digest of the bytes.
    pub digest: Digest,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// How much is read at a time, in bytes: chunks are cut out of a window, which is moved when less than
/// the longest chunk is left in it.
const WINDOW_LEN: usize = 1 << 20;

/// Cuts what `content` yields into chunks, in order. Cost: one pass, with hashing about 1.4 GB/s on
/// one core; memory for the window and one chunk.
///
/// # Errors
///
/// As `content`'s reads.
pub fn chunks(
    content: impl Read,
    sizes: Chunker,
) -> impl Iterator<Item = Result<Chunk, DeltaError>> {
    let mut cutter = Cutter::new(content, sizes);
    std::iter::from_fn(move || match cutter.next() {
        Ok(None) => None,
        Ok(Some((offset, bytes))) => {
            Some(Ok(Chunk { offset, digest: Digest::of(bytes), bytes: bytes.to_vec() }))
        }
        Err(error) => Some(Err(io_step("read the content to be cut into chunks")(error))),
    })
}

/// Hands the chunks of what `content` yields to `visit`, in order: offset, digest, bytes. As [`chunks`], but
/// nothing is copied for it.
///
/// # Errors
///
/// As `content`'s reads.
pub fn for_each_chunk(
    content: impl Read,
    sizes: Chunker,
    mut visit: impl FnMut(u64, Digest, &[u8]),
) -> Result<(), DeltaError> {
    let failed = io_step("read the content to be cut into chunks");
    let mut cutter = Cutter::new(content, sizes);
    while let Some((offset, bytes)) = cutter.next().map_err(&failed)? {
        visit(offset, Digest::of(bytes), bytes);
    }
    Ok(())
}

/// A random number for each byte: for the second and for the first of a pair, which goes one bit further.
#[derive(Debug)]
struct Gear {
    second: [u64; 256],
    first: [u64; 256],
}

impl Gear {
    /// Those of seed 0.
    fn new() -> Self {
        let mut second = [0; 256];
        second.copy_from_slice(&get_gear_with_seed(0).0);
        Self { second, first: second.map(|number| number << 1) }
    }

    /// The hash behind one more byte.
    #[inline]
    fn next(&self, hash: u64, byte: u8) -> u64 {
        (hash << 1).wrapping_add(self.second[usize::from(byte)])
    }

    /// The hash between a pair of bytes, shifted by one bit, and the one behind it.
    #[inline]
    fn pair(&self, hash: u64, [first, second]: [u8; 2]) -> (u64, u64) {
        let between = (hash << 2).wrapping_add(self.first[usize::from(first)]);
        (between, between.wrapping_add(self.second[usize::from(second)]))
    }
}

/// Bits of a hash that are all zero at the end of a chunk.
#[derive(Clone, Copy, Debug)]
struct Mask {
    behind: u64,
    /// The same between the bytes of a pair.
    between: u64,
}

/// For chunks shorter than the aim, and for longer ones.
fn masks(sizes: Chunker) -> [Mask; 2] {
    let (shorter, longer) = select_masks(sizes.avg, Normalization::Level1);
    [shorter, longer].map(|behind| Mask { behind, between: behind << 1 })
}

/// Bytes after which nothing is left in the hash of what was before them.
const HASHED_LEN: usize = u64::BITS as usize;

/// Bytes that are looked at in one go in each of four places.
const LANE_LEN: usize = 512;
const BLOCK_LEN: usize = 4 * LANE_LEN;

/// Length of the first chunk of `bytes`, which are at most `max`: crate fastcdc's `cut`, whose time goes
/// into waiting for the hash of the byte before. As that forgets quickly, four places are hashed side
/// by side.
fn cut(bytes: &[u8], sizes: Chunker, masks: &[Mask; 2], gear: &Gear) -> usize {
    if bytes.len() <= sizes.min {
        return bytes.len();
    }
    // Bytes are looked at in pairs.
    let center = sizes.avg.min(bytes.len()) & !1;
    let end = bytes.len() & !1;
    let mut hash = 0;
    for (from, to, mask) in
        [(sizes.min, center, &masks[0]), (center.max(sizes.min), end, &masks[1])]
    {
        let part = bytes.get(from..to).unwrap_or_default();
        match find(part, &mut hash, mask, gear) {
            Some(at) => return from + at,
            None => continue,
        }
    }
    bytes.len()
}

/// The first place at which no bit of the mask is set in the hash. `hash` is that before `bytes`, then that
/// behind them.
fn find(bytes: &[u8], hash: &mut u64, mask: &Mask, gear: &Gear) -> Option<usize> {
    let mut at = 0;
    while let Some(block) = bytes.get(at..at + BLOCK_LEN) {
        if let Some(within) = find_in_block(block, hash, mask, gear) {
            return Some(at + within);
        }
        at += BLOCK_LEN;
    }
    find_in_lane(&bytes[at..], hash, mask, gear).map(|within| at + within)
}

/// As [`find`], byte by byte.
fn find_in_lane(bytes: &[u8], hash: &mut u64, mask: &Mask, gear: &Gear) -> Option<usize> {
    bytes.iter().position(|byte| {
        *hash = gear.next(*hash, *byte);
        *hash & mask.behind == 0
    })
}

/// As [`find`], in all four places of a block at once, in pairs of bytes. `hash` is that behind the block only if
/// nothing is found.
fn find_in_block(block: &[u8], hash: &mut u64, mask: &Mask, gear: &Gear) -> Option<usize> {
    let ([a, b, c, d], _) = block.as_chunks::<LANE_LEN>() else { return None };
    let behind = |lane: &[u8; LANE_LEN]| {
        lane[LANE_LEN - HASHED_LEN..].iter().fold(0, |hash, byte| gear.next(hash, *byte))
    };
    let (mut w, mut x, mut y, mut z) = (*hash, behind(a), behind(b), behind(c));
    let [a, b, c, d] = [a, b, c, d].map(|lane| lane.as_chunks::<2>().0);
    for at in 0..LANE_LEN / 2 {
        let is_cut = |(between, behind): (u64, u64)| {
            between & mask.between == 0 || behind & mask.behind == 0
        };
        let next = [(w, a), (x, b), (y, c), (z, d)];
        let next = next.map(|(hash, lane)| gear.pair(hash, lane[at]));
        if next.into_iter().any(is_cut) {
            return first_of(block, *hash, 2 * at, mask, gear);
        }
        [w, x, y, z] = next.map(|(_, behind)| behind);
    }
    *hash = z;
    None
}

/// The first place in a block in which no lane has one before `at`; `hash` is that before the block. Apart from
/// the loop that calls it, which needs every register.
#[cold]
#[inline(never)]
fn first_of(block: &[u8], hash: u64, at: usize, mask: &Mask, gear: &Gear) -> Option<usize> {
    let lanes = block.len() / LANE_LEN;
    (0..lanes).find_map(|lane| {
        let from = lane * LANE_LEN + at;
        let (start, hash) = from.checked_sub(HASHED_LEN).map_or((0, hash), |start| (start, 0));
        let mut hash = block[start..from].iter().fold(hash, |hash, byte| gear.next(hash, *byte));
        let rest = &block[from..(lane + 1) * LANE_LEN];
        find_in_lane(rest, &mut hash, mask, gear).map(|within| from + within)
    })
}

/// The chunks of bytes that are in memory, in order, without copying them.
///
/// ```
/// let bytes = vec![7; 100_000];
/// let lens: Vec<usize> = vireo_delta::chunk_slices(&bytes, vireo_delta::Chunker::DEFAULT).map(<[u8]>::len).collect();
/// assert_eq!(lens, [65_536, 34_464]);
/// ```
pub fn chunk_slices(bytes: &[u8], sizes: Chunker) -> impl Iterator<Item = &[u8]> {
    let (masks, gear, mut rest) = (masks(sizes), Gear::new(), bytes);
    std::iter::from_fn(move || {
        let len = cut(&rest[..rest.len().min(sizes.max)], sizes, &masks, &gear);
        let (chunk, behind) = rest.split_at(len);
        rest = behind;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Hands out chunks without copying them.
pub(crate) struct Cutter<R> {
    content: R,
    sizes: Chunker,
    masks: [Mask; 2],
    gear: Gear,
    window: Vec<u8>,
    /// What of the window is still to be cut.
    start: usize,
    end: usize,
    /// Where `start` stands in the content.
    offset: u64,
    is_at_end: bool,
}

impl<R: Read> Cutter<R> {
    pub(crate) fn new(content: R, sizes: Chunker) -> Self {
        Self {
            content,
            sizes,
            masks: masks(sizes),
            gear: Gear::new(),
            window: Vec::new(),
            start: 0,
            end: 0,
            offset: 0,
            is_at_end: false,
        }
    }

    /// The next chunk and where it stands; `None` at the end. After an error there is nothing more.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        if self.end - self.start < self.sizes.max && !self.is_at_end {
            self.fill()?;
        }
        let stop = self.end.min(self.start + self.sizes.max);
        let rest = &self.window[self.start..stop];
        if rest.is_empty() {
            return Ok(None);
        }
        let len = cut(rest, self.sizes, &self.masks, &self.gear);
        let offset = self.offset;
        self.start += len;
        self.offset += len as u64;
        Ok(Some((offset, &rest[..len])))
    }

    fn fill(&mut self) -> io::Result<()> {
        // Short contents take no more than they need.
        let room = WINDOW_LEN.max(2 * self.sizes.max);
        self.window.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        self.window.truncate(self.end);
        let wanted = (room - self.end) as u64;
        // Until the end is reached nothing is given up: an error ends it for good.
        self.is_at_end = true;
        let read = self.content.by_ref().take(wanted).read_to_end(&mut self.window)?;
        self.is_at_end = (read as u64) < wanted;
        self.end += read;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that look random and are the same everywhere.
    fn noise(len: usize) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"noise");
        let mut bytes = vec![0; len];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn the_cut_points_are_frozen() {
        let cuts: Vec<u64> = chunks(&noise(100_000)[..], Chunker::DEFAULT)
            .map(|chunk| chunk.expect("memory reads").offset)
            .collect();
        let frozen: Vec<u64> = include_str!("../frozen/cut-points.txt")
            .split_whitespace()
            .map(|number| number.parse().expect("numbers"))
            .collect();
        assert_eq!(cuts, frozen);
    }

    #[test]
    fn the_window_changes_no_cut() {
        use fastcdc::v2020::StreamCDC;
        let Chunker { min, avg, max } = Chunker::DEFAULT;
        for len in [0, 1, 100_000, WINDOW_LEN - 1, WINDOW_LEN, WINDOW_LEN + 1, 3 * WINDOW_LEN + 5] {
            let content = noise(len);
            let found: Vec<(u64, usize)> = chunks(&content[..], Chunker::DEFAULT)
                .map(|chunk| chunk.expect("memory reads"))
                .map(|chunk| (chunk.offset, chunk.bytes.len()))
                .collect();
            let expected: Vec<(u64, usize)> = StreamCDC::new(&content[..], min, avg, max)
                .map(|chunk| chunk.expect("memory reads"))
                .map(|chunk| (chunk.offset, chunk.length))
                .collect();
            assert_eq!(found, expected, "of {len} bytes");
        }
    }

    #[test]
    fn every_length_and_kind_of_content_is_cut_as_ever() {
        use fastcdc::v2020::cut as reference;
        let (small, large) = select_masks(Chunker::DEFAULT.avg, Normalization::Level1);
        let (masks, gear) = (masks(Chunker::DEFAULT), Gear::new());
        let Chunker { min, avg, max } = Chunker::DEFAULT;
        let (noise, zeros) = (noise(200_000), vec![0; max]);
        let text: Vec<u8> = noise.iter().map(|byte| b'a' + byte % 7).collect();
        for content in [&noise, &zeros, &text] {
            for start in (0..content.len()).step_by(1009) {
                let rest = &content[start..content.len().min(start + max)];
                for bytes in [rest, &rest[..rest.len().min(min + start % 8192)]] {
                    let wanted =
                        reference(bytes, min, avg, max, small, large, small << 1, large << 1);
                    let found = cut(bytes, Chunker::DEFAULT, &masks, &gear);
                    assert_eq!(found, wanted.1, "{} bytes from {start} on", bytes.len());
                }
            }
        }
    }

    #[test]
    fn a_failing_read_is_told_once() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let outcomes: Vec<_> = chunks(Failing, Chunker::DEFAULT).collect();
        assert!(matches!(outcomes.as_slice(), [Err(_)]));
    }

    #[test]
    fn an_insertion_changes_few_chunks() {
        let base = noise(1 << 20);
        let mut target = base.clone();
        target.splice(500_000..500_000, *b"inserted");
        let digests = |bytes: &[u8]| -> std::collections::BTreeSet<Digest> {
            chunks(bytes, Chunker::DEFAULT).map(|c| c.expect("memory reads").digest).collect()
        };
        let (base, target) = (digests(&base), digests(&target));
        assert!(
            target.difference(&base).count() <= 3,
            "{} of {}",
            target.difference(&base).count(),
            target.len()
        );
    }

    #[test]
    fn chunks_cover_the_content_in_order() {
        let content = noise(300_001);
        let mut at = 0;
        for chunk in chunks(&content[..], Chunker::DEFAULT) {
            let chunk = chunk.expect("memory reads");
            assert_eq!(chunk.offset, at);
            let from = usize::try_from(at).expect("small");
            assert_eq!(chunk.bytes, content[from..from + chunk.bytes.len()]);
            at += chunk.bytes.len() as u64;
        }
        assert_eq!(at, content.len() as u64);
        assert_eq!(chunks(&b""[..], Chunker::DEFAULT).count(), 0);
        let lens = chunks(&content[..], Chunker::DEFAULT).map(|chunk| chunk.map(|c| c.bytes.len()));
        let lens: Result<Vec<usize>, _> = lens.collect();
        let mut visited = Vec::new();
        for_each_chunk(&content[..], Chunker::DEFAULT, |_, _, bytes| visited.push(bytes.len()))
            .expect("memory reads");
        let slices: Vec<usize> =
            chunk_slices(&content, Chunker::DEFAULT).map(<[u8]>::len).collect();
        assert_eq!((&slices, &slices), (&lens.expect("memory reads"), &visited));
    }
}
