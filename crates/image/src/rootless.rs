//! Patching an image without mounting it and without any rights: debugfs(8) of e2fsprogs writes
//! into a copy what a script tells it.
//!
//! Nothing that debugfs says is believed. It ends with 0 whatever failed, so anything on its
//! standard error is a failure; then `e2fsck` has to find the file system clean (it may free blocks
//! that nobody uses, which debugfs 1.47 forgets with a removed file's attributes), and our own reader, which shares no code with
//! e2fsprogs, has to find exactly the bundle's target in it. Otherwise nothing is published.
//!
//! What is on FAT is written by [`change_fat`], which reads it back.
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

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use vireo_delta::{Bundle, Verified, paths_needing, permits_needed};
use vireo_model::{Change, ChangeSet, Digest, ImagePath, Tree};
use vireo_sys::lock::FileLock;

use crate::disk::busy;
use crate::fat::{change_fat, refuse_unholdable};
use crate::fsck::{fsck, fsck_copy, mend};
use crate::layout::Volume;
use crate::partition::RootPartition;
use crate::patch::PatchStep;
use crate::probe::FileSystemKind;
use crate::script;
use crate::unmounted::{self, Disk, ScanOptions, Unfinished, open_at};
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

/// Makes of the tree in `image`, a copy of `base` that nobody else knows yet, what the bundle turns it into. `out` names
/// the place where files may be staged. The tree is in one ext file system, and perhaps on FAT.
pub(crate) fn patch(
    (image, root): (&Path, RootPartition),
    (base, out): (&Path, &Path),
    bundle: &Bundle<'_, Verified<'_>>,
    step: &mut dyn FnMut(PatchStep),
) -> Result<Outcome, ImageError> {
    let disk = unmounted::open(image, root, Unfinished::Refuse)?;
    let (volume, fats) = only_ext(&disk, base)?;
    let partition = &volume.partition;
    step(PatchStep::Stage);
    check_permits(out, bundle)?;
    let failed = |step: &'static str| move |error: io::Error| ImageError::io(step, image, error);
    let handle = File::open(image).map_err(failed("open"))?;
    let _lock = FileLock::on(handle).map_err(failed("lock"))?.ok_or_else(|| busy(out))?;
    let reader = open_at(image, partition)?;
    let before = disk.scan(bundle.ignore(), &ScanOptions::default())?;
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
    for fat in &fats {
        refuse_unholdable(out, &fat.at, &changes, &target)?;
    }

    let staging = Staging::new(out)?;
    let files = ReaderBase::new(&disk, &reader, &before);
    let writer = Writer { bundle, base: &files, target: &target, staging: &staging, fats: &fats };
    let script = writer.script(image, partition, &changes)?;
    // Before debugfs writes: what is new may come from what is there.
    let plain = writer.stage_plain(&changes)?;
    step(PatchStep::Commit);
    let script_file = staging.path("script");
    fs::write(&script_file, script.bytes())
        .map_err(|error| ImageError::io("write", &script_file, error))?;
    script::run(image, partition, &script_file)?;
    let mut changed = Vec::new();
    for fat in &fats {
        let open = |path: &ImagePath| open_staged(&plain, &fat.at, path);
        if change_fat(image, fat, &below(&target, &fat.at), &open)? {
            changed.push(fat);
        }
    }
    step(PatchStep::Check);
    // The base was whole, if anybody looked: what is to be mended is debugfs's.
    if fsck(image, partition).is_err() {
        mend(image, partition)?;
        fsck(image, partition)?;
    }
    for fat in changed {
        fsck_copy(image, fat, &staging.path("vfat"))?;
    }
    drop(staging);
    step(PatchStep::Verify);
    let disk = unmounted::open(image, root, Unfinished::Refuse)?;
    let tree = disk.scan(bundle.ignore(), &ScanOptions::default())?.tree;
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

/// The one ext file system of `disk`, which messages call `name`, and those with FAT.
fn only_ext<'d>(disk: &'d Disk, name: &Path) -> Result<(&'d Volume, Vec<&'d Volume>), ImageError> {
    let is_fat = |volume: &&Volume| volume.kind == FileSystemKind::Vfat;
    let (fats, others): (Vec<&Volume>, Vec<&Volume>) = disk.volumes().partition(is_fat);
    let [volume] = others.as_slice() else {
        let message = format!(
            "the tree of {} is in several file systems, and only one is patched without mounting; \
             patch it as root",
            name.display()
        );
        return Err(ImageError::new(ErrorKind::Unsupported, message));
    };
    if let Some(superblock) = &volume.fs.superblock {
        superblock.check_writable(name)?;
    }
    Ok((volume, fats))
}

/// What `tree` has below `at`, with paths that begin there.
fn below(tree: &Tree, at: &ImagePath) -> Tree {
    let nodes = tree.iter().filter(|(path, _)| path.is_within(at));
    nodes.map(|(path, node)| (moved(path, at), node.clone())).collect()
}

/// The path within the file system at `at`.
fn moved(path: &ImagePath, at: &ImagePath) -> ImagePath {
    let below = path.as_bytes().get(at.as_bytes().len()..).unwrap_or(b"");
    ImagePath::parse(below).unwrap_or_else(|_| ImagePath::root())
}

/// The staged content of what is at `path` within the file system at `at`.
fn open_staged(
    staged: &BTreeMap<ImagePath, PathBuf>,
    at: &ImagePath,
    path: &ImagePath,
) -> Result<File, ImageError> {
    let is_it =
        |(whole, _): &(&ImagePath, &PathBuf)| whole.is_within(at) && moved(whole, at) == *path;
    let file = staged.iter().find(is_it).map(|(_, file)| file.as_path());
    let file = file.unwrap_or(Path::new(""));
    File::open(file).map_err(|error| ImageError::io("open what was staged as", file, error))
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
