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

mod base;
mod staging;
mod writer;

use std::fs::{self, File};
use std::io;
use std::path::Path;

use vireo_delta::{Bundle, Verified, paths_needing, permits_needed};
use vireo_ext4::{Reader, Scan, ScanOptions};
use vireo_model::{Change, ChangeSet, Digest, ImagePath, Tree};
use vireo_sys::lock::FileLock;

use crate::disk::busy;
use crate::fsck::{fsck, mend};
use crate::partition::Partition;
use crate::patch::PatchStep;
use crate::script;
use crate::unmounted::open_at;
use crate::{ErrorKind, ImageError};
use base::ReaderBase;
use staging::Staging;
use writer::Writer;

pub(crate) use staging::staging_dir;

/// Most paths that a message names.
const MAX_NAMED: usize = 5;

/// What patching gave.
pub(crate) struct Outcome {
    /// Digest of the tree, read back: the bundle's target.
    pub(crate) tree: Digest,
    /// How many of the bundle's changes were there already.
    pub(crate) already: usize,
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
