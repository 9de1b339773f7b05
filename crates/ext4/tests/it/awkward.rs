//! Every kind of file system that mke2fs makes, filled by mke2fs and debugfs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};
use vireo_ext4::{Known, ScanOptions};
use vireo_model::{DeviceKind, ImagePath, NodeKind};

use crate::images::{Place, ignore};

const KINDS: &[&[&str]] = &[
    &["-t", "ext2"],
    &["-t", "ext3"],
    &["-t", "ext4"],
    &["-t", "ext4", "-b", "1024"],
    &["-t", "ext4", "-b", "2048"],
    &["-t", "ext4", "-b", "4096"],
    &["-t", "ext4", "-I", "128"],
    &["-t", "ext4", "-O", "^64bit"],
    &["-t", "ext4", "-O", "^extent,^64bit"],
    &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"],
    &["-t", "ext4", "-O", "^metadata_csum"],
    &["-t", "ext4", "-O", "bigalloc"],
    &["-t", "ext4", "-O", "inline_data"],
    &["-t", "ext4", "-O", "inline_data,^metadata_csum", "-I", "512"],
    &["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"],
    &["-t", "ext4", "-O", "sparse_super2,^has_journal"],
    &["-t", "ext4", "-O", "ea_inode,large_dir"],
    &["-t", "ext4", "-O", "quota,project"],
    &["-t", "ext4", "-O", "orphan_file,metadata_csum_seed"],
];

fn fill(root: &Path) {
    for len in [0, 1, 59, 60, 61, 120, 160, 1000, 5000, 70_000] {
        fs::write(root.join(format!("file-{len}")), vec![b'x'; len]).expect("written");
        if len > 0 && len < 1000 {
            symlink("t".repeat(len), root.join(format!("link-{len}"))).expect("made");
        }
    }
    let many = root.join("many");
    fs::create_dir(&many).expect("made");
    for number in 0..300 {
        fs::write(many.join(format!("{number}-and-some-more-letters")), b"").expect("written");
    }
    for name in [&b"not\xffutf8"[..], b"new\nline", &[b'n'; 255]] {
        let path = root.join(std::ffi::OsStr::from_bytes(name));
        fs::write(path, name).expect("written");
    }
    let sparse = File::create(root.join("sparse")).expect("made");
    for block in 0..400_u64 {
        sparse.write_all_at(&(block + 1).to_le_bytes(), block * 3 * 4096).expect("written");
    }
    fs::hard_link(root.join("file-60"), root.join("a-first-name")).expect("linked");
    fs::hard_link(root.join("file-60"), many.join("one-more")).expect("linked");
    let mode = Mode::from_bits_truncate(0o640);
    mknodat(CWD, root.join("pipe"), FileType::Fifo, mode, 0).expect("made");
    mknodat(CWD, root.join("socket"), FileType::Socket, mode, 0).expect("made");
    fs::set_permissions(root.join("file-61"), fs::Permissions::from_mode(0o4711)).expect("set");
    for number in 0..8 {
        let (name, value) = (format!("user.number-{number}"), vec![b'v'; 30]);
        lsetxattr(root.join("file-120"), &name, &value, XattrFlags::empty())
            .expect("an attribute (the temporary directory needs a file system with them)");
    }
}

#[test]
fn every_kind_reads_as_what_was_put_in() {
    let place = Place::new();
    fill(&place.root());
    for options in KINDS {
        place.make(options, "32M");
        place.holds_the_root(options);
    }
}

#[test]
fn blocks_of_64_kib_are_read_though_no_usual_kernel_mounts_them() {
    let place = Place::new();
    fill(&place.root());
    place.make(&["-t", "ext4", "-b", "65536"], "64M");
    place.holds_the_root(&["-b", "65536"]);
}

#[test]
fn device_numbers_are_read() {
    let place = Place::new();
    place.make(&["-t", "ext4"], "4M");
    place.debugfs("mknod null c 1 3");
    place.debugfs("mknod disk b 259 300");
    let tree = place.tree();
    let kind = |path: &str| {
        let path = ImagePath::parse(path.as_bytes()).expect("valid");
        tree.get(&path).map(|node| node.kind.clone())
    };
    let device = |kind, major, minor| Some(NodeKind::Device { kind, major, minor });
    assert_eq!(kind("/null"), device(DeviceKind::Char, 1, 3));
    assert_eq!(kind("/disk"), device(DeviceKind::Block, 259, 300));
}

#[test]
fn a_window_of_a_file_reads_as_the_file() {
    let place = Place::new();
    fill(&place.root());
    place.make(&["-t", "ext4"], "32M");
    let reader = place.open().expect("opens");
    let entries = reader.walk_metadata(&ignore()).expect("read");
    let entry = entries.iter().find(|entry| entry.path.name() == b"sparse").expect("it is there");
    assert!(entry.state.sparse);
    let inode = reader.inode(entry.state.ino).expect("read");
    let extents = reader.extents(&inode).expect("read");
    assert!(extents.len() >= 400, "only {} extents", extents.len());
    let whole = fs::read(place.root().join("sparse")).expect("read");
    for (offset, len) in [(0, 10), (4090, 20), (12_280, 4096), (4_900_000, 100_000), (5_000_000, 1)]
    {
        let mut buffer = vec![1; len];
        let read = reader.read_at(&inode, offset as u64, &mut buffer).expect("read");
        let end = (offset + len).min(whole.len());
        assert_eq!(&buffer[..read], whole.get(offset..end).unwrap_or(&[]));
    }
}

#[test]
fn what_mke2fs_makes_twice_is_not_taken_for_one_file_system() {
    let place = Place::new();
    fs::write(place.root().join("page"), "before").expect("written");
    place.make(&["-t", "ext4"], "4M");
    let base = place.open().expect("opens").scan(&ignore(), &ScanOptions::default()).expect("read");
    fs::write(place.root().join("page"), "after!").expect("written");
    place.make(&["-t", "ext4"], "4M");
    let known = Known::from_scan(&base);
    let options = ScanOptions { known: Some(&known), ..ScanOptions::default() };
    let target = place.open().expect("opens").scan(&ignore(), &options).expect("read");
    assert_eq!(target.hashed, 1, "another UUID");
    assert_ne!(target.tree.digest(), base.tree.digest());
}

#[test]
fn content_beyond_the_limit_is_refused_before_it_is_read() {
    let place = Place::new();
    let file = File::create(place.root().join("sparse")).expect("made");
    file.set_len(1 << 40).expect("sized");
    place.make(&["-t", "ext4"], "4M");
    let reader = place.open().expect("opens");
    let options = ScanOptions { max_content_len: 1 << 30, ..ScanOptions::default() };
    let error = reader.scan(&ignore(), &options).expect_err("too long");
    assert_eq!(error.kind(), vireo_ext4::ErrorKind::Limit);
}

/// A node of a random tree.
#[derive(Clone, Debug)]
enum Entry {
    Dir,
    File(Vec<u8>, u16),
    Link(String),
    Attribute(Vec<u8>),
}

fn entry() -> impl Strategy<Value = (String, Entry)> {
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        (any::<u8>(), 0..100_000_usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    let kind = prop_oneof![
        Just(Entry::Dir),
        (content, 0..8_u16).prop_map(|(content, at)| Entry::File(content, at)),
        "[a-z/]{1,100}".prop_map(Entry::Link),
        prop::collection::vec(any::<u8>(), 0..150).prop_map(Entry::Attribute),
    ];
    ("[a-c]{1,2}(/[a-c]{1,2}){0,3}", kind)
}

fn write(root: &Path, entries: &[(String, Entry)]) {
    let mut taken = BTreeSet::new();
    for (name, entry) in entries {
        let path = root.join(name);
        let parent = path.parent().expect("below the root");
        if fs::create_dir_all(parent).is_err() || !taken.insert(path.clone()) || path.exists() {
            continue; // A file stands in the way.
        }
        match entry {
            Entry::Dir => fs::create_dir(&path).expect("made"),
            Entry::File(content, at) => {
                let file = File::create(&path).expect("made");
                file.write_all_at(content, u64::from(*at) * 5000).expect("written");
            }
            Entry::Link(target) => symlink(target, &path).expect("made"),
            Entry::Attribute(value) => {
                fs::write(&path, b"").expect("written");
                lsetxattr(&path, "user.a", value, XattrFlags::empty()).expect("set");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn random_trees_read_as_what_was_put_in(
        entries in prop::collection::vec(entry(), 0..60),
        kind in prop::sample::select(KINDS),
    ) {
        let place = Place::new();
        write(&place.root(), &entries);
        place.make(kind, "16M");
        place.holds_the_root(kind);
    }
}
