//! The plan: what must happen for changed files to take effect, as a value with its evidence.
//!
//! Inert: print it, compare it, send it, or execute it. Its JSON form is `vireo.plan/1`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vireo_model::Digest;

use crate::{Class, Confirm, Unit};

/// The source of evidence for what the service manager needs.
pub(crate) const MANAGER_READS: &str = "the service manager reads it";
/// The source of evidence for what users' service managers need.
pub(crate) const USERS_READ: &str = "users' service managers read it";
/// How the source of evidence for a tool begins.
pub(crate) const INPUT_OF: &str = "input of ";

/// Everything to be done for one change set.
///
/// Paths are in their printable form: a plan is for people and programs to read, the bundle has
/// the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// `vireo.plan/1`.
    pub schema: String,
    /// Digest of the tree that the changes apply to, if a version is known.
    pub base: Option<Digest>,
    /// Digest of the tree they make.
    pub target: Option<Digest>,
    /// What the system as a whole needs.
    pub system: SystemPlan,
    /// What each unit needs, by name. Units that need nothing are absent.
    pub units: Vec<UnitPlan>,
    /// Every changed file.
    pub files: Vec<FileEntry>,
    /// Files that were edited locally and that the change set touches too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<LocalEdit>,
    /// Configuration that no unit is known to read. Nothing is done for it.
    pub unclaimed: Vec<String>,
    /// Checks of the new configuration, to be run before the commit on the files as they will
    /// be. If one fails, tell the plan by [`refuse`](Self::refuse).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// Why the update is refused as it is; it must not be committed then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// What could not be found out, and what that means.
    pub notes: Vec<String>,
    /// Bytes to fetch.
    pub wire_bytes: u64,
    /// Bytes written to the file system.
    pub disk_bytes: u64,
}

/// What the system as a whole needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemPlan {
    /// What the service manager needs.
    pub manager: ManagerAction,
    /// The reboot that waits.
    pub reboot: Reboot,
    /// Tools to run, in order, each once per input.
    pub tools: Vec<ToolRun>,
    /// The users' own managers that need something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub user_managers: Vec<UserManager>,
    /// Directories that must stay until the reboot, though the update removes files of them:
    /// the modules of the running kernel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<String>,
    /// The machine could be cut off: undo the update unless it is confirmed in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_man: Option<DeadMan>,
    /// Why.
    pub because: Vec<Evidence>,
}

/// What one user's own service manager needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UserManager {
    /// Its unit, `user@1000.service`.
    pub unit: Unit,
    /// What it needs.
    pub action: ManagerAction,
}

/// A promise to undo the update unless somebody confirms in time that the machine is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadMan {
    /// Who has to confirm.
    pub confirm: Confirm,
    /// Within how many seconds.
    pub seconds: u64,
    /// The files and units that could cut the machine off.
    pub because: Vec<String>,
}

/// One check of new configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its command line: words, for no shell.
    pub command: Vec<String>,
    /// The program without which it cannot be run, and need not be.
    pub needs: String,
    /// The changed files that it looks at.
    pub files: Vec<String>,
    /// The units that would be reloaded or restarted for them.
    pub units: Vec<Unit>,
}

/// Why an update is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong.
    pub reason: String,
    /// The files that it is about.
    pub files: Vec<String>,
}

/// A question to a service after an action: a command whose exit status, and output if that is
/// expected, say whether the action is in effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Its command line: words, for no shell.
    pub command: Vec<String>,
    /// The user to run it as; none: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What it must print, without blanks around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
    /// What its failure means.
    pub on_failure: ProbeFailure,
}

/// What the failure of a probe means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeFailure {
    /// The action is not in effect: the unit is not well.
    Fail,
    /// The action was not enough: the next greater one is needed.
    Escalate,
}

/// What the service manager needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ManagerAction {
    /// Nothing.
    #[default]
    None,
    /// It reads its unit files again (`daemon-reload`).
    Reload,
    /// It executes itself anew (`daemon-reexec`), which reads unit files too.
    Reexec,
}

/// A reboot that waits for somebody to do it; nothing here does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reboot {
    /// None.
    #[default]
    None,
    /// Of user space only.
    Soft,
    /// Of the kernel too.
    Full,
}

/// One run of a tool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ToolRun {
    /// When.
    pub tool: Tool,
    /// Its command line.
    pub command: Vec<String>,
}

/// The stages in which tools run, in this order, all before the service manager and any unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tool {
    /// Makes system users.
    Sysusers,
    /// Makes files and directories.
    Tmpfiles,
    /// Sets kernel parameters.
    Sysctl,
    /// Makes the cache of libraries.
    Ldconfig,
    /// Loads kernel modules and binary formats.
    Modules,
    /// Makes the hardware database.
    Hwdb,
    /// Has udev read its rules again.
    Udev,
    /// Makes other files out of files.
    Derive,
}

/// What one unit needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitPlan {
    /// The unit.
    pub unit: Unit,
    /// The action: the greatest that any file asks for.
    pub action: Action,
    /// Why it is held; none for other actions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The files behind it, in path order.
    pub because: Vec<Evidence>,
    /// A command that checks the unit's configuration before it is used, if one is known.
    pub validate: Option<Vec<String>>,
    /// What must hold afterwards for the action to count.
    pub proof: Vec<Proof>,
    /// The greatest action that may follow if the proof fails; none if there is no greater one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<Action>,
    /// The files that the unit must have read afterwards, for [`Proof::Read`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<String>,
    /// The questions to ask it, for [`Proof::Probe`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<Probe>,
}

impl UnitPlan {
    /// That `unit` needs `action`, and nothing more about it yet.
    #[must_use]
    pub fn new(unit: Unit, action: Action) -> Self {
        Self {
            unit,
            action,
            reason: None,
            because: Vec::new(),
            validate: None,
            proof: Vec::new(),
            ceiling: None,
            reads: Vec::new(),
            probes: Vec::new(),
        }
    }
}

/// What a unit needs, from least to most; the order is part of the meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Action {
    /// It is new and enabled.
    Start,
    /// It reads its configuration again.
    Reload,
    /// Its processes are replaced.
    Restart,
    /// It is gone from the system.
    Stop,
    /// It would need one of these, but is not to be touched.
    Hold,
    /// Its new configuration is wrong: the update must not be committed.
    Refuse,
}

/// What must hold after an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// The manager's job ended well.
    Job,
    /// The unit is active.
    Active,
    /// None of its processes holds a replaced file.
    Inodes,
    /// It has read the changed files ([`UnitPlan::reads`]) since they were put in place: their
    /// access times moved. No proof on a file system that does not keep these.
    Read,
    /// It listens on what it listened on before.
    Sockets,
    /// Its [probes](UnitPlan::probes) are content.
    Probe,
}

/// Why something is to be done: one file and the rule that fired.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Evidence {
    /// The changed file.
    pub path: String,
    /// Its class.
    pub class: Class,
    /// The rule.
    pub rule: Rule,
    /// Where the rule has its knowledge from, for people: `process 321`, `/etc/nginx/**`.
    pub source: String,
}

/// The rules by which files lead to actions, from the strongest evidence to the weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// A process runs, maps or has the file open.
    Held,
    /// The file is the unit's own.
    UnitFile,
    /// The machine's own policy names the unit.
    Site,
    /// The policy that came with the update names the unit.
    Bundle,
    /// The unit was seen to read the file.
    Learned,
    /// The unit file names it.
    Declared,
    /// The rule pack names the unit.
    RulePack,
    /// The package of the file is that of the unit.
    Package,
    /// The path has the unit's name in it.
    Name,
    /// The class alone decides.
    Class,
}

/// One changed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Where.
    pub path: String,
    /// `added`, `modified`, `removed` or `metadata`.
    pub change: String,
    /// Its class.
    pub class: Class,
}

/// One file that was edited locally, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalEdit {
    /// Where.
    pub path: String,
    /// `merged`, `kept` or `taken`.
    pub how: String,
    /// Where the other version of it is put, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<String>,
}

impl Plan {
    /// The schema's name.
    pub const SCHEMA: &'static str = "vireo.plan/1";

    /// The plan that does nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            schema: Self::SCHEMA.to_owned(),
            base: None,
            target: None,
            system: SystemPlan::default(),
            units: Vec::new(),
            files: Vec::new(),
            drift: Vec::new(),
            unclaimed: Vec::new(),
            checks: Vec::new(),
            refusals: Vec::new(),
            notes: Vec::new(),
            wire_bytes: 0,
            disk_bytes: 0,
        }
    }

    /// What `unit` needs, if anything.
    #[must_use]
    pub fn action_of(&self, unit: &Unit) -> Option<Action> {
        self.units.iter().find(|entry| entry.unit == *unit).map(|entry| entry.action)
    }

    /// Whether anything of it waits for somebody: a held unit or a reboot.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.system.reboot != Reboot::None || self.units.iter().any(|u| u.action == Action::Hold)
    }

    /// Takes in that check number `check` failed: the update must not be committed, and the
    /// units that would use the files are refused. A number that no check has changes nothing.
    pub fn refuse(&mut self, check: usize, why: &str) {
        let Some(check) = self.checks.get(check) else { return };
        let reason = format!("{} says: {why}", check.command.join(" "));
        for unit in self.units.iter_mut().filter(|unit| check.units.contains(&unit.unit)) {
            unit.action = Action::Refuse;
            unit.reason = Some(reason.clone());
            unit.proof.clear();
        }
        self.refusals.push(Refusal { reason, files: check.files.clone() });
    }

    /// Whether the update must not be committed.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        !self.refusals.is_empty()
    }

    /// How many files of each class are behind no action at all.
    #[must_use]
    pub fn idle_files(&self) -> BTreeMap<Class, usize> {
        let reasons = self.units.iter().flat_map(|unit| &unit.because).chain(&self.system.because);
        let named: std::collections::BTreeSet<&str> = reasons.map(|e| e.path.as_str()).collect();
        let mut counts = BTreeMap::new();
        for file in self.files.iter().filter(|file| !named.contains(file.path.as_str())) {
            *counts.entry(file.class).or_insert(0) += 1;
        }
        counts
    }
}

impl Action {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Reload => "reload",
            Self::Restart => "restart",
            Self::Stop => "stop",
            Self::Hold => "hold",
            Self::Refuse => "refuse",
        }
    }
}
