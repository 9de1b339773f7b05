//! The catalogue of changes that the planner was designed by, row by row: what a row says is
//! expected is read from its own words and compared with the plan for such a change.
//!
//! `cargo test -p vireo-classify --test corpus -- --nocapture` prints the score.

mod expected;
mod guest;
mod lab;
mod more;
mod rows;

use std::collections::BTreeMap;

use expected::Expected;
use lab::Scenario;
use vireo_classify::{Action, ManagerAction, Plan, Planner, Policy, Reboot, Unit};

const CORPUS: &str = include_str!("../corpus.tsv");

/// One row of the catalogue.
struct Row<'a> {
    id: &'a str,
    expected: &'a str,
    unit: &'a str,
}

fn rows() -> Vec<Row<'static>> {
    let row = |line: &'static str| {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields.len(), 8, "{line:?}");
        Row { id: fields[0], expected: fields[4], unit: fields[5] }
    };
    CORPUS.lines().skip(1).filter(|line| !line.is_empty()).map(row).collect()
}

fn plan_of(scenario: &Scenario, with_reads: bool) -> Plan {
    let policy = Policy::default();
    let mut planner = Planner::new(&policy).with_host(&scenario.host);
    if with_reads {
        planner = planner.with_reads(&scenario.reads);
    }
    let mut plan = planner.plan(&scenario.changes, &scenario.facts);
    if scenario.check_fails {
        let check = (0..plan.checks.len()).next_back();
        plan.refuse(check.expect("somebody checks the file"), "it is wrong");
    }
    plan
}

/// What is wrong with the plan, if anything.
fn judge(row: &Row<'_>, scenario: &Scenario, plan: &Plan) -> Result<(), String> {
    let expected = Expected::of(row.expected, row.unit);
    let manager = match plan.system.manager {
        ManagerAction::None => None,
        ManagerAction::Reload => Some("daemon-reload"),
        ManagerAction::Reexec => Some("daemon-reexec"),
    };
    let wanted = scenario.manager.or(expected.manager);
    check(manager == wanted, "manager", &manager, &wanted)?;
    let reboot = match plan.system.reboot {
        Reboot::None => None,
        Reboot::Soft => Some("soft-reboot"),
        Reboot::Full => Some("reboot"),
    };
    let reboot_is_due = expected.reboot.filter(|_| scenario.reboot_is_due);
    check(reboot == reboot_is_due, "reboot", &reboot, &reboot_is_due)?;
    let tools: Vec<String> = plan.system.tools.iter().map(|run| run.command.join(" ")).collect();
    for tool in &expected.tools {
        let runs = tools.iter().any(|command| command.contains(tool.as_str()));
        check(runs, "tool", &tools, tool)?;
    }
    check(expected.tools.is_empty() <= tools.is_empty(), "tools", &tools, &expected.tools)?;
    let found: BTreeMap<Unit, Action> =
        plan.units.iter().map(|unit| (unit.unit.clone(), unit.action)).collect();
    let wanted = scenario.expected_units(&expected);
    check(found == wanted, "units", &found, &wanted)?;
    (scenario.also)(plan)
}

fn check<F: std::fmt::Debug, W: std::fmt::Debug>(
    holds: bool,
    what: &str,
    found: &F,
    wanted: &W,
) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what}: found {found:?}, expected {wanted:?}")) }
}

#[test]
fn every_row_gets_the_plan_that_it_says() {
    let rows = rows();
    assert_eq!(rows.len(), 105, "the whole catalogue");
    let (mut right, mut wrong, mut elsewhere, mut without) = (0, Vec::new(), Vec::new(), 0);
    let mut lost = Vec::new();
    for row in &rows {
        if let Some(why) = rows::not_of_a_plan(row.id) {
            elsewhere.push(format!("{}: {why}", row.id));
            continue;
        }
        let scenario = rows::scenario(row.id);
        match judge(row, &scenario, &plan_of(&scenario, true)) {
            Ok(()) => right += 1,
            Err(why) => wrong.push(format!("{}: {why}\n{}", row.id, plan_of(&scenario, true))),
        }
        if judge(row, &scenario, &plan_of(&scenario, false)).is_ok() {
            without += 1;
        } else {
            lost.push(row.id);
        }
    }
    let judged = rows.len() - elsewhere.len();
    println!("{right} of {judged} rows right; {} rows are no matter of a plan", elsewhere.len());
    println!("{without} of {judged} right without a read map; it is needed for {}", lost.join(" "));
    elsewhere.iter().for_each(|row| println!("  {row}"));
    assert!(wrong.is_empty(), "{} rows are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// No row does anything on a machine where nothing runs.
#[test]
fn on_a_machine_whose_units_are_all_stopped_nothing_is_touched() {
    for row in rows().iter().filter(|row| rows::not_of_a_plan(row.id).is_none()) {
        let mut scenario = rows::scenario(row.id);
        for unit in scenario.facts.units.values_mut() {
            unit.active = vireo_classify::ActiveState::Inactive;
        }
        scenario.facts.processes.clear();
        scenario.check_fails = false;
        let plan = plan_of(&scenario, true);
        let touched: Vec<&Unit> = plan
            .units
            .iter()
            .filter(|unit| unit.action != Action::Start)
            .map(|unit| &unit.unit)
            .collect();
        assert!(touched.is_empty(), "{}: {touched:?}", row.id);
    }
}

/// The base comes back by the same planner: an update undone touches the units that it touched.
#[test]
fn undoing_a_row_touches_no_other_unit() {
    for row in rows().iter().filter(|row| rows::not_of_a_plan(row.id).is_none()) {
        let mut scenario = rows::scenario(row.id);
        scenario.check_fails = false;
        let there = plan_of(&scenario, true);
        for change in &mut scenario.changes {
            use vireo_model::ChangeKind::{Added, Removed};
            change.kind = match change.kind {
                Added => Removed,
                Removed => Added,
                other => other,
            };
        }
        let back = plan_of(&scenario, true);
        for unit in back.units.iter().filter(|unit| unit.action != Action::Start) {
            let touched = there.units.iter().any(|other| other.unit == unit.unit);
            assert!(touched, "{}: {} {:?}", row.id, unit.unit, unit.action);
        }
    }
}
