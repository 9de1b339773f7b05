//! An image in the making, beside the one that it becomes.
//!
//! One process at a time makes an image: it has a lock on a file of its own ([`journal`](crate::journal))
//! from the first byte until the image has its name. A lock on what is being made would not do: mounting
//! asks for that file alone, and checkers are given it.
//!
//! # What a crash leaves
//!
//! Files named as the image with one of [`LEFT`](crate::journal::LEFT) added, none of them locked; the
//! next who makes the same image replaces them. The image itself is not among them.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use vireo_sys::copy::{CloneKind, clone};
use vireo_sys::durable::{directory_of, sync_dir};
use vireo_sys::lock::FileLock;

use crate::ImageError;
use crate::bytes::{Bytes, Format};
use crate::journal::{self, Begun};

/// The bits of a file's mode that are rights.
const MODE: u32 = 0o7777;

/// The rights that whoever makes a file needs to have meanwhile.
const WRITABLE: u32 = 0o600;

/// An image in the making; removed when dropped unpublished.
pub(super) struct Partial {
    pub(super) path: PathBuf,
    file: File,
    packed: PathBuf,
    /// Its rights once it is published.
    mode: u32,
    /// For those who look for what is left, until it is mounted.
    lock: Option<FileLock>,
    published: bool,
    /// The right to make it. Dropped last.
    _claim: Begun,
}

impl Partial {
    pub(super) fn new(base: &Path, out: &Path) -> Result<Self, ImageError> {
        let [path, packed, claimed] = journal::left_of(out);
        let claim = journal::claim(&claimed)
            .map_err(|error| ImageError::io("make", &claimed, error))?
            .ok_or_else(|| journal::being_made(out))?;
        let (file, lock) =
            make(&path).map_err(|error: io::Error| ImageError::io("make", &path, error))?;
        let mut partial =
            Self { path, file, packed, mode: 0, lock, published: false, _claim: claim };
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
                qcow2.refuse_kept(base)?;
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
        (self.file, self.lock) =
            make(&self.path).map_err(|error| ImageError::io("make", &self.path, error))?;
        self.resemble(base)?;
        self.fill(base).map(drop)
    }

    /// Gives it the form that its name will say, in a second file that takes its place.
    pub(super) fn pack(&self, format: Format) -> Result<(), ImageError> {
        if format == Format::Raw {
            return Ok(());
        }
        let failed = |error: io::Error| ImageError::io("pack", &self.path, error);
        let pack = || {
            let file = private(&self.packed)?;
            let like = fs::metadata(&self.path)?;
            crate::qcow2::pack(&File::open(&self.path)?, file.try_clone()?)?;
            // Only root may give files away; who is not keeps it.
            let _ = fchown(&file, Some(like.uid()), Some(like.gid()));
            file.set_permissions(like.permissions())?;
            fs::rename(&self.packed, &self.path)
        };
        pack().map_err(|error| {
            let _ = fs::remove_file(&self.packed);
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

/// A new file at `path`, locked.
fn make(path: &Path) -> io::Result<(File, Option<FileLock>)> {
    let file = private(path)?;
    let lock = FileLock::on(file.try_clone()?)?;
    Ok((file, lock))
}

/// A new file at `path`, in place of what a crash left there, that nobody else may open: whole disks have
/// password hashes and host keys. Never the file that is there: something may still write to that.
fn private(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options().create_new(true).read(true).write(true).mode(WRITABLE).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    /// A directory with the image `base.img`, and the path of what is made from it.
    fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [base, out] = ["base.img", "out.img"].map(|name| dir.path().join(name));
        fs::write(&base, "a disk").expect("writable");
        (dir, base, out)
    }

    #[test]
    fn nobody_else_makes_an_image_until_it_has_its_name() {
        let (dir, base, out) = place();
        let busy = || Partial::new(&base, &out).map(drop).expect_err("it is being made");
        let mut partial = Partial::new(&base, &out).expect("free");
        assert_eq!(busy().kind(), ErrorKind::Busy);
        // Let go, so that it can be mounted: what mounts it, checks it and packs it has no lock.
        partial.fill(&base).expect("cloned");
        assert!(busy().to_string().contains("out.img is being made by another process"));
        assert_eq!(fs::read(&partial.path).expect("there"), b"a disk", "it was emptied");
        partial.publish(&out, false).expect("nobody is in the way");
        assert_eq!(fs::read(&out).expect("there"), b"a disk");
        let names = fs::read_dir(dir.path()).expect("there").count();
        assert_eq!(names, 2, "more than the two images");
    }

    #[test]
    fn what_a_crash_left_is_replaced_and_never_written_to() {
        let (dir, base, out) = place();
        let [path, packed, _] = journal::left_of(&out);
        let victim = dir.path().join("victim");
        for left in [&path, &packed] {
            fs::write(&victim, "mine").expect("writable");
            std::os::unix::fs::symlink(&victim, left).expect("made");
        }
        let mut partial = Partial::new(&base, &out).expect("nobody is at it");
        partial.fill(&base).expect("cloned");
        partial.pack(Format::Qcow2).expect("packed");
        drop(partial);
        assert_eq!(fs::read(&victim).expect("there"), b"mine");
        assert!(path.symlink_metadata().is_err() && packed.symlink_metadata().is_err());
    }

    #[test]
    fn what_is_being_made_is_its_owners_alone_from_the_first_byte() {
        let (_dir, _, out) = place();
        let [path, ..] = journal::left_of(&out);
        fs::write(&path, "left").expect("writable");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("its own");
        let mode = private(&path).and_then(|file| file.metadata()).expect("made").mode();
        assert_eq!(mode & MODE, 0o600);
    }
}
