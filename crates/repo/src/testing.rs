//! For tests of whoever builds on the repository: images that need no root, and the contract of
//! [`ImageBuilder`] as code.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use vireo_delta::{Bundle, BundleWriter, Permits, SecretKey, Statement, TrustedKeys};
use vireo_image::RootPartition;
use vireo_model::{Change, ChangeSet, Digest, Grow, Ignore, ImagePath, Node, NodeKind, Tree};
use vireo_store::{Durable, Writes};
use vireo_wire::api::BuildStep;
use vireo_wire::tree_text;

use crate::builder::{BundleFile, ImageBuilder};
use crate::error::{Detail, RepoError, io_error};

/// Disk images that are the listings of their trees: patched without root, and as quickly.
#[derive(Debug)]
pub struct FakeImages {
    writes: Arc<dyn Writes>,
}

impl Default for FakeImages {
    fn default() -> Self {
        Self::writing_by(Arc::new(Durable))
    }
}

impl FakeImages {
    /// Images that are written by `writes`, which may stop.
    #[must_use]
    pub fn writing_by(writes: Arc<dyn Writes>) -> Self {
        Self { writes }
    }

    /// The disk image that holds `tree`.
    #[must_use]
    pub fn disk(tree: &Tree) -> Vec<u8> {
        tree_text::encode(tree).into_bytes()
    }
}

impl ImageBuilder for FakeImages {
    fn check(&self, disk: &Path, root: RootPartition, _repair: bool) -> Result<(), RepoError> {
        self.read_tree(disk, root, &Ignore::nothing()).map(drop)
    }

    fn read_tree(
        &self,
        disk: &Path,
        _root: RootPartition,
        ignore: &Ignore,
    ) -> Result<Tree, RepoError> {
        let bytes = fs::read(disk).map_err(io_error("read", disk))?;
        let tree = tree_text::parse(&bytes).map_err(|error| {
            let what = format!("{} is no disk image: {error}", disk.display());
            Detail::Refused { what }
        })?;
        let kept = tree.iter().filter(|(path, _)| !ignore.covers(path));
        Ok(kept.map(|(path, node)| (path.clone(), node.clone())).collect())
    }

    fn patch(
        &self,
        base: &Path,
        out: &Path,
        bundle: &BundleFile<'_>,
    ) -> Result<Vec<BuildStep>, RepoError> {
        let (root, bundle) = (bundle.root, bundle.bundle);
        // Real images are not built from damaged frames either.
        bundle.check().map_err(|error| Detail::Refused { what: error.to_string() })?;
        let mut tree = self.read_tree(base, root, &Ignore::nothing())?;
        let fits = |change: &Change| {
            let there = tree.get(&change.path);
            there == change.before.as_ref() || there == change.after.as_ref()
        };
        let drifted = !bundle.change_set().changes.iter().all(fits);
        bundle.change_set().apply_to(&mut tree);
        if drifted || tree.digest() != bundle.target() {
            let what = format!("{} is not the bundle's base", base.display());
            return Err(Detail::Refused { what }.into());
        }
        let disk = Self::disk(&tree);
        let partial = out.with_added_extension("partial");
        self.writes
            .write(&partial, &mut |file| file.write_all(&disk))
            .map_err(io_error("write", &partial))?;
        self.writes.rename(&partial, out).map_err(io_error("finish", out))?;
        Ok(vec![BuildStep { name: "patch".into(), millis: 0 }])
    }
}

/// A tree of regular files: a root directory, and each name with its content.
///
/// # Panics
///
/// If a name is no path; this is for tests.
#[must_use]
pub fn tree(files: &[(&str, &[u8])]) -> Tree {
    let dir = |mode| Node::new(NodeKind::Dir, mode);
    let mut tree: Tree = [(ImagePath::root(), dir(0o755))].into_iter().collect();
    for (name, content) in files {
        let path = ImagePath::parse(name.as_bytes()).expect("a test's path is valid");
        let kind = NodeKind::File { len: content.len() as u64, content: Digest::of(content) };
        tree.insert(path, Node::new(kind, 0o644));
    }
    tree
}

/// The bundle, signed by `key`, that turns one [`tree`] into another.
///
/// # Panics
///
/// If it cannot be written; this is for tests.
#[must_use]
pub fn bundle(base: &[(&str, &[u8])], target: &[(&str, &[u8])], key: &SecretKey) -> Vec<u8> {
    let base = tree(base);
    let changes = ChangeSet::between(&base, &tree(target));
    let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
    for (_, content) in target {
        writer
            .encode(Digest::of(content), content.len() as u64, false, *content)
            .expect("memory does not fail");
    }
    let mut file = Vec::new();
    let statement = Statement {
        changes: &changes,
        ignore: &Ignore::default(),
        permits: Permits::NONE,
        base_paths: base.len() as u64,
    };
    writer.finish(&statement, key, &mut file).expect("memory does not fail");
    file
}

/// Holds `builder` to the contract of [`ImageBuilder`], in the empty directory `dir`. `disk` makes
/// at a path the disk image of a tree, whose files all hold `1` or `2`, in place of what is there.
///
/// # Panics
///
/// If it does not keep it.
pub fn check_builder(builder: &dyn ImageBuilder, dir: &Path, disk: &dyn Fn(&Tree, &Path)) {
    let key = SecretKey::generate().expect("there is a random source");
    let trusted: TrustedKeys = [key.public()].into_iter().collect();
    let base: [(&str, &[u8]); 2] = [("/a", b"1"), ("/b", b"2")];
    let target: [(&str, &[u8]); 2] = [("/a", b"one"), ("/c", b"3")];
    let [base_path, out, other] = ["base.img", "out.img", "other.img"].map(|name| dir.join(name));
    let ignore = Ignore::default();
    disk(&tree(&base), &base_path);
    let root = RootPartition::Find;
    let read = |path: &Path| builder.read_tree(path, root, &ignore).expect("it is a disk image");
    builder.check(&base_path, root, false).expect("it is whole");
    assert_eq!(read(&base_path), tree(&base), "an image has the tree it was made with");

    let file = bundle(&base, &target, &key);
    let path = dir.join("update.vireo");
    fs::write(&path, &file).expect("the test's directory is writable");
    let bundle = Bundle::open(&file).and_then(|bundle| bundle.verify(&trusted)).expect("a bundle");
    let bundle =
        BundleFile { bundle: &bundle, path: &path, trusted: &trusted, grow: Grow::No, root };
    let steps = builder.patch(&base_path, &out, &bundle).expect("it fits");
    assert!(!steps.is_empty(), "it says what it did");
    assert_eq!(read(&out), tree(&target), "the patched image has the target's tree");
    assert_eq!(read(&base_path), tree(&base), "the base stays as it is");

    let strange = dir.join("strange.img");
    disk(&tree(&[("/a", b"2"), ("/b", b"2")]), &strange);
    let wrong = builder.patch(&strange, &other, &bundle).expect_err("that is not its base");
    assert_eq!(wrong.kind(), crate::ErrorKind::Refused);
    disk(&tree(&[("/a", b"1"), ("/b", b"2"), ("/d", b"2")]), &strange);
    let wrong = builder.patch(&strange, &other, &bundle).expect_err("it has more than the base");
    assert_eq!(wrong.kind(), crate::ErrorKind::Refused);
    assert!(!other.exists(), "a refused patch leaves nothing under the name");
    fs::write(&other, "no image").expect("the test's directory is writable");
    let refused = builder.read_tree(&other, root, &ignore).expect_err("that is no image");
    assert_eq!(refused.kind(), crate::ErrorKind::Refused);
    let refused = builder.check(&other, root, true).expect_err("that is no image");
    assert_eq!(refused.kind(), crate::ErrorKind::Refused);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fake_keeps_the_contract() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        check_builder(&FakeImages::default(), dir.path(), &|tree, path| {
            fs::write(path, FakeImages::disk(tree)).expect("writable");
        });
    }
}
