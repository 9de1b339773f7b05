//! Advisory locks between our own processes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// How often a waiting caller tries again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// An exclusive lock on a file of its own (`flock(2)`); let go when dropped or when the process
/// dies, however it dies. The file itself stays.
#[derive(Debug)]
#[must_use = "dropping it lets the lock go at once"]
pub struct FileLock(File);

impl Drop for FileLock {
    /// Unlocks before closing: a child that another thread is just starting holds a copy of the
    /// handle until it executes its program, and would keep the lock for as long.
    fn drop(&mut self) {
        // Nothing can be done about a failure; closing the last copy unlocks too.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl FileLock {
    /// Locks the file at `path`, which is made (mode 0600) if it is not there; `None` if another
    /// holds it.
    ///
    /// # Errors
    ///
    /// As `open(2)` and `flock(2)`.
    pub fn exclusive(path: &Path) -> io::Result<Option<Self>> {
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        Self::on(file)
    }

    /// Locks `file`, whatever it is open for; `None` if another holds it.
    ///
    /// # Errors
    ///
    /// As `flock(2)`.
    pub fn on(file: File) -> io::Result<Option<Self>> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`FileLock::on`], trying again until `limit` is over.
    ///
    /// # Errors
    ///
    /// As [`FileLock::on`].
    pub fn on_wait(file: File, limit: Duration) -> io::Result<Option<Self>> {
        wait(limit, || Self::on(file.try_clone()?))
    }

    /// As [`FileLock::exclusive`], trying again until `limit` is over.
    ///
    /// # Errors
    ///
    /// As [`FileLock::exclusive`].
    pub fn exclusive_wait(path: &Path, limit: Duration) -> io::Result<Option<Self>> {
        wait(limit, || Self::exclusive(path))
    }
}

/// Tries until it has a lock or `limit` is over.
fn wait(
    limit: Duration,
    lock: impl Fn() -> io::Result<Option<FileLock>>,
) -> io::Result<Option<FileLock>> {
    let start = Instant::now();
    loop {
        let lock = lock()?;
        if lock.is_some() || start.elapsed() >= limit {
            return Ok(lock);
        }
        thread::sleep(RETRY_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_by_one_and_freed_by_drop() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("lock");
        let first = FileLock::exclusive(&path).expect("lockable");
        assert!(first.is_some());
        assert!(FileLock::exclusive(&path).expect("lockable").is_none());
        drop(first);
        assert!(FileLock::exclusive(&path).expect("lockable").is_some());
    }
}
