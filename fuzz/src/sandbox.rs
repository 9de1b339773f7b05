//! A small tree in a temporary directory, with something outside of it that must not change.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

/// The regular files of the base, with what is in them.
pub const BASE: [(&str, fn() -> String); 5] = [
    ("/etc/app.conf", || "workers 2\nlisten 80\nlog off\n".to_owned()),
    ("/usr/lib/libx.so.1", || (0..900).map(|n| format!("{:x}", n * n)).collect()),
    ("/usr/bin/tool", || "#!/bin/sh\nexec true\n".repeat(40)),
    ("/srv/gone", || "gone".to_owned()),
    ("/srv/page.html", || "<p>hello</p>\n".repeat(300)),
];

/// A directory with `tree` and `outside` in it.
#[derive(Debug)]
pub struct Sandbox {
    dir: tempfile::TempDir,
}

thread_local! {
    static SANDBOX: RefCell<Option<Sandbox>> = const { RefCell::new(None) };
}

/// Runs `work` on a fresh tree, then looks whether something outside changed.
///
/// # Panics
///
/// Something outside changed, or the temporary directory cannot be used.
pub fn with(work: impl FnOnce(&Path)) {
    SANDBOX.with_borrow_mut(|slot| {
        let sandbox = slot.get_or_insert_with(Sandbox::new);
        let tree = sandbox.fresh_tree();
        work(&tree);
        sandbox.check_outside();
    });
}

impl Sandbox {
    fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let place = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let prefix = "vireo-fuzz-";
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(place).expect("a directory");
        fs::create_dir(dir.path().join("outside")).expect("made");
        fs::write(dir.path().join("outside/canary"), "sings").expect("written");
        Self { dir }
    }

    fn fresh_tree(&self) -> PathBuf {
        let tree = self.dir.path().join("tree");
        if tree.exists() {
            fs::remove_dir_all(&tree).expect("removed");
        }
        populate(&tree);
        tree
    }

    fn check_outside(&self) {
        let names = |dir: &Path| -> Vec<_> {
            let list = fs::read_dir(dir).expect("readable");
            let mut names: Vec<_> =
                list.map(|entry| entry.expect("readable").file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.dir.path()), ["outside", "tree"], "beside the tree");
        let outside = self.dir.path().join("outside");
        assert_eq!(names(&outside), ["canary"], "outside the tree");
        let canary = fs::symlink_metadata(outside.join("canary")).expect("there");
        assert!(canary.is_file() && canary.nlink() == 1 && canary.mode() & 0o7777 == 0o644);
        assert_eq!(fs::read(outside.join("canary")).expect("readable"), b"sings");
    }
}

/// Fills the directory `tree` with the base, and with links that lead out of it.
///
/// # Panics
///
/// It cannot be written.
pub fn populate(tree: &Path) {
    for (path, text) in BASE {
        let path = tree.join(&path[1..]);
        fs::create_dir_all(path.parent().expect("absolute")).expect("made");
        fs::write(path, text()).expect("written");
    }
    symlink("../outside", tree.join("out")).expect("linked");
    symlink("../../outside/canary", tree.join("etc/canary")).expect("linked");
    symlink("/", tree.join("srv/root")).expect("linked");
    symlink("loop", tree.join("loop")).expect("linked");
}
