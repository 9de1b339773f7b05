//! What is not in effect, from what is seen now.

use std::collections::{BTreeMap, BTreeSet};

use vireo_classify::{Action, Facts, FileEntry, Owner, Plan, Reboot, Rule, Unit, UnitPlan};

use crate::receipt::{ActionReport, ActionResult, Pending};

/// Most files that are named where it is unknown who uses them.
const NAMED_MAX: usize = 5;

/// What who holds replaced files needs.
const RESTART: &str = "restart";

/// Stands for units that nobody could name.
const SERVICES: &str = "services";

/// Held units, holders of replaced files that nothing was done about, units without proof, the
/// reboot.
pub(super) fn pending(plan: &Plan, after: &Facts, actions: &[ActionReport]) -> Vec<Pending> {
    let mut found: BTreeMap<String, Pending> = BTreeMap::new();
    let mut add = |subject: String, needs: &str, reason: &str| {
        let (needs, reason) = (needs.to_owned(), reason.to_owned());
        let pending = Pending { subject: subject.clone(), needs, reason, pid: None };
        found.entry(subject).or_insert(pending);
    };
    match plan.system.reboot {
        Reboot::None => {}
        Reboot::Soft => {
            add("system".to_owned(), "soft-reboot", "user space runs the base's programs")
        }
        Reboot::Full => add("system".to_owned(), "reboot", "the running kernel is the base's"),
    }
    // A kernel runs there, but nobody who could say what it runs.
    if !after.manager && !after.kernel_release.is_empty() {
        let read = |file: &&FileEntry| file.class.is_code() || file.class.is_configuration();
        let files = plan.files.iter().filter(read);
        let named: Vec<&str> = files.map(|file| file.path.as_str()).take(NAMED_MAX).collect();
        if !named.is_empty() {
            let reason = format!(
                "no service manager answers; restart by hand what uses {}",
                named.join(", ")
            );
            add(SERVICES.to_owned(), RESTART, &reason);
        }
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
        add(unit.unit.to_string(), RESTART, reason);
    }
    for action in actions.iter().filter(|action| action.result == ActionResult::Unproven) {
        let subject = if action.action == "daemon-reexec" { "process 1" } else { &action.subject };
        add(subject.to_owned(), RESTART, action.detail.as_deref().unwrap_or("not proven"));
    }
    for process in &after.processes {
        let (subject, reason) = holder(&process.owner);
        add(subject, RESTART, reason);
    }
    // What failed or is still to come is said there; holding files follows from it.
    let said = |result| matches!(result, ActionResult::Failed | ActionResult::Later);
    for action in actions.iter().filter(|action| said(action.result)) {
        found.remove(&action.subject);
    }
    let mut found: Vec<Pending> = found.into_values().collect();
    // Holding files is seen again at any time; that a unit was held or not proven is not.
    let holds = |subject: &str| after.processes.iter().any(|it| holder(&it.owner).0 == subject);
    for pending in found.iter_mut().filter(|pending| !holds(&pending.subject)) {
        pending.pid = main_pid(after, &pending.subject);
    }
    found
}

/// What of it still waits, as seen `now`, in the same boot: a unit that another process runs since
/// was restarted by somebody, and who holds no replaced file any more has nothing to wait for.
pub(crate) fn still_pending(then: Vec<Pending>, now: &Facts) -> Vec<Pending> {
    let holders: BTreeSet<String> =
        now.processes.iter().map(|process| holder(&process.owner).0).collect();
    let waits = |pending: &Pending| match pending.pid {
        _ if holders.contains(&pending.subject) => true,
        Some(pid) => main_pid(now, &pending.subject) == Some(pid),
        None => pending.needs != RESTART || pending.subject == SERVICES,
    };
    then.into_iter().filter(waits).collect()
}

fn main_pid(facts: &Facts, subject: &str) -> Option<u32> {
    facts.unit(&Unit::new(subject)).map(|unit| unit.main_pid).filter(|pid| *pid != 0)
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
