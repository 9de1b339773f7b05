//! What is seen of units after they were acted upon: what proves that an update is in effect, and
//! what shows that a unit is not well.

use std::collections::{BTreeMap, BTreeSet};

use vireo_classify::{
    Action, ActiveState, Facts, FileId, Owner, Plan, Probe, ProbeFailure, Proof, Unit, UnitFacts,
    UnitPlan,
};

use super::is_for_configuration;
use crate::services::{Job, Services};
use crate::system::SystemView;

/// What an automatic restart that waits is called (`systemctl show -p SubState`).
const AUTO_RESTART: &str = "auto-restart";

/// Kinds of unit that do not end by themselves.
const LASTING: [&str; 4] = ["socket", "timer", "path", "mount"];

/// What an activation is judged by.
pub(super) struct Scene<'a> {
    pub(super) plan: &'a Plan,
    pub(super) replaced: &'a BTreeSet<FileId>,
    pub(super) before: &'a Facts,
    /// What the units listened on before they were acted upon.
    pub(super) listened: BTreeMap<Unit, BTreeSet<String>>,
    pub(super) system: &'a dyn SystemView,
    pub(super) services: &'a dyn Services,
}

/// What a unit lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shortfall {
    /// It works, but nothing shows that the update is in effect.
    Unproven(String),
    /// It is not well yet: it may need more time to start.
    Late(String),
    /// It is not well.
    Ill(String),
}

impl Scene<'_> {
    pub(super) fn unit(&self, unit: &Unit) -> Option<&UnitPlan> {
        self.plan.units.iter().find(|entry| entry.unit == *unit)
    }

    /// What each unit that was acted upon lacks.
    pub(super) fn shortfalls(
        &self,
        facts: &Facts,
        acted: &[(Unit, Job)],
        watched: &BTreeSet<String>,
    ) -> BTreeMap<Unit, Shortfall> {
        let with_sockets: BTreeSet<Unit> = acted
            .iter()
            .map(|(unit, _)| unit)
            .filter(|unit| self.listened.contains_key(*unit))
            .cloned()
            .collect();
        let listening = self.system.sockets(&with_sockets);
        let read = self.system.reads_seen(watched);
        let unread: BTreeSet<&String> = watched.difference(&read).collect();
        let mut found = BTreeMap::new();
        for (unit, job) in acted.iter().filter(|(_, job)| *job != Job::Stop) {
            let shortfall = self
                .not_active(facts, unit, *job)
                .or_else(|| self.sockets_lost(unit, &listening))
                .or_else(|| holds(facts, unit))
                .or_else(|| self.not_read(facts, unit, &unread))
                .or_else(|| self.probes_fail(unit));
            if let Some(shortfall) = shortfall {
                found.insert(unit.clone(), shortfall);
            }
        }
        found.extend(self.dragged_down(facts, acted));
        found
    }

    /// Units that ran, that nobody acted upon, and that are down since one was restarted that they
    /// go along with. What a restart takes down it starts again, but not where a condition does not
    /// hold any more, or where the other ended by itself meanwhile. None of them has failed.
    fn dragged_down<'a>(
        &'a self,
        facts: &'a Facts,
        acted: &'a [(Unit, Job)],
    ) -> impl Iterator<Item = (Unit, Shortfall)> + 'a {
        let restarted = acted.iter().filter(|(_, job)| *job == Job::Restart);
        let movers: BTreeSet<&Unit> = restarted.map(|(unit, _)| unit).collect();
        let ran = self.before.units.values().filter(|unit| unit.active == ActiveState::Active);
        // The manager forgets a unit that is down and that nothing else names.
        let is_down = |unit: &Unit| facts.unit(unit).is_none_or(|now| !now.active.is_up());
        let down = ran.map(|unit| &unit.name).filter(move |unit| is_down(unit));
        down.filter_map(move |unit| {
            let acted_upon = acted.iter().any(|(other, _)| other == unit);
            if acted_upon || self.plan.action_of(unit) == Some(Action::Stop) {
                return None;
            }
            let with = self.before.goes_along(unit, &movers)?;
            let why = format!("it went down along with {with} and was not started again");
            Some((unit.clone(), Shortfall::Ill(why)))
        })
    }

    fn not_active(&self, facts: &Facts, unit: &Unit, job: Job) -> Option<Shortfall> {
        let before = self.before.unit(unit);
        // A unit that did not run was not to be started.
        if job != Job::Start && !before.is_some_and(|before| before.active.is_up()) {
            return None;
        }
        let Some(now) = facts.unit(unit) else {
            return Some(Shortfall::Ill("it is gone; its log says more".to_owned()));
        };
        let active = matches!(now.active, ActiveState::Active | ActiveState::Reloading);
        // What runs once and is done was not active before either.
        let was_active = before.is_some_and(|before| before.active == ActiveState::Active);
        (!active && (was_active || job == Job::Start)).then(|| Shortfall::Ill(state_of(now)))
    }

    /// Sockets that are gone. Where the configuration changed, others in their place are what it
    /// asks for.
    fn sockets_lost(
        &self,
        unit: &Unit,
        listening: &BTreeMap<Unit, BTreeSet<String>>,
    ) -> Option<Shortfall> {
        let entry = self.unit(unit).filter(|entry| entry.proof.contains(&Proof::Sockets))?;
        let (before, none) = (self.listened.get(unit)?, BTreeSet::new());
        let now = listening.get(unit).unwrap_or(&none);
        let lost: Vec<&str> = before.difference(now).map(String::as_str).collect();
        let moved = is_for_configuration(entry) && !now.is_empty();
        (!lost.is_empty() && !moved)
            .then(|| Shortfall::Late(format!("it does not listen on {} any more", lost.join(", "))))
    }

    /// Files that it must have read, where a read of its would show.
    fn not_read(
        &self,
        facts: &Facts,
        unit: &Unit,
        unread: &BTreeSet<&String>,
    ) -> Option<Shortfall> {
        let entry = self.unit(unit)?;
        let pid = facts.unit(unit).map_or(0, |facts| facts.main_pid);
        let missing = entry.reads.iter().filter(|path| unread.contains(path));
        let missing = missing.filter(|path| self.system.shows_reads(pid, path));
        let missing: Vec<&str> = missing.map(String::as_str).collect();
        (!missing.is_empty())
            .then(|| Shortfall::Unproven(format!("it has not read {}", missing.join(", "))))
    }

    fn probes_fail(&self, unit: &Unit) -> Option<Shortfall> {
        let probes = self.unit(unit).into_iter().flat_map(|entry| &entry.probes);
        let mut failures: Vec<(ProbeFailure, String)> = probes
            .filter_map(|probe| Some((probe.on_failure, self.complaint_of(probe)?)))
            .collect();
        failures.sort();
        let (meaning, why) = failures.into_iter().next()?;
        Some(match meaning {
            ProbeFailure::Fail => Shortfall::Late(why),
            ProbeFailure::Escalate => Shortfall::Unproven(why),
        })
    }

    fn complaint_of(&self, probe: &Probe) -> Option<String> {
        match (self.services.probe(probe), &probe.expect) {
            (Err(error), _) => Some(error.to_string()),
            (Ok(answer), Some(expected)) if answer != *expected => {
                let command = probe.command.join(" ");
                Some(format!("{command} prints {answer:?} and not {expected:?}"))
            }
            (Ok(_), _) => None,
        }
    }

    /// Who was well before and is not now, by the manager's own word.
    pub(super) fn ill(&self, facts: &Facts, acted: &[(Unit, Job)]) -> Vec<(Unit, String)> {
        let mut ill: Vec<(Unit, String)> = Vec::new();
        for before in self.before.units.values().filter(|unit| unit.active == ActiveState::Active) {
            let Some(now) = facts.unit(&before.name) else { continue };
            if self.plan.action_of(&before.name) == Some(Action::Stop) {
                continue;
            }
            let job = acted.iter().find(|(unit, _)| *unit == before.name).map(|(_, job)| *job);
            let why = if now.active == ActiveState::Failed {
                Some(state_of(now))
            } else if job.is_some_and(|job| job != Job::Stop) {
                restarts_again(before, now, job)
            } else {
                let ended = !now.active.is_up() && LASTING.contains(&before.name.kind());
                ended.then(|| state_of(now))
            };
            ill.extend(why.map(|why| (before.name.clone(), why)));
        }
        ill
    }
}

/// Whether the manager has to start the unit again and again.
fn restarts_again(before: &UnitFacts, now: &UnitFacts, job: Option<Job>) -> Option<String> {
    // A restart by hand sets the count to nothing in newer managers and leaves it in older ones.
    let grown = match job {
        Some(Job::Restart) => now.restarts > 0 && now.restarts != before.restarts,
        _ => now.restarts > before.restarts,
    };
    let waits = now.sub == AUTO_RESTART;
    (grown || waits).then(|| "it ends by itself and is started again; its log says more".to_owned())
}

/// Whether a process of the unit is among those that hold replaced files.
fn holds(facts: &Facts, unit: &Unit) -> Option<Shortfall> {
    let held = facts
        .processes
        .iter()
        .any(|process| matches!(&process.owner, Owner::Unit(owner) if owner == unit));
    held.then(|| Shortfall::Unproven("it still holds replaced files".to_owned()))
}

pub(super) fn manager_holds(facts: &Facts) -> bool {
    facts.processes.iter().any(|process| process.owner == Owner::Manager)
}

fn state_of(unit: &UnitFacts) -> String {
    format!("it is not active but {}; its log says more", unit.sub)
}

/// Units that ran and have failed since, or went down along with others.
pub(super) fn failed_since(
    before: &Facts,
    after: &Facts,
    shortfalls: &BTreeMap<Unit, Shortfall>,
) -> Vec<Unit> {
    let failed =
        |unit: &Unit| after.unit(unit).is_some_and(|unit| unit.active == ActiveState::Failed);
    let dragged = |unit: &Unit| {
        matches!(shortfalls.get(unit), Some(Shortfall::Ill(_)))
            && after.unit(unit).is_none_or(|unit| !unit.active.is_up())
    };
    let ran = before.units.values().filter(|unit| unit.active.is_up());
    ran.map(|unit| unit.name.clone()).filter(|unit| failed(unit) || dragged(unit)).collect()
}
