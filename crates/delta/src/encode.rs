//! Writing a bundle.

mod large;
mod second;

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::str::FromStr;

use rayon::prelude::*;
use vireo_model::{ChangeSet, Digest, Hasher, Ignore, ImagePath, Timestamp};

use crate::chunk::{Chunker, Cutter};
use crate::consistency;
use crate::error::{DeltaError, Detail, io_step};
use crate::file::{Delta, Search};
use crate::format::{HEADER_LEN, Header, feature, limit, limits};
use crate::frames::{Class, Method, Part, StreamId};
use crate::indexed::{Indexed, MAX_CHUNKS};
use crate::manifest::{
    self, Body, Content, Contents, FileDelta, Inside, Manifest, Packed, Packing, Segment, Source,
    new_content,
};
use crate::model;
use crate::pair::{self, Encoded, EncodedBody, Pair, Side, Unpacked};
use crate::spool::{FRAME_PLAIN_LEN, Spool};
use crate::{Permits, SecretKey, read_map};

pub(crate) use large::Part as FilePart;

/// Memory that pairs may take that are encoded side by side, in bytes. Not a matter of the machine, so
/// that the output is the same everywhere.
const BATCH_LEN: u64 = 256 << 20;

/// Literals not further back than this are in frames that readers still have, in bytes.
const NEAR_LEN: u64 = 4 << 20;

/// Most bytes that readers are made to decompress again; the limit leaves as much for all else.
const MAX_JUMPED_LEN: u64 = limits::MAX_UNPACKED_LEN / 2;

/// How hard a writer tries to make the bundle small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// For changes that travel once, over a fast network.
    Fast,
    /// For everyday use.
    #[default]
    Default,
    /// For changes that travel to many machines.
    Max,
}

impl Effort {
    /// zstd's level.
    pub(crate) fn level(self) -> i32 {
        match self {
            Self::Fast => 3,
            Self::Default => 19,
            Self::Max => 22,
        }
    }

    /// Whether saving `saved` bytes of a gzip file of `len` is worth that everybody who applies the bundle
    /// has to search again for what its compressor found. That takes a quarter of a second for a
    /// megabyte of file, so that a quarter of the file has to be saved for bytes to cost more than a
    /// microsecond each.
    pub(crate) fn repacking_pays(self, saved: usize, len: usize) -> bool {
        match self {
            Self::Fast => false,
            Self::Default => saved > len / 4,
            Self::Max => saved > len / 64,
        }
    }

    /// How places of the base are looked for.
    pub(crate) fn search(self, class: Class) -> Search {
        match (self, class) {
            (Self::Fast, Class::Program) => Search { depth: 0, step: 8, stride: 2, good_run: 12 },
            (Self::Fast, _) => Search { depth: 0, step: 4, stride: 1, good_run: 16 },
            (Self::Default, _) => Search { depth: 32, step: 1, stride: 1, good_run: 24 },
            (Self::Max, _) => Search { depth: 256, step: 1, stride: 1, good_run: 24 },
        }
    }
}

/// A text that names no [`Effort`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no effort; they are fast, default and max")]
pub struct EffortError {
    text: String,
}

impl FromStr for Effort {
    type Err = EffortError;

    fn from_str(text: &str) -> Result<Self, EffortError> {
        match text {
            "fast" => Ok(Self::Fast),
            "default" => Ok(Self::Default),
            "max" => Ok(Self::Max),
            _ => Err(EffortError { text: text.to_owned() }),
        }
    }
}

/// Collects contents, then writes them with their change set as one signed bundle.
///
/// New bytes are compressed and go to the spool `S` (a temporary file, or memory) as they come:
/// the writer's own memory is a frame of each stream, what encoding a few pairs takes, and about 100
/// bytes per chunk of the base and per new one, of both no more than 200 MB, whatever the files' sizes.
/// The order of the calls is the order on the wire, and readers that go through the files in the same
/// order decode each frame once.
#[derive(Debug)]
pub struct BundleWriter<S> {
    spool: Spool<S>,
    effort: Effort,
    contents: Contents,
    sources: Vec<Source>,
    source_numbers: HashMap<(ImagePath, Option<Inside>), u32>,
    dir_times: Vec<(ImagePath, Timestamp)>,
    read_map: Option<Packed>,
    indexed: Indexed,
    /// Where the frames have a chunk.
    literal_chunks: HashMap<Digest, Segment>,
    /// Bytes of the base that were read for second chances.
    sought_len: u64,
    /// Bytes that readers decompress again because of what was found there.
    jumped_len: u64,
}

/// What the signer states about a bundle.
#[derive(Clone, Copy, Debug)]
pub struct Statement<'a> {
    /// What changes, with the digests of both trees.
    pub changes: &'a ChangeSet,
    /// The paths that belong to no version.
    pub ignore: &'a Ignore,
    /// What the bundle may do that would be dangerous if it came unintended.
    pub permits: Permits,
    /// Number of paths in the base tree.
    pub base_paths: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// The bundle's name, as [`Bundle::digest`](crate::Bundle::digest).
    pub digest: Digest,
    /// Length of the whole bundle in bytes: what travels.
    pub wire_len: u64,
    /// Length of header and manifest.
    pub head_len: u64,
    /// Bytes found nowhere in the base, with what says how to put all together, before compression.
    pub literal_len: u64,
}

impl<S: Read + Write + Seek> BundleWriter<S> {
    /// A writer that has seen nothing; `spool` is empty and at its start.
    pub fn new(spool: S) -> Self {
        let effort = Effort::default();
        Self {
            spool: Spool::new(spool, effort.level()),
            effort,
            contents: Contents::default(),
            sources: Vec::new(),
            source_numbers: HashMap::new(),
            dir_times: Vec::new(),
            read_map: None,
            indexed: Indexed::default(),
            literal_chunks: HashMap::new(),
            sought_len: 0,
            jumped_len: 0,
        }
    }

    /// The same with another effort than the default.
    #[must_use]
    pub fn with_effort(mut self, effort: Effort) -> Self {
        self.effort = effort;
        self.spool.set_level(effort.level());
        self
    }

    /// Makes the chunks of the base's file `path` available to later [`encode`](Self::encode)s.
    ///
    /// # Errors
    ///
    /// As `content`'s reads.
    pub fn index_base(&mut self, path: &ImagePath, content: impl Read) -> Result<(), DeltaError> {
        let source = self.source(path, None)?;
        self.indexed.add(source, path, content)
    }

    /// Gives the directory `path` this time of modification in the target. It is no part of a
    /// version, but tools that copy by time like images to agree in it.
    pub fn set_dir_time(&mut self, path: ImagePath, time: Timestamp) {
        self.dir_times.push((path, time));
    }

    /// Gives the bundle this read map, text that this crate does not look into.
    ///
    /// # Errors
    ///
    /// `Limit` if it is empty or longer than
    /// [`MAX_READ_MAP_LEN`](crate::limits::MAX_READ_MAP_LEN).
    pub fn set_read_map(&mut self, map: &[u8]) -> Result<(), DeltaError> {
        self.read_map = Some(read_map::pack(map)?);
        Ok(())
    }

    /// Whether there is an encoding of this content already.
    #[must_use]
    pub fn has(&self, digest: Digest) -> bool {
        self.contents.get(&digest).is_some()
    }

    /// Says that the content `digest` is the whole of the base's file `path`: nothing travels. A
    /// content that is known already stays as it is.
    ///
    /// # Errors
    ///
    /// `Limit` if there are too many files.
    pub fn reuse(
        &mut self,
        digest: Digest,
        len: u64,
        sparse: bool,
        path: &ImagePath,
    ) -> Result<(), DeltaError> {
        if self.has(digest) {
            return Ok(());
        }
        let source = self.source(path, None)?;
        let segments =
            if len == 0 { Vec::new() } else { vec![Segment::Base { source, offset: 0, len }] };
        let body = Body::Segments(segments);
        let (class, packing) = (Class::Other, Packing::None);
        let content = Content { len, sparse, class, packing, body };
        self.contents.insert(digest, content);
        Ok(())
    }

    /// Encodes a content as chunks: what the base or an earlier content has is pointed at, the rest
    /// is compressed into the spool. `sparse` says that the file has holes where it stands. For files
    /// of any size; [`encode_pairs`](Self::encode_pairs) makes less of those it fits, and
    /// [`encode_large`](Self::encode_large) less work of those whose ancestor is known.
    ///
    /// A content that was encoded or [`reuse`](Self::reuse)d before is not read again.
    ///
    /// # Errors
    ///
    /// As `content`'s reads and the spool's writes; `Io` if `content` does not yield `len` bytes
    /// of digest `digest`: the file is being changed while it is read.
    pub fn encode(
        &mut self,
        digest: Digest,
        len: u64,
        sparse: bool,
        content: impl Read,
    ) -> Result<(), DeltaError> {
        if self.has(digest) {
            return Ok(());
        }
        let (class, segments) = self.segments(digest, content, true)?;
        let body = Body::Segments(segments);
        self.contents.insert(digest, Content { len, sparse, class, packing: Packing::None, body });
        Ok(())
    }

    /// Encodes a content without reference to the base's files: it can be decoded whatever has
    /// become of them. Takes the place of another encoding of the same content; what that one has
    /// in the frames stays there, so whole contents should come first.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_whole(
        &mut self,
        digest: Digest,
        len: u64,
        content: impl Read,
    ) -> Result<(), DeltaError> {
        if self.contents.get(&digest).is_some_and(Content::is_self_contained) {
            return Ok(());
        }
        let (class, segments) = self.segments(digest, content, false)?;
        let body = Body::Segments(segments);
        let (sparse, packing) = (false, Packing::None);
        self.contents.insert(digest, Content { len, sparse, class, packing, body });
        Ok(())
    }

    /// Encodes files of the target as deltas against their ancestors in the base, several side by
    /// side; what `read` hands over is held in memory. One that has no ancestor gets the file that has most
    /// of its chunks, of those that were [indexed](Self::index_base). Files that do not [fit](Pair::fits) or
    /// whose ancestor is of no use are encoded as [`encode`](Self::encode) does.
    ///
    /// # Errors
    ///
    /// As `read` and the spool's writes; `Io` if a target's file has another digest than it should:
    /// it is being changed while it is read.
    pub fn encode_pairs(
        &mut self,
        pairs: &[Pair],
        read: impl Fn(&Pair, Side) -> io::Result<Vec<u8>> + Sync,
    ) -> Result<(), DeltaError> {
        self.encode_pairs_among(pairs, read, |_| Vec::new())
    }

    /// The same; a file of which its ancestor has next to nothing gets a second chance. `likely` names other
    /// files of the base that it may be made of, with their lengths, the most likely first. They are
    /// [indexed](Self::index_base), as many as what is at stake is worth.
    ///
    /// # Errors
    ///
    /// As [`encode_pairs`](Self::encode_pairs).
    pub fn encode_pairs_among(
        &mut self,
        pairs: &[Pair],
        read: impl Fn(&Pair, Side) -> io::Result<Vec<u8>> + Sync,
        likely: impl Fn(&Pair) -> Vec<(ImagePath, u64)>,
    ) -> Result<(), DeltaError> {
        let (effort, failed) = (self.effort, io_step("read a file that changed"));
        for batch in batches(pairs) {
            let indexed = &self.indexed;
            let one = |pair: &Pair| {
                let target = read(pair, Side::Target).map_err(&failed)?;
                let pair = with_ancestor(pair, indexed, &target);
                let base = match &pair.ancestor {
                    Some(_) => Some(read(&pair, Side::Base).map_err(&failed)?),
                    None => None,
                };
                let encoded = pair::encode(&pair, base, target, effort)?;
                Ok((pair, encoded))
            };
            let todo: Vec<&Pair> = batch.iter().filter(|pair| !self.has(pair.digest)).collect();
            let encoded: Vec<Result<(Pair, Encoded), DeltaError>> =
                todo.into_par_iter().map(one).collect();
            let mut encoded = encoded.into_iter().collect::<Result<Vec<_>, _>>()?;
            self.second_chance(&mut encoded, &read, &likely)?;
            for (pair, encoded) in encoded {
                self.add(&pair, encoded)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, pair: &Pair, encoded: Encoded) -> Result<(), DeltaError> {
        if self.has(pair.digest) {
            return Ok(());
        }
        let Encoded { class, unpacked, body } = encoded;
        let packing = match unpacked {
            Unpacked::Not => Packing::None,
            Unpacked::Tokens => Packing::Tokens,
            Unpacked::Streams => Packing::Streams,
            Unpacked::Plain { recipe } => {
                Packing::Recipe(self.spool.add(StreamId::new(class, Part::Recipe), &recipe)?)
            }
        };
        let body = match (body, &pair.ancestor) {
            (EncodedBody::Delta { delta, plain_len, inside }, Some((path, _))) => {
                let source = self.source(path, inside)?;
                Body::Delta(self.delta(class, source, plain_len, &delta)?)
            }
            (EncodedBody::Plain(plain), _) => {
                let is_whole = packing == Packing::None;
                let digest = if is_whole { pair.digest } else { Digest::of(&plain) };
                Body::Segments(self.segments(digest, &plain[..], true)?.1)
            }
            (EncodedBody::Delta { .. }, None) => return Ok(()), // nothing to be a delta against
        };
        let content = Content { len: pair.len, sparse: pair.sparse, class, packing, body };
        self.contents.insert(pair.digest, content);
        Ok(())
    }

    fn delta(
        &mut self,
        class: Class,
        source: u32,
        plain_len: u64,
        delta: &Delta,
    ) -> Result<FileDelta, DeltaError> {
        let mut add = |part, bytes: &[u8]| self.spool.add(StreamId::new(class, part), bytes);
        Ok(FileDelta {
            source,
            plain_len,
            control: add(Part::Control, &delta.control)?,
            patch: add(Part::Patch, &delta.patch)?,
            diff: add(Part::Diff, &delta.diff)?,
            extra: add(Part::Extra, &delta.extra)?,
            refs: add(Part::Refs, &delta.refs)?,
        })
    }

    /// Writes the bundle to `out`, signed by `key`. Every content that the changes need must have
    /// been encoded; contents that they do not need are written too.
    ///
    /// Whether the changes need more permits than the statement gives is not looked at here:
    /// see [`permits_needed`](crate::permits_needed).
    ///
    /// # Errors
    ///
    /// As the spool's reads and `out`'s writes, which is then not a bundle; `Io` if a content is
    /// missing; `Corrupt` if the changes contradict each other or the ignore list; `Limit` if a reader
    /// would refuse it for its size.
    pub fn finish(
        self,
        statement: &Statement<'_>,
        key: &SecretKey,
        mut out: impl Write,
    ) -> Result<Finished, DeltaError> {
        let Statement { changes, ignore, permits, base_paths } = *statement;
        consistency::check(&changes.changes, ignore).map_err(|what| Detail::Manifest { what })?;
        for change in &changes.changes {
            if new_content(change).is_some_and(|digest| !self.has(digest)) {
                return Err(Detail::NotEncoded { path: change.path.clone() }.into());
            }
        }
        let literal_len = self.spool.plain_len();
        let has_tokens = self.contents.have(Packing::Tokens);
        let has_streams = self.contents.have(Packing::Streams);
        let (contents, sources) = without_unused(self.contents, self.sources);
        let (mut spool, frames, content_len) = self.spool.finish()?;
        let has_models = frames.iter().any(|frame| frame.method == Method::Model);
        let mut manifest = manifest::encode(
            &Manifest {
                changes: changes.clone(),
                ignore: ignore.clone(),
                contents,
                sources,
                dir_times: self.dir_times,
                frames,
                permits,
                base_paths,
            },
            self.effort.level(),
        )?;
        let mut incompat = feature::LAYOUT_2 | feature::DICTIONARIES;
        if has_tokens {
            incompat |= feature::TOKENS;
        }
        if has_streams {
            incompat |= feature::STREAMS;
        }
        if has_models {
            incompat |= feature::MODELS;
        }
        let (mut read_map_len, mut read_map_plain_len) = (0, 0);
        if let Some(map) = self.read_map {
            incompat |= feature::READ_MAP;
            (read_map_len, read_map_plain_len) = (map.bytes.len() as u32, map.plain_len as u32);
            manifest.bytes.extend_from_slice(&map.bytes);
            limit("manifest length", manifest.bytes.len() as u64, limits::MAX_MANIFEST_LEN)?;
        }
        let header = Header {
            incompat,
            compat: 0,
            manifest_len: manifest.bytes.len() as u64,
            content_len,
            base: changes.base,
            target: changes.target,
            manifest_digest: Digest::of(&manifest.bytes),
            signer: key.public(),
            manifest_plain_len: manifest.plain_len,
            read_map_len,
            read_map_plain_len,
        };
        // What its readers would refuse is not written.
        limit("manifest's plain length", header.manifest_plain_len, header.most_plain_len())?;
        let archive_len = manifest.bytes.len() - read_map_len as usize;
        manifest::decode(&header, &manifest.bytes[..archive_len])?;
        let bytes = header.encode(|message| key.sign(message));
        let failed = io_step("write the bundle");
        out.write_all(&bytes).map_err(&failed)?;
        out.write_all(&manifest.bytes).map_err(&failed)?;
        spool.seek(SeekFrom::Start(0)).map_err(io_step("read the spool"))?;
        io::copy(&mut spool, &mut out).map_err(&failed)?;
        out.flush().map_err(&failed)?;
        Ok(Finished {
            digest: Digest::of(&bytes),
            wire_len: header.file_len(),
            head_len: HEADER_LEN as u64 + header.manifest_len,
            literal_len,
        })
    }

    /// The number of the base's file `path`, of which what is `inside` may be meant.
    fn source(&mut self, path: &ImagePath, inside: Option<Inside>) -> Result<u32, DeltaError> {
        let key = (path.clone(), inside);
        if let Some(number) = self.source_numbers.get(&key) {
            return Ok(*number);
        }
        let found = self.sources.len() as u64;
        let most = limits::MAX_CHANGES as u64;
        let number = u32::try_from(found).ok().filter(|_| found < most).ok_or(Detail::Limit {
            what: "number of base files",
            found,
            most,
        })?;
        self.sources.push(Source { path: path.clone(), inside });
        self.source_numbers.insert(key, number);
        Ok(number)
    }

    /// Cuts a content into chunks and finds each, in the base too if `may_refer`.
    fn segments(
        &mut self,
        digest: Digest,
        content: impl Read,
        may_refer: bool,
    ) -> Result<(Class, Vec<Segment>), DeltaError> {
        let (mut segments, mut class) = (Vec::new(), None);
        self.cut(digest, content, may_refer, &mut class, &mut segments)?;
        Ok((class.unwrap_or(Class::Text), segments))
    }

    /// The same of a part of a content: `digest` is the part's, `class` the content's, if that is known.
    fn cut(
        &mut self,
        digest: Digest,
        content: impl Read,
        may_refer: bool,
        class: &mut Option<Class>,
        segments: &mut Vec<Segment>,
    ) -> Result<(), DeltaError> {
        let mut hasher = Hasher::new();
        let failed = io_step("read the content to be cut into chunks");
        let mut cutter = Cutter::new(content, Chunker::DEFAULT);
        while let Some((_, chunk)) = cutter.next().map_err(&failed)? {
            hasher.update(chunk);
            let class = *class.get_or_insert_with(|| Class::of(chunk));
            push(segments, self.segment_of(chunk, class, may_refer)?);
        }
        let found = hasher.finish();
        if found != digest {
            return Err(Detail::Changed { expected: digest, found }.into());
        }
        Ok(())
    }

    /// Whether a literal may be used again that readers may have to decompress anew: only so much may be
    /// asked of them, and a copy in the frame at hand costs them nothing.
    fn may_jump_to(&mut self, segment: &Segment) -> bool {
        let Segment::Literal { class, offset, .. } = *segment else { return true };
        let end = self.spool.end(StreamId::new(class, Part::Literal));
        if end - offset < NEAR_LEN {
            return true;
        }
        let is_modelled = self.spool.models() && class == Class::Text && offset < model::MOST_LEN;
        let cost = if is_modelled {
            model::cost(FRAME_PLAIN_LEN as u64)
        } else {
            limits::MAX_FRAME_PLAIN_LEN
        };
        let jumped_len = self.jumped_len + cost;
        if jumped_len > MAX_JUMPED_LEN {
            return false;
        }
        self.jumped_len = jumped_len;
        true
    }

    fn segment_of(
        &mut self,
        chunk: &[u8],
        class: Class,
        may_refer: bool,
    ) -> Result<Segment, DeltaError> {
        let len = chunk.len() as u64;
        if chunk.iter().all(|byte| *byte == 0) {
            return Ok(Segment::Zero { len });
        }
        let digest = Digest::of(chunk);
        if let Some(segment) = self.indexed.get(&digest).filter(|_| may_refer) {
            return Ok(segment);
        }
        let known = self.literal_chunks.get(&digest).copied();
        if let Some(segment) = known.filter(|segment| self.may_jump_to(segment)) {
            return Ok(segment);
        }
        let span = self.spool.add(StreamId::new(class, Part::Literal), chunk)?;
        let segment = Segment::Literal { class, offset: span.start, len };
        if self.literal_chunks.len() < MAX_CHUNKS {
            self.literal_chunks.insert(digest, segment);
        }
        Ok(segment)
    }
}

/// Adds a segment; neighbours become one.
fn push(segments: &mut Vec<Segment>, segment: Segment) {
    if !segments.last_mut().is_some_and(|last| last.absorb(&segment)) {
        segments.push(segment);
    }
}

/// The pair, with the file of the base that is most like `target` if no other is known. Of one that is many times as
/// long, references to its chunks say the same for less.
fn with_ancestor(pair: &Pair, indexed: &Indexed, target: &[u8]) -> Pair {
    let mut pair = pair.clone();
    if pair.ancestor.is_none() && !indexed.is_empty() {
        let most = (target.len() as u64).saturating_mul(second::SOUGHT_TIMES);
        pair.ancestor = indexed.most_alike(target).filter(|(_, len)| *len <= most);
        if !pair.fits() {
            pair.ancestor = None;
        }
    }
    pair
}

/// Leaves out the base's files that no content is made of.
fn without_unused(mut contents: Contents, sources: Vec<Source>) -> (Contents, Vec<Source>) {
    let mut numbers: Vec<Option<u32>> = vec![None; sources.len()];
    let mut used = Vec::new();
    contents.each_source(|number| {
        let at = *number as usize;
        *number = *numbers[at].get_or_insert_with(|| {
            used.push(sources[at].clone());
            used.len() as u32 - 1
        });
    });
    (contents, used)
}

/// Cuts the list where what its pairs take in memory becomes too much.
fn batches(pairs: &[Pair]) -> impl Iterator<Item = &[Pair]> {
    let mut rest = pairs;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |pair: &&Pair| {
            sum += pair.memory_len();
            sum <= BATCH_LEN
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (batch, later) = rest.split_at(count);
        rest = later;
        (!batch.is_empty()).then_some(batch)
    })
}
