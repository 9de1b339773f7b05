//! Capture over real directories: what it refuses, and what it makes whole.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vireo_capture::{CaptureError, CaptureOptions, Captured, ErrorKind, capture};
use vireo_delta::{Bundle, MemBase, Permits, SecretKey, TrustedKeys};
use vireo_model::{Digest, ImagePath};
use vireo_tree::Root;

struct Pair {
    dir: TempDir,
    key: SecretKey,
}

impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for side in ["base", "target"] {
            fs::create_dir_all(dir.path().join(side).join("etc")).expect("made");
        }
        Self { dir, key: SecretKey::generate().expect("random bytes") }
    }

    fn write(&self, path: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::write(&path, content).expect("written");
        path
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out.vireo")
    }

    fn capture(&self, options: &CaptureOptions) -> Result<Captured, CaptureError> {
        let open = |side: &str| Root::open(&self.dir.path().join(side)).expect("opens");
        capture(&open("base"), &open("target"), options, &self.key, &self.out())
    }

    /// Captures and hands over the bundle's bytes.
    fn bundle(&self) -> Vec<u8> {
        self.capture(&CaptureOptions::default()).expect("captured");
        fs::read(self.out()).expect("written")
    }

    fn trusted(&self) -> TrustedKeys {
        TrustedKeys::from_iter([self.key.public()])
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
}

fn path(text: &str) -> ImagePath {
    ImagePath::parse(text.as_bytes()).expect("a valid path")
}

#[test]
fn new_rights_must_be_permitted_and_the_error_names_path_and_remedy() {
    let pair = Pair::new();
    pair.write("base/su", b"1");
    set_mode(&pair.write("target/su", b"1"), 0o4755);
    let error = pair.capture(&CaptureOptions::default()).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotPermitted);
    assert_eq!(
        error.to_string(),
        "the change needs the permit setuid: rights on execution that the base does not give there \
         (/su); capture with --permit setuid if that is intended"
    );
    assert!(!pair.out().exists());

    let options = CaptureOptions { permits: Permits::SETUID, ..CaptureOptions::default() };
    pair.capture(&options).expect("permitted");
    let file = fs::read(pair.out()).expect("written");
    let bundle = Bundle::open(&file).expect("whole").verify(&pair.trusted()).expect("signed");
    assert_eq!(bundle.permits(), Permits::SETUID);
    assert_eq!(bundle.base_paths(), 3, "the root, etc and su");
}

#[test]
fn edited_removed_and_added_configuration_travels_whole_with_its_base() {
    let pair = Pair::new();
    pair.write("base/etc/edited", b"a\nb\n");
    pair.write("target/etc/edited", b"a\nc\n");
    pair.write("base/etc/removed", b"gone\n");
    pair.write("target/etc/added", b"come\n");
    // Also where the same text stands elsewhere in the base.
    pair.write("base/elsewhere", b"come\n");
    pair.write("target/elsewhere", b"come\n");
    let file = pair.bundle();
    let bundle = Bundle::open(&file).expect("whole").verify(&pair.trusted()).expect("signed");
    let nothing = MemBase::default();
    for (name, text) in [
        ("/etc/edited", "a\nb\n"),
        ("/etc/edited", "a\nc\n"),
        ("/etc/removed", "gone\n"),
        ("/etc/added", "come\n"),
    ] {
        let name = path(name);
        let content = bundle.content_of(&name, Digest::of(text.as_bytes())).expect("whole");
        assert_eq!(content.to_vec(&nothing).expect("without the base"), text.as_bytes());
    }
}

#[test]
fn what_is_no_configuration_does_not_travel_twice() {
    let pair = Pair::new();
    for (name, text) in [("etc/binary", &b"\0elf"[..]), ("text", b"text\n")] {
        pair.write(&format!("base/{name}"), text);
        pair.write(&format!("target/{name}"), &[text, b"more"].concat());
    }
    let file = pair.bundle();
    let bundle = Bundle::open(&file).expect("whole").verify(&pair.trusted()).expect("signed");
    for (name, text) in [("/etc/binary", &b"\0elf"[..]), ("/text", b"text\n")] {
        assert!(bundle.content_of(&path(name), Digest::of(text)).is_none(), "{name}");
    }
}
