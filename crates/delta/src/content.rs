//! Decoding one file's content from the base and the frames.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vireo_model::{Digest, Hasher, ImagePath};

use crate::error::{DeltaError, Detail};
use crate::format::limits;
use crate::manifest::{Content, Frame, Segment};

/// How much of the base is read at a time, in bytes.
const READ_LEN: usize = 256 << 10;

/// Frames kept decoded: files that are staged at the same time mostly share them. Bounds the
/// decoder's memory to this many times [`limits::MAX_FRAME_PLAIN_LEN`].
const CACHED_FRAMES: usize = 4;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The base's files, as far as decoding needs them.
pub trait BaseRead: Sync {
    /// Fills `buffer` with the bytes of the base's file `path` from `offset` on.
    ///
    /// # Errors
    ///
    /// As reading a file; `UnexpectedEof` if it is shorter.
    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A base in memory, for tests and small tools.
#[derive(Clone, Debug, Default)]
pub struct MemBase(BTreeMap<ImagePath, Vec<u8>>);

impl FromIterator<(ImagePath, Vec<u8>)> for MemBase {
    fn from_iter<I: IntoIterator<Item = (ImagePath, Vec<u8>)>>(files: I) -> Self {
        Self(files.into_iter().collect())
    }
}

impl BaseRead for MemBase {
    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let file = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(file.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The next bytes of a content that is being decoded.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// These bytes.
    Data(&'a [u8]),
    /// That many zeros.
    Zeros(u64),
}

/// The content of one changed file, ready to be decoded.
#[derive(Debug)]
pub struct ContentSource<'a> {
    pub(crate) path: &'a ImagePath,
    pub(crate) digest: Digest,
    pub(crate) content: &'a Content,
    pub(crate) sources: &'a [ImagePath],
    pub(crate) frames: &'a Frames<'a>,
}

impl ContentSource<'_> {
    /// The content's length in bytes.
    #[must_use]
    pub fn content_len(&self) -> u64 {
        self.content.len
    }

    /// The content's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether the file had holes where it was captured.
    #[must_use]
    pub fn is_sparse(&self) -> bool {
        self.content.sparse
    }

    /// Whether it copies nothing from the base.
    #[must_use]
    pub fn is_self_contained(&self) -> bool {
        !self.content.segments.iter().any(|s| matches!(s, Segment::Base { .. }))
    }

    /// Hands the content to `sink`, piece by piece in order, and compares its digest at the end.
    /// Until this returns `Ok` what `sink` got is not to be trusted.
    ///
    /// Memory: a buffer and the frame cache, whatever the file's size.
    ///
    /// # Errors
    ///
    /// `WrongBase` if the base cannot be read there or the result has another digest, `Corrupt`
    /// if a frame is damaged, `Io` if `sink` fails.
    pub fn decode(
        &self,
        base: &dyn BaseRead,
        sink: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
    ) -> Result<(), DeltaError> {
        let mut hasher = Hasher::new();
        let mut buffer = Vec::new();
        for segment in &self.content.segments {
            match *segment {
                Segment::Zero { len } => {
                    hash_zeros(&mut hasher, len);
                    sink(Piece::Zeros(len)).map_err(|error| self.sink_failed(error))?;
                }
                Segment::Literal { offset, len } => {
                    self.literal(offset, len, &mut |bytes| {
                        hasher.update(bytes);
                        sink(Piece::Data(bytes))
                    })?;
                }
                Segment::Base { source, offset, len } => {
                    buffer.resize(READ_LEN, 0);
                    let source = &self.sources[source as usize];
                    let mut at = offset;
                    while at < offset + len {
                        let step = (offset + len - at).min(READ_LEN as u64) as usize;
                        let bytes = &mut buffer[..step];
                        base.read_at(source, at, bytes).map_err(|error| Detail::Base {
                            path: source.clone(),
                            source: error,
                        })?;
                        hasher.update(bytes);
                        sink(Piece::Data(bytes)).map_err(|error| self.sink_failed(error))?;
                        at += step as u64;
                    }
                }
            }
        }
        let found = hasher.finish();
        if found != self.digest {
            let (path, expected) = (self.path.clone(), self.digest);
            return Err(Detail::Decoded { path, expected, found }.into());
        }
        Ok(())
    }

    /// The whole content at once; for files known to be small, and for tests.
    ///
    /// # Errors
    ///
    /// As [`ContentSource::decode`].
    pub fn to_vec(&self, base: &dyn BaseRead) -> Result<Vec<u8>, DeltaError> {
        let mut bytes = Vec::new();
        self.decode(base, &mut |piece| {
            match piece {
                Piece::Data(data) => bytes.extend_from_slice(data),
                Piece::Zeros(len) => {
                    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
                    bytes.try_reserve(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
                    bytes.resize(bytes.len() + len, 0);
                }
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    fn literal(
        &self,
        offset: u64,
        len: u64,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), DeltaError> {
        let mut at = offset;
        while at < offset + len {
            let number = (at / limits::MAX_FRAME_PLAIN_LEN) as usize;
            let plain = self.frames.plain(number).map_err(|what| self.damaged(what))?;
            let start = (at % limits::MAX_FRAME_PLAIN_LEN) as usize;
            let step = ((offset + len - at) as usize).min(plain.len().saturating_sub(start));
            if step == 0 {
                return Err(self.damaged("a frame is too short".to_owned()));
            }
            sink(&plain[start..start + step]).map_err(|error| self.sink_failed(error))?;
            at += step as u64;
        }
        Ok(())
    }

    fn damaged(&self, what: String) -> DeltaError {
        Detail::Content { path: self.path.clone(), what }.into()
    }

    #[expect(clippy::unused_self, reason = "reads as one family with `damaged`")]
    fn sink_failed(&self, source: io::Error) -> DeltaError {
        Detail::Io { step: "write the decoded content", source }.into()
    }
}

fn hash_zeros(hasher: &mut Hasher, len: u64) {
    let mut left = len;
    while left > 0 {
        let step = left.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..step as usize]);
        left -= step;
    }
}

/// The content section of a bundle, decoded frame by frame and checked before use.
#[derive(Debug)]
pub(crate) struct Frames<'a> {
    /// Each frame with its bytes as they travelled.
    frames: Vec<(Frame, &'a [u8])>,
    cache: Mutex<VecDeque<(usize, Arc<Vec<u8>>)>>,
}

impl<'a> Frames<'a> {
    /// `section` is exactly as long as the frames together; the manifest's check saw to that.
    pub(crate) fn new(frames: &[Frame], section: &'a [u8]) -> Option<Self> {
        let mut rest = section;
        let mut list = Vec::with_capacity(frames.len());
        for frame in frames {
            let (bytes, behind) = rest.split_at_checked(frame.len as usize)?;
            list.push((*frame, bytes));
            rest = behind;
        }
        Some(Self { frames: list, cache: Mutex::default() })
    }

    /// The bytes of frame `number` before compression. A text says what is wrong with it.
    fn plain(&self, number: usize) -> Result<Arc<Vec<u8>>, String> {
        if let Some((_, plain)) = self.lock().iter().find(|(cached, _)| *cached == number) {
            return Ok(plain.clone());
        }
        // Two threads may decode the same frame at the same time; both results are right.
        let plain = Arc::new(self.decode(number)?);
        let mut cache = self.lock();
        if cache.len() == CACHED_FRAMES {
            cache.pop_front();
        }
        cache.push_back((number, plain.clone()));
        Ok(plain)
    }

    fn decode(&self, number: usize) -> Result<Vec<u8>, String> {
        let (frame, bytes) = self.frames.get(number).ok_or("a frame is missing")?;
        if Digest::of(bytes) != frame.digest {
            return Err(format!("frame {number} has a wrong digest"));
        }
        let plain = zstd::bulk::decompress(bytes, frame.plain_len as usize)
            .map_err(|error| format!("frame {number} cannot be decompressed: {error}"))?;
        if plain.len() != frame.plain_len as usize {
            return Err(format!("frame {number} has another length than it says"));
        }
        Ok(plain)
    }

    /// Compares every frame with its digest, as a check of the whole file.
    pub(crate) fn check(&self) -> Result<(), usize> {
        match self.frames.iter().position(|(frame, bytes)| Digest::of(bytes) != frame.digest) {
            Some(number) => Err(number),
            None => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(usize, Arc<Vec<u8>>)>> {
        // A panic while the lock was held leaves a list of whole entries: still right.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
