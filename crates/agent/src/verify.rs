//! Proof of convergence: whether the machine's files are what its version says, and where not.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use vireo_model::{Change, ChangeKind, ChangeSet, Digest, Ignore, Node, Tree};
use vireo_tree::apply::Settlement;
use vireo_tree::{ScanOptions, scan};

use crate::error::AgentError;
use crate::root::open_root;
use crate::state::Edit;

/// Most differing paths that a report lists.
pub const MAX_DIFFERING: usize = 10_000;

/// What comparing a machine's files with its version found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// `vireo.verify/1`.
    pub schema: &'static str,
    /// The version's number, if known.
    pub version: Option<u64>,
    /// Digest of the version's tree.
    pub expected: Digest,
    /// Digest of what is there.
    pub found: Digest,
    /// How many paths differ; none if they could not be compared one by one.
    pub differing_count: Option<usize>,
    /// The paths that differ, at most [`MAX_DIFFERING`].
    pub differing: Vec<Differing>,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Differing {
    /// Where.
    pub path: String,
    /// How what is there differs from the version.
    pub change: ChangeKind,
    /// Why, as far as it can be known.
    pub cause: Cause,
}

/// Why a path differs from its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A local edit that an update met and merged with its own.
    EditMerged,
    /// A local edit that an update met and kept.
    EditKept,
    /// A copy that an update put beside an edited file.
    Copy,
    /// Configuration that was edited here.
    Edit,
    /// Something that is only here.
    LocalOnly,
    /// Something of the version that was removed here.
    Removed,
    /// A file of the version whose content was changed here.
    Changed,
    /// Content that is not the version's although the file's length and time are: not changed by
    /// writing it.
    Damaged,
}

impl Cause {
    /// The words for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EditMerged => "local edit, merged with an update",
            Self::EditKept => "local edit, kept by an update",
            Self::Copy => "put beside an edited file by an update",
            Self::Edit => "local edit",
            Self::LocalOnly => "only here",
            Self::Removed => "removed here",
            Self::Changed => "changed here",
            Self::Damaged => "damaged: same length and time, other content",
        }
    }

    fn of(change: &Change) -> Self {
        let is_config = change.path.as_bytes().starts_with(b"/etc/");
        match (&change.before, &change.after) {
            (None, _) => Self::LocalOnly,
            (_, None) => Self::Removed,
            (Some(expected), Some(found)) => {
                let of =
                    |node: &Node| node.content().map(|(len, digest)| (len, node.mtime, digest));
                match (of(expected), of(found)) {
                    (Some((len, time, digest)), Some((found_len, found_time, found_digest)))
                        if (len, time) == (found_len, found_time) && digest != found_digest =>
                    {
                        Self::Damaged
                    }
                    _ if is_config => Self::Edit,
                    _ => Self::Changed,
                }
            }
        }
    }
}

/// Reads the tree below `root`, contents and all, with the disk file systems that are mounted below
/// it.
///
/// # Errors
///
/// A path cannot be read.
pub fn read_tree(root: &Path, ignore: &Ignore) -> Result<Tree, AgentError> {
    let options = ScanOptions { in_use: true, ..ScanOptions::default() };
    Ok(scan(&open_root(root)?, ignore, &options)?.tree)
}

impl VerifyReport {
    /// The schema's name.
    pub const SCHEMA: &'static str = "vireo.verify/1";

    /// Compares by digest alone.
    #[must_use]
    pub fn of_digests(version: Option<u64>, expected: Digest, found: Digest) -> Self {
        let differing_count = (expected == found).then_some(0);
        Self {
            schema: Self::SCHEMA,
            version,
            expected,
            found,
            differing_count,
            differing: Vec::new(),
        }
    }

    /// Compares path by path.
    #[must_use]
    pub fn of_trees(version: Option<u64>, expected: &Tree, found: &Tree) -> Self {
        let changes = ChangeSet::between(expected, found);
        let differing = changes.changes.iter().take(MAX_DIFFERING);
        let differing = differing.map(|change| Differing {
            path: change.path.to_string(),
            change: change.kind(),
            cause: Cause::of(change),
        });
        Self {
            differing_count: Some(changes.changes.len()),
            differing: differing.collect(),
            ..Self::of_digests(version, changes.base, changes.target)
        }
    }

    /// The same, with what is on record about local edits.
    #[must_use]
    pub fn explained_by(mut self, edits: &[Edit]) -> Self {
        for differing in &mut self.differing {
            for edit in edits {
                if edit.beside.as_ref() == Some(&differing.path) {
                    differing.cause = Cause::Copy;
                } else if edit.path == differing.path {
                    match edit.how {
                        Settlement::Merged => differing.cause = Cause::EditMerged,
                        Settlement::Kept => differing.cause = Cause::EditKept,
                        Settlement::Taken => {}
                    }
                }
            }
        }
        self
    }

    /// Whether the machine's files are exactly the version's.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.expected == self.found
    }
}

impl fmt::Display for Differing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path, word(self.change))
    }
}

/// The word for how a path differs.
const fn word(cause: ChangeKind) -> &'static str {
    match cause {
        ChangeKind::Added => "added",
        ChangeKind::Modified => "modified",
        ChangeKind::Removed => "removed",
        ChangeKind::Metadata => "metadata",
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version =
            self.version.map_or("its version".to_owned(), |number| format!("version {number}"));
        if self.is_equal() {
            return writeln!(f, "equal     to {version}, tree {}", self.found);
        }
        writeln!(f, "differs   from {version}")?;
        writeln!(f, "expected  {}", self.expected)?;
        writeln!(f, "found     {}", self.found)?;
        for Differing { path, change, cause } in &self.differing {
            writeln!(f, "{:<9} {path} ({})", word(*change), cause.as_str())?;
        }
        match self.differing_count {
            Some(count) if count > self.differing.len() => {
                writeln!(f, "and       {} more", count - self.differing.len())
            }
            Some(_) => Ok(()),
            None => writeln!(f, "unlisted  the repository cannot be asked for the version's files"),
        }
    }
}

#[cfg(test)]
mod tests {
    use vireo_model::{ImagePath, NodeKind};

    use super::*;

    #[test]
    fn every_differing_path_is_listed_with_its_cause() {
        let file = |text: &str| {
            let content = Digest::of(text.as_bytes());
            Node::new(NodeKind::File { len: text.len() as u64, content }, 0o644)
        };
        let tree = |files: &[(&str, Node)]| -> Tree {
            let path = |text: &str| ImagePath::parse(text.as_bytes()).expect("a valid path");
            files.iter().map(|(at, node)| (path(at), node.clone())).collect()
        };
        let expected = tree(&[("/a", file("1")), ("/b", file("2")), ("/c", file("3"))]);
        let found = tree(&[
            ("/a", file("x")),
            ("/c", Node { mode: 0o600, ..file("3") }),
            ("/d", file("4")),
        ]);
        let report = VerifyReport::of_trees(Some(3), &expected, &found);
        assert!(!report.is_equal());
        let text = report.to_string();
        assert!(text.starts_with("differs   from version 3\n"), "{text}");
        assert!(
            text.ends_with(
                "modified  /a (damaged: same length and time, other content)\n\
                 removed   /b (removed here)\nmetadata  /c (changed here)\nadded     /d (only here)\n"
            ),
            "{text}"
        );
        let edit = Edit {
            path: "/c".to_owned(),
            how: Settlement::Kept,
            beside: Some("/d".to_owned()),
            transaction: 1,
        };
        let text = report.explained_by(&[edit]).to_string();
        assert!(text.contains("/c (local edit, kept by an update)\n"), "{text}");
        assert!(text.contains("/d (put beside an edited file by an update)\n"), "{text}");
        let same = VerifyReport::of_trees(None, &expected, &expected);
        assert!(same.is_equal() && same.differing.is_empty());
        assert!(same.to_string().starts_with("equal     to its version, tree "));
    }
}
