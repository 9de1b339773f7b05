//! The content section: streams of bytes, each cut into frames that are compressed alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vireo_model::Digest;

use crate::bundle::Holder;
use crate::dictionary::Dictionary;
use crate::file::varint;
use crate::model;

/// Most frames that are kept decoded: files that are staged one after another mostly share those at
/// hand of every stream. Bounds the decoder's memory, and what looking for one costs.
pub(crate) const CACHED_FRAMES: usize = StreamId::COUNT;

/// What the bytes of a stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Content as it is.
    Literal,
    /// As [`crate::file`] has them.
    Control,
    Patch,
    Diff,
    Extra,
    Refs,
    /// How gzip files are made from their plain text.
    Recipe,
}

/// Kinds of file whose streams are kept apart, because they compress better among their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Text,
    Program,
    Other,
}

pub(crate) const PARTS: usize = 7;
pub(crate) const CLASSES: usize = 3;

/// One stream: a part of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId(u8);

impl StreamId {
    pub(crate) const COUNT: usize = PARTS * CLASSES;

    pub(crate) fn new(class: Class, part: Part) -> Self {
        Self((class as usize * PARTS + part as usize) as u8)
    }

    /// `None` if there is no such stream.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        u8::try_from(number).ok().filter(|id| usize::from(*id) < Self::COUNT).map(Self)
    }

    pub(crate) fn number(self) -> u8 {
        self.0
    }

    pub(crate) fn is_literal_text(self) -> bool {
        self == Self::new(Class::Text, Part::Literal)
    }

    /// Whether it holds text as it is.
    pub(crate) fn is_text(self) -> bool {
        self.is_literal_text() || self == Self::new(Class::Text, Part::Extra)
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl Class {
    /// `None` if there is no such class.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Text, Self::Program, Self::Other].into_iter().find(|class| *class as u8 == number)
    }

    /// The kind of file that this is the beginning of.
    pub(crate) fn of(content: &[u8]) -> Self {
        const LOOKED_AT: usize = 4096;
        let start = &content[..content.len().min(LOOKED_AT)];
        if start.starts_with(b"\x7fELF") {
            return Self::Program;
        }
        // A character may be cut in two at the end.
        let is_text = !start.contains(&0)
            && std::str::from_utf8(start)
                .map_or_else(|error| error.error_len().is_none(), |_| true);
        if is_text { Self::Text } else { Self::Other }
    }
}

/// A run of bytes of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// How a frame is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// By zstd.
    Zstd,
    /// As [`crate::model`] does.
    Model,
}

/// One frame of the content section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) digest: Digest,
    pub(crate) stream: StreamId,
    pub(crate) method: Method,
    pub(crate) len: u32,
    pub(crate) plain_len: u32,
}

/// The lengths of all streams before compression.
pub(crate) fn stream_lens(frames: &[Frame]) -> [u64; StreamId::COUNT] {
    let mut lens = [0; StreamId::COUNT];
    for frame in frames {
        lens[frame.stream.index()] += u64::from(frame.plain_len);
    }
    lens
}

/// The content section of a bundle, decoded frame by frame and checked before use.
#[derive(Debug)]
pub(crate) struct Frames<'a> {
    /// Each frame with its bytes as they travelled.
    frames: Vec<(Frame, &'a [u8])>,
    /// For each stream its frames: where they start in it, and their numbers.
    streams: Vec<Vec<(u64, usize)>>,
    cache: Mutex<Cache>,
    holder: Holder<'a>,
    has_dictionaries: bool,
}

#[derive(Debug, Default)]
struct Cache {
    /// The one that was used last at the end.
    frames: VecDeque<(usize, Arc<Vec<u8>>)>,
}

impl<'a> Frames<'a> {
    /// `section` is exactly as long as the frames together; the manifest's check saw to that.
    pub(crate) fn new(
        frames: &[Frame],
        section: &'a [u8],
        holder: Holder<'a>,
        has_dictionaries: bool,
    ) -> Option<Self> {
        let mut rest = section;
        let mut list = Vec::with_capacity(frames.len());
        let mut streams = vec![Vec::new(); StreamId::COUNT];
        let mut ends = [0_u64; StreamId::COUNT];
        for (number, frame) in frames.iter().enumerate() {
            let (bytes, behind) = rest.split_at_checked(frame.len as usize)?;
            list.push((*frame, bytes));
            let stream = frame.stream.index();
            streams[stream].push((ends[stream], number));
            ends[stream] += u64::from(frame.plain_len);
            rest = behind;
        }
        Some(Self { frames: list, streams, cache: Mutex::default(), holder, has_dictionaries })
    }

    /// Reads `span` of `stream`.
    pub(crate) fn cursor(&self, stream: StreamId, span: Span) -> Cursor<'_> {
        let (at, end) = (span.start, span.start.saturating_add(span.len));
        Cursor { frames: self, stream, at, end, held: None, damage: None }
    }

    /// The frame that holds byte `at` of `stream`, and where it starts.
    fn holding(&self, stream: StreamId, at: u64) -> Result<(u64, Arc<Vec<u8>>), String> {
        let list = &self.streams[stream.index()];
        let count = list.partition_point(|(start, _)| *start <= at);
        let (start, number) =
            *count.checked_sub(1).and_then(|n| list.get(n)).ok_or("a frame is missing")?;
        Ok((start, self.plain(number)?))
    }

    /// The bytes of frame `number` before compression. A text says what is wrong with it.
    fn plain(&self, number: usize) -> Result<Arc<Vec<u8>>, String> {
        {
            let mut cache = self.lock();
            if let Some(at) = cache.frames.iter().position(|(cached, _)| *cached == number)
                && let Some((_, plain)) = cache.frames.remove(at)
            {
                cache.frames.push_back((number, plain.clone()));
                return Ok(plain);
            }
        }
        // Two threads may decode the same frame at the same time; both results are right.
        let plain = Arc::new(self.decode(number)?);
        let mut cache = self.lock();
        if cache.frames.len() == CACHED_FRAMES {
            cache.frames.pop_front();
        }
        cache.frames.push_back((number, plain.clone()));
        Ok(plain)
    }

    fn decode(&self, number: usize) -> Result<Vec<u8>, String> {
        let (frame, bytes) = self.frames.get(number).ok_or("a frame is missing")?;
        if Digest::of(bytes) != frame.digest {
            return Err(format!("frame {number} has a wrong digest"));
        }
        let mut plain = vec![0; frame.plain_len as usize];
        let dictionary =
            if self.has_dictionaries { Dictionary::of(frame.stream) } else { Dictionary::None };
        let outcome = match frame.method {
            Method::Zstd => dictionary.decompress(bytes, &mut plain),
            Method::Model => model::decompress(bytes, &mut plain),
        };
        let len =
            outcome.map_err(|error| format!("frame {number} cannot be decompressed: {error}"))?;
        self.holder.release(bytes);
        if len != plain.len() {
            return Err(format!("frame {number} has another length than it says"));
        }
        Ok(plain)
    }

    /// Compares every frame with its digest, as a check of the whole file.
    pub(crate) fn check(&self) -> Result<(), usize> {
        for (number, (frame, bytes)) in self.frames.iter().enumerate() {
            if Digest::of(bytes) != frame.digest {
                return Err(number);
            }
            self.holder.release(bytes);
        }
        Ok(())
    }

    /// Drops what is kept decoded.
    pub(crate) fn forget(&self) {
        self.lock().frames = VecDeque::new();
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        // A panic while the lock was held leaves a list of whole entries: still right.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a stream, moving forwards.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    frames: &'a Frames<'a>,
    stream: StreamId,
    at: u64,
    end: u64,
    /// The frame that was read last, and where it starts.
    held: Option<(u64, Arc<Vec<u8>>)>,
    /// What is wrong with a frame.
    damage: Option<String>,
}

impl Cursor<'_> {
    /// What went wrong, if anything did.
    pub(crate) fn damage(&mut self) -> Option<String> {
        self.damage.take()
    }

    /// The bytes that can be had without another frame, at most to the span's end; none at its end.
    fn rest(&mut self) -> Option<&[u8]> {
        if self.at >= self.end {
            return None;
        }
        let holds = |(start, plain): &(u64, Arc<Vec<u8>>)| {
            self.at >= *start && self.at - *start < plain.len() as u64
        };
        if !self.held.as_ref().is_some_and(holds) {
            match self.frames.holding(self.stream, self.at) {
                Ok(held) => self.held = Some(held),
                Err(damage) => {
                    self.damage = Some(damage);
                    return None;
                }
            }
        }
        let (start, plain) = self.held.as_ref()?;
        let from = (self.at - start) as usize;
        let to = plain.len().min(usize::try_from(self.end - start).unwrap_or(usize::MAX));
        plain.get(from..to).filter(|bytes| !bytes.is_empty())
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Option<u8> {
        // Mostly the next one of the frame at hand.
        if self.at < self.end
            && let Some((start, plain)) = &self.held
            && let Some(byte) = self.at.checked_sub(*start).and_then(|at| plain.get(at as usize))
        {
            self.at += 1;
            return Some(*byte);
        }
        let byte = *self.rest()?.first()?;
        self.at += 1;
        Some(byte)
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        varint::read(|| self.byte())
    }

    /// Adds the next bytes to `bytes`, modulo 256; `None` if there are fewer.
    pub(crate) fn add_to(&mut self, bytes: &mut [u8]) -> Option<()> {
        let mut left = bytes;
        while !left.is_empty() {
            let rest = self.rest()?;
            let step = rest.len().min(left.len());
            let (now, later) = left.split_at_mut(step);
            now.iter_mut().zip(rest).for_each(|(byte, more)| *byte = byte.wrapping_add(*more));
            self.at += step as u64;
            left = later;
        }
        Some(())
    }

    /// Hands the next `len` bytes to `sink`; `None` if there are fewer, or `sink` failed.
    pub(crate) fn bytes(
        &mut self,
        len: u64,
        sink: &mut dyn FnMut(&[u8]) -> Option<()>,
    ) -> Option<()> {
        let mut left = len;
        while left > 0 {
            let rest = self.rest()?;
            let step = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            sink(&rest[..step])?;
            self.at += step as u64;
            left -= step as u64;
        }
        Some(())
    }
}
