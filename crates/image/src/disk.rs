//! An image, and the mount of its file systems as one tree.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2, syncfs};
use rustix::io::Errno;
use vireo_model::ImagePath;
use vireo_sys::lease;
use vireo_sys::lock::FileLock;
use vireo_tree::Root;

use crate::bytes::Bytes;
use crate::host::{DetachedHost, HostMount, MountError, MountHost, Window};
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
        self.mount_by(&DetachedHost, access)
    }

    /// The same, by another host than [`DetachedHost`].
    ///
    /// # Errors
    ///
    /// As [`DiskImage::mount`].
    pub fn mount_by(self, host: &dyn MountHost, access: Access) -> Result<Mounted, ImageError> {
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
        let mounter = Mounter { path: &self.path, file: &file, host };
        let mut root = self.root;
        // Read-only at first: a kernel plays a log back only where it can write, and says so where it
        // cannot. An image with such a log is one of a machine that runs or crashed.
        let text = mounter.look(&mut root)?;
        let (others, left_out) = layout::arrange(&self.path, &self.slots, &root, &text)?;
        others.iter().try_for_each(|volume| volume.check(&self.path))?;
        let is_xfs = |volume: &&Volume| volume.kind == FileSystemKind::Xfs;
        for volume in others.iter().filter(is_xfs).filter(|_| write) {
            drop(mounter.mount_one(volume, false)?);
        }
        let mut volumes = vec![root];
        volumes.extend(others);
        let mounts = mounter.mount_all(&volumes, write)?;
        let mut tops: Vec<OwnedFd> = Vec::new();
        for (volume, mount) in volumes.iter().zip(&mounts) {
            require_mount_point(&volumes, &tops, volume, &self.path)?;
            tops.push(mounter.open(volume, mount)?);
        }
        drop(file);
        Mounted::new(self.path, (volumes, tops, mounts), left_out, write, lock)
    }
}

pub(crate) fn busy(path: &Path) -> ImageError {
    let message = format!(
        "{} is in use: a virtual machine, a loop device or another process has it open; stop it and try again",
        path.display()
    );
    ImageError::new(ErrorKind::Busy, message)
}

/// Mounts the parts of one image.
struct Mounter<'a> {
    path: &'a Path,
    file: &'a File,
    host: &'a dyn MountHost,
}

impl Mounter<'_> {
    /// The text of the root's `/etc/fstab`, from a mount that is let go again; of a btrfs also which
    /// subvolume is the root of a system.
    fn look(&self, root: &mut Volume) -> Result<Vec<u8>, ImageError> {
        let top = self.open(root, &self.mount_one(root, false)?)?;
        if root.kind == FileSystemKind::Btrfs && !is_system(&top) {
            for name in ROOT_SUBVOLUMES {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let Ok(below) = openat2(&top, name, flags, Mode::empty(), BENEATH) else {
                    continue;
                };
                if is_system(&below) {
                    let text = read_fstab(&below, self.path)?.unwrap_or_default();
                    let named = layout::root_subvolume(&text);
                    root.subvolume = Some(named.unwrap_or_else(|| name.to_owned()));
                    return Ok(text);
                }
            }
        }
        Ok(read_fstab(&top, self.path)?.unwrap_or_default())
    }

    /// Mounts `volumes`, the parts of one partition together.
    fn mount_all(&self, volumes: &[Volume], write: bool) -> Result<Vec<HostMount>, ImageError> {
        let mut mounts: Vec<Option<HostMount>> = volumes.iter().map(|_| None).collect();
        for index in 0..volumes.len() {
            if mounts[index].is_some() {
                continue;
            }
            let is_beside = |at: &usize| volumes[*at].partition == volumes[index].partition;
            let group: Vec<usize> = (index..volumes.len()).filter(is_beside).collect();
            let views: Vec<&Volume> = group.iter().map(|at| &volumes[*at]).collect();
            for (at, mount) in group.into_iter().zip(self.mount_views(&views, write)?) {
                mounts[at] = Some(mount);
            }
        }
        Ok(mounts.into_iter().flatten().collect())
    }

    fn mount_one(&self, volume: &Volume, write: bool) -> Result<HostMount, ImageError> {
        let mount = self.mount_views(&[volume], write)?.pop();
        mount.ok_or_else(|| self.explain(volume, io::ErrorKind::NotFound.into()))
    }

    /// Mounts the `views` of one partition, of which there are several for btrfs alone.
    fn mount_views(&self, views: &[&Volume], write: bool) -> Result<Vec<HostMount>, ImageError> {
        let Some(volume) = views.first() else { return Ok(Vec::new()) };
        if let (true, Some(superblock)) = (write, &volume.fs.superblock) {
            superblock.check_writable(self.path)?;
        }
        let Partition { offset, len, .. } = volume.partition;
        let window = Window { offset, len, read_only: !write };
        let failed = |error: MountError| self.explain(volume, error.source);
        if volume.kind == FileSystemKind::Ext {
            return Ok(vec![self.host.mount(self.file, window).map_err(failed)?]);
        }
        let own: Vec<Vec<(&str, Option<&str>)>> = views.iter().map(|view| options(view)).collect();
        let options: Vec<_> = own.iter().map(Vec::as_slice).collect();
        self.host.mount_as(self.file, window, volume.kind.name(), &options).map_err(failed)
    }

    fn open(&self, volume: &Volume, mount: &HostMount) -> Result<OwnedFd, ImageError> {
        mount.open_root().map_err(|error| self.explain(volume, error))
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

fn options(volume: &Volume) -> Vec<(&str, Option<&str>)> {
    match (volume.kind, &volume.subvolume) {
        // The base and its clone have one UUID, and may be mounted at the same time.
        (FileSystemKind::Xfs, _) => vec![("nouuid", None)],
        (FileSystemKind::Btrfs, Some(name)) => vec![("subvol", Some(name.as_str()))],
        _ => Vec::new(),
    }
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

/// Fails unless there is a real directory where `volume` is to be mounted, in the tree of the first
/// of `volumes`, whose root directories are `tops`.
fn require_mount_point(
    volumes: &[Volume],
    tops: &[OwnedFd],
    volume: &Volume,
    image: &Path,
) -> Result<(), ImageError> {
    let mounted = volumes.iter().zip(tops).rev();
    let outer = mounted
        .filter(|(outer, _)| volume.at.is_within(&outer.at))
        .max_by_key(|(v, _)| v.at.as_bytes().len());
    let Some((outer, top)) = outer else {
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
    mounts: Vec<HostMount>,
    lock: Option<FileLock>,
}

impl Mounted {
    fn new(
        path: PathBuf,
        (volumes, tops, mounts): (Vec<Volume>, Vec<OwnedFd>, Vec<HostMount>),
        left_out: Vec<LeftOut>,
        write: bool,
        lock: Option<FileLock>,
    ) -> Result<Self, ImageError> {
        let mut parts = volumes.iter().zip(tops);
        let Some((_, top)) = parts.next() else {
            let message = format!("{} has no file system", path.display());
            return Err(ImageError::new(ErrorKind::NotAnImage, message));
        };
        let root = Root::from_fd(top, path.clone());
        let root = parts.fold(root, |root, (volume, top)| root.with_mount(volume.at.clone(), top));
        Ok(Self { path, root, volumes, left_out, write, mounts, lock })
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
        let Self { path, root, write, mounts, lock, .. } = self;
        if write {
            for mount in &mounts {
                let synced = mount.open_root().and_then(|top| Ok(syncfs(top)?));
                synced.map_err(|error| ImageError::io("write out", &path, error))?;
            }
        }
        drop((root, mounts, lock));
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
