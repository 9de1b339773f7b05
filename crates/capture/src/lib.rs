//! Turns two trees into a signed bundle: what the administrator's `vireo capture` does.
//!
//! # Guarantees
//!
//! - The bundle, applied to the base, gives a tree with the target's digest.
//! - The output appears under its name complete and durable, or not at all.
//! - A file that changes while it is captured is an error, never a wrong bundle.
//!
//! # Not here
//!
//! Mounting images (`vireo-image`); live recording; leaving out what differs between twins.
//!
//! # Example
//!
//! ```
//! use vireo_capture::{CaptureOptions, capture};
//! use vireo_delta::SecretKey;
//! use vireo_tree::Root;
//!
//! let (base, target) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! std::fs::write(base.path().join("motd"), "welcome")?;
//! std::fs::write(target.path().join("motd"), "welcome back")?;
//! let out = target.path().with_extension("vireo");
//!
//! let (base, target) = (Root::open(base.path())?, Root::open(target.path())?);
//! let key = SecretKey::generate()?;
//! let captured = capture(&base, &target, &CaptureOptions::default(), &key, &out)?;
//! assert_eq!(captured.modified, 1);
//! # std::fs::remove_file(out)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod ancestors;
mod error;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use vireo_delta::merge::{is_mergeable, may_be_mergeable};
use vireo_delta::{
    BundleWriter, Effort, Pair, Permits, SecretKey, Side, Statement, permits_needed,
};
use vireo_model::{Change, ChangeKind, ChangeSet, Digest, Ignore, ImagePath, Node, Timestamp};
use vireo_sys::durable::{directory_of, sync_dir};
use vireo_tree::{Root, Scan, ScanOptions, scan};

use ancestors::Ancestors;
pub use error::{CaptureError, ErrorKind};

/// How a bundle is captured.
#[derive(Clone, Debug, Default)]
pub struct CaptureOptions {
    /// What belongs to no version; must be what the repository's image was made with.
    pub ignore: Ignore,
    /// Hash every file of the target, also those whose inode number, length and times are the
    /// base's.
    pub paranoid: bool,
    /// What the bundle may do that would be dangerous if it came unintended; signed with it.
    pub permits: Permits,
    /// How hard to try to make the bundle small.
    pub effort: Effort,
    /// The read map that travels with the bundle, as `vireo record` writes it; it is not looked
    /// into here.
    pub read_map: Option<Vec<u8>>,
}

/// What was captured.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Digest of the base tree.
    pub base: Digest,
    /// Digest of the target tree.
    pub target: Digest,
    /// The bundle's name.
    pub bundle: Digest,
    /// Length of the bundle in bytes: what travels.
    pub wire_len: u64,
    /// Bytes of new content before compression.
    pub literal_len: u64,
    /// Bytes of all files whose content differs, in the target.
    pub content_len: u64,
    /// Paths that the base does not have.
    pub added: usize,
    /// Paths with another kind or content.
    pub modified: usize,
    /// Paths that the target does not have.
    pub removed: usize,
    /// Paths where only mode, owner, time or attributes differ.
    pub metadata: usize,
    /// Paths in the target.
    pub paths: usize,
    /// Files of the target whose content was read to compare it.
    pub hashed: usize,
}

/// Compares the trees `base` and `target` and writes the bundle that turns the one into the
/// other to `out`, signed by `key`.
///
/// Cost: the base is read once, of the target what looks changed; what did change is read once
/// more. Memory: 400 bytes per path of each tree, and what encoding takes.
///
/// # Errors
///
/// `Read` for what cannot be read, `Busy` for files that change meanwhile, `Write` if `out`
/// cannot be written, `NotPermitted` if the change needs what `options` do not permit; nothing is
/// left under its name then.
pub fn capture(
    base: &Root,
    target: &Root,
    options: &CaptureOptions,
    key: &SecretKey,
    out: &Path,
) -> Result<Captured, CaptureError> {
    let before = scan(base, &options.ignore, &ScanOptions::default())?;
    let clone_of = (!options.paranoid).then_some(&before);
    let after = scan(target, &options.ignore, &ScanOptions { clone_of })?;
    let changes = ChangeSet::between(&before.tree, &after.tree);
    let base_paths = before.tree.len() as u64;
    let missing = permits_needed(&changes, base_paths).without(options.permits);
    if !missing.is_empty() {
        return Err(CaptureError::not_permitted(missing, &changes));
    }

    let written = |error| CaptureError::io("write", out, error);
    let spool = tempfile::tempfile_in(directory_of(out)).map_err(written)?;
    let mut writer = BundleWriter::new(spool).with_effort(options.effort);
    if let Some(map) = &options.read_map {
        writer.set_read_map(map).map_err(|error| CaptureError::delta("write", out, error))?;
    }
    for (path, time) in dir_times(&before, &after, &changes) {
        writer.set_dir_time(path, time);
    }
    encode_mergeable(base, target, &changes, &mut writer)?;
    let content_len = encode(base, target, (&before, &after), &changes, &mut writer)?;

    let mut file = NamedTempFile::new_in(directory_of(out)).map_err(written)?;
    let statement = Statement {
        changes: &changes,
        ignore: &options.ignore,
        permits: options.permits,
        base_paths,
    };
    let finished = writer
        .finish(&statement, key, std::io::BufWriter::new(file.as_file_mut()))
        .map_err(|error| CaptureError::delta("write", out, error))?;
    publish(file, out).map_err(written)?;

    let count = |kind| changes.changes.iter().filter(|change| change.kind() == kind).count();
    Ok(Captured {
        base: changes.base,
        target: changes.target,
        bundle: finished.digest,
        wire_len: finished.wire_len,
        literal_len: finished.literal_len,
        content_len,
        added: count(ChangeKind::Added),
        modified: count(ChangeKind::Modified),
        removed: count(ChangeKind::Removed),
        metadata: count(ChangeKind::Metadata),
        paths: after.tree.len(),
        hashed: after.hashed,
    })
}

/// The times of the target's directories that differ from the base's or that patching would
/// move: those that hold a changed path, and the root, where patching keeps its state.
fn dir_times(before: &Scan, after: &Scan, changes: &ChangeSet) -> Vec<(ImagePath, Timestamp)> {
    if changes.is_empty() {
        return Vec::new();
    }
    let mut touched: BTreeSet<ImagePath> =
        changes.changes.iter().filter_map(|change| change.path.parent()).collect();
    touched.insert(ImagePath::root());
    let moved =
        |path: &ImagePath, time| touched.contains(path) || before.dir_times.get(path) != Some(time);
    let times = after.dir_times.iter().filter(|(path, time)| moved(path, *time));
    times.map(|(path, time)| (path.clone(), *time)).collect()
}

/// Encodes the base's and the target's text of every file that a machine may have edited, next to
/// each other and whole, so that the edit can be merged whatever the machine's file has become.
fn encode_mergeable(
    base: &Root,
    target: &Root,
    changes: &ChangeSet,
    writer: &mut BundleWriter<File>,
) -> Result<(), CaptureError> {
    let content = |node: &Option<Node>| node.as_ref().and_then(Node::content);
    for change in &changes.changes {
        let (before, after) = (content(&change.before), content(&change.after));
        if before == after {
            continue;
        }
        for (root, side) in [(base, before), (target, after)] {
            let Some((len, digest)) = side else { continue };
            if !may_be_mergeable(&change.path, len) {
                continue;
            }
            let failed = |error| CaptureError::delta("read", &place(root, &change.path), error);
            let mut text = Vec::new();
            root.open_file(&change.path)?
                .take(len + 1)
                .read_to_end(&mut text)
                .map_err(|error| CaptureError::read(&place(root, &change.path), error))?;
            if is_mergeable(&change.path, &text) {
                writer.encode_whole(digest, len, &text[..]).map_err(failed)?;
            }
        }
    }
    Ok(())
}

/// Encodes every content that the target needs and the base has not at that path. Returns their
/// length.
fn encode(
    base: &Root,
    target: &Root,
    scans: (&Scan, &Scan),
    changes: &ChangeSet,
    writer: &mut BundleWriter<File>,
) -> Result<u64, CaptureError> {
    let (before, after) = scans;
    let mut in_base: HashMap<Digest, &ImagePath> = HashMap::new();
    for (path, node) in before.tree.iter() {
        if let Some((_, digest)) = node.content() {
            in_base.entry(digest).or_insert(path);
        }
    }
    let ancestors = Ancestors::new(&before.tree, &changes.changes);
    let mut seen = HashMap::new();
    let (mut pairs, mut large) = (Vec::new(), Vec::new());
    let mut content_len = 0;
    for change in &changes.changes {
        let Some((len, digest)) = new_content(change) else { continue };
        content_len += len;
        if writer.has(digest) || seen.insert(digest, &change.path).is_some() {
            continue;
        }
        let sparse = after.files.get(&change.path).is_some_and(|file| file.sparse);
        if let Some(source) = in_base.get(&digest) {
            writer
                .reuse(digest, len, sparse, source)
                .map_err(|error| CaptureError::delta("read", &place(base, source), error))?;
            continue;
        }
        let pair = Pair { digest, len, sparse, ancestor: ancestors.of(&change.path) };
        if pair.fits() { pairs.push(pair) } else { large.push((pair, &change.path)) }
    }
    if !large.is_empty() || pairs.iter().any(|pair| pair.ancestor.is_none()) {
        index(base, changes, writer)?;
    }
    let read = |pair: &Pair, side: Side| {
        let (root, path) = match (side, &pair.ancestor) {
            (Side::Base, Some((path, _))) => (base, path),
            _ => (target, seen[&pair.digest]),
        };
        read_file(root, path)
    };
    writer
        .encode_pairs(&pairs, read)
        .map_err(|error| CaptureError::delta("read", target.label(), error))?;
    for (pair, path) in large {
        let file = target.open_file(path)?;
        writer
            .encode(pair.digest, pair.len, pair.sparse, file)
            .map_err(|error| CaptureError::delta("read", &place(target, path), error))?;
    }
    Ok(content_len)
}

/// The content of the target that the base has not at that path.
fn new_content(change: &Change) -> Option<(u64, Digest)> {
    let (len, digest) = change.after.as_ref()?.content()?;
    let had = change.before.as_ref().and_then(Node::content).map(|(_, digest)| digest);
    (had != Some(digest)).then_some((len, digest))
}

fn read_file(root: &Root, path: &ImagePath) -> std::io::Result<Vec<u8>> {
    let mut file = root.open_file(path).map_err(std::io::Error::other)?;
    let mut content = Vec::with_capacity(file.metadata()?.len() as usize);
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// Makes the chunks of every base file that changes or goes available: a file that was moved,
/// renamed and edited finds its own.
fn index(
    base: &Root,
    changes: &ChangeSet,
    writer: &mut BundleWriter<File>,
) -> Result<(), CaptureError> {
    for change in &changes.changes {
        let content = change.before.as_ref().and_then(Node::content);
        if content.is_some() && matches!(change.kind(), ChangeKind::Modified | ChangeKind::Removed)
        {
            let file = base.open_file(&change.path)?;
            writer
                .index_base(&change.path, file)
                .map_err(|error| CaptureError::delta("read", &place(base, &change.path), error))?;
        }
    }
    Ok(())
}

fn place(root: &Root, path: &ImagePath) -> PathBuf {
    PathBuf::from(format!("{}{path}", root.label().display()))
}

/// The bytes first, then the name.
fn publish(file: NamedTempFile, out: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(out)?;
    sync_dir(directory_of(out))
}
