//! A whole tree and its Merkle digest.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::node::write_field;
use crate::{Digest, Hasher, ImagePath, Node, Timestamp};

/// Every path of a file system with what stands there, in path order.
///
/// About 200 bytes of memory per entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<ImagePath, Node>);

impl Tree {
    /// A tree without any node, not even a root.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `node` at `path`, in place of what stood there. A directory's time is cleared:
    /// it is no part of a version.
    pub fn insert(&mut self, path: ImagePath, node: Node) {
        self.0.insert(path, without_dir_time(node));
    }

    /// Takes what stands at `path` away.
    pub fn remove(&mut self, path: &ImagePath) -> Option<Node> {
        self.0.remove(path)
    }

    /// What stands at `path`.
    #[must_use]
    pub fn get(&self, path: &ImagePath) -> Option<&Node> {
        self.0.get(path)
    }

    /// All nodes in path order; a directory comes before what it holds.
    pub fn iter(&self) -> impl Iterator<Item = (&ImagePath, &Node)> {
        self.0.iter()
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no node at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The Merkle root: a directory's digest is over its own metadata and its children's names
    /// and digests, so equal digests mean equal trees, and subtrees compare alone.
    ///
    /// Inode numbers, link counts, directory times and sparseness are not part of it. Cost: one
    /// pass over the nodes, no content is read.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.whole_digest().unwrap_or_else(|| {
            let mut digests = self.dir_digests();
            digests.remove(&ImagePath::root()).unwrap_or_else(|| Hasher::new().finish())
        })
    }

    /// The digests of two trees. What they have in common is hashed once.
    pub(crate) fn digests(base: &Self, target: &Self) -> (Digest, Digest) {
        Self::whole_digests(base, target).unwrap_or_else(|| (base.digest(), target.digest()))
    }

    /// The digest of a tree of which every node's directory is there, as in all that was read from
    /// a file system; else `None`.
    fn whole_digest(&self) -> Option<Digest> {
        let mut upwards = Upwards::default();
        for (path, node) in self.0.iter().rev() {
            let children = upwards.children(path)?;
            upwards.waiting.push((path, digest_of(node, &children)));
        }
        upwards.root()
    }

    fn whole_digests(base: &Self, target: &Self) -> Option<(Digest, Digest)> {
        let (mut before, mut after) = (Upwards::default(), Upwards::default());
        let mut base_nodes = base.0.iter().rev().peekable();
        let mut target_nodes = target.0.iter().rev().peekable();
        loop {
            let order = match (base_nodes.peek(), target_nodes.peek()) {
                (Some((a, _)), Some((b, _))) => b.cmp(a),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return Some((before.root()?, after.root()?)),
            };
            let mut known = None;
            if order.is_le()
                && let Some((path, node)) = base_nodes.next()
            {
                let children = before.children(path)?;
                let digest = digest_of(node, &children);
                before.waiting.push((path, digest));
                known = Some((node, children, digest));
            }
            if order.is_ge()
                && let Some((path, node)) = target_nodes.next()
            {
                let children = after.children(path)?;
                let same = known.filter(|(other, others, _)| *other == node && *others == children);
                let digest = same.map_or_else(|| digest_of(node, &children), |(.., digest)| digest);
                after.waiting.push((path, digest));
            }
        }
    }

    /// The digest of every directory, as [`Tree::digest`] defines it. A parent that has no node
    /// of its own (a partial tree) counts as a directory without metadata.
    #[must_use]
    pub fn dir_digests(&self) -> BTreeMap<ImagePath, Digest> {
        let mut open: BTreeMap<ImagePath, Vec<(Vec<u8>, Digest)>> = BTreeMap::new();
        let mut done = BTreeMap::new();
        // Backwards, children come before their directory.
        for (path, node) in self.0.iter().rev() {
            let mut bytes = b"vireo tree 1".to_vec();
            node.write_into(&mut bytes);
            if let Some(mut children) = open.remove(path) {
                children.reverse();
                for (name, digest) in children {
                    write_field(&mut bytes, &name);
                    bytes.extend_from_slice(digest.as_bytes());
                }
            }
            let digest = Digest::of(&bytes);
            if let Some(parent) = path.parent() {
                open.entry(parent).or_default().push((path.name().to_vec(), digest));
            }
            if node.is_dir() {
                done.insert(path.clone(), digest);
            }
        }
        // What is left has no node of its own; fold it upwards so that nothing is left out.
        while let Some((path, mut children)) = open.pop_last() {
            children.sort();
            let mut hasher = Hasher::new();
            hasher.update(b"vireo tree 1 partial");
            for (name, digest) in children {
                hasher.field(&name).update(digest.as_bytes());
            }
            let digest = hasher.finish();
            if let Some(parent) = path.parent() {
                open.entry(parent).or_default().push((path.name().to_vec(), digest));
            }
            done.insert(path, digest);
        }
        done
    }
}

/// What stands in a directory, last first: paths with their nodes' digests.
type Children<'a> = Vec<(&'a ImagePath, Digest)>;

/// The way through a whole tree backwards: what a directory holds comes right before it.
#[derive(Default)]
struct Upwards<'a> {
    /// What waits for its directory.
    waiting: Children<'a>,
}

impl<'a> Upwards<'a> {
    /// Takes what `path` holds; `None` if something below it lacks its directory.
    fn children(&mut self, path: &ImagePath) -> Option<Children<'a>> {
        let is_below = |(child, _): &&(&ImagePath, Digest)| child.is_within(path);
        let count = self.waiting.iter().rev().take_while(is_below).count();
        let children = self.waiting.split_off(self.waiting.len() - count);
        children.iter().all(|(child, _)| child.is_child_of(path)).then_some(children)
    }

    /// The digest of the whole; `None` if it has no root.
    fn root(&self) -> Option<Digest> {
        match self.waiting.as_slice() {
            [(path, digest)] if path.is_root() => Some(*digest),
            _ => None,
        }
    }
}

/// The digest of a node that holds `children`.
fn digest_of(node: &Node, children: &Children<'_>) -> Digest {
    // In one piece: hashing it field by field takes several times as long.
    let mut bytes = b"vireo tree 1".to_vec();
    node.write_into(&mut bytes);
    for (child, digest) in children.iter().rev() {
        write_field(&mut bytes, child.name());
        bytes.extend_from_slice(digest.as_bytes());
    }
    Digest::of(&bytes)
}

fn without_dir_time(mut node: Node) -> Node {
    if node.is_dir() {
        node.mtime = Timestamp::default();
    }
    node
}

impl FromIterator<(ImagePath, Node)> for Tree {
    fn from_iter<I: IntoIterator<Item = (ImagePath, Node)>>(nodes: I) -> Self {
        // Sorting what is sorted already and building the map in one go beats searching the place
        // of each.
        Self(nodes.into_iter().map(|(path, node)| (path, without_dir_time(node))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeKind;

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    fn file(text: &str) -> Node {
        Node::new(
            NodeKind::File { len: text.len() as u64, content: Digest::of(text.as_bytes()) },
            0o644,
        )
    }

    fn sample() -> Tree {
        let dir = || Node::new(NodeKind::Dir, 0o755);
        [("/", dir()), ("/a", dir()), ("/a/x", file("x")), ("/a.b", file("y")), ("/b", dir())]
            .into_iter()
            .map(|(p, n)| (path(p), n))
            .collect()
    }

    #[test]
    fn every_field_of_a_node_is_part_of_the_digest() {
        let base = sample();
        let mutations: [fn(&mut Node); 8] = [
            |n| n.mode ^= 1,
            |n| n.uid = 1,
            |n| n.gid = 1,
            |n| n.mtime.secs = 1,
            |n| n.mtime.nanos = 1,
            |n| {
                n.xattrs.insert(b"user.a".to_vec(), b"1".to_vec());
            },
            |n| n.kind = NodeKind::Fifo,
            |n| n.kind = NodeKind::HardLink { leader: ImagePath::root() },
        ];
        for (index, mutate) in mutations.iter().enumerate() {
            let mut node = file("x");
            mutate(&mut node);
            let mut tree = base.clone();
            tree.insert(path("/a/x"), node);
            assert_ne!(tree.digest(), base.digest(), "mutation {index}");
        }
    }

    #[test]
    fn a_tree_without_some_directory_has_the_digest_that_its_directories_give() {
        for gone in ["/", "/a", "/b", "/a/x"] {
            let mut tree = sample();
            tree.remove(&path(gone));
            let by_dirs = tree.dir_digests().remove(&ImagePath::root()).expect("a root");
            assert_eq!(tree.digest(), by_dirs, "without {gone}");
        }
        assert_eq!(sample().whole_digest(), sample().dir_digests().remove(&ImagePath::root()));
        assert!(sample().whole_digest().is_some());
    }

    #[test]
    fn two_trees_together_have_the_digests_that_each_has_alone() {
        let mut trees = vec![sample(), Tree::new()];
        for gone in ["/", "/a", "/b", "/a/x", "/a.b"] {
            let mut tree = sample();
            tree.remove(&path(gone));
            trees.push(tree);
        }
        for (at, text) in [("/a/x", "other"), ("/a/z", "x"), ("/b/x", "x"), ("/z", "z")] {
            let mut tree = sample();
            tree.insert(path(at), file(text));
            trees.push(tree);
        }
        let mut tree = sample();
        tree.insert(path("/a"), Node::new(NodeKind::Dir, 0o700));
        trees.push(tree);
        for (a, b) in trees.iter().flat_map(|a| trees.iter().map(move |b| (a, b))) {
            assert_eq!(Tree::digests(a, b), (a.digest(), b.digest()));
        }
    }

    #[test]
    fn a_directory_time_is_not_part_of_the_digest() {
        let mut dir = Node::new(NodeKind::Dir, 0o755);
        dir.mtime.secs = 99;
        let mut tree = sample();
        tree.insert(path("/b"), dir);
        assert_eq!(tree.digest(), sample().digest());
    }

    #[test]
    fn moving_a_file_changes_only_the_directories_above_it() {
        let mut tree = sample();
        let node = tree.remove(&path("/a/x")).expect("it is there");
        tree.insert(path("/a/z"), node);
        let (before, after) = (sample().dir_digests(), tree.dir_digests());
        assert_ne!(before[&path("/a")], after[&path("/a")]);
        assert_eq!(before[&path("/b")], after[&path("/b")]);
        assert_ne!(sample().digest(), tree.digest());
    }

    #[test]
    fn the_digest_is_frozen() {
        // The wire and every stored version depend on it.
        assert_eq!(
            sample().digest().to_string(),
            include_str!("../frozen/tree-digest.txt").trim_end()
        );
    }
}
