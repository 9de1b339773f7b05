//! Writing the manifest.

use std::collections::HashMap;

use rkyv::rancor::Error as RancorError;
use vireo_model::{Change, DeviceKind, Digest, ImagePath, Node, NodeKind};

use super::columns::{
    AS_STREAMS, AS_TOKENS, BY_MODEL, Columns, DELTA, ELSEWHERE, KIND_BLOCK, KIND_CHAR, KIND_DIR,
    KIND_FIFO, KIND_FILE, KIND_HARD_LINK, KIND_NONE, KIND_SAME, KIND_SOCKET, KIND_SYMLINK, PACKED,
    SEGMENT_BASE, SEGMENT_LITERAL, SEGMENT_ZERO, SPARSE, STREAMS, TOKENS,
};
use super::{Body, Content, FileDelta, Form, Manifest, Packing, Segment};
use crate::dictionary::Dictionary;
use crate::error::{DeltaError, Detail, io_step};
use crate::format::{limit, limits};
use crate::frames::{CLASSES, Class, Method, Span};

/// A manifest as it travels.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) plain_len: u64,
}

/// The manifest's bytes, compressed at zstd's `level`.
pub(crate) fn encode(manifest: &Manifest, level: i32) -> Result<Packed, DeltaError> {
    let mut writer = Writer::default();
    writer.columns.base_paths = manifest.base_paths;
    writer.columns.permits = manifest.permits.bits();
    for pattern in manifest.ignore.patterns() {
        let len = writer.text(pattern.as_bytes())?;
        writer.columns.ignore_lens.push(len);
    }
    for change in &manifest.changes.changes {
        writer.change(change)?;
    }
    for (path, time) in &manifest.dir_times {
        writer.path(path)?;
        writer.columns.dir_secs.push(time.secs.cast_unsigned());
        writer.columns.dir_nanos.push(time.nanos);
    }
    writer.sources(manifest)?;
    let known = known_lens(&manifest.changes.changes);
    for (digest, content) in manifest.contents.iter() {
        let number = writer.digest(*digest)?;
        writer.columns.content_digests.push(number);
        let known = known.get(digest).copied().unwrap_or(0);
        writer.columns.content_lens.push(content.len.wrapping_sub(known));
        writer.content(content)?;
    }
    for frame in &manifest.frames {
        writer.columns.frame_digests.push(*frame.digest.as_bytes());
        let by_model = if frame.method == Method::Model { BY_MODEL } else { 0 };
        writer.columns.frame_streams.push(frame.stream.number() | by_model);
        writer.columns.frame_lens.push(frame.len);
        writer.columns.frame_plain.push(frame.plain_len);
    }
    let plain = rkyv::to_bytes::<RancorError>(&writer.columns)
        .map_err(|error| Detail::Manifest { what: error.to_string() })?;
    let plain_len = plain.len() as u64;
    limit("manifest length before compression", plain_len, limits::MAX_MANIFEST_PLAIN_LEN)?;
    let bytes = Dictionary::Manifest.compress(&plain, level);
    let bytes = bytes.map_err(io_step("compress the manifest"))?;
    limit("manifest length", bytes.len() as u64, limits::MAX_MANIFEST_LEN)?;
    Ok(Packed { bytes, plain_len })
}

/// The length of each content that a node has.
pub(super) fn known_lens(changes: &[Change]) -> HashMap<Digest, u64> {
    let nodes = changes.iter().flat_map(|change| [&change.before, &change.after]);
    nodes.flatten().filter_map(Node::content).map(|(len, digest)| (digest, len)).collect()
}

#[derive(Default)]
struct Writer {
    columns: Columns,
    digests: HashMap<Digest, u32>,
    last_path: Vec<u8>,
    last_source: u32,
    /// Where the spans of the last delta ended, by class and stream.
    span_ends: [[u64; super::columns::SPANS]; CLASSES],
    recipe_ends: [u64; CLASSES],
}

impl Writer {
    fn text(&mut self, bytes: &[u8]) -> Result<u32, DeltaError> {
        self.columns.texts.extend_from_slice(bytes);
        number(bytes.len())
    }

    fn path(&mut self, path: &ImagePath) -> Result<(), DeltaError> {
        let bytes = path.as_bytes();
        let shared = bytes.iter().zip(&self.last_path).take_while(|(a, b)| a == b).count();
        self.columns.path_shared.push(short(shared)?);
        self.columns.path_rest.push(short(bytes.len() - shared)?);
        self.columns.names.extend_from_slice(&bytes[shared..]);
        self.last_path = bytes.to_vec();
        Ok(())
    }

    fn digest(&mut self, digest: Digest) -> Result<u32, DeltaError> {
        if let Some(number) = self.digests.get(&digest) {
            return Ok(*number);
        }
        let number = number(self.columns.digests.len())?;
        self.columns.digests.push(*digest.as_bytes());
        self.digests.insert(digest, number);
        Ok(number)
    }

    fn change(&mut self, change: &Change) -> Result<(), DeltaError> {
        self.path(&change.path)?;
        let before = self.node(change.before.as_ref(), None)?;
        self.columns.before_kinds.push(before);
        let after = self.node(change.after.as_ref(), change.before.as_ref())?;
        self.columns.after_kinds.push(after);
        Ok(())
    }

    /// Returns the node's kind.
    fn node(&mut self, node: Option<&Node>, before: Option<&Node>) -> Result<u8, DeltaError> {
        let Some(node) = node else {
            return Ok(KIND_NONE);
        };
        self.columns.modes.push(short(node.mode as usize)?);
        self.columns.uids.push(node.uid);
        self.columns.gids.push(node.gid);
        self.columns.secs.push(node.mtime.secs.cast_unsigned());
        self.columns.nanos.push(node.mtime.nanos);
        self.columns.xattr_counts.push(short(node.xattrs.len())?);
        for (name, value) in &node.xattrs {
            let lens = [self.text(name)?, self.text(value)?];
            self.columns.xattr_lens.extend(lens);
        }
        if before.is_some_and(|before| before.kind == node.kind) {
            return Ok(KIND_SAME);
        }
        Ok(match &node.kind {
            NodeKind::File { len, content } => {
                self.columns.file_lens.push(*len);
                let number = self.digest(*content)?;
                self.columns.file_digests.push(number);
                KIND_FILE
            }
            NodeKind::Dir => KIND_DIR,
            NodeKind::Symlink { target } => {
                self.columns.link_lens.push(short(target.len())?);
                self.text(target)?;
                KIND_SYMLINK
            }
            NodeKind::Device { kind, major, minor } => {
                self.columns.devices.extend([*major, *minor]);
                if *kind == DeviceKind::Char { KIND_CHAR } else { KIND_BLOCK }
            }
            NodeKind::Fifo => KIND_FIFO,
            NodeKind::Socket => KIND_SOCKET,
            NodeKind::HardLink { leader } => {
                self.columns.link_lens.push(short(leader.as_bytes().len())?);
                self.text(leader.as_bytes())?;
                KIND_HARD_LINK
            }
        })
    }

    fn sources(&mut self, manifest: &Manifest) -> Result<(), DeltaError> {
        let changes = &manifest.changes.changes;
        for source in &manifest.sources {
            match changes.binary_search_by(|change| change.path.cmp(&source.path)) {
                Ok(at) => self.columns.source_changes.push(number(at)?),
                Err(_) => {
                    self.columns.source_changes.push(ELSEWHERE);
                    self.path(&source.path)?;
                }
            }
            let (packed, plain) = source.inside.map_or((0, 0), |inside| {
                let form = match inside.form {
                    Form::Plain => 0,
                    Form::Tokens => AS_TOKENS,
                    Form::Streams => AS_STREAMS,
                };
                (inside.packed_len | form, inside.plain_len)
            });
            self.columns.source_packed.push(packed);
            self.columns.source_plain.push(plain);
        }
        Ok(())
    }

    fn content(&mut self, content: &Content) -> Result<(), DeltaError> {
        let mut flags = if content.sparse { SPARSE } else { 0 };
        let class = content.class as usize;
        match content.packing {
            Packing::None => {}
            Packing::Recipe(recipe) => {
                flags |= PACKED;
                self.columns.recipe_skips.push(recipe.start.wrapping_sub(self.recipe_ends[class]));
                self.columns.recipe_lens.push(number(recipe.len as usize)?);
                self.recipe_ends[class] = recipe.start + recipe.len;
            }
            Packing::Tokens => flags |= TOKENS,
            Packing::Streams => flags |= STREAMS,
        }
        match &content.body {
            Body::Delta(delta) => {
                flags |= DELTA;
                if content.packing != Packing::None {
                    self.columns.plain_lens.push(delta.plain_len);
                }
                self.delta(delta, content.class)?;
            }
            Body::Segments(segments) => {
                self.columns.segment_counts.push(number(segments.len())?);
                segments.iter().for_each(|segment| self.segment(segment));
            }
        }
        self.columns.content_flags.push(flags);
        self.columns.content_classes.push(content.class as u8);
        Ok(())
    }

    fn delta(&mut self, delta: &FileDelta, class: Class) -> Result<(), DeltaError> {
        let from_last = delta.source.wrapping_sub(self.last_source);
        self.last_source = delta.source;
        self.columns.delta_sources.push(from_last);
        let spans = [delta.control, delta.patch, delta.diff, delta.extra, delta.refs];
        for (Span { start, len }, end) in spans.into_iter().zip(&mut self.span_ends[class as usize])
        {
            self.columns.span_skips.push(start.wrapping_sub(*end));
            self.columns.span_lens.push(number(len as usize)?);
            *end = start + len;
        }
        Ok(())
    }

    fn segment(&mut self, segment: &Segment) {
        let (kind, source, offset, len) = match *segment {
            Segment::Base { source, offset, len } => (SEGMENT_BASE, source, offset, len),
            Segment::Literal { class, offset, len } => (SEGMENT_LITERAL, class as u32, offset, len),
            Segment::Zero { len } => (SEGMENT_ZERO, 0, 0, len),
        };
        self.columns.segment_kinds.push(kind);
        self.columns.segment_sources.push(source);
        self.columns.segment_offsets.push(offset);
        self.columns.segment_lens.push(len);
    }
}

fn number(value: usize) -> Result<u32, DeltaError> {
    let most = u64::from(ELSEWHERE) - 1;
    limit("manifest number", value as u64, most)?;
    u32::try_from(value)
        .map_err(|_| Detail::Limit { what: "manifest number", found: value as u64, most }.into())
}

fn short(value: usize) -> Result<u16, DeltaError> {
    let most = u64::from(u16::MAX);
    u16::try_from(value)
        .map_err(|_| Detail::Limit { what: "manifest number", found: value as u64, most }.into())
}
