use std::os::unix::fs::FileExt as _;

use super::*;
use crate::powercut::{Cut, Left, cuts};
use crate::{Random, leaks};

const LEN: usize = 1 << 20;

/// A disk of zeros, and where its log goes.
fn disk(dir: &Path) -> (PathBuf, PathBuf) {
    let disk = dir.join("disk.img");
    fs::write(&disk, vec![0; LEN]).expect("a disk's file");
    (disk, dir.join("log"))
}

/// Records three writes with a flush after the first.
fn recorded(dir: &Path) -> Log {
    let (disk, log) = disk(dir);
    fs::copy(&disk, dir.join("base.img")).expect("a copy of the disk");
    let recording = LogDisk::new(&disk, &log).expect("a recording disk");
    let file = recording.open().expect("the disk can be opened");
    file.write_all_at(&[1; 1024], 0).expect("first write");
    file.sync_all().expect("a flush");
    let first = recording.position().expect("the log is there");
    file.write_all_at(&[2; 1024], 0).expect("second write");
    file.write_all_at(&[3; 4096], 8192).expect("third write");
    drop(file);
    let log = recording.finish().expect("nobody uses the disk");
    assert_eq!(log.count_until(first), 2, "a write and a flush");
    log
}

#[test]
fn root_every_write_and_every_flush_is_in_the_log_in_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = recorded(dir.path());
    let records: Vec<Record> = log.records().copied().collect();
    let [one, Record::Barrier, two, three] = records.as_slice() else {
        panic!("not what was done: {records:?}")
    };
    assert_eq!(log.bytes(one).ok(), Some(vec![1; 1024]));
    assert_eq!(log.bytes(two).ok(), Some(vec![2; 1024]));
    assert!(matches!(three, Record::Write { offset: 8192, len: 4096, .. }));
    let disk = fs::read(dir.path().join("disk.img")).expect("the disk's file");
    assert_eq!((disk[0], disk[1023], disk[8192], disk[1024]), (2, 2, 3, 0), "it reached the file");
    leaks::none("no lab", dir.path(), FINISH_DEADLINE).expect("nothing is left");
}

#[test]
fn root_a_cut_leaves_what_was_flushed_and_any_part_of_the_rest() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = recorded(dir.path());
    let build = |left: Left, end: usize, name: &str| {
        let image = dir.path().join(name);
        let cut = Cut { durable: 1, end, left };
        cut.build(&dir.path().join("base.img"), &log, &image).expect("it can be built");
        fs::read(image).expect("the image")
    };
    let whole = build(Left::Prefix, 4, "whole");
    assert_eq!((whole[0], whole[8192]), (2, 3));
    let before = build(Left::Prefix, 3, "before");
    assert_eq!((before[0], before[8192]), (2, 0), "the third write came after the cut");
    let subsets: std::collections::BTreeSet<(u8, u8)> = (0..32)
        .map(|seed| build(Left::Subset(seed << 8), 4, &format!("subset-{seed}")))
        .map(|image| (image[0], image[8192]))
        .collect();
    assert_eq!(subsets, [(1, 0), (1, 3), (2, 0), (2, 3)].into(), "all and nothing else");
    let torn = build(Left::Torn(3), 4, "torn");
    let sectors = torn[8192..12288].chunks(512).filter(|sector| **sector == [3; 512]).count();
    assert!((1..8).contains(&sectors), "{sectors} of 8 sectors");
    assert_eq!(torn[0], 2, "only the last write is torn");
}

#[test]
fn root_cuts_are_spread_over_the_writes_from_a_record_on() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = recorded(dir.path());
    let ends = |first, count| -> Vec<(usize, usize)> {
        cuts(&log, first, count, 1).iter().map(|cut| (cut.durable, cut.end)).collect()
    };
    assert_eq!(ends(0, 3), [(0, 1), (1, 3), (1, 4)]);
    assert_eq!(ends(2, 4), [(1, 3), (1, 3), (1, 4), (1, 4)]);
    assert_eq!(cuts(&log, 0, 9, 5), cuts(&log, 0, 9, 5), "the same seed");
    let free = log.without_barriers();
    assert!(cuts(&free, 0, 3, 1).iter().all(|cut| cut.durable == 0), "nothing is durable");
}

#[test]
fn root_a_disk_whose_server_is_killed_fails_and_nothing_hangs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (disk, log) = disk(dir.path());
    let recording = LogDisk::new(&disk, &log).expect("a recording disk");
    let file = recording.open().expect("the disk can be opened");
    let found = leaks::leaks("no lab", dir.path());
    assert_eq!(found.len(), 1, "a running server counts as left behind: {found:?}");
    let pid = rustix::process::Pid::from_child(&recording.server);
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    let bytes = Random::new(1).bytes(512);
    let refused = wait::until("the connection to end", FINISH_DEADLINE, || {
        Ok(file.write_all_at(&bytes, 0).err())
    });
    refused.expect("writing fails");
    drop((file, recording));
    leaks::none("no lab", dir.path(), FINISH_DEADLINE).expect("nothing is left");
}
