//! What stands at a path: kind, metadata and the digest of the content.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, ImagePath};

/// Extended attributes by name (`user.*`, `security.capability`, `system.posix_acl_access`, ...);
/// values are bytes as the kernel hands them out.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A point in time as file systems keep it: seconds since 1970 and nanoseconds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC; negative before.
    pub secs: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

/// What stands at one path of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its kind, with what only that kind has.
    pub kind: NodeKind,
    /// Permission bits with set-user-ID, set-group-ID and sticky: `0..=0o7777`.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Time of last modification. Directories have none: entries that belong to no version
    /// come and go in them, so [`Tree::insert`](crate::Tree::insert) clears it.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// The kinds of node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// A regular file.
    File {
        /// Length in bytes, holes included.
        len: u64,
        /// Digest of the whole content; a hole reads as zeros.
        content: Digest,
    },
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink {
        /// Where it points, as stored.
        target: Vec<u8>,
    },
    /// A device node.
    Device {
        /// Character or block.
        kind: DeviceKind,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket in the file system: its name, not the service behind it.
    Socket,
    /// A further name of the inode whose first name, in path order, is `leader`. All else about
    /// it stands at the leader; mode, owner, time and attributes here are zero and empty.
    HardLink {
        /// The first name of the inode.
        leader: ImagePath,
    },
}

/// The two kinds of device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
}

impl Node {
    /// A node of `kind` that belongs to root, without time and attributes.
    #[must_use]
    pub fn new(kind: NodeKind, mode: u32) -> Self {
        Self { kind, mode, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Xattrs::new() }
    }

    /// A further name of the inode at `leader`.
    #[must_use]
    pub fn hard_link(leader: ImagePath) -> Self {
        Self::new(NodeKind::HardLink { leader }, 0)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == NodeKind::Dir
    }

    /// The content's length and digest, if it is a regular file.
    #[must_use]
    pub fn content(&self) -> Option<(u64, Digest)> {
        match self.kind {
            NodeKind::File { len, content } => Some((len, content)),
            _ => None,
        }
    }

    /// Appends everything about the node, unambiguously: what its digest is taken of.
    pub(crate) fn write_into(&self, out: &mut Vec<u8>) {
        match &self.kind {
            NodeKind::File { len, content } => {
                out.push(b'f');
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(content.as_bytes());
            }
            NodeKind::Dir => out.push(b'd'),
            NodeKind::Symlink { target } => {
                out.push(b'l');
                write_field(out, target);
            }
            NodeKind::Device { kind, major, minor } => {
                out.push(match kind {
                    DeviceKind::Char => b'c',
                    DeviceKind::Block => b'b',
                });
                out.extend_from_slice(&major.to_le_bytes());
                out.extend_from_slice(&minor.to_le_bytes());
            }
            NodeKind::Fifo => out.push(b'p'),
            NodeKind::Socket => out.push(b's'),
            NodeKind::HardLink { leader } => {
                out.push(b'h');
                write_field(out, leader.as_bytes());
            }
        }
        for number in [self.mode, self.uid, self.gid, self.mtime.nanos] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.mtime.secs.to_le_bytes());
        out.extend_from_slice(&(self.xattrs.len() as u64).to_le_bytes());
        for (name, value) in &self.xattrs {
            write_field(out, name);
            write_field(out, value);
        }
    }
}

/// Appends `bytes` with their length before them, as [`Hasher::field`](crate::Hasher::field) adds them.
pub(crate) fn write_field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}
