//! Computes, carries and applies content deltas.
//!
//! A [`BundleWriter`] turns the files of a target tree into deltas against files of the base
//! (programs by where their references point, gzip files by their plain text), pieces found by
//! content-defined chunking, and new bytes; a [`Bundle`] is the signed file that carries them with
//! their [`ChangeSet`](vireo_model::ChangeSet). The file format is specified, byte by byte, in
//! `docs/format/bundle.md`. Who has two byte strings and no trees uses [`diff()`] and [`patch`].
//!
//! # Guarantees
//!
//! - What a bundle's content decodes to is compared with its BLAKE3 digest before it is handed
//!   out as complete.
//! - Reading never panics and never allocates more than the named limits of [`limits`],
//!   whatever the bytes.
//! - Only a [`Bundle<Verified>`] can be read or applied, and only [`Bundle::verify`] makes one.
//! - Same inputs, same key: same bytes, on every machine, whatever the number of threads.
//!
//! # Not here
//!
//! Directory trees, images, mounts (`vireo-tree`, `vireo-image`); where bundles are kept
//! (`vireo-store`). This crate reads no file by itself and forbids `unsafe`.
//!
//! # Example
//!
//! ```
//! use std::io::Cursor;
//! use vireo_delta::{Bundle, BundleWriter, MemBase, Permits, SecretKey, Statement, TrustedKeys};
//! use vireo_model::{ChangeSet, Digest, Ignore, ImagePath, Node, NodeKind, Tree};
//!
//! let page = b"<p>hello</p>\n".repeat(4000);
//! let mut edited = page.clone();
//! edited[30_000] = b'!';
//! let path = ImagePath::parse(b"/page.html")?;
//! let node = |text: &[u8]| {
//!     let kind = NodeKind::File { len: text.len() as u64, content: Digest::of(text) };
//!     Node::new(kind, 0o644)
//! };
//! let base: Tree = [(path.clone(), node(&page))].into_iter().collect();
//! let target: Tree = [(path.clone(), node(&edited))].into_iter().collect();
//!
//! // The administrator's side: encode, sign, write.
//! let key = SecretKey::generate()?;
//! let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
//! writer.index_base(&path, &page[..])?;
//! writer.encode(Digest::of(&edited), edited.len() as u64, false, &edited[..])?;
//! let mut file = Vec::new();
//! let statement = Statement {
//!     changes: &ChangeSet::between(&base, &target),
//!     ignore: &Ignore::default(),
//!     permits: Permits::NONE,
//!     base_paths: base.len() as u64,
//! };
//! writer.finish(&statement, &key, &mut file)?;
//! assert!(file.len() < page.len() / 4);
//!
//! // The other side: verify, decode.
//! let bundle = Bundle::open(&file)?.verify(&TrustedKeys::from_iter([key.public()]))?;
//! let content = bundle.content(&path).ok_or("the page is in the bundle")?;
//! assert_eq!(content.to_vec(&MemBase::from_iter([(path, page)]))?, edited);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bundle;
mod chunk;
mod consistency;
mod content;
mod derive;
mod dictionary;
mod diff;
mod encode;
mod error;
mod file;
mod format;
mod frames;
#[cfg(test)]
mod frozen;
mod gzip;
mod indexed;
mod keys;
mod manifest;
pub mod merge;
mod model;
mod pair;
mod permits;
mod read_map;
mod spool;
mod streams;
mod tokens;
mod view;

pub use bundle::{Bundle, FrameInfo, Head, Release, Unverified, Verified};
pub use chunk::{Chunk, Chunker, chunk_slices, chunks, for_each_chunk};
pub use content::{BaseRead, ContentSource, MemBase, Piece};
pub use derive::{Derive, compose, reverse};
pub use diff::{diff, patch, patched_len};
pub use encode::{BundleWriter, Effort, Finished, Statement};
pub use error::{DeltaError, ErrorKind};
pub use format::{HEADER_LEN, Header, MAGIC, feature, limits};
pub use keys::{PublicKey, SecretKey, TrustedKeys};
pub use pair::{Pair, Side};
pub use permits::{MASS_FLOOR, Permits, PermitsError, paths_needing, permits_needed};
pub use view::TargetView;
