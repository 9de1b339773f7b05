//! Disk images: finds the file systems in a raw or qcow2 image, mounts them as one tree where nobody
//! else can see it, clones, grows and patches images, checks them.
//!
//! # Guarantees
//!
//! - [`patch()`] never touches its base: it patches a clone and renames it into place after the
//!   clone's tree has the digest that the bundle names and every file system's own checker finds it
//!   clean. A crash at any point leaves the base alone, and the target absent or complete.
//! - What is damaged, or of a machine that was not shut down cleanly, is found before anything is written
//!   ([`BaseCheck`]), and repaired only in the clone, if that is asked for.
//! - The host never follows the image's symbolic links, device nodes or set-user-ID bits, and
//!   never trusts the kernel's partition scan: partition tables are read here.
//! - A mount is in no namespace and its loop device clears itself, so that even `kill -9` leaks
//!   nothing.
//! - No other file is opened because an image says so: backing files and external data files of
//!   qcow2 are refused, and what is qcow2 says the file's name, never its content alone.
//!
//! # The tree of an image
//!
//! It is what the agent of the booted machine reads: the root file system, and those of the same disk
//! that its `/etc/fstab` mounts, as far as they are ext2, ext3, ext4, xfs, btrfs or FAT. Entries that are not in the
//! image are left out and listed ([`Mounted::left_out`]). What `/etc/fstab` does not name is
//! not part of the tree either, such as what systemd finds by the types of partitions.
//!
//! What is on FAT, as on the EFI system partition, has names and contents; owners, modes and times, which there are
//! options of a mount, have one normal form ([`vireo_model::plain`]).
//!
//! # What a machine boots by
//!
//! Kernels, initramfs images, GRUB's menu and modules, the entries of a boot loader, boot loaders of EFI: all are files
//! like others. A patched image boots what its boot loader reads there; nothing is installed by the host, no program of
//! the image is run. FAT is never mounted by the host: it is read by our own reader, worked on in a copy in memory, and
//! what was changed is written back and read again.
//!
//! What lies outside file systems stays: the partition table, GRUB's core image for BIOS. A partition with FAT that
//! `/etc/fstab` does not mount stays too; that it differs tells [`esp_changes`], and `vireo capture` refuses it.
//!
//! # Not here
//!
//! How ext file systems are laid out (`vireo-ext4`); xfs and btrfs are read by the kernel alone, so not
//! without root and not in qcow2. Logical volumes (LVM), encrypted partitions (LUKS), RAID and ZFS,
//! file systems spread over several devices, images of several disks: refused by name, or left out.
//! Formats other than raw and qcow2. What is in the tree (`vireo-tree`), where images are kept
//! (`vireo-store`).
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

mod before;
mod bytes;
mod disk;
mod error;
mod esp;
mod fat;
mod fsck;
mod grow;
mod host;
pub mod journal;
mod layout;
pub mod leaks;
mod partition;
mod patch;
mod probe;
mod qcow2;
mod rootless;
mod script;
mod superblock;
pub mod testing;
pub mod unmounted;

pub use before::{BaseCheck, check_base};
pub use bytes::Format;
pub use disk::{Access, DiskImage, Mounted};
pub use error::{ErrorKind, ImageError};
pub use esp::{EspChange, EspChangeKind, esp_changes};
pub use fsck::{fsck, fsck_all};
pub use grow::MAX_GROWN_LEN;
#[cfg(feature = "loopdev")]
pub use host::LoopdevHost;
pub use host::{DetachedHost, HostMount, MountError, MountHost, MountOptions, Window};
pub use layout::{LeftOut, Volume};
pub use partition::{Layout, Partition, RootPartition};
pub use patch::{Backend, PatchOptions, PatchStep, Patched, clone_image, patch, patch_with};
pub use probe::FileSystemKind;
pub use superblock::Superblock;
pub use vireo_sys::copy::CloneKind;

use std::path::Path;

use vireo_model::{Ignore, Tree};
use vireo_tree::{Scan, ScanOptions, scan};

/// Reads the tree in `image` through a detached read-only mount; in a qcow2 image, which has to be
/// expanded to be mounted, with our own reader.
///
/// # Errors
///
/// As [`DiskImage::open`], [`DiskImage::mount`] and [`scan`].
pub fn read_tree(image: &Path, ignore: &Ignore) -> Result<Tree, ImageError> {
    read_tree_in(image, RootPartition::Find, ignore)
}

/// As [`read_tree`], of an image with this root.
///
/// # Errors
///
/// As [`read_tree`].
pub fn read_tree_in(
    image: &Path,
    root: RootPartition,
    ignore: &Ignore,
) -> Result<Tree, ImageError> {
    if Format::of_name(image) == Format::Qcow2 {
        return unmounted::read_tree_in(image, root, ignore);
    }
    Ok(scan_root((image, root), ignore, &ScanOptions::default())?.tree)
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
    scan_root((image, RootPartition::Find), ignore, options)
}

fn scan_root(
    (image, root): (&Path, RootPartition),
    ignore: &Ignore,
    options: &ScanOptions<'_>,
) -> Result<Scan, ImageError> {
    let mounted = DiskImage::open(image, root)?.mount(Access::ReadOnly)?;
    let scan =
        scan(mounted.root(), ignore, options).map_err(|error| ImageError::tree(image, error))?;
    mounted.finish()?;
    Ok(scan)
}
