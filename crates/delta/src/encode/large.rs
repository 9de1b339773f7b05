//! Files of any size against their ancestors, in little memory: 88 bytes for every change from what agrees to what
//! does not.
//!
//! Of a disk image or a database of gigabytes little changes, and what does mostly stays where it is. So base and
//! target are compared block by block first, and what agrees is a segment of the base without a look at its
//! chunks. Only the rest is cut into chunks, on both sides, which finds what moved; what moved from
//! where the target still has the same is not found.

use std::io::{self, Read, Seek, Write};
use std::ops::Range;

use vireo_model::{Digest, Hasher, ImagePath};

use super::{BundleWriter, push};
use crate::error::{DeltaError, Detail, io_step};
use crate::frames::Class;
use crate::manifest::{Body, Content, Packing, Segment};
use crate::pair::{Pair, Side};

/// How much of each file is read at a time, in bytes.
const READ_LEN: usize = 4 << 20;

/// What is compared as one block, in bytes: as long as the longest chunk.
const BLOCK_LEN: usize = 64 << 10;

const _: () = assert!(READ_LEN.is_multiple_of(BLOCK_LEN));

/// How a block of the target compares with what the base has in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It is the same.
    Same,
    /// The target has zeros, the base has not.
    Cleared,
    /// Both have zeros.
    Zero,
    /// The target has something else.
    Other,
}

impl Kind {
    fn of(before: &[u8], after: &[u8]) -> Self {
        let is_zero = after.iter().all(|byte| *byte == 0);
        match (is_zero, before == after) {
            (true, true) => Self::Zero,
            (true, false) => Self::Cleared,
            (false, true) => Self::Same,
            (false, false) => Self::Other,
        }
    }

    /// Whether what the base has there may have moved.
    fn is_displaced(self) -> bool {
        matches!(self, Self::Other | Self::Cleared)
    }
}

/// Blocks of one kind that follow each other in the target.
#[derive(Debug)]
struct Run {
    kind: Kind,
    start: u64,
    len: u64,
    /// Digest of the target's bytes, if the kind is `Other`: they are read again.
    after: Digest,
    /// Digest of what the base has there, if that may have moved: it may be read again, too.
    before: Digest,
}

/// Runs as they are found.
#[derive(Debug, Default)]
struct Runs {
    list: Vec<Run>,
    len: u64,
    after: Hasher,
    before: Hasher,
}

impl Runs {
    /// Of the base there is less than of the target where it ends.
    fn add(&mut self, before: &[u8], after: &[u8]) {
        let (kind, len) = (Kind::of(before, after), after.len() as u64);
        match self.list.last_mut().filter(|run| run.kind == kind) {
            Some(run) => run.len += len,
            None => {
                self.end_run();
                let none = Digest::of(b"");
                self.list.push(Run { kind, start: self.len, len, after: none, before: none });
            }
        }
        if kind == Kind::Other {
            self.after.update(after);
        }
        if kind.is_displaced() {
            self.before.update(before);
        }
        self.len += len;
    }

    fn end_run(&mut self) {
        let [after, before] = [&mut self.after, &mut self.before].map(std::mem::take);
        if let Some(run) = self.list.last_mut() {
            (run.after, run.before) = (after.finish(), before.finish());
        }
    }
}

/// How the files compare.
struct Compared {
    class: Class,
    runs: Vec<Run>,
    /// Of the base's file, as far as the target's is long.
    before: Hasher,
}

impl<S: Read + Write + Seek> BundleWriter<S> {
    /// Encodes a file that does not [fit](Pair::fits), of any size. What stands in its ancestor at the same place is
    /// pointed at; the rest is cut into chunks that are looked for in what the ancestor has there, and in what
    /// was [indexed](Self::index_base). `read_at` fills a buffer with the bytes of a side's file from an
    /// offset on, both sides at once. Gives the digest of the ancestor if it was read, for whoever knows what
    /// it should be: all that the bundle says of the ancestor is true of a file with that digest.
    ///
    /// Cost: each file is read once, and what differs once more.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode); `Io` for an ancestor, too, that is being changed while it is read.
    pub fn encode_large(
        &mut self,
        pair: &Pair,
        read_at: impl Fn(Side, u64, &mut [u8]) -> io::Result<()> + Sync,
    ) -> Result<Option<Digest>, DeltaError> {
        if self.has(pair.digest) {
            return Ok(None);
        }
        let read_at = &read_at;
        let part = |side, range| {
            Part::new(move |offset: u64, buffer: &mut [u8]| read_at(side, offset, buffer), range)
        };
        let Some((path, base_len)) = &pair.ancestor else {
            let content = part(Side::Target, 0..pair.len);
            self.encode(pair.digest, pair.len, pair.sparse, content)?;
            return Ok(None);
        };
        let source = self.source(path, None)?;
        let Compared { class, runs, mut before } = compare(pair, *base_len, read_at)?;
        // If the target has nothing new, nobody looks for it.
        let has_new = runs.iter().any(|run| run.kind == Kind::Other);
        let is_sought = has_new && !self.indexed.has(source);
        for run in runs.iter().filter(|run| is_sought && run.kind.is_displaced()) {
            let end = run.start + run.len;
            let range = run.start.min(*base_len)..end.min(*base_len);
            let mut again = Hasher::new();
            self.read_base(source, range, is_sought, &mut again, read_at)?;
            if again.finish() != run.before {
                return Err(changed(path));
            }
        }
        let tail = pair.len.min(*base_len)..*base_len;
        self.read_base(source, tail, is_sought, &mut before, read_at)?;
        let mut segments = Vec::new();
        for Run { kind, start: offset, len, after, .. } in runs {
            match kind {
                Kind::Same => push(&mut segments, Segment::Base { source, offset, len }),
                Kind::Zero | Kind::Cleared => push(&mut segments, Segment::Zero { len }),
                Kind::Other => {
                    let content = part(Side::Target, offset..offset + len);
                    self.cut(after, content, true, &mut Some(class), &mut segments)?;
                }
            }
        }
        let (body, packing) = (Body::Segments(segments), Packing::None);
        let content = Content { len: pair.len, sparse: pair.sparse, class, packing, body };
        self.contents.insert(pair.digest, content);
        Ok(Some(before.finish()))
    }

    /// Reads a part of the base's file to its end into `hasher`, and makes its chunks available if they are sought.
    fn read_base(
        &mut self,
        source: u32,
        range: Range<u64>,
        is_sought: bool,
        hasher: &mut Hasher,
        read_at: &impl Fn(Side, u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<(), DeltaError> {
        let start = range.start;
        let hashed = |offset: u64, buffer: &mut [u8]| {
            read_at(Side::Base, offset, buffer)?;
            hasher.update(buffer);
            Ok(())
        };
        let mut part = Part::new(hashed, range);
        if is_sought {
            self.indexed.add_part(source, start, &mut part)?;
        }
        // What there was no room for, too.
        part.finish().map_err(io_step("read a file of the base"))
    }
}

/// What is said of a file of the base that is not what it was when it was compared.
fn changed(path: &ImagePath) -> DeltaError {
    let text = format!("{path} of the base changed while it was captured");
    io_step("read a file of the base")(io::Error::new(io::ErrorKind::ResourceBusy, text))
}

/// Compares the files from start to end, and the target's digest with what it should be.
fn compare(
    pair: &Pair,
    base_len: u64,
    read_at: &(impl Fn(Side, u64, &mut [u8]) -> io::Result<()> + Sync),
) -> Result<Compared, DeltaError> {
    let (mut before, mut after) = (vec![0; READ_LEN], vec![0; READ_LEN]);
    let (mut class, mut runs) = (Class::Text, Runs::default());
    let (mut hasher, mut base_hasher) = (Hasher::new(), Hasher::new());
    while runs.len < pair.len {
        let at = runs.len;
        let within = |len: u64| len.saturating_sub(at).min(READ_LEN as u64) as usize;
        let after = &mut after[..within(pair.len)];
        let before = &mut before[..within(base_len.min(pair.len))];
        let (read_before, read_after) = rayon::join(
            // Behind its end there is nothing to be read.
            || {
                if !before.is_empty() {
                    read_at(Side::Base, at, before)?;
                    base_hasher.update(before);
                }
                Ok(())
            },
            || {
                read_at(Side::Target, at, after)?;
                hasher.update(after);
                Ok(())
            },
        );
        read_before.and(read_after).map_err(io_step("read a file that changed"))?;
        if at == 0 {
            class = Class::of(after);
        }
        for (number, block) in after.chunks(BLOCK_LEN).enumerate() {
            let from = before.len().min(number * BLOCK_LEN);
            let to = before.len().min(from + block.len());
            runs.add(&before[from..to], block);
        }
    }
    runs.end_run();
    let (expected, found) = (pair.digest, hasher.finish());
    if found != expected {
        return Err(Detail::Changed { expected, found }.into());
    }
    Ok(Compared { class, runs: runs.list, before: base_hasher })
}

/// A part of a file that is read by offsets, from its start to its end.
pub(crate) struct Part<F> {
    read_at: F,
    range: Range<u64>,
}

impl<F: FnMut(u64, &mut [u8]) -> io::Result<()>> Part<F> {
    pub(crate) fn new(read_at: F, range: Range<u64>) -> Self {
        Self { read_at, range }
    }

    /// Reads what is left.
    fn finish(&mut self) -> io::Result<()> {
        let left = self.range.end - self.range.start;
        let mut buffer = vec![0; left.min(READ_LEN as u64) as usize];
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }
}

impl<F: FnMut(u64, &mut [u8]) -> io::Result<()>> Read for Part<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        let step = buffer.len().min(left);
        (self.read_at)(self.range.start, &mut buffer[..step])?;
        self.range.start += step as u64;
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use std::sync::atomic::{AtomicU64, Ordering};

    const LEN: usize = 256 << 20;

    fn noise(seed: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// What the writer knows then, the segments, and how many bytes of the base and of the target were read.
    fn encoded(
        base: &[u8],
        target: &[u8],
    ) -> (BundleWriter<Cursor<Vec<u8>>>, Vec<Segment>, [u64; 2]) {
        let path = ImagePath::parse(b"/disk").expect("a valid path");
        let (digest, len) = (Digest::of(target), target.len() as u64);
        let ancestor = Some((path, base.len() as u64));
        let pair = Pair { digest, len, sparse: false, ancestor };
        let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
        let read = [AtomicU64::new(0), AtomicU64::new(0)];
        let read_at = |side, offset: u64, buffer: &mut [u8]| {
            let (file, at) = if side == Side::Base { (base, 0) } else { (target, 1) };
            read[at].fetch_add(buffer.len() as u64, Ordering::Relaxed);
            let offset = offset as usize;
            buffer.copy_from_slice(&file[offset..offset + buffer.len()]);
            Ok(())
        };
        let ancestor = writer.encode_large(&pair, read_at).expect("memory reads");
        assert_eq!(ancestor, Some(Digest::of(base)));
        let content = writer.contents.get(&digest).expect("encoded");
        let Body::Segments(segments) = &content.body else { panic!("no segments") };
        let segments = segments.clone();
        (writer, segments, read.map(AtomicU64::into_inner))
    }

    fn literal_len(segments: &[Segment]) -> u64 {
        let literal = |segment: &&Segment| matches!(segment, Segment::Literal { .. });
        segments.iter().filter(literal).map(Segment::len).sum()
    }

    #[test]
    fn one_changed_block_of_a_large_file_is_all_that_is_cut_into_chunks() {
        let base = noise(1, LEN);
        let mut target = base.clone();
        target[LEN / 2..][..4096].copy_from_slice(&noise(2, 4096));
        let (writer, segments, read) = encoded(&base, &target);
        assert!(literal_len(&segments) <= BLOCK_LEN as u64);
        assert!(segments.len() <= 5, "{} segments", segments.len());
        // Memory does not grow with the file.
        let most = BLOCK_LEN / crate::chunk::Chunker::DEFAULT.min + 1;
        assert!(writer.indexed.chunk_count() <= most);
        assert_eq!(read, [(LEN + BLOCK_LEN) as u64; 2]);
    }

    #[test]
    fn what_was_moved_by_an_insertion_or_a_removal_is_found() {
        let base = noise(1, LEN / 4);
        let mut longer = base.clone();
        longer.splice(100_000..100_000, *b"some words");
        let mut shorter = base.clone();
        shorter.drain(100_000..300_000);
        for target in [longer, shorter] {
            let (_, segments, _) = encoded(&base, &target);
            assert!(literal_len(&segments) < 300_000, "{}", literal_len(&segments));
            assert!(segments.len() < 20, "{} segments", segments.len());
        }
    }

    #[test]
    fn zeros_are_no_copies_and_what_stood_there_is_found_elsewhere() {
        let mut base = noise(1, 8 << 20);
        base.splice(0..0, vec![0; 1 << 20]);
        let moved = [vec![0; 4 << 20], base[1 << 20..].to_vec(), vec![0; 1 << 20]].concat();
        let (_, segments, _) = encoded(&base, &moved);
        assert!(literal_len(&segments) < 200_000, "{}", literal_len(&segments));
        let zeros = segments.iter().filter(|segment| matches!(segment, Segment::Zero { .. }));
        assert!(zeros.map(Segment::len).sum::<u64>() >= 5 << 20);
    }

    #[test]
    fn a_file_that_changes_between_its_two_readings_is_refused() {
        let (base, target) = (noise(1, 200_000), noise(2, 200_000));
        let path = ImagePath::parse(b"/disk").expect("a valid path");
        let ancestor = Some((path, base.len() as u64));
        let (digest, len) = (Digest::of(&target), target.len() as u64);
        let pair = Pair { digest, len, sparse: false, ancestor };
        for (changing, expected) in [
            (Side::Target, "changed while it was captured"),
            (Side::Base, "/disk of the base changed while it was captured"),
        ] {
            let reads = AtomicU64::new(0);
            let read_at = |side, offset: u64, buffer: &mut [u8]| {
                let file = if side == Side::Base { &base } else { &target };
                buffer.copy_from_slice(&file[offset as usize..][..buffer.len()]);
                if side == changing && reads.fetch_add(1, Ordering::Relaxed) == 1 {
                    buffer[0] ^= 1;
                }
                Ok(())
            };
            let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
            let error = writer.encode_large(&pair, read_at).expect_err("it changed");
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let text = format!("{error} {}", cause.unwrap_or_default());
            assert!(text.contains(expected), "{text}");
        }
    }
}
