//! Making images, and reading a directory in an independent way.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::{lgetxattr, llistxattr};
use vireo_ext4::{Reader, Unfinished};
use vireo_model::{Digest, Ignore, ImagePath, Node, NodeKind, Timestamp, Tree, Xattrs};

/// Runs a program of e2fsprogs and expects success.
pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program} (install e2fsprogs): {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
    output
}

/// A directory for the image and what goes into it.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a temporary directory"));
        fs::create_dir(place.root()).expect("made");
        place
    }

    /// What `mke2fs -d` copies.
    pub(crate) fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.0.path().join("fs.img")
    }

    /// Makes the image from the root.
    pub(crate) fn make(&self, options: &[&str], size: &str) {
        let (root, image) = (self.root(), self.image());
        let _ = fs::remove_file(&image);
        let mut args = vec!["-q", "-F"];
        args.extend(options);
        let text = |path: &'_ Path| path.to_str().expect("a plain path").to_owned();
        let (root, image) = (text(&root), text(&image));
        args.extend(["-d", &root, &image, size]);
        run("mke2fs", &args);
    }

    /// Changes the image by a command of debugfs.
    pub(crate) fn debugfs(&self, command: &str) {
        let image = self.image();
        let output = run("debugfs", &["-w", "-R", command, image.to_str().expect("a plain path")]);
        // It fails without an exit code; the first line is its version.
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.lines().count() <= 1, "debugfs {command}: {text}");
    }

    pub(crate) fn open(&self) -> Result<Reader, vireo_ext4::Ext4Error> {
        let file = fs::File::open(self.image()).expect("the image was made");
        Reader::open(file, Unfinished::Refuse)
    }

    pub(crate) fn tree(&self) -> Tree {
        let tree = self.open().and_then(|reader| reader.tree(&ignore()));
        tree.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Expects that the image holds the root's tree.
    pub(crate) fn holds_the_root(&self, options: &[&str]) {
        let (expected, found) = (tree_of(&self.root()), self.tree());
        for (path, node) in expected.iter() {
            assert_eq!(found.get(path), Some(node), "{path} made with {options:?}");
        }
        assert_eq!(found.len(), expected.len(), "made with {options:?}");
    }
}

/// What `mke2fs` adds.
pub(crate) fn ignore() -> Ignore {
    Ignore::new(["/lost+found"]).expect("valid")
}

/// The tree below `dir`, read by means of its own.
pub(crate) fn tree_of(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut links = HashMap::new();
    add(dir, &ImagePath::root(), &mut links, &mut tree);
    tree
}

fn add(at: &Path, path: &ImagePath, links: &mut HashMap<u64, ImagePath>, tree: &mut Tree) {
    let stat = at.symlink_metadata().expect("it is there");
    if stat.nlink() > 1 && !stat.is_dir() {
        let leader = links.entry(stat.ino()).or_insert(path.clone());
        if leader != path {
            tree.insert(path.clone(), Node::hard_link(leader.clone()));
            return;
        }
    }
    let kind = match stat.file_type() {
        kind if kind.is_dir() => NodeKind::Dir,
        kind if kind.is_symlink() => {
            let target = fs::read_link(at).expect("a link");
            NodeKind::Symlink { target: target.as_os_str().as_bytes().to_vec() }
        }
        kind if kind.is_fifo() => NodeKind::Fifo,
        kind if kind.is_socket() => NodeKind::Socket,
        _ => {
            let content = Digest::of(&fs::read(at).expect("readable"));
            NodeKind::File { len: stat.len(), content }
        }
    };
    let node = Node {
        kind,
        mode: stat.mode() & 0o7777,
        uid: stat.uid(),
        gid: stat.gid(),
        // mke2fs copies whole seconds only.
        mtime: Timestamp { secs: stat.mtime(), nanos: 0 },
        xattrs: xattrs(at),
    };
    let is_dir = node.is_dir();
    tree.insert(path.clone(), node);
    if is_dir {
        let mut names: Vec<_> =
            fs::read_dir(at).expect("readable").map(|e| e.expect("readable").file_name()).collect();
        names.sort();
        for name in names {
            let child = path.join(name.as_bytes()).expect("a valid name");
            add(&at.join(&name), &child, links, tree);
        }
    }
}

fn xattrs(at: &Path) -> Xattrs {
    let mut buffer = vec![0; 1 << 16];
    let len = llistxattr(at, &mut buffer[..]).unwrap_or(0);
    let names: Vec<Vec<u8>> = buffer[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    let mut xattrs = Xattrs::new();
    for name in names {
        let mut value = vec![0; 1 << 16];
        let len = lgetxattr(at, std::ffi::OsStr::from_bytes(&name), &mut value[..]);
        value.truncate(len.expect("it was listed"));
        xattrs.insert(name, value);
    }
    xattrs
}
