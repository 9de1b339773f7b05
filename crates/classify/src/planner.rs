//! From changed files and facts to a plan. One file at a time; each asks units for an action,
//! and a unit keeps the greatest.

use std::collections::{BTreeMap, BTreeSet};

use vireo_model::{Change, ChangeKind, ImagePath, Node, NodeKind};

use crate::class::canonical;
use crate::plan::{
    Action, Evidence, FileEntry, ManagerAction, Plan, Proof, Reboot, Rule, ToolRun, UnitPlan,
};
use crate::{
    Class, Declared, DeclaredBy, Effect, Facts, FileId, Owner, Policy, Unit, UnitFacts, class_of,
};

/// Most process numbers that one piece of evidence names.
const MAX_PIDS_NAMED: usize = 3;

/// One changed file, as far as the plan depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedFile {
    /// Where.
    pub path: ImagePath,
    /// How.
    pub kind: ChangeKind,
    /// What kind of file it is.
    pub class: Class,
    /// The identity of the file that the change replaces or removes: before the commit what
    /// stands at the path, after it what stood there.
    pub replaced: Option<FileId>,
    /// Whether set-ID bits or capabilities change, so that a program runs with other rights.
    pub privileges: bool,
}

impl ChangedFile {
    /// A file at `path`, of the class that the path tells.
    #[must_use]
    pub fn new(path: ImagePath, kind: ChangeKind) -> Self {
        let class = class_of(&path, 0o644, None);
        Self { path, kind, class, replaced: None, privileges: false }
    }

    /// The same for one change of a change set; none for directories, which activate nothing.
    /// `head` is the first [`HEAD_LEN`](crate::HEAD_LEN) bytes of the target's content, or of
    /// the base's if the file is removed; none if there is no content.
    #[must_use]
    pub fn of_change(change: &Change, head: Option<&[u8]>) -> Option<Self> {
        let node = change.after.as_ref().or(change.before.as_ref())?;
        let is_dir = |node: &Option<Node>| node.as_ref().is_none_or(Node::is_dir);
        if is_dir(&change.before) && is_dir(&change.after) {
            return None;
        }
        let head =
            head.filter(|_| matches!(node.kind, NodeKind::File { .. } | NodeKind::HardLink { .. }));
        Some(Self {
            class: class_of(&change.path, node.mode, head),
            path: change.path.clone(),
            kind: change.kind(),
            replaced: None,
            privileges: match (&change.before, &change.after) {
                (Some(before), Some(after)) => rights_of(before) != rights_of(after),
                _ => false,
            },
        })
    }
}

/// Set-user-ID, set-group-ID and capabilities.
fn rights_of(node: &Node) -> (u32, Option<&Vec<u8>>) {
    (node.mode & 0o6000, node.xattrs.get(b"security.capability".as_slice()))
}

/// What must happen on the system that `facts` describe for `changes` to take effect.
///
/// The same call serves before the commit, as a prediction, and after it. Cost: per file one
/// look through the processes and units; memory follows the number of files.
#[must_use]
pub fn plan(changes: &[ChangedFile], facts: &Facts, policy: &Policy) -> Plan {
    let mut changes: Vec<&ChangedFile> = changes.iter().collect();
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    let mut planner = Planner { facts, policy, plan: Plan::empty(), units: BTreeMap::new() };
    for change in &changes {
        planner.plan.files.push(FileEntry {
            path: change.path.to_string(),
            change: word_for(change.kind).to_owned(),
            class: change.class,
        });
        planner.consider(change);
    }
    planner.finish()
}

const fn word_for(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "added",
        ChangeKind::Modified => "modified",
        ChangeKind::Removed => "removed",
        ChangeKind::Metadata => "metadata",
    }
}

struct Planner<'a> {
    facts: &'a Facts,
    policy: &'a Policy,
    plan: Plan,
    units: BTreeMap<Unit, UnitPlan>,
}

impl Planner<'_> {
    fn consider(&mut self, change: &ChangedFile) {
        if change.kind == ChangeKind::Metadata {
            if change.privileges {
                self.consider_programs_rights(change);
            }
            return;
        }
        match change.class {
            Class::Kernel | Class::Initramfs if change.kind != ChangeKind::Removed => {
                self.ask_reboot(change, "the running one stays until then");
            }
            Class::KernelModule => self.consider_kernel_module(change),
            Class::Unit | Class::UnitDropIn => self.consider_unit_file(change),
            Class::ManagerConfig => self.ask_manager(change, ManagerAction::Reload, Rule::Class),
            Class::ManagerInput => self.consider_tool(change),
            Class::Agent => self.consider_agent(change),
            class if class.is_configuration() => self.consider_configuration(change),
            class if class.is_code() => self.consider_code(change),
            _ => {}
        }
    }

    /// Programs, libraries, modules, scripts: who holds the replaced file must start anew.
    fn consider_code(&mut self, change: &ChangedFile) {
        self.ask_holders(change, Effect::Restart);
        if change.class == Class::Script {
            // An interpreter closes the script it reads, so nobody need hold it.
            self.ask_declaring(change, Effect::Restart);
        }
    }

    fn consider_agent(&mut self, change: &ChangedFile) {
        let evidence = evidence(change, Rule::Class, "the agent itself".to_owned());
        self.ask_unit(&Unit::new("vireo-agent.service"), Action::Restart, evidence);
    }

    fn consider_programs_rights(&mut self, change: &ChangedFile) {
        let place = canonical(&change.path);
        let runs = |unit: &&UnitFacts| unit.programs.iter().any(|p| canonical(p) == place);
        let units: Vec<Unit> =
            self.facts.units.values().filter(runs).map(|u| u.name.clone()).collect();
        for unit in units {
            let evidence = evidence(change, Rule::Declared, "it runs with other rights".to_owned());
            self.ask_unit(&unit, Action::Restart, evidence);
        }
    }

    /// From the strongest evidence to the weakest; the first that names anyone decides.
    fn consider_configuration(&mut self, change: &ChangedFile) {
        let held = self.ask_holders(change, Effect::Reload);
        let declared = self.ask_declaring(change, Effect::Reload);
        if held || declared {
            return;
        }
        if let Some(rule) = self.policy.config_rule(&change.path) {
            let named: Vec<&UnitFacts> =
                self.facts.units.values().filter(|unit| rule.names(&unit.name)).collect();
            for unit in named {
                let action = action_for(rule.effect, unit);
                let evidence = evidence(change, Rule::RulePack, format!("rule {}", rule.pattern));
                self.ask(unit, action, evidence);
            }
            return;
        }
        if !self.ask_namesakes(change) && self.policy.shared_config(&change.path).is_none() {
            self.plan.unclaimed.push(change.path.to_string());
        }
    }

    /// Asks the owners of all processes that hold the replaced file; says whether there are any.
    fn ask_holders(&mut self, change: &ChangedFile, effect: Effect) -> bool {
        let Some(file) = change.replaced else { return false };
        let mut owners: BTreeMap<&Owner, Vec<u32>> = BTreeMap::new();
        for process in self.facts.holders(file) {
            owners.entry(&process.owner).or_default().push(process.pid);
        }
        for (owner, pids) in &owners {
            let evidence = evidence(change, Rule::Held, held_by(pids));
            self.ask_owner(owner, effect, evidence);
        }
        !owners.is_empty()
    }

    fn ask_owner(&mut self, owner: &Owner, effect: Effect, evidence: Evidence) {
        match owner {
            Owner::Manager => {
                self.plan.system.manager = ManagerAction::Reexec;
                self.plan.system.because.push(evidence);
            }
            Owner::Unit(name) => match self.facts.unit(name) {
                Some(unit)
                    if evidence.class.is_code() && self.policy.reload_reexecs(&unit.name) =>
                {
                    let action = if unit.can_reload { Action::Reload } else { Action::Restart };
                    self.ask(unit, action, evidence);
                }
                Some(unit) => self.ask(unit, action_for(effect, unit), evidence),
                None => self.hold(name, "the service manager does not know it", evidence),
            },
            Owner::UserUnit { manager, unit } => {
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

    /// Asks the units whose files name the path; says whether there are any.
    fn ask_declaring(&mut self, change: &ChangedFile, effect: Effect) -> bool {
        let place = canonical(&change.path);
        let mut any = false;
        for unit in self.facts.units.values() {
            let declared = unit.declared.iter().filter(|d| covers(d, &place, change.class));
            // One that only a start reads decides over the others.
            let Some(declared) = declared.max_by_key(|d| d.by.needs_start()) else { continue };
            any = true;
            let action =
                if declared.by.needs_start() { Action::Restart } else { action_for(effect, unit) };
            let source = format!("{} {}", declared.by.as_str(), declared.path);
            self.ask(unit, action, evidence(change, Rule::Declared, source));
        }
        any
    }

    /// Asks the units whose name is in the path; says whether there are any.
    fn ask_namesakes(&mut self, change: &ChangedFile) -> bool {
        let mut any = false;
        for unit in self.facts.units.values() {
            if unit.name.kind() != "service" || !names_unit(&change.path, unit.name.stem()) {
                continue;
            }
            any = true;
            let default = change.path.as_bytes().starts_with(b"/etc/default/");
            let effect = if default { Effect::Restart } else { Effect::Reload };
            let source = format!("named like {}", unit.name.stem());
            self.ask(unit, action_for(effect, unit), evidence(change, Rule::Name, source));
        }
        any
    }

    /// A unit's own file. The manager reads it again in any case: its own `NeedDaemonReload`
    /// overlooks new drop-in directories and files with an older time.
    fn consider_unit_file(&mut self, change: &ChangedFile) {
        let place = canonical(&change.path);
        let text = String::from_utf8_lossy(&place).into_owned();
        if text.contains("/systemd/user/") {
            return;
        }
        self.ask_manager(change, ManagerAction::Reload, Rule::UnitFile);
        let subject = subject_of(&text);
        for unit in self.facts.units.values() {
            let own = unit.files.iter().any(|file| canonical(file) == place);
            if !own && !subject.covers(unit) {
                continue;
            }
            let evidence = evidence(change, Rule::UnitFile, "its own file".to_owned());
            let gone = change.kind == ChangeKind::Removed
                && subject == Subject::Unit(unit.name.to_string());
            match unit.name.kind() {
                "service" if gone => self.hold_orphan(unit, evidence),
                "service" | "path" => self.ask(unit, Action::Restart, evidence),
                // A socket cannot be restarted while its service runs: both would be down.
                "socket" if unit.active.is_up() => {
                    self.hold(
                        &unit.name,
                        "a socket cannot restart while its service runs",
                        evidence,
                    );
                }
                _ => {}
            }
        }
    }

    /// A restart of a unit whose file is gone would stop it for good.
    fn hold_orphan(&mut self, unit: &UnitFacts, evidence: Evidence) {
        if unit.active.is_up() && !unit.is_done() {
            self.hold(&unit.name, "its unit file is removed, stop it by hand", evidence);
        }
    }

    fn consider_kernel_module(&mut self, change: &ChangedFile) {
        let release = self.facts.kernel_release.as_bytes();
        let place = canonical(&change.path);
        let of_running_kernel = !release.is_empty()
            && place
                .strip_prefix(b"/usr/lib/modules/")
                .and_then(|rest| rest.split(|b| *b == b'/').next())
                == Some(release);
        if of_running_kernel && change.kind != ChangeKind::Added {
            self.ask_reboot(change, "of the running kernel");
        }
    }

    fn consider_tool(&mut self, change: &ChangedFile) {
        if change.kind == ChangeKind::Removed {
            return;
        }
        let Some(tool) = self.policy.tool(&change.path) else { return };
        let run =
            ToolRun { tool, command: tool.command(&String::from_utf8_lossy(change.path.name())) };
        if !self.plan.system.tools.contains(&run) {
            self.plan.system.tools.push(run);
        }
        let source = format!("input of {}", tool.command("").first().map_or("", String::as_str));
        self.plan.system.because.push(evidence(change, Rule::Class, source));
    }

    fn ask_manager(&mut self, change: &ChangedFile, action: ManagerAction, rule: Rule) {
        self.plan.system.manager = self.plan.system.manager.max(action);
        let evidence = evidence(change, rule, "the service manager reads it".to_owned());
        self.plan.system.because.push(evidence);
    }

    fn ask_reboot(&mut self, change: &ChangedFile, why: &str) {
        self.plan.system.reboot = Reboot::Full;
        self.plan.system.because.push(evidence(change, Rule::Class, why.to_owned()));
    }

    fn ask_unit(&mut self, name: &Unit, action: Action, evidence: Evidence) {
        if let Some(unit) = self.facts.unit(name) {
            self.ask(unit, action, evidence);
        }
    }

    /// Asks `unit` for `action`, unless it does not run or must not be touched.
    fn ask(&mut self, unit: &UnitFacts, action: Action, evidence: Evidence) {
        if !unit.active.is_up() {
            return;
        }
        if let Some(why) = self.policy.hold_reason(&unit.name) {
            return self.hold(&unit.name, why, evidence);
        }
        if unit.is_done() && evidence.rule != Rule::Held {
            return;
        }
        if action == Action::Restart && unit.refuse_manual_stop {
            return self.hold(&unit.name, "it refuses to be stopped by hand", evidence);
        }
        self.note(&unit.name, action, None, evidence);
    }

    fn hold(&mut self, unit: &Unit, why: &str, evidence: Evidence) {
        self.note(unit, Action::Hold, Some(why), evidence);
    }

    fn note(&mut self, unit: &Unit, action: Action, reason: Option<&str>, evidence: Evidence) {
        let entry = self.units.entry(unit.clone()).or_insert_with(|| UnitPlan {
            unit: unit.clone(),
            action,
            reason: None,
            because: Vec::new(),
            validate: None,
            proof: Vec::new(),
        });
        entry.action = entry.action.max(action);
        if entry.reason.is_none() {
            entry.reason = reason.map(str::to_owned);
        }
        if !entry.because.contains(&evidence) {
            entry.because.push(evidence);
        }
    }

    fn finish(mut self) -> Plan {
        for unit in self.units.values_mut() {
            unit.proof = proof_for(unit);
        }
        self.plan.units = std::mem::take(&mut self.units).into_values().collect();
        self.plan.system.tools.sort();
        // One tool may serve several inputs with one command.
        self.plan.system.tools.dedup();
        self.add_notes();
        self.plan
    }

    fn add_notes(&mut self) {
        let notes = &mut self.plan.notes;
        if !self.facts.manager {
            notes.push("no service manager answers: units are left as they are".to_owned());
        }
        if self.facts.unread > 0 {
            notes.push(format!("{} lines about the system were not understood", self.facts.unread));
        }
    }
}

fn proof_for(unit: &UnitPlan) -> Vec<Proof> {
    if unit.action == Action::Hold {
        return Vec::new();
    }
    let held = unit.because.iter().any(|evidence| evidence.rule == Rule::Held);
    [Proof::Job, Proof::Active].into_iter().chain(held.then_some(Proof::Inodes)).collect()
}

fn evidence(change: &ChangedFile, rule: Rule, source: String) -> Evidence {
    Evidence { path: change.path.to_string(), class: change.class, rule, source }
}

fn action_for(effect: Effect, unit: &UnitFacts) -> Action {
    if effect == Effect::Reload && unit.can_reload { Action::Reload } else { Action::Restart }
}

fn held_by(pids: &[u32]) -> String {
    let named: Vec<String> = pids.iter().take(MAX_PIDS_NAMED).map(ToString::to_string).collect();
    let plural = if pids.len() == 1 { "process" } else { "processes" };
    let more = match pids.len().saturating_sub(MAX_PIDS_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("held by {plural} {}{more}", named.join(", "))
}

/// Whether a declaration covers `place`: names it, or names a directory above it that belongs
/// to the unit.
fn covers(declared: &Declared, place: &[u8], class: Class) -> bool {
    let named = canonical(&declared.path);
    if named == place {
        return true;
    }
    let below = place.strip_prefix(named.as_slice()).is_some_and(|rest| rest.starts_with(b"/"));
    // A unit reads configuration where it says it has some; scripts also where it works.
    let belongs = match declared.by {
        DeclaredBy::WorkingDirectory => class == Class::Script,
        _ => true,
    };
    below && belongs
}

/// `/etc/STEM/...`, `/etc/STEM.conf`, `/etc/STEM.d/...`, `/etc/default/STEM`.
fn names_unit(path: &ImagePath, stem: &str) -> bool {
    let parts: BTreeSet<&[u8]> = [b"default".as_slice(), b"sysconfig"].into();
    let components: Vec<&[u8]> = path.components().take(3).collect();
    match components.as_slice() {
        [b"etc", dir, name] if parts.contains(dir) => *name == stem.as_bytes(),
        [b"etc", name, ..] => {
            let plain = name.strip_suffix(b".conf").or_else(|| name.strip_suffix(b".d"));
            plain.unwrap_or(name) == stem.as_bytes()
        }
        _ => false,
    }
}

/// Whom a file in a unit directory is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    /// One unit or the instances of one template.
    Unit(String),
    /// All units whose name starts so and ends in that type: `foo-.service.d`.
    Prefix(String, String),
    /// None in particular: a type-wide drop-in or a link that enables a unit.
    Nobody,
}

fn subject_of(place: &str) -> Subject {
    let Some((_, rest)) = place.split_once("/systemd/system/") else { return Subject::Nobody };
    match rest.split_once('/') {
        None => Subject::Unit(rest.to_owned()),
        Some((dir, _)) => match dir.strip_suffix(".d") {
            Some(name) if name.contains("-.") => {
                let (stem, kind) = name.rsplit_once('.').unwrap_or((name, ""));
                Subject::Prefix(stem.to_owned(), kind.to_owned())
            }
            Some(name) if name.contains('.') => Subject::Unit(name.to_owned()),
            _ => Subject::Nobody,
        },
    }
}

impl Subject {
    fn covers(&self, unit: &UnitFacts) -> bool {
        match self {
            Self::Unit(name) => {
                unit.name.is_or_instantiates(name)
                    || unit.aliases.contains(&Unit::new(name.clone()))
            }
            Self::Prefix(stem, kind) => {
                unit.name.as_str().starts_with(stem.as_str()) && unit.name.kind() == kind
            }
            Self::Nobody => false,
        }
    }
}
