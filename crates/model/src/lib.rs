//! The nouns of Vireo: what every other crate speaks about, and no input or output.
//!
//! A [`Tree`] is every path of a file system with its [`Node`]; its [`Digest`] is a Merkle root
//! over directories, so two trees are equal exactly if their digests are. A [`ChangeSet`] turns
//! one tree, the *base*, into another, the *target*. A version of an image is a tree by digest.
//!
//! # Guarantees
//!
//! - An [`ImagePath`] cannot leave the tree by its spelling.
//! - [`ChangeSet::between`] then [`ChangeSet::apply_to`] gives back the target tree.
//! - [`Tree::digest`] depends on nothing but names, metadata and content: not on inode numbers,
//!   directory times, sparseness or the order of reading.
//!
//! # Not here
//!
//! Reading a real directory (`vireo-tree`), content and its transport (`vireo-delta`).
//!
//! # Example
//!
//! ```
//! use vireo_model::{ChangeSet, Digest, ImagePath, Node, NodeKind, Tree};
//!
//! let page = |text: &[u8]| {
//!     Node::new(NodeKind::File { len: text.len() as u64, content: Digest::of(text) }, 0o644)
//! };
//! let path = ImagePath::parse(b"/index.html")?;
//! let mut base = Tree::new();
//! base.insert(path.clone(), page(b"hello"));
//! let mut target = base.clone();
//! target.insert(path, page(b"hello, world"));
//!
//! let changes = ChangeSet::between(&base, &target);
//! assert_eq!(changes.changes.len(), 1);
//! assert_ne!(base.digest(), target.digest());
//! # Ok::<(), vireo_model::ImagePathError>(())
//! ```

mod change;
mod digest;
pub mod fstab;
mod grow;
mod ignore;
pub mod mount_table;
mod name;
mod node;
mod path;
mod plain;
mod tree;

pub use change::{Change, ChangeKind, ChangeSet};
pub use digest::{Digest, DigestError, Hasher};
pub use grow::Grow;
pub use ignore::{DEFAULT_IGNORE, Ignore, IgnoreError, MAX_PATTERNS};
pub use name::{ImageName, ImageRef, NameError};
pub use node::{DeviceKind, Node, NodeKind, Timestamp, Xattrs};
pub use path::{ImagePath, ImagePathError};
pub use plain::{
    PLAIN_MODE, clash, first_not_plain, is_machines_own, not_plain, plain, plain_dir, plain_file,
};
pub use tree::Tree;
