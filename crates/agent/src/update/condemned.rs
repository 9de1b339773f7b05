//! Updates that are undone by themselves, after which something was ill or which nobody confirmed.
//!
//! What is condemned is written down before anything is undone, and the record goes when all is
//! as it was: whatever is interrupted or fails on the way is tried again, by the next start of the
//! agent or by a timer.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use vireo_classify::{ActiveState, Facts, Unit};
use vireo_tree::apply::{UndoOptions, history};

use super::{Agent, Applied, Say};
use crate::error::{AgentError, ErrorKind};
use crate::receipt::Receipt;
use crate::root::open_root;
use crate::state::Condemned;
use crate::system::boot_id;

/// How long after an undo that failed it is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

impl Agent {
    /// The units that ran before; which of them do not is seen when they are wanted again.
    pub(super) fn to_revive(&self, before: &Facts) -> Vec<Unit> {
        let active = before.units.values().filter(|unit| unit.active == ActiveState::Active);
        let lasting = active.filter(|unit| !unit.is_done() && unit.name.kind() != "scope");
        lasting.map(|unit| unit.name.clone()).collect()
    }

    /// Undoes the condemned update, and has run again what ran before it. What fails is tried
    /// again in a while.
    pub(super) fn undo_condemned(&self, say: Say<'_>) -> Result<Applied, AgentError> {
        let undone = self.try_undo_condemned(say);
        if undone.is_err() {
            self.try_again_later(&self.undoer().recover_words());
        }
        undone
    }

    /// Has the agent called again in a while. Without a timer it is up to the agent's next start.
    pub(super) fn try_again_later(&self, words: &[String]) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // A name of its own: this may be what the timer before has started.
        let name = format!("vireo-again-{}", now.as_secs());
        let _ = self.services.set_timer(&name, RETRY_PAUSE, words);
    }

    fn try_undo_condemned(&self, say: Say<'_>) -> Result<Applied, AgentError> {
        let Some(condemned) = self.state.condemned()? else {
            let message = "the record of what is to be undone is gone";
            return Err(AgentError::new(ErrorKind::State, message));
        };
        for reason in &condemned.because {
            say(&format!("undoing the update: {reason}"));
        }
        let number = condemned.transaction;
        if !history(&open_root(&self.root)?)?.iter().any(|past| past.number == number) {
            // The undo was interrupted when it was over but for this.
            return self.absolve(&condemned, self.unchanged()?);
        }
        // Nobody is there to say what is to become of files that were edited since: they are kept.
        let options = UndoOptions { take: true };
        let mut applied = self.undo_locked(number, &options, condemned.because.clone(), say)?;
        let receipt = &mut applied.receipt;
        receipt.actions.splice(0..0, condemned.actions.iter().cloned());
        receipt.checks.clone_from(&condemned.checks);
        self.absolve(&condemned, applied)
    }

    /// The last of an undo that nobody asked for: what ran before runs again, and that is written
    /// down.
    fn absolve(&self, condemned: &Condemned, mut applied: Applied) -> Result<Applied, AgentError> {
        let receipt = &mut applied.receipt;
        // At an early boot nothing runs yet, and nothing that is asked for would before this ends.
        if !condemned.revive.is_empty() && condemned.boot == boot_id()? {
            self.revive(condemned, receipt)?;
        }
        receipt.outcome = receipt.judge();
        self.state.set_receipt(receipt)?;
        self.drop_guard()?;
        self.state.set_condemned(None)?;
        Ok(applied)
    }

    /// What the last update or undo came to, once more.
    fn unchanged(&self) -> Result<Applied, AgentError> {
        let receipt = self.state.last_receipt()?.ok_or_else(|| {
            AgentError::new(ErrorKind::State, "the receipt of what was undone is gone")
        })?;
        Ok(Applied { receipt, restart_self: false })
    }

    /// Starts again what ran before the update and does not now.
    fn revive(&self, condemned: &Condemned, receipt: &mut Receipt) -> Result<(), AgentError> {
        let nothing = BTreeSet::new();
        let units: BTreeSet<&Unit> = condemned.revive.iter().chain(&condemned.ill).collect();
        let facts = self.system.facts(&nothing)?;
        let acted: BTreeSet<&str> = receipt.actions.iter().map(|it| it.subject.as_str()).collect();
        let down = units.iter().filter(|unit| {
            let was_acted_upon = acted.contains(unit.as_str()) || condemned.ill.contains(unit);
            is_down(&facts, unit, was_acted_upon)
        });
        let down: Vec<Unit> = down.copied().cloned().collect();
        if !down.is_empty() {
            // A unit that was started too often would not start.
            let _ = self.services.reset_failed(&down);
            receipt.actions.extend(crate::activate::start_again(&down, &*self.services));
        }
        let facts = self.system.facts(&nothing)?;
        let failed = units.iter().filter(|unit| is_failed(&facts, unit));
        receipt.failed_units = failed.copied().cloned().collect();
        Ok(())
    }
}

fn is_failed(facts: &Facts, unit: &Unit) -> bool {
    facts.unit(unit).is_some_and(|unit| unit.active == ActiveState::Failed)
}

/// Whether a unit that ran is down because of the update. A service that ended well by itself
/// while nobody acted upon it is left alone.
fn is_down(facts: &Facts, unit: &Unit, was_acted_upon: bool) -> bool {
    let is_kind = matches!(unit.kind(), "service" | "socket" | "timer" | "path");
    // The manager forgets a unit that is down and that nothing else names.
    let is_ended = facts.unit(unit).is_none_or(|unit| !unit.active.is_up());
    is_failed(facts, unit) || was_acted_upon && is_kind && is_ended
}
