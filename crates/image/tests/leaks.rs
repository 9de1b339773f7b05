//! What others leave attached beneath a directory is found and undone, and nothing else is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use vireo_image::journal::{Journal, Work};
use vireo_image::testing::{devices_on, wait_released};

fn image(dir: &Path, name: &str) -> PathBuf {
    let image = dir.join(name);
    File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("writable");
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&image).status();
    assert!(made.expect("mke2fs runs (package e2fsprogs)").success());
    image
}

/// A loop device as `losetup` makes it: it stays until somebody takes it away.
fn attach(image: &Path) -> String {
    let output = Command::new("losetup").args(["-f", "--show"]).arg(image).output();
    let output = output.expect("losetup runs (package util-linux)");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("a name").trim().to_owned()
}

fn mount(device: &str, at: &Path) {
    fs::create_dir(at).expect("made");
    let status = Command::new("mount").args(["-t", "ext4", device]).arg(at).status();
    assert!(status.expect("mount runs").success());
}

fn record(dir: &Path, name: &str, work: &Work) {
    fs::create_dir_all(dir.join("builds")).expect("made");
    let json = serde_json::to_vec(work).expect("JSON");
    fs::write(dir.join("builds").join(format!("{name}.json")), json).expect("writable");
}

#[test]
fn root_what_a_killed_build_left_attached_is_undone() {
    let (dir, elsewhere) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let journal = Journal::new(dir.path());
    let out = dir.path().join("out.img");
    let work = Work::build(&image(dir.path(), "base.img"), &out);
    let partial = image(dir.path(), "out.img.partial");
    let (read, foreign) = (image(dir.path(), "read.img"), image(dir.path(), "foreign.img"));
    let outside = image(elsewhere.path(), "out.img.partial");
    mount(&attach(&partial), &elsewhere.path().join("mount"));
    mount(&attach(&read), &elsewhere.path().join("second mount"));
    let devices = [attach(&foreign), attach(&outside)];
    record(dir.path(), "out", &work);
    record(dir.path(), "read", &Work::read(&read));
    record(dir.path(), "outside", &Work::build(&outside, &elsewhere.path().join("out.img")));

    let recovered = journal.undo().expect("undone");
    assert_eq!(recovered.undone.mounts.len(), 2, "{recovered:?}");
    assert_eq!(recovered.undone.files.len(), 2, "{recovered:?}");
    assert_eq!(recovered.removed, std::slice::from_ref(&partial), "{recovered:?}");
    assert!(devices_on(&partial).is_empty() && devices_on(&read).is_empty());
    assert!(read.exists() && outside.exists());
    // No record speaks of the one, and the other is not the journal's.
    for (image, device) in [&foreign, &outside].into_iter().zip(&devices) {
        assert_eq!(devices_on(image), [PathBuf::from(device)]);
        let status = Command::new("losetup").args(["-d", device]).status();
        assert!(status.expect("losetup runs").success());
        wait_released(image);
    }
    assert!(journal.undo().expect("undone").undone.is_empty());
}

#[test]
fn root_what_is_used_or_alive_stays_attached() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let journal = Journal::new(dir.path());
    let (alive, used) = (image(dir.path(), "alive.img.partial"), image(dir.path(), "used.partial"));
    let work = Work::build(&alive, &dir.path().join("alive.img"));
    let begun = journal.begin("alive", &work, Duration::ZERO).expect("free");
    let living = attach(&alive);
    let point = dir.path().join("mount");
    mount(&attach(&used), &point);
    let inside = File::create(point.join("open")).expect("writable");

    let recovered = journal.undo().expect("undone");
    assert_eq!(recovered.undone.in_use, [used.canonicalize().expect("there")], "{recovered:?}");
    assert!(recovered.undone.mounts.is_empty() && recovered.undone.files.is_empty());
    assert_eq!(devices_on(&alive), [PathBuf::from(&living)]);

    drop((inside, begun));
    let recovered = journal.undo().expect("undone");
    assert_eq!(recovered.undone.mounts, [point.canonicalize().expect("there")], "{recovered:?}");
    for image in [&alive, &used] {
        wait_released(image);
    }
}
