//! What reading a manifest and decoding what it describes may cost.
//!
//! A manifest is small on the wire, and what it describes need not be: attributes of a few bytes take
//! hundreds in memory, the same range of the base can be copied any number of times, and a terabyte
//! of zeros is one number. So memory is counted before it is allocated, and work before it is begun.

use vireo_model::{Change, Digest, NodeKind};

use super::{Body, Content, FileDelta, Form, Inside, Packing, Segment, Source};
use crate::error::{DeltaError, Detail};
use crate::format::{limit, limits};
use crate::frames::{CLASSES, Frame, Part, StreamId};
use crate::streams;

/// What an allocation takes beside its bytes: its own word and the rounding.
const ALLOCATION_LEN: u64 = 24;

/// What the first attribute of a node takes: a leaf of the map with room for eleven.
const LEAF_LEN: u64 = 11 * 2 * size_of::<Vec<u8>>() as u64 + ALLOCATION_LEN;

/// Memory of a text.
pub(super) fn of_bytes(len: usize) -> u64 {
    len as u64 + ALLOCATION_LEN
}

/// Memory of `count` items of a list.
pub(super) fn of_items<T>(count: usize) -> u64 {
    count as u64 * size_of::<T>() as u64
}

/// Memory of what a kind of node has beside the node.
pub(super) fn of_kind(kind: &NodeKind) -> u64 {
    match kind {
        NodeKind::Symlink { target } => of_bytes(target.len()),
        NodeKind::HardLink { leader } => of_bytes(leader.as_bytes().len()),
        // Lengths are looked up by digest while contents are read.
        NodeKind::File { .. } => size_of::<(Digest, u64)>() as u64 * 2,
        _ => 0,
    }
}

/// Memory of a node's `count` attributes, without their texts.
pub(super) fn of_xattrs(count: u64) -> u64 {
    // Half of each leaf may be empty.
    count.div_ceil(5) * LEAF_LEN
}

/// Memory of `count` contents with their index, which may be half empty.
pub(super) fn of_contents(count: usize) -> u64 {
    of_items::<(Digest, Content)>(count) + 2 * of_items::<(Digest, usize)>(count)
}

/// Memory of `count` frames, in the manifest and ready for use.
pub(super) fn of_frames(count: usize) -> u64 {
    2 * of_items::<(Frame, &[u8])>(count) + of_items::<(u64, usize)>(count)
}

/// Sums over a manifest, each with its limit.
#[derive(Debug)]
pub(super) struct Weight {
    memory_len: u64,
    most_memory_len: u64,
    decoded_len: u64,
    zeros_len: u64,
    repacked_len: u64,
    /// Bytes of each stream that deltas and recipes use; only literals are used more than once.
    used: [u64; StreamId::COUNT],
}

impl Weight {
    /// Nothing so far; memory up to `most_memory_len` bytes.
    pub(super) fn new(most_memory_len: u64) -> Self {
        Self {
            memory_len: 0,
            most_memory_len,
            decoded_len: 0,
            zeros_len: 0,
            repacked_len: 0,
            used: [0; StreamId::COUNT],
        }
    }

    /// Counts memory that is about to be allocated.
    pub(super) fn memory(&mut self, len: u64) -> Result<(), DeltaError> {
        self.memory_len = self.memory_len.saturating_add(len);
        limit("manifest's length in memory", self.memory_len, self.most_memory_len)
    }

    /// Counts what decoding `content` will cost.
    pub(super) fn content(
        &mut self,
        content: &Content,
        sources: &[Source],
        streams: &[u64; StreamId::COUNT],
    ) -> Result<(), DeltaError> {
        self.decoded_len = self.decoded_len.saturating_add(content.len);
        limit("length of all contents", self.decoded_len, limits::MAX_DECODED_LEN)?;
        if content.packing != Packing::None {
            self.repacked(content.plain_len())?;
        }
        if let Packing::Recipe(recipe) = content.packing {
            self.stream(StreamId::new(content.class, Part::Recipe), recipe.len, streams)?;
        }
        match &content.body {
            Body::Segments(segments) => self.zeros(segments),
            Body::Delta(delta) => {
                let source = sources.get(delta.source as usize);
                let inside = source.and_then(|source| source.inside);
                self.repacked(inside.map_or(0, cost_of_source))?;
                self.delta(content, delta, streams)
            }
        }
    }

    fn zeros(&mut self, segments: &[Segment]) -> Result<(), DeltaError> {
        for segment in segments {
            if let Segment::Zero { len } = segment {
                self.zeros_len = self.zeros_len.saturating_add(*len);
            }
        }
        limit("number of zeros", self.zeros_len, limits::MAX_ZEROS_LEN)
    }

    fn repacked(&mut self, plain_len: u64) -> Result<(), DeltaError> {
        self.repacked_len = self.repacked_len.saturating_add(plain_len);
        let most = limits::MAX_REPACKED_LEN;
        limit("plain length of all gzip files", self.repacked_len, most)
    }

    fn delta(
        &mut self,
        content: &Content,
        delta: &FileDelta,
        streams: &[u64; StreamId::COUNT],
    ) -> Result<(), DeltaError> {
        for (part, span) in [
            (Part::Control, delta.control),
            (Part::Patch, delta.patch),
            (Part::Diff, delta.diff),
            (Part::Extra, delta.extra),
            (Part::Refs, delta.refs),
        ] {
            self.stream(StreamId::new(content.class, part), span.len, streams)?;
        }
        Ok(())
    }

    /// One span of a stream may not be the script of a million files.
    fn stream(
        &mut self,
        stream: StreamId,
        len: u64,
        streams: &[u64; StreamId::COUNT],
    ) -> Result<(), DeltaError> {
        let used = &mut self.used[stream.index()];
        *used = used.saturating_add(len);
        if *used > streams[stream.index()] {
            let what = "contents share spans of a stream".to_owned();
            return Err(Detail::Manifest { what }.into());
        }
        Ok(())
    }
}

/// What it costs to take a gzip file of the base apart, in bytes of plain text.
fn cost_of_source(inside: Inside) -> u64 {
    let search = if inside.form == Form::Streams { streams::SEARCH_COST } else { 0 };
    inside.plain_len.saturating_add(inside.packed_len.saturating_mul(search))
}

// Two million changes of files, with paths of a hundred bytes, stay within the limit.
const _: () = assert!(
    (size_of::<Change>() as u64 + 2 * size_of::<(Digest, u64)>() as u64 + 124) * 2_000_000
        <= limits::MAX_MANIFEST_MEMORY_LEN
);
const _: () = assert!(CLASSES * crate::frames::PARTS == StreamId::COUNT);
