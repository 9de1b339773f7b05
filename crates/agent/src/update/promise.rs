//! The promise to take an update back that cuts the machine off: how it is given, kept, and let go.
//!
//! Who confirms and whoever undoes take turns by [`StateDir::lock_guard`], so that an update is
//! confirmed or undone and never both. An undo is written down before the promise goes: what is
//! interrupted, or fails, is tried again.
//!
//! [`StateDir::lock_guard`]: crate::state::StateDir::lock_guard

use std::time::Duration;

use vireo_classify::Plan;
use vireo_tree::apply::{Staged, history};

use super::prepare::{Prepared, hold_what_cuts_off};
use super::{Agent, Applied, Say};
use crate::error::AgentError;
use crate::guard::Guard;
use crate::receipt::{Pending, Receipt};
use crate::root::open_root;
use crate::state::Condemned;
use crate::system::boot_id;

/// What an update that waits to be confirmed needs, as its receipt calls it.
pub(super) const CONFIRMATION: &str = "confirmation";

/// How long the timer of an update waits for whoever else works on the machine: a batch of jobs
/// that hangs, and watching after it.
const LOCK_WAIT: Duration = Duration::from_secs(600);

impl Agent {
    /// Promises to undo the update if it cuts the machine off. Where nobody can promise that, what
    /// could cut it off is held.
    pub(super) fn arm(
        &self,
        prepared: &mut Prepared,
        staged: &Staged<'_>,
        boot: &str,
    ) -> Result<(), AgentError> {
        prepared.hold_cutters = self.guarded && !staged.is_undo();
        let _turn = self.state.lock_guard()?;
        let earlier = self.state.guard()?;
        // One with this number or a later one is of an update that was undone since.
        let earlier = match earlier.filter(|guard| guard.transaction < staged.number()) {
            None => self.remove_guard().map(|()| None)?,
            earlier => earlier,
        };
        let Some(man) = &prepared.plan.system.dead_man else { return Ok(()) };
        let is_update = prepared.plan.target.is_some() && !staged.is_undo();
        if is_update && self.guarded && prepared.facts.manager {
            // Whoever confirms this one has reached the machine with the earlier one, too.
            let first = earlier.as_ref().map_or(staged.number(), |guard| guard.transaction);
            let guard = Guard::new(man, first, boot)?;
            // The record first: a timer without one does nothing.
            self.state.set_guard(Some(&guard))?;
            if guard.arm(&*self.services, &self.undoer()).is_ok() {
                if let Some(earlier) = earlier {
                    earlier.disarm(&*self.services);
                }
                return Ok(());
            }
            self.state.set_guard(earlier.as_ref())?;
        }
        if is_update && self.guarded {
            let plan = std::mem::replace(&mut prepared.plan, Plan::empty());
            prepared.plan = hold_what_cuts_off(plan);
        } else {
            // Somebody is there who looks after it, or it leads back to what was reachable.
            prepared.plan.system.dead_man = None;
        }
        Ok(())
    }

    /// Has the time to confirm begin, if the update has to be confirmed, and keeps its receipt.
    pub(super) fn await_confirmation(
        &self,
        receipt: &mut Receipt,
        number: u64,
    ) -> Result<(), AgentError> {
        let _turn = self.state.lock_guard()?;
        if let Some(guard) = self.state.guard()?.filter(|guard| guard.transaction <= number) {
            // If it cannot be set, the first one still counts.
            let _ = guard.start(&*self.services, &self.undoer());
            receipt.pending.push(Pending {
                subject: "update".to_owned(),
                needs: CONFIRMATION.to_owned(),
                reason: format!(
                    "it is undone in {} s unless confirmed: vireo-agent confirm {}",
                    guard.seconds, guard.nonce
                ),
                pid: None,
            });
            receipt.outcome = receipt.judge();
        }
        self.state.set_receipt(receipt)
    }

    /// Notes that somebody has reached this machine since the update: it stays. Whether an update
    /// waited for `nonce`.
    ///
    /// # Errors
    ///
    /// `Busy` if that is just being decided; the records cannot be read or written.
    pub fn confirm(&self, nonce: &str) -> Result<bool, AgentError> {
        let _turn = self.state.lock_guard()?;
        let Some(guard) = self.state.guard()?.filter(|guard| guard.nonce == nonce) else {
            return Ok(false);
        };
        if let Some(mut receipt) = self.state.last_receipt()? {
            let before = receipt.pending.len();
            receipt.pending.retain(|pending| pending.needs != CONFIRMATION);
            if receipt.pending.len() != before {
                receipt.outcome = receipt.judge();
                self.state.set_receipt(&receipt)?;
            }
        }
        // Last: until here it was not confirmed.
        self.state.set_guard(None)?;
        guard.disarm(&*self.services);
        Ok(true)
    }

    /// Undoes the update that waits for `nonce` unless that was said: what the timer of an update
    /// that could cut the machine off calls. None if there is nothing to undo.
    ///
    /// # Errors
    ///
    /// As [`Agent::undo`]; it is tried again later by itself.
    pub fn undo_unconfirmed(
        &self,
        nonce: &str,
        say: Say<'_>,
    ) -> Result<Option<Applied>, AgentError> {
        let waits = || {
            let guard = self.state.guard()?;
            Ok::<_, AgentError>(guard.is_some_and(|guard| guard.nonce == nonce))
        };
        if !waits()? {
            return Ok(None);
        }
        let undone = self.try_undo_unconfirmed(nonce, say);
        if undone.is_err() && waits()? {
            self.try_again_later(&self.undoer().words(nonce));
        }
        undone
    }

    fn try_undo_unconfirmed(
        &self,
        nonce: &str,
        say: Say<'_>,
    ) -> Result<Option<Applied>, AgentError> {
        let _lock = self.state.lock_within(LOCK_WAIT)?;
        self.recover_locked(say)?;
        match self.condemn_unconfirmed(nonce)? {
            true => self.undo_condemned(say).map(Some),
            false => Ok(None),
        }
    }

    /// Writes down that the update that waits for `nonce` is to be undone, if it still waits.
    fn condemn_unconfirmed(&self, nonce: &str) -> Result<bool, AgentError> {
        let _turn = self.state.lock_guard()?;
        let Some(guard) = self.state.guard()?.filter(|guard| guard.nonce == nonce) else {
            return Ok(false);
        };
        let list = history(&open_root(&self.root)?)?;
        let is_there = list.iter().any(|past| past.number == guard.transaction);
        if is_there {
            let because = format!(
                "nobody confirmed within {} s that this machine can be reached ({})",
                guard.seconds,
                guard.because.join(", ")
            );
            let condemned = Condemned {
                transaction: guard.transaction,
                boot: boot_id()?,
                because: vec![because],
                revive: Vec::new(),
                ill: Vec::new(),
                actions: Vec::new(),
                checks: Vec::new(),
            };
            self.state.set_condemned(Some(&condemned))?;
        }
        // Or it never came to be.
        self.remove_guard()?;
        Ok(is_there)
    }

    /// Lets the promise go, whatever it is for.
    pub(super) fn drop_guard(&self) -> Result<(), AgentError> {
        let _turn = self.state.lock_guard()?;
        self.remove_guard()
    }

    /// The same for whoever has the turn.
    fn remove_guard(&self) -> Result<(), AgentError> {
        if let Some(guard) = self.state.guard()? {
            self.state.set_guard(None)?;
            guard.disarm(&*self.services);
        }
        Ok(())
    }

    /// Sets the timer of an update that still waits to be confirmed once more: timers do not
    /// outlive a boot.
    pub(super) fn renew_guard(&self) -> Result<(), AgentError> {
        let _turn = self.state.lock_guard()?;
        let (Some(mut guard), boot) = (self.state.guard()?, boot_id()?) else { return Ok(()) };
        if guard.boot != boot && guard.start(&*self.services, &self.undoer()).is_ok() {
            guard.boot = boot;
            self.state.set_guard(Some(&guard))?;
        }
        Ok(())
    }
}
