//! The archive: columns of fixed numbers and two pools of bytes, nothing else: no `Rc`, no maps, no
//! enums.
//!
//! Columns, because numbers of one kind compress together: thousands of files of which only the
//! time changes share a few times, modes and owners. Every column is read from its start, in the
//! order of the changes (or contents, or frames); nothing points into another but by number.

use rkyv::rend::{u16_le, u32_le, u64_le};
use rkyv::{Archive, Serialize};

/// No change has this path.
pub(super) const ELSEWHERE: u32 = u32::MAX;

pub(super) const KIND_NONE: u8 = 0;
pub(super) const KIND_FILE: u8 = 1;
pub(super) const KIND_DIR: u8 = 2;
pub(super) const KIND_SYMLINK: u8 = 3;
pub(super) const KIND_CHAR: u8 = 4;
pub(super) const KIND_BLOCK: u8 = 5;
pub(super) const KIND_FIFO: u8 = 6;
pub(super) const KIND_SOCKET: u8 = 7;
pub(super) const KIND_HARD_LINK: u8 = 8;
/// After: like before, of whichever kind; only the metadata follows.
pub(super) const KIND_SAME: u8 = 9;

pub(super) const SPARSE: u8 = 1;
pub(super) const DELTA: u8 = 2;
pub(super) const PACKED: u8 = 4;
pub(super) const TOKENS: u8 = 8;
pub(super) const STREAMS: u8 = 16;

/// Bit of a source's gzip file's length: its tokens are meant.
pub(super) const AS_TOKENS: u64 = 1 << 63;

/// The same: all its streams are meant.
pub(super) const AS_STREAMS: u64 = 1 << 62;

/// Set in the number of a frame's stream if the frame is compressed by the model of text.
pub(super) const BY_MODEL: u8 = 1 << 7;

pub(super) const SEGMENT_BASE: u8 = 0;
pub(super) const SEGMENT_LITERAL: u8 = 1;
pub(super) const SEGMENT_ZERO: u8 = 2;

/// Numbers of the spans of a delta: control, patch, diff, extra, refs.
pub(super) const SPANS: usize = 5;

#[derive(Archive, Serialize, Default)]
pub(super) struct Columns {
    pub(super) base_paths: u64,
    pub(super) permits: u32,
    pub(super) zero: u32,
    /// Ends of paths: of the changes, the directory times, the sources.
    pub(super) names: Vec<u8>,
    /// Link targets, names and values of attributes, patterns.
    pub(super) texts: Vec<u8>,
    pub(super) digests: Vec<[u8; 32]>,
    pub(super) ignore_lens: Vec<u32>,

    /// Per path: bytes that it has in common with the one before, bytes that follow in `names`.
    pub(super) path_shared: Vec<u16>,
    pub(super) path_rest: Vec<u16>,

    /// Per change: kinds of the nodes.
    pub(super) before_kinds: Vec<u8>,
    pub(super) after_kinds: Vec<u8>,

    /// Per node.
    pub(super) modes: Vec<u16>,
    pub(super) uids: Vec<u32>,
    pub(super) gids: Vec<u32>,
    pub(super) secs: Vec<u64>,
    pub(super) nanos: Vec<u32>,
    pub(super) xattr_counts: Vec<u16>,

    /// Per file.
    pub(super) file_lens: Vec<u64>,
    pub(super) file_digests: Vec<u32>,
    /// Per symbolic link and further name.
    pub(super) link_lens: Vec<u16>,
    /// Per device: major, minor.
    pub(super) devices: Vec<u32>,
    /// Per attribute: length of the name, of the value.
    pub(super) xattr_lens: Vec<u32>,

    /// Per directory time.
    pub(super) dir_secs: Vec<u64>,
    pub(super) dir_nanos: Vec<u32>,

    /// Per source: the number of the change of that path, lengths of a gzip file.
    pub(super) source_changes: Vec<u32>,
    pub(super) source_packed: Vec<u64>,
    pub(super) source_plain: Vec<u64>,

    /// Per content.
    pub(super) content_digests: Vec<u32>,
    /// Less what the files of that digest say.
    pub(super) content_lens: Vec<u64>,
    pub(super) content_flags: Vec<u8>,
    pub(super) content_classes: Vec<u8>,

    /// Per gzip file: where the recipe starts after the one before, its length.
    pub(super) recipe_skips: Vec<u64>,
    pub(super) recipe_lens: Vec<u32>,
    /// Per gzip file that is a delta: length of the plain text.
    pub(super) plain_lens: Vec<u64>,

    /// Per delta: number of the source less that of the one before.
    pub(super) delta_sources: Vec<u32>,
    /// Per delta and stream: where the span starts after the one before, its length.
    pub(super) span_skips: Vec<u64>,
    pub(super) span_lens: Vec<u32>,

    /// Per content that is no delta.
    pub(super) segment_counts: Vec<u32>,
    /// Per segment.
    pub(super) segment_kinds: Vec<u8>,
    /// Source, or class.
    pub(super) segment_sources: Vec<u32>,
    pub(super) segment_offsets: Vec<u64>,
    pub(super) segment_lens: Vec<u64>,

    /// Per frame.
    pub(super) frame_digests: Vec<[u8; 32]>,
    pub(super) frame_streams: Vec<u8>,
    pub(super) frame_lens: Vec<u32>,
    pub(super) frame_plain: Vec<u32>,
}

// Forty-three vectors of eight bytes. A feature that another crate of the same program turns on
// (`rkyv/unaligned`) would change the bytes.
const _: () = assert!(size_of::<ArchivedColumns>() == 16 + 43 * 8);
const _: () = assert!(align_of::<ArchivedColumns>() == 8);

/// A number of a column.
pub(super) trait Number {
    fn value(&self) -> u64;
}

impl Number for u8 {
    fn value(&self) -> u64 {
        u64::from(*self)
    }
}

impl Number for u16_le {
    fn value(&self) -> u64 {
        u64::from(self.to_native())
    }
}

impl Number for u32_le {
    fn value(&self) -> u64 {
        u64::from(self.to_native())
    }
}

impl Number for u64_le {
    fn value(&self) -> u64 {
        self.to_native()
    }
}
