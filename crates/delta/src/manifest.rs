//! The manifest: what rkyv sees, and the fence around it.
//!
//! The archive holds flat vectors of fixed records and one pool of bytes, nothing else: no
//! `Rc`, no maps, no enums. It is read only after its digest was compared with the signed
//! header's, then validated by rkyv's own checks, then turned into checked owned values. The
//! record sizes are asserted at compile time, because a feature that another crate of the same
//! program turns on (`rkyv/unaligned`) would change the bytes.

use std::collections::BTreeMap;

use rkyv::rancor::Error as RancorError;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};
use vireo_model::{
    Change, ChangeSet, DeviceKind, Digest, Ignore, ImagePath, MAX_PATTERNS, Node, NodeKind,
    Timestamp, Xattrs,
};

use crate::Permits;
use crate::consistency;
use crate::error::{DeltaError, Detail};
use crate::format::{Header, limit, limits};

/// No node, no content.
const NONE: u32 = u32::MAX;

const SPARSE: u32 = 1;

const SEGMENT_BASE: u32 = 0;
const SEGMENT_LITERAL: u32 = 1;
const SEGMENT_ZERO: u32 = 2;

const KIND_FILE: u32 = 1;
const KIND_DIR: u32 = 2;
const KIND_SYMLINK: u32 = 3;
const KIND_CHAR: u32 = 4;
const KIND_BLOCK: u32 = 5;
const KIND_FIFO: u32 = 6;
const KIND_SOCKET: u32 = 7;
const KIND_HARD_LINK: u32 = 8;

/// A manifest, checked: every index is in range and every sum fits.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) changes: ChangeSet,
    pub(crate) ignore: Ignore,
    /// Contents by digest; files with the same content share one.
    pub(crate) contents: BTreeMap<Digest, Content>,
    /// Files of the base that segments copy from.
    pub(crate) sources: Vec<ImagePath>,
    /// The content section, in order. All but the last hold exactly
    /// [`limits::MAX_FRAME_PLAIN_LEN`] bytes before compression.
    pub(crate) frames: Vec<Frame>,
    /// Times of directories in the target; no part of its digest.
    pub(crate) dir_times: Vec<(ImagePath, Timestamp)>,
    /// What the signer allows.
    pub(crate) permits: Permits,
    /// Number of paths in the base.
    pub(crate) base_paths: u64,
}

/// How one file content is put together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) len: u64,
    pub(crate) sparse: bool,
    pub(crate) segments: Vec<Segment>,
}

/// A run of bytes of a file content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// From a file of the base.
    Base { source: u32, offset: u64, len: u64 },
    /// From the frames, by offset in their bytes before compression.
    Literal { offset: u64, len: u64 },
    /// Zeros.
    Zero { len: u64 },
}

impl Segment {
    pub(crate) fn len(&self) -> u64 {
        match *self {
            Self::Base { len, .. } | Self::Literal { len, .. } | Self::Zero { len } => len,
        }
    }

    /// Makes `self` longer by `next` if they are neighbours.
    pub(crate) fn absorb(&mut self, next: &Self) -> bool {
        match (self, *next) {
            (Self::Base { source, offset, len }, Self::Base { source: s, offset: o, len: l })
                if *source == s && *offset + *len == o =>
            {
                *len += l;
            }
            (Self::Literal { offset, len }, Self::Literal { offset: o, len: l })
                if *offset + *len == o =>
            {
                *len += l;
            }
            (Self::Zero { len }, Self::Zero { len: l }) => *len += l,
            _ => return false,
        }
        true
    }
}

/// One zstd frame of the content section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) digest: Digest,
    pub(crate) len: u32,
    pub(crate) plain_len: u32,
}

#[derive(Archive, Serialize, Default)]
struct Records {
    pool: Vec<u8>,
    ignore: Vec<SpanRecord>,
    changes: Vec<ChangeRecord>,
    nodes: Vec<NodeRecord>,
    xattrs: Vec<XattrRecord>,
    contents: Vec<ContentRecord>,
    segments: Vec<SegmentRecord>,
    sources: Vec<SpanRecord>,
    frames: Vec<FrameRecord>,
    dir_times: Vec<DirTimeRecord>,
    base_paths: u64,
    permits: u32,
    zero: u32,
}

/// Bytes in the pool.
#[derive(Archive, Serialize, Clone, Copy, Default)]
struct SpanRecord {
    offset: u32,
    len: u32,
}

#[derive(Archive, Serialize)]
struct ChangeRecord {
    path: SpanRecord,
    before: u32,
    after: u32,
}

#[derive(Archive, Serialize, Default)]
struct NodeRecord {
    len: u64,
    mtime_secs: i64,
    mtime_nanos: u32,
    kind: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    major: u32,
    minor: u32,
    first_xattr: u32,
    xattr_count: u32,
    link: SpanRecord,
    zero: u32,
    digest: [u8; 32],
}

#[derive(Archive, Serialize)]
struct XattrRecord {
    name: SpanRecord,
    value: SpanRecord,
}

#[derive(Archive, Serialize)]
struct ContentRecord {
    digest: [u8; 32],
    len: u64,
    first_segment: u32,
    segment_count: u32,
    flags: u32,
    zero: u32,
}

#[derive(Archive, Serialize)]
struct SegmentRecord {
    offset: u64,
    len: u64,
    kind: u32,
    source: u32,
}

#[derive(Archive, Serialize)]
struct DirTimeRecord {
    path: SpanRecord,
    secs: i64,
    nanos: u32,
    zero: u32,
}

#[derive(Archive, Serialize)]
struct FrameRecord {
    digest: [u8; 32],
    len: u32,
    plain_len: u32,
}

const _: () = assert!(size_of::<ArchivedRecords>() == 10 * 8 + 16);
const _: () = assert!(size_of::<ArchivedSpanRecord>() == 8);
const _: () = assert!(size_of::<ArchivedChangeRecord>() == 16);
const _: () = assert!(size_of::<ArchivedNodeRecord>() == 96);
const _: () = assert!(size_of::<ArchivedXattrRecord>() == 16);
const _: () = assert!(size_of::<ArchivedContentRecord>() == 56);
const _: () = assert!(size_of::<ArchivedSegmentRecord>() == 24);
const _: () = assert!(size_of::<ArchivedFrameRecord>() == 40);
const _: () = assert!(size_of::<ArchivedDirTimeRecord>() == 24);
const _: () = assert!(align_of::<ArchivedNodeRecord>() == 8);

// ---------------------------------------------------------------------------------------------
// Writing

/// The manifest's bytes.
pub(crate) fn encode(manifest: &Manifest) -> Result<Vec<u8>, DeltaError> {
    let mut writer = RecordWriter::default();
    for pattern in manifest.ignore.patterns() {
        let span = writer.pool(pattern.as_bytes())?;
        writer.records.ignore.push(span);
    }
    for change in &manifest.changes.changes {
        let path = writer.pool(change.path.as_bytes())?;
        let before = writer.node(change.before.as_ref())?;
        let after = writer.node(change.after.as_ref())?;
        writer.records.changes.push(ChangeRecord { path, before, after });
    }
    for (digest, content) in &manifest.contents {
        writer.content(*digest, content)?;
    }
    for source in &manifest.sources {
        let span = writer.pool(source.as_bytes())?;
        writer.records.sources.push(span);
    }
    for frame in &manifest.frames {
        let Frame { digest, len, plain_len } = *frame;
        writer.records.frames.push(FrameRecord { digest: *digest.as_bytes(), len, plain_len });
    }
    for (path, Timestamp { secs, nanos }) in &manifest.dir_times {
        let (path, secs, nanos) = (writer.pool(path.as_bytes())?, *secs, *nanos);
        writer.records.dir_times.push(DirTimeRecord { path, secs, nanos, zero: 0 });
    }
    writer.records.base_paths = manifest.base_paths;
    writer.records.permits = manifest.permits.bits();
    let bytes = rkyv::to_bytes::<RancorError>(&writer.records)
        .map_err(|error| Detail::Manifest { what: error.to_string() })?;
    limit("manifest length", bytes.len() as u64, limits::MAX_MANIFEST_LEN)?;
    Ok(bytes.into_vec())
}

#[derive(Default)]
struct RecordWriter {
    records: Records,
}

impl RecordWriter {
    fn pool(&mut self, bytes: &[u8]) -> Result<SpanRecord, DeltaError> {
        let offset = index(self.records.pool.len())?;
        let len = index(bytes.len())?;
        self.records.pool.extend_from_slice(bytes);
        Ok(SpanRecord { offset, len })
    }

    fn node(&mut self, node: Option<&Node>) -> Result<u32, DeltaError> {
        let Some(node) = node else {
            return Ok(NONE);
        };
        let mut record = NodeRecord {
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime_secs: node.mtime.secs,
            mtime_nanos: node.mtime.nanos,
            first_xattr: index(self.records.xattrs.len())?,
            xattr_count: index(node.xattrs.len())?,
            ..NodeRecord::default()
        };
        match &node.kind {
            NodeKind::File { len, content } => {
                record.kind = KIND_FILE;
                record.len = *len;
                record.digest = *content.as_bytes();
            }
            NodeKind::Dir => record.kind = KIND_DIR,
            NodeKind::Symlink { target } => {
                record.kind = KIND_SYMLINK;
                record.link = self.pool(target)?;
            }
            NodeKind::Device { kind, major, minor } => {
                record.kind = if *kind == DeviceKind::Char { KIND_CHAR } else { KIND_BLOCK };
                (record.major, record.minor) = (*major, *minor);
            }
            NodeKind::Fifo => record.kind = KIND_FIFO,
            NodeKind::Socket => record.kind = KIND_SOCKET,
            NodeKind::HardLink { leader } => {
                record.kind = KIND_HARD_LINK;
                record.link = self.pool(leader.as_bytes())?;
            }
        }
        for (name, value) in &node.xattrs {
            let xattr = XattrRecord { name: self.pool(name)?, value: self.pool(value)? };
            self.records.xattrs.push(xattr);
        }
        self.records.nodes.push(record);
        index(self.records.nodes.len() - 1)
    }

    fn content(&mut self, digest: Digest, content: &Content) -> Result<(), DeltaError> {
        self.records.contents.push(ContentRecord {
            digest: *digest.as_bytes(),
            len: content.len,
            first_segment: index(self.records.segments.len())?,
            segment_count: index(content.segments.len())?,
            flags: if content.sparse { SPARSE } else { 0 },
            zero: 0,
        });
        self.records.segments.extend(content.segments.iter().map(|segment| match *segment {
            Segment::Base { source, offset, len } => {
                SegmentRecord { offset, len, kind: SEGMENT_BASE, source }
            }
            Segment::Literal { offset, len } => {
                SegmentRecord { offset, len, kind: SEGMENT_LITERAL, source: NONE }
            }
            Segment::Zero { len } => {
                SegmentRecord { offset: 0, len, kind: SEGMENT_ZERO, source: NONE }
            }
        }));
        Ok(())
    }
}

fn index(value: usize) -> Result<u32, DeltaError> {
    let most = u64::from(NONE) - 1;
    limit("manifest index", value as u64, most)?;
    u32::try_from(value)
        .map_err(|_| Detail::Limit { what: "manifest index", found: value as u64, most }.into())
}

// ---------------------------------------------------------------------------------------------
// Reading

/// Reads and checks the manifest of the bundle with this `header`, whose digest `bytes` have.
pub(crate) fn decode(header: &Header, bytes: &[u8]) -> Result<Manifest, DeltaError> {
    if !bytes.as_ptr().addr().is_multiple_of(16) {
        let mut aligned = AlignedVec::<16>::new();
        aligned.extend_from_slice(bytes);
        return decode_aligned(header, &aligned);
    }
    decode_aligned(header, bytes)
}

fn decode_aligned(header: &Header, bytes: &[u8]) -> Result<Manifest, DeltaError> {
    let records = rkyv::access::<ArchivedRecords, RancorError>(bytes)
        .map_err(|_| invalid("its structure is damaged"))?;
    limit("number of changes", records.changes.len() as u64, limits::MAX_CHANGES as u64)?;
    limit("number of segments", records.segments.len() as u64, limits::MAX_SEGMENTS as u64)?;
    limit("number of directory times", records.dir_times.len() as u64, limits::MAX_CHANGES as u64)?;
    limit("number of ignore patterns", records.ignore.len() as u64, MAX_PATTERNS as u64)?;
    let reader = RecordReader { records };
    let frames = reader.frames(header.content_len)?;
    let plain_len = frames.iter().map(|frame| u64::from(frame.plain_len)).sum();
    let sources =
        records.sources.iter().map(|span| reader.path(span)).collect::<Result<Vec<_>, _>>()?;
    let contents = reader.contents(plain_len)?;
    let changes =
        ChangeSet { base: header.base, target: header.target, changes: reader.changes()? };
    for change in &changes.changes {
        if let Some(digest) = new_content(change)
            && !contents.contains_key(&digest)
        {
            return Err(invalid(&format!("{} has no content", change.path)));
        }
    }
    let ignore = reader.ignore()?;
    consistency::check(&changes.changes, &ignore).map_err(|what| invalid(&what))?;
    Ok(Manifest {
        changes,
        ignore,
        contents,
        sources,
        frames,
        dir_times: reader.dir_times()?,
        permits: reader.permits()?,
        base_paths: records.base_paths.to_native(),
    })
}

/// The content that must travel for this change: the target's, unless the base has the same at
/// that path.
pub(crate) fn new_content(change: &Change) -> Option<Digest> {
    let (_, digest) = change.after.as_ref()?.content()?;
    let before = change.before.as_ref().and_then(Node::content);
    (before.map(|(_, digest)| digest) != Some(digest)).then_some(digest)
}

struct RecordReader<'a> {
    records: &'a ArchivedRecords,
}

impl<'a> RecordReader<'a> {
    fn bytes(&self, span: &ArchivedSpanRecord) -> Result<&'a [u8], DeltaError> {
        let start = span.offset.to_native() as usize;
        let end = start.checked_add(span.len.to_native() as usize);
        end.and_then(|end| self.records.pool.get(start..end))
            .ok_or_else(|| invalid("a text lies outside its pool"))
    }

    fn path(&self, span: &ArchivedSpanRecord) -> Result<ImagePath, DeltaError> {
        let bytes = self.bytes(span)?;
        ImagePath::parse(bytes)
            .map_err(|error| invalid(&format!("{:?}: {error}", String::from_utf8_lossy(bytes))))
    }

    fn ignore(&self) -> Result<Ignore, DeltaError> {
        let mut patterns = Vec::new();
        for span in self.records.ignore.iter() {
            let text = std::str::from_utf8(self.bytes(span)?);
            patterns.push(text.map_err(|_| invalid("an ignore pattern is not UTF-8"))?);
        }
        Ignore::new(patterns).map_err(|error| invalid(&error.to_string()))
    }

    fn permits(&self) -> Result<Permits, DeltaError> {
        Permits::from_bits(self.records.permits.to_native())
            .ok_or_else(|| invalid("it permits what this version of Vireo does not know"))
    }

    fn dir_times(&self) -> Result<Vec<(ImagePath, Timestamp)>, DeltaError> {
        let read = |record: &ArchivedDirTimeRecord| {
            let nanos = record.nanos.to_native();
            if nanos >= 1_000_000_000 {
                return Err(invalid("a directory's time is out of range"));
            }
            Ok((self.path(&record.path)?, Timestamp { secs: record.secs.to_native(), nanos }))
        };
        self.records.dir_times.iter().map(read).collect()
    }

    fn changes(&self) -> Result<Vec<Change>, DeltaError> {
        let mut changes: Vec<Change> = Vec::new();
        for record in self.records.changes.iter() {
            let path = self.path(&record.path)?;
            let before = self.node(&path, record.before.to_native())?;
            let after = self.node(&path, record.after.to_native())?;
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

    fn node(&self, path: &ImagePath, index: u32) -> Result<Option<Node>, DeltaError> {
        if index == NONE {
            return Ok(None);
        }
        let bad = |what: &str| invalid(&format!("{path}: {what}"));
        let record =
            self.records.nodes.get(index as usize).ok_or_else(|| bad("its node is missing"))?;
        let mode = record.mode.to_native();
        let nanos = record.mtime_nanos.to_native();
        if mode > 0o7777 || nanos >= 1_000_000_000 {
            return Err(bad("its mode or time is out of range"));
        }
        Ok(Some(Node {
            kind: self.kind(path, record)?,
            mode,
            uid: record.uid.to_native(),
            gid: record.gid.to_native(),
            mtime: Timestamp { secs: record.mtime_secs.to_native(), nanos },
            xattrs: self.xattrs(path, record)?,
        }))
    }

    fn kind(&self, path: &ImagePath, record: &ArchivedNodeRecord) -> Result<NodeKind, DeltaError> {
        let device = |kind| NodeKind::Device {
            kind,
            major: record.major.to_native(),
            minor: record.minor.to_native(),
        };
        Ok(match record.kind.to_native() {
            KIND_FILE => {
                let len = record.len.to_native();
                limit("file length", len, limits::MAX_FILE_LEN)?;
                NodeKind::File { len, content: Digest::from_bytes(record.digest) }
            }
            KIND_DIR => NodeKind::Dir,
            KIND_SYMLINK => {
                let target = self.bytes(&record.link)?.to_vec();
                limit("link target length", target.len() as u64, limits::MAX_LINK_LEN as u64)?;
                if target.is_empty() || target.contains(&0) {
                    return Err(invalid(&format!("{path}: its link target is empty or has a NUL")));
                }
                NodeKind::Symlink { target }
            }
            KIND_CHAR => device(DeviceKind::Char),
            KIND_BLOCK => device(DeviceKind::Block),
            KIND_FIFO => NodeKind::Fifo,
            KIND_SOCKET => NodeKind::Socket,
            KIND_HARD_LINK => {
                let leader = self.path(&record.link)?;
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

    fn xattrs(&self, path: &ImagePath, record: &ArchivedNodeRecord) -> Result<Xattrs, DeltaError> {
        let first = record.first_xattr.to_native() as usize;
        let end = first.checked_add(record.xattr_count.to_native() as usize);
        let records = end
            .and_then(|end| self.records.xattrs.get(first..end))
            .ok_or_else(|| invalid(&format!("{path}: its attributes are missing")))?;
        let mut xattrs = Xattrs::new();
        for record in records {
            let (name, value) = (self.bytes(&record.name)?, self.bytes(&record.value)?);
            limit("attribute length", value.len() as u64, limits::MAX_XATTR_LEN as u64)?;
            let good_name = !name.is_empty() && name.len() <= 255 && !name.contains(&0);
            if !good_name || xattrs.insert(name.to_vec(), value.to_vec()).is_some() {
                return Err(invalid(&format!(
                    "{path}: an attribute's name is invalid or there twice"
                )));
            }
        }
        Ok(xattrs)
    }

    fn contents(&self, plain_len: u64) -> Result<BTreeMap<Digest, Content>, DeltaError> {
        let mut contents = BTreeMap::new();
        for record in self.records.contents.iter() {
            let digest = Digest::from_bytes(record.digest);
            let first = record.first_segment.to_native() as usize;
            let end = first.checked_add(record.segment_count.to_native() as usize);
            let segments = end
                .and_then(|end| self.records.segments.get(first..end))
                .ok_or_else(|| invalid("a content's segments are missing"))?
                .iter()
                .map(|segment| self.segment(segment, plain_len))
                .collect::<Result<Vec<_>, _>>()?;
            let len = record.len.to_native();
            let sum =
                segments.iter().try_fold(0_u64, |sum, segment| sum.checked_add(segment.len()));
            if sum != Some(len) || len > limits::MAX_FILE_LEN {
                return Err(invalid("a content's segments do not add up to its length"));
            }
            let sparse = record.flags.to_native() & SPARSE != 0;
            if contents.insert(digest, Content { len, sparse, segments }).is_some() {
                return Err(invalid("a content is there twice"));
            }
        }
        Ok(contents)
    }

    fn segment(
        &self,
        record: &ArchivedSegmentRecord,
        plain_len: u64,
    ) -> Result<Segment, DeltaError> {
        let (offset, len) = (record.offset.to_native(), record.len.to_native());
        let end = offset.checked_add(len).ok_or_else(|| invalid("a segment is too long"))?;
        let source = record.source.to_native();
        match record.kind.to_native() {
            SEGMENT_BASE if (source as usize) < self.records.sources.len() => {
                Ok(Segment::Base { source, offset, len })
            }
            SEGMENT_LITERAL if end <= plain_len => Ok(Segment::Literal { offset, len }),
            SEGMENT_ZERO => Ok(Segment::Zero { len }),
            _ => Err(invalid("a segment points outside what there is")),
        }
    }

    fn frames(&self, content_len: u64) -> Result<Vec<Frame>, DeltaError> {
        let last = self.records.frames.len().saturating_sub(1);
        let mut frames = Vec::with_capacity(self.records.frames.len());
        let mut sum = 0_u64;
        for (number, record) in self.records.frames.iter().enumerate() {
            let (len, plain_len) = (record.len.to_native(), record.plain_len.to_native());
            limit("frame length", u64::from(len), limits::MAX_FRAME_LEN)?;
            let full = u64::from(plain_len) == limits::MAX_FRAME_PLAIN_LEN;
            let within = plain_len > 0 && u64::from(plain_len) <= limits::MAX_FRAME_PLAIN_LEN;
            if !(full || (number == last && within)) {
                return Err(invalid("a frame before the last is not full"));
            }
            sum += u64::from(len);
            frames.push(Frame { digest: Digest::from_bytes(record.digest), len, plain_len });
        }
        if sum != content_len {
            return Err(invalid("its frames do not add up to the content's length"));
        }
        Ok(frames)
    }
}

fn invalid(what: &str) -> DeltaError {
    Detail::Manifest { what: what.to_owned() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, SecretKey};

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    fn added(name: &str, node: Node) -> Change {
        Change { path: path(name), before: None, after: Some(node) }
    }

    /// What reading says of a signed manifest with these changes.
    fn refused(changes: Vec<Change>) -> String {
        let digest = Digest::of(b"");
        let manifest = Manifest {
            changes: ChangeSet { base: digest, target: digest, changes },
            ignore: Ignore::new(["/tmp/**"]).expect("a glob"),
            contents: BTreeMap::new(),
            sources: Vec::new(),
            frames: Vec::new(),
            dir_times: Vec::new(),
            permits: Permits::NONE,
            base_paths: 1,
        };
        let bytes = encode(&manifest).expect("small");
        let header = Header {
            incompat: 0,
            compat: 0,
            manifest_len: bytes.len() as u64,
            content_len: 0,
            base: digest,
            target: digest,
            manifest_digest: Digest::of(&bytes),
            signer: SecretKey::generate().expect("random bytes").public(),
        };
        let error = decode(&header, &bytes).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        error.to_string()
    }

    #[test]
    fn change_sets_that_contradict_themselves_are_refused_when_read() {
        let fifo = || Node::new(NodeKind::Fifo, 0o600);
        for (changes, what) in [
            (vec![added("/tmp/x", fifo())], "/tmp/x belongs to no version"),
            (vec![added("/.vireo/x", fifo())], "/.vireo/x is the state"),
            (vec![added("/a", fifo()), added("/a/b", fifo())], "/a/b lies below /a"),
            (
                vec![added("/a", fifo()), added("/b", Node::hard_link(path("/a")))],
                "/b links to /a, which is no regular file",
            ),
            (
                vec![
                    Change { path: path("/a"), before: Some(fifo()), after: None },
                    added("/b", Node::hard_link(path("/a"))),
                ],
                "/b links to /a, which is removed",
            ),
        ] {
            let error = refused(changes);
            assert!(error.contains(what), "{error}");
        }
    }
}
