//! From staged files to a receipt: what updates and undoing them have in common, and how it goes on
//! after an interruption.

use std::collections::BTreeSet;

use vireo_classify::{Action, ChangedFile, Facts, FileId, Plan, Reboot, plan};
use vireo_model::ChangeSet;
use vireo_tree::apply::{Committed, Recovered, Replaced, Settled, Staged, recover};
use vireo_tree::{ErrorKind as TreeErrorKind, Root};

use super::changed::{changed_files, disk_bytes};
use super::watch::Watch;
use super::{Agent, Applied, Say, drift};
use crate::activate::{OWN_UNIT, activate};
use crate::error::AgentError;
use crate::packages::PackageLock;
use crate::receipt::{Outcome, Receipt};
use crate::root::open_root;
use crate::state::{Obligation, Position};
use crate::system::boot_id;

/// What is about to change.
pub(super) struct Outlook<'a> {
    pub(super) changes: &'a ChangeSet,
    pub(super) replaced: &'a [Replaced],
    pub(super) settled: &'a [Settled],
    pub(super) wire_len: u64,
}

/// What it means for the machine.
pub(super) struct Prepared {
    pub(super) changes: Vec<ChangedFile>,
    pub(super) replaced: BTreeSet<FileId>,
    pub(super) plan: Plan,
}

/// Everything that is needed to go ahead.
pub(super) struct Enactment<'r> {
    pub(super) root: &'r Root,
    pub(super) staged: Staged<'r>,
    pub(super) prepared: Prepared,
    /// The version that it leads to.
    pub(super) position: Position,
    /// The version that it takes back and that is not to come back by itself.
    pub(super) hold: Option<Position>,
    pub(super) packages: PackageLock,
}

impl Agent {
    pub(super) fn prepare(&self, outlook: &Outlook<'_>) -> Result<Prepared, AgentError> {
        let mut changes = changed_files(&self.root, outlook.changes, outlook.replaced)?;
        // A copy beside a file is read by nobody, whether it comes or goes.
        let beside: BTreeSet<_> =
            outlook.settled.iter().filter_map(|settled| settled.beside.as_ref()).collect();
        let earlier: BTreeSet<String> =
            self.state.edits()?.into_iter().filter_map(|edit| edit.beside).collect();
        changes.retain(|change| {
            !beside.contains(&change.path) && !earlier.contains(&change.path.to_string())
        });
        let replaced: BTreeSet<FileId> =
            changes.iter().filter_map(|change| change.replaced).collect();
        let facts = self.system.facts(&replaced)?;
        let mut plan = plan(&changes, &facts, &self.policy);
        plan.base = Some(outlook.changes.base);
        plan.target = Some(outlook.changes.target);
        plan.wire_bytes = outlook.wire_len;
        plan.disk_bytes = disk_bytes(outlook.changes);
        plan.drift = drift::shown(outlook.settled);
        let plan = only_what_is_done(plan);
        Ok(Prepared { changes, replaced, plan })
    }

    /// Commits, activates, writes down.
    pub(super) fn enact(
        &self,
        enactment: Enactment<'_>,
        mut watch: Watch,
        say: Say<'_>,
    ) -> Result<Applied, AgentError> {
        let Enactment { root, staged, prepared, position, hold, packages } = enactment;
        let obligation = Obligation {
            position,
            plan: prepared.plan,
            replaced: prepared.replaced.iter().copied().collect(),
            boot: boot_id()?,
            hold,
        };
        self.state.set_obligation(&obligation)?;
        let committed = self.commit(root, staged)?;
        drop(packages);
        watch.lap("commit");
        say("the files are in place, activating");
        // Processes may have come since: the plan is made again from what is true now.
        let facts = self.system.facts(&prepared.replaced)?;
        let plan = only_what_is_done(plan(&prepared.changes, &facts, &self.policy));
        let plan = with_header_of(plan, &obligation.plan);
        self.finish(committed, Obligation { plan, ..obligation }, &facts, watch, false)
    }

    /// Commits; an error after the point of no return is followed by one attempt to recover.
    fn commit<'r>(&self, root: &'r Root, staged: Staged<'r>) -> Result<Committed<'r>, AgentError> {
        let error = match staged.commit() {
            Ok(committed) => return Ok(committed),
            Err(error) => error,
        };
        if error.kind() != TreeErrorKind::Busy
            && let Ok(Recovered::Completed(committed)) = recover(root)
        {
            return Ok(committed);
        }
        // The next start finishes or drops it, obligation included.
        Err(error.into())
    }

    /// Activates, proves, and writes down that it is over.
    fn finish(
        &self,
        committed: Committed<'_>,
        obligation: Obligation,
        facts: &Facts,
        mut watch: Watch,
        resumed: bool,
    ) -> Result<Applied, AgentError> {
        let Obligation { position, plan, replaced, hold, .. } = obligation;
        let replaced: BTreeSet<FileId> = replaced.into_iter().collect();
        let (system, services) = (&*self.system, &*self.services);
        let activation = activate(&plan, &replaced, facts, system, services, self.patience)?;
        watch.lap("activate");
        let mut receipt = Receipt {
            base: committed.base(),
            outcome: Outcome::Done,
            resumed,
            transaction: Some(committed.number()),
            undone: committed.undoes().to_vec(),
            plan,
            actions: activation.actions,
            pending: activation.pending,
            failed_units: activation.failed_units,
            seconds: watch.total(),
            steps: watch.steps,
            ..Receipt::unchanged(position.tree, position.number)
        };
        receipt.outcome = receipt.judge();
        drift::record(&self.state, &committed)?;
        self.state.set_receipt(&receipt)?;
        if let Some(before) = self.state.position()? {
            self.state.remember(&before)?;
        }
        self.state.remember(&position)?;
        self.state.set_position(&position)?;
        if !committed.undoes().is_empty() {
            self.state.set_hold(hold.as_ref())?;
        }
        committed.finish()?;
        self.state.clear_obligation()?;
        self.prune()?;
        Ok(Applied { receipt, restart_self: activation.restart_self })
    }

    pub(super) fn recover_locked(&self, say: Say<'_>) -> Result<Option<Applied>, AgentError> {
        let root = open_root(&self.root)?;
        let committed = match recover(&root)? {
            Recovered::Completed(committed) => committed,
            Recovered::Nothing | Recovered::Discarded => {
                // What it was for did not happen, or all of it did.
                self.state.clear_obligation()?;
                return Ok(None);
            }
        };
        let obligation = self.state.obligation()?;
        match obligation.filter(|obligation| obligation.position.tree == committed.target()) {
            Some(obligation) => {
                say("an update was interrupted after its files were in place, activating");
                self.resume(committed, obligation).map(Some)
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
    ) -> Result<Applied, AgentError> {
        let plan = &mut obligation.plan;
        if obligation.boot != boot_id()? {
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
        let facts = self.system.facts(&replaced)?;
        self.finish(committed, obligation, &facts, Watch::start(), true)
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

/// Units that connections survive the reload of, and the agent, which comes last of all.
const KEEPS_CONNECTIONS: [&str; 3] = ["ssh.service", "sshd.service", OWN_UNIT];

/// The plan without what the agent cannot do: it runs no checks before the commit and arms no
/// watch, so what would need a watch is held, and no promise of one is shown.
fn only_what_is_done(mut plan: Plan) -> Plan {
    plan.checks.clear();
    let Some(watch) = plan.system.dead_man.take() else { return plan };
    for unit in &mut plan.units {
        let name = unit.unit.as_str();
        let is_watched = watch.because.iter().any(|because| because == name);
        if is_watched && !KEEPS_CONNECTIONS.contains(&name) && unit.action != Action::Refuse {
            unit.action = Action::Hold;
            unit.reason = Some("it could cut this machine off; do it by hand".to_owned());
        }
    }
    plan
}

/// The plan with what does not depend on facts: versions, sizes, local edits.
fn with_header_of(plan: Plan, other: &Plan) -> Plan {
    let Plan { base, target, wire_bytes, disk_bytes, .. } = *other;
    Plan { base, target, wire_bytes, disk_bytes, drift: other.drift.clone(), ..plan }
}
