//! What every start does first: finishing or undoing an update that was interrupted.

use std::path::Path;

use anyhow::ensure;
use vireo_model::{Digest, Ignore};
use vireo_tree::apply::{Committed, Recovered, recover};
use vireo_tree::{Root, ScanOptions, scan};

/// Recovers the tree in `root`, as at boot; whether an update was completed.
///
/// # Errors
///
/// Recovery failed.
pub fn recover_tree(root: &Path) -> anyhow::Result<bool> {
    recover_root(&Root::open(root)?)
}

/// The same for a tree that is open, of one file system or several.
///
/// # Errors
///
/// Recovery failed.
pub(crate) fn recover_root(root: &Root) -> anyhow::Result<bool> {
    let found = recover(root)?;
    if let Recovered::Completed(committed) = found {
        Committed::finish(committed)?;
        return Ok(true);
    }
    Ok(false)
}

/// Digest of the tree in `root`, but for what belongs to no version.
///
/// # Errors
///
/// It cannot be read.
pub fn tree_digest(root: &Path, ignore: &Ignore) -> anyhow::Result<Digest> {
    digest_of(&Root::open(root)?, ignore)
}

/// The same for a tree that is open.
pub(crate) fn digest_of(root: &Root, ignore: &Ignore) -> anyhow::Result<Digest> {
    Ok(scan(root, ignore, &ScanOptions::default())?.tree.digest())
}

/// Recovers the tree in `root` and expects that it is one of `versions` then; whether it was none
/// of them before.
///
/// # Errors
///
/// Recovery failed, or the tree is none of them.
pub fn recovers_to(root: &Path, versions: &[Digest]) -> anyhow::Result<bool> {
    let digest = || tree_digest(root, &Ignore::default());
    let mixed = digest().map_or(true, |found| !versions.contains(&found));
    recover_tree(root)?;
    let found = digest()?;
    ensure!(versions.contains(&found), "neither base nor target after recovery: {found}");
    Ok(mixed)
}
