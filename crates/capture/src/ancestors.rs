//! Which file of the base a target's file is likely made of.

use std::cell::OnceCell;
use std::collections::HashMap;

use vireo_model::{Change, ImagePath, Node, Tree};

/// Shorter files of the base are no ancestors of renamed ones: a delta would be as long as the file.
const LEAST_LEN: u64 = 64;

/// A copy that was edited is at most so many times as long as its ancestor, or as short.
const MOST_TIMES: u64 = 2;

/// A name that more files have than this (`copyright`, `__init__.py`) says nothing.
const MAX_NAMESAKES: usize = 16;

/// Files of one kinship that are thought likely, at most.
const MOST_LIKELY: usize = 2;

/// Files by length, the shortest first.
type ByLen<'a> = Vec<(u64, &'a ImagePath)>;

/// Files of the base by what their names have in common with names in the target.
#[derive(Debug)]
pub(crate) struct Ancestors<'a> {
    base: &'a Tree,
    /// By the path with every number in it blotted out: `/usr/lib/libfoo.so.1.2` and `.1.3`,
    /// `/lib/modules/6.1.0-40/` and `6.1.0-41/`. The last of them in path order.
    by_shape: OnceCell<HashMap<Vec<u8>, &'a ImagePath>>,
    /// Files that the target has not, by name: they may have been moved.
    gone: HashMap<&'a [u8], Vec<&'a ImagePath>>,
    /// All files, by what makes them kin: see [`kinships`].
    kin: OnceCell<HashMap<&'a [u8], ByLen<'a>>>,
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
        Self { base, by_shape: OnceCell::new(), gone, kin: OnceCell::new() }
    }

    /// Made when it is needed: most changes need it not.
    fn by_shape(&self) -> &HashMap<Vec<u8>, &'a ImagePath> {
        self.by_shape.get_or_init(|| {
            let files = self.base.iter().filter(|(_, node)| is_file(node));
            files.map(|(path, _)| (shape(path.as_bytes()), path)).collect()
        })
    }

    /// Made when it is needed, too.
    fn kin(&self) -> &HashMap<&'a [u8], ByLen<'a>> {
        self.kin.get_or_init(|| {
            let mut kin: HashMap<&[u8], ByLen<'_>> = HashMap::new();
            for (path, node) in self.base.iter().filter(|(_, node)| is_file(node)) {
                let Some((len, _)) = node.content() else { continue };
                for kinship in kinships(path) {
                    kin.entry(kinship).or_default().push((len, path));
                }
            }
            kin.values_mut().for_each(|list| list.sort_by_key(|(len, _)| *len));
            kin
        })
    }

    /// The likely ancestor of the target's file at `path`, which is `len` bytes long, with its length.
    pub(crate) fn of(&self, path: &ImagePath, len: u64) -> Option<(ImagePath, u64)> {
        let len_of = |path: &ImagePath| self.base.get(path)?.content().map(|(len, _)| len);
        if let Some(len) = len_of(path) {
            return Some((path.clone(), len));
        }
        let moved = self.gone.get(path.name()).and_then(|list| nearest(list, path));
        let found = moved
            .or_else(|| self.by_shape().get(&shape(path.as_bytes())).copied())
            .or_else(|| self.namesake(path, len))?;
        Some((found.clone(), len_of(found)?))
    }

    /// A file elsewhere with the same name and about that length, which is still there: the target has a
    /// copy.
    fn namesake(&self, path: &ImagePath, len: u64) -> Option<&'a ImagePath> {
        let [_, tail, name, _] = kinships(path);
        let common = |list: &&ByLen<'_>| list.len() <= MAX_NAMESAKES;
        let lists = [tail, name].into_iter().filter_map(|kinship| self.kin().get(kinship));
        let mut alike = lists.filter(common).map(|list| {
            let alike = list.iter().filter(|(other, _)| are_alike(*other, len));
            alike.map(|(_, path)| *path).collect::<Vec<_>>()
        });
        alike.find_map(|list| nearest(&list, path))
    }

    /// Files of the base that the target's file at `path` may be made of although no name says so: those
    /// in its directory, its namesakes, and of all files those that are closest in length.
    pub(crate) fn likely(&self, path: &ImagePath, len: u64) -> Vec<(ImagePath, u64)> {
        let lists = kinships(path).into_iter().filter_map(|kinship| self.kin().get(kinship));
        let found = lists.flat_map(|list| closest(list, path, len));
        found.map(|(len, path)| (path.clone(), len)).collect()
    }

    /// Of those that are [likely](Self::likely) the one that is closest in length.
    pub(crate) fn closest(&self, path: &ImagePath, len: u64) -> Option<(ImagePath, u64)> {
        self.likely(path, len).into_iter().min_by_key(|(_, other)| other.abs_diff(len))
    }
}

/// What a file has in common with its kin: directory, name with that of the directory, name, and being a
/// file. None of them can be another's: how many slashes they have and where they stand tells them apart.
fn kinships(path: &ImagePath) -> [&[u8]; 4] {
    let bytes = path.as_bytes();
    let name = path.name();
    let dir = &bytes[..bytes.len() - name.len()];
    let parent = dir.iter().rev().skip(1).take_while(|byte| **byte != b'/').count();
    [dir, &bytes[dir.len().saturating_sub(parent + 1)..], name, b""]
}

fn are_alike(a: u64, b: u64) -> bool {
    a.max(b) <= a.min(b).saturating_mul(MOST_TIMES)
}

/// Those of `list` that are closest to `len`, the closest first, without `path` itself.
fn closest<'a>(
    list: &[(u64, &'a ImagePath)],
    path: &ImagePath,
    len: u64,
) -> Vec<(u64, &'a ImagePath)> {
    let at = list.partition_point(|(other, _)| *other < len);
    // One more each, in place of `path`.
    let from = at.saturating_sub(MOST_LIKELY + 1);
    let near = list[from..].iter().take(2 * (MOST_LIKELY + 1));
    let alike = near.filter(|(other, at)| are_alike(*other, len) && *at != path);
    let mut found: Vec<_> = alike.copied().collect();
    found.sort_by_key(|(other, _)| other.abs_diff(len));
    found.truncate(MOST_LIKELY);
    found
}

fn is_file(node: &Node) -> bool {
    node.content().is_some_and(|(len, _)| len >= LEAST_LEN)
}

/// The one whose last components agree most: a moved directory keeps what is below it. Then the one whose
/// beginning does: a copy mostly stands beside what it was made of.
fn nearest<'a>(list: &[&'a ImagePath], path: &ImagePath) -> Option<&'a ImagePath> {
    let alike = |other: &ImagePath| {
        let is_slash = |byte: &u8| *byte == b'/';
        let (one, two) = (other.as_bytes(), path.as_bytes());
        let ends = one.rsplit(is_slash).zip(two.rsplit(is_slash));
        let starts = one.iter().zip(two);
        let same = starts.take_while(|(a, b)| a == b).count();
        (ends.take_while(|(a, b)| a == b).count(), same)
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
        Ancestors::new(&base, &changes).of(&path(of), 1000).map(|(path, _)| path.to_string())
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

    #[test]
    fn a_copied_directory_finds_what_it_was_copied_from() {
        let base = ["/a/x/index", "/site/x/index", "/site/y/index"];
        let target = [&base[..], &["/site-new/x/index", "/site-new/y/index"]].concat();
        for (copy, of) in [("/site-new/x/index", base[1]), ("/site-new/y/index", base[2])] {
            assert_eq!(ancestor(&base, &target, copy).as_deref(), Some(of));
        }
        let common: Vec<String> = (0..=MAX_NAMESAKES).map(|n| format!("/{n}x/y/index")).collect();
        let common: Vec<&str> = common.iter().map(String::as_str).collect();
        let copied = |base: &[&str]| ancestor(base, &[base, &["/z/index"]].concat(), "/z/index");
        assert_eq!(copied(&common), None);
        assert!(copied(&common[1..]).is_some());
    }

    #[test]
    fn what_is_likely_is_kin_of_about_that_length() {
        let lens = [("/d/a", 900), ("/d/b", 1001), ("/d/c", 990), ("/d/e", 2001), ("/x/new", 700)];
        let other = [("/y/z", 1000), ("/y/long", 1 << 20), ("/y/short", 400)];
        let base: Tree = lens
            .into_iter()
            .chain(other)
            .map(|(name, len)| {
                let kind = NodeKind::File { len, content: Digest::of(name.as_bytes()) };
                (path(name), Node::new(kind, 0o644))
            })
            .collect();
        let found = Ancestors::new(&base, &[]).likely(&path("/d/new"), 1000);
        let found: Vec<String> = found.iter().map(|(path, _)| path.to_string()).collect();
        assert_eq!(found, ["/d/b", "/d/c", "/x/new", "/y/z", "/d/b"]);
        let own = Ancestors::new(&base, &[]).likely(&path("/y/z"), 1000);
        assert!(own.iter().all(|(found, _)| *found != path("/y/z")));
    }
}
