//! Streams on their way out: collected, cut into frames, compressed, spooled.

use std::io::{self, Write};

use rayon::prelude::*;
use vireo_model::Digest;

use crate::dictionary::Dictionary;
use crate::error::{DeltaError, WRITE_SPOOL, io_step};
use crate::format::limits;
use crate::frames::{Frame, Method, Span, StreamId};
use crate::model;

/// Full frames that wait to be compressed side by side. Bounds memory, and how many threads help;
/// not a matter of the machine, so that the output is the same everywhere.
const WAITING_FRAMES: usize = 8;

/// Length of a full frame before compression, in bytes. Readers keep a frame of each stream at hand, so
/// this is what applying takes in memory; shorter ones compress worse.
pub(crate) const FRAME_PLAIN_LEN: usize = 512 << 10;
const _: () = assert!(FRAME_PLAIN_LEN as u64 <= limits::MAX_FRAME_PLAIN_LEN);

/// Frames of this length or more are tried before they are compressed well, in bytes. What is shorter
/// takes milliseconds at most.
const TRIED_LEN: usize = 32 << 10;

/// The level that frames are tried at: some hundred times as fast as the one of everyday use.
const TRIED_LEVEL: i32 = 1;

/// Levels from here on take so long that trying first costs nothing beside them.
const SLOW_LEVEL: i32 = 10;

/// What trying makes less shorter than one byte in so many is noise (pictures, archives, keys), of which
/// no level makes less: all they could do is to try for long.
const NOISE: usize = 64;

/// A frame of `stream`. New text is also compressed by a model of it, if it may be, and the better one counts.
fn compressed(
    stream: StreamId,
    plain: &[u8],
    level: i32,
    may_model: bool,
) -> io::Result<(Method, Vec<u8>)> {
    let dictionary = Dictionary::of(stream);
    if level >= SLOW_LEVEL && plain.len() >= TRIED_LEN {
        let tried = dictionary.compress(plain, TRIED_LEVEL)?;
        if tried.len() >= plain.len() - plain.len() / NOISE {
            return Ok((Method::Zstd, tried));
        }
    }
    let frame = dictionary.compress(plain, level)?;
    if may_model && let Some(frame) = model::compress(plain, frame.len())? {
        return Ok((Method::Model, frame));
    }
    Ok((Method::Zstd, frame))
}

/// Compresses streams into a spool. The frames follow each other in the order in which they became
/// full, whatever the number of threads.
#[derive(Debug)]
pub(crate) struct Spool<S> {
    out: S,
    level: i32,
    pending: Vec<Vec<u8>>,
    lens: [u64; StreamId::COUNT],
    waiting: Vec<(StreamId, Vec<u8>)>,
    frames: Vec<Frame>,
    /// Bytes written to `out`.
    len: u64,
    /// Bytes of text that may be compressed by a model yet.
    model_len: u64,
}

impl<S: Write> Spool<S> {
    pub(crate) fn new(out: S, level: i32) -> Self {
        Self {
            out,
            level,
            pending: vec![Vec::new(); StreamId::COUNT],
            lens: [0; StreamId::COUNT],
            waiting: Vec::new(),
            frames: Vec::new(),
            len: 0,
            model_len: model::MOST_LEN,
        }
    }

    /// Whether text is tried with a model of it.
    pub(crate) fn models(&self) -> bool {
        self.level >= SLOW_LEVEL
    }

    pub(crate) fn set_level(&mut self, level: i32) {
        self.level = level;
    }

    /// Where the next bytes of `stream` will stand.
    pub(crate) fn end(&self, stream: StreamId) -> u64 {
        self.lens[stream.index()]
    }

    /// Bytes of all streams before compression.
    pub(crate) fn plain_len(&self) -> u64 {
        self.lens.iter().sum()
    }

    /// Appends to `stream`.
    pub(crate) fn add(&mut self, stream: StreamId, mut bytes: &[u8]) -> Result<Span, DeltaError> {
        let span = Span { start: self.end(stream), len: bytes.len() as u64 };
        self.lens[stream.index()] += span.len;
        while !bytes.is_empty() {
            let pending = &mut self.pending[stream.index()];
            let room = FRAME_PLAIN_LEN - pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            pending.extend_from_slice(now);
            bytes = later;
            if pending.len() == FRAME_PLAIN_LEN {
                let full = std::mem::take(pending);
                self.waiting.push((stream, full));
                if self.waiting.len() == WAITING_FRAMES {
                    self.compress()?;
                }
            }
        }
        Ok(span)
    }

    fn compress(&mut self) -> Result<(), DeltaError> {
        let level = self.level;
        let waiting = std::mem::take(&mut self.waiting);
        let waiting: Vec<_> = waiting
            .into_iter()
            .map(|(stream, plain)| (stream, self.may_model(stream, plain.len()), plain))
            .collect();
        let packed: Vec<_> = waiting
            .par_iter()
            .map(|(stream, may_model, plain)| {
                let (method, packed) = compressed(*stream, plain, level, *may_model)?;
                Ok((*stream, method, plain.len(), Digest::of(&packed), packed))
            })
            .collect::<std::io::Result<_>>()
            .map_err(io_step("compress a frame"))?;
        for (stream, method, plain_len, digest, packed) in packed {
            self.out.write_all(&packed).map_err(io_step(WRITE_SPOOL))?;
            // Both fit: a frame is at most [`FRAME_PLAIN_LEN`] plain, and zstd adds less than 1 % to what it
            // cannot compress.
            let (len, plain_len) = (packed.len() as u32, plain_len as u32);
            self.frames.push(Frame { digest, stream, method, len, plain_len });
            self.len += packed.len() as u64;
        }
        Ok(())
    }

    /// Whether a frame of `len` bytes may be compressed by a model. Decided one after another, so that the
    /// number of threads does not count.
    fn may_model(&mut self, stream: StreamId, len: usize) -> bool {
        let fits = len >= model::LEAST_LEN && len as u64 <= self.model_len;
        if !(self.models() && stream.is_text() && fits) {
            return false;
        }
        self.model_len -= len as u64;
        true
    }

    /// Compresses what is left. Returns the spool, its frames and its length.
    pub(crate) fn finish(mut self) -> Result<(S, Vec<Frame>, u64), DeltaError> {
        for (number, plain) in self.pending.iter_mut().enumerate() {
            if let Some(stream) = StreamId::from_number(number as u32)
                && !plain.is_empty()
            {
                self.waiting.push((stream, std::mem::take(plain)));
            }
        }
        self.compress()?;
        Ok((self.out, self.frames, self.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{Class, Part};

    #[test]
    fn noise_is_tried_and_given_up_and_text_is_compressed_well() {
        let stream = StreamId::new(Class::Other, Part::Extra);
        let mut noise = vec![0; 4 * TRIED_LEN];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
        let tried = zstd::bulk::compress(&noise, TRIED_LEVEL).expect("memory");
        let found = compressed(stream, &noise, 19, true).expect("memory");
        assert_eq!(found, (Method::Zstd, tried));
        let text: Vec<u8> = noise.iter().map(|byte| b'a' + byte % 16).collect();
        let well = zstd::bulk::compress(&text, 19).expect("memory");
        assert_eq!(compressed(stream, &text, 19, false).expect("memory"), (Method::Zstd, well));
    }
}
