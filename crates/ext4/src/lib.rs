//! Reads ext2, ext3 and ext4 file systems in images: without root, without mounting, without
//! writing, at a cost that follows the change.
//!
//! # Guarantees
//!
//! - [`Reader::tree`] gives the same tree as the kernel's mount, with modes, owners, nanosecond
//!   times, hard links, device numbers, capabilities, ACLs and all other attributes in the form
//!   in which programs see them.
//! - Whatever the bytes are, reading ends with a tree or an error: no panic, no loop, no memory
//!   beyond what the image's length allows, no read outside it. There is no `unsafe` here.
//! - Where the file system has checksums, what is read is compared with them.
//! - What is not understood is refused by name, never guessed.
//!
//! # What is trusted
//!
//! A full [`Reader::scan`] trusts nothing. [`compare`], [`tree_like`] and [`ScanOptions::known`]
//! do not read files whose inode number, generation, length, times of modification and change and
//! map of blocks are those of the base. That is sound if one image is a copy of the other, or both
//! are of a third, both were unmounted cleanly, and *only kernels wrote to them since*. It cannot
//! see what is written past the file system: `dd` into the image, `debugfs`, a swap file in use, an
//! image builder that gives two builds one UUID and one time. Which file system it is, whether its
//! journal was finished, and changes within two seconds of the earlier state's end are checked:
//! where they leave a doubt the file is read.
//!
//! # Not here
//!
//! Writing. Partition tables (`vireo-image`). Encrypted and case-folded directories, journals on
//! another device and unfinished fast commits: these are refused.
//!
//! # Example
//!
//! ```
//! use std::process::Command;
//! use vireo_ext4::{Reader, Unfinished};
//! use vireo_model::Ignore;
//!
//! let dir = tempfile::tempdir()?;
//! std::fs::create_dir(dir.path().join("root"))?;
//! std::fs::write(dir.path().join("root/page.html"), "hello")?;
//! let image = dir.path().join("fs.img");
//! let made = Command::new("/sbin/mke2fs")
//!     .args(["-q", "-t", "ext4", "-d"])
//!     .arg(dir.path().join("root"))
//!     .arg(&image)
//!     .arg("4M")
//!     .status()?;
//! assert!(made.success());
//!
//! let reader = Reader::open(std::fs::File::open(&image)?, Unfinished::Refuse)?;
//! let tree = reader.tree(&Ignore::default())?;
//! assert_eq!(tree.len(), 2, "the root directory and the page");
//! println!("{}", tree.digest());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Everything here handles bytes that somebody else may have chosen.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::expect_used,
        clippy::panic,
        clippy::string_slice,
        clippy::as_conversions
    )
)]

mod budget;
mod bytes;
mod checksum;
mod compare;
mod content;
mod dir;
mod error;
mod extent;
mod group;
mod inode;
mod journal;
mod known;
mod reader;
mod same;
mod source;
mod superblock;
mod tree;
mod volume;
mod walk;
mod xattr;

pub use bytes::{le16, le32, le64};
pub use compare::{Candidates, Distrust, Known, RACY_SECS, compare, tree_like};
pub use content::Content;
pub use error::{ErrorKind, Ext4Error};
pub use extent::Extent;
pub use inode::{Inode, InodeKind};
pub use reader::{Identity, Reader, Unfinished};
pub use same::is_unchanged;
pub use source::{Partition, Source};
pub use tree::{DEFAULT_MAX_CONTENT_LEN, Scan, ScanOptions};
pub use walk::{Entry, FileState};
