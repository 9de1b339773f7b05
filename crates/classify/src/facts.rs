//! What is known about a running system when a plan is made. Recorded facts can be replayed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vireo_model::ImagePath;

use crate::{Owner, Unit};

/// A file by identity: its device as `st_dev` and its inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// The device, as `stat(2)` reports it.
    pub dev: u64,
    /// The inode number.
    pub ino: u64,
}

/// What is known about a running system.
///
/// Processes need to be there only if they hold one of the files in question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Whether a service manager runs and answered; without one no unit can be acted upon.
    pub manager: bool,
    /// The release of the running kernel, `6.1.0-50-cloud-amd64`; empty if unknown.
    pub kernel_release: String,
    /// The loaded units.
    #[serde(with = "units")]
    pub units: BTreeMap<Unit, UnitFacts>,
    /// The processes that hold one of the files in question.
    pub processes: Vec<Process>,
    /// Lines of `/proc`, of unit files and of the manager's answers that were not understood.
    pub unread: usize,
}

/// A process that holds files in question: runs, maps or has them open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Whose it is.
    pub owner: Owner,
    /// The files in question that it holds.
    pub holds: BTreeSet<FileId>,
}

/// What the service manager and a unit's files say about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitFacts {
    /// Its name.
    pub name: Unit,
    /// Further names (aliases).
    #[serde(default)]
    pub aliases: BTreeSet<Unit>,
    /// Whether it runs.
    pub active: ActiveState,
    /// The finer state, `running`, `exited`, `listening`.
    pub sub: String,
    /// `Type=` of a service: `simple`, `forking`, `oneshot`; empty for other kinds of unit.
    pub service_type: String,
    /// Whether it can reload.
    pub can_reload: bool,
    /// Whether it refuses to be stopped by hand, and so to be restarted.
    pub refuse_manual_stop: bool,
    /// The main process, 0 if there is none.
    pub main_pid: u32,
    /// How often the manager restarted it by itself.
    pub restarts: u32,
    /// The unit's file and its drop-ins.
    #[serde(with = "crate::path_text::list")]
    pub files: Vec<ImagePath>,
    /// The programs it starts, first the main one.
    #[serde(with = "crate::path_text::list")]
    pub programs: Vec<ImagePath>,
    /// Files and directories that its unit file says it reads.
    pub declared: Vec<Declared>,
    /// The words of the commands that start it, without the programs.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// It is masked: it cannot be started, and not restarted either.
    #[serde(default)]
    pub masked: bool,
    /// The units that it starts when something happens: those of a socket, timer or path.
    #[serde(default)]
    pub triggers: Vec<Unit>,
    /// The units that start it when something happens.
    #[serde(default)]
    pub triggered_by: Vec<Unit>,
    /// Whether it is enabled, in the manager's word: `enabled`, `disabled`, `static`, ...
    #[serde(default)]
    pub file_state: String,
    /// The units that it is stopped and restarted along with (`Requires=`, `Requisite=`, `BindsTo=`,
    /// `PartOf=`, `StopPropagatedFrom=`; systemd.unit(5)).
    #[serde(default)]
    pub bound_to: BTreeSet<Unit>,
    /// The user that its processes run as; empty for root.
    #[serde(default)]
    pub user: String,
    /// `KillMode=`: with `process` or `none`, a restart leaves processes behind.
    #[serde(default)]
    pub kill_mode: String,
    /// It refuses to be started by hand.
    #[serde(default)]
    pub refuse_manual_start: bool,
    /// How many starts within [`start_limit_interval`](Self::start_limit_interval) the manager
    /// allows; 0 if any number.
    #[serde(default)]
    pub start_limit_burst: u32,
    /// The time for it, as the manager writes it (`10s`).
    #[serde(default)]
    pub start_limit_interval: String,
    /// Other unit files of its name that the one in [`files`](Self::files) comes before.
    #[serde(default, with = "crate::path_text::list")]
    pub shadowed: Vec<ImagePath>,
    /// The file that a generator made the unit from (`SourcePath=`).
    #[serde(default, with = "crate::path_text::option")]
    pub source: Option<ImagePath>,
}

/// One file or directory that a unit file names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Declared {
    /// The path.
    #[serde(with = "crate::path_text")]
    pub path: ImagePath,
    /// By what.
    pub by: DeclaredBy,
}

/// How a unit file names a path, which says when the file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeclaredBy {
    /// An argument of the command that starts it.
    Argument,
    /// An argument of a command that is run beside it: before, after, to reload. Code that such a
    /// command runs is not kept.
    Helper,
    /// `EnvironmentFile=`, read when processes start and at no other time.
    EnvironmentFile,
    /// `LoadCredential=`, read when the unit starts.
    Credential,
    /// `ConfigurationDirectory=`, `/etc/NAME`.
    ConfigurationDirectory,
    /// `WorkingDirectory=`, or a variable that says where modules are found.
    WorkingDirectory,
    /// A value of `Environment=`.
    Environment,
    /// `BindPaths=`, `BindReadOnlyPaths=`: a file that is mounted so stays what it was when the
    /// unit started, whatever takes its place.
    Bind,
    /// `RequiresMountsFor=` or a condition, which are looked at when the unit starts.
    Other,
}

impl DeclaredBy {
    /// The word for it, as people know it from unit files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Argument => "argument",
            Self::Helper => "argument of a helper",
            Self::EnvironmentFile => "EnvironmentFile",
            Self::Credential => "LoadCredential",
            Self::ConfigurationDirectory => "ConfigurationDirectory",
            Self::WorkingDirectory => "WorkingDirectory",
            Self::Environment => "Environment",
            Self::Bind => "BindPaths",
            Self::Other => "unit file",
        }
    }

    /// Whether only a start reads it, so that a reload would not.
    #[must_use]
    pub const fn needs_start(self) -> bool {
        matches!(self, Self::EnvironmentFile | Self::Credential | Self::Bind)
    }
}

/// Whether a unit runs, as the manager calls it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActiveState {
    /// It runs.
    Active,
    /// It runs and reads its configuration.
    Reloading,
    /// It starts.
    Activating,
    /// It stops.
    Deactivating,
    /// It ended badly.
    Failed,
    /// It does not run.
    #[default]
    Inactive,
}

impl ActiveState {
    /// The state of this name; every unknown one counts as not running.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        match name {
            "active" => Self::Active,
            "reloading" | "refreshing" => Self::Reloading,
            "activating" => Self::Activating,
            "deactivating" => Self::Deactivating,
            "failed" => Self::Failed,
            _ => Self::Inactive,
        }
    }

    /// Whether a try-restart would do anything.
    #[must_use]
    pub const fn is_up(self) -> bool {
        matches!(self, Self::Active | Self::Reloading | Self::Activating)
    }
}

impl Facts {
    /// A system with a service manager and nothing else.
    #[must_use]
    pub fn new() -> Self {
        Self { manager: true, ..Self::default() }
    }

    /// The same with `unit` in addition.
    #[must_use]
    pub fn with_unit(mut self, unit: UnitFacts) -> Self {
        self.units.insert(unit.name.clone(), unit);
        self
    }

    /// The same with `process` in addition.
    #[must_use]
    pub fn with_process(mut self, process: Process) -> Self {
        self.processes.push(process);
        self
    }

    /// The processes that hold `file`.
    pub fn holders(&self, file: FileId) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(move |process| process.holds.contains(&file))
    }

    /// The unit of this name, by its name or an alias.
    #[must_use]
    pub fn unit(&self, name: &Unit) -> Option<&UnitFacts> {
        self.units
            .get(name)
            .or_else(|| self.units.values().find(|unit| unit.aliases.contains(name)))
    }

    /// One of `others` that `unit` is stopped and restarted along with, directly or by way of units
    /// between them; of several the one that comes first by name.
    #[must_use]
    pub fn goes_along<'a>(&self, unit: &Unit, others: &BTreeSet<&'a Unit>) -> Option<&'a Unit> {
        let (mut seen, mut next) = (BTreeSet::from([unit]), vec![unit]);
        while let Some(at) = next.pop() {
            let further = self.units.get(at).into_iter().flat_map(|facts| &facts.bound_to);
            next.extend(further.filter(|other| seen.insert(*other)));
        }
        seen.into_iter().filter(|other| *other != unit).find_map(|it| others.get(it).copied())
    }
}

impl Process {
    /// Process `pid` of the system unit `unit`, holding `files`.
    #[must_use]
    pub fn of_unit(pid: u32, unit: &str, files: impl IntoIterator<Item = FileId>) -> Self {
        Self { pid, owner: Owner::Unit(Unit::new(unit)), holds: files.into_iter().collect() }
    }
}

impl UnitFacts {
    /// A unit `name` that runs and cannot reload.
    #[must_use]
    pub fn running(name: &str) -> Self {
        let service = name.ends_with(".service");
        Self {
            name: Unit::new(name),
            aliases: BTreeSet::new(),
            active: ActiveState::Active,
            sub: if service { "running" } else { "active" }.to_owned(),
            service_type: if service { "simple" } else { "" }.to_owned(),
            can_reload: false,
            refuse_manual_stop: false,
            main_pid: 0,
            restarts: 0,
            files: Vec::new(),
            programs: Vec::new(),
            declared: Vec::new(),
            arguments: Vec::new(),
            masked: false,
            triggers: Vec::new(),
            triggered_by: Vec::new(),
            file_state: String::new(),
            bound_to: BTreeSet::new(),
            user: String::new(),
            kill_mode: String::new(),
            refuse_manual_start: false,
            start_limit_burst: 0,
            start_limit_interval: String::new(),
            shadowed: Vec::new(),
            source: None,
        }
    }

    /// Whether it runs once and is at it.
    #[must_use]
    pub fn runs_once_now(&self) -> bool {
        self.service_type == "oneshot" && self.active == ActiveState::Activating
    }

    /// Whether it ran once and has no process: what it did is done until the next boot.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.service_type == "oneshot" && self.main_pid == 0
    }
}

/// What is known about the machine beside its units and processes. Everything may be unknown;
/// plans are more careful then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// The version of the service manager, `252`.
    pub manager_version: Option<u32>,
    /// The loaded kernel modules by name, with their number of users (`/proc/modules`).
    pub loaded_modules: Option<BTreeMap<String, u32>>,
    /// The file of the time zone that `/etc/localtime` leads to.
    pub time_zone: Option<String>,
    /// Which of [`Policy::paths_wanted`](crate::Policy::paths_wanted) are there.
    pub present: Option<BTreeSet<String>>,
}

impl Host {
    /// Whether `path` is there; none if nobody looked.
    #[must_use]
    pub fn has(&self, path: &str) -> Option<bool> {
        self.present.as_ref().map(|present| present.contains(path))
    }
}

/// Reads `/proc/modules`: names and numbers of users.
#[must_use]
pub fn parse_modules(text: &[u8]) -> BTreeMap<String, u32> {
    let text = String::from_utf8_lossy(text);
    let module = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (name, _len) = (fields.next()?, fields.next()?);
        Some((name.replace('-', "_"), fields.next()?.parse().unwrap_or(0)))
    };
    text.lines().filter_map(module).collect()
}

/// Units as a list: their names stand in them.
mod units {
    use super::{BTreeMap, Unit, UnitFacts};
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        units: &BTreeMap<Unit, UnitFacts>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.collect_seq(units.values())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<BTreeMap<Unit, UnitFacts>, D::Error> {
        let units = Vec::<UnitFacts>::deserialize(d)?;
        Ok(units.into_iter().map(|unit| (unit.name.clone(), unit)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_facts_read_back() {
        let path = |bytes: &[u8]| ImagePath::parse(bytes).expect("a valid path");
        let unit = UnitFacts {
            files: vec![path(b"/usr/lib/systemd/system/a.service")],
            declared: vec![Declared { path: path(b"/etc/\xff\\x"), by: DeclaredBy::Argument }],
            ..UnitFacts::running("a.service")
        };
        let facts = Facts::new()
            .with_unit(unit)
            .with_process(Process::of_unit(7, "a.service", [FileId { dev: 1, ino: 2 }]))
            .with_process(Process { pid: 1, owner: Owner::Manager, holds: BTreeSet::new() });
        let json = serde_json::to_string(&facts).expect("facts are plain data");
        let back: Facts = serde_json::from_str(&json).expect("what was written reads back");
        assert_eq!(back, facts);
    }

    #[test]
    fn a_unit_goes_along_with_others_by_way_of_those_between() {
        let bound = |name: &str, to: &[&str]| UnitFacts {
            bound_to: to.iter().map(|name| Unit::new(*name)).collect(),
            ..UnitFacts::running(name)
        };
        let facts = Facts::new()
            .with_unit(bound("a.service", &["gone.service", "all.target"]))
            .with_unit(bound("all.target", &["boss.service", "a.service"]))
            .with_unit(bound("boss.service", &[]));
        let (a, boss) = (Unit::new("a.service"), Unit::new("boss.service"));
        assert_eq!(facts.goes_along(&a, &BTreeSet::from([&boss])), Some(&boss));
        assert_eq!(facts.goes_along(&boss, &BTreeSet::from([&a])), None);
        assert_eq!(facts.goes_along(&a, &BTreeSet::from([&a])), None, "not with itself");
    }
}
