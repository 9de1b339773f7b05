//! What an interrupted transaction is brought to.

use std::collections::BTreeSet;

use vireo_model::ImagePath;

use super::journal::{Journal, State, Txn};
use super::plan::{How, Plan};
use super::stage::Places;
use super::{Committed, Replaced, commit, undo};
use crate::{ErrorKind, Root, TreeError};

/// What [`recover`] found.
#[derive(Debug)]
pub enum Recovered<'r> {
    /// No update was interrupted.
    Nothing,
    /// An update was interrupted before its commit, or taken back: the tree is the base.
    Discarded,
    /// An update was interrupted after its commit: the tree is the target now.
    Completed(Committed<'r>),
}

/// Which way an interrupted transaction is brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// To its target.
    #[default]
    Forward,
    /// To its base.
    Back,
}

/// How [`recover_with`] recovers.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecoverOptions {
    /// Which way.
    pub direction: Direction,
}

/// Finishes or removes what an interrupted update left. To be called before anything else, at
/// every start; does nothing where there is nothing to do, and can itself be interrupted.
///
/// # Errors
///
/// `Drift`, with the paths, if somebody else changed what was left to do: nothing is touched;
/// `Busy` if an update is under way; `Corrupt` if the journal cannot be read; `Unsupported` if a
/// newer program wrote it or one of its file systems is not mounted; `Io` and the like if a step
/// fails: call it again when the cause is gone.
pub fn recover(root: &Root) -> Result<Recovered<'_>, TreeError> {
    recover_with(root, &RecoverOptions::default())
}

/// [`recover`], towards the base if `options` says so.
///
/// # Errors
///
/// As [`recover`].
pub fn recover_with<'r>(
    root: &'r Root,
    options: &RecoverOptions,
) -> Result<Recovered<'r>, TreeError> {
    let Some(journal) = Journal::open_existing(root)? else {
        return Ok(Recovered::Nothing);
    };
    let had_stage = journal.sweep()?;
    let Some((txn, plan)) = unfinished(&journal)? else {
        return Ok(if had_stage { Recovered::Discarded } else { Recovered::Nothing });
    };
    let was_complete = txn.state == State::Done;
    let txn = match txn.state {
        State::Committed if options.direction == Direction::Back && plan.undoes.is_empty() => {
            return go_back(&journal, txn, &plan).map(|()| Recovered::Discarded);
        }
        State::Committed => match complete(&journal, txn, &plan) {
            Err(error) if error.kind() == ErrorKind::NoSpace && plan.undoes.is_empty() => {
                // What cannot be completed for want of room can still be taken back.
                return go_back(&journal, txn, &plan).map(|()| Recovered::Discarded).map_err(
                    |second| error.with_note(&format!("nor can it be taken back: {second}")),
                );
            }
            completed => completed?,
        },
        _ => txn,
    };
    if plan.undoes.iter().any(|number| is_halfway(&journal, *number)) {
        // It took back what was itself interrupted: the tree is the base, nobody has seen more.
        finish_undo(&journal, txn, &plan)?;
        return Ok(Recovered::Discarded);
    }
    let replaced = replaced(root, &plan)?;
    Ok(Recovered::Completed(Committed { journal, txn, plan: plan.into(), replaced, was_complete }))
}

/// The newest transaction that is committed and not over; one that it takes back does not count.
fn unfinished(journal: &Journal<'_>) -> Result<Option<(Txn, Plan)>, TreeError> {
    let newest = journal
        .list()?
        .into_iter()
        .rev()
        .find(|txn| matches!(txn.state, State::Committed | State::Done));
    newest.map(|txn| Ok((txn, journal.plan(txn)?))).transpose()
}

fn is_halfway(journal: &Journal<'_>, number: u64) -> bool {
    journal.list().is_ok_and(|list| list.contains(&Txn { number, state: State::Committed }))
}

/// Brings a committed transaction to its target.
pub(super) fn complete(journal: &Journal<'_>, txn: Txn, plan: &Plan) -> Result<Txn, TreeError> {
    let places = Places::open(journal, txn, plan.id, &plan.mounts)?;
    let root = journal.root();
    commit::perform(root, &places, plan)?;
    let fats = plan.mounts.iter().filter(|at| root.is_on_fat(at));
    fats.into_iter().try_for_each(|at| super::fat::tidy(root, at))?;
    journal.barrier(&plan.mounts)?;
    journal.advance(txn, State::Done)
}

/// Takes back what a committed transaction has done so far.
fn go_back(journal: &Journal<'_>, txn: Txn, plan: &Plan) -> Result<(), TreeError> {
    let (undo_txn, undo_plan) = undo::stage_reverse(journal, &[(txn, plan.clone())])?;
    journal.barrier(&undo_plan.mounts)?;
    let undo_txn = journal.advance(undo_txn, State::Committed)?;
    let undo_txn = complete(journal, undo_txn, &undo_plan)?;
    finish_undo(journal, undo_txn, &undo_plan)
}

/// Removes what was undone, then the undo.
pub(super) fn finish_undo(journal: &Journal<'_>, txn: Txn, plan: &Plan) -> Result<(), TreeError> {
    let undone: BTreeSet<u64> = plan.undoes.iter().copied().collect();
    let mut gone = journal.list()?;
    gone.retain(|txn| undone.contains(&txn.number));
    for txn in gone.into_iter().rev().chain([txn]) {
        journal.throw_away(txn)?;
    }
    Ok(())
}

/// There was no room to go on: takes the transaction back. The answer is `error`, with what
/// became of it.
pub(super) fn fall_back(
    journal: &Journal<'_>,
    txn: Txn,
    plan: &Plan,
    error: TreeError,
) -> TreeError {
    match go_back(journal, txn, plan) {
        Ok(()) => error.with_note("what had been changed was taken back"),
        Err(second) => {
            let note = format!(
                "and taking back what had been changed failed too ({second}); make room and run \
                 `vireo-agent recover`"
            );
            error.with_note(&note)
        }
    }
}

/// The files of the base that a transaction keeps alive.
fn replaced(root: &Root, plan: &Plan) -> Result<Vec<Replaced>, TreeError> {
    let mut replaced = Vec::new();
    for step in &plan.steps {
        let was_file = step.before.as_ref().is_some_and(|node| node.content().is_some());
        let is_gone = step.how != How::Metadata && !root.is_on_fat(&step.path);
        if let (true, true, Some(ino)) = (was_file, is_gone, step.found) {
            let at = root.mount_of(&step.path);
            let dev = super::journal::device(root, at)
                .map_err(root.failed("look at", at.unwrap_or(&ImagePath::root())))?;
            replaced.push(Replaced { path: step.path.clone(), dev, ino });
        }
    }
    Ok(replaced)
}
