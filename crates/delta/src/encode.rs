//! Writing a bundle.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Seek, SeekFrom, Write};

use vireo_model::{ChangeSet, Digest, Hasher, Ignore, ImagePath, Timestamp};

use crate::chunk::{Chunk, Chunker, chunks};
use crate::consistency;
use crate::error::{DeltaError, Detail, io_step};
use crate::format::{HEADER_LEN, Header, feature, limits};
use crate::manifest::{self, Content, Frame, Manifest, Segment, new_content};
use crate::{Permits, SecretKey};

/// zstd's level. On the changed files of a security upgrade (`zstd -b`), level 12 made 4 % less than
/// this at several times the time; what is left to win lies in the delta, not in the level.
const COMPRESSION_LEVEL: i32 = 6;

/// Collects contents, then writes them with their change set as one signed bundle.
///
/// New bytes are compressed and go to the spool `S` (a temporary file, or memory) as they come:
/// the writer's own memory is one frame and about 100 bytes per chunk, whatever the files' sizes.
/// The order of [`encode`](Self::encode) calls is the order on the wire: similar files next to
/// each other compress better.
#[derive(Debug)]
pub struct BundleWriter<S> {
    spool: S,
    pending: Vec<u8>,
    plain_len: u64,
    content_len: u64,
    frames: Vec<Frame>,
    contents: BTreeMap<Digest, Content>,
    sources: Vec<ImagePath>,
    dir_times: Vec<(ImagePath, Timestamp)>,
    source_numbers: HashMap<ImagePath, u32>,
    /// Where the base has a chunk, by the chunk's digest; the first one found.
    base_chunks: HashMap<Digest, Segment>,
    /// Where the frames have a chunk.
    literal_chunks: HashMap<Digest, Segment>,
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
    /// Bytes found nowhere in the base, before compression.
    pub literal_len: u64,
}

impl<S: Read + Write + Seek> BundleWriter<S> {
    /// A writer that has seen nothing; `spool` is empty and at its start.
    pub fn new(spool: S) -> Self {
        Self {
            spool,
            pending: Vec::new(),
            plain_len: 0,
            content_len: 0,
            frames: Vec::new(),
            contents: BTreeMap::new(),
            sources: Vec::new(),
            dir_times: Vec::new(),
            source_numbers: HashMap::new(),
            base_chunks: HashMap::new(),
            literal_chunks: HashMap::new(),
        }
    }

    /// Makes the chunks of the base's file `path` available to later [`encode`](Self::encode)s.
    ///
    /// # Errors
    ///
    /// As `content`'s reads.
    pub fn index_base(&mut self, path: &ImagePath, content: impl Read) -> Result<(), DeltaError> {
        let source = self.source(path)?;
        for chunk in chunks(content, Chunker::DEFAULT) {
            let chunk = chunk?;
            let len = chunk.bytes.len() as u64;
            let segment = Segment::Base { source, offset: chunk.offset, len };
            self.base_chunks.entry(chunk.digest).or_insert(segment);
        }
        Ok(())
    }

    /// Gives the directory `path` this time of modification in the target. It is no part of a
    /// version, but tools that copy by time like images to agree in it.
    pub fn set_dir_time(&mut self, path: ImagePath, time: Timestamp) {
        self.dir_times.push((path, time));
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
        if self.contents.contains_key(&digest) {
            return Ok(());
        }
        let source = self.source(path)?;
        let segments =
            if len == 0 { Vec::new() } else { vec![Segment::Base { source, offset: 0, len }] };
        self.contents.insert(digest, Content { len, sparse, segments });
        Ok(())
    }

    /// Encodes a content: what the base or an earlier content has is pointed at, the rest is
    /// compressed into the spool. `sparse` says that the file has holes where it stands.
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
        if self.contents.contains_key(&digest) {
            return Ok(());
        }
        let mut segments: Vec<Segment> = Vec::new();
        let mut hasher = Hasher::new();
        for chunk in chunks(content, Chunker::DEFAULT) {
            let chunk = chunk?;
            hasher.update(&chunk.bytes);
            let segment = self.segment_of(chunk)?;
            if !segments.last_mut().is_some_and(|last| last.absorb(&segment)) {
                segments.push(segment);
            }
        }
        let found = hasher.finish();
        if found != digest {
            return Err(Detail::Changed { expected: digest, found }.into());
        }
        self.contents.insert(digest, Content { len, sparse, segments });
        Ok(())
    }

    /// Encodes a content without reference to the base's files: it can be decoded whatever has
    /// become of them. Takes the place of another encoding of the same content.
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
        let refers = |content: &Content| {
            content.segments.iter().any(|segment| matches!(segment, Segment::Base { .. }))
        };
        if self.contents.get(&digest).is_some_and(|content| !refers(content)) {
            return Ok(());
        }
        let mut hasher = Hasher::new();
        let mut segments: Vec<Segment> = Vec::new();
        for chunk in chunks(content, Chunker::DEFAULT) {
            let chunk = chunk?;
            hasher.update(&chunk.bytes);
            let segment = match self.literal_chunks.get(&chunk.digest) {
                Some(segment) => *segment,
                None => self.literal(&chunk)?,
            };
            if !segments.last_mut().is_some_and(|last| last.absorb(&segment)) {
                segments.push(segment);
            }
        }
        let found = hasher.finish();
        if found != digest {
            return Err(Detail::Changed { expected: digest, found }.into());
        }
        self.contents.insert(digest, Content { len, sparse: false, segments });
        Ok(())
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
    /// missing; `Corrupt` if the changes contradict each other or the ignore list; `Limit` if the
    /// change set is too large.
    pub fn finish(
        mut self,
        statement: &Statement<'_>,
        key: &SecretKey,
        mut out: impl Write,
    ) -> Result<Finished, DeltaError> {
        let Statement { changes, ignore, permits, base_paths } = *statement;
        consistency::check(&changes.changes, ignore).map_err(|what| Detail::Manifest { what })?;
        self.flush_frame()?;
        for change in &changes.changes {
            if new_content(change).is_some_and(|digest| !self.contents.contains_key(&digest)) {
                return Err(Detail::NotEncoded { path: change.path.clone() }.into());
            }
        }
        let manifest = manifest::encode(&Manifest {
            changes: changes.clone(),
            ignore: ignore.clone(),
            contents: self.contents,
            sources: self.sources,
            dir_times: self.dir_times,
            frames: self.frames,
            permits,
            base_paths,
        })?;
        let header = Header {
            incompat: feature::LAYOUT_1,
            compat: 0,
            manifest_len: manifest.len() as u64,
            content_len: self.content_len,
            base: changes.base,
            target: changes.target,
            manifest_digest: Digest::of(&manifest),
            signer: key.public(),
        };
        let bytes = header.encode(|message| key.sign(message));
        let failed = io_step("write the bundle");
        out.write_all(&bytes).map_err(&failed)?;
        out.write_all(&manifest).map_err(&failed)?;
        self.spool.seek(SeekFrom::Start(0)).map_err(io_step("read the spool"))?;
        io::copy(&mut self.spool, &mut out).map_err(&failed)?;
        out.flush().map_err(&failed)?;
        Ok(Finished {
            digest: Digest::of(&bytes),
            wire_len: header.file_len(),
            head_len: HEADER_LEN as u64 + header.manifest_len,
            literal_len: self.plain_len,
        })
    }

    fn source(&mut self, path: &ImagePath) -> Result<u32, DeltaError> {
        if let Some(number) = self.source_numbers.get(path) {
            return Ok(*number);
        }
        let found = self.sources.len() as u64;
        let most = limits::MAX_CHANGES as u64;
        let number = u32::try_from(found).ok().filter(|_| found < most).ok_or(Detail::Limit {
            what: "number of base files",
            found,
            most,
        })?;
        self.sources.push(path.clone());
        self.source_numbers.insert(path.clone(), number);
        Ok(number)
    }

    fn segment_of(&mut self, chunk: Chunk) -> Result<Segment, DeltaError> {
        let len = chunk.bytes.len() as u64;
        if chunk.bytes.iter().all(|byte| *byte == 0) {
            return Ok(Segment::Zero { len });
        }
        let known = self.base_chunks.get(&chunk.digest).or(self.literal_chunks.get(&chunk.digest));
        if let Some(segment) = known {
            return Ok(*segment);
        }
        self.literal(&chunk)
    }

    fn literal(&mut self, chunk: &Chunk) -> Result<Segment, DeltaError> {
        let len = chunk.bytes.len() as u64;
        let segment = Segment::Literal { offset: self.plain_len, len };
        self.add_literal(&chunk.bytes)?;
        self.literal_chunks.insert(chunk.digest, segment);
        Ok(segment)
    }

    fn add_literal(&mut self, mut bytes: &[u8]) -> Result<(), DeltaError> {
        self.plain_len += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = limits::MAX_FRAME_PLAIN_LEN as usize - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == limits::MAX_FRAME_PLAIN_LEN as usize {
                self.flush_frame()?;
            }
        }
        Ok(())
    }

    fn flush_frame(&mut self) -> Result<(), DeltaError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let packed = zstd::bulk::compress(&self.pending, COMPRESSION_LEVEL)
            .map_err(io_step("compress a frame"))?;
        self.spool.write_all(&packed).map_err(io_step("write to the spool"))?;
        // Both fit: a frame is at most 4 MiB plain, and zstd adds less than 1 % to what it cannot
        // compress.
        let (len, plain_len) = (packed.len() as u32, self.pending.len() as u32);
        self.frames.push(Frame { digest: Digest::of(&packed), len, plain_len });
        self.content_len += packed.len() as u64;
        self.pending.clear();
        Ok(())
    }
}
