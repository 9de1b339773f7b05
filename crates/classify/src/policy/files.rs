//! Which units read which files, and what makes them read them again.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use vireo_model::ImagePath;

use super::runs::{has_parts, with_parts};
use super::table::{Table, globs};
use super::{Layer, Layers};
use crate::class::canonical;
use crate::glob::Globs;
use crate::{ClassifyError, Unit};

/// What a changed file needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Nothing.
    None,
    /// A reload of its units, a restart of those that cannot.
    Reload,
    /// A restart of its units; a reload would not read the file.
    Restart,
    /// Its units would need something but are left alone.
    Hold,
    /// The service manager reads its files again.
    DaemonReload,
    /// The service manager executes itself anew.
    DaemonReexec,
    /// A reboot of user space.
    SoftReboot,
    /// A reboot.
    Reboot,
}

#[derive(Clone, Debug)]
pub(super) struct FileRules(Table<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    layer: Layer,
    units: Option<Globs>,
    /// Names of units with parts of the path in them, `postgresql@{3}-{4}.service`.
    templates: Vec<String>,
    op: Option<Op>,
    restart_keys: Globs,
    shared: bool,
    note: Option<String>,
}

/// What the policy says about a changed file.
pub(crate) struct FileRule<'a> {
    /// Who says it.
    pub(crate) layer: Layer,
    /// The pattern that covers the file.
    pub(crate) pattern: &'a str,
    units: Option<&'a Globs>,
    /// Names of units that the path makes.
    made: Vec<String>,
    restart_keys: &'a Globs,
    pub(crate) op: Option<Op>,
    /// Most programs read it through a library, and none for itself.
    pub(crate) shared: bool,
    pub(crate) note: Option<&'a str>,
}

impl FileRules {
    pub(super) fn compile(layers: &Layers<'_>) -> Result<Self, ClassifyError> {
        let entries = layers.entries(|content| &content.file).map(|(file, entry)| {
            let units = entry.units.as_ref().map(|units| globs(file, units)).transpose()?;
            let named = entry.units.iter().flat_map(|units| units.iter());
            let templates = named.map(|unit| unit.text.clone()).filter(|text| has_parts(text));
            let (layer, op, shared) = (file.layer, entry.op, entry.shared);
            let entry_of = Entry {
                layer,
                units,
                templates: templates.collect(),
                op,
                restart_keys: globs(file, &entry.restart_keys)?,
                shared,
                note: entry.note.clone(),
            };
            Ok((file, &entry.path, entry_of))
        });
        Ok(Self(Table::compile(entries.collect::<Result<Vec<_>, ClassifyError>>()?)?))
    }

    pub(super) fn first(&self, path: &ImagePath) -> Option<FileRule<'_>> {
        let place = canonical(path);
        let (pattern, entry) = self.0.first(&place)?;
        Some(FileRule {
            layer: entry.layer,
            pattern,
            units: entry.units.as_ref(),
            made: entry.templates.iter().filter_map(|unit| with_parts(unit, &place)).collect(),
            restart_keys: &entry.restart_keys,
            op: entry.op,
            shared: entry.shared,
            note: entry.note.as_deref(),
        })
    }
}

impl FileRule<'_> {
    /// Whether it says which units read the file.
    pub(crate) fn names_units(&self) -> bool {
        self.units.is_some()
    }

    pub(crate) fn names(&self, unit: &Unit) -> bool {
        self.made.iter().any(|made| made == unit.as_str())
            || self.units.is_some_and(|units| units.first(unit.as_str().as_bytes()).is_some())
    }

    /// Whether a setting changes that only a restart takes up.
    pub(crate) fn needs_restart_for(&self, keys: Option<&BTreeSet<String>>) -> bool {
        let mut keys = keys.into_iter().flatten();
        keys.any(|key| self.restart_keys.first(key.as_bytes()).is_some())
    }

    /// Whether what a change needs depends on which settings of the file change.
    pub(crate) fn has_restart_keys(&self) -> bool {
        !self.restart_keys.is_empty()
    }
}
