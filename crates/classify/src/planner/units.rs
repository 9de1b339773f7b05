//! Units' own files: fragments, drop-ins, links that enable, masks.

use std::collections::BTreeSet;

use vireo_model::ChangeKind;

use super::{Work, evidence};
use crate::change::MASK;
use crate::class::canonical;
use crate::plan::{Action, Evidence, ManagerAction, Rule, USERS_READ};
use crate::policy::{OnDisable, StartEnabled};
use crate::{ActiveState, ChangedFile, Class, Unit, UnitFacts};

/// A link that enables a unit, made or removed.
pub(super) struct Enabling {
    unit: Unit,
    /// What the unit is to start with.
    by: Unit,
    removed: bool,
    evidence: Evidence,
}

/// Directories of system units in the order of their weight (`systemd.unit(5)`).
const UNIT_DIRECTORIES: &[&str] = &[
    "/etc/systemd/system/",
    "/run/systemd/system/",
    "/usr/local/lib/systemd/system/",
    "/usr/lib/systemd/system/",
];

impl Work<'_> {
    /// A unit's own file. The manager reads it again in any case: its own `NeedDaemonReload`
    /// overlooks new drop-in directories and files with an older time.
    pub(super) fn consider_unit_file(&mut self, change: &ChangedFile) {
        if change.class == Class::UnitDropIn && !change.path.name().ends_with(b".conf") {
            return;
        }
        let place = String::from_utf8_lossy(&canonical(&change.path)).into_owned();
        if place.contains("/systemd/user/") {
            return self.consider_user_unit_file(change);
        }
        self.ask_manager(change, ManagerAction::Reload, Rule::UnitFile);
        let subject = subject_of(&place);
        if let Subject::Enabling(unit, by) = &subject {
            return self.enabling.push(Enabling {
                unit: Unit::new(unit.clone()),
                by: Unit::new(by.clone()),
                removed: change.kind == ChangeKind::Removed,
                evidence: evidence(change, Rule::UnitFile, format!("enabled by {by}")),
            });
        }
        if let Subject::Type(kind) = &subject {
            self.plan
                .notes
                .push(format!("{}: for every {kind}, from its next start on", change.path));
        }
        for at in self.units_about(&place, &subject) {
            self.consider_own_file(at, change, &place, &subject);
        }
    }

    /// The units that a file at `place` is about, in the order of their names.
    fn units_about(&self, place: &str, subject: &Subject) -> BTreeSet<usize> {
        let files = self.index.units_of_file(place.as_bytes()).iter();
        let files = files.chain(self.index.units_from(place.as_bytes()));
        let mut units: BTreeSet<usize> = files.copied().collect();
        let covered = |at: &usize| subject.covers(self.index.units[*at].facts);
        match subject {
            Subject::Unit(name) => {
                let stem = Unit::new(name.clone());
                let named = self.index.units_with_stem(stem.stem());
                let also = self.index.units_with_alias(stem.stem());
                units.extend(named.iter().chain(also).copied().filter(covered));
            }
            Subject::Prefix(..) => units.extend((0..self.index.units.len()).filter(covered)),
            Subject::Type(_) | Subject::Enabling(..) | Subject::Nobody => {}
        }
        units
    }

    /// Users' managers read their units again; what they run is the users' own.
    pub(super) fn consider_user_unit_file(&mut self, change: &ChangedFile) {
        let managers: Vec<Unit> = self
            .index
            .units_with_stem("user")
            .iter()
            .map(|at| self.index.units[*at].facts)
            .filter(|unit| unit.name.kind() == "service" && unit.active.is_up())
            .map(|unit| unit.name.clone())
            .collect();
        for manager in &managers {
            self.ask_user_manager(manager, ManagerAction::Reload);
        }
        if !managers.is_empty() {
            let source = USERS_READ.to_owned();
            self.plan.system.because.push(evidence(change, Rule::UnitFile, source));
        }
    }

    fn consider_own_file(
        &mut self,
        at: usize,
        change: &ChangedFile,
        place: &str,
        subject: &Subject,
    ) {
        let unit = self.index.units[at].facts;
        let is_fragment = matches!(subject, Subject::Unit(_)) && change.class == Class::Unit;
        let evidence = evidence(change, Rule::UnitFile, self.what_changes(change));
        if is_fragment && is_overruled(place, unit) && !self.goes_away(unit) {
            return;
        }
        if change.class == Class::UnitDropIn && self.is_overruled_drop_in(place, unit) {
            return;
        }
        if change.masks() {
            return self.consider_mask(at, evidence);
        }
        // A mask taken away: what runs is what it was.
        let was_mask = change.details.led_to.as_ref().is_some_and(|to| to.as_bytes() == MASK);
        if is_fragment && was_mask && change.kind == ChangeKind::Removed {
            return;
        }
        // A link of another name is an alias: the unit is what it was.
        if is_fragment && change.details.links_to.is_some() && !is_own_name(place, unit) {
            return;
        }
        if is_fragment && change.kind == ChangeKind::Removed && !self.stays_otherwise(place, unit) {
            if is_own_name(place, unit) {
                self.stop_removed(at, evidence);
            }
            return;
        }
        if self.is_idle_change(change) {
            return;
        }
        match unit.name.kind() {
            "service" | "path" => self.ask_for(at, Action::Restart, evidence),
            "socket" => self.rebind(at, evidence),
            // It is mounted again over itself, which takes nothing away; other changes would.
            "mount" if only_options_change(change) => self.ask_for(at, Action::Reload, evidence),
            "mount" | "automount" | "swap" if unit.active.is_up() => {
                self.hold(&unit.name, "it is in use: stop it by hand", evidence);
            }
            // A timer, slice or target takes a change up when the manager reads it.
            _ => {}
        }
    }

    /// A file that a generator makes units from, other than the manager's own tables; says whether
    /// it is one (`systemd.generator(7)`).
    pub(super) fn consider_source(&mut self, change: &ChangedFile) -> bool {
        let units = self.index.units_from(&canonical(&change.path)).to_vec();
        let otherwise = matches!(change.class, Class::ManagerConfig | Class::Unit);
        if units.is_empty() || otherwise {
            return false;
        }
        self.ask_manager(change, ManagerAction::Reload, Rule::UnitFile);
        for unit in units {
            let source = "what it is made from".to_owned();
            self.ask_for(unit, Action::Restart, evidence(change, Rule::UnitFile, source));
        }
        true
    }

    /// Whether a drop-in of the same name counts instead of the one at `place`: one in a
    /// directory that weighs more, and there is just one of each name (`systemd.unit(5)`).
    fn is_overruled_drop_in(&self, place: &str, unit: &UnitFacts) -> bool {
        let Some((directory, name)) = place.rsplit_once('/') else { return false };
        let own = directory.rsplit('/').next().unwrap_or_default();
        let weight = |path: &str| UNIT_DIRECTORIES.iter().position(|dir| path.starts_with(dir));
        unit.files.iter().skip(1).map(canonical).any(|other| {
            let text = String::from_utf8_lossy(&other).into_owned();
            let Some((other_directory, other_name)) = text.rsplit_once('/') else { return false };
            let other_own = other_directory.rsplit('/').next().unwrap_or_default();
            // Of two specific directories the one with the longer name is about fewer units.
            let heavier = (std::cmp::Reverse(other_own.len()), weight(&text))
                < (std::cmp::Reverse(own.len()), weight(place));
            other_name == name && text != place && heavier && !self.removes(&other)
        })
    }

    /// Evidence for people: which keys change, if that is known.
    fn what_changes(&self, change: &ChangedFile) -> String {
        const MAX_KEYS_NAMED: usize = 3;
        let Some(keys) = &change.details.unit_keys else { return "its own file".to_owned() };
        let busy = keys.iter().filter(|key| !self.policy.is_idle_key(key));
        let named: Vec<&str> = busy.take(MAX_KEYS_NAMED).map(String::as_str).collect();
        if named.is_empty() || change.kind == ChangeKind::Removed {
            "its own file".to_owned()
        } else {
            format!("its own file: {}", named.join(", "))
        }
    }

    /// Whether nothing changes that a running unit would have to be restarted for.
    fn is_idle_change(&self, change: &ChangedFile) -> bool {
        let keys = change.details.unit_keys.as_ref();
        keys.is_some_and(|keys| keys.iter().all(|key| self.policy.is_idle_key(key)))
    }

    /// A socket does not restart while its service runs, so both do, as one transaction: the
    /// service stops, the socket listens anew, the service starts.
    fn rebind(&mut self, at: usize, evidence: Evidence) {
        let socket = self.index.units[at].facts;
        if !socket.active.is_up() {
            return;
        }
        let namesake = Unit::new(format!("{}.service", socket.name.id()));
        let triggers =
            if socket.triggers.is_empty() { vec![namesake] } else { socket.triggers.clone() };
        let services: Vec<usize> = triggers
            .iter()
            .filter_map(|name| self.index.unit(name))
            .filter(|at| self.index.units[*at].facts.active.is_up())
            .collect();
        let held = services.iter().find_map(|at| {
            let view = &self.index.units[*at];
            let why = view.rule.hold.as_ref().or(view.rule.reload_only.as_ref());
            why.map(|why| format!("{} runs, and {why}", view.facts.name))
        });
        if let Some(why) = held {
            return self.hold(&socket.name, &why, evidence);
        }
        for service in services {
            let source = format!("{} listens anew", socket.name);
            self.ask_for(service, Action::Restart, Evidence { source, ..evidence.clone() });
        }
        self.ask_for(at, Action::Restart, evidence);
    }

    fn consider_mask(&mut self, at: usize, evidence: Evidence) {
        let unit = self.index.units[at].facts;
        if !unit.active.is_up() {
            return;
        }
        match self.policy.defaults().on_disable {
            OnDisable::Stop => self.ask_for(at, Action::Stop, evidence),
            OnDisable::Keep => {
                self.hold(&unit.name, "it is masked now but runs: stop it by hand", evidence);
            }
        }
    }

    fn stop_removed(&mut self, at: usize, evidence: Evidence) {
        let unit = self.index.units[at].facts;
        match unit.name.kind() {
            "service" | "socket" | "timer" | "path" => self.ask_for(at, Action::Stop, evidence),
            _ if unit.active.is_up() => {
                self.hold(&unit.name, "its unit file is removed: stop it by hand", evidence);
            }
            _ => {}
        }
    }

    /// Whether the file that the unit is read from now goes away with this update.
    fn goes_away(&self, unit: &UnitFacts) -> bool {
        let Some(current) = unit.files.first() else { return false };
        let removes =
            |change: &&&ChangedFile| change.kind == ChangeKind::Removed && change.path == *current;
        self.changes.iter().any(|change| removes(&change))
    }

    /// Whether the unit has another file when the one at `place` is gone.
    fn stays_otherwise(&self, place: &str, unit: &UnitFacts) -> bool {
        let name = place.rsplit('/').next().unwrap_or_default();
        let brought = UNIT_DIRECTORIES.iter().map(|directory| format!("{directory}{name}"));
        let mut brought = brought.filter(|other| other != place);
        let removed = |path: &Vec<u8>| self.removes(path);
        brought.any(|other| self.brings(other.as_bytes()))
            || unit.shadowed.iter().map(canonical).any(|path| !removed(&path))
            // The unit is read from elsewhere, and that stays.
            || unit.files.first().map(canonical).is_some_and(|path| {
                path != place.as_bytes() && !removed(&path)
            })
    }

    /// Starts what is new and enabled; nothing that was there and did not run, unless the policy
    /// says so.
    pub(super) fn settle_enabling(&mut self) {
        for enabling in std::mem::take(&mut self.enabling) {
            let known = self.index.unit(&enabling.unit);
            let is_up = known.is_some_and(|at| self.index.units[at].facts.active.is_up());
            if enabling.removed {
                self.settle_disabled(known.filter(|_| is_up), enabling);
            } else if !is_up && self.may_start(known, &enabling) {
                self.start(&enabling.unit, enabling.evidence);
            }
        }
    }

    fn settle_disabled(&mut self, unit: Option<usize>, enabling: Enabling) {
        let Some(at) = unit else { return };
        let moved = UNIT_DIRECTORIES.iter().any(|directory| {
            let Enabling { unit, by, .. } = &enabling;
            ["wants", "requires", "upholds"]
                .iter()
                .any(|dir| self.brings(format!("{directory}{by}.{dir}/{unit}").as_bytes()))
        });
        let already = self.units.contains_key(&self.index.units[at].facts.name);
        if !moved && !already && self.policy.defaults().on_disable == OnDisable::Stop {
            self.ask_for(at, Action::Stop, enabling.evidence);
        }
    }

    fn may_start(&self, known: Option<usize>, enabling: &Enabling) -> bool {
        let facts = |at: usize| self.index.units[at].facts;
        let masked = known.is_some_and(|at| facts(at).masked || facts(at).refuse_manual_start);
        // What is to start with something that does not run itself is not to start now.
        let waits = self.index.unit(&enabling.by).is_some_and(|at| !facts(at).active.is_up());
        let failed = known.is_some_and(|at| facts(at).active == ActiveState::Failed);
        let wanted = match self.policy.defaults().start_enabled {
            StartEnabled::Never => false,
            StartEnabled::New => known.is_none() && self.brings_unit(&enabling.unit),
            StartEnabled::Always => known.is_some() || self.brings_unit(&enabling.unit),
        };
        wanted && !masked && !waits && !failed && self.facts.manager
    }

    /// Whether the update brings the unit's file, or its template's.
    fn brings_unit(&self, unit: &Unit) -> bool {
        let template = format!("{}@.{}", unit.stem(), unit.kind());
        UNIT_DIRECTORIES.iter().any(|directory| {
            self.brings(format!("{directory}{unit}").as_bytes())
                || unit.instance().is_some()
                    && self.brings(format!("{directory}{template}").as_bytes())
        })
    }

    fn start(&mut self, unit: &Unit, evidence: Evidence) {
        match self.policy.hold_reason(unit) {
            Some(why) => self.hold(unit, &why, evidence),
            None => self.note(unit, Action::Start, None, evidence),
        }
    }
}

/// Whether the unit is read from another file of the same name that weighs more than `place`.
fn is_overruled(place: &str, unit: &UnitFacts) -> bool {
    let weight = |path: &str| UNIT_DIRECTORIES.iter().position(|dir| path.starts_with(dir));
    let Some(current) = unit.files.first().map(canonical) else { return false };
    let current = String::from_utf8_lossy(&current);
    let same_name = current.rsplit('/').next() == place.rsplit('/').next();
    match (weight(&current), weight(place)) {
        (Some(current), Some(changed)) => same_name && current < changed,
        _ => false,
    }
}

/// Whether the file at `place` has the unit's name or its template's, and not only an alias.
fn is_own_name(place: &str, unit: &UnitFacts) -> bool {
    unit.name.is_or_instantiates(place.rsplit('/').next().unwrap_or_default())
}

fn only_options_change(change: &ChangedFile) -> bool {
    let keys = change.details.unit_keys.as_ref();
    keys.is_some_and(|keys| keys.iter().all(|key| key == "Mount.Options"))
}

/// Whom a file in a unit directory is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    /// One unit or the instances of one template.
    Unit(String),
    /// All units whose name starts so and ends in that type: `foo-.service.d`.
    Prefix(String, String),
    /// All units of one type: `service.d`.
    Type(String),
    /// A link: the first unit starts with the second.
    Enabling(String, String),
    /// None in particular.
    Nobody,
}

fn subject_of(place: &str) -> Subject {
    let Some((_, rest)) = place.split_once("/systemd/system/") else { return Subject::Nobody };
    let Some((dir, file)) = rest.split_once('/') else { return Subject::Unit(rest.to_owned()) };
    for suffix in [".wants", ".requires", ".upholds"] {
        if let Some(by) = dir.strip_suffix(suffix) {
            return Subject::Enabling(file.to_owned(), by.to_owned());
        }
    }
    match dir.strip_suffix(".d") {
        Some(name) if name.contains("-.") => {
            let (stem, kind) = name.rsplit_once('.').unwrap_or((name, ""));
            Subject::Prefix(stem.to_owned(), kind.to_owned())
        }
        Some(name) if name.contains('.') => Subject::Unit(name.to_owned()),
        Some(kind) => Subject::Type(kind.to_owned()),
        None => Subject::Nobody,
    }
}

impl Subject {
    fn covers(&self, unit: &UnitFacts) -> bool {
        match self {
            Self::Unit(name) => {
                unit.name.is_or_instantiates(name)
                    || unit.aliases.iter().any(|alias| alias.is_or_instantiates(name))
            }
            Self::Prefix(stem, kind) => {
                unit.name.as_str().starts_with(stem.as_str()) && unit.name.kind() == kind
            }
            Self::Type(_) | Self::Enabling(..) | Self::Nobody => false,
        }
    }
}
