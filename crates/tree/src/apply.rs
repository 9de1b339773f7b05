//! Makes the changes of a bundle to a tree, all or none, and takes them back.
//!
//! ```text
//! stage    check every touched path against the base; write complete files with their metadata
//!          under /.vireo/N-staged/s; link what will be replaced under b
//! barrier  syncfs
//! commit   N-staged becomes N-committed (fsync)               <- from here on it is the target
//! rename   directories, new files, libraries, programs, the rest, configuration, units; removals
//! barrier  syncfs
//! done     N-committed becomes N-done (fsync)
//! finish   N-done becomes N: kept, so that it can be undone; or it goes
//! ```
//!
//! On a tree of several file systems each has its own stage; the barriers wait for all of them,
//! and the transaction's state is on the root's.
//!
//! # What a crash leaves
//!
//! Before the commit: the base, and a stage that [`recover`] removes. After it: a mixture for as
//! long as the renames take, which [`recover`] completes to the target. Each step knows the inode
//! numbers of what was there and of what was staged, so it is made once, however often recovery
//! itself is interrupted; a path that is neither was changed by somebody else, and stops recovery
//! before it touches anything. After `done`: the target.
//!
//! On FAT, where there are no links, what comes and a copy of what goes lie in the root's stage, and contents tell what
//! was done.
//!
//! An undo is a transaction like any other, of which the staged files are links to the inodes that
//! the undone ones replaced.
//!
//! # Not here
//!
//! File systems without hard links and stable inode numbers other than FAT, which is changed otherwise (`fat.rs`).

use rustix::rand::{GetRandomFlags, getrandom};
use vireo_delta::{Bundle, Verified};
use vireo_model::{ChangeSet, Digest, ImagePath};

use crate::{ErrorKind, Root, TreeError};

mod check;
mod commit;
mod drift;
mod fat;
mod history;
mod journal;
mod limits;
mod plan;
mod recovery;
mod stage;
mod standing;
mod undo;
mod view;

use journal::{Journal, State, Txn};
use plan::Plan;
use stage::Places;
use standing::Stamp;

pub use drift::{
    LOCAL_SUFFIX, MAX_MERGE_LEN, NEW_SUFFIX, OnConflict, OnDrift, Settled, Settlement,
};
pub use history::{Past, forget, history};
pub use journal::STATE_DIR;
pub use recovery::{Direction, RecoverOptions, Recovered, recover, recover_with};
pub use undo::{UndoOptions, stage_undo};
pub use view::{StagedEntry, StagedView, remove_extra};

/// How changes are made.
#[derive(Clone, Copy)]
pub struct ApplyOptions<'a> {
    /// What to do with a path that differs from base and target; refuse the update, by default.
    pub drift: &'a (dyn Fn(&ImagePath) -> OnDrift + Sync),
}

impl Default for ApplyOptions<'_> {
    fn default() -> Self {
        Self { drift: &|_| OnDrift::Refuse }
    }
}

impl std::fmt::Debug for ApplyOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApplyOptions").finish_non_exhaustive()
    }
}

/// A regular file of the base that the update replaces or removes. Its inode is kept from being
/// used again until [`Committed::finish`] at least, so that processes which still hold it can be
/// found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Where it stood.
    pub path: ImagePath,
    /// Device number (`st_dev`).
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// What an update would do, without anything written.
#[derive(Clone, Debug)]
pub struct Preview {
    /// What it would change.
    pub changes: ChangeSet,
    /// The regular files that it would replace or remove.
    pub replaced: Vec<Replaced>,
    /// How many of the bundle's changes the tree has already.
    pub already: usize,
    /// Local edits that it would meet, and what would become of them.
    pub settled: Vec<Settled>,
    /// Where what it would write comes from.
    sources: view::Sources,
}

/// Everything is written and checked, nothing is visible yet. Dropping it leaves a stage that
/// the next [`stage`] or [`recover`] removes.
#[derive(Debug)]
#[must_use = "nothing is changed until commit"]
pub struct Staged<'r> {
    journal: Journal<'r>,
    txn: Txn,
    plan: Plan,
    already: usize,
    stamps: Vec<Option<Stamp>>,
    replaced: Vec<Replaced>,
}

/// The tree is the target, durably.
#[derive(Debug)]
#[must_use = "finish it when nothing needs the inodes of the base any more"]
pub struct Committed<'r> {
    journal: Journal<'r>,
    txn: Txn,
    plan: Box<Plan>,
    replaced: Vec<Replaced>,
    was_complete: bool,
}

/// Checks every path that `bundle` changes, as [`stage`] does, and writes nothing at all.
///
/// # Errors
///
/// As [`stage`].
pub fn preview(
    root: &Root,
    bundle: &Bundle<'_, Verified<'_>>,
    options: &ApplyOptions<'_>,
) -> Result<Preview, TreeError> {
    let journal = Journal::open_existing(root)?;
    if let Some(journal) = &journal {
        refuse_unfinished(journal)?;
    }
    let checked = check::check(root, bundle, options)?;
    let changes = checked.drafts.iter().map(|draft| vireo_model::Change {
        path: draft.path.clone(),
        before: draft.before.clone(),
        after: draft.after.clone(),
    });
    Ok(Preview {
        changes: ChangeSet {
            base: bundle.base(),
            target: bundle.target(),
            changes: changes.collect(),
        },
        replaced: checked.replaced(),
        already: checked.already,
        sources: view::Sources::of(&checked.drafts),
        settled: checked.settled,
    })
}

/// Checks every path that `bundle` changes, then writes all that the target needs beside the
/// tree. Paths that are as in the target already are left alone.
///
/// Cost: reads the touched files of the base once, writes the touched files of the target once,
/// in parallel.
///
/// # Errors
///
/// `Drift` with the list of paths that are neither the base's nor the target's and that
/// `options` does not settle; `NoSpace` if a file system has less room or inodes than the worst
/// case; `Unsupported` for paths on a file system that is not part of `root`; `Permission` for
/// read-only mounts and immutable files; `Forbidden` for what the bundle's signer did not permit; `Busy` if another update is under way or was interrupted
/// ([`recover`] first). The tree is unchanged in every case.
pub fn stage<'r>(
    root: &'r Root,
    bundle: &Bundle<'_, Verified<'_>>,
    options: &ApplyOptions<'_>,
) -> Result<Staged<'r>, TreeError> {
    let journal = Journal::open(root)?;
    refuse_unfinished(&journal)?;
    journal.sweep()?;
    let checked = check::check(root, bundle, options)?;
    let replaced = checked.replaced();
    let mut plan = Plan {
        id: random_id(root)?,
        base: bundle.base(),
        target: bundle.target(),
        undoes: Vec::new(),
        mounts: checked.mounts(root),
        steps: Vec::new(),
        dir_times: bundle.dir_times().to_vec(),
        dir_times_before: commit::dir_times(root, bundle.dir_times())?,
        settled: checked.settled,
    };
    let stamps = checked.drafts.iter().map(|draft| draft.stamp).collect();
    let txn = write_stage(&journal, &mut plan, |places| {
        stage::write(root, places, bundle, &checked.drafts)
    })?;
    // All that is needed of it is on disk.
    bundle.forget_frames();
    Ok(Staged { journal, txn, plan, already: checked.already, stamps, replaced })
}

/// Makes a stage and fills it by `write`, whose steps become the plan's; removes it if that fails.
fn write_stage(
    journal: &Journal<'_>,
    plan: &mut Plan,
    write: impl FnOnce(&Places) -> Result<Vec<plan::Step>, TreeError>,
) -> Result<Txn, TreeError> {
    let written = journal.begin(plan.id, &plan.mounts).and_then(|txn| {
        let places = Places::open(journal, txn, plan.id, &plan.mounts)?;
        plan.steps = write(&places)?;
        journal.write_plan(txn, plan)?;
        Ok(txn)
    });
    if written.is_err() {
        // A disk that is full must not stay so. What cannot be removed, the next stage removes.
        drop(journal.sweep());
    }
    written
}

fn random_id(root: &Root) -> Result<u64, TreeError> {
    let mut id = [0; 8];
    getrandom(&mut id, GetRandomFlags::empty())
        .map_err(root.failed("draw a random number for", &ImagePath::root()))?;
    Ok(u64::from_le_bytes(id))
}

/// Only one transaction at a time is on its way; what is done has to be finished first.
fn refuse_unfinished(journal: &Journal<'_>) -> Result<(), TreeError> {
    let unfinished = |txn: &Txn| matches!(txn.state, State::Committed | State::Done);
    let Some(txn) = journal.list()?.into_iter().find(unfinished) else {
        return Ok(());
    };
    let message = format!(
        "update {} of {} was interrupted and has to be completed first (`vireo-agent recover`)",
        txn.number,
        journal.root().label().display()
    );
    Err(TreeError::new(ErrorKind::Busy, message))
}

/// Removes the (empty) state directories and gives the directories that `bundle` names their times
/// again; for images, which are patched once and then sealed.
///
/// # Errors
///
/// `Io` if a transaction is left: the state directory is not empty then.
pub fn seal(root: &Root, bundle: &Bundle<'_, Verified<'_>>) -> Result<(), TreeError> {
    Journal::remove(root)?;
    commit::set_dir_times(root, bundle.dir_times())
}

impl<'r> Staged<'r> {
    /// What [`commit`](Self::commit) will change, as it was found: local edits and merges
    /// included, what is there already left out.
    #[must_use]
    pub fn changes(&self) -> ChangeSet {
        self.plan.change_set()
    }

    /// The regular files of the base that [`commit`](Self::commit) will replace or remove.
    #[must_use]
    pub fn replaced(&self) -> &[Replaced] {
        &self.replaced
    }

    /// Local edits that were met, and what becomes of them.
    #[must_use]
    pub fn settled(&self) -> &[Settled] {
        &self.plan.settled
    }

    /// How many of the bundle's changes the tree has already.
    #[must_use]
    pub fn already(&self) -> usize {
        self.already
    }

    /// The number under which it can be undone.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.txn.number
    }

    /// Whether it takes other transactions back.
    #[must_use]
    pub fn is_undo(&self) -> bool {
        !self.plan.undoes.is_empty()
    }

    /// Makes the changes. Durable when this returns.
    ///
    /// # Errors
    ///
    /// `Busy` if a touched path changed since [`stage`]: nothing is changed then. If a step fails
    /// for want of room the steps before it are taken back, and the error says so. Any other
    /// error after the commit record leaves the rest to [`recover`].
    pub fn commit(self) -> Result<Committed<'r>, TreeError> {
        let Self { journal, txn, plan, stamps, replaced, .. } = self;
        let root = journal.root();
        journal.barrier(&plan.mounts)?;
        let expected = plan.steps.iter().map(|step| &step.path).zip(stamps);
        check::recheck(root, expected)?;
        let txn = journal.advance(txn, State::Committed)?;
        match recovery::complete(&journal, txn, &plan) {
            Ok(txn) => {
                Ok(Committed { journal, txn, plan: plan.into(), replaced, was_complete: false })
            }
            Err(error) if error.kind() == ErrorKind::NoSpace && plan.undoes.is_empty() => {
                Err(recovery::fall_back(&journal, txn, &plan, error))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes what was staged.
    ///
    /// # Errors
    ///
    /// A staged file cannot be removed; [`recover`] tries again.
    pub fn discard(self) -> Result<(), TreeError> {
        self.journal.sweep().map(drop)
    }
}

impl Committed<'_> {
    /// Digest of the tree that was there.
    #[must_use]
    pub fn base(&self) -> Digest {
        self.plan.base
    }

    /// Digest of the tree that is there, local edits apart.
    #[must_use]
    pub fn target(&self) -> Digest {
        self.plan.target
    }

    /// What was changed.
    #[must_use]
    pub fn changes(&self) -> ChangeSet {
        self.plan.change_set()
    }

    /// The regular files of the base that were replaced or removed.
    #[must_use]
    pub fn replaced(&self) -> &[Replaced] {
        &self.replaced
    }

    /// Local edits that were met, and what became of them.
    #[must_use]
    pub fn settled(&self) -> &[Settled] {
        &self.plan.settled
    }

    /// Its number, to undo it.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.txn.number
    }

    /// Whether [`recover`] found every name in place already: nothing was renamed just now.
    #[must_use]
    pub fn was_complete(&self) -> bool {
        self.was_complete
    }

    /// The numbers of the earlier transactions that are kept to be undone, those that it takes
    /// back among them. [`history`] cannot say while this one holds the lock.
    ///
    /// # Errors
    ///
    /// Their directory cannot be read.
    pub fn kept(&self) -> Result<Vec<u64>, TreeError> {
        let list = self.journal.list()?.into_iter();
        Ok(list.filter(|txn| txn.state == State::Past).map(|txn| txn.number).collect())
    }

    /// The numbers of the transactions that it takes back; none for an update.
    #[must_use]
    pub fn undoes(&self) -> &[u64] {
        &self.plan.undoes
    }

    /// Ends it. An update is kept, so that it can be undone, until [`forget`]; an undo goes, and
    /// with it what it has undone.
    ///
    /// # Errors
    ///
    /// `Io`: the tree is the target all the same, [`recover`] offers the same value again.
    pub fn finish(self) -> Result<(), TreeError> {
        if self.plan.undoes.is_empty() {
            return self.journal.advance(self.txn, State::Past).map(drop);
        }
        recovery::finish_undo(&self.journal, self.txn, &self.plan)
    }

    /// Ends it for good: it cannot be undone, and the last names of the base's inodes go.
    ///
    /// # Errors
    ///
    /// As [`Committed::finish`].
    pub fn finish_for_good(self) -> Result<(), TreeError> {
        if self.plan.undoes.is_empty() {
            return self.journal.throw_away(self.txn);
        }
        self.finish()
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
