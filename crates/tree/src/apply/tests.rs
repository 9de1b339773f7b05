//! Apply on real directories: round trips, drift, interruption at every step.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use vireo_delta::{Bundle, BundleWriter, SecretKey, Statement, TrustedKeys, permits_needed};
use vireo_model::{ChangeSet, Ignore, Tree};

use super::*;
use crate::{ErrorKind, ScanOptions, scan};

pub(super) fn key() -> SecretKey {
    format!("vireo-secret-key-v1:{}", "42".repeat(32)).parse().expect("a fixed key")
}

/// The tree in `dir`, of which `efi` is on FAT, if it is there.
pub(super) fn open(dir: &Path) -> Result<Root, TreeError> {
    let root = Root::open(dir)?;
    let Ok(top) = fs::File::open(dir.join("efi")) else { return Ok(root) };
    Ok(root.with_fat(ImagePath::parse(b"/efi").expect("a valid path"), top.into()))
}

pub(super) fn read(dir: &Path) -> Tree {
    let root = open(dir).expect("a directory");
    scan(&root, &Ignore::default(), &ScanOptions::default()).expect("readable").tree
}

/// The bundle from the directory `base` to the directory `target`.
pub(super) fn bundle(base: &Path, target: &Path) -> Vec<u8> {
    let changes = ChangeSet::between(&read(base), &read(target));
    let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
    for change in &changes.changes {
        let at = |dir: &Path| dir.join(std::str::from_utf8(change.path.relative()).expect("UTF-8"));
        if change.before.as_ref().is_some_and(|node| node.content().is_some()) {
            writer
                .index_base(&change.path, &fs::read(at(base)).expect("readable")[..])
                .expect("indexed");
        }
        if let Some((len, digest)) = change.after.as_ref().and_then(Node::content) {
            let sparse = fs::metadata(at(target)).expect("there").blocks() * 512 < len;
            writer
                .encode(digest, len, sparse, &fs::read(at(target)).expect("readable")[..])
                .expect("encoded");
        }
    }
    let mut file = Vec::new();
    let base_paths = read(base).len() as u64;
    let permits = permits_needed(&changes, base_paths);
    let statement =
        Statement { changes: &changes, ignore: &Ignore::default(), permits, base_paths };
    writer.finish(&statement, &key(), &mut file).expect("written");
    file
}

use vireo_model::Node;

/// The bundle in `file`, once its signature was checked.
pub(super) fn verified(file: &[u8]) -> Bundle<'_, Verified<'_>> {
    let bundle = Bundle::open(file).expect("whole");
    bundle.verify(&TrustedKeys::from_iter([key().public()])).expect("signed")
}

fn apply(dir: &Path, file: &[u8]) -> Result<Vec<Replaced>, TreeError> {
    let bundle = verified(file);
    let root = Root::open(dir)?;
    let committed = stage(&root, &bundle, &ApplyOptions::default())?.commit()?;
    let replaced = committed.replaced().to_vec();
    committed.finish()?;
    Ok(replaced)
}

/// What systemd-boot starts from, with everything that can change there.
pub(super) fn populate_fat(dir: &Path, edition: u8) {
    let at = |name: &str| dir.join("efi").join(name);
    let write = |name: &str, content: &[u8]| {
        fs::create_dir_all(at(name).parent().expect("it has one")).expect("made");
        fs::write(at(name), content).expect("written");
    };
    write(&format!("debian/{edition}/linux"), &vec![edition; 70_000]);
    write(&format!("loader/entries/{edition}.conf"), b"linux");
    write("loader/loader.conf", format!("default {edition}").as_bytes());
    write("EFI/BOOT/BOOTX64.EFI", &vec![edition; 30_000]);
    write("EFI/same", b"same");
    // The machine's own, with what a mount would never show.
    write("loader/random-seed", dir.as_os_str().as_encoded_bytes());
    write(if edition == 1 { "changes" } else { "changes/to/dir" }, b"text");
    write(if edition == 1 { "back/file" } else { "back" }, b"text");
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A directory with every kind of node that needs no privilege.
pub(super) fn populate(dir: &Path, edition: u8) {
    let at = |name: &str| dir.join(name);
    for name in ["etc/nginx", "usr/lib", "usr/bin", "var/log", "srv"] {
        fs::create_dir_all(at(name)).expect("made");
    }
    let text = |n: usize| (0..n).map(|i| format!("line {i}\n")).collect::<String>();
    fs::write(at("etc/nginx/nginx.conf"), format!("edition {edition}")).expect("written");
    fs::write(at("usr/lib/libx.so.1"), vec![edition; 50_000]).expect("written");
    fs::write(at("usr/bin/tool"), text(5000)).expect("written");
    fs::set_permissions(at("usr/bin/tool"), fs::Permissions::from_mode(0o4755)).expect("set");
    fs::hard_link(at("usr/bin/tool"), at("usr/bin/tool-alias")).expect("linked");
    symlink(format!("libx.so.{edition}"), at("usr/lib/libx.so")).expect("linked");
    if edition == 1 {
        fs::write(at("srv/gone"), "gone").expect("written");
        fs::create_dir_all(at("srv/olddir/below")).expect("made");
        fs::write(at("srv/olddir/below/f"), "x").expect("written");
        fs::write(at("srv/becomes-dir"), "file").expect("written");
        fs::create_dir_all(at("srv/becomes-file/deep")).expect("made");
        fs::write(at("srv/becomes-file/deep/f"), "x").expect("written");
        fs::write(at("srv/linked"), "alone").expect("written");
    } else {
        fs::write(at("usr/bin/tool"), text(6000)).expect("rewritten, both names");
        fs::create_dir_all(at("srv/newdir/below")).expect("made");
        fs::write(at("srv/newdir/below/f"), "y").expect("written");
        fs::create_dir_all(at("srv/becomes-dir")).expect("made");
        fs::write(at("srv/becomes-dir/f"), "in it").expect("written");
        fs::write(at("srv/becomes-file"), "file now").expect("written");
        fs::hard_link(at("usr/bin/tool"), at("srv/linked")).expect("linked");
        let sparse = fs::File::create(at("srv/sparse")).expect("made");
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 2 << 20).expect("written");
        fs::set_permissions(at("etc/nginx"), fs::Permissions::from_mode(0o750)).expect("set");
    }
}

fn pair() -> (tempfile::TempDir, tempfile::TempDir, Vec<u8>) {
    let (base, target) = (temp(), temp());
    populate(base.path(), 1);
    populate(target.path(), 2);
    let file = bundle(base.path(), target.path());
    (base, target, file)
}

#[test]
fn applying_makes_the_target_and_again_changes_nothing() {
    let (base, target, file) = pair();
    let replaced = apply(base.path(), &file).expect("applies");
    assert_eq!(read(base.path()), read(target.path()));
    assert!(replaced.iter().any(|r| r.path.as_bytes() == b"/usr/lib/libx.so.1"));
    let sparse = fs::metadata(base.path().join("srv/sparse")).expect("there");
    assert!(sparse.blocks() * 512 < 1 << 20, "the hole stayed a hole");
    let ino = |name: &str| fs::metadata(base.path().join(name)).expect("there").ino();
    assert_eq!(ino("usr/bin/tool"), ino("usr/bin/tool-alias"));
    assert_eq!(ino("usr/bin/tool"), ino("srv/linked"));
    let before = ino("usr/bin/tool");
    assert_eq!(apply(base.path(), &file).expect("applies again"), []);
    assert_eq!(ino("usr/bin/tool"), before, "the same content is not written again");
}

#[test]
fn a_local_edit_is_refused_with_its_path_and_nothing_changes() {
    let (base, _target, file) = pair();
    fs::write(base.path().join("etc/nginx/nginx.conf"), "edited here").expect("written");
    fs::write(base.path().join("srv/newdir"), "in the way").expect("written");
    let before = read(base.path());
    let error = apply(base.path(), &file).expect_err("drifted");
    assert_eq!(error.kind(), ErrorKind::Drift);
    let drifted: Vec<String> = error.drifted().iter().map(ToString::to_string).collect();
    assert_eq!(drifted, ["/etc/nginx/nginx.conf", "/srv/newdir"]);
    assert!(error.to_string().contains("/etc/nginx/nginx.conf"), "{error}");
    assert_eq!(read(base.path()), before);
}

#[test]
fn a_directory_that_holds_local_files_is_not_removed_blindly() {
    let (base, _target, file) = pair();
    fs::write(base.path().join("srv/olddir/local"), "mine").expect("written");
    let error = apply(base.path(), &file).expect_err("drifted");
    assert_eq!(error.drifted()[0].to_string(), "/srv/olddir/local");
}

#[test]
fn a_symbolic_link_on_the_way_does_not_lead_outside() {
    let (base, _target, file) = pair();
    let outside = temp();
    populate(outside.path(), 1);
    fs::remove_dir_all(base.path().join("etc")).expect("removed");
    symlink(outside.path().join("etc"), base.path().join("etc")).expect("linked");
    let before = read(outside.path());
    let error = apply(base.path(), &file).expect_err("drifted");
    assert_eq!(error.kind(), ErrorKind::Drift);
    assert_eq!(read(outside.path()), before, "nothing was written through the link");
}

#[test]
fn what_stands_where_the_state_belongs_is_named_and_left_alone() {
    let (base, _target, file) = pair();
    let (state, outside) = (base.path().join(".vireo"), temp());
    let refused = || {
        let error = apply(base.path(), &file).expect_err("no directory");
        assert!(error.to_string().contains(".vireo is where updates keep their state"), "{error}");
    };
    fs::write(&state, "mine").expect("written");
    let before = read(base.path());
    refused();
    assert_eq!(fs::read_to_string(&state).expect("readable"), "mine");
    fs::remove_file(&state).expect("removed");
    symlink(outside.path(), &state).expect("linked");
    refused();
    assert_eq!(fs::read_dir(outside.path()).expect("readable").count(), 0);
    assert_eq!(read(base.path()), before);
}

#[test]
fn one_update_at_a_time() {
    let (base, _target, file) = pair();
    let bundle = verified(&file);
    let root = Root::open(base.path()).expect("a directory");
    let staged = stage(&root, &bundle, &ApplyOptions::default()).expect("stages");
    assert_eq!(apply(base.path(), &file).expect_err("locked").kind(), ErrorKind::Busy);
    staged.discard().expect("discarded");
    apply(base.path(), &file).expect("free again");
}

#[test]
fn a_file_that_changes_after_staging_stops_the_commit() {
    let (base, _target, file) = pair();
    let bundle = verified(&file);
    let root = Root::open(base.path()).expect("a directory");
    let staged = stage(&root, &bundle, &ApplyOptions::default()).expect("stages");
    fs::write(base.path().join("etc/nginx/nginx.conf"), "edited meanwhile").expect("written");
    assert_eq!(staged.commit().expect_err("changed").kind(), ErrorKind::Busy);
    assert!(matches!(recover(&root).expect("recovers"), Recovered::Discarded));
}

/// Makes `to`, an empty directory, like `from`: links, modes and times are kept.
pub(super) fn copy_tree(from: &Path, to: &Path) {
    copy_dir(from, to, &mut BTreeMap::new());
}

fn copy_dir(from: &Path, to: &Path, copied: &mut BTreeMap<u64, PathBuf>) {
    for entry in fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let (at, metadata) = (to.join(entry.file_name()), entry.metadata().expect("there"));
        if metadata.is_dir() {
            fs::create_dir(&at).expect("made");
            copy_dir(&entry.path(), &at, copied);
            continue;
        }
        if let Some(first) = copied.get(&metadata.ino()) {
            fs::hard_link(first, &at).expect("linked");
            continue;
        }
        if metadata.is_symlink() {
            symlink(fs::read_link(entry.path()).expect("readable"), &at).expect("linked");
        } else {
            fs::copy(entry.path(), &at).expect("copied");
        }
        let time =
            rustix::fs::Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() as _ };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, &at, &times, flags).expect("set");
        copied.insert(metadata.ino(), at);
    }
    let metadata = fs::metadata(from).expect("there");
    fs::set_permissions(to, metadata.permissions()).expect("set");
    let dir = fs::File::open(to).expect("opens");
    dir.set_modified(metadata.modified().expect("known")).expect("set");
}

#[test]
fn a_copied_tree_is_the_same_tree() {
    let (base, target, copy) = (temp(), temp(), temp());
    populate(base.path(), 1);
    populate(target.path(), 2);
    for dir in [&base, &target] {
        let copy = copy.path().join(if dir.path() == base.path() { "base" } else { "target" });
        fs::create_dir(&copy).expect("made");
        copy_tree(dir.path(), &copy);
        assert_eq!(read(&copy), read(dir.path()));
    }
}

#[test]
fn an_update_interrupted_before_its_commit_is_discarded() {
    let (base, _target, file) = pair();
    let before = read(base.path());
    let bundle = verified(&file);
    let root = Root::open(base.path()).expect("a directory");
    drop(stage(&root, &bundle, &ApplyOptions::default()).expect("stages"));
    assert!(matches!(recover(&root).expect("recovers"), Recovered::Discarded));
    assert!(matches!(recover(&root).expect("recovers"), Recovered::Nothing));
    assert_eq!(read(base.path()), before);
    seal(&root, &bundle).expect("it is empty");
    assert!(!base.path().join(".vireo").exists());
}

#[test]
fn a_journal_that_cannot_be_read_is_an_error_not_a_guess() {
    let (base, _target, file) = pair();
    let bundle = verified(&file);
    let root = Root::open(base.path()).expect("a directory");
    let staged = stage(&root, &bundle, &ApplyOptions::default()).expect("stages");
    let plan = base.path().join(".vireo/1-committed/plan");
    staged.journal.advance(staged.txn, State::Committed).expect("committed");
    drop(staged);
    let before = read(base.path());
    let whole = fs::read(&plan).expect("readable");
    let mut newer = whole.clone();
    newer[4] += 1;
    for (bytes, kind) in [
        (&whole[..300], ErrorKind::Corrupt),
        (&[][..], ErrorKind::Corrupt),
        (&newer[..], ErrorKind::Unsupported),
    ] {
        fs::write(&plan, bytes).expect("written");
        let error = recover(&root).expect_err("unreadable");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(".vireo/1"), "{error}");
        assert_eq!(read(base.path()), before);
    }
    fs::write(&plan, &whole).expect("written");
    assert!(matches!(recover(&root), Ok(Recovered::Completed(_))));
}

#[test]
fn what_somebody_else_changed_meanwhile_stops_recovery_before_it_starts() {
    let (base, target, file) = pair();
    let bundle = verified(&file);
    let root = Root::open(base.path()).expect("a directory");
    let staged = stage(&root, &bundle, &ApplyOptions::default()).expect("stages");
    staged.journal.advance(staged.txn, State::Committed).expect("committed");
    drop(staged);
    let page = base.path().join("etc/nginx/nginx.conf");
    fs::rename(&page, page.with_extension("mine")).expect("renamed");
    fs::write(&page, "somebody else's").expect("written");
    let before = read(base.path());
    let error = recover(&root).expect_err("a conflict");
    assert_eq!(error.kind(), ErrorKind::Drift);
    assert_eq!(error.drifted()[0].to_string(), "/etc/nginx/nginx.conf");
    assert_eq!(read(base.path()), before);
    fs::rename(page.with_extension("mine"), &page).expect("put back");
    let Recovered::Completed(committed) = recover(&root).expect("recovers") else {
        panic!("it was committed");
    };
    committed.finish_for_good().expect("finished");
    assert_eq!(read(base.path()), read(target.path()));
}

#[test]
fn an_undo_gives_the_base_back_with_its_inodes() {
    let (base, target, file) = pair();
    let before = read(base.path());
    let inodes = |names: &[&str]| -> Vec<u64> {
        names
            .iter()
            .map(|name| fs::symlink_metadata(base.path().join(name)).expect("there").ino())
            .collect()
    };
    let names = [
        "etc/nginx/nginx.conf",
        "usr/lib/libx.so.1",
        "usr/bin/tool",
        "srv/gone",
        "usr/lib/libx.so",
    ];
    let base_inodes = inodes(&names);
    apply(base.path(), &file).expect("applies");
    let root = Root::open(base.path()).expect("a directory");
    let past = history(&root).expect("readable");
    assert_eq!(past.len(), 1);
    assert!(past[0].kept_len > 50_000, "{past:?}");
    let staged = stage_undo(&root, 1, &UndoOptions::default()).expect("stages");
    assert!(!staged.replaced().is_empty());
    staged.commit().and_then(Committed::finish).expect("undone");
    assert_eq!(read(base.path()), before);
    assert_eq!(inodes(&names), base_inodes);
    assert_eq!(history(&root).expect("readable"), []);
    let error = stage_undo(&root, 1, &UndoOptions::default()).expect_err("it is gone");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    apply(base.path(), &file).expect("applies again");
    assert_eq!(read(base.path()), read(target.path()));
}

#[test]
fn several_updates_are_undone_in_one_step() {
    let editions = [1, 2, 3].map(|edition| {
        let dir = temp();
        populate(dir.path(), edition);
        if edition == 3 {
            let tool = dir.path().join("usr/bin/tool");
            fs::set_permissions(tool, fs::Permissions::from_mode(0o755)).expect("set");
        }
        dir
    });
    let machine = temp();
    copy_tree(editions[0].path(), machine.path());
    let first = read(machine.path());
    for pair in editions.windows(2) {
        apply(machine.path(), &bundle(pair[0].path(), pair[1].path())).expect("applies");
    }
    let root = Root::open(machine.path()).expect("a directory");
    let last = read(machine.path());
    let numbers: Vec<u64> =
        history(&root).expect("readable").iter().map(|past| past.number).collect();
    assert_eq!(numbers, [2, 1]);
    let undo = |number| {
        stage_undo(&root, number, &UndoOptions::default())
            .and_then(Staged::commit)
            .and_then(Committed::finish)
            .expect("undone");
    };
    undo(1);
    assert_eq!(read(machine.path()), first);
    for pair in editions.windows(2) {
        apply(machine.path(), &bundle(pair[0].path(), pair[1].path())).expect("applies");
    }
    assert_eq!(read(machine.path()), last);
    undo(2);
    assert_eq!(read(machine.path()), read(editions[1].path()));
    undo(1);
    assert_eq!(read(machine.path()), first);
}

#[test]
fn an_undo_does_not_lose_what_was_edited_since() {
    let (base, _target, file) = pair();
    let before = read(base.path());
    apply(base.path(), &file).expect("applies");
    let page = base.path().join("etc/nginx/nginx.conf");
    fs::write(&page, "edited since the update").expect("written");
    fs::write(base.path().join("srv/newdir/local"), "mine").expect("written");
    let root = Root::open(base.path()).expect("a directory");
    let error = stage_undo(&root, 1, &UndoOptions::default()).expect_err("edited");
    let drifted: Vec<String> = error.drifted().iter().map(ToString::to_string).collect();
    assert_eq!(drifted, ["/etc/nginx/nginx.conf", "/srv/newdir/local"]);
    fs::remove_file(base.path().join("srv/newdir/local")).expect("removed");
    stage_undo(&root, 1, &UndoOptions { take: true })
        .and_then(Staged::commit)
        .and_then(Committed::finish)
        .expect("undone");
    let aside = base.path().join("etc/nginx/nginx.conf.vireo-local");
    assert_eq!(fs::read_to_string(&aside).expect("kept"), "edited since the update");
    fs::remove_file(aside).expect("removed");
    assert_eq!(read(base.path()), before);
}

#[test]
fn forgetting_frees_what_undo_would_need() {
    let (base, _target, file) = pair();
    apply(base.path(), &file).expect("applies");
    let root = Root::open(base.path()).expect("a directory");
    forget(&root, 1).expect("forgotten");
    assert_eq!(history(&root).expect("readable"), []);
    let left: Vec<_> = fs::read_dir(base.path().join(".vireo")).expect("there").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A small description of a directory tree, so that random pairs share most of their names.
type Sketch = BTreeMap<&'static str, (u8, u8)>;

fn make(dir: &Path, sketch: &Sketch) {
    for (name, (kind, value)) in sketch {
        let path = dir.join(name);
        if path.parent().is_some_and(|parent| !parent.is_dir()) {
            continue; // Its parent is a file here.
        }
        match kind {
            0 => fs::create_dir(&path).expect("made"),
            1 => fs::write(&path, vec![*value; usize::from(*value) * 300]).expect("written"),
            2 => symlink(format!("to-{value}"), &path).expect("linked"),
            _ => match fs::hard_link(dir.join("f"), &path) {
                Ok(()) => {}
                Err(_) => fs::write(&path, "alone").expect("written"),
            },
        }
        if *kind < 2 {
            fs::set_permissions(
                &path,
                fs::Permissions::from_mode(0o700 + u32::from(value % 3) * 5),
            )
            .expect("set");
        }
    }
}

fn any_sketch() -> impl Strategy<Value = Sketch> {
    let names = prop::sample::select(vec!["a", "a/b", "a/b/c", "a/d", "f", "g", "g/h", "x"]);
    prop::collection::btree_map(names, (0_u8..4, 0_u8..5), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The project's first promise: capture, then apply, is the target.
    #[test]
    fn apply_after_capture_is_the_target(base in any_sketch(), target in any_sketch()) {
        let (base_dir, target_dir) = (temp(), temp());
        make(base_dir.path(), &base);
        make(target_dir.path(), &target);
        let file = bundle(base_dir.path(), target_dir.path());
        apply(base_dir.path(), &file)?;
        prop_assert_eq!(read(base_dir.path()), read(target_dir.path()));
    }
}

#[test]
fn what_is_on_fat_is_read_in_its_normal_form() {
    let dirs = [temp(), temp()];
    for dir in &dirs {
        populate_fat(dir.path(), 1);
    }
    let file = dirs[1].path().join("efi/EFI/same");
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).expect("set");
    let trees = dirs.each_ref().map(|dir| read(dir.path()));
    assert_eq!(ChangeSet::between(&trees[0], &trees[1]).changes, []);
    let path = |text: &str| ImagePath::parse(text.as_bytes()).expect("a valid path");
    assert_eq!(trees[0].get(&path("/efi/loader/random-seed")), None);
    assert_eq!(trees[0].get(&path("/efi")), Some(&vireo_model::plain_dir()));
    let root = open(dirs[0].path()).expect("opens");
    let scan = scan(&root, &Ignore::default(), &ScanOptions::default()).expect("readable");
    assert!(scan.dir_times.keys().all(|at| !at.is_within(&path("/efi"))));
}

#[test]
fn what_is_on_fat_is_changed_and_taken_back_without_links_or_traces() {
    let (base, target) = (temp(), temp());
    for (dir, edition) in [(&base, 1), (&target, 2)] {
        populate(dir.path(), edition);
        populate_fat(dir.path(), edition);
    }
    let (before, after) = (read(base.path()), read(target.path()));
    let file = bundle(base.path(), target.path());
    {
        let root = open(base.path()).expect("opens");
        let committed = stage(&root, &verified(&file), &ApplyOptions::default())
            .and_then(Staged::commit)
            .expect("it is the base");
        let on_fat = |replaced: &Replaced| replaced.path.to_string().starts_with("/efi/");
        assert!(!committed.replaced().iter().any(on_fat), "nothing is known by a number there");
        committed.finish().expect("finishes");
    }
    assert_eq!(ChangeSet::between(&after, &read(base.path())).changes, []);
    assert!(!base.path().join("efi/.vireo").exists());
    let seed = fs::read(base.path().join("efi/loader/random-seed")).expect("it stays");
    assert_eq!(seed, base.path().as_os_str().as_encoded_bytes());
    let root = open(base.path()).expect("opens");
    let undo = stage_undo(&root, 1, &UndoOptions::default()).expect("nobody changed it");
    undo.commit().and_then(Committed::finish).expect("undone");
    assert_eq!(ChangeSet::between(&before, &read(base.path())).changes, []);
    assert!(!base.path().join("efi/.vireo").exists());
}

#[test]
fn what_somebody_changed_on_fat_or_fat_cannot_hold_is_refused_before_anything_is_touched() {
    let refused = |prepare: &dyn Fn(&Path, &Path), kind: ErrorKind, says: &str| {
        let (base, target) = (temp(), temp());
        for (dir, edition) in [(&base, 1), (&target, 2)] {
            populate_fat(dir.path(), edition);
        }
        let made = bundle(base.path(), target.path());
        prepare(base.path(), target.path());
        let file = if kind == ErrorKind::Drift { made } else { bundle(base.path(), target.path()) };
        let before = read(base.path()).digest();
        let root = open(base.path()).expect("opens");
        let bundle = verified(&file);
        let options = ApplyOptions { drift: &|_| OnDrift::Take };
        let error = stage(&root, &bundle, &options).expect_err("it is refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error} does not say {says}");
        assert_eq!(read(base.path()).digest(), before);
    };
    let edit = |base: &Path, _: &Path| {
        fs::write(base.join("efi/loader/loader.conf"), "mine").expect("written");
    };
    refused(&edit, ErrorKind::Drift, "/efi/loader/loader.conf");
    let link = |_: &Path, target: &Path| symlink("x", target.join("efi/link")).expect("made");
    refused(&link, ErrorKind::Unsupported, "/efi/link in");
    let name = |_: &Path, target: &Path| fs::write(target.join("efi/a:b"), "").expect("made");
    refused(&name, ErrorKind::Unsupported, "/efi/a:b in");
    let letters = |_: &Path, target: &Path| fs::write(target.join("efi/efi"), "").expect("made");
    refused(&letters, ErrorKind::Unsupported, "/efi/efi differs from EFI");
}
