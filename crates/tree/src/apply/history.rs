//! The transactions that are over and can be undone.

use std::collections::BTreeSet;

use vireo_model::Digest;

use super::Settled;
use super::journal::{Journal, State};
use crate::{Root, TreeError};

/// A transaction that can be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Its number; a higher one is newer.
    pub number: u64,
    /// Digest of the version that it started from.
    pub base: Digest,
    /// Digest of the version that it led to.
    pub target: Digest,
    /// How many paths it changed.
    pub changes: usize,
    /// When it was finished, in seconds since 1970.
    pub time: i64,
    /// Bytes on the disk that are kept for undoing it alone.
    pub kept_len: u64,
    /// Local edits that it met, and what became of them.
    pub settled: Vec<Settled>,
}

/// The transactions of the tree that can be undone, newest first.
///
/// # Errors
///
/// `Busy` if an update is under way, `Corrupt` if a plan cannot be read.
pub fn history(root: &Root) -> Result<Vec<Past>, TreeError> {
    let Some(journal) = Journal::open_existing(root)? else {
        return Ok(Vec::new());
    };
    let mut list = journal.list()?;
    list.retain(|txn| txn.state == State::Past);
    list.into_iter()
        .rev()
        .map(|txn| {
            let plan = journal.plan(txn)?;
            let (time, kept_len) = journal.footprint(txn, &plan)?;
            Ok(Past {
                number: txn.number,
                base: plan.base,
                target: plan.target,
                changes: plan.steps.len(),
                time,
                kept_len,
                settled: plan.settled,
            })
        })
        .collect()
}

/// Gives up undoing the transaction `last` and all before it, and frees what they keep.
///
/// # Errors
///
/// `Busy` if an update is under way; `Io` if a link cannot be removed: the rest goes next time.
pub fn forget(root: &Root, last: u64) -> Result<(), TreeError> {
    let Some(journal) = Journal::open_existing(root)? else {
        return Ok(());
    };
    let list = journal.list()?;
    // What an unfinished undo is about is still needed.
    let mut needed = BTreeSet::new();
    for txn in list.iter().filter(|txn| txn.state != State::Staged && txn.state != State::Past) {
        needed.extend(journal.plan(*txn)?.undoes);
    }
    let goes = |number: u64| number <= last && !needed.contains(&number);
    for txn in list.into_iter().filter(|txn| txn.state == State::Past && goes(txn.number)) {
        journal.throw_away(txn)?;
    }
    Ok(())
}
