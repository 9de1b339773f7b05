//! The machine's root as its image has it: the file system alone, without what is mounted on it.
//!
//! The image knows the directories `/proc` and `/sys`, the running machine shows what is mounted
//! there instead. A detached copy of the root's mount (`open_tree(2)`) shows the directories
//! themselves; it is in no namespace and goes with its handle.

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use vireo_tree::Root;

use crate::error::AgentError;

/// Opens the tree below `path`; where the kernel or missing rights forbid a copy of the mount,
/// as it is shown.
pub(crate) fn open_root(path: &Path) -> Result<Root, AgentError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = match open_tree(CWD, path, flags) {
        Ok(mount) => mount,
        Err(Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::INVAL) => {
            return Ok(Root::open(path)?);
        }
        Err(error) => return Err(AgentError::io("open", path, error.into())),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(&mount, ".", flags, Mode::empty())
        .map_err(|error| AgentError::io("open the directory", path, error.into()))?;
    Ok(Root::from_fd(directory, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use vireo_model::Ignore;
    use vireo_tree::{ScanOptions, scan};

    use super::*;

    #[test]
    fn a_directory_reads_the_same_as_by_its_path() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("a"), "text").expect("written");
        let read = |root: &Root| {
            scan(root, &Ignore::nothing(), &ScanOptions::default()).expect("readable").tree
        };
        let copy = open_root(dir.path()).expect("opens");
        assert_eq!(read(&copy), read(&Root::open(dir.path()).expect("opens")));
        assert_eq!(copy.label(), dir.path());
        assert!(open_root(&dir.path().join("gone")).is_err());
    }
}
