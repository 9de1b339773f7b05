//! Paths, and what they lead to in a tree whose links all lead out of it.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use vireo_model::{Ignore, ImagePath};
use vireo_tree::Root;

/// The first byte of `input` says how much of the rest is the path; what follows are patterns, one
/// a line.
pub fn run(input: &[u8]) {
    let Some((len, rest)) = input.split_first() else { return };
    let (bytes, patterns) = rest.split_at(usize::from(*len).min(rest.len()));
    let Ok(path) = ImagePath::parse(bytes) else { return };
    check(&path, bytes);
    thread_local! {
        static TREE: (tempfile::TempDir, Root) = tree();
    }
    TREE.with(|(dir, root)| resolve(dir.path(), root, &path));
    if let Ok(text) = std::str::from_utf8(patterns)
        && let Ok(ignore) = Ignore::new(text.lines())
    {
        assert!(!ignore.matches(&path) || ignore.covers(&path));
    }
}

/// What being a path means.
fn check(path: &ImagePath, bytes: &[u8]) {
    assert_eq!(path.as_bytes(), bytes, "one spelling");
    assert!(bytes.len() <= ImagePath::MAX_LEN && bytes.starts_with(b"/") && !bytes.contains(&0));
    for name in path.components() {
        assert!(!matches!(name, b"" | b"." | b".."));
        assert!(name.len() <= ImagePath::MAX_NAME_LEN);
    }
    match path.parent() {
        Some(parent) => {
            assert_eq!(parent.join(path.name()).as_ref(), Ok(path));
            assert!(path.is_within(&parent) && !parent.is_within(path));
        }
        None => assert!(path.is_root()),
    }
    assert_eq!(path.components().count() == 0, path.is_root());
}

fn tree() -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().expect("a directory");
    let tree = dir.path().join("tree");
    crate::sandbox::populate(&tree);
    fs::create_dir(dir.path().join("outside")).expect("made");
    fs::write(dir.path().join("outside/canary"), "sings").expect("written");
    let root = Root::open(&tree).expect("was just made");
    (dir, root)
}

/// What opens is beneath the root, at exactly that path.
fn resolve(dir: &Path, root: &Root, path: &ImagePath) {
    let Ok(file) = root.open_file(path) else { return };
    let found = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("is open");
    let tree = dir.join("tree").canonicalize().expect("is there");
    let below = std::os::unix::ffi::OsStrExt::as_bytes(
        found.strip_prefix(&tree).expect("beneath the root").as_os_str(),
    );
    let expected = if path.is_root() { b"".as_slice() } else { path.relative() };
    assert_eq!(below, expected, "the path itself, no link");
}
