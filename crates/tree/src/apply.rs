//! Makes the changes of a bundle to a tree, all or none.
//!
//! ```text
//! stage    check every touched path against the base; write complete files with their metadata
//!          under /.vireo/txn/s; link what will be replaced under /.vireo/txn/b
//! barrier  syncfs
//! commit   the file COMMIT appears (fsync)                    <- from here on it is the target
//! rename   directories, libraries, programs, the rest, configuration, units; removals
//! barrier  syncfs
//! done     /.vireo/txn becomes /.vireo/done (fsync)
//! finish   /.vireo/done goes; with it the last links to the inodes of the base
//! ```
//!
//! # What a crash leaves
//!
//! Before COMMIT: the base, and a stage that [`recover`] removes. After COMMIT: a mixture for as
//! long as the renames take, which [`recover`] completes to the target: a staged file that is
//! still there has not been renamed yet, so each step is done once, however often recovery
//! itself is interrupted. After `done`: the target.
//!
//! # Not here
//!
//! Undo, merging of local edits, trees that span several file systems: a path on another file
//! system than the root is refused before anything is changed.

use std::collections::BTreeSet;

use vireo_delta::{Bundle, Verified};
use vireo_model::{ChangeSet, Digest, ImagePath, Timestamp};

use crate::{Root, TreeError};

mod check;
mod commit;
mod journal;
mod stage;

use check::Stamp;
use journal::Journal;

pub use journal::STATE_DIR;

/// How changes are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApplyOptions {
    /// Only check: [`stage`] writes nothing but its lock, and [`Staged::commit`] is refused.
    pub dry_run: bool,
}

/// A regular file of the base that the update replaces or removes. Its inode is kept from being
/// used again until [`Committed::finish`], so that processes which still hold it can be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Where it stood.
    pub path: ImagePath,
    /// Device number (`st_dev`).
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// Everything is written and checked, nothing is visible yet. Dropping it leaves a stage that
/// the next [`stage`] or [`recover`] removes.
#[derive(Debug)]
#[must_use = "nothing is changed until commit"]
pub struct Staged<'r> {
    root: &'r Root,
    journal: Journal,
    changes: ChangeSet,
    /// Changes that the tree already has.
    skipped: BTreeSet<usize>,
    dir_times: Vec<(ImagePath, Timestamp)>,
    stamps: Vec<(usize, Option<Stamp>)>,
    replaced: Vec<Replaced>,
    dry_run: bool,
}

/// The tree is the target, durably.
#[derive(Debug)]
#[must_use = "finish it when nothing needs the inodes of the base any more"]
pub struct Committed<'r> {
    root: &'r Root,
    journal: Journal,
    base: Digest,
    target: Digest,
    replaced: Vec<Replaced>,
}

/// What [`recover`] found.
#[derive(Debug)]
pub enum Recovered<'r> {
    /// No update was interrupted.
    Nothing,
    /// An update was interrupted before its commit: the tree is the base.
    Discarded,
    /// An update was interrupted after its commit: the tree is the target now.
    Completed(Committed<'r>),
}

/// Checks every path that `bundle` changes, then writes all that the target needs beside the
/// tree. Paths that are as in the target already are left alone.
///
/// Cost: reads the touched files of the base once, writes the touched files of the target once,
/// in parallel.
///
/// # Errors
///
/// `Drift` with the list of paths that are neither the base's nor the target's; `NoSpace` if the
/// file system has less room or inodes than the worst case; `Unsupported` for paths on another
/// file system; `Busy` if another update is under way or was interrupted ([`recover`] first).
/// The tree is unchanged in every case.
pub fn stage<'r>(
    root: &'r Root,
    bundle: &Bundle<'_, Verified<'_>>,
    options: &ApplyOptions,
) -> Result<Staged<'r>, TreeError> {
    let journal = Journal::open(root)?;
    journal.begin(root)?;
    let prepared = check::check(root, &journal, bundle.change_set()).and_then(|checked| {
        if !options.dry_run {
            stage::write(root, &journal, bundle, &checked)?;
        }
        Ok(checked)
    });
    if prepared.is_err() {
        // A disk that is full must not stay so. What cannot be removed, the next stage removes.
        drop(journal.discard(root));
    }
    let checked = prepared?;
    Ok(Staged {
        root,
        journal,
        changes: bundle.change_set().clone(),
        skipped: checked.skipped,
        dir_times: bundle.dir_times().to_vec(),
        stamps: checked.stamps,
        replaced: checked.replaced,
        dry_run: options.dry_run,
    })
}

/// Finishes or removes what an interrupted update left. To be called before anything else, at
/// every start; does nothing where there is nothing to do, and can itself be interrupted.
///
/// # Errors
///
/// `Busy` if an update is under way; `Corrupt` if the journal cannot be read; `Io` and the like
/// if a step fails: call it again when the cause is gone.
pub fn recover(root: &Root) -> Result<Recovered<'_>, TreeError> {
    if !Journal::exists(root)? {
        return Ok(Recovered::Nothing);
    }
    let journal = Journal::open(root)?;
    if journal.is_committed(root)? {
        let head = journal.head(root)?;
        commit::perform(root, &journal, &head.changes, &BTreeSet::new(), &head.dir_times)?;
        journal.mark_done(root)?;
    } else if journal.discard(root)? {
        return Ok(Recovered::Discarded);
    }
    if !journal.is_done(root)? {
        return Ok(Recovered::Nothing);
    }
    let changes = journal.head(root)?.changes;
    let replaced = journal.replaced(root, &changes)?;
    let ChangeSet { base, target, .. } = changes;
    Ok(Recovered::Completed(Committed { root, journal, base, target, replaced }))
}

/// Removes the (empty) state directory and gives the directories that `bundle` names their times
/// again; for images, which are patched once and then sealed.
///
/// # Errors
///
/// `Io` if an update is unfinished: the state directory is not empty then.
pub fn seal(root: &Root, bundle: &Bundle<'_, Verified<'_>>) -> Result<(), TreeError> {
    Journal::remove(root)?;
    commit::set_dir_times(root, bundle.dir_times())
}

impl<'r> Staged<'r> {
    /// The regular files of the base that [`commit`](Self::commit) will replace or remove.
    #[must_use]
    pub fn replaced(&self) -> &[Replaced] {
        &self.replaced
    }

    /// How many of the bundle's changes the tree has already.
    #[must_use]
    pub fn already(&self) -> usize {
        self.skipped.len()
    }

    /// Makes the changes. Durable when this returns.
    ///
    /// # Errors
    ///
    /// `Busy` if a touched path changed since [`stage`]: nothing is changed then. Any other
    /// error after the commit record leaves the rest to [`recover`].
    pub fn commit(self) -> Result<Committed<'r>, TreeError> {
        let Self { root, journal, changes, skipped, dir_times, stamps, replaced, dry_run } = self;
        if dry_run {
            let message = "cannot commit: the update was staged for checking only".to_owned();
            return Err(TreeError::new(crate::ErrorKind::Unsupported, message));
        }
        check::recheck(root, &changes, &stamps)?;
        journal.commit(root)?;
        commit::perform(root, &journal, &changes, &skipped, &dir_times)?;
        journal.mark_done(root)?;
        let ChangeSet { base, target, .. } = changes;
        Ok(Committed { root, journal, base, target, replaced })
    }

    /// Removes what was staged.
    ///
    /// # Errors
    ///
    /// A staged file cannot be removed; [`recover`] tries again.
    pub fn discard(self) -> Result<(), TreeError> {
        self.journal.discard(self.root).map(drop)
    }
}

impl Committed<'_> {
    /// Digest of the tree that was there.
    #[must_use]
    pub fn base(&self) -> Digest {
        self.base
    }

    /// Digest of the tree that is there.
    #[must_use]
    pub fn target(&self) -> Digest {
        self.target
    }

    /// The regular files of the base that were replaced or removed.
    #[must_use]
    pub fn replaced(&self) -> &[Replaced] {
        &self.replaced
    }

    /// Lets the inodes of the base go.
    ///
    /// # Errors
    ///
    /// A link cannot be removed: the tree is the target all the same, [`recover`] offers the
    /// same value again.
    pub fn finish(self) -> Result<(), TreeError> {
        self.journal.forget_done(self.root)
    }
}

#[cfg(test)]
mod tests;
