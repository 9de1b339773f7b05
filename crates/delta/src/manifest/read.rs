//! Reading and checking the manifest.

use std::slice::Iter;

use rkyv::rancor::Error as RancorError;
use rkyv::util::AlignedVec;
use vireo_model::{
    Change, ChangeSet, DeviceKind, Digest, Ignore, ImagePath, MAX_PATTERNS, Node, NodeKind,
    Timestamp, Xattrs,
};

use super::columns::{
    AS_STREAMS, AS_TOKENS, ArchivedColumns, BY_MODEL, DELTA, ELSEWHERE, KIND_BLOCK, KIND_CHAR,
    KIND_DIR, KIND_FIFO, KIND_FILE, KIND_HARD_LINK, KIND_NONE, KIND_SAME, KIND_SOCKET,
    KIND_SYMLINK, Number, PACKED, SEGMENT_BASE, SEGMENT_LITERAL, SEGMENT_ZERO, SPANS, SPARSE,
    STREAMS, TOKENS,
};
use super::weight::{self, Weight};
use super::work::Work;
use super::write::known_lens;
use super::{
    Body, Content, Contents, FileDelta, Form, Inside, Manifest, Packing, Segment, Source,
    new_content,
};
use crate::dictionary::Dictionary;
use crate::error::{DeltaError, Detail};
use crate::file::{MAX_CONTROL_LEN, MAX_DELTA_LEN};
use crate::format::{Header, feature, limit, limits};
use crate::frames::{CLASSES, Class, Frame, Method, Part, Span, StreamId, stream_lens};
use crate::{Permits, consistency, gzip};

const NANOS: u64 = 1_000_000_000;

/// Reads and checks the manifest of the bundle with this `header`, whose digest `bytes` have.
pub(crate) fn decode(header: &Header, bytes: &[u8]) -> Result<Manifest, DeltaError> {
    decode_within(header, bytes, limits::MAX_MANIFEST_MEMORY_LEN)
}

/// The same into at most `most_memory_len` bytes, counted before they are allocated.
pub(super) fn decode_within(
    header: &Header,
    bytes: &[u8],
    most_memory_len: u64,
) -> Result<Manifest, DeltaError> {
    // The header's limits bound what is allocated here.
    let mut plain = AlignedVec::<16>::new();
    plain.resize(header.manifest_plain_len as usize, 0);
    let dictionary = Dictionary::Manifest.if_known_by(header);
    let len = dictionary
        .decompress(bytes, &mut plain[..])
        .map_err(|_| invalid("it cannot be decompressed"))?;
    if len as u64 != header.manifest_plain_len {
        return Err(invalid("it has another length than the header says"));
    }
    let columns = rkyv::access::<ArchivedColumns, RancorError>(&plain)
        .map_err(|_| invalid("its structure is damaged"))?;
    check_counts(columns)?;
    let mut reader = Reader::new(columns, Weight::new(most_memory_len), header.incompat);
    let ignore = reader.ignore(columns.ignore_lens.iter())?;
    let changes = reader.changes(columns.before_kinds.len())?;
    consistency::check(&changes, &ignore).map_err(|what| invalid(&what))?;
    let dir_times = reader.dir_times(columns.dir_secs.len())?;
    let sources = reader.sources(columns.source_changes.len(), &changes)?;
    let frames = reader.frames(columns.frame_lens.len(), header.content_len)?;
    let contents = reader.contents(columns.content_digests.len(), &changes, &sources, &frames)?;
    for change in &changes {
        if let Some(digest) = new_content(change)
            && contents.get(&digest).is_none()
        {
            return Err(invalid(&format!("{} has no content", change.path)));
        }
    }
    Work::new(&frames).of_all(&changes, &contents)?;
    reader.check_ends()?;
    let permits = Permits::from_bits(columns.permits.to_native())
        .ok_or_else(|| invalid("it permits what this version of Vireo does not know"))?;
    Ok(Manifest {
        changes: ChangeSet { base: header.base, target: header.target, changes },
        ignore,
        contents,
        sources,
        frames,
        dir_times,
        permits,
        base_paths: columns.base_paths.to_native(),
    })
}

fn check_counts(columns: &ArchivedColumns) -> Result<(), DeltaError> {
    let changes = limits::MAX_CHANGES as u64;
    limit("number of changes", columns.before_kinds.len() as u64, changes)?;
    limit("number of directory times", columns.dir_secs.len() as u64, changes)?;
    limit("number of base files", columns.source_changes.len() as u64, changes)?;
    limit("number of contents", columns.content_digests.len() as u64, 2 * changes)?;
    let segments = limits::MAX_SEGMENTS as u64;
    limit("number of segments", columns.segment_kinds.len() as u64, segments)?;
    limit("number of ignore patterns", columns.ignore_lens.len() as u64, MAX_PATTERNS as u64)
}

/// A column, read from its start.
struct Column<'a, T>(Iter<'a, T>);

impl<T: Number> Column<'_, T> {
    fn next(&mut self) -> Result<u64, DeltaError> {
        self.0.next().map(Number::value).ok_or_else(|| invalid("a column is too short"))
    }

    fn next_u32(&mut self) -> Result<u32, DeltaError> {
        u32::try_from(self.next()?).map_err(|_| invalid("a number is too large"))
    }
}

/// Makes the struct of all columns that are read in order, and what builds and ends it.
macro_rules! reader {
    ($($column:ident: $number:ty),* $(,)?) => {
        /// All columns, and what reading them needs to remember.
        struct Reader<'a> {
            names: &'a [u8],
            texts: &'a [u8],
            digests: &'a [[u8; 32]],
            frame_digests: Iter<'a, [u8; 32]>,
            last_path: Vec<u8>,
            paths_len: u64,
            weight: Weight,
            /// What the header says that there may be.
            features: u32,
            $($column: Column<'a, $number>,)*
        }

        impl<'a> Reader<'a> {
            fn new(columns: &'a ArchivedColumns, weight: Weight, features: u32) -> Self {
                Self {
                    names: &columns.names,
                    texts: &columns.texts,
                    digests: &columns.digests,
                    frame_digests: columns.frame_digests.iter(),
                    last_path: Vec::new(),
                    paths_len: 0,
                    weight,
                    features,
                    $($column: Column(columns.$column.iter()),)*
                }
            }

            fn knows(&self, feature: u32) -> bool {
                self.features & feature != 0
            }

            /// Nothing may be left: two readers would see the same.
            fn check_ends(&self) -> Result<(), DeltaError> {
                let left = [$(self.$column.0.len(),)* self.names.len(), self.texts.len()];
                if left.iter().any(|left| *left > 0) {
                    return Err(invalid("a column is too long"));
                }
                Ok(())
            }
        }
    };
}

use rkyv::rend::{u16_le, u32_le, u64_le};

reader! {
    path_shared: u16_le, path_rest: u16_le,
    before_kinds: u8, after_kinds: u8,
    modes: u16_le, uids: u32_le, gids: u32_le, secs: u64_le, nanos: u32_le, xattr_counts: u16_le,
    file_lens: u64_le, file_digests: u32_le, link_lens: u16_le, devices: u32_le,
    xattr_lens: u32_le,
    dir_secs: u64_le, dir_nanos: u32_le,
    source_changes: u32_le, source_packed: u64_le, source_plain: u64_le,
    content_digests: u32_le, content_lens: u64_le, content_flags: u8, content_classes: u8,
    recipe_skips: u64_le, recipe_lens: u32_le, plain_lens: u64_le,
    delta_sources: u32_le, span_skips: u64_le, span_lens: u32_le,
    segment_counts: u32_le, segment_kinds: u8, segment_sources: u32_le,
    segment_offsets: u64_le, segment_lens: u64_le,
    frame_streams: u8, frame_lens: u32_le, frame_plain: u32_le,
}

impl<'a> Reader<'a> {
    fn text(&mut self, len: u64) -> Result<&'a [u8], DeltaError> {
        let (text, rest) = usize::try_from(len)
            .ok()
            .and_then(|len| self.texts.split_at_checked(len))
            .ok_or_else(|| invalid("a text lies outside its pool"))?;
        self.texts = rest;
        Ok(text)
    }

    fn path(&mut self) -> Result<ImagePath, DeltaError> {
        let (shared, rest) = (self.path_shared.next()? as usize, self.path_rest.next()? as usize);
        if shared > self.last_path.len() || rest > self.names.len() {
            return Err(invalid("a path lies outside its pool"));
        }
        let (name, names) = self.names.split_at(rest);
        self.names = names;
        self.last_path.truncate(shared);
        self.last_path.extend_from_slice(name);
        self.paths_len += self.last_path.len() as u64;
        limit("length of all paths", self.paths_len, limits::MAX_PATHS_LEN)?;
        self.weight.memory(weight::of_bytes(self.last_path.len()))?;
        parse_path(&self.last_path)
    }

    fn digest(&self, number: u64) -> Result<Digest, DeltaError> {
        let bytes = usize::try_from(number).ok().and_then(|number| self.digests.get(number));
        bytes.map(|bytes| Digest::from_bytes(*bytes)).ok_or_else(|| invalid("a digest is missing"))
    }

    fn ignore(&mut self, lens: Iter<'_, u32_le>) -> Result<Ignore, DeltaError> {
        let mut patterns = Vec::new();
        for len in lens {
            let text = std::str::from_utf8(self.text(len.value())?);
            patterns.push(text.map_err(|_| invalid("an ignore pattern is not UTF-8"))?);
        }
        Ignore::new(patterns).map_err(|error| invalid(&error.to_string()))
    }

    fn dir_times(&mut self, count: usize) -> Result<Vec<(ImagePath, Timestamp)>, DeltaError> {
        self.weight.memory(weight::of_items::<(ImagePath, Timestamp)>(count))?;
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let path = self.path()?;
            let (secs, nanos) = (self.dir_secs.next()?.cast_signed(), self.dir_nanos.next_u32()?);
            if u64::from(nanos) >= NANOS {
                return Err(invalid("a directory's time is out of range"));
            }
            times.push((path, Timestamp { secs, nanos }));
        }
        Ok(times)
    }

    fn changes(&mut self, count: usize) -> Result<Vec<Change>, DeltaError> {
        self.weight.memory(weight::of_items::<Change>(count))?;
        let mut changes: Vec<Change> = Vec::with_capacity(count);
        for _ in 0..count {
            let path = self.path()?;
            let before_kind = self.before_kinds.next()?;
            let before = self.node(&path, before_kind, None)?;
            let after_kind = self.after_kinds.next()?;
            let after = self.node(&path, after_kind, before.as_ref())?;
            // A further name of a changed file is listed although its own node stays.
            let is_link = |node: &Node| matches!(node.kind, NodeKind::HardLink { .. });
            if before == after && !before.as_ref().is_some_and(is_link) {
                return Err(invalid(&format!("{path} does not change")));
            }
            if changes.last().is_some_and(|last| last.path >= path) {
                return Err(invalid(&format!("{path} is not in its place in the order of paths")));
            }
            let both_dirs = before.as_ref().is_some_and(Node::is_dir)
                && after.as_ref().is_some_and(Node::is_dir);
            if path.is_root() && !both_dirs {
                return Err(invalid("the root directory cannot be added, removed or replaced"));
            }
            changes.push(Change { path, before, after });
        }
        Ok(changes)
    }

    fn node(
        &mut self,
        path: &ImagePath,
        kind: u64,
        before: Option<&Node>,
    ) -> Result<Option<Node>, DeltaError> {
        let kind = kind as u8;
        if kind == KIND_NONE {
            return Ok(None);
        }
        let (mode, nanos) = (self.modes.next_u32()?, self.nanos.next_u32()?);
        if mode > 0o7777 || u64::from(nanos) >= NANOS {
            return Err(invalid(&format!("{path}: its mode or time is out of range")));
        }
        let (uid, gid) = (self.uids.next_u32()?, self.gids.next_u32()?);
        // To chown(2) it means that the owner stays.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(invalid(&format!("{path}: its owner is out of range")));
        }
        let mtime = Timestamp { secs: self.secs.next()?.cast_signed(), nanos };
        let xattrs = self.xattrs(path)?;
        let kind = match (kind, before) {
            (KIND_SAME, Some(before)) => before.kind.clone(),
            _ => self.kind(path, kind)?,
        };
        self.weight.memory(weight::of_kind(&kind))?;
        Ok(Some(Node { kind, mode, uid, gid, mtime, xattrs }))
    }

    fn kind(&mut self, path: &ImagePath, kind: u8) -> Result<NodeKind, DeltaError> {
        Ok(match kind {
            KIND_FILE => {
                let len = self.file_lens.next()?;
                limit("file length", len, limits::MAX_FILE_LEN)?;
                let number = self.file_digests.next()?;
                NodeKind::File { len, content: self.digest(number)? }
            }
            KIND_DIR => NodeKind::Dir,
            KIND_SYMLINK => {
                let len = self.link_lens.next()?;
                limit("link target length", len, limits::MAX_LINK_LEN as u64)?;
                let target = self.text(len)?.to_vec();
                if target.is_empty() || target.contains(&0) {
                    return Err(invalid(&format!("{path}: its link target is empty or has a NUL")));
                }
                NodeKind::Symlink { target }
            }
            KIND_CHAR | KIND_BLOCK => NodeKind::Device {
                kind: if kind == KIND_CHAR { DeviceKind::Char } else { DeviceKind::Block },
                major: self.devices.next_u32()?,
                minor: self.devices.next_u32()?,
            },
            KIND_FIFO => NodeKind::Fifo,
            KIND_SOCKET => NodeKind::Socket,
            KIND_HARD_LINK => {
                let len = self.link_lens.next()?;
                let leader = parse_path(self.text(len)?)?;
                if leader >= *path {
                    return Err(invalid(&format!(
                        "{path}: it links to {leader}, which does not come before it"
                    )));
                }
                NodeKind::HardLink { leader }
            }
            kind => return Err(invalid(&format!("{path}: node kind {kind} is unknown"))),
        })
    }

    fn xattrs(&mut self, path: &ImagePath) -> Result<Xattrs, DeltaError> {
        let mut xattrs = Xattrs::new();
        let count = self.xattr_counts.next()?;
        self.weight.memory(weight::of_xattrs(count))?;
        let mut names_len = 0;
        for _ in 0..count {
            let (name_len, value_len) = (self.xattr_lens.next()?, self.xattr_lens.next()?);
            limit("attribute length", value_len, limits::MAX_XATTR_LEN as u64)?;
            names_len += name_len + 1;
            limit("length of attribute names", names_len, limits::MAX_XATTR_NAMES_LEN)?;
            let (name, value) = (self.text(name_len)?, self.text(value_len)?);
            self.weight.memory(weight::of_bytes(name.len()) + weight::of_bytes(value.len()))?;
            let good_name = !name.is_empty() && name.len() <= 255 && !name.contains(&0);
            if !good_name || xattrs.insert(name.to_vec(), value.to_vec()).is_some() {
                return Err(invalid(&format!(
                    "{path}: an attribute's name is invalid or there twice"
                )));
            }
        }
        Ok(xattrs)
    }

    fn sources(&mut self, count: usize, changes: &[Change]) -> Result<Vec<Source>, DeltaError> {
        self.weight.memory(weight::of_items::<Source>(count))?;
        let mut sources = Vec::with_capacity(count);
        for _ in 0..count {
            let path = match self.source_changes.next_u32()? {
                ELSEWHERE => self.path()?,
                number => {
                    let change = changes.get(number as usize);
                    let path = &change.ok_or_else(|| invalid("a base file is missing"))?.path;
                    self.weight.memory(weight::of_bytes(path.as_bytes().len()))?;
                    path.clone()
                }
            };
            sources.push(Source { path, inside: self.inside()? });
        }
        Ok(sources)
    }

    fn inside(&mut self) -> Result<Option<Inside>, DeltaError> {
        let (packed, plain_len) = (self.source_packed.next()?, self.source_plain.next()?);
        let packed_len = packed & !(AS_TOKENS | AS_STREAMS);
        let (form, is_known) = match packed - packed_len {
            0 => (Form::Plain, true),
            AS_TOKENS => (Form::Tokens, self.knows(feature::TOKENS) && packed_len > 0),
            AS_STREAMS => (Form::Streams, self.knows(feature::STREAMS) && packed_len > 0),
            _ => (Form::Plain, false),
        };
        limit("gzip file length", packed_len, gzip::MAX_PACKED_LEN)?;
        limit("gzip file's plain length", plain_len, gzip::MAX_PLAIN_LEN)?;
        if !is_known {
            return Err(invalid("tokens of a base file are meant that it cannot have"));
        }
        Ok((packed_len > 0).then_some(Inside { form, packed_len, plain_len }))
    }

    /// The next frame's stream, and how it is compressed.
    fn frame_stream(&mut self) -> Result<(StreamId, Method), DeltaError> {
        let number = self.frame_streams.next_u32()?;
        let is_model = number & u32::from(BY_MODEL) != 0;
        let stream = StreamId::from_number(number & !u32::from(BY_MODEL))
            .ok_or_else(|| invalid("a frame is of an unknown stream"))?;
        if is_model && !(self.knows(feature::MODELS) && stream.is_text()) {
            return Err(invalid("a frame is compressed as it cannot be"));
        }
        Ok((stream, if is_model { Method::Model } else { Method::Zstd }))
    }

    fn frames(&mut self, count: usize, content_len: u64) -> Result<Vec<Frame>, DeltaError> {
        self.weight.memory(weight::of_frames(count))?;
        let mut frames = Vec::with_capacity(count);
        let mut sum = 0_u64;
        for _ in 0..count {
            let digest = self.frame_digests.next().ok_or_else(|| invalid("a frame is missing"))?;
            let (stream, method) = self.frame_stream()?;
            let (len, plain_len) = (self.frame_lens.next_u32()?, self.frame_plain.next_u32()?);
            limit("frame length", u64::from(len), limits::MAX_FRAME_LEN)?;
            limit("frame's plain length", u64::from(plain_len), limits::MAX_FRAME_PLAIN_LEN)?;
            if plain_len == 0 {
                return Err(invalid("a frame is empty"));
            }
            sum += u64::from(len);
            let digest = Digest::from_bytes(*digest);
            frames.push(Frame { digest, stream, method, len, plain_len });
        }
        if sum != content_len {
            return Err(invalid("its frames do not add up to the content's length"));
        }
        Ok(frames)
    }

    fn contents(
        &mut self,
        count: usize,
        changes: &[Change],
        sources: &[Source],
        frames: &[Frame],
    ) -> Result<Contents, DeltaError> {
        let known = known_lens(changes);
        let mut bounds = Bounds {
            sources,
            streams: stream_lens(frames),
            last_source: 0,
            span_ends: [[0; SPANS]; CLASSES],
            recipe_ends: [0; CLASSES],
        };
        self.weight.memory(weight::of_contents(count))?;
        let mut contents = Contents::default();
        for _ in 0..count {
            let number = self.content_digests.next()?;
            let digest = self.digest(number)?;
            let known = known.get(&digest).copied().unwrap_or(0);
            let len = self.content_lens.next()?.wrapping_add(known);
            let content = self.content(len, &mut bounds)?;
            self.weight.content(&content, sources, &bounds.streams)?;
            if contents.insert(digest, content) {
                return Err(invalid("a content is there twice"));
            }
        }
        Ok(contents)
    }

    fn content(&mut self, len: u64, bounds: &mut Bounds<'_>) -> Result<Content, DeltaError> {
        limit("file length", len, limits::MAX_FILE_LEN)?;
        let flags = self.content_flags.next()? as u8;
        if flags & !(SPARSE | DELTA | PACKED | TOKENS | STREAMS) != 0 {
            return Err(invalid("a content has unknown flags"));
        }
        let class = Class::from_number(self.content_classes.next()? as u8)
            .ok_or_else(|| invalid("a content is of an unknown class"))?;
        let packing = match flags & (PACKED | TOKENS | STREAMS) {
            0 => Packing::None,
            PACKED => Packing::Recipe(self.recipe(class, bounds)?),
            TOKENS if self.knows(feature::TOKENS) => Packing::Tokens,
            STREAMS if self.knows(feature::STREAMS) => Packing::Streams,
            _ => return Err(invalid("a content has flags that exclude each other")),
        };
        let body = if flags & DELTA != 0 {
            let is_packed = packing != Packing::None;
            let plain_len = if is_packed { self.plain_lens.next()? } else { len };
            Body::Delta(self.delta(plain_len, class, bounds)?)
        } else {
            Body::Segments(self.segments(bounds)?)
        };
        let content = Content { len, sparse: flags & SPARSE != 0, class, packing, body };
        if packing != Packing::None {
            limit("gzip file's plain length", content.plain_len(), gzip::MAX_PLAIN_LEN)?;
            limit("gzip file length", len, gzip::MAX_PACKED_LEN)?;
        } else if content.plain_len() != len {
            return Err(invalid("a content's parts do not add up to its length"));
        }
        Ok(content)
    }

    fn recipe(&mut self, class: Class, bounds: &mut Bounds<'_>) -> Result<Span, DeltaError> {
        let end = bounds.recipe_ends[class as usize];
        let start = end.wrapping_add(self.recipe_skips.next()?);
        let span = Span { start, len: self.recipe_lens.next()? };
        limit("recipe length", span.len, gzip::MAX_RECIPE_LEN)?;
        bounds.recipe_ends[class as usize] =
            bounds.end_of(span, StreamId::new(class, Part::Recipe))?;
        Ok(span)
    }

    fn delta(
        &mut self,
        plain_len: u64,
        class: Class,
        bounds: &mut Bounds<'_>,
    ) -> Result<FileDelta, DeltaError> {
        limit("length of a file that is a delta", plain_len, MAX_DELTA_LEN)?;
        let source = bounds.last_source.wrapping_add(self.delta_sources.next_u32()?);
        if source as usize >= bounds.sources.len() {
            return Err(invalid("a delta's base file is missing"));
        }
        bounds.last_source = source;
        let parts = [Part::Control, Part::Patch, Part::Diff, Part::Extra, Part::Refs];
        let mut spans = [Span::default(); SPANS];
        for (number, part) in parts.into_iter().enumerate() {
            let end = bounds.span_ends[class as usize][number];
            let start = end.wrapping_add(self.span_skips.next()?);
            let span = Span { start, len: self.span_lens.next()? };
            let end = bounds.end_of(span, StreamId::new(class, part))?;
            bounds.span_ends[class as usize][number] = end;
            spans[number] = span;
        }
        let [control, patch, diff, extra, refs] = spans;
        limit("length of a delta's script", control.len, MAX_CONTROL_LEN)?;
        Ok(FileDelta { source, plain_len, control, patch, diff, extra, refs })
    }

    fn segments(&mut self, bounds: &Bounds<'_>) -> Result<Vec<Segment>, DeltaError> {
        let count = self.segment_counts.next()? as usize;
        if count > self.segment_kinds.0.len() {
            return Err(invalid("a content's segments are missing"));
        }
        self.weight.memory(weight::of_items::<Segment>(count))?;
        let mut segments = Vec::with_capacity(count);
        let mut sum = 0_u64;
        for _ in 0..count {
            let segment = self.segment(bounds)?;
            sum = sum
                .checked_add(segment.len())
                .filter(|sum| *sum <= limits::MAX_FILE_LEN)
                .ok_or_else(|| invalid("a content is too long"))?;
            segments.push(segment);
        }
        Ok(segments)
    }

    fn segment(&mut self, bounds: &Bounds<'_>) -> Result<Segment, DeltaError> {
        let (kind, source) = (self.segment_kinds.next()? as u8, self.segment_sources.next_u32()?);
        let (offset, len) = (self.segment_offsets.next()?, self.segment_lens.next()?);
        let outside = || invalid("a segment points outside what there is");
        let end = offset.checked_add(len).ok_or_else(outside)?;
        match kind {
            SEGMENT_BASE
                if bounds.sources.get(source as usize).is_some_and(|s| s.inside.is_none())
                    && end <= limits::MAX_FILE_LEN =>
            {
                Ok(Segment::Base { source, offset, len })
            }
            SEGMENT_LITERAL => {
                let class = u8::try_from(source).ok().and_then(Class::from_number);
                let class = class.ok_or_else(outside)?;
                bounds.end_of(Span { start: offset, len }, StreamId::new(class, Part::Literal))?;
                Ok(Segment::Literal { class, offset, len })
            }
            SEGMENT_ZERO => Ok(Segment::Zero { len }),
            _ => Err(outside()),
        }
    }
}

/// What contents may point at.
struct Bounds<'a> {
    sources: &'a [Source],
    streams: [u64; StreamId::COUNT],
    last_source: u32,
    span_ends: [[u64; SPANS]; CLASSES],
    recipe_ends: [u64; CLASSES],
}

impl Bounds<'_> {
    /// Where `span` ends in `stream`.
    fn end_of(&self, span: Span, stream: StreamId) -> Result<u64, DeltaError> {
        span.start
            .checked_add(span.len)
            .filter(|end| *end <= self.streams[stream.index()])
            .ok_or_else(|| invalid("a content points outside its streams"))
    }
}

fn parse_path(bytes: &[u8]) -> Result<ImagePath, DeltaError> {
    ImagePath::parse(bytes)
        .map_err(|error| invalid(&format!("{:?}: {error}", String::from_utf8_lossy(bytes))))
}

fn invalid(what: &str) -> DeltaError {
    Detail::Manifest { what: what.to_owned() }.into()
}
