//! What turns one tree into another.

use std::cmp::Ordering;

use serde::Serialize;

use crate::{Digest, ImagePath, Node, NodeKind, Tree};

/// One path that differs between base and target. At least one side is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub path: ImagePath,
    /// What the base has there.
    pub before: Option<Node>,
    /// What the target has there.
    pub after: Option<Node>,
}

/// How a path differs; the word that plans and listings use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The base has nothing there.
    Added,
    /// Kind, content, link target or device differ; also a further name of such a file.
    Modified,
    /// The target has nothing there.
    Removed,
    /// Only mode, owner, time or attributes differ.
    Metadata,
}

impl Change {
    /// How the path differs.
    #[must_use]
    pub fn kind(&self) -> ChangeKind {
        match (&self.before, &self.after) {
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Removed,
            (Some(before), Some(after)) if before == after => ChangeKind::Modified,
            (Some(before), Some(after)) if before.kind == after.kind => ChangeKind::Metadata,
            _ => ChangeKind::Modified,
        }
    }
}

/// What turns the tree `base` into the tree `target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeSet {
    /// Digest of the tree it applies to.
    pub base: Digest,
    /// Digest of the tree it makes.
    pub target: Digest,
    /// The differing paths, in path order, each once.
    pub changes: Vec<Change>,
}

impl ChangeSet {
    /// Compares two trees. Cost: one pass over both.
    ///
    /// A further name of an inode is listed too when only what its first name holds changes:
    /// whoever replaces the first name has to link the others anew.
    #[must_use]
    pub fn between(base: &Tree, target: &Tree) -> Self {
        let differs = |path: &ImagePath| base.get(path) != target.get(path);
        let is_listed = |path: &ImagePath, before: Option<&Node>, after: Option<&Node>| {
            let leader_differs = match after.map(|node| &node.kind) {
                Some(NodeKind::HardLink { leader }) => differs(leader),
                _ => false,
            };
            (before != after || leader_differs).then(|| Change {
                path: path.clone(),
                before: before.cloned(),
                after: after.cloned(),
            })
        };
        // Both are in path order: one pass, without looking any path up.
        let (mut base_nodes, mut target_nodes) = (base.iter().peekable(), target.iter().peekable());
        let mut changes = Vec::new();
        loop {
            let order = match (base_nodes.peek(), target_nodes.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            let before = if order.is_le() { base_nodes.next() } else { None };
            let after = if order.is_ge() { target_nodes.next() } else { None };
            if let Some((path, _)) = before.or(after) {
                let nodes = (before.map(|(_, node)| node), after.map(|(_, node)| node));
                changes.extend(is_listed(path, nodes.0, nodes.1));
            }
        }
        let (base, target) = Tree::digests(base, target);
        Self { base, target, changes }
    }

    /// Makes the changes to `tree`, whatever it held at those paths.
    pub fn apply_to(&self, tree: &mut Tree) {
        for change in &self.changes {
            match &change.after {
                Some(node) => tree.insert(change.path.clone(), node.clone()),
                None => {
                    tree.remove(&change.path);
                }
            }
        }
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_then_apply_gives_the_target() {
        let path = |text: &str| ImagePath::parse(text.as_bytes()).expect("a valid path");
        let file = |text: &str| {
            let content = Digest::of(text.as_bytes());
            Node::new(NodeKind::File { len: text.len() as u64, content }, 0o644)
        };
        let base: Tree = [
            (path("/gone"), file("1")),
            (path("/same"), file("2")),
            (path("/mode"), file("3")),
            (path("/text"), file("4")),
        ]
        .into_iter()
        .collect();
        let mut target = base.clone();
        target.remove(&path("/gone"));
        target.insert(path("/mode"), Node { mode: 0o600, ..file("3") });
        target.insert(path("/text"), file("five"));
        target.insert(path("/new"), file("6"));

        let changes = ChangeSet::between(&base, &target);
        let kinds: Vec<String> =
            changes.changes.iter().map(|c| format!("{:?} {}", c.kind(), c.path)).collect();
        assert_eq!(kinds, ["Removed /gone", "Metadata /mode", "Added /new", "Modified /text"]);

        let mut patched = base;
        changes.apply_to(&mut patched);
        assert_eq!(patched, target);
        assert_eq!(patched.digest(), changes.target);
    }

    #[test]
    fn a_further_name_is_listed_when_its_file_changes() {
        let path = |text: &str| ImagePath::parse(text.as_bytes()).expect("a valid path");
        let file = |text: &str| {
            let content = Digest::of(text.as_bytes());
            Node::new(NodeKind::File { len: text.len() as u64, content }, 0o644)
        };
        let tree = |text: &str| -> Tree {
            [(path("/a"), file(text)), (path("/b"), Node::hard_link(path("/a")))]
                .into_iter()
                .collect()
        };
        let changes = ChangeSet::between(&tree("1"), &tree("2"));
        let kinds: Vec<String> =
            changes.changes.iter().map(|c| format!("{:?} {}", c.kind(), c.path)).collect();
        assert_eq!(kinds, ["Modified /a", "Modified /b"]);
        assert!(ChangeSet::between(&tree("1"), &tree("1")).is_empty());
    }
}
