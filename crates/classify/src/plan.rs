//! The plan: what must happen for changed files to take effect, as a value with its evidence.
//!
//! Inert: print it, compare it, send it, or execute it. Its JSON form is `vireo.plan/1`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vireo_model::Digest;

use crate::{Class, Tool, Unit};

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
    /// Why.
    pub because: Vec<Evidence>,
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
    /// Which.
    pub tool: Tool,
    /// Its command line.
    pub command: Vec<String>,
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
}

/// What a unit needs, from least to most; the order is part of the meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It reads its configuration again.
    Reload,
    /// Its processes are replaced.
    Restart,
    /// It would need one of these, but is not to be touched.
    Hold,
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
    /// The unit file names it.
    Declared,
    /// The rule pack or the site's policy names the unit.
    RulePack,
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
            Self::Reload => "reload",
            Self::Restart => "restart",
            Self::Hold => "hold",
        }
    }
}
