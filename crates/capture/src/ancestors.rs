//! Which file of the base a target's file is likely made of.

use std::cell::OnceCell;
use std::collections::HashMap;

use vireo_model::{Change, ImagePath, Node, Tree};

/// Shorter files of the base are no ancestors of renamed ones: a delta would be as long as the file.
const LEAST_LEN: u64 = 64;

/// Files of the base by what their names have in common with names in the target.
#[derive(Debug)]
pub(crate) struct Ancestors<'a> {
    base: &'a Tree,
    /// By the path with every number in it blotted out: `/usr/lib/libfoo.so.1.2` and `.1.3`,
    /// `/lib/modules/6.1.0-40/` and `6.1.0-41/`. The last of them in path order.
    by_shape: OnceCell<HashMap<Vec<u8>, &'a ImagePath>>,
    /// Files that the target has not, by name: they may have been moved.
    gone: HashMap<&'a [u8], Vec<&'a ImagePath>>,
}

impl<'a> Ancestors<'a> {
    pub(crate) fn new(base: &'a Tree, changes: &'a [Change]) -> Self {
        let mut gone: HashMap<&[u8], Vec<&ImagePath>> = HashMap::new();
        for change in changes {
            let is_gone = change.after.as_ref().and_then(Node::content).is_none();
            if is_gone && change.before.as_ref().is_some_and(is_file) {
                gone.entry(change.path.name()).or_default().push(&change.path);
            }
        }
        Self { base, by_shape: OnceCell::new(), gone }
    }

    /// Made when it is needed: most changes need it not.
    fn by_shape(&self) -> &HashMap<Vec<u8>, &'a ImagePath> {
        self.by_shape.get_or_init(|| {
            let files = self.base.iter().filter(|(_, node)| is_file(node));
            files.map(|(path, _)| (shape(path.as_bytes()), path)).collect()
        })
    }

    /// The likely ancestor of the target's file at `path`, with its length.
    pub(crate) fn of(&self, path: &ImagePath) -> Option<(ImagePath, u64)> {
        let len = |path: &ImagePath| self.base.get(path)?.content().map(|(len, _)| len);
        if let Some(len) = len(path) {
            return Some((path.clone(), len));
        }
        let moved = self.gone.get(path.name()).and_then(|list| nearest(list, path));
        let found = moved.or_else(|| self.by_shape().get(&shape(path.as_bytes())).copied())?;
        Some((found.clone(), len(found)?))
    }
}

fn is_file(node: &Node) -> bool {
    node.content().is_some_and(|(len, _)| len >= LEAST_LEN)
}

/// The one whose last components agree most: a moved directory keeps what is below it.
fn nearest<'a>(list: &[&'a ImagePath], path: &ImagePath) -> Option<&'a ImagePath> {
    let alike = |other: &ImagePath| {
        let ends = other.as_bytes().iter().rev().zip(path.as_bytes().iter().rev());
        ends.take_while(|(a, b)| a == b).count()
    };
    // Of equal ones the first, so that the output is always the same.
    list.iter().copied().rev().max_by_key(|other| alike(other))
}

/// The path with runs of digits, and of letters right behind them, replaced by one mark.
fn shape(path: &[u8]) -> Vec<u8> {
    let mut shape = Vec::with_capacity(path.len());
    let mut in_number = false;
    for byte in path {
        // What belongs to a version once it has begun: 1.2-3~deb12u1.
        let goes_on = in_number && matches!(byte, b'.' | b'~' | b'+' | b'-');
        if byte.is_ascii_digit() || goes_on {
            if !in_number {
                shape.push(b'#');
            }
            in_number = true;
        } else {
            in_number = false;
            shape.push(*byte);
        }
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_model::{ChangeSet, Digest, NodeKind};

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    fn tree(names: &[&str]) -> Tree {
        let node = |name: &str| {
            let kind = NodeKind::File { len: 1000, content: Digest::of(name.as_bytes()) };
            Node::new(kind, 0o644)
        };
        names.iter().map(|name| (path(name), node(name))).collect()
    }

    fn ancestor(base: &[&str], target: &[&str], of: &str) -> Option<String> {
        let (base, target) = (tree(base), tree(target));
        let changes = ChangeSet::between(&base, &target).changes;
        Ancestors::new(&base, &changes).of(&path(of)).map(|(path, _)| path.to_string())
    }

    #[test]
    fn the_same_path_comes_first() {
        let found = ancestor(&["/a", "/b/a"], &["/a"], "/a");
        assert_eq!(found.as_deref(), Some("/a"));
    }

    #[test]
    fn a_moved_directory_keeps_what_is_below_it() {
        let base = ["/old/x/index.html", "/old/y/index.html", "/z"];
        let target = ["/new/x/index.html", "/new/y/index.html", "/z"];
        let found = ancestor(&base, &target, "/new/y/index.html");
        assert_eq!(found.as_deref(), Some("/old/y/index.html"));
    }

    #[test]
    fn another_version_of_a_library_or_kernel_is_found() {
        for (base, target) in [
            ("/lib/libfoo.so.1.2", "/lib/libfoo.so.1.3.1"),
            ("/lib/libdns-9.18.47-1~deb12u1-Debian.so", "/lib/libdns-9.18.49-1~deb12u3-Debian.so"),
            ("/boot/vmlinuz-6.1.0-40-amd64", "/boot/vmlinuz-6.1.0-41-amd64"),
            ("/lib/modules/6.1.0-40-amd64/ext4.ko", "/lib/modules/6.1.0-41-amd64/ext4.ko"),
        ] {
            assert_eq!(ancestor(&[base], &[base, target], target).as_deref(), Some(base));
        }
        assert_eq!(ancestor(&["/a/b"], &["/a/b", "/c"], "/c"), None);
    }
}
