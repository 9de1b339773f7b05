//! Writes that survive power loss.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;

use crate::lock::FileLock;

/// Makes `target` hold `content`, wholly or not at all, even across power loss.
///
/// Writes a sibling, syncs it, renames it over `target`, syncs the directory. After `Ok` the
/// content is on stable storage. After `Err` or a crash `target` holds what it held before or
/// `content`, never a mixture; a sibling named `target` with `.new` added may be left over, and
/// is written anew by the next call.
///
/// # Errors
///
/// The first step that failed, as the system reports it.
pub fn replace(target: &Path, content: &[u8]) -> io::Result<()> {
    let staged = sibling(target, ".new");
    let mut file = File::create(&staged)?;
    file.write_all(content)?;
    file.sync_all()?;
    rename(&staged, target)
}

/// Makes the file `target` with `content`, unless something of that name is there: then it is
/// left alone and the answer is `false`. The same guarantees as [`replace`]; of two callers at
/// the same time exactly one wins.
///
/// # Errors
///
/// The first step that failed, as the system reports it.
pub fn create(target: &Path, content: &[u8]) -> io::Result<bool> {
    let staged = sibling(target, &format!(".new-{}", std::process::id()));
    let mut file = File::create(&staged)?;
    file.write_all(content)?;
    file.sync_all()?;
    let linked = fs::hard_link(&staged, target);
    fs::remove_file(&staged)?;
    match linked {
        Ok(()) => sync_dir(directory_of(target)).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Most unfinished files of one name and process that are passed over where files need names.
const MAX_UNFINISHED: u32 = 1000;

/// How long another who replaces a file of the same directory is waited for; renaming takes no time.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// A file that gets its name when it is whole: until then it is in no directory, and goes with its handle, however the
/// process ends.
///
/// Where the file system has no unnamed files (vfat, NFS, some of FUSE) it stands beside its place as
/// `.NAME.PID-NUMBER.unfinished` until then; a process that is killed leaves that behind, for somebody to remove.
#[derive(Debug)]
#[must_use = "dropping it gives the file up"]
pub struct Unnamed {
    file: File,
    target: PathBuf,
    /// The name it has all the same.
    named: Option<PathBuf>,
}

impl Unnamed {
    /// An empty file on the file system that `target` is to be on, for its owner alone (mode 0600).
    ///
    /// # Errors
    ///
    /// As `open(2)` in the directory of `target`; `InvalidInput` if `target` is there and no regular file, as
    /// `/dev/null` is, which nobody means to replace.
    pub fn new(target: &Path) -> io::Result<Self> {
        if fs::metadata(target).is_ok_and(|found| !found.is_file()) {
            let what = "there is something else than a regular file by this name";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match openat(CWD, directory_of(target), flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Self { file: file.into(), target: target.to_owned(), named: None }),
            // Older kernels take the flag for that of opening the directory itself.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Self::with_name(target),
            Err(error) => Err(error.into()),
        }
    }

    fn with_name(target: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let mut number = 0;
        loop {
            let suffix = format!(".{}-{number}.unfinished", std::process::id());
            let named = hidden(target, &suffix);
            match options.open(&named) {
                Ok(file) => {
                    return Ok(Self { file, target: target.to_owned(), named: Some(named) });
                }
                // Another thread's, or left by a process that had this number.
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && number < MAX_UNFINISHED =>
                {
                    number += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The file, to be written to.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives it these permissions and its name, in place of what has that name, when its bytes are on stable storage.
    ///
    /// After `Ok` the name is there, too. After `Err` or a crash the name stands for what it stood for before, or for
    /// the whole file. Killed just while it replaces another file, the whole file may also be left as
    /// `.NAME.new` beside it, which the next call removes.
    ///
    /// # Errors
    ///
    /// The first step that failed, as the system reports it.
    pub fn publish(self, mode: u32) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(mode))?;
        self.file.sync_all()?;
        let directory = directory_of(&self.target).to_owned();
        self.publish_unsynced()?;
        sync_dir(&directory)
    }

    /// Gives it its name as [`Unnamed::publish`], but neither other permissions nor safety from power loss.
    ///
    /// # Errors
    ///
    /// As [`Unnamed::publish`].
    pub fn publish_unsynced(mut self) -> io::Result<()> {
        if let Some(named) = &self.named {
            fs::rename(named, &self.target)?;
            self.named = None;
            return Ok(());
        }
        match self.link(&self.target) {
            Err(Errno::EXIST) => self.replace(),
            linked => Ok(linked?),
        }
    }

    /// There is no call that links over a name, so that another name comes first.
    fn replace(&self) -> io::Result<()> {
        let second = hidden(&self.target, ".new");
        // One at a time, so that what has that name was left by one that was killed. Without the lock, on file
        // systems that have none or while somebody else keeps it, one of two at the same time fails.
        let directory = File::open(directory_of(&self.target))?;
        let _lock = FileLock::on_wait(directory, LOCK_WAIT);
        match self.link(&second) {
            Err(Errno::EXIST) => {
                fs::remove_file(&second)?;
                self.link(&second)?;
            }
            linked => linked?,
        }
        fs::rename(&second, &self.target).inspect_err(|_| drop(fs::remove_file(&second)))
    }

    fn link(&self, name: &Path) -> Result<(), Errno> {
        let handle = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        match linkat(CWD, handle, CWD, name, AtFlags::SYMLINK_FOLLOW) {
            // Without /proc it takes a right that root alone has.
            Err(Errno::NOENT) => linkat(&self.file, "", CWD, name, AtFlags::EMPTY_PATH),
            linked => linked,
        }
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some(named) = &self.named {
            // Nothing can be done about a failure.
            drop(fs::remove_file(named));
        }
    }
}

/// `path` with `suffix` added to its name, as a hidden file.
fn hidden(path: &Path, suffix: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(suffix);
    path.with_file_name(name)
}

/// Renames `from` to `to` and syncs the directory of `to`. The content of `from` must have been
/// synced before; after a crash `to` is what it was or what `from` is.
///
/// # Errors
///
/// As `rename(2)` and `fsync(2)`.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_dir(directory_of(to))
}

/// Makes the names in `directory` durable.
///
/// # Errors
///
/// As `open(2)` and `fsync(2)`.
pub fn sync_dir(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The directory that holds `path`; `.` for a bare name.
#[must_use]
pub fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `path` with `suffix` added to its name.
#[must_use]
pub fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_never_replaces_and_replace_leaves_no_sibling() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("f");
        assert!(create(&file, b"1").expect("created"));
        assert!(!create(&file, b"2").expect("refused quietly"));
        assert_eq!(fs::read(&file).expect("readable"), b"1");
        replace(&file, b"3").expect("replaced");
        assert_eq!(fs::read(&file).expect("readable"), b"3");
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1, "nothing left over");
    }

    /// The names in `dir`.
    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("readable");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("readable").file_name();
        let mut names: Vec<String> =
            entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_without_a_name_leaves_nothing_until_it_is_published() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let out = dir.path().join("out");
        let written = |text: &[u8]| {
            let mut file = Unnamed::new(&out).expect("made");
            file.file().write_all(text).expect("written");
            file
        };
        let given_up = written(b"half");
        assert!(
            given_up.named.is_none() && names(dir.path()).is_empty(),
            "no name while it is written"
        );
        drop(given_up);
        assert!(names(dir.path()).is_empty());

        written(b"first").publish(0o644).expect("published");
        assert_eq!(fs::read(&out).expect("readable"), b"first");
        assert_eq!(fs::metadata(&out).expect("there").permissions().mode() & 0o777, 0o644);
        // Over another file, with what a killed process left.
        fs::write(dir.path().join(".out.new"), "left").expect("written");
        let second = written(b"second");
        assert_eq!(fs::read(&out).expect("readable"), b"first");
        second.publish_unsynced().expect("published");
        assert_eq!(fs::read(&out).expect("readable"), b"second");
        assert_eq!(names(dir.path()), ["out"]);
        assert_eq!(fs::metadata(&out).expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_cannot_be_replaced_stays_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let out = dir.path().join("out");
        for make in [Unnamed::new, Unnamed::with_name] {
            let file = make(&out).expect("made");
            fs::create_dir(&out).expect("made");
            assert!(file.publish(0o644).is_err());
            assert_eq!(names(dir.path()), ["out"]);
            fs::remove_dir(&out).expect("removed");
        }
        std::os::unix::fs::symlink("/dev/null", &out).expect("linked");
        for other in [dir.path(), Path::new("/dev/null"), &out] {
            let error = Unnamed::new(other).expect_err("no regular file");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}", other.display());
        }
        assert!(Unnamed::new(&dir.path().join("gone/out")).is_err());
    }

    #[test]
    fn where_files_need_names_it_goes_with_its_handle_too() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let out = dir.path().join("out");
        drop(Unnamed::with_name(&out).expect("made"));
        assert!(names(dir.path()).is_empty());
        for text in ["first", "second"] {
            let mut file = Unnamed::with_name(&out).expect("made");
            file.file().write_all(text.as_bytes()).expect("written");
            assert_ne!(fs::read(&out).unwrap_or_default(), text.as_bytes());
            file.publish(0o644).expect("published");
            assert_eq!(fs::read(&out).expect("readable"), text.as_bytes());
        }
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn several_at_once_replace_one_another_whole() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let out = dir.path().join("out");
        std::thread::scope(|scope| {
            for number in 0..8_u8 {
                let out = &out;
                scope.spawn(move || {
                    for _ in 0..20 {
                        let mut file = Unnamed::new(out).expect("made");
                        file.file().write_all(&[number; 100]).expect("written");
                        file.publish_unsynced().expect("published");
                    }
                });
            }
        });
        let found = fs::read(&out).expect("readable");
        assert!(found.len() == 100 && found.iter().all(|byte| *byte == found[0]));
        assert_eq!(names(dir.path()), ["out"]);
    }
}
