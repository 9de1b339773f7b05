//! From staged files to a receipt: what updates and undoing them have in common, and how it goes on
//! after an interruption.

use std::collections::BTreeSet;

use vireo_classify::{Action, ActiveState, Facts, FileId, OnFailure, Policy, Reboot, Unit};
use vireo_tree::apply::{Committed, Recovered, Staged, recover};
use vireo_tree::{ErrorKind as TreeErrorKind, Root};

use super::prepare::Prepared;
use super::watch::Watch;
use super::{Agent, Applied, Say, drift};
use crate::activate::{Patience, activate, stop_removed};
use crate::checks::CheckReport;
use crate::error::AgentError;
use crate::packages::PackageLock;
use crate::receipt::{Outcome, Receipt};
use crate::root::open_root;
use crate::services::Job;
use crate::state::{Condemned, Obligation, Position};
use crate::system::boot_id;

/// Everything that is needed to go ahead.
pub(super) struct Enactment<'r> {
    pub(super) root: &'r Root,
    pub(super) staged: Staged<'r>,
    pub(super) prepared: Prepared,
    pub(super) checks: Vec<CheckReport>,
    /// The version that it leads to.
    pub(super) position: Position,
    /// The version that it takes back and that is not to come back by itself.
    pub(super) hold: Option<Position>,
    /// Why it is taken back, if nobody asked for that.
    pub(super) undone_because: Vec<String>,
    pub(super) packages: PackageLock,
}

/// What finishing needs to know.
struct Ending<'a> {
    obligation: Obligation,
    /// What was true before anything was done.
    before: &'a Facts,
    policy: &'a Policy,
    watch: Watch,
    resumed: bool,
}

impl Agent {
    /// Commits, activates, writes down.
    pub(super) fn enact(
        &self,
        enactment: Enactment<'_>,
        mut watch: Watch,
        say: Say<'_>,
    ) -> Result<Applied, AgentError> {
        let Enactment { root, staged, mut prepared, checks, position, hold, packages, .. } =
            enactment;
        let boot = boot_id()?;
        self.arm(&mut prepared, &staged, &boot)?;
        let running = prepared.facts.units.values().filter(|it| it.active == ActiveState::Active);
        let mut obligation = Obligation {
            position,
            plan: prepared.plan.clone(),
            replaced: prepared.replaced.iter().copied().collect(),
            boot,
            hold,
            running: running.map(|unit| unit.name.clone()).collect(),
            checks,
            actions: Vec::new(),
            undone_because: enactment.undone_because,
        };
        self.state.set_obligation(&obligation)?;
        // Their own commands for it are there as long as their files are.
        obligation.actions = stop_removed(&prepared.plan, &*self.services);
        let committed = self.commit(root, staged, &obligation)?;
        drop(packages);
        watch.lap("commit");
        say("the files are in place, activating");
        let facts = self.system.facts(&prepared.replaced)?;
        obligation.plan = self.plan_again(&prepared, &facts);
        let (before, policy) = (&prepared.facts, &prepared.policy);
        self.finish(committed, Ending { obligation, before, policy, watch, resumed: false }, say)
    }

    /// Commits; an error after the point of no return is followed by one attempt to recover. If
    /// nothing was changed after all, what was stopped for it starts again.
    fn commit<'r>(
        &self,
        root: &'r Root,
        staged: Staged<'r>,
        obligation: &Obligation,
    ) -> Result<Committed<'r>, AgentError> {
        let error = match staged.commit() {
            Ok(committed) => return Ok(committed),
            Err(error) => error,
        };
        if error.kind() != TreeErrorKind::Busy {
            match recover(root) {
                Ok(Recovered::Completed(committed)) => return Ok(committed),
                Ok(Recovered::Nothing | Recovered::Discarded) => {}
                // The next start finishes or drops it, obligation included.
                Err(_) => return Err(error.into()),
            }
        }
        self.drop_obligation(obligation)?;
        Err(error.into())
    }

    /// What an update that did not happen leaves: units that were stopped for it, its guard.
    fn drop_obligation(&self, obligation: &Obligation) -> Result<(), AgentError> {
        let stopped = obligation.plan.units.iter().filter(|unit| unit.action == Action::Stop);
        let stopped: Vec<Unit> = stopped
            .map(|unit| unit.unit.clone())
            .filter(|unit| obligation.running.contains(unit))
            .collect();
        if !stopped.is_empty() && obligation.boot == boot_id()? {
            // What does not start was not ours to start; its log says why.
            let _ = self.services.run(Job::Start, &stopped);
        }
        self.drop_guard()?;
        self.state.clear_obligation()
    }

    /// Activates, proves, and writes down that it is over; undoes it if something is ill.
    fn finish(
        &self,
        committed: Committed<'_>,
        ending: Ending<'_>,
        say: Say<'_>,
    ) -> Result<Applied, AgentError> {
        let Ending { obligation, before, policy, mut watch, resumed } = ending;
        let Obligation { position, plan, replaced, hold, .. } = obligation;
        let replaced: BTreeSet<FileId> = replaced.into_iter().collect();
        // Who still holds what an earlier update replaced waits for that one, too.
        let mut looked_for = self.replaced_earlier(&obligation.boot, &committed)?;
        looked_for.extend(&replaced);
        if committed.undoes().is_empty() {
            // Before anything could want to load one.
            self.keep_modules(&committed, &plan, &before.kernel_release)?;
        }
        let (system, services) = (&*self.system, &*self.services);
        let patience = self.patience.unwrap_or_else(|| patience_of(policy));
        let activation = activate(&plan, &looked_for, before, system, services, patience)?;
        watch.lap("activate");
        let mut actions = obligation.actions;
        actions.extend(activation.actions);
        let mut receipt = Receipt {
            base: committed.base(),
            outcome: Outcome::Done,
            resumed,
            transaction: committed.undoes().is_empty().then(|| committed.number()),
            undone: committed.undoes().to_vec(),
            undone_because: obligation.undone_because,
            checks: obligation.checks,
            plan,
            actions,
            pending: activation.pending,
            failed_units: activation.failed_units,
            seconds: watch.total(),
            steps: watch.steps,
            ..Receipt::unchanged(position.tree, position.number)
        };
        receipt.outcome = receipt.judge();
        receipt.deviations = receipt.compare();
        let is_update = committed.undoes().is_empty();
        let number = committed.number();
        drift::record(&self.state, &committed)?;
        let is_condemned = is_update
            && !activation.ill.is_empty()
            && policy.defaults().on_health_failure == OnFailure::Undo;
        if is_condemned {
            let because = activation.ill.iter().map(|(unit, why)| format!("{unit}: {why}"));
            let condemned = Condemned {
                transaction: number,
                boot: boot_id()?,
                because: because.collect(),
                revive: self.to_revive(before),
                ill: activation.ill.iter().map(|(unit, _)| unit.clone()).collect(),
                actions: receipt.actions.clone(),
                checks: receipt.checks.clone(),
            };
            // Before the update counts as over, or an interruption would leave it.
            self.state.set_condemned(Some(&condemned))?;
            self.state.set_receipt(&receipt)?;
        } else if is_update {
            // An interruption may have left it: all is well now.
            self.state.set_condemned(None)?;
            self.await_confirmation(&mut receipt, number)?;
        } else {
            self.give_back_modules(committed.undoes())?;
            self.state.set_receipt(&receipt)?;
        }
        if let Some(before) = self.state.position()? {
            self.state.remember(&before)?;
        }
        self.state.remember(&position)?;
        self.state.set_position(&position)?;
        if !is_update {
            self.state.set_hold(hold.as_ref())?;
        }
        let undone = committed.undoes().to_vec();
        committed.finish()?;
        if is_update {
            // Before it counts as over: whoever asks then what waits has to know what is held.
            self.note_replaced(&obligation.boot, number, &replaced)?;
        }
        self.state.clear_obligation()?;
        if is_condemned {
            return self.undo_condemned(say);
        }
        if is_update {
            self.mark_reboot(&receipt.plan, before.manager)?;
        } else if self.state.guard()?.is_some_and(|it| undone.contains(&it.transaction)) {
            self.drop_guard()?;
        }
        self.prune()?;
        Ok(Applied { receipt, restart_self: activation.restart_self })
    }

    pub(super) fn recover_locked(&self, say: Say<'_>) -> Result<Option<Applied>, AgentError> {
        self.state.drop_damaged_memory(say)?;
        let root = open_root(&self.root)?;
        let committed = match recover(&root)? {
            Recovered::Completed(committed) => committed,
            Recovered::Nothing | Recovered::Discarded => {
                // What it was for did not happen, or all of it did.
                let tree = self.state.position()?.map(|position| position.tree);
                match self.state.obligation()? {
                    Some(obligation)
                        if self.state.condemned()?.is_none()
                            && tree != Some(obligation.position.tree) =>
                    {
                        self.drop_obligation(&obligation)?;
                    }
                    _ => self.state.clear_obligation()?,
                }
                if self.state.condemned()?.is_some() {
                    return self.undo_condemned(say).map(Some);
                }
                self.drop_modules(&root)?;
                self.renew_guard()?;
                return Ok(None);
            }
        };
        let obligation = self.state.obligation()?;
        match obligation.filter(|obligation| obligation.position.tree == committed.target()) {
            Some(obligation) => {
                say("an update was interrupted after its files were in place, activating");
                self.resume(committed, obligation, say).map(Some)
            }
            None => {
                self.adopt(&committed)?;
                committed.finish()?;
                Ok(None)
            }
        }
    }

    fn resume(
        &self,
        committed: Committed<'_>,
        mut obligation: Obligation,
        say: Say<'_>,
    ) -> Result<Applied, AgentError> {
        let same_boot = obligation.boot == boot_id()?;
        let plan = &mut obligation.plan;
        if !same_boot {
            // The machine was started anew since: the kernel and what was held are fresh.
            plan.system.reboot = Reboot::None;
            plan.units.retain(|unit| unit.action != Action::Hold);
            if committed.was_complete() {
                // And the files were in place before anything read them.
                plan.units.clear();
                plan.system = vireo_classify::SystemPlan::default();
            }
        }
        let replaced: BTreeSet<FileId> = obligation.replaced.iter().copied().collect();
        let mut before = self.system.facts(&replaced)?;
        if same_boot {
            // Some may have been ended by what was interrupted.
            for unit in &obligation.running {
                if let Some(facts) = before.units.get_mut(unit) {
                    facts.active = ActiveState::Active;
                }
            }
        }
        let policy = self.policy_of_return(say);
        let (before, policy, watch) = (&before, &policy, Watch::start());
        self.finish(committed, Ending { obligation, before, policy, watch, resumed: true }, say)
    }

    /// Somebody else brought an update to its end: note the version.
    fn adopt(&self, committed: &Committed<'_>) -> Result<(), AgentError> {
        drift::record(&self.state, committed)?;
        match self.state.position()? {
            Some(position) if position.tree == committed.base() => {
                self.state.set_position(&self.state.version_of(committed.target())?)
            }
            _ => Ok(()),
        }
    }
}

fn patience_of(policy: &Policy) -> Patience {
    Patience { settle_max: policy.defaults().settle, ..Patience::default() }
}
