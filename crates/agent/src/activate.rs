//! Executes a plan and proves it.
//!
//! Order: removed units end, tools, the manager, reloads, restarts, new units start. Then the processes are looked at again: a unit
//! that was reloaded and still holds a replaced file is restarted, once. What still holds one
//! after that is pending; nothing here is remembered, all of it is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use vireo_classify::{
    Action, ActiveState, Facts, FileId, ManagerAction, Owner, Plan, Reboot, Rule, Unit, UnitPlan,
};

use crate::error::AgentError;
use crate::receipt::{ActionReport, ActionResult, Pending};
use crate::services::{Job, ServiceError, Services};
use crate::system::SystemView;

/// The unit that the agent itself runs in: restarted last of all, by the caller.
pub const OWN_UNIT: &str = "vireo-agent.service";

/// How patient proving is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long units have to let go of replaced files and to be active again.
    pub settle_max: Duration,
    /// How often they are looked at.
    pub poll_interval: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { settle_max: Duration::from_secs(5), poll_interval: Duration::from_millis(100) }
    }
}

/// What activation did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activation {
    /// What was done, in order.
    pub actions: Vec<ActionReport>,
    /// What still waits.
    pub pending: Vec<Pending>,
    /// Units that ran before and have failed since.
    pub failed_units: Vec<Unit>,
    /// The agent's own unit needs a restart: queue it when everything else is over.
    pub restart_self: bool,
}

/// Executes `plan`, whose update replaced the files `replaced`. `before` are the facts that the
/// plan was made from.
///
/// # Errors
///
/// The system cannot be looked at. Actions that fail are in the result.
pub fn activate(
    plan: &Plan,
    replaced: &BTreeSet<FileId>,
    before: &Facts,
    system: &dyn SystemView,
    services: &dyn Services,
    patience: Patience,
) -> Result<Activation, AgentError> {
    let own = Unit::new(OWN_UNIT);
    let wanted = |action| -> Vec<Unit> {
        let units = plan.units.iter().filter(|unit| unit.action == action && unit.unit != own);
        units.map(|unit| unit.unit.clone()).collect()
    };
    let mut run = Run { replaced, system, services, patience, reports: Vec::new() };
    // As long as the manager remembers the units whose files are gone.
    run.jobs(Job::Stop, &wanted(Action::Stop));
    if before.manager {
        run.tools(plan);
        run.manager(plan.system.manager);
    }
    let reloaded = run.jobs(Job::Reload, &wanted(Action::Reload));
    let mut restarts = wanted(Action::Restart);
    // A socket does not restart while its service runs: the service's job comes first.
    restarts.sort_by_key(|unit| unit.kind() == "socket");
    let mut acted = run.jobs(Job::Restart, &restarts);
    acted.extend(reloaded.iter().cloned());
    acted.extend(run.jobs(Job::Start, &wanted(Action::Start)));
    let mut after = run.settle(&acted, plan)?;
    let stale: Vec<Unit> = reloaded.into_iter().filter(|unit| holds(&after, unit)).collect();
    if !stale.is_empty() {
        run.escalate(&stale);
        after = run.settle(&acted, plan)?;
    }
    run.mark_unproven(&after);
    let restart_self = plan.action_of(&own) == Some(Action::Restart);
    let mut actions = run.reports;
    if restart_self {
        actions.push(report(OWN_UNIT, "restart", ActionResult::Later, 0.0));
    }
    Ok(Activation {
        pending: pending(plan, &after, &actions),
        failed_units: failed_since(before, &after),
        actions,
        restart_self,
    })
}

struct Run<'a> {
    replaced: &'a BTreeSet<FileId>,
    system: &'a dyn SystemView,
    services: &'a dyn Services,
    patience: Patience,
    reports: Vec<ActionReport>,
}

impl Run<'_> {
    fn tools(&mut self, plan: &Plan) {
        for tool in &plan.system.tools {
            let start = Instant::now();
            let outcome = self.services.run_tool(&tool.command);
            self.note("system", &tool.command.join(" "), start, outcome);
        }
    }

    fn manager(&mut self, action: ManagerAction) {
        let start = Instant::now();
        let (verb, outcome) = match action {
            ManagerAction::None => return,
            ManagerAction::Reload => ("daemon-reload", self.services.daemon_reload()),
            ManagerAction::Reexec => ("daemon-reexec", self.services.daemon_reexec()),
        };
        self.note("system", verb, start, outcome);
    }

    /// Does one kind of job to all `units`; gives those whose job ended well.
    fn jobs(&mut self, job: Job, units: &[Unit]) -> Vec<Unit> {
        if units.is_empty() {
            return Vec::new();
        }
        let start = Instant::now();
        let outcomes = self.services.run(job, units);
        let mut well = Vec::new();
        for (unit, outcome) in units.iter().zip(outcomes) {
            if outcome.is_ok() {
                well.push(unit.clone());
            }
            self.note(unit.as_str(), job.as_str(), start, outcome);
        }
        well
    }

    /// Restarts units whose reload did not make them let go of replaced files.
    fn escalate(&mut self, units: &[Unit]) {
        for report in &mut self.reports {
            if report.action == "reload" && units.iter().any(|unit| unit.as_str() == report.subject)
            {
                report.result = ActionResult::Escalated;
                report.detail = Some("it still held replaced files".to_owned());
            }
        }
        self.jobs(Job::Restart, units);
    }

    /// Looks until the units acted upon are active and hold nothing replaced, or patience ends.
    fn settle(&self, acted: &[Unit], plan: &Plan) -> Result<Facts, AgentError> {
        let start = Instant::now();
        loop {
            let facts = self.system.facts(self.replaced)?;
            let manager_stale =
                plan.system.manager == ManagerAction::Reexec && manager_holds(&facts);
            let settled = !manager_stale && acted.iter().all(|unit| proven(&facts, unit));
            if settled || start.elapsed() >= self.patience.settle_max {
                return Ok(facts);
            }
            thread::sleep(self.patience.poll_interval);
        }
    }

    fn mark_unproven(&mut self, after: &Facts) {
        for report in &mut self.reports {
            if report.result != ActionResult::Done {
                continue;
            }
            let unit = Unit::new(report.subject.clone());
            if report.action == "daemon-reexec" && manager_holds(after) {
                report.result = ActionResult::Unproven;
                report.detail = Some("process 1 still holds replaced files".to_owned());
            } else if holds(after, &unit) {
                report.result = ActionResult::Unproven;
                report.detail = Some("it still holds replaced files".to_owned());
            } else if report.action == Job::Stop.as_str() {
                // Its job ended well, and there is nothing left to look at.
            } else if report.subject != "system" && !is_active(after, &unit) {
                report.result = ActionResult::Failed;
                report.detail = Some(state_of(after, &unit));
            }
        }
    }

    fn note(
        &mut self,
        subject: &str,
        action: &str,
        start: Instant,
        outcome: Result<(), ServiceError>,
    ) {
        let result = if outcome.is_ok() { ActionResult::Done } else { ActionResult::Failed };
        let mut report = report(subject, action, result, start.elapsed().as_secs_f64());
        report.detail = outcome.err().map(|error| error.to_string());
        self.reports.push(report);
    }
}

fn report(subject: &str, action: &str, result: ActionResult, seconds: f64) -> ActionReport {
    ActionReport {
        subject: subject.to_owned(),
        action: action.to_owned(),
        result,
        seconds,
        detail: None,
    }
}

/// Whether a process of the unit is among those that hold replaced files.
fn holds(facts: &Facts, unit: &Unit) -> bool {
    facts
        .processes
        .iter()
        .any(|process| matches!(&process.owner, Owner::Unit(owner) if owner == unit))
}

fn manager_holds(facts: &Facts) -> bool {
    facts.processes.iter().any(|process| process.owner == Owner::Manager)
}

fn is_active(facts: &Facts, unit: &Unit) -> bool {
    facts
        .unit(unit)
        .is_some_and(|unit| matches!(unit.active, ActiveState::Active | ActiveState::Reloading))
}

fn proven(facts: &Facts, unit: &Unit) -> bool {
    is_active(facts, unit) && !holds(facts, unit)
}

fn state_of(facts: &Facts, unit: &Unit) -> String {
    let state = facts.unit(unit).map_or("gone", |unit| unit.sub.as_str());
    format!("it is not active but {state}; its log says more")
}

/// Everything that is not in effect, from what is seen now: held units, holders of replaced
/// files that nothing was done about, units without proof, the reboot.
fn pending(plan: &Plan, after: &Facts, actions: &[ActionReport]) -> Vec<Pending> {
    let mut found: BTreeMap<String, Pending> = BTreeMap::new();
    let mut add = |subject: String, needs: &str, reason: &str| {
        found.entry(subject.clone()).or_insert_with(|| Pending {
            subject,
            needs: needs.to_owned(),
            reason: reason.to_owned(),
        });
    };
    if plan.system.reboot != Reboot::None {
        add("system".to_owned(), "reboot", "the running kernel is the base's");
    }
    let holders: BTreeSet<String> =
        after.processes.iter().map(|process| holder(&process.owner).0).collect();
    // What was held only because it held files need not hold them any more.
    let still = |unit: &UnitPlan| {
        holders.contains(unit.unit.as_str())
            || unit.because.iter().any(|evidence| evidence.rule != Rule::Held)
    };
    for unit in plan.units.iter().filter(|unit| unit.action == Action::Hold && still(unit)) {
        let reason = unit.reason.as_deref().unwrap_or("it is held");
        add(unit.unit.to_string(), "restart", reason);
    }
    for action in actions.iter().filter(|action| action.result == ActionResult::Unproven) {
        let subject = if action.action == "daemon-reexec" { "process 1" } else { &action.subject };
        add(subject.to_owned(), "restart", action.detail.as_deref().unwrap_or("not proven"));
    }
    for process in &after.processes {
        let (subject, reason) = holder(&process.owner);
        add(subject, "restart", reason);
    }
    // What failed or is still to come is said there; holding files follows from it.
    let said = |result| matches!(result, ActionResult::Failed | ActionResult::Later);
    for action in actions.iter().filter(|action| said(action.result)) {
        found.remove(&action.subject);
    }
    found.into_values().collect()
}

fn holder(owner: &Owner) -> (String, &'static str) {
    match owner {
        Owner::Manager => ("process 1".to_owned(), "it holds replaced files"),
        Owner::Unit(unit) => (unit.to_string(), "it holds replaced files"),
        Owner::UserUnit { manager, .. } => {
            (manager.to_string(), "a user's service holds replaced files")
        }
        Owner::Session(session) => (session.to_string(), "it lasts until logout"),
        Owner::Foreign(name) => (name.clone(), "a container holds replaced files"),
        Owner::Nobody => ("(no unit)".to_owned(), "no unit could be restarted for it"),
    }
}

fn failed_since(before: &Facts, after: &Facts) -> Vec<Unit> {
    let failed =
        |unit: &Unit| after.unit(unit).is_some_and(|unit| unit.active == ActiveState::Failed);
    let ran = before.units.values().filter(|unit| unit.active.is_up());
    ran.map(|unit| unit.name.clone()).filter(failed).collect()
}

#[cfg(test)]
mod tests {
    use vireo_classify::{ChangedFile, Policy, Process, UnitFacts, plan};
    use vireo_model::{ChangeKind, ImagePath};

    use super::*;
    use crate::testing::FakeMachine;

    const LIBRARY: FileId = FileId { dev: 1, ino: 7 };

    /// nginx can reload, cron cannot, ssh executes itself anew, dbus is held; all hold the library.
    fn machine() -> FakeMachine {
        let can_reload = |name| UnitFacts { can_reload: true, ..UnitFacts::running(name) };
        let mut facts = Facts::new()
            .with_unit(can_reload("nginx.service"))
            .with_unit(can_reload("ssh.service"))
            .with_unit(UnitFacts::running("cron.service"))
            .with_unit(UnitFacts::running("dbus.service"))
            .with_unit(UnitFacts::running("vireo-agent.service"));
        for (pid, unit) in
            [(10, "nginx.service"), (11, "ssh.service"), (12, "cron.service"), (13, "dbus.service")]
        {
            facts = facts.with_process(Process::of_unit(pid, unit, [LIBRARY]));
        }
        FakeMachine::new(facts)
    }

    fn change(path: &str, replaced: Option<FileId>) -> ChangedFile {
        let path = ImagePath::parse(path.as_bytes()).expect("a valid path");
        ChangedFile { replaced, ..ChangedFile::new(path, ChangeKind::Modified) }
    }

    /// Activates `changes` on `machine`; gives the calls and the outcome in words.
    fn run(machine: &FakeMachine, changes: &[ChangedFile]) -> (String, String) {
        let replaced: BTreeSet<FileId> =
            changes.iter().filter_map(|change| change.replaced).collect();
        let before = machine.facts(&replaced).expect("facts");
        let plan = plan(changes, &before, &Policy::default());
        let patience = Patience { settle_max: Duration::ZERO, poll_interval: Duration::ZERO };
        let done =
            activate(&plan, &replaced, &before, machine, machine, patience).expect("it runs");
        let mut words: Vec<String> = Vec::new();
        words.extend(
            done.actions
                .iter()
                .map(|a| format!("{} {} {}", a.result.as_str(), a.action, a.subject)),
        );
        words.extend(done.pending.iter().map(|p| format!("pending {} {}", p.needs, p.subject)));
        words.extend(done.failed_units.iter().map(|unit| format!("lost {unit}")));
        (machine.calls().join("; "), words.join("; "))
    }

    #[test]
    fn the_order_is_tools_manager_reloads_restarts() {
        let machine = machine();
        let changes = [
            change("/etc/tmpfiles.d/a.conf", None),
            change("/etc/systemd/system/cron.service", None),
            change("/etc/nginx/nginx.conf", None),
            change("/etc/hosts", None),
        ];
        let (calls, outcome) = run(&machine, &changes);
        assert_eq!(
            calls,
            "systemd-tmpfiles --create a.conf; daemon-reload; reload nginx.service; restart cron.service"
        );
        assert_eq!(
            outcome,
            "done systemd-tmpfiles --create a.conf system; done daemon-reload system; \
             done reload nginx.service; done restart cron.service"
        );
    }

    #[test]
    fn a_replaced_library_is_gone_from_all_but_the_held() {
        let machine = machine();
        machine.reload_reexecs("ssh.service");
        let (calls, outcome) = run(&machine, &[change("/usr/lib/libz.so.1", Some(LIBRARY))]);
        assert_eq!(calls, "reload ssh.service; restart cron.service nginx.service");
        assert_eq!(
            outcome,
            "done reload ssh.service; done restart cron.service; done restart nginx.service; \
             pending restart dbus.service"
        );
    }

    #[test]
    fn a_reload_without_proof_is_followed_by_one_restart() {
        let machine = machine();
        let (calls, outcome) = run(&machine, &[change("/usr/lib/libz.so.1", Some(LIBRARY))]);
        assert_eq!(
            calls,
            "reload ssh.service; restart cron.service nginx.service; restart ssh.service"
        );
        assert!(outcome.starts_with("escalated reload ssh.service; "), "{outcome}");
        assert!(outcome.contains("done restart ssh.service"), "{outcome}");
    }

    #[test]
    fn what_a_restart_does_not_prove_is_pending() {
        let machine = machine();
        machine.keeps_files("cron.service");
        let (_, outcome) = run(&machine, &[change("/usr/lib/libz.so.1", Some(LIBRARY))]);
        assert!(outcome.contains("unproven restart cron.service"), "{outcome}");
        assert!(outcome.contains("pending restart cron.service"), "{outcome}");
    }

    #[test]
    fn a_failed_reload_is_not_made_a_restart() {
        let machine = machine();
        machine.breaks("nginx.service");
        let (calls, outcome) = run(&machine, &[change("/etc/nginx/nginx.conf", None)]);
        assert_eq!(calls, "reload nginx.service", "a restart could end a service that still works");
        assert_eq!(outcome, "failed reload nginx.service");
    }

    #[test]
    fn one_failed_unit_does_not_stop_the_rest() {
        let machine = machine();
        machine.breaks("cron.service");
        let (_, outcome) = run(&machine, &[change("/usr/lib/libz.so.1", Some(LIBRARY))]);
        assert!(
            outcome.contains("failed restart cron.service; done restart nginx.service"),
            "{outcome}"
        );
        assert!(outcome.ends_with("lost cron.service"), "{outcome}");
    }

    #[test]
    fn the_agent_itself_is_left_to_its_caller() {
        let machine = machine();
        let itself = FileId { dev: 1, ino: 8 };
        machine.hold(14, "vireo-agent.service", itself);
        let (calls, outcome) = run(&machine, &[change("/usr/bin/vireo-agent", Some(itself))]);
        assert_eq!(calls, "");
        assert_eq!(outcome, "later restart vireo-agent.service");
    }

    #[test]
    fn without_a_service_manager_nothing_is_tried() {
        let machine = FakeMachine::new(Facts::default());
        let (calls, outcome) = run(&machine, &[change("/etc/systemd/system/a.service", None)]);
        assert_eq!((calls.as_str(), outcome.as_str()), ("", ""));
    }
}
