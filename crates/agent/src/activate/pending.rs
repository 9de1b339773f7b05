//! What is not in effect, from what is seen now.

use std::collections::{BTreeMap, BTreeSet};

use vireo_classify::{Action, Facts, FileEntry, Owner, Plan, Reboot, Rule, UnitPlan};

use crate::receipt::{ActionReport, ActionResult, Pending};

/// Most files that are named where it is unknown who uses them.
const NAMED_MAX: usize = 5;

/// Held units, holders of replaced files that nothing was done about, units without proof, the
/// reboot.
pub(super) fn pending(plan: &Plan, after: &Facts, actions: &[ActionReport]) -> Vec<Pending> {
    let mut found: BTreeMap<String, Pending> = BTreeMap::new();
    let mut add = |subject: String, needs: &str, reason: &str| {
        found.entry(subject.clone()).or_insert_with(|| Pending {
            subject,
            needs: needs.to_owned(),
            reason: reason.to_owned(),
        });
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
            add("services".to_owned(), "restart", &reason);
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
