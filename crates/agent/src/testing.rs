//! A machine that only remembers, and the contract that every service manager is held to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vireo_classify::{
    ActiveState, Facts, FileId, Host, ManagerAction, Owner, Packages, Policy, Probe, Unit,
};

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
    crashing: BTreeSet<Unit>,
    once: BTreeSet<Unit>,
    deaf: BTreeSet<Unit>,
    dragged: BTreeMap<Unit, Unit>,
    sockets: BTreeMap<Unit, BTreeSet<String>>,
    answers: BTreeMap<String, String>,
    watched: BTreeSet<String>,
    read: BTreeSet<String>,
    timers: BTreeMap<String, Vec<String>>,
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
            crashing: BTreeSet::new(),
            once: BTreeSet::new(),
            deaf: BTreeSet::new(),
            dragged: BTreeMap::new(),
            sockets: BTreeMap::new(),
            answers: BTreeMap::new(),
            watched: BTreeSet::new(),
            read: BTreeSet::new(),
            timers: BTreeMap::new(),
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

    /// Every job for `unit` succeeds from now on, and its process ends soon after.
    pub fn crashes(&self, unit: &str) {
        self.lock().crashing.insert(Unit::new(unit));
    }

    /// The next job for `unit` succeeds, and its process ends soon after.
    pub fn crashes_once(&self, unit: &str) {
        self.crashes(unit);
        self.lock().once.insert(Unit::new(unit));
    }

    /// `unit` works again.
    pub fn mends(&self, unit: &str) {
        let (unit, mut machine) = (Unit::new(unit), self.lock());
        machine.broken.remove(&unit);
        machine.crashing.remove(&unit);
        machine.deaf.remove(&unit);
        machine.dragged.remove(&unit);
    }

    /// A reload of `unit` reads no file from now on; a restart does.
    pub fn ignores_reloads(&self, unit: &str) {
        self.lock().deaf.insert(Unit::new(unit));
    }

    /// A restart of `unit` takes `other` down from now on, which then does not come back by itself.
    pub fn drags(&self, unit: &str, other: &str) {
        self.lock().dragged.insert(Unit::new(unit), Unit::new(other));
    }

    /// `unit` listens on these sockets alone from now on.
    pub fn listens(&self, unit: &str, sockets: &[&str]) {
        let sockets = sockets.iter().map(|name| (*name).to_owned()).collect();
        self.lock().sockets.insert(Unit::new(unit), sockets);
    }

    /// The probe with this command line prints `answer` from now on; others print nothing.
    pub fn answers(&self, command: &str, answer: &str) {
        self.lock().answers.insert(command.to_owned(), answer.to_owned());
    }

    /// The commands of the timers that are set, by name.
    #[must_use]
    pub fn timers(&self) -> BTreeMap<String, Vec<String>> {
        self.lock().timers.clone()
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
                let crashes = self.crashing.contains(unit);
                facts.active = if crashes { ActiveState::Failed } else { ActiveState::Active };
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
        if self.crashing.contains(unit) {
            facts.active = ActiveState::Failed;
            facts.sub = "failed".to_owned();
            if self.once.remove(unit) {
                self.crashing.remove(unit);
            }
            let of_unit = Owner::Unit(unit.clone());
            self.facts.processes.retain(|process| process.owner != of_unit);
            return Ok(());
        }
        let restart = job == Job::Restart || !facts.can_reload;
        if restart || !self.deaf.contains(unit) {
            self.read.extend(self.watched.iter().cloned());
        }
        if restart {
            facts.main_pid += 1;
            let dragged = self.dragged.get(unit).and_then(|it| self.facts.units.get_mut(it));
            if let Some(other) = dragged {
                other.active = ActiveState::Inactive;
            }
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

    fn host(&self, policy: &Policy) -> Host {
        Host { present: Some(policy.paths_wanted().into_iter().collect()), ..Host::default() }
    }

    fn packages(&self) -> Packages {
        Packages::new()
    }

    fn sockets(&self, units: &BTreeSet<Unit>) -> BTreeMap<Unit, BTreeSet<String>> {
        let machine = self.lock();
        let of_units = machine.sockets.iter().filter(|(unit, _)| units.contains(*unit));
        of_units.map(|(unit, sockets)| (unit.clone(), sockets.clone())).collect()
    }

    fn watch_reads(&self, paths: &[String]) -> BTreeSet<String> {
        let mut machine = self.lock();
        machine.watched = paths.iter().cloned().collect();
        machine.read.clear();
        machine.watched.clone()
    }

    fn reads_seen(&self, watched: &BTreeSet<String>) -> BTreeSet<String> {
        self.lock().read.intersection(watched).cloned().collect()
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

    fn reset_failed(&self, units: &[Unit]) -> Result<(), ServiceError> {
        let mut machine = self.lock();
        let names: Vec<&str> = units.iter().map(Unit::as_str).collect();
        machine.calls.push(format!("reset-failed {}", names.join(" ")));
        for unit in units {
            match machine.facts.units.get_mut(unit) {
                Some(facts) if facts.active == ActiveState::Failed => {
                    facts.active = ActiveState::Inactive;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn tell_user_manager(&self, manager: &Unit, action: ManagerAction) -> Result<(), ServiceError> {
        self.lock().calls.push(format!("{action:?} in {manager}").to_lowercase());
        Ok(())
    }

    fn probe(&self, probe: &Probe) -> Result<String, ServiceError> {
        let answers = &self.lock().answers;
        Ok(answers.get(&probe.command.join(" ")).cloned().unwrap_or_default())
    }

    fn set_timer(
        &self,
        name: &str,
        delay: Duration,
        command: &[String],
    ) -> Result<(), ServiceError> {
        let mut machine = self.lock();
        machine.calls.push(format!("timer after {} s", delay.as_secs()));
        machine.timers.insert(name.to_owned(), command.to_vec());
        Ok(())
    }

    fn clear_timer(&self, name: &str) -> Result<(), ServiceError> {
        self.lock().timers.remove(name);
        Ok(())
    }
}

/// When the contract's timer would call: long after it was taken back.
const CONTRACT_DELAY: Duration = Duration::from_secs(3600);

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
    check_starts_and_stops(services, &state, units);
    check_timers(services);
    let both = [unknown, restartable.clone()];
    assert_eq!(services.reset_failed(&both), Ok(()), "a unit that is gone is no error");
    assert!(state(restartable).is_some_and(|(up, _)| up), "{restartable} runs as before");
    assert_eq!(services.run_tool(&["true".to_owned()]), Ok(()), "a tool runs");
}

/// Starting and stopping by name, and that what does not run counts as stopped and as reloaded.
fn check_starts_and_stops(
    services: &dyn Services,
    state: &dyn Fn(&Unit) -> Option<(bool, u32)>,
    units: &Specimens,
) {
    let Specimens { restartable, stopped, .. } = units;
    let runs = |unit: &Unit| state(unit).is_some_and(|(up, _)| up);
    let one = std::slice::from_ref(stopped);
    assert_eq!(services.run(Job::Reload, one), [Ok(())], "what does not run has nothing to reload");
    assert!(!runs(stopped), "{stopped} is not started by a reload");
    assert_eq!(services.run(Job::Start, one), [Ok(())]);
    assert!(runs(stopped), "{stopped} runs when the call returns");
    let before = state(restartable);
    let both = [stopped.clone(), restartable.clone()];
    assert_eq!(services.run(Job::Start, &both), [Ok(()), Ok(())], "what runs is started already");
    assert_eq!(state(restartable), before, "a start leaves alone what runs");
    for word in ["stops", "is stopped already"] {
        assert_eq!(services.run(Job::Stop, one), [Ok(())], "{stopped} {word}");
        assert!(!runs(stopped), "{stopped} does not run when the call returns");
    }
}

/// A timer is set, taken back, and may be gone.
fn check_timers(services: &dyn Services) {
    let (name, command) = ("vireo-contract-timer", ["true".to_owned()]);
    for round in ["once", "again"] {
        assert_eq!(services.set_timer(name, CONTRACT_DELAY, &command), Ok(()), "set {round}");
        assert_eq!(services.clear_timer(name), Ok(()), "taken back {round}");
    }
    assert_eq!(services.clear_timer(name), Ok(()), "there is nothing to take back");
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
