//! What a change set must never say, whoever signed it.
//!
//! Order, form and single nodes are checked where the manifest is read; here is what concerns
//! several paths. The base is not at hand: what depends on it is for those who apply.

use std::collections::HashSet;

use vireo_model::{Change, Ignore, ImagePath, Node, NodeKind};

/// Where the apply engine keeps its state, at the root of each tree.
const STATE: &[u8] = b"/.vireo";

/// Checks the sorted list `changes`. A text says what is wrong with it.
pub(crate) fn check(changes: &[Change], ignore: &Ignore) -> Result<(), String> {
    let mut scope = Scope { ignore, clear: HashSet::new() };
    // The directories above the path at hand that change themselves, outermost first.
    let mut above: Vec<&Change> = Vec::new();
    for change in changes {
        let path = &change.path;
        scope.check(path)?;
        while above.last().is_some_and(|dir| !path.is_within(&dir.path)) {
            above.pop();
        }
        if let (Some(_), Some(dir)) = (&change.after, above.last())
            && !dir.after.as_ref().is_some_and(Node::is_dir)
        {
            return Err(format!("{path} lies below {}, which is no directory", dir.path));
        }
        check_link(change, changes)?;
        above.push(change);
    }
    Ok(())
}

/// What no bundle may touch.
struct Scope<'a> {
    ignore: &'a Ignore,
    /// Directories known to belong to the version.
    clear: HashSet<ImagePath>,
}

impl Scope<'_> {
    fn check(&mut self, path: &ImagePath) -> Result<(), String> {
        let in_state = path.as_bytes().strip_prefix(STATE);
        if in_state.is_some_and(|rest| matches!(rest.first(), None | Some(b'/'))) {
            return Err(format!("{path} is the state of those who apply"));
        }
        if self.is_ignored(path) {
            return Err(format!("{path} belongs to no version, by the bundle's own ignore list"));
        }
        Ok(())
    }

    fn is_ignored(&mut self, path: &ImagePath) -> bool {
        if self.ignore.matches(path) {
            return true;
        }
        let Some(parent) = path.parent() else {
            return false;
        };
        if self.clear.contains(&parent) {
            return false;
        }
        let ignored = self.is_ignored(&parent);
        if !ignored {
            self.clear.insert(parent);
        }
        ignored
    }
}

/// A further name needs a first name to be linked to: anything but a directory that stays or comes.
fn check_link(change: &Change, changes: &[Change]) -> Result<(), String> {
    let Some(NodeKind::HardLink { leader }) = change.after.as_ref().map(|node| &node.kind) else {
        return Ok(());
    };
    let find = |path: &ImagePath| {
        changes.binary_search_by(|other| other.path.cmp(path)).ok().map(|at| &changes[at])
    };
    if let Some(first) = find(leader) {
        return match first.after.as_ref().map(|node| &node.kind) {
            // A chain would have two first names; the kernel links everything but directories.
            Some(NodeKind::Dir | NodeKind::HardLink { .. }) => {
                Err(format!("{} links to {leader}, which is no first name of a file", change.path))
            }
            Some(_) => Ok(()),
            None => Err(format!("{} links to {leader}, which is removed", change.path)),
        };
    }
    // It stays as it is in the base, unless a directory above it goes.
    let mut dir = leader.parent();
    while let Some(path) = dir {
        if find(&path).is_some_and(|above| !above.after.as_ref().is_some_and(Node::is_dir)) {
            return Err(format!("{} links to {leader}, which goes with {path}", change.path));
        }
        dir = path.parent();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_model::{ChangeSet, Digest, Tree};

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    fn file(text: &str) -> Node {
        let kind = NodeKind::File { len: text.len() as u64, content: Digest::of(text.as_bytes()) };
        Node::new(kind, 0o644)
    }

    fn dir() -> Node {
        Node::new(NodeKind::Dir, 0o755)
    }

    fn tree(nodes: &[(&str, Node)]) -> Tree {
        nodes.iter().map(|(name, node)| (path(name), node.clone())).collect()
    }

    fn outcome(base: &[(&str, Node)], target: &[(&str, Node)]) -> Result<(), String> {
        let changes = ChangeSet::between(&tree(base), &tree(target)).changes;
        let ignore = Ignore::new(["/tmp/**", "/etc/machine-id"]).expect("globs");
        check(&changes, &ignore)
    }

    fn refused(base: &[(&str, Node)], target: &[(&str, Node)]) -> String {
        outcome(base, target).expect_err("refused")
    }

    #[test]
    fn ordinary_changes_pass() {
        let base = [("/a", dir()), ("/a/b", file("1")), ("/tmp", dir()), ("/x", file("1"))];
        let target = [
            ("/a", file("now a file")),
            ("/tmp", Node::new(NodeKind::Dir, 0o700)),
            ("/x", dir()),
            ("/x/y", file("1")),
            ("/z", Node::hard_link(path("/x/y"))),
            ("/.vireos", file("1")),
        ];
        assert_eq!(outcome(&base, &target), Ok(()));
    }

    #[test]
    fn what_the_bundles_own_list_ignores_is_refused() {
        let error = refused(&[], &[("/tmp/a/b/c", file("1"))]);
        assert_eq!(error, "/tmp/a/b/c belongs to no version, by the bundle's own ignore list");
        let error = refused(&[("/etc/machine-id", file("1"))], &[]);
        assert!(error.contains("/etc/machine-id"), "{error}");
    }

    #[test]
    fn the_state_directory_is_refused() {
        for name in ["/.vireo", "/.vireo/txn/7"] {
            let error = refused(&[], &[(name, dir())]);
            assert_eq!(error, format!("{name} is the state of those who apply"));
        }
    }

    #[test]
    fn children_of_what_is_no_directory_are_refused() {
        let link = Node::new(NodeKind::Symlink { target: b"/etc".to_vec() }, 0o777);
        let error = refused(&[], &[("/a", link), ("/a/b/c", file("1"))]);
        assert_eq!(error, "/a/b/c lies below /a, which is no directory");
        let error = refused(&[("/a", dir())], &[("/a/b", file("1"))]);
        assert_eq!(error, "/a/b lies below /a, which is no directory");
    }

    #[test]
    fn links_to_what_cannot_be_linked_are_refused() {
        let link = || Node::hard_link(path("/a"));
        let error = refused(&[], &[("/a", dir()), ("/b", link())]);
        assert_eq!(error, "/b links to /a, which is no first name of a file");
        let error = refused(&[("/a", file("1"))], &[("/b", link())]);
        assert_eq!(error, "/b links to /a, which is removed");
        let below = || Node::hard_link(path("/a/x"));
        let error = refused(&[("/a", dir())], &[("/b", below())]);
        assert_eq!(error, "/b links to /a/x, which goes with /a");
    }
}
