//! The service manager by its command: which services there are, and having them reload and
//! restart.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use vireo_classify::{Owner, Policy, SHOW_PROPERTIES, Unit, UnitFacts, owner_of, parse_show};
use vireo_record::{START_PROPERTIES, Starts, parse_starts};
use vireo_sys::child::{self, Limits};

use super::Reasons;
use crate::exit::Failure;

/// What one call of `systemctl` may cost: a job has limits of its own, mostly of one and a half
/// minutes; the properties of thousands of units are some MiB.
const LIMITS: Limits =
    Limits { deadline: Duration::from_secs(300), output_len_max: 32 << 20, ends_all: false };

/// A service that can be restarted.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) unit: Unit,
    pub(super) reloads: bool,
}

/// What `systemctl` printed, or what it complained of.
pub(super) fn run(arguments: &[&str]) -> Result<Vec<u8>, String> {
    let mut command = Command::new("systemctl");
    command.args(["--no-ask-password", "--no-pager"]).args(arguments).env("LC_ALL", "C");
    let output = child::run(&mut command, None, &LIMITS)
        .map_err(|error| format!("cannot run systemctl: {error}"))?;
    if output.status.success() {
        return Ok(output.output);
    }
    let said = String::from_utf8_lossy(&output.complaint).trim().replace('\n', "; ");
    let said = if said.is_empty() {
        String::from_utf8_lossy(&output.output).trim().to_owned()
    } else {
        said
    };
    Err(if said.is_empty() { output.status.to_string() } else { said })
}

fn shown() -> Result<BTreeMap<Unit, UnitFacts>, Failure> {
    let properties = format!("--property={}", SHOW_PROPERTIES.join(","));
    let text = run(&["show", &properties, "--", "*"]).map_err(no_manager)?;
    Ok(parse_show(&text).0)
}

fn no_manager(why: String) -> Failure {
    Failure::new(format!("cannot ask the service manager: {why}"))
        .hint("vireo record needs a machine that systemd runs")
}

/// The services that run and can be restarted; the others that run are put into `skipped`.
pub(super) fn running_services(skipped: &mut Reasons) -> Result<Vec<Service>, Failure> {
    let policy = Policy::default();
    let own = owner_of(std::process::id(), &fs::read("/proc/self/cgroup").unwrap_or_default());
    let mut services = Vec::new();
    for facts in shown()?.into_values() {
        if facts.name.kind() != "service" || !facts.active.is_up() || facts.main_pid == 0 {
            continue;
        }
        let why_not = if own == Owner::Unit(facts.name.clone()) {
            Some("this very command runs in it".to_owned())
        } else if facts.refuse_manual_stop {
            Some("it refuses to be stopped by hand".to_owned())
        } else {
            policy.hold_reason(&facts.name)
        };
        match why_not {
            Some(why) => drop(skipped.insert(facts.name.to_string(), why)),
            None => services.push(Service { reloads: facts.can_reload, unit: facts.name }),
        }
    }
    Ok(services)
}

/// These units, which have to run.
pub(super) fn named(names: &[String]) -> Result<Vec<Service>, Failure> {
    let shown = shown()?;
    let find = |name: &String| {
        let name = if name.contains('.') { name.clone() } else { format!("{name}.service") };
        let named = |facts: &&UnitFacts| {
            facts.name.as_str() == name || facts.aliases.iter().any(|alias| alias.as_str() == name)
        };
        let facts = shown.values().find(named).filter(|facts| facts.active.is_up());
        let facts = facts.ok_or_else(|| {
            Failure::new(format!("{name} does not run"))
                .hint("start it first: only what runs can be reloaded and restarted")
        })?;
        Ok(Service { unit: facts.name.clone(), reloads: facts.can_reload })
    };
    names.iter().map(find).collect()
}

/// When the units started last.
pub(super) fn starts() -> Result<Starts, Failure> {
    let properties = format!("--property={}", START_PROPERTIES.join(","));
    let text = run(&["show", &properties, "--", "*"]).map_err(no_manager)?;
    Ok(parse_starts(&text))
}
