//! Reflink copies on real btrfs and XFS: what has all its blocks in common with the base is not read, and
//! that changes nothing but the time it takes. Needs root, btrfs-progs and xfsprogs.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use vireo_capture::{CaptureOptions, Captured, capture};
use vireo_delta::SecretKey;
use vireo_model::Ignore;
use vireo_sys::detached;
use vireo_sys::loopdev::{LoopDevice, Window};
use vireo_tree::{Root, Scan, ScanOptions, scan};

/// Each with a length in bytes near the smallest that its mkfs makes.
const KINDS: [(&str, u64); 2] = [("btrfs", 256 << 20), ("xfs", 320 << 20)];

/// Files of the base, but for the ones that have names of their own.
const FILES: u8 = 20;

/// A mounted file system, gone when dropped.
struct Disk {
    mount: OwnedFd,
    _device: LoopDevice,
    dir: TempDir,
}

impl Disk {
    fn new(kind: &str, len: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("image");
        let file = File::options().create_new(true).read(true).write(true).open(&image);
        let file = file.expect("made");
        file.set_len(len).expect("a hole");
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(image));
        let window = Window { offset: 0, len: 0, read_only: false };
        let device = LoopDevice::attach(&file, window).expect("these tests need root");
        let mount = detached::mount(device.path(), kind, false).expect("the kernel has it");
        Self { mount, _device: device, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        format!("/proc/{}/fd/{}/{name}", std::process::id(), self.mount.as_raw_fd()).into()
    }

    /// A base of files whose content is all different, with holes, short, and half a block too long.
    fn base(&self) {
        fs::create_dir(self.path("base")).expect("made");
        for number in 0..FILES {
            let content = vec![number; 70_000 + usize::from(number)];
            fs::write(self.path(&format!("base/f{number}")), content).expect("written");
        }
        fs::write(self.path("base/short"), "short").expect("written");
        let holes = File::create_new(self.path("base/holes")).expect("made");
        holes.set_len(1 << 20).expect("a hole");
        holes.write_all_at(&[7; 5000], 300_000).expect("written");
    }

    fn copy(&self, from: &str, to: &str) {
        let copy = ["-a", "--reflink=always"];
        run(Command::new("cp").args(copy).arg(self.path(from)).arg(self.path(to)));
    }

    fn root(&self, name: &str) -> Root {
        Root::open(&self.path(name)).expect("a directory")
    }

    fn capture(&self, paranoid: bool, key: &SecretKey) -> (Captured, Vec<u8>) {
        let options = CaptureOptions { paranoid, ..CaptureOptions::default() };
        let out = self.dir.path().join("out.vireo");
        let captured = capture(&self.root("base"), &self.root("target"), &options, key, &out);
        (captured.expect("captured"), fs::read(out).expect("written"))
    }
}

fn run(command: &mut Command) {
    let command = command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}");
}

/// Changes one byte and leaves length and time of modification.
fn edit(path: &Path) {
    let file = File::options().read(true).write(true).open(path).expect("opens");
    let time = file.metadata().and_then(|found| found.modified()).expect("metadata");
    file.write_all_at(b"!", 40_000).expect("written");
    file.set_modified(time).expect("set");
}

fn read(root: &Root, shares_with: Option<(&Root, &Scan)>) -> Scan {
    let options = ScanOptions { shares_with, ..ScanOptions::default() };
    scan(root, &Ignore::default(), &options).expect("readable")
}

#[test]
fn root_of_a_reflink_copy_only_what_was_edited_is_read() {
    let key = SecretKey::generate().expect("random bytes");
    for (kind, len) in KINDS {
        let disk = Disk::new(kind, len);
        disk.base();
        disk.copy("base", "target");
        // Written, but not yet on the disk.
        edit(&disk.path("target/f7"));
        let touched = File::open(disk.path("target/f8")).expect("opens");
        touched.set_modified(std::time::UNIX_EPOCH).expect("set");

        // btrfs keeps what is short beside its inodes, where no block is shared.
        let in_place = usize::from(kind == "btrfs");
        let (quick, bundle) = disk.capture(false, &key);
        assert_eq!(quick.hashed, 1 + in_place, "{kind}");
        assert_eq!((quick.modified, quick.metadata), (1, 1), "{kind}");
        let (all, paranoid) = disk.capture(true, &key);
        assert_eq!(all.hashed, usize::from(FILES) + 2, "{kind}");
        assert_eq!((all.base, all.target), (quick.base, quick.target), "{kind}");
        assert_eq!(bundle, paranoid, "{kind}");
    }
}

#[test]
fn root_a_base_that_was_written_since_it_was_read_tells_nothing() {
    for (kind, len) in KINDS {
        let disk = Disk::new(kind, len);
        disk.base();
        disk.copy("base", "target");
        let (base, target) = (disk.root("base"), disk.root("target"));
        let before = read(&base, None);
        let unread = read(&target, Some((&base, &before)));
        assert!(unread.hashed <= 1 && unread.tree == before.tree, "{kind}: {}", unread.hashed);

        edit(&disk.path("base/f3"));
        fs::remove_file(disk.path("target/f3")).expect("removed");
        disk.copy("base/f3", "target/f3");
        let after = read(&target, Some((&base, &before)));
        assert_eq!(after.hashed, unread.hashed + 1, "{kind}");
        assert!(after.tree == read(&target, None).tree && after.tree != before.tree, "{kind}");
    }
}
