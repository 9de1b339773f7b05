//! Facts, arranged so that a file finds what it concerns without a look at every unit.

use std::collections::{BTreeMap, HashMap};

use vireo_model::ImagePath;

use crate::class::canonical;
use crate::policy::UnitRule;
use crate::{DeclaredBy, Facts, FileId, Policy, Process, Unit, UnitFacts};

/// A unit with what may be done to it.
pub(super) struct UnitView<'a> {
    pub(super) facts: &'a UnitFacts,
    pub(super) rule: UnitRule,
}

/// A unit that declares a path, and whether it names the path itself or a directory above it.
#[derive(Clone, Copy)]
pub(super) struct Declaration {
    pub(super) unit: usize,
    pub(super) by: DeclaredBy,
    pub(super) exact: bool,
}

/// A tree that is a unit's own.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Tree {
    unit: usize,
    /// Of a script that an interpreter is told to run: files of the same ending alone.
    ending: Option<&'static [u8]>,
    /// Where the program is.
    dir: Vec<u8>,
}

/// Units by what leads to them. Lists are in the order of the units' names.
pub(super) struct Index<'a> {
    pub(super) units: Vec<UnitView<'a>>,
    names: HashMap<&'a str, usize>,
    stems: HashMap<&'a str, Vec<usize>>,
    /// The same for the stems of aliases.
    aliases: HashMap<&'a str, Vec<usize>>,
    declared: HashMap<Vec<u8>, Vec<(usize, DeclaredBy)>>,
    programs: HashMap<Vec<u8>, Vec<usize>>,
    files: HashMap<Vec<u8>, Vec<usize>>,
    /// Units by the files that they were generated from.
    sources: HashMap<Vec<u8>, Vec<usize>>,
    /// Units by the paths that they run, read or work in, for what lies below a path.
    used: BTreeMap<Vec<u8>, Vec<usize>>,
    /// Units by the trees that are their programs' own, `/opt/NAME`.
    trees: HashMap<Vec<u8>, Vec<Tree>>,
    holders: HashMap<FileId, Vec<&'a Process>>,
}

impl<'a> Index<'a> {
    pub(super) fn new(facts: &'a Facts, policy: &Policy) -> Self {
        let views = facts.units.values();
        let units: Vec<UnitView<'a>> =
            views.map(|facts| UnitView { facts, rule: policy.unit_rule_of(facts) }).collect();
        let mut index = Self {
            units: Vec::new(),
            names: HashMap::new(),
            stems: HashMap::new(),
            aliases: HashMap::new(),
            declared: HashMap::new(),
            programs: HashMap::new(),
            files: HashMap::new(),
            sources: HashMap::new(),
            used: BTreeMap::new(),
            trees: HashMap::new(),
            holders: HashMap::new(),
        };
        for (at, view) in units.iter().enumerate() {
            index.add(at, view.facts);
        }
        let mut processes: Vec<&Process> = facts.processes.iter().collect();
        processes.sort_by_key(|process| process.pid);
        for process in processes {
            for file in &process.holds {
                index.holders.entry(*file).or_default().push(process);
            }
        }
        index.units = units;
        index
    }

    fn add(&mut self, at: usize, unit: &'a UnitFacts) {
        // A name of its own counts before another unit's alias.
        self.names.insert(unit.name.as_str(), at);
        for alias in &unit.aliases {
            self.names.entry(alias.as_str()).or_insert(at);
        }
        self.stems.entry(unit.name.stem()).or_default().push(at);
        for alias in unit.aliases.iter().filter(|alias| alias.stem() != unit.name.stem()) {
            self.aliases.entry(alias.stem()).or_default().push(at);
        }
        for file in &unit.files {
            self.files.entry(canonical(file)).or_default().push(at);
        }
        if let Some(source) = &unit.source {
            self.sources.entry(canonical(source)).or_default().push(at);
        }
        let mut own: Vec<(Vec<u8>, Tree)> = Vec::new();
        for declared in &unit.declared {
            let place = canonical(&declared.path);
            if let Some(ending) = ending_of(&place).filter(|_| declared.by == DeclaredBy::Argument)
            {
                let tree = Tree { unit: at, ending: Some(ending), dir: dir_of(&place) };
                own.extend(tree_of(&place).map(|root| (root, tree)));
            }
            if !matches!(declared.by, DeclaredBy::Other | DeclaredBy::Helper) {
                self.used.entry(place.clone()).or_default().push(at);
            }
            self.declared.entry(place).or_default().push((at, declared.by));
        }
        // What runs beside the main program is over.
        for program in unit.programs.iter().take(1) {
            let place = canonical(program);
            let tree = Tree { unit: at, ending: None, dir: dir_of(&place) };
            own.extend(tree_of(&place).map(|root| (root, tree)));
            self.used.entry(place.clone()).or_default().push(at);
            self.programs.entry(place).or_default().push(at);
        }
        own.sort();
        own.dedup();
        for (root, tree) in own {
            self.trees.entry(root).or_default().push(tree);
        }
    }

    /// The units that a generator made from the file at `place`.
    pub(super) fn units_from(&self, place: &[u8]) -> &[usize] {
        self.sources.get(place).map_or(&[], Vec::as_slice)
    }

    /// The units that run, read or work in something at `place`, as a directory, or below it.
    pub(super) fn units_below(&self, place: &[u8]) -> Vec<usize> {
        let inside = [place, b"/"].concat();
        let below =
            self.used.range(inside.clone()..).take_while(|(path, _)| path.starts_with(&inside));
        let mut units: Vec<usize> = below.flat_map(|(_, units)| units).copied().collect();
        let there = self.declared.get(place).into_iter().flatten();
        let works = there.filter(|(_, by)| *by == DeclaredBy::WorkingDirectory);
        units.extend(works.map(|(unit, _)| *unit));
        units.sort_unstable();
        units.dedup();
        units
    }

    /// The units whose programs' own tree `place` is in. Code right beside a program may be another
    /// program as well as a part of it: that says nothing.
    pub(super) fn units_of_tree(&self, place: &[u8], is_code: bool) -> Vec<usize> {
        if self.trees.is_empty() || !in_own_tree(place) {
            return Vec::new();
        }
        let ends = place.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let trees = ends.filter_map(|end| self.trees.get(&place[..end])).flatten();
        let its = trees.filter(|tree| tree.ending.is_none_or(|ending| place.ends_with(ending)));
        let its = its.filter(|tree| !is_code || tree.dir != dir_of(place));
        let mut units: Vec<usize> = its.map(|tree| tree.unit).collect();
        units.sort_unstable();
        units.dedup();
        units
    }

    /// The units that are read from the file at `place`, or whose drop-in it is.
    pub(super) fn units_of_file(&self, place: &[u8]) -> &[usize] {
        self.files.get(place).map_or(&[], Vec::as_slice)
    }

    /// The unit of this name or alias.
    pub(super) fn unit(&self, name: &Unit) -> Option<usize> {
        self.names.get(name.as_str()).copied()
    }

    /// Whether the unit is an instance that a socket started for one connection
    /// (`Accept=yes`): its name has the connection's number first (`systemd.socket(5)`).
    pub(super) fn serves_one_connection(&self, unit: &UnitFacts) -> bool {
        let number = unit.name.instance().and_then(|instance| instance.split('-').next());
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        number.is_some_and(is_number)
            && self.unit(&Unit::new(format!("{}.socket", unit.name.stem()))).is_some()
    }

    pub(super) fn units_with_stem(&self, stem: &str) -> &[usize] {
        self.stems.get(stem).map_or(&[], Vec::as_slice)
    }

    /// The units one of whose aliases has this stem.
    pub(super) fn units_with_alias(&self, stem: &str) -> &[usize] {
        self.aliases.get(stem).map_or(&[], Vec::as_slice)
    }

    /// The units whose main program is at `place`.
    pub(super) fn units_running(&self, place: &[u8]) -> &[usize] {
        self.programs.get(place).map_or(&[], Vec::as_slice)
    }

    pub(super) fn holders(&self, file: FileId) -> &[&'a Process] {
        self.holders.get(&file).map_or(&[], Vec::as_slice)
    }

    /// The units that declare the path or a directory above it; each once, with what weighs most:
    /// that only a start reads it, then that it is named itself.
    pub(super) fn declarations(&self, path: &ImagePath) -> Vec<Declaration> {
        let place = canonical(path);
        let mut found: Vec<Declaration> = Vec::new();
        let ends = place.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.skip(1).chain([place.len()]) {
            let exact = end == place.len();
            for &(unit, by) in self.declared.get(&place[..end]).map_or(&[][..], Vec::as_slice) {
                found.push(Declaration { unit, by, exact });
            }
        }
        found.sort_by_key(|d| (d.unit, !d.by.needs_start(), !d.exact, d.by));
        found.dedup_by_key(|d| d.unit);
        found
    }
}

/// Places where each directory is a program of its own with all that belongs to it
/// (`hier(7)`, FHS 3.0 section 3.13).
const OWN_TREES: &[&[u8]] = &[b"/opt/", b"/srv/"];

/// Directories of such a program.
const PARTS_OF_TREES: &[&[u8]] =
    &[b"bin", b"sbin", b"libexec", b"lib", b"lib64", b"conf", b"config", b"etc", b"scripts"];

/// Endings of files that interpreters and virtual machines run.
const CODE_ENDINGS: &[&[u8]] =
    &[b".py", b".pl", b".rb", b".js", b".mjs", b".cjs", b".sh", b".jar", b".php", b".lua"];

fn in_own_tree(place: &[u8]) -> bool {
    OWN_TREES.iter().any(|start| place.starts_with(start))
}

fn ending_of(place: &[u8]) -> Option<&'static [u8]> {
    CODE_ENDINGS.iter().find(|ending| place.ends_with(ending)).copied()
}

/// The directory of the file at `place`.
fn dir_of(place: &[u8]) -> Vec<u8> {
    let end = place.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    place[..end].to_vec()
}

/// The tree that the program at `place` belongs to: `/opt/x` for `/opt/x/bin/y`.
fn tree_of(place: &[u8]) -> Option<Vec<u8>> {
    if !in_own_tree(place) {
        return None;
    }
    let parts: Vec<&[u8]> = place.split(|byte| *byte == b'/').skip(1).collect();
    let (_, directories) = parts.split_last()?;
    let part = directories.iter().skip(2).position(|part| PARTS_OF_TREES.contains(part));
    let len = part.map_or(directories.len(), |at| at + 2);
    (len >= 2).then(|| directories[..len].iter().flat_map(|part| [b"/", *part].concat()).collect())
}
