//! The handles that everything happens beneath.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstatfs, fstatvfs, openat, openat2};
use rustix::io::Errno;
use vireo_model::ImagePath;
use vireo_sys::stamp::Stamp;

use crate::dir::Dir;
use crate::{ErrorKind, TreeError};

/// No step of the way may be a symbolic link or lead above the root.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// What statfs(2) says that FAT is.
const MSDOS_SUPER_MAGIC: u32 = 0x4d44;

/// The root directory of a tree: a directory, a live root, or a mount that is in no namespace;
/// with the further file systems that the tree consists of.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    label: PathBuf,
    /// Further file systems of the tree, in path order.
    mounts: Vec<Mount>,
    /// The file that the tree is in.
    stamp: Option<Stamp>,
}

/// A file system that holds a part of a tree, such as `/boot` or `/var`.
#[derive(Debug)]
struct Mount {
    at: ImagePath,
    fd: OwnedFd,
    kind: MountKind,
}

/// What a file system keeps of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MountKind {
    /// All that a node has.
    Whole,
    /// FAT: names and contents. What else is seen of it are options of the mount; there are no links, and no inode
    /// numbers that last.
    Fat,
    /// The files of a FAT file system on one that keeps all; whoever put them there takes them back.
    FatCopy,
}

impl Root {
    /// The tree below the directory `path`.
    ///
    /// # Errors
    ///
    /// `path` is no directory or cannot be opened.
    pub fn open(path: &Path) -> Result<Self, TreeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty()).map_err(|error| {
            TreeError::io("open the directory", path, &ImagePath::root(), error)
        })?;
        Ok(Self::from_fd(fd, path.to_owned()))
    }

    /// The tree below the directory handle `fd`; `label` names it in messages.
    #[must_use]
    pub fn from_fd(fd: OwnedFd, label: PathBuf) -> Self {
        Self { fd, label, mounts: Vec::new(), stamp: None }
    }

    /// The same tree, of which the directory `at` and all below is on the file system whose root
    /// directory is `fd`. What the tree itself has below `at` is hidden, as by a mount.
    ///
    /// A FAT file system is told by itself: what is on it is read in its normal form
    /// ([`vireo_model::plain`]), and updates keep what belongs to it on the root's file system.
    #[must_use]
    pub fn with_mount(mut self, at: ImagePath, fd: OwnedFd) -> Self {
        self.add_mount(at, fd);
        self
    }

    /// As [`Root::with_mount`], in place.
    pub(crate) fn add_mount(&mut self, at: ImagePath, fd: OwnedFd) {
        // The type has another width and sign on other processors.
        let is_fat = fstatfs(&fd).is_ok_and(|stat| stat.f_type as u32 == MSDOS_SUPER_MAGIC);
        self.add(at, fd, if is_fat { MountKind::Fat } else { MountKind::Whole });
    }

    /// As [`Root::with_mount`], for a directory that has the files of a FAT file system and gives them back to it
    /// when they were changed.
    #[must_use]
    pub fn with_plain_copy(mut self, at: ImagePath, fd: OwnedFd) -> Self {
        self.add(at, fd, MountKind::FatCopy);
        self
    }

    /// The same tree, which is mounted read-only from the file that `stamp` is of: an image, which nobody
    /// may write meanwhile.
    #[must_use]
    pub fn with_stamp(mut self, stamp: Stamp) -> Self {
        self.stamp = Some(stamp);
        self
    }

    /// Fails if the image that the tree is in was written since its stamp was taken: the kernel may have
    /// read some of it before and some after. Of other trees each file is looked at when it is read.
    ///
    /// # Errors
    ///
    /// `Busy`; `Io` if the image cannot be found any more.
    pub fn check_settled(&self) -> Result<(), TreeError> {
        let Some(stamp) = &self.stamp else { return Ok(()) };
        let is_current = stamp
            .is_current()
            .map_err(|error| TreeError::io("look at", stamp.path(), &ImagePath::root(), error))?;
        if is_current { Ok(()) } else { Err(TreeError::new(ErrorKind::Busy, stamp.complaint())) }
    }

    /// As a FAT file system that is mounted.
    #[cfg(test)]
    pub(crate) fn with_fat(mut self, at: ImagePath, fd: OwnedFd) -> Self {
        self.add(at, fd, MountKind::Fat);
        self
    }

    fn add(&mut self, at: ImagePath, fd: OwnedFd, kind: MountKind) {
        self.mounts.retain(|mount| mount.at != at);
        self.mounts.push(Mount { at, fd, kind });
        self.mounts.sort_by(|a, b| a.at.cmp(&b.at));
    }

    /// What messages call it.
    #[must_use]
    pub fn label(&self) -> &Path {
        &self.label
    }

    /// Where its further file systems are, in path order.
    pub fn mounts(&self) -> impl Iterator<Item = &ImagePath> {
        self.mounts.iter().map(|mount| &mount.at)
    }

    /// Where its file systems with FAT are, in path order.
    pub fn plain_mounts(&self) -> impl Iterator<Item = &ImagePath> {
        let plain = self.mounts.iter().filter(|mount| mount.kind != MountKind::Whole);
        plain.map(|mount| &mount.at)
    }

    /// Where each file system of the tree is, with the number that statfs(2) tells it by, if it tells one; the root's own
    /// first, in path order. Of ext2, ext3 and ext4 the number comes from the UUID.
    pub fn file_systems(&self) -> impl Iterator<Item = (ImagePath, Option<u64>)> {
        let own = std::iter::once((ImagePath::root(), &self.fd));
        let all = own.chain(self.mounts.iter().map(|mount| (mount.at.clone(), &mount.fd)));
        all.map(|(at, fd)| (at, fstatvfs(fd).ok().map(|stat| stat.f_fsid).filter(|id| *id != 0)))
    }

    /// Opens the regular file `path` for reading, following nothing.
    ///
    /// # Errors
    ///
    /// As opening a file.
    pub fn open_file(&self, path: &ImagePath) -> Result<std::fs::File, TreeError> {
        let (dir, name) = self.require("open", path)?;
        dir.open(name).map_err(self.failed("open", path))
    }

    /// The file system that holds the directory `path`: where it is, none for the root's own.
    pub(crate) fn mount_of(&self, path: &ImagePath) -> Option<&ImagePath> {
        self.mount(path).map(|mount| &mount.at)
    }

    /// Whether what stands at `path` is on FAT, or was: names and contents are all that counts of it.
    pub(crate) fn is_plain(&self, path: &ImagePath) -> bool {
        self.mount(path).is_some_and(|mount| mount.kind != MountKind::Whole)
    }

    /// Whether `path` is on a FAT file system.
    pub(crate) fn is_on_fat(&self, path: &ImagePath) -> bool {
        self.mount(path).is_some_and(|mount| mount.kind == MountKind::Fat)
    }

    /// Whether `path` is on FAT and belongs to the machine alone.
    pub(crate) fn is_machines_own(&self, path: &ImagePath) -> bool {
        let Some(mount) = self.mount(path).filter(|mount| mount.kind != MountKind::Whole) else {
            return false;
        };
        let below = path.as_bytes().get(mount.at.as_bytes().len() + 1..);
        below.is_some_and(vireo_model::is_machines_own)
    }

    /// Whether a file system of its own begins at `path`.
    pub(crate) fn is_mount(&self, path: &ImagePath) -> bool {
        self.mounts.iter().any(|mount| mount.at == *path)
    }

    fn mount(&self, path: &ImagePath) -> Option<&Mount> {
        // In path order the innermost comes last.
        self.mounts.iter().rev().find(|mount| path.is_within(&mount.at))
    }

    /// The directory `path` beneath the root.
    pub(crate) fn dir(&self, path: &ImagePath) -> Result<Dir, Errno> {
        crate::fault::hit(crate::fault::Op::Look)?;
        let (fd, below) = match self.mount(path) {
            None => (&self.fd, path.relative()),
            Some(mount) if mount.at == *path => (&mount.fd, b".".as_slice()),
            Some(mount) => (&mount.fd, &path.as_bytes()[mount.at.as_bytes().len() + 1..]),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(fd, OsStr::from_bytes(below), flags, Mode::empty(), BENEATH).map(Dir::new)
    }

    /// The directory that holds `path`, and the name of `path` in it (`.` for the root itself and
    /// for where another file system begins).
    pub(crate) fn locate<'p>(&self, path: &'p ImagePath) -> Result<(Dir, &'p [u8]), Errno> {
        match path.parent() {
            Some(parent) if !self.is_mount(path) => Ok((self.dir(&parent)?, path.name())),
            _ => Ok((self.dir(path)?, b".")),
        }
    }

    /// [`Root::locate`], where there must be such a directory.
    pub(crate) fn require<'p>(
        &self,
        step: &str,
        path: &'p ImagePath,
    ) -> Result<(Dir, &'p [u8]), TreeError> {
        self.locate(path).map_err(|error| match error {
            Errno::LOOP => TreeError::new(
                ErrorKind::Drift,
                format!(
                    "cannot {step} {path}: a directory on the way is a symbolic link in {}",
                    self.label.display()
                ),
            ),
            error => self.failed(step, path)(error),
        })
    }

    /// What messages call `path`.
    pub(crate) fn place(&self, path: &ImagePath) -> String {
        crate::error::place(&self.label, path)
    }

    /// Shorthand for `map_err`: `step` failed at `path`.
    pub(crate) fn failed<'p, E: Into<std::io::Error>>(
        &'p self,
        step: &'p str,
        path: &'p ImagePath,
    ) -> impl Fn(E) -> TreeError + 'p {
        move |error| TreeError::io(step, &self.label, path, error)
    }
}
