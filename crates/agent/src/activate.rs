//! Executes a plan and proves it.
//!
//! Steps are done in the plan's order ([`Plan::steps`]). Then the system is looked at until what
//! was done is proven or patience ends: no process holds a replaced file, configuration was read,
//! the unit is active, listens as before, and answers. A unit that was only reloaded and is
//! without proof is restarted, once, if the plan allows it. At last everything is watched for a
//! while, because a service may end some seconds after a job that succeeded. Nothing here is
//! remembered, all of it is seen.
//!
//! Not here: what becomes of an update after which something is ill.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use vireo_classify::{
    Action, ActiveState, Evidence, Facts, FileId, ManagerAction, Plan, Proof, Rule, Step, Unit,
    UnitPlan,
};

use crate::error::AgentError;
use crate::receipt::{ActionReport, ActionResult, Pending};
use crate::services::{Job, ServiceError, Services};
use crate::system::SystemView;
use evidence::{Scene, Shortfall};

mod evidence;
mod pending;

pub(crate) use pending::still_pending;

/// The unit that the agent itself runs in: restarted last of all, by the caller.
pub const OWN_UNIT: &str = Plan::AGENT_UNIT;

/// How patient proving is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long units have to let go of replaced files and to be active again, and how long they
    /// are watched.
    pub settle_max: Duration,
    /// How often they are looked at.
    pub poll_interval: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { settle_max: Duration::from_secs(5), poll_interval: Duration::from_millis(100) }
    }
}

/// How much longer a unit may take to listen and to answer than to be active: large services open
/// their sockets late.
const LATE_FACTOR: u32 = 12;

/// How often units are looked at while nothing but their health is of interest.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// What activation did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activation {
    /// What was done, in order.
    pub actions: Vec<ActionReport>,
    /// What still waits.
    pub pending: Vec<Pending>,
    /// Units that ran before and have failed since, or are down because others were restarted.
    pub failed_units: Vec<Unit>,
    /// Units that were well before and are not now, with what is wrong.
    pub ill: Vec<(Unit, String)>,
    /// The agent's own unit needs a restart: queue it when everything else is over.
    pub restart_self: bool,
}

/// Ends the units that the update removes; to be called before their files go, while their own
/// commands for it are there.
#[must_use]
pub fn stop_removed(plan: &Plan, services: &dyn Services) -> Vec<ActionReport> {
    let before_commit = plan.steps().into_iter().take_while(|step| *step != Step::Commit);
    let mut reports = Reports::default();
    for step in before_commit {
        if let Step::Stop(units) = step {
            reports.jobs(services, Job::Stop, &units);
        }
    }
    reports.0
}

/// Starts units that ran before an update that is undone.
pub(crate) fn start_again(units: &[Unit], services: &dyn Services) -> Vec<ActionReport> {
    let mut reports = Reports::default();
    reports.jobs(services, Job::Start, units);
    reports.0
}

/// Executes what of `plan` follows the commit; the update replaced the files `replaced`. `before`
/// are the facts that the plan was made from.
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
    let listened = system.sockets(&units_with(plan, Proof::Sockets));
    let scene = Scene { plan, replaced, before, listened, system, services };
    let mut run = Run {
        scene,
        patience,
        reports: Reports::default(),
        acted: Vec::new(),
        watched: BTreeSet::new(),
    };
    run.steps();
    let first = run.settle()?;
    let short = run.escalate(&first);
    let last = if short { run.settle()? } else { first };
    let last = run.watch(last)?;
    run.mark_unproven(&last.facts, &last.shortfalls);
    let restart_self =
        matches!(plan.action_of(&Unit::new(OWN_UNIT)), Some(Action::Restart | Action::Reload));
    let mut ill = run.ill(&last);
    ill.dedup_by(|a, b| a.0 == b.0);
    let mut actions = run.reports.0;
    if restart_self {
        actions.push(report(OWN_UNIT, "restart", ActionResult::Later, 0.0));
    }
    Ok(Activation {
        pending: pending::pending(plan, &last.facts, &actions),
        failed_units: evidence::failed_since(before, &last.facts, &last.shortfalls),
        ill,
        actions,
        restart_self,
    })
}

/// The units whose action counts only with `proof`.
fn units_with(plan: &Plan, proof: Proof) -> BTreeSet<Unit> {
    let units = plan.units.iter().filter(|unit| unit.proof.contains(&proof));
    units.map(|unit| unit.unit.clone()).collect()
}

struct Run<'a> {
    scene: Scene<'a>,
    patience: Patience,
    reports: Reports,
    /// Units whose last job ended well, with the greatest that was done to them.
    acted: Vec<(Unit, Job)>,
    /// The files whose reading shows.
    watched: BTreeSet<String>,
}

/// What a look at the system showed.
struct Look {
    facts: Facts,
    shortfalls: BTreeMap<Unit, Shortfall>,
}

impl Run<'_> {
    fn steps(&mut self) {
        let scene = &self.scene;
        let (services, has_manager) = (scene.services, scene.before.manager);
        let steps = scene.plan.steps();
        for step in steps.into_iter().skip_while(|step| *step != Step::Commit).skip(1) {
            match step {
                Step::Tool(tool) if has_manager => {
                    let start = Instant::now();
                    let outcome = services.run_tool(&tool.command);
                    self.reports.note("system", &tool.command.join(" "), start, outcome);
                }
                Step::ManagerReload if has_manager => {
                    let start = Instant::now();
                    let outcome = services.daemon_reload();
                    self.reports.note("system", "daemon-reload", start, outcome);
                }
                Step::ManagerReexec if has_manager => {
                    let start = Instant::now();
                    let outcome = services.daemon_reexec();
                    self.reports.note("system", "daemon-reexec", start, outcome);
                }
                Step::UserManager(manager) if has_manager => {
                    let start = Instant::now();
                    let outcome = services.tell_user_manager(&manager.unit, manager.action);
                    let verb = if manager.action == ManagerAction::Reexec {
                        "daemon-reexec"
                    } else {
                        "daemon-reload"
                    };
                    self.reports.note(manager.unit.as_str(), verb, start, outcome);
                }
                // Nobody is waiting for it, and a unit that is gone has nothing to reset.
                Step::ResetFailed(units) => drop(services.reset_failed(&units)),
                Step::Reload(units) => self.jobs(Job::Reload, &units),
                Step::Restart(units) => self.restart(&units),
                Step::Start(units) => self.jobs(Job::Start, &units),
                _ => {}
            }
        }
    }

    fn jobs(&mut self, job: Job, units: &[Unit]) {
        if job != Job::Start && self.watched.is_empty() {
            // Not earlier: tools and the manager read files, too.
            let reads: BTreeSet<&String> =
                self.scene.plan.units.iter().flat_map(|unit| &unit.reads).collect();
            let reads: Vec<String> = reads.into_iter().cloned().collect();
            if !reads.is_empty() {
                self.watched = self.scene.system.watch_reads(&reads);
            }
        }
        if job == Job::Restart {
            self.make_room_in_start_limits(units);
        }
        for unit in self.reports.jobs(self.scene.services, job, units) {
            self.acted.retain(|(other, _)| *other != unit);
            self.acted.push((unit, job));
        }
    }

    /// Has the manager count the starts of `units` anew: a unit that was started often of late
    /// would end and be refused its start (systemd.unit(5), StartLimitBurst=). The limit is there
    /// for units that fail again and again, and still counts for those after this one start.
    fn make_room_in_start_limits(&self, units: &[Unit]) {
        let limited = |unit: &&Unit| {
            let facts = self.scene.before.unit(unit);
            facts.is_some_and(|it| it.active == ActiveState::Active && it.start_limit_burst > 0)
        };
        let limited: Vec<Unit> = units.iter().filter(limited).cloned().collect();
        if !limited.is_empty() {
            // The manager says on the restart whether it would have been needed.
            let _ = self.scene.services.reset_failed(&limited);
        }
    }

    /// Restarts units. A socket cannot listen anew while its service runs, and two restarts do not
    /// reach the manager at once: the service may be back before the socket is gone. So both end,
    /// then both begin, each in the manager's own order, with what went down along with them.
    fn restart(&mut self, units: &[Unit]) {
        let (services, before) = (self.scene.services, self.scene.before);
        let pairs = units.iter().filter(|unit| unit.kind() == "socket").flat_map(|socket| {
            let triggers = before.unit(socket).into_iter().flat_map(|unit| &unit.triggers);
            triggers.filter(|service| units.contains(service)).map(move |it| (socket, it))
        });
        let bound: BTreeSet<&Unit> = pairs.flat_map(|(socket, it)| [socket, it]).collect();
        let (mut bound, rest): (Vec<Unit>, Vec<Unit>) =
            units.iter().cloned().partition(|unit| bound.contains(unit));
        // A job begins when it is asked for: the socket's comes first both times.
        bound.sort_by_key(|unit| unit.kind() != "socket");
        if !rest.is_empty() {
            self.jobs(Job::Restart, &rest);
        }
        if bound.is_empty() {
            return;
        }
        self.make_room_in_start_limits(&bound);
        let (start, up) = (Instant::now(), self.units_up());
        let ended = services.run(Job::Stop, &bound);
        let after = self.units_up();
        let along = up.difference(&after).filter(|unit| !bound.contains(unit));
        let again: Vec<Unit> = bound.iter().chain(along).cloned().collect();
        let begun = services.run(Job::Start, &again);
        for ((unit, ended), begun) in bound.iter().zip(ended).zip(begun) {
            if begun.is_ok() {
                self.acted.push((unit.clone(), Job::Restart));
            }
            self.reports.note(unit.as_str(), Job::Restart.as_str(), start, ended.and(begun));
        }
    }

    /// The units that run now; none if nobody can say.
    fn units_up(&self) -> BTreeSet<Unit> {
        let facts = self.scene.system.facts(&BTreeSet::new()).unwrap_or_default();
        let up = facts.units.into_values().filter(|unit| unit.active.is_up());
        up.map(|unit| unit.name).collect()
    }

    /// Restarts units whose reload is not proven, where the plan allows it; whether there were any.
    fn escalate(&mut self, look: &Look) -> bool {
        let mut units: Vec<Unit> = Vec::new();
        for (unit, job) in &self.acted {
            let Some(Shortfall::Unproven(why)) = look.shortfalls.get(unit) else { continue };
            let entry = self.scene.unit(unit);
            let allowed = entry.is_some_and(|entry| entry.ceiling == Some(Action::Restart));
            if *job == Job::Reload && allowed {
                self.reports.escalated(unit, why);
                units.push(unit.clone());
            }
        }
        if units.is_empty() {
            return false;
        }
        self.jobs(Job::Restart, &units);
        true
    }

    /// Looks until everything that was done is proven, or patience ends.
    fn settle(&self) -> Result<Look, AgentError> {
        let start = Instant::now();
        loop {
            let facts = self.scene.system.facts(self.scene.replaced)?;
            let shortfalls = self.scene.shortfalls(&facts, &self.acted, &self.watched);
            let manager_stale = self.scene.plan.system.manager == ManagerAction::Reexec
                && evidence::manager_holds(&facts);
            let settled = !manager_stale && shortfalls.is_empty();
            let late = shortfalls.values().any(|it| matches!(it, Shortfall::Late(_)));
            let most = self.patience.settle_max * if late { LATE_FACTOR } else { 1 };
            if settled || start.elapsed() >= most {
                return Ok(Look { facts, shortfalls });
            }
            thread::sleep(self.patience.poll_interval);
        }
    }

    /// Looks on for as long as units may take to show that they are not well: some end a while
    /// after their job succeeded.
    fn watch(&self, look: Look) -> Result<Look, AgentError> {
        if self.acted.is_empty() {
            return Ok(look);
        }
        let start = Instant::now();
        let interval = WATCH_INTERVAL.max(self.patience.poll_interval);
        while start.elapsed() < self.patience.settle_max && self.ill(&look).is_empty() {
            let left = self.patience.settle_max.saturating_sub(start.elapsed());
            thread::sleep(interval.min(left));
            // Without the processes: whoever let a file go does not take it up again.
            let facts = self.scene.system.facts(&BTreeSet::new())?;
            let ill = self.scene.ill(&facts, &self.acted);
            if !ill.is_empty() {
                break;
            }
        }
        let facts = self.scene.system.facts(self.scene.replaced)?;
        let shortfalls = self.scene.shortfalls(&facts, &self.acted, &self.watched);
        Ok(Look { facts, shortfalls })
    }

    /// Who was well before and is not now.
    fn ill(&self, look: &Look) -> Vec<(Unit, String)> {
        let mut ill = self.scene.ill(&look.facts, &self.acted);
        ill.extend(look.shortfalls.iter().filter_map(|(unit, shortfall)| match shortfall {
            Shortfall::Ill(why) | Shortfall::Late(why) => Some((unit.clone(), why.clone())),
            Shortfall::Unproven(_) => None,
        }));
        ill.extend(self.reports.failed_jobs().filter_map(|report| {
            let unit = Unit::new(report.subject.clone());
            let was_up = self.scene.before.unit(&unit).is_some_and(|unit| unit.active.is_up());
            // A restart that another job took the place of did no harm.
            let is_well = report.action == Job::Restart.as_str()
                && look.facts.unit(&unit).is_some_and(|unit| unit.active == ActiveState::Active);
            let why = report.detail.clone().unwrap_or_else(|| "its job failed".to_owned());
            (was_up && !is_well).then_some((unit, why))
        }));
        ill.sort();
        ill
    }

    fn mark_unproven(&mut self, after: &Facts, shortfalls: &BTreeMap<Unit, Shortfall>) {
        for report in self.reports.0.iter_mut().filter(|it| it.result == ActionResult::Done) {
            if report.action == "daemon-reexec" && report.subject == "system" {
                if evidence::manager_holds(after) {
                    report.result = ActionResult::Unproven;
                    report.detail = Some("process 1 still holds replaced files".to_owned());
                }
                continue;
            }
            match shortfalls.get(&Unit::new(report.subject.clone())) {
                Some(Shortfall::Unproven(why)) => {
                    report.result = ActionResult::Unproven;
                    report.detail = Some(why.clone());
                }
                Some(Shortfall::Ill(why) | Shortfall::Late(why)) => {
                    report.result = ActionResult::Failed;
                    report.detail = Some(why.clone());
                }
                None => {}
            }
        }
    }
}

/// What was done, in order.
#[derive(Debug, Default)]
struct Reports(Vec<ActionReport>);

impl Reports {
    /// Does one kind of job to all `units`; gives those whose job ended well.
    fn jobs(&mut self, services: &dyn Services, job: Job, units: &[Unit]) -> Vec<Unit> {
        if units.is_empty() {
            return Vec::new();
        }
        let start = Instant::now();
        let outcomes = services.run(job, units);
        let mut well = Vec::new();
        for (unit, outcome) in units.iter().zip(outcomes) {
            if outcome.is_ok() {
                well.push(unit.clone());
            }
            self.note(unit.as_str(), job.as_str(), start, outcome);
        }
        well
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
        self.0.push(report);
    }

    fn escalated(&mut self, unit: &Unit, why: &str) {
        let reloads = |report: &&mut ActionReport| {
            report.action == Job::Reload.as_str() && report.subject == unit.as_str()
        };
        for report in self.0.iter_mut().filter(reloads) {
            report.result = ActionResult::Escalated;
            report.detail = Some(why.to_owned());
        }
    }

    /// Reloads and restarts that failed.
    fn failed_jobs(&self) -> impl Iterator<Item = &ActionReport> {
        let jobs = [Job::Reload.as_str(), Job::Restart.as_str()];
        self.0.iter().filter(move |report| {
            report.result == ActionResult::Failed && jobs.contains(&report.action.as_str())
        })
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

/// Whether the unit is acted upon for its configuration.
fn is_for_configuration(unit: &UnitPlan) -> bool {
    let configures =
        |evidence: &Evidence| evidence.class.is_configuration() || evidence.rule == Rule::UnitFile;
    unit.because.iter().any(configures)
}

#[cfg(test)]
mod tests;
