//! The durable writes that a store makes, as a port: every call is a point where a crash may come.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use vireo_sys::durable;

/// Writes a file's content, piece by piece.
pub type Fill<'a> = &'a mut dyn FnMut(&mut dyn Write) -> io::Result<()>;

/// What changes a store's directory. There is no other way.
///
/// Implementations are checked against [`testing::check_writes`](crate::testing::check_writes).
/// After `Ok` a change is on stable storage, except for [`Writes::spool`].
pub trait Writes: Debug + Send + Sync {
    /// Makes the directory `path`, unless it is there.
    ///
    /// A crash leaves it absent or empty.
    ///
    /// # Errors
    ///
    /// As `mkdir(2)` and `fsync(2)`.
    fn make_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes `path` hold `content`.
    ///
    /// A crash leaves what was there or `content`, and perhaps a sibling that ends in `.new`.
    ///
    /// # Errors
    ///
    /// The first step that failed.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Makes `path` with `content`, unless it is there: then the answer is `false`.
    ///
    /// A crash leaves nothing or `content`, and perhaps a sibling with `.new-` in its name.
    ///
    /// # Errors
    ///
    /// The first step that failed.
    fn create(&self, path: &Path, content: &[u8]) -> io::Result<bool>;

    /// Writes the file `path` with what `fill` gives, and syncs it. For large files under a name
    /// that nobody takes for a finished one; [`Writes::rename`] finishes it.
    ///
    /// A crash leaves a part of it.
    ///
    /// # Errors
    ///
    /// The first step that failed, or what `fill` fails with.
    fn write(&self, path: &Path, fill: Fill<'_>) -> io::Result<()>;

    /// Makes `path` hold `content`, at once for other processes, but without a sync: for what is
    /// checked again before it is used and can be had again.
    ///
    /// A crash of the process leaves nothing or `content` and perhaps a sibling that ends in
    /// `.part`; a crash of the machine may leave anything.
    ///
    /// # Errors
    ///
    /// The first step that failed.
    fn spool(&self, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Renames `from`, whose content is synced, to `to`.
    ///
    /// A crash leaves one name or the other.
    ///
    /// # Errors
    ///
    /// As `rename(2)` and `fsync(2)`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes the file or the whole directory `path`, if it is there. Not synced: what comes back
    /// after a power cut is removed again.
    ///
    /// A crash leaves it, or a part of the directory.
    ///
    /// # Errors
    ///
    /// As `unlink(2)` and `rmdir(2)`.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The real thing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Durable;

impl Writes for Durable {
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        match fs::create_dir(path) {
            Ok(()) => durable::sync_dir(durable::directory_of(path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        durable::replace(path, content)
    }

    fn create(&self, path: &Path, content: &[u8]) -> io::Result<bool> {
        durable::create(path, content)
    }

    fn write(&self, path: &Path, fill: Fill<'_>) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }

    fn spool(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        // Two senders of the same file must not write into one sibling.
        let unique = format!(".{:?}-{}.part", std::thread::current().id(), std::process::id());
        let part = durable::sibling(path, &unique);
        fs::write(&part, content)?;
        fs::rename(&part, path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        durable::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }
}

/// Whether a name is one that an interrupted write leaves, and nothing else has.
pub(crate) fn is_leftover(name: &str) -> bool {
    name.ends_with(".new")
        || name.ends_with(".part")
        || name.ends_with(".partial")
        || name.contains(".new-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_writes_keep_the_contract() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        crate::testing::check_writes(&Durable, dir.path());
    }

    #[test]
    fn writes_that_may_stop_keep_the_contract_until_they_do() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        crate::testing::check_writes(&crate::testing::StopAfter::new(u64::MAX), dir.path());
    }
}
