//! What every start does first: finishing or undoing an update that was interrupted.

use std::path::Path;

use vireo_model::{Digest, Ignore};
use vireo_tree::apply::{Committed, Recovered, recover};
use vireo_tree::{Root, ScanOptions, scan};

/// Recovers the tree in `root`, as at boot; whether an update was completed.
///
/// # Errors
///
/// Recovery failed.
pub fn recover_tree(root: &Path) -> anyhow::Result<bool> {
    let root = Root::open(root)?;
    let found = recover(&root)?;
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
    Ok(scan(&Root::open(root)?, ignore, &ScanOptions::default())?.tree.digest())
}
