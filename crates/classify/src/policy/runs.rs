//! Commands that the policy knows: tools, checkers and probes. Argument vectors, never a shell.

use vireo_model::ImagePath;

use super::Layers;
use super::entries::{ProbeEntry, ToolEntry, ValidateEntry};
use super::file::PolicyFile;
use super::table::{Table, globs};
use crate::class::canonical;
use crate::glob::Globs;
use crate::plan::Probe;
use crate::{ClassifyError, Tool, Unit};

/// A tool and when it is run.
#[derive(Clone, Debug)]
pub(crate) struct ToolRule {
    pub(crate) stage: Tool,
    run: Vec<String>,
    run_keys: Option<(Vec<String>, String)>,
    /// Its output: if the update brings that, the tool is not run.
    pub(crate) unless: Globs,
    /// What must exist for it to make sense.
    pub(crate) needs: Option<String>,
    /// Whether a removed file is a reason too.
    pub(crate) removed: bool,
}

impl ToolRule {
    fn of_entry(file: &PolicyFile, entry: &ToolEntry) -> Result<Self, ClassifyError> {
        Ok(Self {
            stage: entry.stage,
            run: entry.run.0.clone(),
            run_keys: entry.run_keys.clone().map(|run| (run.0, entry.key.clone())),
            unless: globs(file, &entry.unless)?,
            needs: entry.needs.clone(),
            removed: entry.removed,
        })
    }

    /// Its command line with nothing filled in.
    pub(crate) fn words(&self) -> &[String] {
        &self.run
    }

    /// Its command line for the file at `path`, of whose settings only `keys` changed.
    pub(crate) fn command(&self, path: &ImagePath, keys: Option<&[String]>) -> Vec<String> {
        match (&self.run_keys, keys) {
            (Some((run, before)), Some(keys)) if !keys.is_empty() => {
                let listed = |word: &String| match word.as_str() {
                    "{keys}" => keys.iter().map(|key| format!("{before}{key}")).collect(),
                    _ => vec![fill_in(word, path)],
                };
                run.iter().flat_map(listed).collect()
            }
            _ => self.run.iter().map(|word| fill_in(word, path)).collect(),
        }
    }
}

fn fill_in(word: &str, path: &ImagePath) -> String {
    if !word.contains('{') {
        return word.to_owned();
    }
    let word = word
        .replace("{name}", &String::from_utf8_lossy(path.name()))
        .replace("{path}", &String::from_utf8_lossy(path.as_bytes()));
    if has_parts(&word) { with_parts(&word, &canonical(path)).unwrap_or(word) } else { word }
}

/// Most components of a path that can be named by their number.
const PARTS_MAX: usize = 9;

/// Whether parts of a path are to be filled in: `{1}` to `{9}` or `{stem}`.
pub(super) fn has_parts(text: &str) -> bool {
    text.contains("{stem}") || (1..=PARTS_MAX).any(|number| text.contains(&format!("{{{number}}}")))
}

/// `text` with the components of `place` by their number, and its last one without its ending;
/// none if it has not so many.
pub(super) fn with_parts(text: &str, place: &[u8]) -> Option<String> {
    let place = std::str::from_utf8(place).ok()?;
    let parts: Vec<&str> = place.split('/').skip(1).collect();
    let name = parts.last()?;
    let mut filled = text.replace("{stem}", name.rsplit_once('.').map_or(name, |(stem, _)| stem));
    for number in 1..=PARTS_MAX {
        let key = format!("{{{number}}}");
        if filled.contains(&key) {
            filled = filled.replace(&key, parts.get(number - 1)?);
        }
    }
    Some(filled)
}

/// A checker of configuration.
#[derive(Clone, Debug)]
pub(crate) struct CheckRule {
    run: Vec<String>,
    units: Globs,
    /// The program that must be there.
    pub(crate) needs: String,
}

impl CheckRule {
    fn of_entry(file: &PolicyFile, entry: &ValidateEntry) -> Result<Self, ClassifyError> {
        let program = entry.run.0.first().cloned().unwrap_or_default();
        Ok(Self {
            run: entry.run.0.clone(),
            units: globs(file, &entry.unit)?,
            needs: entry.needs.clone().unwrap_or(program),
        })
    }

    pub(crate) fn command(&self, path: &ImagePath) -> Vec<String> {
        self.run.iter().map(|word| fill_in(word, path)).collect()
    }

    /// Whether it is run for each file by itself, so that one that is gone cannot be checked.
    pub(crate) fn is_per_file(&self) -> bool {
        self.run.iter().any(|word| word.contains("{path}") || word.contains("{name}"))
    }

    pub(crate) fn checks_for(&self, unit: &Unit) -> bool {
        !self.units.is_empty() && self.units.first(unit.as_str().as_bytes()).is_some()
    }
}

/// All commands.
#[derive(Clone, Debug)]
pub(super) struct Runs {
    pub(super) tools: Table<ToolRule>,
    pub(super) checks: Table<CheckRule>,
    pub(super) probes: Table<Probe>,
}

impl Runs {
    pub(super) fn compile(layers: &Layers<'_>) -> Result<Self, ClassifyError> {
        let tools = layers.entries(|content| &content.tool);
        let tools = tools.map(|(file, e)| Ok((file, &e.path, ToolRule::of_entry(file, e)?)));
        let checks = layers.entries(|content| &content.validate);
        let checks = checks.map(|(file, e)| Ok((file, &e.path, CheckRule::of_entry(file, e)?)));
        let probes = layers.entries(|content| &content.probe);
        let probes = probes.map(|(file, entry)| (file, &entry.unit, probe_of(entry)));
        Ok(Self {
            tools: Table::compile(tools.collect::<Result<Vec<_>, ClassifyError>>()?)?,
            checks: Table::compile(checks.collect::<Result<Vec<_>, ClassifyError>>()?)?,
            probes: Table::compile(probes)?,
        })
    }

    pub(super) fn tools_for(&self, path: &ImagePath) -> impl Iterator<Item = &ToolRule> {
        self.tools.matching(&canonical(path)).map(|(_, rule)| rule)
    }

    pub(super) fn checks_for(&self, path: &ImagePath) -> impl Iterator<Item = &CheckRule> {
        self.checks.matching(&canonical(path)).map(|(_, rule)| rule)
    }

    pub(super) fn probes_of(&self, unit: &Unit) -> impl Iterator<Item = &Probe> {
        self.probes.matching(unit.as_str().as_bytes()).map(|(_, probe)| probe)
    }
}

fn probe_of(entry: &ProbeEntry) -> Probe {
    Probe {
        command: entry.run.0.clone(),
        user: entry.user.clone(),
        expect: entry.expect.clone(),
        on_failure: entry.on_failure,
    }
}
