//! Reads, compares and patches a directory tree beneath one handle: a mounted image, a live
//! root, any directory.
//!
//! # Guarantees
//!
//! - Nothing outside the handle is read or written: every path is opened beneath it without
//!   following a symbolic link (`openat2(2)`), and each step touches one name in one directory.
//! - [`apply`] never writes a file in place. Killed or cut from power at any instant it leaves
//!   the base, the target, or a state that [`apply::recover`] completes.
//! - [`scan`] gives the same [`Tree`](vireo_model::Tree) for the same tree, wherever and in
//!   whatever order it is stored.
//!
//! # Not here
//!
//! How images are mounted (`vireo-image`; [`Machine`] puts what is mounted already together), which services are affected (`vireo-classify`).
//!
//! # Example
//!
//! ```
//! use vireo_model::Ignore;
//! use vireo_tree::{Root, ScanOptions, scan};
//!
//! let dir = tempfile::tempdir()?;
//! std::fs::write(dir.path().join("page.html"), "hello")?;
//! let root = Root::open(dir.path())?;
//! let tree = scan(&root, &Ignore::default(), &ScanOptions::default())?.tree;
//! assert_eq!(tree.len(), 2, "the root directory and the page");
//! println!("{}", tree.digest());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod apply;
mod dir;
mod error;
mod fault;
#[cfg(test)]
mod faults;
mod machine;
mod node;
mod read;
mod root;
mod shared;

pub use error::{ErrorKind, Shortage, TreeError};
pub use machine::{Machine, Other};
pub use read::{FileStat, Scan, ScanOptions, scan};
pub use root::Root;
