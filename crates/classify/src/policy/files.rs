//! Which units read which files, and what makes them read them again.

use serde::{Deserialize, Serialize};
use vireo_model::ImagePath;

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
    op: Option<Op>,
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
    pub(crate) op: Option<Op>,
    /// Most programs read it through a library, and none for itself.
    pub(crate) shared: bool,
    pub(crate) note: Option<&'a str>,
}

impl FileRules {
    pub(super) fn compile(layers: &Layers<'_>) -> Result<Self, ClassifyError> {
        let entries = layers.entries(|content| &content.file).map(|(file, entry)| {
            let units = entry.units.as_ref().map(|units| globs(file, units)).transpose()?;
            let (layer, op, shared) = (file.layer, entry.op, entry.shared);
            Ok((file, &entry.path, Entry { layer, units, op, shared, note: entry.note.clone() }))
        });
        Ok(Self(Table::compile(entries.collect::<Result<Vec<_>, ClassifyError>>()?)?))
    }

    pub(super) fn first(&self, path: &ImagePath) -> Option<FileRule<'_>> {
        let (pattern, entry) = self.0.first(&canonical(path))?;
        Some(FileRule {
            layer: entry.layer,
            pattern,
            units: entry.units.as_ref(),
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
        self.units.is_some_and(|units| units.first(unit.as_str().as_bytes()).is_some())
    }
}
