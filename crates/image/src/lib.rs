//! Disk images: finds the root file system in a raw image, mounts it where nobody else can see
//! it, clones and patches images, checks them.
//!
//! # Guarantees
//!
//! - [`patch`] never touches its base: it patches a clone and renames it into place after the
//!   clone's tree has the digest that the bundle names and `e2fsck` finds it clean. A crash at
//!   any point leaves the base alone, and the target absent or complete.
//! - The host never follows the image's symbolic links, device nodes or set-user-ID bits, and
//!   never trusts the kernel's partition scan: partition tables are read here.
//! - A mount is in no namespace and its loop device clears itself, so that even `kill -9` leaks
//!   nothing.
//!
//! # Not here
//!
//! File systems other than ext2, ext3 and ext4 (how these are laid out: `vireo-ext4`); qcow2. What
//! is in the tree (`vireo-tree`), where images are kept (`vireo-store`).
//!
//! # Example
//!
//! ```no_run
//! use std::path::Path;
//! use vireo_model::Ignore;
//!
//! // As root: mounting needs CAP_SYS_ADMIN.
//! let tree = vireo_image::read_tree(Path::new("debian-12.img"), &Ignore::default())?;
//! println!("{} paths, version {}", tree.len(), tree.digest());
//! # Ok::<(), vireo_image::ImageError>(())
//! ```

mod disk;
mod error;
mod fsck;
mod host;
pub mod journal;
pub mod leaks;
mod partition;
mod patch;
mod rootless;
mod script;
mod superblock;
pub mod testing;
pub mod unmounted;

pub use disk::{Access, DiskImage, Mounted};
pub use error::{ErrorKind, ImageError};
pub use fsck::fsck;
#[cfg(feature = "loopdev")]
pub use host::LoopdevHost;
pub use host::{DetachedHost, HostMount, MountError, MountHost, Window};
pub use partition::{Layout, Partition, RootPartition};
pub use patch::{Backend, PatchOptions, PatchStep, Patched, clone_image, patch, patch_with};
pub use superblock::Superblock;
pub use vireo_sys::copy::CloneKind;

use std::path::Path;

use vireo_model::{Ignore, Tree};
use vireo_tree::{Scan, ScanOptions, scan};

/// Reads the tree in `image` through a detached read-only mount.
///
/// # Errors
///
/// As [`DiskImage::open`], [`DiskImage::mount`] and [`scan`].
pub fn read_tree(image: &Path, ignore: &Ignore) -> Result<Tree, ImageError> {
    Ok(scan_image(image, ignore, &ScanOptions::default())?.tree)
}

/// As [`read_tree`], with all that [`scan`] tells; `options` can name the scan of an image that
/// this one is a clone of.
///
/// # Errors
///
/// As [`read_tree`].
pub fn scan_image(
    image: &Path,
    ignore: &Ignore,
    options: &ScanOptions<'_>,
) -> Result<Scan, ImageError> {
    let mounted = DiskImage::open(image, RootPartition::Find)?.mount(Access::ReadOnly)?;
    let scan =
        scan(mounted.root(), ignore, options).map_err(|error| ImageError::tree(image, error))?;
    mounted.finish()?;
    Ok(scan)
}
