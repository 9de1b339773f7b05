//! A directory in memory for hundreds of disks that live for a fraction of a second.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

/// A file system in memory: flushes of disks in it cost nothing. Every Linux system has it.
const MEMORY: &str = "/dev/shm";

/// The owner's process number follows.
const PREFIX: &str = "vireo-scratch-";

/// Makes it; what owners left that were killed goes first.
///
/// # Errors
///
/// There is no such file system, or it cannot be written to.
pub fn scratch() -> anyhow::Result<TempDir> {
    for left in abandoned() {
        // Another process may remove it at the same time.
        drop(fs::remove_dir_all(left));
    }
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(MEMORY);
    made.with_context(|| format!("cannot make a directory in {MEMORY}: mount a tmpfs there"))
}

/// Those whose owners are no more.
fn abandoned() -> Vec<PathBuf> {
    let entries = fs::read_dir(MEMORY).into_iter().flatten().flatten();
    let dead = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let owner = name.as_deref().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    entries.map(|entry| entry.path()).filter(dead).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_owner_left_goes() {
        // No process has number 0.
        let left = Path::new(MEMORY).join(format!("{PREFIX}0-left"));
        fs::create_dir_all(left.join("disk")).expect("memory can be written to");
        let dir = scratch().expect("a directory");
        assert!(!left.exists() && dir.path().exists());
        assert!(!abandoned().contains(&dir.path().to_owned()), "its owner lives");
    }
}
