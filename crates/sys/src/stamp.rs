//! Whether a file was written meanwhile, told by its metadata.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What a write to a file changes, and what tells the file from another of its name.
///
/// The kernel sets the time of change at every write(2), and at the first store into a page that is mapped; programs
/// cannot. Two writes within one tick of
/// its clock show one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    dev: u64,
    ino: u64,
    len: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl State {
    /// The state that `found` shows.
    #[must_use]
    pub fn of(found: &Metadata) -> Self {
        Self {
            dev: found.dev(),
            ino: found.ino(),
            len: found.len(),
            mtime: (found.mtime(), found.mtime_nsec()),
            ctime: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// The state in which the file of a name was when it began to be read.
#[derive(Clone, Debug)]
pub struct Stamp {
    path: PathBuf,
    state: State,
}

impl Stamp {
    /// Of the file `path`. To be taken before its first byte is read, so that no change goes unseen.
    ///
    /// # Errors
    ///
    /// As `stat(2)`.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), state: State::of(&fs::metadata(path)?) })
    }

    /// The file's name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the name still is that file's, and nobody wrote to it.
    ///
    /// # Errors
    ///
    /// As `stat(2)`.
    pub fn is_current(&self) -> io::Result<bool> {
        Ok(State::of(&fs::metadata(&self.path)?) == self.state)
    }

    /// What to say where it is not.
    #[must_use]
    pub fn complaint(&self) -> String {
        format!(
            "{} was written while it was read: stop what uses it, or take a copy",
            self.path.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_and_another_file_of_the_name_are_seen_and_reading_is_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        fs::write(&path, b"one").expect("written");
        let stamp = Stamp::of(&path).expect("it is there");
        assert_eq!(fs::read(&path).expect("readable"), b"one");
        assert!(stamp.is_current().expect("it is there"));
        // The clock's next tick, which is 10 ms at most.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&path, b"two").expect("written");
        assert!(!stamp.is_current().expect("it is there"));

        let stamp = Stamp::of(&path).expect("it is there");
        fs::write(dir.path().join("g"), b"two").expect("written");
        fs::rename(dir.path().join("g"), &path).expect("renamed");
        assert!(!stamp.is_current().expect("it is there"));
        fs::remove_file(&path).expect("removed");
        assert!(stamp.is_current().is_err());
    }
}
