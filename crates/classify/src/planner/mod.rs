//! From changed files and facts to a plan. One file at a time; each asks units for an action,
//! and a unit keeps the greatest.

mod commands;
mod finish;
mod index;
mod readers;
mod system;
mod units;

use std::collections::{BTreeMap, HashMap, HashSet};

use vireo_model::{ChangeKind, ImagePath};

use crate::class::canonical;
use crate::plan::{
    Action, Check, Evidence, FileEntry, ManagerAction, Plan, Reboot, Rule, UnitPlan,
};
use crate::policy::{FileRule, Layer};
use crate::{ChangedFile, Class, Facts, Host, Op, Owner, Packages, Policy, ReadMap, Unit};
use index::Index;
use units::Enabling;

/// Makes plans by one policy, with whatever is known beside the facts.
///
/// ```
/// use vireo_classify::{ChangedFile, Facts, Phase, Planner, Policy, ReadMap, Unit, UnitFacts};
/// use vireo_model::{ChangeKind, ImagePath};
///
/// let worker = Unit::new("worker.service");
/// let module = ImagePath::parse(b"/opt/worker/lib/jobs.py")?;
/// let mut reads = ReadMap::new();
/// reads.watched(&worker, Phase::Start);
/// reads.add_file(&module, &worker, Phase::Start);
///
/// let facts = Facts::new().with_unit(UnitFacts::running("worker.service"));
/// let changes = [ChangedFile::new(module, ChangeKind::Modified)];
/// let plan = Planner::new(&Policy::default()).with_reads(&reads).plan(&changes, &facts);
/// assert_eq!(
///     plan.to_string(),
///     "restart  worker.service  /opt/worker/lib/jobs.py (script, seen to read it: start)\n"
/// );
/// # Ok::<(), vireo_model::ImagePathError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Planner<'a> {
    policy: &'a Policy,
    host: Option<&'a Host>,
    reads: Option<&'a ReadMap>,
    packages: Option<&'a Packages>,
}

impl<'a> Planner<'a> {
    /// Plans by `policy`.
    #[must_use]
    pub fn new(policy: &'a Policy) -> Self {
        Self { policy, host: None, reads: None, packages: None }
    }

    /// The same, knowing the machine.
    #[must_use]
    pub fn with_host(self, host: &'a Host) -> Self {
        Self { host: Some(host), ..self }
    }

    /// The same, knowing who reads what.
    #[must_use]
    pub fn with_reads(self, reads: &'a ReadMap) -> Self {
        Self { reads: Some(reads), ..self }
    }

    /// The same, knowing whose file is whose.
    #[must_use]
    pub fn with_packages(self, packages: &'a Packages) -> Self {
        Self { packages: Some(packages), ..self }
    }

    /// What must happen on the system that `facts` describe for `changes` to take effect.
    ///
    /// The same call serves before the commit, as a prediction, and after it. The order of
    /// `changes` does not matter. Cost: some look-ups per file. All units are visited only for a file
    /// whose rule names units by a pattern, that is to be checked, or that nobody but a package knows;
    /// memory follows the number of files.
    #[must_use]
    pub fn plan(&self, changes: &[ChangedFile], facts: &Facts) -> Plan {
        let (host, reads, packages) = (Host::default(), ReadMap::new(), Packages::new());
        let mut changes: Vec<&ChangedFile> = changes.iter().collect();
        changes.sort_by(|a, b| (&a.path, a.kind as u8).cmp(&(&b.path, b.kind as u8)));
        let mut work = Work {
            facts,
            policy: self.policy,
            host: self.host.unwrap_or(&host),
            reads: self.reads.unwrap_or(&reads),
            packages: self.packages.unwrap_or(&packages),
            index: Index::new(facts, self.policy),
            brought: places_of(&changes, &[ChangeKind::Added, ChangeKind::Modified]),
            removed: places_of(&changes, &[ChangeKind::Removed]),
            changes: &changes,
            outputs: HashMap::new(),
            plan: Plan::empty(),
            units: BTreeMap::new(),
            checks: BTreeMap::new(),
            enabling: Vec::new(),
        };
        for change in &changes {
            work.plan.files.push(FileEntry {
                path: change.path.to_string(),
                change: word_for(change.kind).to_owned(),
                class: change.class,
            });
            work.consider(change);
        }
        work.finish()
    }
}

/// What must happen on the system that `facts` describe for `changes` to take effect, by
/// `policy` and with nothing else known: see [`Planner`].
#[must_use]
pub fn plan(changes: &[ChangedFile], facts: &Facts, policy: &Policy) -> Plan {
    Planner::new(policy).plan(changes, facts)
}

const fn word_for(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "added",
        ChangeKind::Modified => "modified",
        ChangeKind::Removed => "removed",
        ChangeKind::Metadata => "metadata",
    }
}

/// The places with changes of one of these kinds.
fn places_of(changes: &[&ChangedFile], kinds: &[ChangeKind]) -> HashSet<Vec<u8>> {
    let changes = changes.iter().filter(|change| kinds.contains(&change.kind));
    changes.map(|change| canonical(&change.path)).collect()
}

/// What makes a unit take up a changed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    /// A reload if the unit can, else a restart.
    Reload,
    /// A restart.
    Restart,
}

/// One plan in the making.
struct Work<'a> {
    facts: &'a Facts,
    policy: &'a Policy,
    host: &'a Host,
    reads: &'a ReadMap,
    packages: &'a Packages,
    index: Index<'a>,
    changes: &'a [&'a ChangedFile],
    /// The places where the update puts something.
    brought: HashSet<Vec<u8>>,
    /// The places where it removes something.
    removed: HashSet<Vec<u8>>,
    /// Whether the update brings the output of a tool, by its command.
    outputs: HashMap<Vec<String>, bool>,
    plan: Plan,
    units: BTreeMap<Unit, UnitPlan>,
    checks: BTreeMap<Vec<String>, Check>,
    enabling: Vec<Enabling>,
}

impl Work<'_> {
    fn consider(&mut self, change: &ChangedFile) {
        if change.kind == ChangeKind::Metadata {
            if change.privileges {
                self.consider_programs_rights(change);
            }
            return;
        }
        if change.class == Class::Foreign {
            return;
        }
        let rule = self.policy.file_rule(&change.path);
        if let Some(note) = rule.as_ref().and_then(|rule| rule.note) {
            self.plan.notes.push(format!("{}: {note}", change.path));
        }
        self.consider_tools(change);
        self.consider_checks(change);
        self.consider_connectivity(change);
        self.consider_link(change);
        if self.consider_source(change) {
            return;
        }
        let decided = rule.as_ref().is_some_and(|rule| self.apply_rule(change, rule));
        if !decided {
            self.consider_class(change, rule.as_ref());
        }
    }

    fn consider_class(&mut self, change: &ChangedFile, rule: Option<&FileRule<'_>>) {
        match change.class {
            Class::Kernel if change.kind != ChangeKind::Removed => {
                self.ask_reboot(change, Reboot::Full, "the running one stays until then");
            }
            Class::KernelModule => self.consider_kernel_module(change),
            Class::Initramfs | Class::Firmware | Class::BootLoader => self.consider_boot(change),
            Class::Unit | Class::UnitDropIn => self.consider_unit_file(change),
            Class::ManagerConfig => self.consider_manager_file(change),
            Class::Agent => self.consider_agent(change),
            Class::TimeZone => self.consider_time_zone(change, rule),
            Class::NameService => {
                self.consider_groups(change);
                self.ask_named(change, rule);
            }
            class if class.is_configuration() => self.consider_configuration(change, rule),
            class if class.is_code() => self.consider_code(change, rule),
            Class::Content => self.consider_content(change, rule),
            _ => self.ask_named(change, rule),
        }
    }

    /// Does what the policy says about the file, if that settles it. What the rule pack says
    /// about readers is one source among others and comes with the class.
    fn apply_rule(&mut self, change: &ChangedFile, rule: &FileRule<'_>) -> bool {
        let system = match rule.op {
            Some(Op::DaemonReload) => Some(ManagerAction::Reload),
            Some(Op::DaemonReexec) => Some(ManagerAction::Reexec),
            Some(Op::SoftReboot | Op::Reboot) => {
                let reboot =
                    if rule.op == Some(Op::Reboot) { Reboot::Full } else { self.soft_reboot() };
                self.ask_reboot(change, reboot, &format!("rule {}", rule.pattern));
                None
            }
            _ => None,
        };
        if let Some(action) = system {
            self.ask_manager(change, action, rule_of(rule.layer));
        }
        match rule.op {
            Some(Op::None) if rule.layer != Layer::Pack => true,
            Some(Op::DaemonReload | Op::DaemonReexec | Op::SoftReboot | Op::Reboot) => {
                rule.layer != Layer::Pack
            }
            _ if rule.layer != Layer::Pack && rule.names_units() => {
                self.ask_named(change, Some(rule));
                true
            }
            _ => false,
        }
    }

    /// Asks the owners of all processes that hold the replaced file; says whether there are any.
    fn ask_holders(&mut self, change: &ChangedFile, effect: Effect) -> bool {
        let Some(file) = change.replaced else { return false };
        let mut owners: BTreeMap<&Owner, Vec<u32>> = BTreeMap::new();
        for process in self.index.holders(file) {
            owners.entry(&process.owner).or_default().push(process.pid);
        }
        for (owner, pids) in &owners {
            let evidence = evidence(change, Rule::Held, held_by(pids));
            self.ask_owner(owner, effect, evidence);
        }
        !owners.is_empty()
    }

    /// Holds all units whose processes hold the replaced file: it is their own to write.
    fn hold_holders(&mut self, change: &ChangedFile) {
        let Some(file) = change.replaced else { return };
        let mut owners: BTreeMap<Unit, Vec<u32>> = BTreeMap::new();
        for process in self.index.holders(file) {
            if let Owner::Unit(unit) = &process.owner {
                owners.entry(unit.clone()).or_default().push(process.pid);
            }
        }
        for (unit, pids) in owners {
            let evidence = evidence(change, Rule::Held, held_by(&pids));
            self.hold(&unit, "the policy holds it", evidence);
        }
    }

    fn ask_owner(&mut self, owner: &Owner, effect: Effect, evidence: Evidence) {
        match owner {
            Owner::Manager if evidence.class.is_code() => {
                self.plan.system.manager = ManagerAction::Reexec;
                self.plan.system.because.push(evidence);
            }
            Owner::Manager => {}
            Owner::Unit(name) => match self.index.unit(name) {
                Some(unit) => {
                    let rule = &self.index.units[unit].rule;
                    let code = evidence.class.is_code();
                    let effect = if code && rule.reload_reexecs { Effect::Reload } else { effect };
                    self.ask(unit, effect, evidence);
                }
                None => self.hold(name, "the service manager does not know it", evidence),
            },
            Owner::UserUnit { manager, unit } => {
                if unit.as_str() == "init.scope" {
                    self.ask_user_manager(manager, ManagerAction::Reexec);
                }
                self.hold(manager, &format!("{unit} of a user's own manager runs it"), evidence);
            }
            Owner::Session(session) => self.hold(session, "it lasts until logout", evidence),
            Owner::Foreign(name) => {
                self.hold(&Unit::new(name.clone()), "a container, not of this system", evidence);
            }
            Owner::Nobody => {
                let reason = "no unit could be restarted for it";
                self.hold(&Unit::new("(no unit)"), reason, evidence);
            }
        }
    }

    /// Asks unit number `unit` for what `effect` takes, unless it does not run or must not be
    /// touched.
    fn ask(&mut self, unit: usize, effect: Effect, evidence: Evidence) {
        let view = &self.index.units[unit];
        let can_reload = effect == Effect::Reload && view.facts.can_reload;
        let action = if can_reload { Action::Reload } else { Action::Restart };
        self.ask_for(unit, action, evidence);
    }

    fn ask_for(&mut self, unit: usize, action: Action, evidence: Evidence) {
        let view = &self.index.units[unit];
        let (facts, rule) = (view.facts, &view.rule);
        if !facts.active.is_up() {
            return;
        }
        let name = &facts.name;
        if let Some(why) = rule.hold.clone() {
            return self.hold(name, &why, evidence);
        }
        if facts.is_done() && !self.takes_up_though_done(unit, action, &evidence) {
            return self.leave_done(unit, evidence);
        }
        if action == Action::Restart {
            let why = match &rule.reload_only {
                Some(why) => Some(why.as_str()),
                None if facts.refuse_manual_stop => Some("it refuses to be stopped by hand"),
                None if facts.refuse_manual_start => Some("it refuses to be started by hand"),
                None if facts.masked => Some("it is masked: once stopped it would stay so"),
                None if self.index.serves_one_connection(facts) => {
                    Some("it ends with its connection")
                }
                None if facts.runs_once_now() => Some("it runs once and ends by itself"),
                None => None,
            };
            if let Some(why) = why.map(str::to_owned) {
                return self.hold(name, &why, evidence);
            }
        }
        self.note(name, action, None, evidence);
    }

    /// Whether there is something to do for a unit that ran once and is over.
    fn takes_up_though_done(&self, unit: usize, action: Action, evidence: &Evidence) -> bool {
        let said = matches!(evidence.rule, Rule::Site | Rule::Bundle);
        let known =
            said || matches!(evidence.rule, Rule::Learned | Rule::RulePack | Rule::UnitFile);
        let reloads = action == Action::Reload && self.index.units[unit].facts.can_reload && known;
        said || reloads || action == Action::Stop || evidence.rule == Rule::Held
    }

    /// A unit that ran once and is over is left so: many only stand for others, or did something
    /// at boot that is not to be done again. Where a rule says why it must not be restarted, what
    /// it did with configuration of its own waits.
    fn leave_done(&mut self, unit: usize, evidence: Evidence) {
        let is_own = matches!(evidence.rule, Rule::RulePack | Rule::Declared | Rule::Name);
        let view = &self.index.units[unit];
        let (Some(why), true) = (view.rule.reload_only.clone(), is_own) else { return };
        if evidence.class.is_configuration() {
            let name = view.facts.name.clone();
            self.hold(&name, &why, evidence);
        }
    }

    fn ask_unit(&mut self, name: &Unit, action: Action, evidence: Evidence) {
        if let Some(unit) = self.index.unit(name) {
            self.ask_for(unit, action, evidence);
        }
    }

    fn hold(&mut self, unit: &Unit, why: &str, evidence: Evidence) {
        self.note(unit, Action::Hold, Some(why), evidence);
    }

    fn note(&mut self, unit: &Unit, action: Action, reason: Option<&str>, evidence: Evidence) {
        let new = || UnitPlan::new(unit.clone(), action);
        let entry = self.units.entry(unit.clone()).or_insert_with(new);
        entry.action = entry.action.max(action);
        if entry.reason.is_none() {
            entry.reason = reason.map(str::to_owned);
        }
        if !entry.because.contains(&evidence) {
            entry.because.push(evidence);
        }
    }
}

const fn rule_of(layer: Layer) -> Rule {
    match layer {
        Layer::Site => Rule::Site,
        Layer::Bundle => Rule::Bundle,
        Layer::Pack => Rule::RulePack,
    }
}

fn evidence(change: &ChangedFile, rule: Rule, source: String) -> Evidence {
    evidence_at(&change.path, change.class, rule, source)
}

fn evidence_at(path: &ImagePath, class: Class, rule: Rule, source: String) -> Evidence {
    Evidence { path: path.to_string(), class, rule, source }
}

/// Most process numbers that one piece of evidence names.
const MAX_PIDS_NAMED: usize = 3;

fn held_by(pids: &[u32]) -> String {
    let named: Vec<String> = pids.iter().take(MAX_PIDS_NAMED).map(ToString::to_string).collect();
    let plural = if pids.len() == 1 { "process" } else { "processes" };
    let more = match pids.len().saturating_sub(MAX_PIDS_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("held by {plural} {}{more}", named.join(", "))
}
