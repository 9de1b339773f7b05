//! The handles that everything happens beneath.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use vireo_model::ImagePath;

use crate::dir::Dir;
use crate::{ErrorKind, TreeError};

/// No step of the way may be a symbolic link or lead above the root.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// The root directory of a tree: a directory, a live root, or a mount that is in no namespace;
/// with the further file systems that the tree consists of.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    label: PathBuf,
    /// Further file systems of the tree, in path order.
    mounts: Vec<Mount>,
}

/// A file system that holds a part of a tree, such as `/boot` or `/var`.
#[derive(Debug)]
struct Mount {
    at: ImagePath,
    fd: OwnedFd,
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
        Self { fd, label, mounts: Vec::new() }
    }

    /// The same tree, of which the directory `at` and all below is on the file system whose root
    /// directory is `fd`. What the tree itself has below `at` is hidden, as by a mount.
    #[must_use]
    pub fn with_mount(mut self, at: ImagePath, fd: OwnedFd) -> Self {
        self.mounts.retain(|mount| mount.at != at);
        self.mounts.push(Mount { at, fd });
        self.mounts.sort_by(|a, b| a.at.cmp(&b.at));
        self
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
