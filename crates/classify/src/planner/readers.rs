//! Files that units read: configuration, programs, libraries, scripts, content.
//!
//! Who reads a file is known from several sources. A unit is asked for what the strongest source
//! that speaks of it says; weak sources speak only where no strong one does.

use std::collections::{BTreeMap, BTreeSet};

use vireo_model::ChangeKind;

use super::{Effect, Work, evidence, rule_of};
use crate::class::canonical;
use crate::plan::{Action, Evidence, Rule};
use crate::policy::{FileRule, Layer};
use crate::{ChangedFile, Class, DeclaredBy, Op, Phase, Unit};

/// Readers found for one file: what each unit needs, and why.
#[derive(Default)]
struct Readers {
    by_unit: BTreeMap<usize, (Option<Effect>, Evidence)>,
    /// Somebody is known to read the file, be it a unit that is not here.
    claimed: bool,
}

impl Readers {
    /// Notes that `unit` needs `effect` (none: nothing), unless a stronger source spoke of it.
    fn add(&mut self, unit: usize, effect: Option<Effect>, evidence: Evidence) {
        self.claimed = true;
        self.by_unit.entry(unit).or_insert((effect, evidence));
    }
}

impl Work<'_> {
    pub(super) fn consider_configuration(
        &mut self,
        change: &ChangedFile,
        rule: Option<&FileRule<'_>>,
    ) {
        if rule.is_some_and(|rule| rule.shared) {
            return self.report_shared(change);
        }
        let held = self.ask_holders(change, Effect::Reload);
        let mut readers = Readers { claimed: held, ..Readers::default() };
        self.add_learned(change, rule, &mut readers);
        self.add_declared(change, rule, &mut readers);
        self.add_from_pack(change, rule, &mut readers);
        if !readers.claimed {
            self.add_namesakes(change, &mut readers);
        }
        if !readers.claimed {
            self.add_of_tree(change, &mut readers);
        }
        if !readers.claimed {
            self.add_of_package(change, &mut readers);
        }
        if !readers.claimed {
            self.plan.unclaimed.push(change.path.to_string());
        }
        self.ask_readers(readers, rule);
    }

    /// Programs, libraries, modules, scripts: who holds the replaced file must start anew. An
    /// interpreter closes the scripts it reads, so for these the other sources count too.
    pub(super) fn consider_code(&mut self, change: &ChangedFile, rule: Option<&FileRule<'_>>) {
        let held = self.ask_holders(change, Effect::Restart);
        if change.kind == ChangeKind::Removed {
            self.hold_who_lose_their_program(change);
        }
        if !is_interpreted(change) {
            return self.ask_readers(Readers::default(), rule);
        }
        let mut readers = Readers { claimed: held, ..Readers::default() };
        self.add_learned(change, rule, &mut readers);
        self.add_declared(change, rule, &mut readers);
        self.add_running(change, &mut readers);
        if !readers.claimed && change.class == Class::Script {
            self.add_working_there(change, rule, &mut readers);
        }
        if !readers.claimed {
            self.add_of_tree(change, &mut readers);
        }
        self.ask_readers(readers, rule);
    }

    /// Who runs a program that goes away could not start again, unless its unit changes too.
    fn hold_who_lose_their_program(&mut self, change: &ChangedFile) {
        let named = self.index.declarations(&change.path).into_iter();
        let named = named.filter(|found| found.exact && found.by == DeclaredBy::Argument);
        let running = self.index.units_running(&canonical(&change.path)).iter().copied();
        for unit in running.chain(named.map(|found| found.unit)).collect::<Vec<_>>() {
            let facts = self.index.units[unit].facts;
            let own = facts.files.iter().map(canonical);
            let changes = self.brings(&canonical(&change.path))
                || own.into_iter().any(|file| self.brings(&file) || self.removes(&file));
            if facts.active.is_up() && !facts.is_done() && !changes {
                let evidence = evidence(change, Rule::Declared, "the program it runs".to_owned());
                self.hold(&facts.name, "its program goes away: it could not start again", evidence);
            }
        }
    }

    /// Content is read anew each time, unless somebody is known to keep what it read.
    pub(super) fn consider_content(&mut self, change: &ChangedFile, rule: Option<&FileRule<'_>>) {
        let op = rule.and_then(|rule| rule.op);
        if op == Some(Op::Hold) {
            self.hold_holders(change);
        } else if op != Some(Op::None) {
            self.ask_holders(change, Effect::Reload);
        }
        let mut readers = Readers::default();
        if !self.reads.is_shared(&change.path) {
            self.add_learned(change, rule, &mut readers);
        }
        for declared in self.index.declarations(&change.path) {
            if declared.exact && declared.by != DeclaredBy::WorkingDirectory {
                self.add_declaration(change, rule, declared, &mut readers);
            }
        }
        self.ask_readers(readers, rule);
        self.ask_named(change, rule);
    }

    /// Asks the units that the rule names, of whatever class the file is.
    pub(super) fn ask_named(&mut self, change: &ChangedFile, rule: Option<&FileRule<'_>>) {
        let Some(rule) = rule else { return };
        let mut readers = Readers::default();
        let default = if change.class.is_code() { Effect::Restart } else { Effect::Reload };
        for unit in self.units_named(rule) {
            let evidence = evidence(change, rule_of(rule.layer), format!("rule {}", rule.pattern));
            readers.add(unit, effect_of(op_for(rule, change), default), evidence);
        }
        self.ask_readers(readers, Some(rule));
    }

    fn ask_readers(&mut self, readers: Readers, rule: Option<&FileRule<'_>>) {
        let held_by_policy = rule.is_some_and(|rule| rule.op == Some(Op::Hold));
        for (unit, (effect, evidence)) in readers.by_unit {
            let facts = self.index.units[unit].facts;
            match effect {
                Some(_) if held_by_policy && facts.active.is_up() => {
                    self.note(&facts.name, Action::Hold, Some("the policy holds it"), evidence);
                }
                Some(effect) => self.ask(unit, effect, evidence),
                None => {}
            }
        }
    }

    fn report_shared(&mut self, change: &ChangedFile) {
        let note = format!(
            "{}: most programs read it through a library; restart them when it suits",
            change.path
        );
        self.plan.notes.push(note);
    }

    /// Units that were seen to read the file, or, if nobody was, to list its directory.
    fn add_learned(
        &mut self,
        change: &ChangedFile,
        rule: Option<&FileRule<'_>>,
        readers: &mut Readers,
    ) {
        let asked = rule.is_some_and(|rule| rule.layer != Layer::Pack);
        let code = change.class.is_code();
        if !asked && !code && self.reads.is_shared(&change.path) {
            readers.claimed = true;
            return self.report_shared(change);
        }
        let reads = self.reads;
        let led_to = change.details.led_to.as_ref();
        let found = reads.readers_of(&change.path);
        if let Some(found) = found.or_else(|| reads.readers_of(led_to?)) {
            for (unit, phases) in found {
                self.add_reader(change, rule, unit, phases, "seen to read it", readers);
            }
        } else if change.class.is_configuration() {
            for (unit, phases) in reads.listers_of(&change.path) {
                self.add_reader(change, rule, unit, phases, "seen to list its directory", readers);
            }
        }
    }

    fn add_reader(
        &self,
        change: &ChangedFile,
        rule: Option<&FileRule<'_>>,
        unit: &Unit,
        phases: &BTreeSet<Phase>,
        how: &str,
        readers: &mut Readers,
    ) {
        readers.claimed = true;
        let Some(at) = self.index.unit(unit) else { return };
        let words: Vec<&str> = phases.iter().map(|phase| phase.as_str()).collect();
        let source = format!("{how}: {}", words.join(", "));
        let effect = self.effect_of_read(change, rule, at, phases);
        readers.add(at, effect, evidence(change, Rule::Learned, source));
    }

    /// What makes a unit take up a file that it was seen to read in these phases.
    fn effect_of_read(
        &self,
        change: &ChangedFile,
        rule: Option<&FileRule<'_>>,
        unit: usize,
        phases: &BTreeSet<Phase>,
    ) -> Option<Effect> {
        let view = &self.index.units[unit];
        let stated = rule.filter(|rule| rule.layer != Layer::Pack || rule.names(&view.facts.name));
        if let Some(rule) = stated.filter(|rule| rule.layer != Layer::Pack) {
            return effect_of(op_for(rule, change), Effect::Reload);
        }
        if stated.is_some_and(|rule| rule.needs_restart_for(change.details.config_keys.as_ref())) {
            return Some(Effect::Restart);
        }
        if phases.contains(&Phase::Run) {
            return None;
        }
        if phases.contains(&Phase::Reload) {
            return Some(Effect::Reload);
        }
        // Only a start was seen to read it. If reloads were watched too, they do not.
        let reload_does_not = self.reads.was_watched(&view.facts.name, Phase::Reload);
        Some(match stated.and_then(|rule| rule.op) {
            _ if reload_does_not => Effect::Restart,
            _ if change.class.is_code() => self.effect_on_code(unit),
            Some(Op::Restart) => Effect::Restart,
            _ => Effect::Reload,
        })
    }

    fn effect_on_code(&self, unit: usize) -> Effect {
        if self.index.units[unit].rule.reload_rereads_code {
            Effect::Reload
        } else {
            Effect::Restart
        }
    }

    /// Units whose files name the path. Where it is only below a directory that they name, a
    /// watched start says more: the file was there and was not read.
    fn add_declared(
        &mut self,
        change: &ChangedFile,
        rule: Option<&FileRule<'_>>,
        readers: &mut Readers,
    ) {
        let found = self.index.declarations(&change.path);
        let named = found.iter().any(|found| found.exact && found.by == DeclaredBy::Argument);
        for declared in found {
            // A directory of modules is for code alone; one that is mounted says nothing.
            let exact_only = matches!(declared.by, DeclaredBy::Environment | DeclaredBy::Bind)
                || change.class == Class::Module;
            if declared.by == DeclaredBy::WorkingDirectory || exact_only && !declared.exact {
                continue;
            }
            // Who names the file itself knows better than who names a directory above it.
            if named && !declared.exact && declared.by == DeclaredBy::Argument {
                continue;
            }
            if declared.exact || !self.is_known_not_to_read(declared.unit, change) {
                self.add_declaration(change, rule, declared, readers);
            }
        }
    }

    fn add_declaration(
        &self,
        change: &ChangedFile,
        rule: Option<&FileRule<'_>>,
        declared: super::index::Declaration,
        readers: &mut Readers,
    ) {
        let view = &self.index.units[declared.unit];
        let stated = rule.filter(|rule| rule.layer != Layer::Pack || rule.names(&view.facts.name));
        let effect = match stated.and_then(|rule| op_for(rule, change)) {
            _ if declared.by.needs_start() => Some(Effect::Restart),
            // A condition is looked at when the unit starts: no reason for another start.
            _ if declared.by == DeclaredBy::Other && !view.facts.can_reload => None,
            _ if declared.by == DeclaredBy::Helper && change.class.is_code() => None,
            Some(op) => effect_of(Some(op), Effect::Reload),
            None if change.class.is_code() => Some(self.effect_on_code(declared.unit)),
            None => Some(Effect::Reload),
        };
        let path = view.facts.declared.iter().filter(|d| d.by == declared.by);
        let place = canonical(&change.path);
        let named = path.map(|d| &d.path).filter(|path| place.starts_with(&canonical(path))).max();
        let named = named.unwrap_or(&change.path);
        let source = format!("{} {named}", declared.by.as_str());
        readers.add(declared.unit, effect, evidence(change, Rule::Declared, source));
    }

    /// Units that run the script itself.
    fn add_running(&mut self, change: &ChangedFile, readers: &mut Readers) {
        for &unit in self.index.units_running(&canonical(&change.path)) {
            let effect = self.effect_on_code(unit);
            let evidence = evidence(change, Rule::Declared, "the program it runs".to_owned());
            readers.add(unit, Some(effect), evidence);
        }
    }

    /// Units that work in a directory above a script: they may load it.
    fn add_working_there(
        &mut self,
        change: &ChangedFile,
        rule: Option<&FileRule<'_>>,
        readers: &mut Readers,
    ) {
        for declared in self.index.declarations(&change.path) {
            let working = declared.by == DeclaredBy::WorkingDirectory;
            if working && !self.is_known_not_to_read(declared.unit, change) {
                self.add_declaration(change, rule, declared, readers);
            }
        }
    }

    /// Units whose program's own tree the file is in: the program is in it, too.
    fn add_of_tree(&self, change: &ChangedFile, readers: &mut Readers) {
        let code = change.class.is_code();
        for unit in self.index.units_of_tree(&canonical(&change.path), code) {
            if self.is_known_not_to_read(unit, change) {
                continue;
            }
            let effect = if code { self.effect_on_code(unit) } else { Effect::Reload };
            let source = "in its program's own tree".to_owned();
            readers.add(unit, Some(effect), evidence(change, Rule::Declared, source));
        }
    }

    /// A link that leads elsewhere takes along who runs, reads or works in what is below it.
    pub(super) fn consider_link(&mut self, change: &ChangedFile) {
        let is_link = change.details.links_to.is_some() && change.details.led_to.is_some();
        let deep = change.path.components().count() >= 2;
        if !is_link || !deep || change.kind != ChangeKind::Modified || change.class == Class::Unit {
            return;
        }
        for unit in self.index.units_below(&canonical(&change.path)) {
            let effect = self.effect_on_code(unit);
            let source = "what it uses lies below this link".to_owned();
            self.ask(unit, effect, evidence(change, Rule::Declared, source));
        }
    }

    /// Units that the rule pack names. A watched start that did not read the file weighs more
    /// than a rule that would restart the unit for it.
    fn add_from_pack(
        &mut self,
        change: &ChangedFile,
        rule: Option<&FileRule<'_>>,
        readers: &mut Readers,
    ) {
        let Some(rule) = rule.filter(|rule| rule.layer == Layer::Pack) else { return };
        for unit in self.units_named(rule) {
            let effect = effect_of(op_for(rule, change), Effect::Reload);
            let restarts =
                effect == Some(Effect::Restart) || !self.index.units[unit].facts.can_reload;
            if restarts && self.is_known_not_to_read(unit, change) {
                continue;
            }
            let evidence = evidence(change, Rule::RulePack, format!("rule {}", rule.pattern));
            readers.add(unit, effect, evidence);
        }
        readers.claimed |= rule.names_units() || rule.op.is_some();
    }

    /// The units that a rule names. One that only stands for its instances, as
    /// `postgresql.service` for `postgresql@15-main.service`, is left out where these run.
    fn units_named(&self, rule: &FileRule<'_>) -> Vec<usize> {
        let units = self.index.units.iter().enumerate();
        let named = units.filter(|(_, view)| rule.names(&view.facts.name)).map(|(at, _)| at);
        let stands_for_others = |at: &usize| {
            let facts = self.index.units[*at].facts;
            let is_instance = |other: &usize| {
                let other = self.index.units[*other].facts;
                other.name.instance().is_some()
                    && other.name.kind() == facts.name.kind()
                    && other.active.is_up()
            };
            facts.is_done()
                && facts.name.instance().is_none()
                && self.index.units_with_stem(facts.name.stem()).iter().any(is_instance)
        };
        named.filter(|at| !stands_for_others(at)).collect()
    }

    /// Whether the unit's start was watched and it did not read the file, which was there.
    fn is_known_not_to_read(&self, unit: usize, change: &ChangedFile) -> bool {
        let name = &self.index.units[unit].facts.name;
        change.kind == ChangeKind::Modified
            && self.reads.was_watched(name, Phase::Start)
            && !self.reads.readers_of(&change.path).is_some_and(|found| found.contains_key(name))
    }

    /// Whether `unit` cannot have taken up `change` without reading it: it was seen to read the
    /// file, or files of the same ending in its directory, or its unit file names it.
    pub(super) fn must_read(&self, unit: usize, change: &ChangedFile, rule: Rule) -> bool {
        if !change.class.is_configuration() || change.kind == ChangeKind::Removed {
            return false;
        }
        let name = &self.index.units[unit].facts.name;
        match rule {
            Rule::Learned => match self.reads.readers_of(&change.path) {
                Some(readers) => readers.contains_key(name),
                None => self.reads.reads_siblings_of(&change.path, name),
            },
            Rule::Declared => {
                let declared = self.index.declarations(&change.path);
                let sure = |by| {
                    matches!(
                        by,
                        DeclaredBy::Argument | DeclaredBy::EnvironmentFile | DeclaredBy::Credential
                    )
                };
                let mut own = declared.iter().filter(|declared| declared.unit == unit);
                own.any(|declared| declared.exact && sure(declared.by))
            }
            _ => false,
        }
    }

    /// Units whose name is in the path: `/etc/STEM/...`, `/etc/STEM.conf`, `/etc/STEM.d/...`,
    /// `/etc/default/STEM`.
    fn add_namesakes(&mut self, change: &ChangedFile, readers: &mut Readers) {
        let parts: Vec<&[u8]> = change.path.components().take(3).collect();
        let (stem, effect, suffixes) = match parts.as_slice() {
            [b"etc", b"default" | b"sysconfig", name] => (*name, Effect::Restart, &[""][..]),
            [b"etc", name, ..] => {
                let plain = name.strip_suffix(b".conf").or_else(|| name.strip_suffix(b".d"));
                (plain.unwrap_or(name), Effect::Reload, NAME_SUFFIXES)
            }
            _ => return,
        };
        let Ok(stem) = std::str::from_utf8(stem) else { return };
        let named = suffixes.iter().map(|suffix| self.services_called(&format!("{stem}{suffix}")));
        for unit in named.into_iter().find(|units| !units.is_empty()).unwrap_or_default() {
            if !self.is_known_not_to_read(unit, change) {
                let evidence = evidence(change, Rule::Name, format!("named like {stem}"));
                readers.add(unit, Some(effect), evidence);
            }
        }
    }

    /// The services with this stem, or with an alias of this stem.
    fn services_called(&self, stem: &str) -> Vec<usize> {
        let named = self.index.units_with_stem(stem).iter();
        let named = named.chain(self.index.units_with_alias(stem)).copied();
        named.filter(|unit| self.index.units[*unit].facts.name.kind() == "service").collect()
    }

    /// Units whose file is of the same source package: a hint too weak for a restart.
    fn add_of_package(&mut self, change: &ChangedFile, readers: &mut Readers) {
        if self.packages.owner_of(&change.path).is_none() {
            return;
        }
        for (at, view) in self.index.units.iter().enumerate() {
            let mut files = view.facts.files.iter();
            let related = files.any(|file| self.packages.are_related(&change.path, file));
            let service = view.facts.name.kind() == "service";
            if related && service && view.facts.can_reload && !self.is_known_not_to_read(at, change)
            {
                let evidence = evidence(change, Rule::Package, "of the same package".to_owned());
                readers.add(at, Some(Effect::Reload), evidence);
            }
        }
    }

    /// Set-ID bits or capabilities change: who runs the program runs with the former ones.
    pub(super) fn consider_programs_rights(&mut self, change: &ChangedFile) {
        self.ask_holders(change, Effect::Restart);
        for unit in self.index.units_running(&canonical(&change.path)).to_vec() {
            let source = "it runs with other rights".to_owned();
            self.ask(unit, Effect::Restart, evidence(change, Rule::Declared, source));
        }
    }
}

/// How units are called whose configuration has the name without it.
const NAME_SUFFIXES: &[&str] = &["", "d", "-server", "-daemon", "-agent"];

/// What the rule says that the change needs: a restart for some settings of the file.
fn op_for(rule: &FileRule<'_>, change: &ChangedFile) -> Option<Op> {
    if rule.needs_restart_for(change.details.config_keys.as_ref()) {
        Some(Op::Restart)
    } else {
        rule.op
    }
}

/// What an operation means for a reader; none: nothing.
const fn effect_of(op: Option<Op>, default: Effect) -> Option<Effect> {
    match op {
        None | Some(Op::Hold) => Some(default),
        Some(Op::Reload) => Some(Effect::Reload),
        Some(Op::Restart) => Some(Effect::Restart),
        Some(Op::None | Op::DaemonReload | Op::DaemonReexec | Op::SoftReboot | Op::Reboot) => None,
    }
}

/// Whether an interpreter reads and closes the file, instead of the kernel mapping it.
fn is_interpreted(change: &ChangedFile) -> bool {
    let name = change.path.name();
    let mapped = name.ends_with(b".so") || name.windows(4).any(|part| part == b".so.");
    match change.class {
        Class::Script => true,
        Class::Module => !mapped,
        _ => false,
    }
}
