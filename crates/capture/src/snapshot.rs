//! A tree that was read, and the files behind it: what a bundle is made from.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use vireo_model::{Digest, Ignore, ImagePath, Node, Timestamp, Tree};
use vireo_tree::{Root, Scan, ScanOptions, scan};

use crate::CaptureError;

/// The files of a tree: a directory's, or an image's.
pub(crate) trait Files: Sync {
    /// What messages call it.
    fn label(&self) -> &Path;

    /// Opens the regular file `path`; of a file with several names the first.
    fn open(&self, path: &ImagePath) -> io::Result<Box<dyn Read + '_>>;

    /// Fills `buffer` with the bytes of `path` from `offset` on.
    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Fails if what was read may have changed meanwhile.
    fn check_settled(&self) -> Result<(), CaptureError>;

    /// The whole content of `path`, `len` bytes by what was read before.
    fn read(&self, path: &ImagePath, len: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        // A byte more than expected shows that the file grew.
        self.open(path)?.take(len.saturating_add(1)).read_to_end(&mut content)?;
        Ok(content)
    }

    /// What messages call `path`.
    fn place(&self, path: &ImagePath) -> PathBuf {
        PathBuf::from(format!("{}{path}", self.label().display()))
    }
}

/// One side of a capture.
pub(crate) struct Snapshot<'a> {
    pub(crate) tree: Tree,
    /// Files with holes.
    pub(crate) sparse: BTreeSet<ImagePath>,
    /// Times of modification of the directories; no part of the tree.
    pub(crate) dir_times: BTreeMap<ImagePath, Timestamp>,
    /// How many files' content was read for the tree.
    pub(crate) hashed: usize,
    /// Where its file systems with FAT are.
    pub(crate) plain: Vec<ImagePath>,
    pub(crate) files: Box<dyn Files + 'a>,
}

impl<'a> Snapshot<'a> {
    fn of_scan(scan: Scan, root: &'a Root) -> Self {
        let sparse = scan.files.into_iter().filter(|(_, file)| file.sparse);
        Self {
            tree: scan.tree,
            sparse: sparse.map(|(path, _)| path).collect(),
            dir_times: scan.dir_times,
            hashed: scan.hashed,
            plain: root.plain_mounts().cloned().collect(),
            files: Box::new(root),
        }
    }

    /// The whole content of the regular file `path`, of which nothing has changed since the tree was read: whoever
    /// has the tree has these bytes.
    pub(crate) fn content(&self, path: &ImagePath) -> io::Result<Vec<u8>> {
        let node = self.tree.get(path).and_then(Node::content);
        let (len, expected) = node.ok_or(io::ErrorKind::NotFound)?;
        let content = self.files.read(path, len)?;
        if Digest::of(&content) == expected {
            return Ok(content);
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, self.changed(path)))
    }

    /// What is said of a file that is not what the tree says any more.
    pub(crate) fn changed(&self, path: &ImagePath) -> String {
        let place = self.files.place(path);
        format!(
            "{} changed while it was captured: stop what writes it, or capture a copy; with --paranoid no remembered \
             digest is believed",
            place.display()
        )
    }

    /// Has on FAT what `base` has there.
    pub(crate) fn keep_plain(&mut self, base: &Snapshot<'_>) {
        let places: Vec<&ImagePath> = base.plain.iter().chain(&self.plain).collect();
        let is_kept = |path: &ImagePath| places.iter().any(|at| path.is_within(at));
        let own = self.tree.iter().filter(|(path, _)| !is_kept(path));
        let kept = base.tree.iter().filter(|(path, _)| is_kept(path));
        let nodes = own.chain(kept).map(|(path, node)| (path.clone(), node.clone()));
        self.tree = nodes.collect();
        self.sparse.retain(|path| self.tree.get(path).is_some());
        self.dir_times.retain(|path, _| !is_kept(path));
    }
}

/// Reads two directories, of which the target may be a copy of the base.
pub(crate) fn of_roots<'a>(
    base: &'a Root,
    target: &'a Root,
    ignore: &Ignore,
    paranoid: bool,
) -> Result<(Snapshot<'a>, Snapshot<'a>), CaptureError> {
    let before = scan(base, ignore, &ScanOptions::default())?;
    let options = if paranoid {
        ScanOptions::default()
    } else {
        let shares_with = Some((base, &before));
        ScanOptions { clone_of: Some(&before), shares_with, ..ScanOptions::default() }
    };
    let after = scan(target, ignore, &options)?;
    Ok((Snapshot::of_scan(before, base), Snapshot::of_scan(after, target)))
}

/// Reads one directory, every file of it.
pub(crate) fn of_root<'a>(root: &'a Root, ignore: &Ignore) -> Result<Snapshot<'a>, CaptureError> {
    Ok(Snapshot::of_scan(scan(root, ignore, &ScanOptions::default())?, root))
}

/// Reads one directory, but for the files that are there as `seen` has them.
pub(crate) fn of_copy<'a>(
    root: &'a Root,
    ignore: &Ignore,
    seen: &Scan,
) -> Result<Snapshot<'a>, CaptureError> {
    let options = ScanOptions { clone_of: Some(seen), ..ScanOptions::default() };
    Ok(Snapshot::of_scan(scan(root, ignore, &options)?, root))
}

impl Files for &Root {
    fn label(&self) -> &Path {
        Root::label(self)
    }

    fn open(&self, path: &ImagePath) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.open_file(path).map_err(io::Error::other)?))
    }

    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.open_file(path).map_err(io::Error::other)?.read_exact_at(buffer, offset)
    }

    /// Each file's content is compared with the digest that was taken before; a mounted image can
    /// change otherwise.
    fn check_settled(&self) -> Result<(), CaptureError> {
        Ok(Root::check_settled(self)?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vireo_sys::stamp::Stamp;

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_mounted_image_that_is_written_after_its_tree_was_read_is_seen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("image");
        fs::write(&image, "1").expect("written");
        let root = Root::open(dir.path()).expect("a directory");
        let root = root.with_stamp(Stamp::of(&image).expect("it is there"));
        let snapshot = of_root(&root, &Ignore::default()).expect("read");
        snapshot.files.check_settled().expect("nobody wrote");
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&image, "2").expect("written");
        let error = snapshot.files.check_settled().expect_err("somebody wrote");
        assert_eq!(error.kind(), ErrorKind::Busy);
    }
}
