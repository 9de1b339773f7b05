//! Patching an image without mounting it and without any rights: debugfs(8) of e2fsprogs writes
//! into a copy what a script tells it.
//!
//! Nothing that debugfs says is believed. It ends with 0 whatever failed, so anything on its
//! standard error is a failure; then `e2fsck` has to find the file system clean (it may free blocks
//! that nobody uses, which debugfs 1.47 forgets with a removed file's attributes), and our own reader, which shares no code with
//! e2fsprogs, has to find exactly the bundle's target in it. Otherwise nothing is published.
//!
//! There is no journal and no order of writes here: an interrupted run leaves an unfinished copy.
//!
//! Names and link targets with a line end cannot be told to debugfs; they are refused by name.
//!
//! # Not here
//!
//! The script's language ([`script`](crate::script)); the copy, and putting it in place
//! ([`patch_with`](crate::patch_with)).

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use vireo_delta::{BaseRead, Bundle, Piece, Verified, paths_needing, permits_needed};
use vireo_ext4::{Content, FileState, Reader, Scan, ScanOptions};
use vireo_model::{Change, ChangeSet, Digest, Ignore, ImagePath, Node, NodeKind, Tree};
use vireo_sys::durable::sibling;
use vireo_sys::lock::FileLock;

use crate::disk::busy;
use crate::fsck::{fsck, mend};
use crate::partition::Partition;
use crate::patch::PatchStep;
use crate::script::{self, Links, Script};
use crate::unmounted::open_at;
use crate::{ErrorKind, ImageError};

/// Most files of the base whose maps of blocks are kept for the next read.
const OPEN_FILES: usize = 16;

/// Most paths that a message names.
const MAX_NAMED: usize = 5;

/// Buffer for copying a file out of the image, in bytes.
const BUFFER_LEN: usize = 256 << 10;

/// What patching gave.
pub(crate) struct Outcome {
    /// Digest of the tree, read back: the bundle's target.
    pub(crate) tree: Digest,
    /// How many of the bundle's changes were there already.
    pub(crate) already: usize,
}

/// Where the contents of files wait for debugfs while `out` is made.
pub(crate) fn staging_dir(out: &Path) -> PathBuf {
    sibling(out, ".files.partial")
}

/// Makes of the file system in `partition` of `image`, a copy that nobody else knows yet, what the
/// bundle turns it into. `out` names the place where files may be staged.
pub(crate) fn patch(
    (image, partition): (&Path, &Partition),
    out: &Path,
    bundle: &Bundle<'_, Verified<'_>>,
    step: &mut dyn FnMut(PatchStep),
) -> Result<Outcome, ImageError> {
    step(PatchStep::Stage);
    check_permits(out, bundle)?;
    let failed = |step: &'static str| move |error: io::Error| ImageError::io(step, image, error);
    let handle = File::open(image).map_err(failed("open"))?;
    let _lock = FileLock::on(handle).map_err(failed("lock"))?.ok_or_else(|| busy(out))?;
    let reader = open_at(image, partition)?;
    let before = scan(image, &reader, bundle)?;
    let mut target = before.tree.clone();
    bundle.change_set().apply_to(&mut target);
    let drifted = drifted(bundle, &before.tree);
    if !drifted.is_empty() || target.digest() != bundle.target() {
        return Err(not_the_base(out, bundle, drifted));
    }
    let changes = ChangeSet::between(&before.tree, &target);
    let touched = |change: &&Change| {
        changes.changes.binary_search_by(|own| own.path.cmp(&change.path)).is_ok()
    };
    let listed = &bundle.change_set().changes;
    let already = listed.len() - listed.iter().filter(touched).count();

    let staging = Staging::new(out)?;
    let base = ReaderBase::new(&reader, &before);
    let script = Writer { bundle, base: &base, target: &target, staging: &staging }
        .script(image, partition, &changes)?;
    step(PatchStep::Commit);
    let script_file = staging.path("script");
    fs::write(&script_file, script.bytes())
        .map_err(|error| ImageError::io("write", &script_file, error))?;
    script::run(image, partition, &script_file)?;
    drop(staging);
    step(PatchStep::Check);
    if fsck(image, partition).is_err() {
        mend(image, partition)?;
        fsck(image, partition)?;
    }
    step(PatchStep::Verify);
    let tree = scan(image, &open_at(image, partition)?, bundle)?.tree;
    let found = tree.digest();
    if found != bundle.target() {
        let differing = ChangeSet::between(&target, &tree).changes;
        let message = format!(
            "{}: debugfs made something else than the bundle's target {}: {} differ; nothing was changed; \
             patch it as root, which mounts it",
            out.display(),
            bundle.target(),
            named(differing.iter().map(|change| &change.path))
        );
        return Err(ImageError::new(ErrorKind::Mismatch, message));
    }
    Ok(Outcome { tree: found, already })
}

fn scan(
    image: &Path,
    reader: &Reader,
    bundle: &Bundle<'_, Verified<'_>>,
) -> Result<Scan, ImageError> {
    let scan = reader.scan(bundle.ignore(), &ScanOptions::default());
    scan.map_err(|error| ImageError::ext4(image, error))
}

/// As when mounting: whether the signer permitted what the bundle does.
fn check_permits(image: &Path, bundle: &Bundle<'_, Verified<'_>>) -> Result<(), ImageError> {
    let changes = bundle.change_set();
    let missing = permits_needed(changes, bundle.base_paths()).without(bundle.permits());
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the bundle is not for {}: it needs the permission {missing} (for {}), which its signer has not given \
         it (`vireo capture --permit`); nothing was changed",
        image.display(),
        named(paths_needing(changes, missing))
    );
    Err(ImageError::new(ErrorKind::Forbidden, message))
}

/// The paths that are neither the base's nor the target's: what stands there is not lost.
fn drifted<'b>(bundle: &'b Bundle<'_, Verified<'_>>, found: &Tree) -> Vec<&'b ImagePath> {
    let drifted = bundle.change_set().changes.iter().filter(|change| {
        let there = found.get(&change.path);
        there != change.before.as_ref() && there != change.after.as_ref()
    });
    drifted.map(|change| &change.path).collect()
}

fn not_the_base(
    image: &Path,
    bundle: &Bundle<'_, Verified<'_>>,
    drifted: Vec<&ImagePath>,
) -> ImageError {
    let (kind, what) = if drifted.is_empty() {
        (ErrorKind::Mismatch, "paths that the bundle does not touch".to_owned())
    } else {
        (ErrorKind::WrongBase, named(drifted.into_iter()))
    };
    let message = format!(
        "{} differs from the bundle's base {} in {what}; nothing was changed",
        image.display(),
        bundle.base()
    );
    ImageError::new(kind, message)
}

/// The first paths, and how many more there are.
fn named<'a>(paths: impl Iterator<Item = &'a ImagePath>) -> String {
    let mut names: Vec<String> = Vec::new();
    let mut more = 0;
    for path in paths {
        if names.len() < MAX_NAMED {
            names.push(path.to_string());
        } else {
            more += 1;
        }
    }
    let list = names.join(", ");
    if more > 0 { format!("{list} and {more} more") } else { list }
}

/// A directory of files that debugfs reads; removed when dropped.
struct Staging {
    dir: PathBuf,
}

impl Staging {
    fn new(out: &Path) -> Result<Self, ImageError> {
        // debugfs is told the whole name, wherever it runs.
        let dir = std::path::absolute(staging_dir(out))
            .map_err(|error| ImageError::io("find", out, error))?;
        let failed = |error: io::Error| ImageError::io("make", &dir, error);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&dir).map_err(failed)?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Best effort: the next run to the same output begins by removing it.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// From changes to a script and staged files.
struct Writer<'a> {
    bundle: &'a Bundle<'a, Verified<'a>>,
    base: &'a ReaderBase<'a>,
    target: &'a Tree,
    staging: &'a Staging,
}

impl Writer<'_> {
    fn script(
        &self,
        image: &Path,
        partition: &Partition,
        changes: &ChangeSet,
    ) -> Result<Script, ImageError> {
        let wide = script::has_wide_inodes(image, partition)?;
        let mut script = Script::new(wide);
        let mut links = Links::default();
        let placed = placed(changes);
        // Children before their directories.
        for change in changes.changes.iter().rev() {
            let Some(before) = &change.before else { continue };
            if change.after.is_none() || placed.contains_key(&change.path) {
                script.remove(&change.path, before)?;
                if let NodeKind::HardLink { leader } = &before.kind {
                    links.removed(leader);
                }
            }
        }
        for change in &changes.changes {
            let Some(after) = &change.after else { continue };
            if let NodeKind::HardLink { .. } = after.kind {
                continue;
            }
            if placed.contains_key(&change.path) {
                self.place(&mut script, &change.path, after)?;
            } else {
                self.metadata(&mut script, &change.path, change.before.as_ref(), after)?;
            }
        }
        for (path, node) in &placed {
            if let NodeKind::HardLink { leader } = &node.kind {
                script.link(leader, path)?;
                links.added(leader);
            }
        }
        for (leader, count) in links.uncounted() {
            let links = if placed.contains_key(leader) {
                1 + count.added
            } else {
                // `rm` has counted the removed names already.
                let had = self.base.links(leader).map_err(self.unreadable(leader))?;
                had.saturating_sub(count.removed).saturating_add(count.added)
            };
            script.set(leader, "links_count", &links.to_string())?;
        }
        for (path, time) in self.bundle.dir_times() {
            if self.target.get(path).is_some_and(Node::is_dir) {
                script.time(path, *time)?;
            }
        }
        Ok(script)
    }

    fn place(&self, script: &mut Script, path: &ImagePath, node: &Node) -> Result<(), ImageError> {
        match &node.kind {
            NodeKind::File { len, content } => {
                let staged = self.stage(script.next_number(), path, *len, *content)?;
                script.file(path, &staged)?;
            }
            NodeKind::Dir => script.dir(path)?,
            NodeKind::Symlink { target } => script.symlink(path, target)?,
            NodeKind::Device { kind, major, minor } => {
                script.device(path, *kind, *major, *minor)?;
            }
            NodeKind::Fifo => script.fifo(path)?,
            NodeKind::Socket => script.socket(path, node.mode)?,
            NodeKind::HardLink { .. } => {}
        }
        self.metadata(script, path, None, node)
    }

    /// Sets all that is not as it is in `before`.
    fn metadata(
        &self,
        script: &mut Script,
        path: &ImagePath,
        before: Option<&Node>,
        after: &Node,
    ) -> Result<(), ImageError> {
        script.owner_and_mode(path, after)?;
        if !after.is_dir() {
            script.time(path, after.mtime)?;
        }
        let none = BTreeMap::new();
        let had = before.map_or(&none, |node| &node.xattrs);
        for name in had.keys().filter(|name| !after.xattrs.contains_key(*name)) {
            script.remove_xattr(path, name)?;
        }
        for (name, value) in
            after.xattrs.iter().filter(|(name, value)| had.get(*name) != Some(value))
        {
            let staged = self.staging.path(&format!("x{}", script.next_number()));
            fs::write(&staged, value).map_err(|error| ImageError::io("write", &staged, error))?;
            script.set_xattr(path, name, &staged)?;
        }
        Ok(())
    }

    /// Writes the content that `path` gets to a file; compared with its digest on the way.
    fn stage(
        &self,
        number: usize,
        path: &ImagePath,
        len: u64,
        digest: Digest,
    ) -> Result<PathBuf, ImageError> {
        let staged = self.staging.path(&format!("f{number}"));
        let failed = |error: io::Error| ImageError::io("write", &staged, error);
        let file = File::create_new(&staged).map_err(failed)?;
        // What is not written is a hole.
        file.set_len(len).map_err(failed)?;
        let content = self.bundle.content(path).or_else(|| self.bundle.content_of(path, digest));
        let Some(content) = content else {
            return self.copy_from_base(&file, digest, path).map(|()| staged.clone());
        };
        let mut at = 0;
        let decoded = content.decode(self.base, &mut |piece| {
            match piece {
                Piece::Data(bytes) => {
                    file.write_all_at(bytes, at)?;
                    at += bytes.len() as u64;
                }
                Piece::Zeros(len) => at += len,
            }
            Ok(())
        });
        decoded.map_err(|error| ImageError::delta(path, error))?;
        Ok(staged)
    }

    /// The base has the content under some name, so the bundle need not.
    fn copy_from_base(
        &self,
        file: &File,
        digest: Digest,
        path: &ImagePath,
    ) -> Result<(), ImageError> {
        let unreadable = self.unreadable(path);
        let has = |(_, node): &(&ImagePath, &Node)| {
            node.content().is_some_and(|(_, found)| found == digest)
        };
        let (source, node) = self.base.before.tree.iter().find(has).ok_or_else(|| {
            unreadable(io::Error::other("neither the bundle nor the image has its content"))
        })?;
        let (len, _) = node.content().unwrap_or((0, digest));
        let mut buffer = vec![0; BUFFER_LEN];
        let mut at = 0;
        while at < len {
            let part = usize::try_from(len - at).unwrap_or(BUFFER_LEN).min(BUFFER_LEN);
            self.base.read_at(source, at, &mut buffer[..part]).map_err(&unreadable)?;
            file.write_all_at(&buffer[..part], at).map_err(&unreadable)?;
            at += part as u64;
        }
        Ok(())
    }

    fn unreadable(&self, path: &ImagePath) -> impl Fn(io::Error) -> ImageError {
        let path = PathBuf::from(path.to_string());
        move |error| ImageError::io("read or stage", &path, error)
    }
}

/// The paths that get another inode, with what stands there then.
fn placed(changes: &ChangeSet) -> BTreeMap<ImagePath, &Node> {
    let mut placed: BTreeMap<ImagePath, &Node> = BTreeMap::new();
    // In path order, so that a leader is decided before its further names.
    for Change { path, before, after } in &changes.changes {
        let Some(after) = after else { continue };
        let stays = match (before.as_ref().map(|node| &node.kind), &after.kind) {
            (Some(was), NodeKind::HardLink { leader }) => {
                *was == after.kind && !placed.contains_key(leader)
            }
            (Some(was), is) => was == is,
            (None, _) => false,
        };
        if !stays {
            placed.insert(path.clone(), after);
        }
    }
    placed
}

/// The files of the unpatched copy, read by path.
struct ReaderBase<'a> {
    reader: &'a Reader,
    before: &'a Scan,
    open: Mutex<Vec<(u32, Arc<Content<'a>>)>>,
}

impl<'a> ReaderBase<'a> {
    fn new(reader: &'a Reader, before: &'a Scan) -> Self {
        Self { reader, before, open: Mutex::default() }
    }

    fn state(&self, path: &ImagePath) -> io::Result<&'a FileState> {
        let before = self.before;
        let leader = match before.tree.get(path).map(|node| &node.kind) {
            Some(NodeKind::HardLink { leader }) => leader,
            _ => path,
        };
        before.files.get(leader).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// How many names the inode at `path` has, those that belong to no version among them.
    fn links(&self, path: &ImagePath) -> io::Result<u16> {
        let ino = match self.state(path) {
            Ok(state) => state.ino,
            // No regular file, then: rare enough to look for it among all names.
            Err(_) => {
                let all = self.reader.walk_metadata(&Ignore::nothing());
                let all = all.map_err(io::Error::other)?;
                let found = all.iter().find(|entry| entry.path == *path);
                found.ok_or(io::ErrorKind::NotFound)?.state.ino
            }
        };
        Ok(self.reader.inode(ino).map_err(io::Error::other)?.links)
    }

    fn content(&self, ino: u32) -> io::Result<Arc<Content<'a>>> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, content)) = lock().iter().find(|(known, _)| *known == ino) {
            return Ok(content.clone());
        }
        let inode = self.reader.inode(ino).map_err(io::Error::other)?;
        let content = Arc::new(self.reader.content(&inode).map_err(io::Error::other)?);
        let mut open = lock();
        if open.len() >= OPEN_FILES {
            open.remove(0);
        }
        open.push((ino, content.clone()));
        Ok(content)
    }
}

impl BaseRead for ReaderBase<'_> {
    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let content = self.content(self.state(path)?.ino)?;
        let len = content.read_at(offset, buffer).map_err(io::Error::other)?;
        if len == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn len_of(&self, path: &ImagePath) -> io::Result<u64> {
        Ok(self.state(path)?.len)
    }
}
