//! What is refused, and how.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use vireo_ext4::{ErrorKind, Reader, Unfinished};

use crate::images::{Place, ignore, run};

#[track_caller]
fn refused(place: &Place, kind: ErrorKind, says: &str) {
    let error = place.open().and_then(|reader| reader.tree(&ignore())).expect_err("refused");
    assert!(error.kind() == kind && error.to_string().contains(says), "{error:?}");
}

fn made(options: &[&str]) -> Place {
    let place = Place::new();
    fs::write(place.root().join("file"), "content").expect("written");
    place.make(options, "8M");
    place
}

fn put(place: &Place, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(place.image()).expect("opens");
    file.write_all_at(bytes, at).expect("written");
}

#[test]
fn features_are_refused_by_name() {
    for feature in ["encrypt", "casefold"] {
        let place = made(&["-t", "ext4", "-O", feature]);
        refused(&place, ErrorKind::Unsupported, feature);
    }
    let place = Place::new();
    run("mke2fs", &["-q", "-O", "journal_dev", place.image().to_str().expect("plain"), "4M"]);
    refused(&place, ErrorKind::Unsupported, "journal_dev");
}

#[test]
fn recorded_errors_and_unfinished_journals_are_refused_with_the_remedy() {
    let place = made(&["-t", "ext4", "-O", "^metadata_csum"]);
    put(&place, 1024 + 0x3A, &[3]);
    refused(&place, ErrorKind::Unclean, "e2fsck -p");
    put(&place, 1024 + 0x3A, &[1]);
    place.tree();
    let place = made(&["-t", "ext4"]);
    place.debugfs("feature needs_recovery");
    refused(&place, ErrorKind::Unclean, "unfinished journal");
    // The journal is empty, so there is nothing to lay over.
    let file = File::open(place.image()).expect("opens");
    let reader = Reader::open(file, Unfinished::Replay).expect("replayed");
    assert!(reader.identity().replayed);
    assert_eq!(reader.tree(&ignore()).expect("read").len(), 2);
    let place = made(&["-t", "ext2"]);
    put(&place, 1024 + 0x3A, &[0]);
    refused(&place, ErrorKind::Unclean, "not unmounted cleanly");
}

#[test]
fn what_is_no_file_system_or_only_a_part_of_one_is_refused() {
    let place = Place::new();
    for len in [0, 100, 1024, 2047, 1 << 20] {
        fs::write(place.image(), vec![0; len]).expect("written");
        refused(&place, ErrorKind::NotExt4, "no ext2, ext3 or ext4 file system");
    }
    let place = made(&["-t", "ext4"]);
    let file = File::options().write(true).open(place.image()).expect("opens");
    file.set_len((8 << 20) - 1).expect("cut");
    refused(&place, ErrorKind::Damaged, "cut short");
}

#[test]
fn a_wrong_checksum_is_noticed_wherever_it_is() {
    // Superblock: last mount time. Group descriptor: count of free blocks. Both are read by all.
    for at in [1024 + 0x2C, 2048 + 0xC] {
        let place = made(&["-t", "ext4", "-b", "1024"]);
        put(&place, at, &[0x55]);
        refused(&place, ErrorKind::Damaged, "wrong checksum");
    }
    let place = made(&["-t", "ext4", "-b", "1024"]);
    let image = fs::read(place.image()).expect("read");
    // The directory's block holds the name; its inode the time that stands in the inode table.
    let name = b"file\0";
    let at = image.windows(name.len()).position(|window| window == name).expect("it is there");
    put(&place, at as u64, b"FILE");
    refused(&place, ErrorKind::Damaged, "wrong checksum");
}
