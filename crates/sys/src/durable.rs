//! Writes that survive power loss.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

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
}
