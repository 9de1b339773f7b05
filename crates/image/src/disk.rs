//! An image, and the mount of its file systems as one tree.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2, syncfs};
use rustix::io::Errno;
use vireo_model::ImagePath;
use vireo_sys::detached;
use vireo_sys::lease;
use vireo_sys::lock::FileLock;
use vireo_sys::loopdev::{LoopDevice, Window};
use vireo_tree::Root;

use crate::bytes::Bytes;
use crate::layout::{self, LeftOut, Volume};
use crate::partition::{Partition, RootPartition, Slot, slots};
use crate::probe::FileSystemKind;
use crate::{ErrorKind, ImageError, fstab};

/// How long the kernel may take to let a closed mount's loop device go.
const RELEASE_TRIES: u32 = 100;
const RELEASE_INTERVAL: Duration = Duration::from_millis(10);

/// Where installers put the root of a btrfs, if not at its default.
const ROOT_SUBVOLUMES: [&str; 2] = ["@", "root"];

/// Nothing on the way may be a symbolic link or lead out of the file system's root directory.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Whether a mount may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written, not even the journal or access times.
    ReadOnly,
    /// The tree may be changed. Nobody else may have the image open.
    ReadWrite,
}

/// A disk image whose root file system was found and looks mountable.
#[derive(Debug)]
pub struct DiskImage {
    path: PathBuf,
    slots: Vec<Slot>,
    root: Volume,
    is_raw: bool,
}

impl DiskImage {
    /// Opens the image at `path`. Nothing is attached or mounted yet.
    ///
    /// # Errors
    ///
    /// `NotAnImage`, `UnknownPartition`, `Unclean`, `Unsupported`, `Damaged`, `Io`.
    pub fn open(path: &Path, root: RootPartition) -> Result<Self, ImageError> {
        let bytes = Bytes::open(path)?;
        let slots = slots(&bytes, path)?;
        let root = layout::find_root(&bytes, path, &slots, root)?;
        root.check(path)?;
        Ok(Self { path: path.to_owned(), slots, root, is_raw: bytes.qcow2().is_none() })
    }

    /// Where the root file system lies.
    #[must_use]
    pub fn partition(&self) -> &Partition {
        &self.root.partition
    }

    /// What the root file system is.
    #[must_use]
    pub fn kind(&self) -> FileSystemKind {
        self.root.kind
    }

    /// Where what lies behind every partition but the root's begins, in bytes.
    pub(crate) fn end_of_others(&self) -> u64 {
        let others = self.slots.iter().map(|slot| &slot.partition);
        let others = others.filter(|partition| **partition != self.root.partition);
        others.map(|partition| partition.offset.saturating_add(partition.len)).max().unwrap_or(0)
    }

    /// The image's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts the root file system, and those that its `/etc/fstab` puts beneath it, where no other
    /// process can see them.
    ///
    /// Each is a mount of its own; [`Root`] puts them together. So there is no mount namespace
    /// to leave behind, and the agent of a running machine reads the same tree in the same way.
    ///
    /// # Errors
    ///
    /// `NoRoot` without CAP_SYS_ADMIN, `Busy` if the image is to be written and something has it
    /// open, `Unclean`, `Unsupported` for a kernel without the driver and for qcow2, which has to be
    /// expanded first, `Damaged` or `Io` with the kernel's explanation.
    pub fn mount(self, access: Access) -> Result<Mounted, ImageError> {
        if !self.is_raw {
            let message = format!(
                "{} is a qcow2 image, which cannot be mounted; convert it first (`qemu-img convert -O raw`)",
                self.path.display()
            );
            return Err(ImageError::new(ErrorKind::Unsupported, message));
        }
        let failed = |step: &'static str| {
            let path = self.path.clone();
            move |error: io::Error| ImageError::io(step, &path, error)
        };
        let write = access == Access::ReadWrite;
        let file =
            File::options().read(true).write(write).open(&self.path).map_err(failed("open"))?;
        let mut lock = None;
        if write {
            if !lease::is_exclusive(&file).map_err(failed("ask who uses"))? {
                return Err(busy(&self.path));
            }
            let handle = file.try_clone().map_err(failed("lock"))?;
            lock = Some(
                FileLock::on(handle).map_err(failed("lock"))?.ok_or_else(|| busy(&self.path))?,
            );
        }
        let mut mounter = Mounter { path: &self.path, file: &file, write, devices: Vec::new() };
        let mut root = self.root;
        let top = mounter.root(&mut root)?;
        let text = read_fstab(&top, &self.path)?.unwrap_or_default();
        let (volumes, left_out) = layout::arrange(&self.path, &self.slots, &root, &text)?;
        let mut mounts = vec![(root, top)];
        for volume in volumes {
            volume.check(&self.path)?;
            require_mount_point(&mounts, &volume, &self.path)?;
            let top = mounter.mount(&volume)?;
            mounts.push((volume, top));
        }
        let devices = mounter.devices.into_iter().map(|(_, device)| device).collect();
        drop(file);
        Mounted::new(self.path, mounts, left_out, devices, write, lock)
    }
}

pub(crate) fn busy(path: &Path) -> ImageError {
    let message = format!(
        "{} is in use: a virtual machine, a loop device or another process has it open; stop it and try again",
        path.display()
    );
    ImageError::new(ErrorKind::Busy, message)
}

/// Attaches and mounts the parts of one image.
struct Mounter<'a> {
    path: &'a Path,
    file: &'a File,
    write: bool,
    /// One for each partition, however many of its subvolumes are mounted.
    devices: Vec<(Partition, LoopDevice)>,
}

impl Mounter<'_> {
    /// Mounts the root, of a btrfs the subvolume that is the root of a system.
    fn root(&mut self, root: &mut Volume) -> Result<OwnedFd, ImageError> {
        let top = self.mount(root)?;
        if root.kind != FileSystemKind::Btrfs || is_system(&top) {
            return Ok(top);
        }
        for name in ROOT_SUBVOLUMES {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let Ok(below) = openat2(&top, name, flags, Mode::empty(), BENEATH) else { continue };
            if is_system(&below) {
                let text = read_fstab(&below, self.path)?.unwrap_or_default();
                root.subvolume =
                    Some(layout::root_subvolume(&text).unwrap_or_else(|| name.to_owned()));
                return self.mount(root);
            }
        }
        Ok(top)
    }

    fn mount(&mut self, volume: &Volume) -> Result<OwnedFd, ImageError> {
        if let (true, Some(superblock)) = (self.write, &volume.fs.superblock) {
            superblock.check_writable(self.path)?;
        }
        if self.write && volume.kind == FileSystemKind::Xfs {
            // Only the kernel can tell whether its log is empty, and only from a device that it
            // cannot write to it says so instead of playing the log back.
            let probe = self.attach(&volume.partition, false)?;
            drop(self.mount_device(&probe, volume, false)?);
        }
        let known = self.devices.iter().position(|(partition, _)| *partition == volume.partition);
        let index = match known {
            Some(index) => index,
            None => {
                let device = self.attach(&volume.partition, self.write)?;
                self.devices.push((volume.partition.clone(), device));
                self.devices.len() - 1
            }
        };
        self.mount_device(&self.devices[index].1, volume, self.write)
    }

    fn attach(&self, partition: &Partition, write: bool) -> Result<LoopDevice, ImageError> {
        // The whole partition: a file system that is shorter has a length of its own.
        let window = Window { offset: partition.offset, len: partition.len, read_only: !write };
        LoopDevice::attach(self.file, window)
            .map_err(|error| ImageError::io("attach", self.path, error))
    }

    fn mount_device(
        &self,
        device: &LoopDevice,
        volume: &Volume,
        write: bool,
    ) -> Result<OwnedFd, ImageError> {
        let mut options = Vec::new();
        if volume.kind == FileSystemKind::Xfs {
            // The base and its clone have one UUID, and may be mounted at the same time.
            options.push(("nouuid", None));
        }
        if let (FileSystemKind::Btrfs, Some(name)) = (volume.kind, &volume.subvolume) {
            options.push(("subvol", Some(name.as_str())));
        }
        let mount = detached::mount_with(device.path(), volume.kind.name(), !write, &options)
            .map_err(|error| self.explain(volume, error))?;
        // The mount's own handle is only a place (O_PATH); syncing needs an open directory.
        open_top(&mount).map_err(|error| self.explain(volume, error))
    }

    fn explain(&self, volume: &Volume, error: io::Error) -> ImageError {
        let image = self.path.display();
        let (what, kind) = (volume.describe(), volume.kind.name());
        if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) {
            let message = format!(
                "{image}: this kernel cannot mount {kind}, which its {what} is; load its driver \
                 (`modprobe {kind}`), or use a host that has it"
            );
            return ImageError::new(ErrorKind::Unsupported, message);
        }
        let optional = volume.fs.superblock.as_ref().and_then(|s| s.optional_features());
        if let (io::ErrorKind::InvalidInput, Some(features)) = (error.kind(), optional) {
            let message = format!(
                "{image}: this kernel refuses its {what} ({error}), which has features that kernels can be \
                 built without: {features}; use a host whose kernel has them"
            );
            return ImageError::new(ErrorKind::Unsupported, message);
        }
        if volume.kind == FileSystemKind::Xfs && error.kind() == io::ErrorKind::ReadOnlyFilesystem {
            let message = format!(
                "{image}: its {what} has an unfinished log: its machine is running or was not shut down \
                 cleanly; shut it down, or mount and unmount it once"
            );
            return ImageError::new(ErrorKind::Unclean, message);
        }
        ImageError::io(&format!("mount the {kind} at {what} of"), self.path, error)
    }
}

fn open_top(mount: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(mount, ".", flags, Mode::empty())?)
}

/// Whether the directory `top` has what makes it the root of a system.
fn is_system(top: &OwnedFd) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(top, "etc", flags, Mode::empty(), BENEATH).is_ok()
}

/// The text of `/etc/fstab` below `top`; `None` if there is none.
fn read_fstab(top: impl AsFd, image: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let name = layout::FSTAB[1].trim_start_matches('/');
    let failed = |error: io::Error| ImageError::io("read /etc/fstab in", image, error);
    let file = match openat2(top, name, flags, Mode::empty(), BENEATH) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NXIO) => return Ok(None),
        Err(Errno::LOOP) => return Err(layout::linked_fstab(image)),
        Err(error) => return Err(failed(error.into())),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Ok(None);
    }
    let mut text = Vec::new();
    file.take(fstab::MAX_LEN + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > fstab::MAX_LEN {
        return Err(layout::long_fstab(image));
    }
    Ok(Some(text))
}

/// Fails unless there is a real directory where `volume` is to be mounted, in the tree of `mounts`.
fn require_mount_point(
    mounts: &[(Volume, OwnedFd)],
    volume: &Volume,
    image: &Path,
) -> Result<(), ImageError> {
    let Some((outer, top)) = mounts.iter().rev().find(|(outer, _)| volume.at.is_within(&outer.at))
    else {
        return Ok(());
    };
    let below = &volume.at.as_bytes()[outer.at.as_bytes().len()..];
    let below = below.strip_prefix(b"/").unwrap_or(below);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat2(top, OsStr::from_bytes(below), flags, Mode::empty(), BENEATH);
    opened.map(drop).map_err(|error| no_mount_point(&volume.at, image, error == Errno::LOOP))
}

pub(crate) fn no_mount_point(at: &ImagePath, image: &Path, is_link: bool) -> ImageError {
    let (image, what) =
        (image.display(), if is_link { "a symbolic link on its way" } else { "no directory" });
    let message = format!(
        "{image}: its /etc/fstab mounts a file system at {at}, but there is {what} there; make the \
         directory, or correct the entry"
    );
    ImageError::new(ErrorKind::Unsupported, message)
}

/// The mounted file systems of an image.
///
/// Call [`finish`](Self::finish) after writing: it alone says whether the last bytes reached the
/// image. Dropping unmounts too, and so does the end of the process.
#[derive(Debug)]
#[must_use = "dropping it unmounts at once"]
pub struct Mounted {
    path: PathBuf,
    root: Root,
    volumes: Vec<Volume>,
    left_out: Vec<LeftOut>,
    write: bool,
    /// The root directory of each file system.
    tops: Vec<OwnedFd>,
    devices: Vec<LoopDevice>,
    lock: Option<FileLock>,
}

impl Mounted {
    fn new(
        path: PathBuf,
        mounts: Vec<(Volume, OwnedFd)>,
        left_out: Vec<LeftOut>,
        devices: Vec<LoopDevice>,
        write: bool,
        lock: Option<FileLock>,
    ) -> Result<Self, ImageError> {
        let (mut volumes, mut tops) = (Vec::new(), Vec::new());
        let mut root: Option<Root> = None;
        for (volume, top) in mounts {
            let own = top.try_clone().map_err(|error| ImageError::io("open", &path, error))?;
            root = Some(match root {
                None => Root::from_fd(own, path.clone()),
                Some(root) => root.with_mount(volume.at.clone(), own),
            });
            volumes.push(volume);
            tops.push(top);
        }
        let Some(root) = root else {
            return Err(ImageError::new(
                ErrorKind::NotAnImage,
                format!("{} is empty", path.display()),
            ));
        };
        Ok(Self { path, root, volumes, left_out, write, tops, devices, lock })
    }

    /// The tree in it.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The file systems that the tree is made of, the root first.
    #[must_use]
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// What its `/etc/fstab` mounts and the tree is without.
    #[must_use]
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Writes everything out, unmounts, and waits until the kernel has let the image go. What was
    /// written is in the image file then, but not necessarily on the disk.
    ///
    /// # Errors
    ///
    /// The last writes failed, or something still holds the image.
    pub fn finish(self) -> Result<(), ImageError> {
        let Self { path, root, write, tops, devices, lock, .. } = self;
        if write {
            for top in &tops {
                syncfs(top).map_err(|error| ImageError::io("write out", &path, error))?;
            }
        }
        drop((root, tops, devices, lock));
        if !write {
            return Ok(());
        }
        for _ in 0..RELEASE_TRIES {
            let file = File::options().read(true).write(true).open(&path);
            let file = file.map_err(|error| ImageError::io("open", &path, error))?;
            if lease::is_exclusive(&file)
                .map_err(|error| ImageError::io("ask who uses", &path, error))?
            {
                return Ok(());
            }
            drop(file);
            thread::sleep(RELEASE_INTERVAL);
        }
        Err(busy(&path))
    }
}
