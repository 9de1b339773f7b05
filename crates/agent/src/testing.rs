//! A machine that only remembers, and the contract that every service manager is held to.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vireo_classify::{ActiveState, Facts, FileId, Owner, Unit};

use crate::error::AgentError;
use crate::services::{Job, ServiceError, Services};
use crate::system::SystemView;

/// A machine in memory: units, the processes that hold files, and a service manager that
/// remembers what it was asked. A restart makes a unit's processes let go of all files.
#[derive(Debug)]
pub struct FakeMachine(Mutex<Machine>);

#[derive(Debug)]
struct Machine {
    facts: Facts,
    calls: Vec<String>,
    broken: BTreeSet<Unit>,
    reload_reexecs: BTreeSet<Unit>,
    keeps_files: BTreeSet<Unit>,
}

impl FakeMachine {
    /// A machine of which `facts` are true; its processes may hold any files.
    #[must_use]
    pub fn new(facts: Facts) -> Self {
        Self(Mutex::new(Machine {
            facts,
            calls: Vec::new(),
            broken: BTreeSet::new(),
            reload_reexecs: BTreeSet::new(),
            keeps_files: BTreeSet::new(),
        }))
    }

    /// Every job for `unit` fails from now on; a failed restart leaves the unit failed.
    pub fn breaks(&self, unit: &str) {
        self.lock().broken.insert(Unit::new(unit));
    }

    /// A reload of `unit` executes its program anew from now on.
    pub fn reload_reexecs(&self, unit: &str) {
        self.lock().reload_reexecs.insert(Unit::new(unit));
    }

    /// `unit` holds its files through a restart from now on.
    pub fn keeps_files(&self, unit: &str) {
        self.lock().keeps_files.insert(Unit::new(unit));
    }

    /// A process of `unit` that holds `file`, from now on.
    pub fn hold(&self, pid: u32, unit: &str, file: FileId) {
        self.lock().facts.processes.push(vireo_classify::Process::of_unit(pid, unit, [file]));
    }

    /// What the service manager was asked, in order, as text: `reload nginx.service`.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    fn job(&mut self, job: Job, unit: &Unit) -> Result<(), ServiceError> {
        let what = format!("{} {unit}", job.as_str());
        if self.broken.contains(unit) {
            if let (Job::Restart, Some(facts)) = (job, self.facts.units.get_mut(unit)) {
                facts.active = ActiveState::Failed;
            }
            return Err(ServiceError::new(what, "it failed; its log says more"));
        }
        let Some(facts) = self.facts.units.get_mut(unit) else {
            return Err(ServiceError::new(what, "no such unit"));
        };
        match job {
            Job::Start => {
                facts.active = ActiveState::Active;
                return Ok(());
            }
            Job::Stop => {
                facts.active = ActiveState::Inactive;
                let of_unit = Owner::Unit(unit.clone());
                self.facts.processes.retain(|process| process.owner != of_unit);
                return Ok(());
            }
            Job::Reload | Job::Restart => {}
        }
        if !facts.active.is_up() {
            return Ok(());
        }
        let restart = job == Job::Restart || !facts.can_reload;
        if restart {
            facts.main_pid += 1;
        }
        let anew = restart || self.reload_reexecs.contains(unit);
        if anew && !self.keeps_files.contains(unit) {
            let of_unit = Owner::Unit(unit.clone());
            self.facts.processes.retain(|process| process.owner != of_unit);
        }
        Ok(())
    }
}

impl SystemView for FakeMachine {
    fn facts(&self, files: &BTreeSet<FileId>) -> Result<Facts, AgentError> {
        let mut facts = self.lock().facts.clone();
        for process in &mut facts.processes {
            process.holds.retain(|file| files.contains(file));
        }
        facts.processes.retain(|process| !process.holds.is_empty());
        Ok(facts)
    }
}

impl Services for FakeMachine {
    fn daemon_reload(&self) -> Result<(), ServiceError> {
        self.lock().calls.push("daemon-reload".to_owned());
        Ok(())
    }

    fn daemon_reexec(&self) -> Result<(), ServiceError> {
        let mut machine = self.lock();
        machine.calls.push("daemon-reexec".to_owned());
        machine.facts.processes.retain(|process| process.owner != Owner::Manager);
        Ok(())
    }

    fn run(&self, job: Job, units: &[Unit]) -> Vec<Result<(), ServiceError>> {
        let mut machine = self.lock();
        let names: Vec<&str> = units.iter().map(Unit::as_str).collect();
        machine.calls.push(format!("{} {}", job.as_str(), names.join(" ")));
        units.iter().map(|unit| machine.job(job, unit)).collect()
    }

    fn restart_later(&self, unit: &Unit) -> Result<(), ServiceError> {
        self.lock().calls.push(format!("restart-later {unit}"));
        Ok(())
    }

    fn run_tool(&self, command: &[String]) -> Result<(), ServiceError> {
        self.lock().calls.push(command.join(" "));
        Ok(())
    }
}

/// Units that [`check_services`] may act upon.
#[derive(Clone, Debug)]
pub struct Specimens {
    /// A service that runs and can reload.
    pub reloadable: Unit,
    /// A service that runs and cannot reload.
    pub restartable: Unit,
    /// A service that does not run.
    pub stopped: Unit,
}

/// Holds a service manager to the contract of [`Services`], by what `system` shows of the units.
/// The units are reloaded and restarted.
///
/// # Panics
///
/// If the contract is broken; the message says where.
pub fn check_services(services: &dyn Services, system: &dyn SystemView, units: &Specimens) {
    let Specimens { reloadable, restartable, stopped } = units;
    let unknown = Unit::new("vireo-contract-no-such-unit.service");
    let state = |unit: &Unit| {
        let facts = system.facts(&BTreeSet::new()).expect("the system can be looked at");
        facts.unit(unit).map(|unit| (unit.active.is_up(), unit.main_pid))
    };
    let [before_reload, before_restart] = [reloadable, restartable].map(state);
    assert!(before_reload.is_some_and(|(up, _)| up), "{reloadable} runs");
    assert!(before_restart.is_some_and(|(up, _)| up), "{restartable} runs");
    assert!(!state(stopped).is_some_and(|(up, _)| up), "{stopped} does not run");

    assert_eq!(services.daemon_reload(), Ok(()), "daemon-reload succeeds");
    assert_eq!(services.run(Job::Reload, std::slice::from_ref(reloadable)), [Ok(())]);
    assert_eq!(state(reloadable), before_reload, "a reload keeps the main process");

    let outcomes =
        services.run(Job::Restart, &[unknown.clone(), restartable.clone(), stopped.clone()]);
    assert_eq!(outcomes.len(), 3, "one outcome per unit, in order");
    assert!(outcomes[0].is_err(), "an unknown unit fails: {outcomes:?}");
    assert_eq!(outcomes[1], Ok(()), "a failure does not stop the rest");
    assert_eq!(outcomes[2], Ok(()), "a unit that does not run counts as done");
    let after = state(restartable);
    assert!(after.is_some_and(|(up, _)| up), "{restartable} runs when the call returns");
    assert_ne!(after, before_restart, "a restart gives another main process");
    assert!(!state(stopped).is_some_and(|(up, _)| up), "{stopped} is not started");

    assert_eq!(services.daemon_reexec(), Ok(()), "daemon-reexec succeeds");
    assert_eq!(
        services.run(Job::Restart, std::slice::from_ref(restartable)),
        [Ok(())],
        "and jobs work after it"
    );
    assert_eq!(services.run(Job::Restart, &[]), [], "no units, no outcomes");
    assert_eq!(services.run_tool(&["true".to_owned()]), Ok(()), "a tool runs");
}

#[cfg(test)]
mod tests {
    use vireo_classify::UnitFacts;

    use super::*;

    #[test]
    fn the_fake_keeps_the_contract() {
        let facts = Facts::new()
            .with_unit(UnitFacts { can_reload: true, ..UnitFacts::running("a.service") })
            .with_unit(UnitFacts::running("b.service"))
            .with_unit(UnitFacts {
                active: ActiveState::Inactive,
                ..UnitFacts::running("c.service")
            });
        let machine = FakeMachine::new(facts);
        let units = Specimens {
            reloadable: Unit::new("a.service"),
            restartable: Unit::new("b.service"),
            stopped: Unit::new("c.service"),
        };
        check_services(&machine, &machine, &units);
    }
}
