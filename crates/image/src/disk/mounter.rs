//! Mounting the parts of one image, and what has to be looked at in them for it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use vireo_model::ImagePath;
use vireo_model::fstab;
use vireo_sys::detached;

use crate::bytes::Bytes;
use crate::fat::{self, MAX_COPY_LEN};
use crate::host::{HostMount, MountError, MountHost, Window};
use crate::layout::{self, Volume};
use crate::partition::Partition;
use crate::probe::FileSystemKind;
use crate::unmounted::open_fat;
use crate::{ErrorKind, ImageError};

/// Where installers put the root of a btrfs, if not at its default.
const ROOT_SUBVOLUMES: [&str; 2] = ["@", "root"];

/// Nothing on the way may be a symbolic link or lead out of the file system's root directory.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Mounts the parts of one image.
pub(super) struct Mounter<'a> {
    pub(super) path: &'a Path,
    pub(super) file: &'a File,
    pub(super) host: &'a dyn MountHost,
}

impl Mounter<'_> {
    /// The text of the root's `/etc/fstab`, from a mount that is let go again; of a btrfs also which
    /// subvolume is the root of a system.
    pub(super) fn look(&self, root: &mut Volume) -> Result<Vec<u8>, ImageError> {
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
    pub(super) fn mount_all(
        &self,
        volumes: &[Volume],
        write: bool,
    ) -> Result<Vec<HostMount>, ImageError> {
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

    pub(super) fn mount_one(&self, volume: &Volume, write: bool) -> Result<HostMount, ImageError> {
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
        if volume.kind == FileSystemKind::Vfat {
            return Ok(vec![self.copy_fat(volume)?]);
        }
        if volume.kind == FileSystemKind::Ext {
            return Ok(vec![self.host.mount(self.file, window).map_err(failed)?]);
        }
        let own: Vec<Vec<(&str, Option<&str>)>> = views.iter().map(|view| options(view)).collect();
        let options: Vec<_> = own.iter().map(Vec::as_slice).collect();
        self.host.mount_as(self.file, window, volume.kind.name(), &options).map_err(failed)
    }

    /// The files of a FAT file system in memory, where nobody else sees them. The host's kernel need not know FAT;
    /// [`Mounted::finish`](super::Mounted::finish) writes what was changed.
    fn copy_fat(&self, volume: &Volume) -> Result<HostMount, ImageError> {
        let fat = open_fat(&Bytes::open(self.path)?, self.path, volume)?;
        let len = volume.partition.len.saturating_add(MAX_COPY_LEN).to_string();
        let options = [("mode", Some("0700")), ("size", Some(len.as_str()))];
        let top = detached::mount_with(Path::new("vfat"), "tmpfs", false, &options);
        let top = top.map_err(|error| self.explain(volume, error))?;
        let opened = openat2(
            &top,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            BENEATH,
        );
        let dir = opened.map_err(|error| self.explain(volume, error.into()))?;
        let copied = fat::copy_to(&fat, &dir);
        copied.map_err(|error| ImageError::fat(self.path, &volume.partition, error))?;
        Ok(HostMount::new(top, ()))
    }

    pub(super) fn open(&self, volume: &Volume, mount: &HostMount) -> Result<OwnedFd, ImageError> {
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
pub(super) fn require_mount_point(
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
