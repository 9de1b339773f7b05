//! Patching without mounting: with no more rights than whoever runs the tests has. What it makes is
//! the bundle's target to the letter, or nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Cursor;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};
use vireo_delta::{Bundle, BundleWriter, Permits, SecretKey, Statement, TrustedKeys};
use vireo_image::unmounted::{self, Unfinished};
use vireo_image::{
    Backend, ErrorKind, ImageError, PatchOptions, Patched, RootPartition, fsck, patch_with,
};
use vireo_model::{ChangeSet, Digest, Grow, Ignore, ImagePath, Node, NodeKind, Tree};
use vireo_testkit::Random;

/// Pairs of random trees.
const CASES: u64 = 12;

const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"lib.so.1",
    b"-rf",
    b"<2>",
    b"#no comment",
    b"with space",
    b"not\xffutf8",
    b"quote'\"\"\\",
    b"tab\tand\x07bell",
    b"\"",
    &[b'n'; 255],
];

struct Scene {
    dir: tempfile::TempDir,
    key: SecretKey,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["base", "target"] {
            fs::create_dir(dir.path().join(name)).expect("made");
        }
        Self { dir, key: SecretKey::generate().expect("there is a random source") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory `name` as an image beside it.
    fn image(&self, name: &str, kind: &[&str]) -> PathBuf {
        let image = self.path(&format!("{name}.img"));
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-F", "-m", "0"]).args(kind).arg("-d").arg(self.path(name));
        let status = mke2fs.arg(&image).arg("24M").status();
        assert!(status.expect("mke2fs runs (package e2fsprogs)").success());
        image
    }

    /// The bundle between the trees in two images, whose contents are in the two directories.
    fn bundle(&self, base: &Tree, target: &Tree) -> Vec<u8> {
        let mut contents = BTreeMap::new();
        for (path, node) in target.iter().filter(|(path, _)| !path.is_root()) {
            if let Some((_, digest)) = node.content() {
                let name = std::ffi::OsStr::from_bytes(path.relative());
                contents
                    .insert(digest, fs::read(self.path("target").join(name)).expect("readable"));
            }
        }
        let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
        for (digest, bytes) in contents {
            writer.encode(digest, bytes.len() as u64, false, &bytes[..]).expect("encoded");
        }
        let changes = ChangeSet::between(base, target);
        let statement = Statement {
            changes: &changes,
            ignore: &Ignore::default(),
            permits: Permits::SETUID | Permits::DEVICES | Permits::MASS,
            base_paths: base.len() as u64,
        };
        let mut file = Vec::new();
        writer.finish(&statement, &self.key, &mut file).expect("written");
        file
    }

    fn patch(&self, base: &Path, out: &Path, bundle: &[u8]) -> Result<Patched, ImageError> {
        let trusted = TrustedKeys::from_iter([self.key.public()]);
        let bundle = Bundle::open(bundle).and_then(|b| b.verify(&trusted)).expect("a bundle");
        let options = PatchOptions { backend: Backend::Rootless, ..PatchOptions::default() };
        patch_with(base, out, &bundle, &options, &mut |_| ())
    }

    /// Nothing unfinished lies about.
    fn is_tidy(&self) {
        let names = fs::read_dir(self.dir.path()).expect("readable");
        for name in names.map(|entry| entry.expect("readable").file_name()) {
            assert!(!name.as_bytes().ends_with(b".partial"), "{name:?} is left");
        }
    }
}

fn tree(image: &Path) -> Tree {
    unmounted::read_tree(image, &Ignore::default()).expect("it is an image")
}

fn clean(image: &Path) {
    let disk = vireo_image::DiskImage::open(image, RootPartition::Find).expect("it opens");
    fsck(image, disk.partition()).expect("it is clean");
}

/// What a bundle says comes out, in every kind of file system, or `kind` is not what is needed.
fn becomes_the_target(scene: &Scene, kind: &[&str]) {
    let (base, target) = (scene.image("base", kind), scene.image("target", kind));
    let (before, after) = (tree(&base), tree(&target));
    let out = scene.path("out?x=1 \"odd\".img");
    let patched = scene.patch(&base, &out, &scene.bundle(&before, &after));
    let patched = patched.unwrap_or_else(|error| panic!("{kind:?}: {}", chain(&error)));
    assert_eq!(patched.tree, after.digest());
    assert_eq!(tree(&out), after, "{kind:?}");
    assert_eq!(tree(&base), before, "the base stays as it is");
    clean(&out);
    scene.is_tidy();
    fs::remove_file(out).expect("removed");
}

fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(chain).map_or(String::new(), |cause| format!(": {cause}"));
    format!("{error}{cause}")
}

fn os(name: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(name)
}

/// Fills `dir` at random with what needs no rights.
fn fill(dir: &Path, depth: u32, random: &mut Random, linkable: &mut Vec<PathBuf>) {
    for _ in 0..2 + random.below(6) {
        let path = dir.join(os(random.pick(NAMES)));
        if path.symlink_metadata().is_ok() {
            continue;
        }
        match random.below(9) {
            0..=2 if depth < 3 => {
                fs::create_dir(&path).expect("made");
                fill(&path, depth + 1, random, linkable);
            }
            3 => symlink(os(random.pick(NAMES)), &path).expect("made"),
            4 => {
                mknodat(CWD, &path, FileType::Fifo, Mode::from_bits_truncate(0o640), 0)
                    .expect("made");
            }
            5 if !linkable.is_empty() => {
                let at = usize::try_from(random.below(linkable.len() as u64)).expect("small");
                if linkable[at].exists() {
                    fs::hard_link(&linkable[at], &path).expect("linked");
                }
                continue;
            }
            _ => {
                let len = usize::try_from(random.below(40_000)).expect("small");
                fs::write(&path, random.bytes(len)).expect("written");
                linkable.push(path.clone());
            }
        }
        dress(&path, random);
    }
}

/// Gives a node other metadata.
fn dress(path: &Path, random: &mut Random) {
    let metadata = path.symlink_metadata().expect("there");
    if metadata.is_symlink() {
        return;
    }
    let mode = 0o700 | u32::try_from(random.below(0o100)).expect("small");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its owner may");
    if metadata.is_file() {
        if random.once_in(2) {
            let len = usize::try_from(random.below(300)).expect("small");
            let value = random.bytes(len);
            lsetxattr(path, "user.note", &value, XattrFlags::empty()).expect("xattrs");
        }
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(random.below(4_000_000_000));
        File::options().write(true).open(path).and_then(|f| f.set_modified(time)).expect("set");
    }
}

/// Removes, edits, replaces and adds.
fn mutate(dir: &Path, random: &mut Random) {
    let mut linkable = Vec::new();
    let paths = fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").path());
    let mut paths: Vec<PathBuf> = paths.collect();
    paths.sort();
    for path in paths {
        let is_dir = path.symlink_metadata().expect("there").is_dir();
        match random.below(5) {
            0 if is_dir => fs::remove_dir_all(&path).expect("removed"),
            0 | 1 if !is_dir => {
                fs::remove_file(&path).expect("removed");
                if random.once_in(2) {
                    fs::create_dir(&path).expect("made");
                    fill(&path, 2, random, &mut linkable);
                }
            }
            2 => dress(&path, random),
            _ if is_dir => mutate(&path, random),
            _ => {}
        }
    }
    fill(dir, 2, random, &mut linkable);
}

#[test]
fn random_images_become_their_targets_without_root() {
    const KINDS: &[&[&str]] = &[
        &["-t", "ext4"],
        &["-t", "ext4", "-b", "4096"],
        &["-t", "ext4", "-O", "^metadata_csum,^64bit"],
        &["-t", "ext3"],
        &["-t", "ext2", "-I", "256"],
        &["-t", "ext4", "-O", "^has_journal,inline_data"],
    ];
    for seed in 0..CASES {
        let scene = Scene::new();
        let mut random = Random::new(seed);
        fill(&scene.path("base"), 0, &mut random, &mut Vec::new());
        let mut copy = Command::new("cp");
        copy.arg("-aT").args([scene.path("base"), scene.path("target")]);
        assert!(copy.status().expect("cp runs").success());
        mutate(&scene.path("target"), &mut random);
        let kind = KINDS[usize::try_from(seed).expect("small") % KINDS.len()];
        eprintln!("seed {seed}, {kind:?}");
        becomes_the_target(&scene, kind);
    }
}

#[test]
fn names_of_one_inode_are_linked_anew_and_counted() {
    let scene = Scene::new();
    for name in ["base", "target"] {
        let dir = scene.path(name);
        for (first, others) in [("kept", 3), ("edited", 2), ("parted", 2), ("gone", 2)] {
            fs::write(dir.join(first), first).expect("written");
            for n in 0..others {
                fs::hard_link(dir.join(first), dir.join(format!("{first}-{n}"))).expect("linked");
            }
        }
    }
    let target = |name: &str| scene.path("target").join(name);
    // More names, fewer names, other content, an inode of its own, the first name gone.
    fs::hard_link(target("kept"), target("kept-more")).expect("linked");
    fs::remove_file(target("kept-0")).expect("removed");
    fs::write(target("edited"), "other content").expect("written");
    fs::remove_file(target("parted-1")).expect("removed");
    fs::write(target("parted-1"), "parted").expect("written");
    fs::remove_file(target("gone")).expect("removed");
    becomes_the_target(&scene, &["-t", "ext4"]);
}

#[test]
fn a_full_directory_takes_more_names() {
    let scene = Scene::new();
    for name in ["base", "target"] {
        let more = if name == "base" { 300 } else { 900 };
        let dir = scene.path(name).join("dir");
        fs::create_dir(&dir).expect("made");
        fs::write(dir.join("first"), "x").expect("written");
        for n in 0..more {
            let path = dir.join(format!("{n}-{}", "n".repeat(100)));
            match n % 3 {
                0 => fs::write(path, "x").expect("written"),
                1 => symlink("first", path).expect("made"),
                _ => fs::hard_link(dir.join("first"), path).expect("linked"),
            }
        }
    }
    becomes_the_target(&scene, &["-t", "ext4", "-b", "1024"]);
}

#[test]
fn what_cannot_be_done_is_refused_and_leaves_nothing() {
    let scene = Scene::new();
    fs::write(scene.path("base").join("file"), "x").expect("written");
    fs::write(scene.path("target").join("line\nend"), "x").expect("written");
    let (base, target) =
        (scene.image("base", &["-t", "ext4"]), scene.image("target", &["-t", "ext4"]));
    let (before, after) = (tree(&base), tree(&target));
    let out = scene.path("out.img");
    let bundle = scene.bundle(&before, &after);
    let refused = scene.patch(&base, &out, &bundle).expect_err("debugfs has no line ends");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("line\\nend"), "{refused}");

    // Another base: where the bundle works, and elsewhere.
    fs::write(scene.path("base").join("file"), "y").expect("written");
    let other = scene.image("base", &["-t", "ext4"]);
    let refused = scene.patch(&other, &out, &bundle).expect_err("not its base");
    assert_eq!(refused.kind(), ErrorKind::WrongBase, "{refused}");
    assert!(refused.to_string().contains("/file"), "{refused}");
    fs::write(scene.path("base").join("file"), "x").expect("written");
    fs::write(scene.path("base").join("elsewhere"), "y").expect("written");
    let other = scene.image("base", &["-t", "ext4"]);
    let refused = scene.patch(&other, &out, &bundle).expect_err("not its base");
    assert!(matches!(refused.kind(), ErrorKind::Mismatch | ErrorKind::WrongBase), "{refused}");

    scene.is_tidy();
}

#[test]
fn an_image_without_room_is_refused_and_leaves_nothing() {
    let scene = Scene::new();
    let filler = Random::new(1).bytes(14 << 20);
    for name in ["base", "target"] {
        fs::write(scene.path(name).join("filler"), &filler).expect("written");
    }
    let base = scene.image("base", &["-t", "ext4"]);
    let before = tree(&base);
    let big = Random::new(2).bytes(12 << 20);
    fs::write(scene.path("target").join("big"), &big).expect("written");
    let mut after = before.clone();
    let kind = NodeKind::File { len: big.len() as u64, content: Digest::of(&big) };
    after.insert(ImagePath::parse(b"/big").expect("a path"), Node::new(kind, 0o644));
    let out = scene.path("out.img");
    let refused = scene.patch(&base, &out, &scene.bundle(&before, &after));
    let refused = refused.expect_err("there is no room");
    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{}", chain(&refused));
    assert!(!out.exists());
    scene.is_tidy();
}

#[test]
fn an_image_that_is_the_target_already_is_copied() {
    let scene = Scene::new();
    fs::write(scene.path("target").join("file"), "x").expect("written");
    let (base, target) =
        (scene.image("base", &["-t", "ext4"]), scene.image("target", &["-t", "ext4"]));
    let bundle = scene.bundle(&tree(&base), &tree(&target));
    let patched = scene.patch(&target, &scene.path("out.img"), &bundle).expect("nothing to do");
    assert_eq!(patched.already, 1);
    let reader = unmounted::open(&scene.path("out.img"), RootPartition::Find, Unfinished::Refuse);
    reader.expect("it is an image");
}

#[test]
fn an_image_that_may_grow_is_not_patched_by_what_cannot_make_it_larger() {
    let scene = Scene::new();
    fs::write(scene.path("target/a"), "next").expect("written");
    let (base, target) = (scene.image("base", &[]), scene.image("target", &[]));
    let bundle = scene.bundle(&tree(&base), &tree(&target));
    let trusted = TrustedKeys::from_iter([scene.key.public()]);
    let bundle = Bundle::open(&bundle).and_then(|b| b.verify(&trusted)).expect("a bundle");
    for grow in [Grow::Auto, Grow::To(1 << 30)] {
        let options = PatchOptions { backend: Backend::Rootless, grow, ..PatchOptions::default() };
        let out = scene.path("out.img");
        let error = patch_with(&base, &out, &bundle, &options, &mut |_| ()).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("cannot be made larger without mounting"), "{error}");
        assert!(!out.exists());
        scene.is_tidy();
    }
}
