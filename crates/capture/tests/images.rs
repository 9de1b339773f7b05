//! Capture over images that are read in place: the same bundles as over directories, and the cost of
//! the change alone once digests are remembered. mke2fs and debugfs (e2fsprogs) make the images.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use vireo_capture::{
    CaptureError, CaptureOptions, Captured, DigestCache, ErrorKind, Image, Source, capture,
    capture_images, capture_mixed,
};
use vireo_delta::SecretKey;
use vireo_image::RootPartition;
use vireo_image::unmounted::{self, Unfinished};
use vireo_model::Ignore;
use vireo_sys::detached;
use vireo_sys::loopdev::{LoopDevice, Window};
use vireo_tree::Root;

/// What mke2fs and debugfs take for now: long after the files were made, so that no file's time lies
/// within the seconds that prove nothing.
const NOW: u64 = 4_000_000_000;

struct Place {
    dir: TempDir,
    key: SecretKey,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { dir, key: SecretKey::generate().expect("random bytes") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, program: &str, args: &[&str], now: u64) {
        let status = Command::new(program)
            .args(args)
            .current_dir(self.dir.path())
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .env("E2FSPROGS_FAKE_TIME", now.to_string())
            .status()
            .unwrap_or_else(|error| panic!("{program}: {error}; install e2fsprogs"));
        assert!(status.success(), "{program} {args:?}");
    }

    /// A directory with files of a hundred lengths.
    fn tree(&self, name: &str) {
        for number in 0..100_usize {
            let dir = self.path(name).join(format!("d{}", number % 7));
            fs::create_dir_all(&dir).expect("made");
            let text: String = (0..number * 13).map(|n| format!("{number} {n}\n")).collect();
            let path = dir.join(format!("f{number}"));
            fs::write(&path, text).expect("written");
            // mke2fs takes whole seconds over.
            let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
            let file = fs::File::open(path).expect("opens");
            file.set_modified(long_ago).expect("set");
        }
    }

    /// An image of the directory `tree`.
    fn image(&self, tree: &str, image: &str) {
        self.run(
            "mke2fs",
            &["-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, image, "8M"],
            NOW,
        );
    }

    /// A copy of `base` in which one file has another content, as a kernel would have left it.
    fn edited(&self, base: &str, target: &str) {
        fs::copy(self.path(base), self.path(target)).expect("copied");
        fs::write(self.path("new"), "another text\n").expect("written");
        let script = "rm /d3/f10\nwrite new /d3/f10\nset_inode_field /d3/f10 ctime @4000000100\n\
                      set_inode_field /d3/f10 mtime @4000000100\n";
        fs::write(self.path("script"), script).expect("written");
        self.run("debugfs", &["-w", "-f", "script", target], NOW + 200);
    }

    fn open(&self, name: &str) -> Image {
        Image::open(&self.path(name), RootPartition::Find).expect("an image")
    }

    fn capture(&self, base: &str, target: &str, cache: Option<&DigestCache>) -> Captured {
        self.try_capture(&self.open(base), &self.open(target), cache).expect("captured")
    }

    fn try_capture(
        &self,
        base: &Image,
        target: &Image,
        cache: Option<&DigestCache>,
    ) -> Result<Captured, CaptureError> {
        let options = CaptureOptions::default();
        capture_images(base, target, &options, cache, &self.key, &self.path("out.vireo"))
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("there")
}

#[test]
fn images_give_the_bundle_that_their_files_give() {
    let place = Place::new();
    place.tree("tree");
    place.image("tree", "base.img");
    place.edited("base.img", "target.img");
    let from_images = place.capture("base.img", "target.img", None);
    assert_eq!((from_images.modified, from_images.added, from_images.removed), (1, 0, 0));
    // Of the target only what its metadata leaves in doubt is read.
    assert_eq!(from_images.hashed, 1);
    assert!(from_images.base_hashed > 90, "{}", from_images.base_hashed);
    let paranoid = CaptureOptions { paranoid: true, ..CaptureOptions::default() };
    let (base, target) = (place.open("base.img"), place.open("target.img"));
    let (key, out) = (&place.key, place.path("paranoid.vireo"));
    let all = capture_images(&base, &target, &paranoid, None, key, &out).expect("captured");
    assert!(all.hashed > 90, "{}", all.hashed);
    assert_eq!(read(&out), read(&place.path("out.vireo")));
}

#[test]
fn remembered_digests_save_reading_the_base_and_change_nothing() {
    let place = Place::new();
    place.tree("tree");
    place.image("tree", "base.img");
    place.edited("base.img", "target.img");
    let cache = DigestCache::new(place.path("cache"));
    let first = place.capture("base.img", "target.img", Some(&cache));
    let bundle = read(&place.path("out.vireo"));
    assert!(first.base_hashed > 90 && first.not_remembered.is_none());
    let again = place.capture("base.img", "target.img", Some(&cache));
    assert_eq!((again.base_hashed, again.hashed), (0, 1));
    assert_eq!(read(&place.path("out.vireo")), bundle);
    // The target's are remembered, too: it is the next base.
    let back = place.capture("target.img", "base.img", Some(&cache));
    assert!(back.base_hashed <= 1, "{}", back.base_hashed);
    // Damaged, they count as absent.
    for entry in fs::read_dir(place.path("cache")).expect("there") {
        let path = entry.expect("readable").path();
        let mut bytes = read(&path);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).expect("written");
    }
    let damaged = place.capture("base.img", "target.img", Some(&cache));
    assert!(damaged.base_hashed > 90, "{}", damaged.base_hashed);
    assert_eq!(read(&place.path("out.vireo")), bundle);
}

#[test]
fn images_of_which_nothing_changed_give_the_same_bundle_with_and_without_a_cache() {
    let place = Place::new();
    place.tree("tree");
    place.image("tree", "base.img");
    fs::copy(place.path("base.img"), place.path("copy.img")).expect("copied");
    let plain = place.capture("base.img", "copy.img", None);
    let bundle = read(&place.path("out.vireo"));
    let cache = DigestCache::new(place.path("cache"));
    // The first time everything is read, the second time the inodes alone.
    for _ in 0..2 {
        let captured = place.capture("base.img", "copy.img", Some(&cache));
        assert_eq!(
            (captured.base, captured.target, captured.paths),
            (plain.base, plain.target, plain.paths)
        );
        assert_eq!(read(&place.path("out.vireo")), bundle);
    }
    // Another ignore list means another tree.
    let ignore = Ignore::new(["/d3"]).expect("a glob");
    let options = CaptureOptions { ignore, ..CaptureOptions::default() };
    let (base, copy) = (place.open("base.img"), place.open("copy.img"));
    let (key, out) = (&place.key, place.path("less.vireo"));
    let less = capture_images(&base, &copy, &options, Some(&cache), key, &out).expect("captured");
    assert!(less.paths < plain.paths && less.base != plain.base);
    // What changed is seen.
    place.edited("base.img", "target.img");
    let changed = place.capture("base.img", "target.img", Some(&cache));
    assert_eq!((changed.base, changed.modified), (plain.base, 1));
}

#[test]
fn a_cache_that_cannot_be_written_is_told_and_does_no_harm() {
    let place = Place::new();
    place.tree("tree");
    place.image("tree", "base.img");
    place.edited("base.img", "target.img");
    fs::write(place.path("cache"), "no directory").expect("written");
    let cache = DigestCache::new(place.path("cache"));
    let captured = place.capture("base.img", "target.img", Some(&cache));
    assert!(captured.not_remembered.is_some());
    assert!(place.path("out.vireo").exists());
}

#[test]
fn an_image_that_is_written_while_it_is_captured_is_refused() {
    let place = Place::new();
    place.tree("tree");
    place.image("tree", "base.img");
    place.edited("base.img", "target.img");
    let (base, target) = (place.open("base.img"), place.open("target.img"));
    // Somebody has it open for writing and writes.
    let bytes = read(&place.path("target.img"));
    fs::write(place.path("target.img"), bytes).expect("written");
    let cache = DigestCache::new(place.path("cache"));
    let error = place.try_capture(&base, &target, Some(&cache)).expect_err("it changed");
    assert_eq!(error.kind(), ErrorKind::Busy);
    let cause = std::error::Error::source(&error).expect("which image it is").to_string();
    assert!(cause.contains("target.img was written while it was read"), "{cause}");
    assert!(!place.path("out.vireo").exists() && !place.path("cache").exists());
}

#[test]
fn only_paranoid_finds_what_was_written_behind_the_back_of_the_file_system() {
    let place = Place::new();
    place.tree("tree");
    place.image("tree", "base.img");
    fs::copy(place.path("base.img"), place.path("target.img")).expect("copied");
    let cache = DigestCache::new(place.path("cache"));
    let first = place.capture("base.img", "target.img", Some(&cache));
    // A byte of a data block of /d3/f52.
    let mut bytes = read(&place.path("target.img"));
    let line = b"\n52 300\n";
    let at = bytes.windows(line.len()).position(|found| found == line).expect("its text");
    bytes[at + 1] = b'X';
    fs::write(place.path("target.img"), bytes).expect("written");

    let open = |name: &str| place.open(name);
    let capture = |paranoid| {
        let options = CaptureOptions { paranoid, ..CaptureOptions::default() };
        let out = place.path("out.vireo");
        capture_images(
            &open("base.img"),
            &open("target.img"),
            &options,
            Some(&cache),
            &place.key,
            &out,
        )
        .expect("captured")
    };
    let diff = |paranoid| {
        let disk = |name: &str| {
            unmounted::open(&place.path(name), RootPartition::Find, Unfinished::Refuse)
                .expect("an image")
        };
        let (base, target) = (disk("base.img"), disk("target.img"));
        let compared = unmounted::compare(&base, &target, &Ignore::default(), paranoid);
        let changes = compared.expect("compared").changes.changes;
        changes.iter().map(|change| change.path.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((capture(false).modified, diff(false)), (0, vec![]));
    assert_eq!((capture(true).modified, diff(true)), (1, vec!["/d3/f52".to_owned()]));
    // What it found is not remembered of the base, which is in the same state.
    let after = capture(false);
    assert_eq!((after.base, after.modified), (first.base, 0));
    let again = place.capture("base.img", "base.img", Some(&cache));
    assert_eq!(again.base, first.base);
}

#[test]
fn an_image_with_an_unfinished_journal_is_refused_until_it_is_recovered() {
    let place = Place::new();
    place.tree("tree");
    place.run("mke2fs", &["-q", "-t", "ext4", "-d", "tree", "base.img", "16M"], NOW);
    let digest = |name: &str| {
        let captured = place.capture(name, name, None);
        (captured.base, captured.target)
    };
    let whole = digest("base.img");
    place.run("debugfs", &["-w", "-R", "feature needs_recovery", "base.img"], NOW);
    let error = Image::open(&place.path("base.img"), RootPartition::Find).expect_err("it crashed");
    assert_eq!(error.kind(), vireo_image::ErrorKind::Unclean);
    let text = error.to_string();
    assert!(text.contains("unfinished journal") && text.contains("e2fsck -p"), "{text}");
    place.run("e2fsck", &["-p", "base.img"], NOW);
    assert_eq!(digest("base.img"), whole);
}

#[test]
fn an_image_and_a_directory_can_be_compared() {
    let place = Place::new();
    place.tree("tree");
    place.image("tree", "base.img");
    place.edited("base.img", "target.img");
    let (image, edited) = (place.open("base.img"), place.open("target.img"));
    let root = Root::open(&place.path("tree")).expect("a directory");
    let options = CaptureOptions::default();
    let out = |name: &str| place.path(name);
    let same = capture_mixed(
        Source::Root(&root),
        Source::Image(&image),
        &options,
        None,
        &place.key,
        &out("same.vireo"),
    )
    .expect("captured");
    assert_eq!(same.base, same.target, "the image is of the directory");
    let mixed = capture_mixed(
        Source::Root(&root),
        Source::Image(&edited),
        &options,
        None,
        &place.key,
        &out("mixed.vireo"),
    )
    .expect("captured");
    assert_eq!((mixed.modified, mixed.added, mixed.removed), (1, 0, 0));
    // Two directories: nothing changed.
    let none = capture(&root, &root, &options, &place.key, &out("none.vireo")).expect("captured");
    assert_eq!(none.modified + none.added + none.removed + none.metadata, 0);
}

/// An image as the root of a machine: mounted and written to by the kernel.
struct Machine {
    top: OwnedFd,
    _device: LoopDevice,
}

impl Machine {
    fn of(image: &Path) -> Self {
        let file = fs::OpenOptions::new().read(true).write(true).open(image).expect("opens");
        let window = Window { offset: 0, len: 0, read_only: false };
        let device = LoopDevice::attach(&file, window).expect("run this test as root");
        let top = detached::mount(device.path(), "ext4", false).expect("mounted");
        Self { top, _device: device }
    }

    fn write(&self, name: &str, text: &str) {
        let file = format!("/proc/self/fd/{}/{name}", self.top.as_raw_fd());
        fs::write(file, text).expect("written");
    }

    fn root(&self) -> Root {
        Root::from_fd(self.top.try_clone().expect("a handle"), PathBuf::from("/machine"))
    }
}

#[test]
fn root_of_a_machine_that_runs_from_the_image_what_changed_is_read() {
    let place = Place::new();
    place.tree("tree");
    place.image("tree", "base.img");
    fs::copy(place.path("base.img"), place.path("machine.img")).expect("copied");
    let machine = Machine::of(&place.path("machine.img"));
    machine.write("d3/f52", "edited in place\n");
    machine.write("new", "new\n");
    let cache = DigestCache::new(place.path("cache"));
    let capture = |base: &str, paranoid| {
        let options = CaptureOptions { paranoid, ..CaptureOptions::default() };
        let (base, root, out) = (place.open(base), machine.root(), place.path("out.vireo"));
        let (base, target) = (Source::Image(&base), Source::Root(&root));
        capture_mixed(base, target, &options, Some(&cache), &place.key, &out).expect("captured")
    };
    let whole = capture("base.img", true);
    assert_eq!((whole.modified, whole.added), (1, 1));
    assert!(whole.hashed > 90, "{}", whole.hashed);
    let bundle = read(&place.path("out.vireo"));
    // The second time nothing of the base is read either.
    for base_hashed in [whole.base_hashed, 0] {
        let captured = capture("base.img", false);
        assert_eq!((captured.base, captured.target), (whole.base, whole.target));
        assert_eq!((captured.hashed, captured.base_hashed), (2, base_hashed));
        assert_eq!(read(&place.path("out.vireo")), bundle);
    }
    // An image with the same files and another UUID says nothing of this one.
    place.image("tree", "other.img");
    let other = capture("other.img", false);
    assert_eq!((other.target, other.hashed), (whole.target, whole.hashed));
}
