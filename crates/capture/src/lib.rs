//! Turns two trees into a signed bundle: what the administrator's `vireo capture` does.
//!
//! # Guarantees
//!
//! - The bundle, applied to the base, gives a tree with the target's digest.
//! - The output appears under its name complete and durable, or not at all; until then it has no name, so that
//!   nothing is left of a capture that is killed ([`vireo_sys::durable::Unnamed`]).
//! - A file that changes while it is captured is an error, never a wrong bundle.
//!
//! # What is trusted
//!
//! [`capture_images`] computes no digest of a file that the metadata of both images shows to be
//! unchanged. The digest then comes from the base's content: read once, and remembered in a
//! [`DigestCache`] under the file system's identity and the inode's state, so that the next capture from
//! this base, or from what was the target, costs a walk over two inode tables and reading what
//! changed. The base's tree digest is remembered, too, with a digest of its inodes: where no inode differs,
//! nothing but the inode tables is read. What metadata proves, and what it cannot (`dd` into an image, `debugfs`), says
//! [`vireo_image::unmounted`]; a machine's root is compared with the image that it was launched from in the same way
//! ([`capture_mixed`]). With [`CaptureOptions::paranoid`] everything is read. A digest remembered
//! wrongly does no harm unseen: it is part of the base's digest, and whoever applies the bundle has a
//! base with another one, and refuses.
//!
//! # Not here
//!
//! Finding file systems in images, and mounting them (`vireo-image`); live recording; leaving out what
//! differs between twins.
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
mod base;
mod cache;
mod contents;
mod error;
mod image;
mod snapshot;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use vireo_delta::{BundleWriter, Effort, Finished, Permits, SecretKey, Statement, permits_needed};
use vireo_model::{ChangeKind, ChangeSet, Digest, Ignore, ImagePath, Timestamp};
use vireo_sys::durable::{Unnamed, directory_of};
use vireo_tree::Root;

pub use base::Base;
pub use cache::DigestCache;
use cache::KnownTree;
pub use error::{CaptureError, ErrorKind};
pub use image::Image;
use image::Sides;
use snapshot::Snapshot;

/// Permissions of a bundle: it is signed, not secret.
pub const BUNDLE_MODE: u32 = 0o644;

/// How a bundle is captured.
#[derive(Clone, Debug, Default)]
pub struct CaptureOptions {
    /// What belongs to no version; must be what the repository's image was made with.
    pub ignore: Ignore,
    /// Hash every file of the target, also those whose inode number, length and times, or whose
    /// blocks, are the base's.
    pub paranoid: bool,
    /// What the bundle may do that would be dangerous if it came unintended; signed with it.
    pub permits: Permits,
    /// How hard to try to make the bundle small.
    pub effort: Effort,
    /// The read map that travels with the bundle, as `vireo record` writes it; it is not looked
    /// into here.
    pub read_map: Option<Vec<u8>>,
    /// Take what is on FAT, as on EFI system partitions, to be in the target as it is in the base.
    pub without_esp: bool,
}

/// What was captured.
#[derive(Debug)]
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
    /// Files of the base whose content was read, because nothing told their digests.
    pub base_hashed: usize,
    /// Why the digests could not be remembered for the next capture, if they should have been.
    pub not_remembered: Option<std::io::Error>,
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
    let (base, mut target) = snapshot::of_roots(base, target, &options.ignore, options.paranoid)?;
    if options.without_esp {
        target.keep_plain(&base);
    }
    write(&base, &target, options, key, out)
}

/// The same for two images, read in place without a mount.
///
/// Cost: a walk over the metadata of both, and reading what changed; without a `cache` that knows
/// the base, or with [`CaptureOptions::paranoid`], the base is read, too. What is trusted then: see
/// [`Image`].
///
/// # Errors
///
/// As [`capture`]; `Busy` also if an image is written meanwhile.
pub fn capture_images(
    base: &Image,
    target: &Image,
    options: &CaptureOptions,
    cache: Option<&DigestCache>,
    key: &SecretKey,
    out: &Path,
) -> Result<Captured, CaptureError> {
    if let Some(cache) = cache.filter(|_| !options.paranoid)
        && let Some(tree) = image::unchanged(base, target, &options.ignore, cache)?
    {
        return write_unchanged(&tree, options, key, out);
    }
    let mut sides = image::of_images(base, target, &options.ignore, options.paranoid, cache)?;
    if options.without_esp {
        sides.target.keep_plain(&sides.base);
    }
    let captured = write(&sides.base, &sides.target, options, key, out)?;
    if let Some(cache) = cache.filter(|_| sides.forgotten.is_none()) {
        let (before, after) = (&sides.base.tree, &sides.target.tree);
        for (image, digest, tree) in
            [(base, captured.base, before), (target, captured.target, after)]
        {
            // With the base's files on FAT that tree is not the image's own; and what its state does not tell from
            // the base's must not be taken for that.
            let is_told = !options.without_esp && !target.is_in_state_of(base);
            if std::ptr::eq(image, target) && !is_told {
                continue;
            }
            let known = (digest, tree.len() as u64);
            image::remember_tree(image, known, &options.ignore, cache)?;
        }
    }
    Ok(Captured { not_remembered: sides.forgotten, ..captured })
}

/// The same for an image and a directory, in either order.
///
/// A directory after an image may be the root of a machine that was launched from it: of file systems with the
/// image's UUIDs those files are not read that have the image's inode numbers, lengths and times, of which the
/// kernel sets one itself. With [`CaptureOptions::paranoid`], and in the other order, both are read whole.
///
/// # Errors
///
/// As [`capture_images`].
pub fn capture_mixed(
    base: Source<'_>,
    target: Source<'_>,
    options: &CaptureOptions,
    cache: Option<&DigestCache>,
    key: &SecretKey,
    out: &Path,
) -> Result<Captured, CaptureError> {
    let ignore = &options.ignore;
    let mut sides = match (base, target) {
        (Source::Image(base), Source::Root(target)) if !options.paranoid => {
            image::of_image_and_machine(base, target, ignore, cache)?
        }
        _ => Sides { base: base.read(ignore)?, target: target.read(ignore)?, forgotten: None },
    };
    if options.without_esp {
        sides.target.keep_plain(&sides.base);
    }
    let captured = write(&sides.base, &sides.target, options, key, out)?;
    Ok(Captured { not_remembered: sides.forgotten, ..captured })
}

/// What [`capture_mixed`] takes.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A directory, or a mounted image.
    Root(&'a Root),
    /// An image that is read in place.
    Image(&'a Image),
}

impl<'a> Source<'a> {
    fn read(self, ignore: &Ignore) -> Result<Snapshot<'a>, CaptureError> {
        match self {
            Self::Root(root) => snapshot::of_root(root, ignore),
            Self::Image(image) => image::of_image(image, ignore, None),
        }
    }
}

/// Writes the bundle that turns `base` into `target`.
fn write(
    base: &Snapshot<'_>,
    target: &Snapshot<'_>,
    options: &CaptureOptions,
    key: &SecretKey,
    out: &Path,
) -> Result<Captured, CaptureError> {
    let changes = ChangeSet::between(&base.tree, &target.tree);
    let base_paths = base.tree.len() as u64;
    let missing = permits_needed(&changes, base_paths).without(options.permits);
    if !missing.is_empty() {
        return Err(CaptureError::not_permitted(missing, &changes));
    }

    let mut writer = writer(options, out)?;
    for (path, time) in dir_times(base, target, &changes) {
        writer.set_dir_time(path, time);
    }
    let encoded = contents::encode_mergeable(base, target, &changes, &mut writer)
        .and_then(|()| contents::encode(base, target, &changes, options.effort, &mut writer));
    // What cannot be read may be half of what somebody writes.
    base.files.check_settled()?;
    target.files.check_settled()?;
    let content_len = encoded.map_err(|error| error.of_output(out))?;

    let (file, finished) = finish(writer, &changes, base_paths, options, key, out)?;
    file.publish(BUNDLE_MODE).map_err(|error| CaptureError::io("write", out, error))?;

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
        paths: target.tree.len(),
        hashed: target.hashed,
        base_hashed: base.hashed,
        not_remembered: None,
    })
}

/// Writes the bundle that changes nothing in `tree`.
fn write_unchanged(
    tree: &KnownTree,
    options: &CaptureOptions,
    key: &SecretKey,
    out: &Path,
) -> Result<Captured, CaptureError> {
    let changes = ChangeSet { base: tree.digest, target: tree.digest, changes: Vec::new() };
    let (file, finished) = finish(writer(options, out)?, &changes, tree.paths, options, key, out)?;
    file.publish(BUNDLE_MODE).map_err(|error| CaptureError::io("write", out, error))?;
    Ok(Captured {
        base: changes.base,
        target: changes.target,
        bundle: finished.digest,
        wire_len: finished.wire_len,
        literal_len: 0,
        content_len: 0,
        added: 0,
        modified: 0,
        removed: 0,
        metadata: 0,
        paths: usize::try_from(tree.paths).unwrap_or(usize::MAX),
        hashed: 0,
        base_hashed: 0,
        not_remembered: None,
    })
}

fn writer(options: &CaptureOptions, out: &Path) -> Result<BundleWriter<fs::File>, CaptureError> {
    let spool = tempfile::tempfile_in(directory_of(out));
    let spool = spool.map_err(|error| CaptureError::io("write", out, error))?;
    let mut writer = BundleWriter::new(spool).with_effort(options.effort);
    if let Some(map) = &options.read_map {
        writer.set_read_map(map).map_err(|error| CaptureError::delta("write", out, error))?;
    }
    Ok(writer)
}

/// The bundle in a file that has no name yet.
fn finish(
    writer: BundleWriter<fs::File>,
    changes: &ChangeSet,
    base_paths: u64,
    options: &CaptureOptions,
    key: &SecretKey,
    out: &Path,
) -> Result<(Unnamed, Finished), CaptureError> {
    let file = Unnamed::new(out);
    let mut file = file.map_err(|error| CaptureError::io("write", out, error))?;
    let statement =
        Statement { changes, ignore: &options.ignore, permits: options.permits, base_paths };
    let finished = writer
        .finish(&statement, key, std::io::BufWriter::new(file.file()))
        .map_err(|error| CaptureError::delta("write", out, error))?;
    Ok((file, finished))
}

/// The times of the target's directories that differ from the base's or that patching would
/// move: those that hold a changed path, and the root, where patching keeps its state.
fn dir_times(
    before: &Snapshot<'_>,
    after: &Snapshot<'_>,
    changes: &ChangeSet,
) -> Vec<(ImagePath, Timestamp)> {
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
