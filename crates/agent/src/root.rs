//! The machine's root as its image has it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use vireo_tree::{Machine, Root, TreeError};

/// Opens the tree below `path` with the disk file systems mounted in it; what else is mounted there belongs to the
/// machine.
pub(crate) fn open_root(path: &Path) -> Result<Root, TreeError> {
    Ok(Machine::open(path)?.into_root())
}

/// Whether `path` is the root directory that this process sees, whatever its name.
#[must_use]
pub fn is_own_root(path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    identity(path).is_some_and(|found| identity(Path::new("/")) == Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_root_is_known_by_any_of_its_names() {
        let other = tempfile::tempdir().expect("a temporary directory");
        assert!(is_own_root(Path::new("/proc/self/root")) && is_own_root(Path::new("/")));
        assert!(!is_own_root(other.path()) && !is_own_root(&other.path().join("gone")));
    }
}
