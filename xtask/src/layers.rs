//! `cargo xtask layers`: the dependencies between crates are those of the design, and no others.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::cargo;

/// Which workspace crates each may use, for building and for its tests. A crate that is not here may
/// use nothing of the workspace.
const MAY_USE: &[(&str, &[&str])] = &[
    ("vireo-model", &[]),
    ("vireo-sys", &[]),
    ("vireo-delta", &["vireo-model"]),
    ("vireo-classify", &["vireo-model"]),
    ("vireo-ext4", &["vireo-model"]),
    ("vireo-cloud", &["vireo-model", "vireo-sys"]),
    ("vireo-tree", &["vireo-model", "vireo-delta", "vireo-sys"]),
    // `delta` because an image is patched from a verified bundle.
    ("vireo-image", &["vireo-model", "vireo-delta", "vireo-ext4", "vireo-tree", "vireo-sys"]),
    ("vireo-store", &["vireo-model", "vireo-delta", "vireo-sys"]),
    ("vireo-wire", &["vireo-model", "vireo-delta"]),
    ("vireo-capture", &["vireo-model", "vireo-delta", "vireo-image", "vireo-tree", "vireo-sys"]),
    ("vireo-record", &["vireo-model", "vireo-classify", "vireo-sys"]),
    (
        "vireo-repo",
        &[
            "vireo-model",
            "vireo-sys",
            "vireo-delta",
            "vireo-classify",
            "vireo-tree",
            "vireo-image",
            "vireo-store",
            "vireo-wire",
            "vireo-cloud",
            "vireo-capture",
        ],
    ),
    // `sys` for durable writes, locks and mapped bundles.
    (
        "vireo-agent",
        &[
            "vireo-model",
            "vireo-delta",
            "vireo-tree",
            "vireo-classify",
            "vireo-record",
            "vireo-wire",
            "vireo-sys",
        ],
    ),
    (
        "vireo-cli",
        &[
            "vireo-model",
            "vireo-sys",
            "vireo-delta",
            "vireo-classify",
            "vireo-tree",
            "vireo-image",
            "vireo-store",
            "vireo-wire",
            "vireo-capture",
            "vireo-record",
            "vireo-repo",
        ],
    ),
    (
        "vireo-repo-bin",
        &[
            "vireo-model",
            "vireo-sys",
            "vireo-delta",
            "vireo-tree",
            "vireo-image",
            "vireo-store",
            "vireo-wire",
            "vireo-cloud",
            "vireo-repo",
            "vireo-ec2",
        ],
    ),
    // `sys` for locks and durable writes.
    ("vireo-ec2", &["vireo-model", "vireo-sys", "vireo-cloud"]),
    ("vireo-testkit", &["vireo-model"]),
    ("xtask", &["vireo-testkit"]),
];

/// Members that stand beside the drawing: they may use every crate, and nobody may use them.
const BESIDE: &[&str] = &["vireo-tests", "vireo-benches"];

/// Crates that any other's tests may use.
const FOR_TESTS: &[&str] = &["vireo-testkit"];

/// Fails on the first run that finds an edge which the table does not have, and lists them all.
pub(crate) fn run() -> anyhow::Result<()> {
    let edges = edges(&cargo::metadata()?)?;
    let bad: Vec<String> =
        edges.iter().filter(|edge| !allowed(edge)).map(Edge::to_string).collect();
    if bad.is_empty() {
        eprintln!("layers: {} edges between crates, all in the design", edges.len());
        return Ok(());
    }
    bail!("edges between crates that the design does not have:\n  {}", bad.join("\n  "))
}

/// One crate uses another.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    from: String,
    to: String,
    for_tests: bool,
}

impl std::fmt::Display for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tests = if self.for_tests { " (its tests)" } else { "" };
        write!(f, "{} -> {}{tests}", self.from, self.to)
    }
}

fn allowed(edge: &Edge) -> bool {
    if BESIDE.contains(&edge.to.as_str()) {
        return false;
    }
    if BESIDE.contains(&edge.from.as_str()) {
        return true;
    }
    if edge.for_tests && FOR_TESTS.contains(&edge.to.as_str()) {
        return true;
    }
    let row = MAY_USE.iter().find(|(from, _)| *from == edge.from);
    row.is_some_and(|(_, may_use)| may_use.contains(&edge.to.as_str()))
}

/// The edges between workspace members: in cargo's words, dependencies that have a path.
fn edges(metadata: &Value) -> anyhow::Result<BTreeSet<Edge>> {
    let list = |value: &Value, what| {
        value.as_array().cloned().with_context(|| format!("cargo metadata has no list of {what}"))
    };
    let mut edges = BTreeSet::new();
    for package in list(&metadata["packages"], "packages")? {
        for dependency in list(&package["dependencies"], "dependencies")? {
            if dependency["path"].is_string() {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let for_tests = dependency["kind"] == "dev";
                let (from, to) = (text(&package["name"]), text(&dependency["name"]));
                edges.insert(Edge { from, to, for_tests });
            }
        }
    }
    Ok(edges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(from: &str, to: &str, for_tests: bool, expected: bool) {
        let edge = Edge { from: from.to_owned(), to: to.to_owned(), for_tests };
        assert_eq!(allowed(&edge), expected, "{edge}");
    }

    #[test]
    fn edges_of_the_drawing_are_allowed_and_their_reverse_is_not() {
        check("vireo-tree", "vireo-model", false, true);
        check("vireo-model", "vireo-tree", false, false);
        check("vireo-agent", "vireo-repo", false, false);
    }

    #[test]
    fn what_stands_beside_uses_all_and_is_used_by_none() {
        check("vireo-tests", "vireo-agent", false, true);
        check("vireo-agent", "vireo-tests", true, false);
        check("vireo-image", "vireo-testkit", true, true);
        check("vireo-image", "vireo-testkit", false, false);
    }

    #[test]
    fn an_unknown_crate_may_use_nothing() {
        check("vireo-surprise", "vireo-model", false, false);
    }

    #[test]
    fn the_table_has_no_cycle() {
        // A crate only uses crates that have fewer rows beneath them: repeated removal ends empty.
        let mut left: Vec<_> = MAY_USE.to_vec();
        while !left.is_empty() {
            let names: Vec<&str> = left.iter().map(|(name, _)| *name).collect();
            let before = left.len();
            left.retain(|(_, uses)| uses.iter().any(|used| names.contains(used)));
            assert!(left.len() < before, "a cycle among {names:?}");
        }
    }

    #[test]
    fn dependencies_with_a_path_are_edges() {
        let metadata = serde_json::json!({ "packages": [{ "name": "a", "dependencies": [
            { "name": "b", "path": "/b", "kind": null },
            { "name": "serde", "kind": null },
        ] }] });
        let expected = Edge { from: "a".to_owned(), to: "b".to_owned(), for_tests: false };
        assert_eq!(edges(&metadata).ok(), Some(BTreeSet::from([expected])));
    }
}
