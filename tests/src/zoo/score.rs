//! How many operations were found, and how many were wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::case::Kind;

/// Whose answers are counted.
pub const TOOLS: [&str; 3] = ["Vireo", "needrestart", "checkrestart"];

/// Counts of one tool in one kind of change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Needed operations that it found.
    pub found: usize,
    /// Operations that it asks for and nothing needs.
    pub wrong: usize,
}

/// Counts of one kind of change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Cases.
    pub cases: usize,
    /// Operations that they need.
    pub needed: usize,
    /// What each of [`TOOLS`] made of it.
    pub counts: [Count; 3],
}

/// The score of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Score(pub BTreeMap<Kind, Row>);

impl Row {
    /// Counts what tool number `tool` asks for, by what is needed.
    pub(super) fn count(
        &mut self,
        tool: usize,
        needed: &BTreeSet<String>,
        asked: &BTreeSet<String>,
    ) {
        self.counts[tool].found += needed.intersection(asked).count();
        self.counts[tool].wrong += asked.difference(needed).count();
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| change | cases | operations needed | {} |", TOOLS.join(" | "))?;
        writeln!(f, "|---|--:|--:|--:|--:|--:|")?;
        let mut total = Row::default();
        for (kind, row) in &self.0 {
            line(f, kind.name(), row)?;
            total.cases += row.cases;
            total.needed += row.needed;
            for (sum, count) in total.counts.iter_mut().zip(row.counts) {
                sum.found += count.found;
                sum.wrong += count.wrong;
            }
        }
        line(f, "**all**", &total)
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, row: &Row) -> fmt::Result {
    let cell = |tool: usize, Count { found, wrong }: Count| match wrong {
        // What is refused is never there for the others to be asked about.
        _ if tool > 0 && name == Kind::Broken.name() => "not asked".to_owned(),
        0 => format!("{found}"),
        wrong => format!("{found}, {wrong} wrong"),
    };
    let cells: Vec<String> =
        row.counts.iter().enumerate().map(|(tool, count)| cell(tool, *count)).collect();
    writeln!(f, "| {name} | {} | {} | {} |", row.cases, row.needed, cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_counts_what_was_found_and_what_was_wrong() {
        let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let mut row = Row { cases: 2, needed: 2, ..Row::default() };
        row.count(0, &set(&["a", "b"]), &set(&["a", "b"]));
        row.count(1, &set(&["a", "b"]), &set(&["b", "c"]));
        let table = Score(BTreeMap::from([(Kind::Script, row)])).to_string();
        let wanted = "| scripts and their modules | 2 | 2 | 2 | 1, 1 wrong | 0 |";
        assert!(table.contains(wanted), "{table}");
        assert!(table.contains("| **all** | 2 | 2 | 2 | 1, 1 wrong | 0 |"), "{table}");
    }
}
