//! The operating system as Vireo needs it, and all of Vireo's `unsafe` code behind safe functions.
//!
//! - [`loopdev`]: a loop device in one ioctl, gone when its last user is (`kill -9` leaks nothing).
//! - [`detached`]: mounts that are in no namespace; closing the handle unmounts.
//! - [`mounts`]: which file systems are mounted, and a view of them for one process alone.
//! - [`map_sealed`]: memory maps of files that nobody writes any more.
//! - [`durable`]: writes that survive power loss whole or not at all.
//! - [`child`]: programs that are run to their end, or to a deadline.
//! - [`confine`]: giving up rights for good.
//! - [`heap`]: memory that goes back when it is freed.
//! - [`copy`]: reflink or sparse copies of large files.
//! - [`fiemap`]: which files have all their blocks in common.
//! - [`fanotify`]: who opens what on a whole file system.
//! - [`procmap`]: the files that a process maps, without a text in between.
//! - [`lock`], [`lease`]: who else uses a file; [`stamp`]: whether it was written meanwhile.
//!
//! # Not here
//!
//! Anything that knows what an image, a tree or a bundle is.
//!
//! # Example
//!
//! ```
//! let dir = tempfile::tempdir()?;
//! let file = dir.path().join("state");
//! vireo_sys::durable::replace(&file, b"one")?;
//! vireo_sys::durable::replace(&file, b"two")?;
//! let map = vireo_sys::map_sealed(&std::fs::File::open(&file)?)?;
//! assert_eq!(&*map, b"two");
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod child;
pub mod confine;
pub mod copy;
pub mod detached;
pub mod durable;
pub mod fanotify;
pub mod fiemap;
pub mod heap;
pub mod lease;
pub mod lock;
pub mod loopdev;
mod map;
pub mod mounts;
pub mod procmap;
pub mod stamp;

pub use map::{Mapped, map_sealed};
