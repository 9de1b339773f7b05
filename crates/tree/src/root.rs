//! The one handle that everything happens beneath.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use vireo_model::ImagePath;

use crate::dir::Dir;
use crate::{ErrorKind, TreeError};

/// No step of the way may be a symbolic link or lead above the root. Mounts below a live root
/// may be entered.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// The root directory of a tree: a directory, a live root, or a mount that is in no namespace.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    label: PathBuf,
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
        Ok(Self { fd, label: path.to_owned() })
    }

    /// The tree below the directory handle `fd`; `label` names it in messages.
    #[must_use]
    pub fn from_fd(fd: OwnedFd, label: PathBuf) -> Self {
        Self { fd, label }
    }

    /// What messages call it.
    #[must_use]
    pub fn label(&self) -> &Path {
        &self.label
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

    /// The directory `path` beneath the root.
    pub(crate) fn dir(&self, path: &ImagePath) -> Result<Dir, Errno> {
        let name = OsStr::from_bytes(path.relative());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.fd, name, flags, Mode::empty(), BENEATH).map(Dir::new)
    }

    /// The directory that holds `path`, and the name of `path` in it (`.` for the root itself).
    pub(crate) fn locate<'p>(&self, path: &'p ImagePath) -> Result<(Dir, &'p [u8]), Errno> {
        match path.parent() {
            Some(parent) => Ok((self.dir(&parent)?, path.name())),
            None => Ok((self.dir(path)?, b".")),
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

    /// Shorthand for `map_err`: `step` failed at `path`.
    pub(crate) fn failed<'p, E: Into<std::io::Error>>(
        &'p self,
        step: &'p str,
        path: &'p ImagePath,
    ) -> impl Fn(E) -> TreeError + 'p {
        move |error| TreeError::io(step, &self.label, path, error)
    }
}
