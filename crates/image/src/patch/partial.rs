//! An image in the making, beside the one that it becomes.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use vireo_sys::copy::{CloneKind, clone};
use vireo_sys::durable::{directory_of, sync_dir};
use vireo_sys::lock::FileLock;

use crate::bytes::{Bytes, Format};
use crate::{ErrorKind, ImageError};

/// The bits of a file's mode that are rights.
const MODE: u32 = 0o7777;

/// The rights that whoever makes a file needs to have meanwhile.
const WRITABLE: u32 = 0o600;

/// An image in the making; removed when dropped unpublished.
pub(super) struct Partial {
    pub(super) path: PathBuf,
    file: File,
    /// Its rights once it is published.
    mode: u32,
    lock: Option<FileLock>,
    published: bool,
}

impl Partial {
    pub(super) fn new(base: &Path, out: &Path) -> Result<Self, ImageError> {
        let path = vireo_sys::durable::sibling(out, ".partial");
        let failed = |error: io::Error| ImageError::io("make", &path, error);
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let Some(lock) = FileLock::on(file.try_clone().map_err(failed)?).map_err(failed)? else {
            let message =
                format!("{} is being made by another process; wait for it", out.display());
            return Err(ImageError::new(ErrorKind::Busy, message));
        };
        file.set_len(0).map_err(failed)?;
        let lock = Some(lock);
        let mut partial = Self { path: path.clone(), file, mode: 0, lock, published: false };
        partial.resemble(base)?;
        Ok(partial)
    }

    /// Gives it the base's owner and rights: a hypervisor that runs as another user has to find
    /// the image its own again. Until it is published its owner may write to it, whatever the base says.
    fn resemble(&mut self, base: &Path) -> Result<(), ImageError> {
        let like = fs::metadata(base)
            .map_err(|error| ImageError::io("read the metadata of", base, error))?;
        self.mode = like.mode() & MODE;
        let failed = |error: io::Error| ImageError::io("make", &self.path, error);
        match fchown(&self.file, Some(like.uid()), Some(like.gid())) {
            // Who is not root may not give files away, and keeps it.
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
                return Err(failed(error));
            }
            _ => {}
        }
        self.file.set_permissions(Permissions::from_mode(self.mode | WRITABLE)).map_err(failed)
    }

    /// Fills it with `base`'s bytes, and lets go of it so that it can be mounted.
    pub(super) fn fill(&mut self, base: &Path) -> Result<CloneKind, ImageError> {
        let from = File::open(base).map_err(|error| ImageError::io("open", base, error))?;
        let failed = |error| ImageError::io("clone the image to", &self.path, error);
        let bytes = Bytes::open(base)?;
        let kind = match bytes.qcow2() {
            None => clone(&from, &self.file).map_err(failed)?,
            Some(qcow2) => {
                qcow2.refuse_snapshots(base)?;
                qcow2.expand(&self.file).map_err(failed)?;
                CloneKind::Sparse
            }
        };
        // Mounting asks for exclusive use; the mount takes a lock of its own.
        self.file = File::open("/dev/null")
            .map_err(|error| ImageError::io("release", &self.path, error))?;
        self.lock = None;
        Ok(kind)
    }

    /// Fills a new file in its place: whatever still holds the mount of the former one, if only for a
    /// moment, may write to that.
    pub(super) fn fill_again(&mut self, base: &Path) -> Result<(), ImageError> {
        let make = || -> io::Result<_> {
            fs::remove_file(&self.path)?;
            let file = File::options().create_new(true).read(true).write(true).open(&self.path)?;
            let lock = FileLock::on(file.try_clone()?)?;
            Ok((file, lock))
        };
        (self.file, self.lock) =
            make().map_err(|error| ImageError::io("make", &self.path, error))?;
        self.resemble(base)?;
        self.fill(base).map(drop)
    }

    /// Gives it the form that its name will say, in a second file that takes its place.
    pub(super) fn pack(&self, format: Format) -> Result<(), ImageError> {
        if format == Format::Raw {
            return Ok(());
        }
        let failed = |error: io::Error| ImageError::io("pack", &self.path, error);
        let packed = vireo_sys::durable::sibling(&self.path, ".packed");
        let pack = || {
            let mut options = File::options();
            options.create(true).truncate(true).read(true).write(true);
            let file = options.open(&packed)?;
            let like = fs::metadata(&self.path)?;
            crate::qcow2::pack(&File::open(&self.path)?, file.try_clone()?)?;
            // Only root may give files away; who is not keeps it.
            let _ = fchown(&file, Some(like.uid()), Some(like.gid()));
            file.set_permissions(like.permissions())?;
            fs::rename(&packed, &self.path)
        };
        pack().map_err(|error| {
            let _ = fs::remove_file(&packed);
            failed(error)
        })
    }

    /// Makes the bytes durable, then the name.
    pub(super) fn publish(mut self, out: &Path, replace: bool) -> Result<(), ImageError> {
        let failed = |error: io::Error| ImageError::io("put in place", out, error);
        let finish = |file: File| {
            file.set_permissions(Permissions::from_mode(self.mode))?;
            file.sync_all()
        };
        File::open(&self.path).and_then(finish).map_err(failed)?;
        if replace {
            fs::rename(&self.path, out).map_err(failed)?;
        } else {
            // A link does not replace what somebody else made meanwhile; a rename would.
            fs::hard_link(&self.path, out).map_err(failed)?;
            fs::remove_file(&self.path).map_err(failed)?;
        }
        self.published = true;
        sync_dir(directory_of(out)).map_err(failed)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: the next patch to the same output truncates what is left.
            let _ = fs::remove_file(&self.path);
        }
    }
}
