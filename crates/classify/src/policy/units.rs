//! What may be done to a unit, put together from all entries that cover it.

use super::Layers;
use super::entries::{Ceiling, Hold, UnitEntry};
use super::file::PolicyFile;
use super::table::{Table, globs};
use crate::class::canonical;
use crate::glob::Globs;
use crate::{ClassifyError, Unit, UnitFacts};

/// What may be done to one unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitRule {
    /// Why it is never acted upon; none if it may be.
    pub hold: Option<String>,
    /// Why it is reloaded at most; none if it may be restarted.
    pub reload_only: Option<String>,
    /// A reload executes its program anew.
    pub reload_reexecs: bool,
    /// A reload has its scripts read again.
    pub reload_rereads_code: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Place in the order of all entries.
    order: usize,
    entry: UnitEntry,
    unless_argument: Globs,
}

#[derive(Clone, Debug)]
pub(super) struct UnitRules {
    by_name: Table<Entry>,
    by_program: Table<Entry>,
}

impl UnitRules {
    pub(super) fn compile(layers: &Layers<'_>) -> Result<Self, ClassifyError> {
        let make = |order, file: &PolicyFile, entry: &UnitEntry| {
            let unless_argument = globs(file, &entry.unless_argument)?;
            Ok(Entry { order, entry: entry.clone(), unless_argument })
        };
        let (mut names, mut programs) = (Vec::new(), Vec::new());
        for (order, (file, spanned)) in layers.entries(|content| &content.unit).enumerate() {
            let entry = spanned.get_ref();
            if entry.unit.is_empty() && entry.program.is_empty() {
                let line = file.line(spanned.span().start);
                let why = "[[unit]] needs `unit` or `program`";
                return Err(ClassifyError::policy(file.name(), line, why));
            }
            if !entry.unit.is_empty() {
                names.push((file, &entry.unit, make(order, file, entry)?));
            }
            if !entry.program.is_empty() {
                programs.push((file, &entry.program, make(order, file, entry)?));
            }
        }
        Ok(Self { by_name: Table::compile(names)?, by_program: Table::compile(programs)? })
    }

    /// The rule for a unit by its name alone.
    pub(super) fn of_name(&self, unit: &Unit) -> UnitRule {
        put_together(self.by_name.matching(unit.as_str().as_bytes()).map(|(_, entry)| entry))
    }

    /// The rule for a unit by name, programs and arguments.
    pub(super) fn of_unit(&self, unit: &UnitFacts) -> UnitRule {
        let names = [&unit.name].into_iter().chain(&unit.aliases);
        let named = names.flat_map(|name| self.by_name.matching(name.as_str().as_bytes()));
        let programs: Vec<Vec<u8>> = unit.programs.iter().map(canonical).collect();
        let run = programs.iter().flat_map(|program| self.by_program.matching(program));
        let excluded = |entry: &Entry| {
            unit.arguments.iter().any(|word| entry.unless_argument.first(word.as_bytes()).is_some())
        };
        let mut entries: Vec<&Entry> =
            named.chain(run).map(|(_, entry)| entry).filter(|entry| !excluded(entry)).collect();
        entries.sort_by_key(|entry| entry.order);
        put_together(entries.into_iter())
    }
}

/// For each key the first entry that has it.
fn put_together<'a>(entries: impl Iterator<Item = &'a Entry>) -> UnitRule {
    let (mut hold, mut max, mut reexecs, mut rereads) = (None, None, None, None);
    for Entry { entry, .. } in entries {
        hold = hold.or(entry.hold.as_ref());
        max = max.or(entry.max.map(|max| (max, entry.reason.as_deref())));
        reexecs = reexecs.or(entry.reload_reexecs);
        rereads = rereads.or(entry.reload_rereads_code);
    }
    let reload_only = match max {
        Some((Ceiling::Reload, reason)) => {
            Some(reason.unwrap_or("the policy allows a reload at most"))
        }
        _ => None,
    };
    UnitRule {
        hold: match hold {
            Some(Hold::Because(reason)) => Some(reason.clone()),
            Some(Hold::Is(true)) => Some("the policy holds it".to_owned()),
            _ => None,
        },
        reload_only: reload_only.map(str::to_owned),
        reload_reexecs: reexecs.unwrap_or(false),
        reload_rereads_code: rereads.unwrap_or(false),
    }
}
