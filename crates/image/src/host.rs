//! The host's part in mounting, as a port: a window of an image file is attached and mounted where
//! nobody else can see it, and let go.
//!
//! [`DetachedHost`] is what everybody has: one ioctl and a mount that is in no namespace, so that
//! no end of the process leaves anything behind. Kernels before 5.8 lack the ioctl; for them there
//! is `LoopdevHost`, behind the feature `loopdev`. Both keep
//! [`testing::check_mount_host`](crate::testing::check_mount_host).
//!
//! # Not here
//!
//! Who else uses the image ([`DiskImage::mount`](crate::DiskImage::mount) asks that before), and
//! patching without mounting.

#[cfg(feature = "loopdev")]
mod loopdev;

#[cfg(feature = "loopdev")]
pub use self::loopdev::LoopdevHost;

use std::any::Any;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};
use vireo_sys::detached;
use vireo_sys::loopdev::LoopDevice;
pub use vireo_sys::loopdev::Window;

/// Attaches windows of image files and mounts what is in them.
///
/// The contract as code is [`testing::check_mount_host`](crate::testing::check_mount_host); in
/// short: exactly the window is mounted, read-only if it is to be, without set-user-ID bits, device
/// nodes, execution and access times; no mount stays visible to anybody; and when the answer is
/// dropped, the mount and the loop device are gone.
pub trait MountHost: Debug + Send + Sync {
    /// Mounts the ext2, ext3 or ext4 file system in `window` of `image`, which is open for writing
    /// unless the window is read-only.
    ///
    /// # Errors
    ///
    /// The step that failed, with the kernel's reason; nothing stays attached.
    fn mount(&self, image: &File, window: Window) -> Result<HostMount, MountError>;

    /// Mounts a file system of another kind, as the kernel's driver calls it: once for each of
    /// `views`, all from one device, because btrfs knows its file system by the device. A host that
    /// does not say how mounts ext2, ext3 and ext4 alone.
    ///
    /// # Errors
    ///
    /// As [`MountHost::mount`].
    fn mount_as(
        &self,
        _image: &File,
        _window: Window,
        fs_type: &str,
        _views: &[MountOptions<'_>],
    ) -> Result<Vec<HostMount>, MountError> {
        let why = format!("this way of mounting knows ext2, ext3 and ext4, not {fs_type}");
        Err(MountError { step: "mount", source: io::Error::new(io::ErrorKind::Unsupported, why) })
    }
}

/// A file system's own options: names, with values where they have one.
pub type MountOptions<'a> = &'a [(&'a str, Option<&'a str>)];

/// A step that failed, and why.
#[derive(Debug)]
pub struct MountError {
    /// What was being done to the image: `attach`, `mount`.
    pub step: &'static str,
    /// The system's reason.
    pub source: io::Error,
}

impl MountError {
    /// For `map_err`.
    pub(crate) fn at(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self { step, source }
    }
}

/// A mounted window; unmounted and detached when dropped, or when the process ends.
#[derive(Debug)]
#[must_use = "dropping it unmounts at once"]
pub struct HostMount {
    /// A handle on the root directory, perhaps only as a place (`O_PATH`). Dropped first.
    place: OwnedFd,
    _held: Box<dyn Any + Send + Sync>,
}

impl HostMount {
    /// The mount whose root directory is `place`, and what has to live as long as it does.
    pub fn new(place: OwnedFd, held: impl Any + Send + Sync) -> Self {
        Self { place, _held: Box::new(held) }
    }

    /// Opens its root directory. The mount lives as long as any such handle.
    ///
    /// # Errors
    ///
    /// As `openat(2)`.
    pub fn open_root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(&self.place, ".", flags, Mode::empty())?)
    }
}

/// `LOOP_CONFIGURE` (Linux 5.8) and a detached mount (`fsopen(2)`, `fsmount(2)`): it is never in any
/// namespace, and `kill -9` at any moment leaves nothing behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct DetachedHost;

impl MountHost for DetachedHost {
    fn mount(&self, image: &File, window: Window) -> Result<HostMount, MountError> {
        let device = LoopDevice::attach(image, window).map_err(MountError::at("attach"))?;
        // ext4's driver serves ext2 and ext3 as well.
        let place = detached::mount(device.path(), "ext4", window.read_only)
            .map_err(MountError::at("mount"))?;
        Ok(HostMount::new(place, device))
    }

    fn mount_as(
        &self,
        image: &File,
        window: Window,
        fs_type: &str,
        views: &[MountOptions<'_>],
    ) -> Result<Vec<HostMount>, MountError> {
        let device = LoopDevice::attach(image, window).map_err(MountError::at("attach"))?;
        let device = Arc::new(device);
        let mount = |options: &MountOptions<'_>| {
            let place = detached::mount_with(device.path(), fs_type, window.read_only, options)
                .map_err(MountError::at("mount"))?;
            Ok(HostMount::new(place, Arc::clone(&device)))
        };
        views.iter().map(mount).collect()
    }
}
