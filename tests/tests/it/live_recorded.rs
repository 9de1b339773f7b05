//! The facts that the planner's catalogue is judged by are those of the guest with many services: as
//! recorded, and as the guest says today.
//!
//! With `VIREO_RECORD_FACTS=1` they are recorded anew, with the map of who reads what, and then
//! compared. That takes two minutes and is to be done when the guest's packages or services change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_classify::{Facts, Owner, ReadMap, Unit, UnitFacts};
use vireo_model::ImagePath;
use vireo_testkit::{Guest, programs};
use vireo_tests::shell;
use vireo_tests::zoo::Ground;

/// Where they are kept.
const RECORDED: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/classify/tests/corpus/recorded");

/// The files that are asked about.
const PATHS: &str = include_str!("../../../crates/classify/tests/corpus/recorded/paths.txt");

/// Asks for the facts to be recorded.
const RECORD: &str = "VIREO_RECORD_FACTS";

/// Longest for one look at the guest.
const LOOK_DEADLINE: Duration = Duration::from_secs(30);

/// Where the test's own commands run in the guest: nobody's service.
const OWN: &str = "init.scope";

fn kept(name: &str) -> PathBuf {
    PathBuf::from(RECORDED).join(name)
}

/// What the guest says of itself, by the agent's own eyes.
fn look(guest: &dyn Guest) -> anyhow::Result<Value> {
    let program = fs::read(programs::find("examples/facts")?)?;
    let put = ["sh", "-c", "cat > /run/facts; chmod 755 /run/facts"];
    ensure!(guest.exec_with(&put, &program, LOOK_DEADLINE)?.success(), "cannot put the program");
    let argv: Vec<&str> = ["/run/facts"].into_iter().chain(PATHS.lines()).collect();
    let said = guest.exec_with(&argv, &[], LOOK_DEADLINE)?;
    ensure!(said.success(), "{}", said.tail());
    let mut said: Value = serde_json::from_str(&said.stdout)?;
    let mut facts: Facts = serde_json::from_value(said["facts"].take())?;
    // The machine's own devices, and what this test does, are nobody's business.
    facts.units.retain(|name, _| !matches!(name.kind(), "device" | "scope"));
    facts.processes.retain(|process| process.owner != Owner::Unit(Unit::new(OWN)));
    // The kernel is the host's.
    facts.kernel_release.clear();
    said["host"]["loaded_modules"] = Value::Null;
    said["facts"] = serde_json::to_value(facts)?;
    Ok(said)
}

/// JSON with a line for each entry of its lists and tables, so that changes of it can be read.
fn lines(value: &Value, depth: usize) -> String {
    let inner = match value {
        Value::Object(table) if depth > 0 => {
            let entries =
                table.iter().map(|(key, value)| format!("{key:?}:{}", lines(value, depth - 1)));
            Some(('{', entries.collect::<Vec<_>>(), '}'))
        }
        Value::Array(list) if depth > 0 => {
            Some(('[', list.iter().map(|value| lines(value, depth - 1)).collect(), ']'))
        }
        _ => None,
    };
    match inner {
        Some((open, entries, close)) => format!("{open}\n{}\n{close}", entries.join(",\n")),
        None => value.to_string(),
    }
}

/// What of a unit must not be another: a plan depends on it.
fn shape(unit: &UnitFacts) -> impl PartialEq + std::fmt::Debug + '_ {
    let paths = |list: &[ImagePath]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    // The manager lists them in any order.
    let names = |list: &[Unit]| list.iter().cloned().collect::<BTreeSet<_>>();
    let (triggers, triggered_by) = (names(&unit.triggers), names(&unit.triggered_by));
    (
        (unit.can_reload, unit.active.is_up(), &unit.service_type, unit.refuse_manual_stop),
        (paths(&unit.files), paths(&unit.programs), &unit.declared, &unit.arguments),
        (triggers, triggered_by, &unit.bound_to, &unit.aliases, &unit.user),
        (unit.masked, &unit.kill_mode, unit.start_limit_burst, unit.main_pid == 0),
    )
}

/// Who holds which of the files, by path.
fn holders(said: &Value, facts: &Facts) -> anyhow::Result<BTreeMap<String, BTreeSet<Owner>>> {
    let files = said["files"].as_object().context("files")?;
    let mut found = BTreeMap::new();
    for (path, file) in files {
        let id = serde_json::from_value(file["id"].clone())?;
        found.insert(path.clone(), facts.holders(id).map(|it| it.owner.clone()).collect());
    }
    Ok(found)
}

/// What is no longer so, one line for each.
fn differences(recorded: &Value, said: &Value) -> anyhow::Result<Vec<String>> {
    let facts = |value: &Value| serde_json::from_value::<Facts>(value["facts"].clone());
    let (then, now) = (facts(recorded)?, facts(said)?);
    let mut found = Vec::new();
    // What the manager runs once in a while comes and goes with what it has just done.
    let counts = |unit: &UnitFacts| {
        matches!(unit.name.kind(), "service" | "socket" | "timer" | "path")
            && unit.active.is_up()
            && unit.service_type != "oneshot"
    };
    let up = |facts: &Facts| -> BTreeSet<Unit> {
        facts.units.values().filter(|unit| counts(unit)).map(|unit| unit.name.clone()).collect()
    };
    for name in up(&then).union(&up(&now)) {
        match (then.unit(name), now.unit(name)) {
            (Some(then), Some(now)) if shape(then) == shape(now) => {}
            (Some(then), Some(now)) => {
                found.push(format!("{name}:\n  {:?}\n  {:?}", shape(then), shape(now)));
            }
            (then, _) => {
                found.push(format!("{name}: {}", if then.is_some() { "gone" } else { "new" }))
            }
        }
    }
    let (then, now) = (holders(recorded, &then)?, holders(said, &now)?);
    for path in then.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        if then.get(path) != now.get(path) {
            found.push(format!("{path} is held by {:?}, now {:?}", then.get(path), now.get(path)));
        }
        let class = |said: &Value| said["files"][path]["class"].clone();
        if class(recorded) != class(said) {
            found.push(format!("{path} is {}, now {}", class(recorded), class(said)));
        }
    }
    if recorded["host"] != said["host"] {
        found.push(format!("host: {}\n  now {}", recorded["host"], said["host"]));
    }
    Ok(found)
}

#[test]
fn live_recorded_facts_are_what_the_guest_says() -> anyhow::Result<()> {
    let ground = Ground::new(&[])?;
    let guest = ground.guest()?;
    if std::env::var_os(RECORD).is_some() {
        println!("{}", ground.record(&guest)?);
        let map = ReadMap::from_json(ground.read_map().context("a map")?)?;
        let map: Value = serde_json::from_str(&map.to_json()?)?;
        fs::write(kept("reads.json"), lines(&map, 2) + "\n")?;
        // Whose processes were exchanged for it is no matter; who has which file is.
        fs::write(kept("facts.json"), lines(&look(&guest)?, 3) + "\n")?;
    }
    let how = format!("record it: {RECORD}=1 with this test");
    let text = fs::read(kept("facts.json")).context(how.clone())?;
    let recorded: Value = serde_json::from_slice(&text)?;
    // As it boots: something may still be on its way.
    let mut left = differences(&recorded, &look(&guest)?)?;
    if !left.is_empty() {
        shell(&guest, "sleep 3")?;
        left = differences(&recorded, &look(&guest)?)?;
    }
    ensure!(left.is_empty(), "{how}:\n{}", left.join("\n"));
    drop(guest);
    ground.finish()
}
