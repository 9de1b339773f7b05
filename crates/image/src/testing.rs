//! For tests: the contract of [`MountHost`] as code. Takes root, loop devices and e2fsprogs.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstatvfs, openat, syncfs};
use vireo_model::mount_table;
use vireo_sys::{loopdev, mounts};

use crate::fsck::{fsck, search_path};
use crate::partition::{Partition, RootPartition};
use crate::{Access, DiskImage, ErrorKind, HostMount, MountHost, Window};

/// Length of the file systems, in bytes.
const FS_LEN: u64 = 16 << 20;

/// Where the second file system begins: no multiple of a page, as old tables have it.
const OFFSET: u64 = 63 * 512;

/// How many are attached at the same time.
const AT_ONCE: usize = 8;

/// Longest for a device to go.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);

/// What is written into an image, and its name.
const NAME: &str = "written";

/// Holds `host` to the contract of [`MountHost`], in the empty directory `dir`.
///
/// # Panics
///
/// If it does not keep it.
pub fn check_mount_host(host: &dyn MountHost, dir: &Path) {
    let whole = dir.join("whole.img");
    make(&whole, 0);
    let window = Window { offset: 0, len: FS_LEN, read_only: false };
    check_writes_stay(host, &whole, window);
    check_reading_changes_nothing(host, &whole, window);
    check_flags(host, &whole, window);

    let part = dir.join("part.img");
    make(&part, OFFSET);
    check_writes_stay(host, &part, Window { offset: OFFSET, ..window });
    let mut around = vec![0; usize::try_from(OFFSET).expect("it is small")];
    open(&part, false).read_exact_at(&mut around, 0).expect("readable");
    assert!(around.iter().all(|byte| *byte == 0xA5), "nothing was written before the window");

    check_what_is_no_file_system(host, &dir.join("none.img"));
    check_many_at_once(host, dir);
    check_used_is_refused(host, &whole);
}

fn check_writes_stay(host: &dyn MountHost, image: &Path, window: Window) {
    let mount = mounted(host, image, window);
    assert_unseen(image);
    assert_eq!(devices_on(image).len(), 1, "one device shows the image");
    write(&mount, NAME);
    drop(mount);
    wait_released(image);
    let len = FS_LEN;
    let partition = Partition { offset: window.offset, ..Partition::whole(len) };
    fsck(image, &partition).expect("it was unmounted cleanly");

    let mount = mounted(host, image, Window { read_only: true, ..window });
    let root = mount.open_root().expect("the root opens");
    openat(&root, NAME, OFlags::RDONLY, Mode::empty()).expect("what was written is there");
    assert_unseen(image);
    // Any handle keeps the mount.
    drop(mount);
    openat(&root, NAME, OFlags::RDONLY, Mode::empty()).expect("the handle still works");
    drop(root);
    wait_released(image);
}

fn check_reading_changes_nothing(host: &dyn MountHost, image: &Path, window: Window) {
    let before = std::fs::read(image).expect("readable");
    let mount = mounted(host, image, Window { read_only: true, ..window });
    let root = mount.open_root().expect("the root opens");
    let refused = openat(&root, "more", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
    assert_eq!(refused.expect_err("it is read-only"), rustix::io::Errno::ROFS);
    drop((root, mount));
    wait_released(image);
    assert!(std::fs::read(image).expect("readable") == before, "reading wrote to the image");
}

fn check_flags(host: &dyn MountHost, image: &Path, window: Window) {
    let mount = mounted(host, image, window);
    let root = mount.open_root().expect("the root opens");
    let flags = fstatvfs(&root).expect("statvfs").f_flag;
    // NOEXEC and NOATIME have no names here; <bits/statvfs.h>.
    let (noexec, noatime) = (8, 1024);
    let wanted = StatVfsMountFlags::NOSUID.bits() | 4 | noexec | noatime;
    assert_eq!(flags.bits() & wanted, wanted, "nosuid, nodev, noexec, noatime: {flags:?}");
    drop((root, mount));
    wait_released(image);
}

fn check_what_is_no_file_system(host: &dyn MountHost, image: &Path) {
    File::create(image).and_then(|file| file.set_len(FS_LEN)).expect("writable");
    let window = Window { offset: 0, len: FS_LEN, read_only: true };
    let error = host.mount(&open(image, false), window).expect_err("there is nothing to mount");
    assert_eq!(error.step, "mount");
    wait_released(image);
    assert_unseen(image);
}

fn check_many_at_once(host: &dyn MountHost, dir: &Path) {
    let images: Vec<PathBuf> = (0..AT_ONCE).map(|n| dir.join(format!("many-{n}.img"))).collect();
    images.iter().for_each(|image| make(image, 0));
    let window = Window { offset: 0, len: FS_LEN, read_only: false };
    let mounts: Vec<HostMount> = thread::scope(|scope| {
        let start = |image: &'_ PathBuf| {
            let image = image.clone();
            scope.spawn(move || mounted(host, &image, window))
        };
        let threads: Vec<_> = images.iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("none fails")).collect()
    });
    for (number, mount) in mounts.iter().enumerate() {
        write(mount, &format!("own-{number}"));
    }
    drop(mounts);
    for (number, image) in images.iter().enumerate() {
        wait_released(image);
        let mount = mounted(host, image, Window { read_only: true, ..window });
        let root = mount.open_root().expect("the root opens");
        let own = format!("own-{number}");
        openat(&root, own, OFlags::RDONLY, Mode::empty()).expect("each got its own image");
    }
}

fn check_used_is_refused(host: &dyn MountHost, image: &Path) {
    let found = || DiskImage::open(image, RootPartition::Find).expect("it is a clean image");
    let reader = open(image, false);
    let refused = found().mount_by(host, Access::ReadWrite).expect_err("it is open elsewhere");
    assert_eq!(refused.kind(), ErrorKind::Busy);
    drop(reader);
    let second = found();
    let mount = found().mount_by(host, Access::ReadWrite).expect("it is free");
    let refused = second.mount_by(host, Access::ReadWrite).expect_err("it is mounted");
    assert_eq!(refused.kind(), ErrorKind::Busy);
    mount.finish().expect("it is let go");
    wait_released(image);
}

/// Makes an image of bytes `A5` with an ext4 file system from `offset` on.
fn make(image: &Path, offset: u64) {
    let before = vec![0xA5; usize::try_from(offset).expect("it is small")];
    let file = File::create(image).expect("writable");
    file.write_all_at(&before, 0).and_then(|()| file.set_len(offset + FS_LEN)).expect("writable");
    let blocks = format!("{}k", FS_LEN >> 10);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-E", &format!("offset={offset}")]).arg(image);
    mke2fs.arg(blocks).env("PATH", search_path()).stdin(Stdio::null()).stderr(Stdio::null());
    let status = mke2fs.status().expect("mke2fs runs (package e2fsprogs)");
    assert!(status.success(), "mke2fs: {status}");
}

fn open(image: &Path, write: bool) -> File {
    File::options().read(true).write(write).open(image).expect("the image opens")
}

fn mounted(host: &dyn MountHost, image: &Path, window: Window) -> HostMount {
    let file = open(image, !window.read_only);
    host.mount(&file, window).expect("it can be mounted (as root)")
}

fn write(mount: &HostMount, name: &str) {
    let root: OwnedFd = mount.open_root().expect("the root opens");
    let file = openat(&root, name, OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).expect("writable");
    File::from(file).write_all(name.as_bytes()).expect("writable");
    syncfs(&root).expect("written");
}

/// The loop devices that show `image`.
///
/// # Panics
///
/// If the kernel does not tell which there are.
#[must_use]
pub fn devices_on(image: &Path) -> Vec<PathBuf> {
    let real = image.canonicalize().unwrap_or_else(|_| image.to_owned());
    let listed = loopdev::attached().expect("/sys tells the loop devices");
    listed.into_iter().filter(|at| at.backing == real).map(|at| at.device).collect()
}

/// Waits until no loop device shows `image`.
///
/// # Panics
///
/// If one still does after five seconds.
pub fn wait_released(image: &Path) {
    let started = Instant::now();
    while !devices_on(image).is_empty() {
        assert!(started.elapsed() < RELEASE_DEADLINE, "{} stays attached", image.display());
        thread::sleep(Duration::from_millis(5));
    }
}

/// That nobody can walk into a mount of `image`.
fn assert_unseen(image: &Path) {
    let devices = devices_on(image);
    let seen = mount_table::parse(&mounts::table().expect("/proc tells the mounts"));
    let seen = seen.iter().find(|mount| devices.contains(&mount.source));
    assert_eq!(seen, None, "a mount of {} is visible", image.display());
}
