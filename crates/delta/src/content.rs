//! Decoding one file's content from the base and the frames.

use std::collections::BTreeMap;
use std::io;

use vireo_model::{Digest, Hasher, ImagePath};

use crate::error::{DeltaError, Detail};
use crate::file::{self, Script};
use crate::frames::{Cursor, Frames, Part, Span, StreamId};
use crate::manifest::{Body, Content, FileDelta, Form, Inside, Packing, Segment, Source};
use crate::{gzip, streams};

/// How much of the base is read at a time, in bytes.
const READ_LEN: usize = 256 << 10;

/// Pieces are made that long before they are handed on, in bytes.
const GATHERED_LEN: usize = 64 << 10;

/// Short copies from the base are cut out of a window of this length, in bytes, where they follow each
/// other with gaps of no more than that.
const WINDOW_LEN: usize = 16 << 10;
const MAX_GAP: u64 = 1 << 10;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The base's files, as far as decoding needs them.
pub trait BaseRead: Sync {
    /// Fills `buffer` with the bytes of the base's file `path` from `offset` on.
    ///
    /// # Errors
    ///
    /// As reading a file; `UnexpectedEof` if it is shorter.
    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The length of the base's file `path` in bytes. Decoding does not ask for it; deriving bundles
    /// does, of files that no change set tells the length of, and makes larger ones without it.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such file; `Unsupported` from implementers that do not tell.
    fn len_of(&self, path: &ImagePath) -> io::Result<u64> {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The digest that the base's file `path` should have, if that is known. Decoding does not ask for it; deriving
    /// bundles does, of files that no change set tells the digest of, so as to refuse a base that changes meanwhile.
    fn digest_of(&self, path: &ImagePath) -> Option<Digest> {
        let _ = path;
        None
    }
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

    fn len_of(&self, path: &ImagePath) -> io::Result<u64> {
        self.0.get(path).map(|file| file.len() as u64).ok_or_else(|| io::ErrorKind::NotFound.into())
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

/// Gets a content piece by piece, in order.
type Sink<'s> = dyn FnMut(Piece<'_>) -> io::Result<()> + 's;

/// The content of one changed file, ready to be decoded.
#[derive(Debug)]
pub struct ContentSource<'a> {
    pub(crate) path: &'a ImagePath,
    pub(crate) digest: Digest,
    pub(crate) content: &'a Content,
    pub(crate) sources: &'a [Source],
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
        self.content.is_self_contained()
    }

    /// Hands the content to `sink`, piece by piece in order, and compares its digest at the end.
    /// Until this returns `Ok` what `sink` got is not to be trusted.
    ///
    /// Memory: some buffers, the script of a delta and the frame cache, whatever the file's size;
    /// for gzip files their plain text and themselves.
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
        let mut gathered = Gathered { hasher: Hasher::new(), waiting: Vec::new(), sink };
        let mut gather = |piece: Piece<'_>| gathered.add(piece);
        match self.content.packing {
            Packing::None => self.body(base, &mut gather)?,
            packing => self.packed(packing, base, &mut gather)?,
        }
        gathered.flush().map_err(sink_failed)?;
        let found = gathered.hasher.finish();
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
        self.decode(base, &mut |piece| append(&mut bytes, piece))?;
        Ok(bytes)
    }

    /// Where each segment ends, for [`read_at`](Self::read_at); `None` if this content can be decoded from
    /// its start only.
    pub(crate) fn ends(&self) -> Option<Vec<u64>> {
        let Body::Segments(segments) = &self.content.body else { return None };
        let add = |end: &mut u64, segment: &Segment| {
            *end += segment.len();
            Some(*end)
        };
        (self.content.packing == Packing::None).then(|| segments.iter().scan(0, add).collect())
    }

    /// Fills `buffer` from `offset` on without decoding what is before it; `ends` are this content's.
    /// What it gives is not compared with the content's digest.
    pub(crate) fn read_at(
        &self,
        ends: &[u64],
        base: &dyn BaseRead,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), DeltaError> {
        let Body::Segments(segments) = &self.content.body else {
            return Err(self.damaged("it has no segments".to_owned()));
        };
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.content.len);
        let end =
            end.ok_or_else(|| self.damaged("it is shorter than what is read of it".to_owned()))?;
        let first = ends.partition_point(|end| *end <= offset);
        let mut filled = 0;
        let (segments, ends) = (segments.get(first..), ends.get(first..));
        let behind = segments.unwrap_or_default().iter().zip(ends.unwrap_or_default());
        for (segment, segment_end) in behind {
            let at = segment_end - segment.len();
            if at >= end {
                break;
            }
            let (start, stop) = (offset.max(at), end.min(*segment_end));
            let part = segment.part(start - at, stop - start);
            self.segment(&part, base, &mut |piece| {
                filled += fill(&mut buffer[filled..], piece);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A gzip file: what it was taken apart into, then made into the file again.
    fn packed(
        &self,
        packing: Packing,
        base: &dyn BaseRead,
        sink: &mut Sink<'_>,
    ) -> Result<(), DeltaError> {
        let mut plain = Vec::new();
        self.body(base, &mut |piece| append(&mut plain, piece))?;
        let file = match packing {
            Packing::Recipe(span) => {
                let stream = StreamId::new(self.content.class, Part::Recipe);
                gzip::pack(&plain, &self.collect(stream, span)?)
            }
            Packing::Tokens => gzip::write_tokens(&plain),
            Packing::Streams => streams::write(&plain),
            Packing::None => Some(plain),
        };
        let file = file
            .filter(|file| file.len() as u64 == self.content.len)
            .ok_or_else(|| self.damaged("what it was taken apart into makes no file".to_owned()))?;
        sink(Piece::Data(&file)).map_err(sink_failed)
    }

    /// The bytes that the content's body stands for, before any recipe.
    fn body(&self, base: &dyn BaseRead, sink: &mut Sink<'_>) -> Result<(), DeltaError> {
        match &self.content.body {
            Body::Segments(segments) => {
                segments.iter().try_for_each(|segment| self.segment(segment, base, sink))
            }
            Body::Delta(delta) => self.delta(delta, base, sink),
        }
    }

    fn segment(
        &self,
        segment: &Segment,
        base: &dyn BaseRead,
        sink: &mut Sink<'_>,
    ) -> Result<(), DeltaError> {
        match *segment {
            Segment::Zero { len } => sink(Piece::Zeros(len)).map_err(sink_failed),
            Segment::Literal { class, offset, len } => {
                let span = Span { start: offset, len };
                let mut cursor = self.frames.cursor(StreamId::new(class, Part::Literal), span);
                let mut failed = None;
                let outcome =
                    cursor.bytes(len, &mut |bytes| keep(sink(Piece::Data(bytes)), &mut failed));
                self.outcome(outcome, failed.map(sink_failed), &mut [cursor])
            }
            Segment::Base { source, offset, len } => {
                let mut buffer = vec![0; len.min(READ_LEN as u64) as usize];
                let path = &self.sources[source as usize].path;
                let (mut at, end) = (offset, offset + len);
                while at < end {
                    let step = (end - at).min(READ_LEN as u64) as usize;
                    let bytes = &mut buffer[..step];
                    base.read_at(path, at, bytes).map_err(|error| unreadable(path, error))?;
                    sink(Piece::Data(bytes)).map_err(sink_failed)?;
                    at += step as u64;
                }
                Ok(())
            }
        }
    }

    fn delta(
        &self,
        delta: &FileDelta,
        base: &dyn BaseRead,
        sink: &mut Sink<'_>,
    ) -> Result<(), DeltaError> {
        let stream = |part| StreamId::new(self.content.class, part);
        let control = self.collect(stream(Part::Control), delta.control)?;
        let script = Script::read(&control, delta.plain_len)
            .ok_or_else(|| self.damaged("its delta has an invalid script".to_owned()))?;
        drop(control);
        let source = &self.sources[delta.source as usize];
        let inside = match source.inside {
            None => None,
            Some(inside) => Some(self.inside(source, inside, base)?),
        };
        let mut parties = Parties {
            patch: self.frames.cursor(stream(Part::Patch), delta.patch),
            refs: self.frames.cursor(stream(Part::Refs), delta.refs),
            diff: self.frames.cursor(stream(Part::Diff), delta.diff),
            extra: self.frames.cursor(stream(Part::Extra), delta.extra),
            base,
            path: &source.path,
            inside,
            window: (0, Vec::new()),
            read_to: 0,
            failed: None,
        };
        let mut failed = None;
        let outcome = file::decode(&script, &mut parties, &mut |bytes| {
            keep(sink(Piece::Data(bytes)), &mut failed)
        });
        let failed = failed.map(sink_failed).or(parties.failed);
        let mut cursors = [parties.patch, parties.refs, parties.diff, parties.extra];
        self.outcome(outcome, failed, &mut cursors)
    }

    /// What is meant of a gzip file of the base.
    fn inside(
        &self,
        source: &Source,
        inside: Inside,
        base: &dyn BaseRead,
    ) -> Result<Vec<u8>, DeltaError> {
        let mut packed = vec![0; inside.packed_len as usize];
        base.read_at(&source.path, 0, &mut packed)
            .map_err(|error| unreadable(&source.path, error))?;
        let plain = match inside.form {
            Form::Plain => gzip::inflate(&packed, inside.plain_len),
            Form::Tokens => gzip::read_tokens(&packed),
            Form::Streams => streams::read(&packed),
        };
        let plain = plain.filter(|plain| plain.len() as u64 == inside.plain_len);
        plain.ok_or_else(|| {
            let error =
                io::Error::new(io::ErrorKind::InvalidData, "it is not the packed file it was");
            unreadable(&source.path, error)
        })
    }

    /// A span whose length the manifest's check has bounded.
    fn collect(&self, stream: StreamId, span: Span) -> Result<Vec<u8>, DeltaError> {
        let mut bytes = Vec::with_capacity(span.len as usize);
        let mut cursor = self.frames.cursor(stream, span);
        let outcome = cursor.bytes(span.len, &mut |more| {
            bytes.extend_from_slice(more);
            Some(())
        });
        self.outcome(outcome, None, &mut [cursor])?;
        Ok(bytes)
    }

    /// Why a decoding failed, if it did.
    fn outcome(
        &self,
        outcome: Option<()>,
        failed: Option<DeltaError>,
        cursors: &mut [Cursor<'_>],
    ) -> Result<(), DeltaError> {
        if let Some(error) = failed {
            return Err(error);
        }
        if let Some(damage) = cursors.iter_mut().find_map(Cursor::damage) {
            return Err(self.damaged(damage));
        }
        outcome.ok_or_else(|| self.damaged("its streams do not fit each other".to_owned()))
    }

    fn damaged(&self, what: String) -> DeltaError {
        Detail::Content { path: self.path.clone(), what }.into()
    }
}

/// Makes small pieces into larger ones, which are hashed several times as fast and written in fewer
/// calls.
struct Gathered<'s> {
    hasher: Hasher,
    waiting: Vec<u8>,
    sink: &'s mut Sink<'s>,
}

impl Gathered<'_> {
    fn add(&mut self, piece: Piece<'_>) -> io::Result<()> {
        match piece {
            Piece::Data(bytes) if self.waiting.len() + bytes.len() <= GATHERED_LEN => {
                self.waiting.extend_from_slice(bytes);
                Ok(())
            }
            Piece::Data(bytes) => {
                self.flush()?;
                if bytes.len() <= GATHERED_LEN / 2 {
                    self.waiting.extend_from_slice(bytes);
                    return Ok(());
                }
                self.hasher.update(bytes);
                (self.sink)(piece)
            }
            Piece::Zeros(len) => {
                self.flush()?;
                hash_zeros(&mut self.hasher, len);
                (self.sink)(piece)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.hasher.update(&self.waiting);
        (self.sink)(Piece::Data(&self.waiting))?;
        self.waiting.clear();
        Ok(())
    }
}

/// Those who have a part in a delta.
struct Parties<'a> {
    patch: Cursor<'a>,
    refs: Cursor<'a>,
    diff: Cursor<'a>,
    extra: Cursor<'a>,
    base: &'a dyn BaseRead,
    path: &'a ImagePath,
    /// What is meant of the base's file, if that is a gzip file.
    inside: Option<Vec<u8>>,
    /// Bytes of the base's file, and where they stand in it.
    window: (u64, Vec<u8>),
    /// Where the last copy ended.
    read_to: u64,
    failed: Option<DeltaError>,
}

impl Parties<'_> {
    /// Fills `buffer` from the window. Moves that to `offset` if copies go on there; `None` if they do
    /// not, or if the file ends before the window would.
    fn read_window(&mut self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        let (start, window) = &mut self.window;
        let end = offset.checked_add(buffer.len() as u64)?;
        let goes_on = offset.checked_sub(self.read_to).is_some_and(|gap| gap <= MAX_GAP);
        self.read_to = end;
        if offset < *start || end - *start > window.len() as u64 {
            if !goes_on {
                return None;
            }
            window.resize(WINDOW_LEN, 0);
            *start = offset;
            if self.base.read_at(self.path, offset, window).is_err() {
                window.clear();
                return None;
            }
        }
        let from = (offset - *start) as usize;
        buffer.copy_from_slice(&window[from..from + buffer.len()]);
        Some(())
    }
}

impl file::Streams for Parties<'_> {
    fn patch(&mut self) -> Option<u64> {
        self.patch.number()
    }

    fn refs(&mut self) -> Option<u64> {
        self.refs.number()
    }

    fn diff(&mut self, bytes: &mut [u8]) -> Option<()> {
        self.diff.add_to(bytes)
    }

    fn extra(&mut self, len: u64, sink: &mut dyn FnMut(&[u8]) -> Option<()>) -> Option<()> {
        self.extra.bytes(len, sink)
    }

    fn base(&mut self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        if let Some(plain) = &self.inside {
            let start = usize::try_from(offset).ok()?;
            buffer.copy_from_slice(plain.get(start..start.checked_add(buffer.len())?)?);
            return Some(());
        }
        if buffer.len() < WINDOW_LEN / 2 && self.read_window(offset, buffer).is_some() {
            return Some(());
        }
        match self.base.read_at(self.path, offset, buffer) {
            Ok(()) => Some(()),
            Err(error) => {
                self.failed = Some(unreadable(self.path, error));
                None
            }
        }
    }
}

fn keep(outcome: io::Result<()>, failed: &mut Option<io::Error>) -> Option<()> {
    outcome.map_err(|error| *failed = Some(error)).ok()
}

fn unreadable(path: &ImagePath, source: io::Error) -> DeltaError {
    Detail::Base { path: path.clone(), source }.into()
}

fn sink_failed(source: io::Error) -> DeltaError {
    Detail::Io { step: "write the decoded content", source }.into()
}

fn append(bytes: &mut Vec<u8>, piece: Piece<'_>) -> io::Result<()> {
    match piece {
        Piece::Data(data) => bytes.extend_from_slice(data),
        Piece::Zeros(len) => {
            let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
            bytes.try_reserve(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
            bytes.resize(bytes.len() + len, 0);
        }
    }
    Ok(())
}

/// Copies a piece to the start of `buffer`; returns its length.
fn fill(buffer: &mut [u8], piece: Piece<'_>) -> usize {
    match piece {
        Piece::Data(data) => {
            let len = data.len().min(buffer.len());
            buffer[..len].copy_from_slice(&data[..len]);
            len
        }
        Piece::Zeros(zeros) => {
            let len = usize::try_from(zeros).unwrap_or(usize::MAX).min(buffer.len());
            buffer[..len].fill(0);
            len
        }
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
