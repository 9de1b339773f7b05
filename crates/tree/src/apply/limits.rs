//! What would stop an update halfway, looked for before anything is written: other file systems,
//! missing directories, what would stay in a removed directory, immutable files, room.

use std::collections::{BTreeMap, BTreeSet};

use rustix::fs::{StatVfsMountFlags, fstatvfs};
use rustix::io::Errno;
use vireo_delta::{Bundle, Verified, paths_needing, permits_needed};
use vireo_model::{Change, ImagePath, Node, not_plain};

use super::check::{Checked, DIFFERS, Draft};
use super::journal;
use super::plan::How;
use crate::{ErrorKind, Root, Shortage, TreeError};

/// Most paths that a message names.
const MAX_NAMED: usize = 5;
/// Inodes that staging needs beyond one per staged file.
const SPARE_INODES: u64 = 16;
/// Bytes that staging needs beyond the files: directories, the journal.
const SPARE_LEN: u64 = 1 << 20;
/// Each staged file's share of metadata and of its last, partly filled block, in bytes.
const PER_FILE_LEN: u64 = 4096;

pub(super) fn check(root: &Root, list: &[Change], checked: &Checked) -> Result<(), TreeError> {
    let on_fat = checked.drafts.iter().filter(|draft| root.is_on_fat(&draft.path));
    on_fat.clone().try_for_each(|draft| check_fat(root, draft))?;
    check_removals(root, list, checked)?;
    check_parents(root, &checked.drafts)?;
    for mount in checked.mounts(root).iter().map(Some).chain([None]) {
        let drafts = || checked.drafts.iter().filter(|draft| root.mount_of(&draft.path) == mount);
        let beside: Vec<&Draft> = on_fat.clone().filter(|_| mount.is_none()).collect();
        if drafts().next().is_some() || !beside.is_empty() {
            check_device(root, mount, drafts())?;
            check_room(root, mount, drafts(), &beside)?;
        }
    }
    Ok(())
}

/// FAT keeps names and contents alone, and does not tell large letters from small ones.
fn check_fat(root: &Root, draft: &Draft) -> Result<(), TreeError> {
    let Some(after) = &draft.after else { return Ok(()) };
    let path = &draft.path;
    if root.is_mount(path) {
        return Ok(());
    }
    if let Some(why) = not_plain(path.name(), after) {
        let place = root.label().display();
        return Err(unsupported(format!("{path} in {place} {why}; nothing was changed")));
    }
    super::fat::check_name(root, path)
}

/// Whether the signer permitted what the bundle does: new set-user-ID files, devices, removing or
/// replacing most of the tree.
pub(super) fn check_permits(
    root: &Root,
    bundle: &Bundle<'_, Verified<'_>>,
) -> Result<(), TreeError> {
    let changes = bundle.change_set();
    let missing = permits_needed(changes, bundle.base_paths()).without(bundle.permits());
    if missing.is_empty() {
        return Ok(());
    }
    let paths: Vec<String> =
        paths_needing(changes, missing).take(MAX_NAMED).map(ToString::to_string).collect();
    let message = format!(
        "the bundle is not for {}: it needs the permission {missing} (for {}, for example), which its \
         signer has not given it (`vireo capture --permit`); nothing was changed",
        root.label().display(),
        paths.join(", ")
    );
    Err(TreeError::new(ErrorKind::Forbidden, message))
}

fn unsupported(message: String) -> TreeError {
    TreeError::new(ErrorKind::Unsupported, message)
}

/// Renames do not cross file systems, and cannot move where one begins.
fn check_device<'a>(
    root: &Root,
    mount: Option<&ImagePath>,
    drafts: impl Iterator<Item = &'a Draft>,
) -> Result<(), TreeError> {
    let at = mount.cloned().unwrap_or_else(ImagePath::root);
    let dev = journal::device(root, mount).map_err(root.failed("look at", &at))?;
    for Draft { path, how, stamp, .. } in drafts {
        if (root.is_mount(path) || path.is_root()) && *how != How::Metadata {
            return Err(unsupported(format!(
                "{path} in {} is where a file system begins and cannot be replaced; nothing was \
                 changed",
                root.label().display()
            )));
        }
        let found = match stamp {
            Some(stamp) => Some(stamp.dev),
            None => match path.parent() {
                Some(parent) => super::standing::stamp(root, &parent)?.map(|stamp| stamp.dev),
                None => None,
            },
        };
        if found.is_some_and(|found| found != dev) {
            return Err(unsupported(format!(
                "{path} in {} lies on a file system of its own that is not part of the tree; unmount \
                 it, or update the machine from inside (`vireo-agent`); nothing was changed",
                root.label().display()
            )));
        }
    }
    Ok(())
}

/// Everything that appears needs a directory to appear in, which can be written to.
fn check_parents(root: &Root, drafts: &[Draft]) -> Result<(), TreeError> {
    let made: BTreeSet<&ImagePath> = drafts
        .iter()
        .filter(|draft| draft.after.as_ref().is_some_and(Node::is_dir))
        .map(|draft| &draft.path)
        .collect();
    let mut looked_at = BTreeSet::new();
    let mut missing = Vec::new();
    for draft in drafts {
        if draft.stamp.is_some() {
            check_mutable(root, &draft.path)?;
        }
        let Some(parent) = draft.path.parent().filter(|_| draft.how != How::Metadata) else {
            continue;
        };
        if looked_at.contains(&parent) {
            continue;
        }
        match root.dir(&parent) {
            Ok(_) => check_mutable(root, &parent)?,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if made.contains(&parent) => {}
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => missing.push(draft.path.clone()),
            Err(error) => return Err(root.failed("look at", &parent)(error)),
        }
        looked_at.insert(parent);
    }
    if missing.is_empty() { Ok(()) } else { Err(TreeError::drift(root.label(), DIFFERS, missing)) }
}

/// The kernel refuses to change, replace or remove what is immutable or append-only, and to rename
/// in a directory that is (chattr(1)).
pub(super) fn check_mutable(root: &Root, path: &ImagePath) -> Result<(), TreeError> {
    let Ok((dir, name)) = root.locate(path) else { return Ok(()) };
    if dir.is_frozen(name).map_err(root.failed("look at", path))? {
        let message = format!(
            "{path} in {} is immutable or append-only (`lsattr`, `chattr -ia`); nothing was changed",
            root.label().display()
        );
        return Err(TreeError::new(ErrorKind::Permission, message));
    }
    Ok(())
}

/// A directory can only go if nothing stays in it, such as files that belong to no version.
fn check_removals(root: &Root, list: &[Change], checked: &Checked) -> Result<(), TreeError> {
    let mut kept = Vec::new();
    for draft in &checked.drafts {
        let was_dir = draft.before.as_ref().is_some_and(Node::is_dir);
        if !was_dir || draft.after.as_ref().is_some_and(Node::is_dir) {
            continue;
        }
        let Ok(dir) = root.dir(&draft.path) else {
            continue; // Not there any more.
        };
        for name in dir.names().map_err(root.failed("list", &draft.path))? {
            let child = draft.path.join(&name).map_err(|error| {
                TreeError::new(ErrorKind::Drift, format!("{}: {error}", draft.path))
            })?;
            let goes = list
                .binary_search_by(|other| other.path.cmp(&child))
                .is_ok_and(|at| list[at].after.is_none());
            if !goes {
                kept.push(child);
            }
        }
    }
    if kept.is_empty() { Ok(()) } else { Err(TreeError::drift(root.label(), DIFFERS, kept)) }
}

/// The worst case: every staged file in full beside all that is there.
fn check_room<'a>(
    root: &Root,
    mount: Option<&ImagePath>,
    drafts: impl Iterator<Item = &'a Draft>,
    beside: &[&Draft],
) -> Result<(), TreeError> {
    // FAT has no stage.
    let is_fat = mount.is_some_and(|at| root.is_on_fat(at));
    let (mut bytes, mut inodes) = (if is_fat { 0 } else { SPARE_LEN }, SPARE_INODES);
    // What is for FAT is staged here, and what stood there is kept.
    for node in beside.iter().flat_map(|draft| [&draft.before, &draft.after]).flatten() {
        inodes += 1;
        let len = node.content().map_or(0, |(len, _)| len).saturating_add(PER_FILE_LEN);
        bytes = bytes.saturating_add(len);
    }
    let mut sizes: BTreeMap<&ImagePath, u64> = BTreeMap::new();
    for draft in drafts.filter(|draft| draft.how == How::Place) {
        inodes += 1;
        let content = draft.after.as_ref().and_then(Node::content);
        sizes.insert(&draft.path, content.map_or(0, |(len, _)| len).saturating_add(PER_FILE_LEN));
    }
    bytes = sizes.values().fold(bytes, |sum, len| sum.saturating_add(*len));
    let at = mount.cloned().unwrap_or_else(ImagePath::root);
    let stat = fstatvfs(root.dir(&at).map_err(root.failed("open", &at))?.fd())
        .map_err(root.failed("ask for free space in", &at))?;
    let place = root.place(&at);
    if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let message = format!(
            "{place} is mounted read-only and the update changes files on it; mount it read-write \
             (`mount -o remount,rw {place}`) and try again, nothing was changed"
        );
        return Err(TreeError::new(ErrorKind::Permission, message));
    }
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Some file systems (btrfs) have no fixed number of inodes and report none.
    let no_inodes = stat.f_files > 0 && stat.f_favail < inodes;
    if free < bytes || no_inodes {
        let message = format!(
            "{place} has {free} bytes and {} inodes free, the update needs {bytes} and {inodes}; make \
             room and try again, nothing was changed",
            stat.f_favail
        );
        let len = stat.f_blocks.saturating_mul(stat.f_frsize);
        let shortage = Shortage {
            at,
            bytes: bytes.saturating_sub(free),
            inodes: if no_inodes { inodes - stat.f_favail } else { 0 },
            len_per_inode: len.checked_div(stat.f_files).unwrap_or(0),
        };
        return Err(TreeError::short(shortage, message));
    }
    Ok(())
}
