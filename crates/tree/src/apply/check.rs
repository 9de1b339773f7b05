//! Where the tree stands, compared with the base and the target.

use std::collections::BTreeSet;

use rayon::prelude::*;
use rustix::fs::{Stat, fstatvfs};
use rustix::io::Errno;
use vireo_model::{Change, ChangeKind, ChangeSet, Digest, ImagePath, Node, NodeKind, Timestamp};

use super::Replaced;
use super::journal::Journal;
use crate::dir::Dir;
use crate::node::{digest, is_dir, is_regular, len_of, mtime_of, node};
use crate::{ErrorKind, Root, TreeError};

/// Inodes that staging needs beyond one per staged file.
const SPARE_INODES: u64 = 16;
/// Bytes that staging needs beyond the files: directories, the journal, the bundle's head.
const SPARE_LEN: u64 = 1 << 20;
/// Each staged file's share of metadata and of its last, partly filled block, in bytes.
const PER_FILE_LEN: u64 = 4096;

/// What a change does to the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// A staged node takes the place of what is there.
    Replace,
    /// A directory appears, perhaps in place of something else.
    MakeDir,
    /// Mode, owner, time or attributes change on the inode that is there.
    Metadata,
    /// What is there goes.
    Remove,
}

impl Action {
    pub(super) fn of(change: &Change) -> Self {
        match (&change.before, &change.after) {
            (_, None) => Self::Remove,
            (Some(before), Some(after)) if after.is_dir() && before.is_dir() => Self::Metadata,
            (_, Some(after)) if after.is_dir() => Self::MakeDir,
            (Some(_), Some(_)) if change.kind() == ChangeKind::Metadata => Self::Metadata,
            _ => Self::Replace,
        }
    }
}

/// A state of a path that any write, replacement or change of rights would change. The change
/// time is not in it: linking the base's files into the stage moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    dev: u64,
    ino: u64,
    /// Length and time; none for directories, in which entries come and go.
    content: Option<(u64, Timestamp)>,
    rights: (u32, u32, u32),
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            content: (!is_dir(stat)).then(|| (len_of(stat), mtime_of(stat))),
            rights: (stat.st_mode, stat.st_uid, stat.st_gid),
        }
    }
}

/// A tree that can take the update.
#[derive(Debug)]
pub(super) struct Checked {
    /// Changes that the tree already has.
    pub(super) skipped: BTreeSet<usize>,
    pub(super) stamps: Vec<(usize, Option<Stamp>)>,
    pub(super) replaced: Vec<Replaced>,
}

/// How one path stands.
struct Standing {
    stat: Option<Stat>,
    is_base: bool,
    is_target: bool,
}

pub(super) fn check(
    root: &Root,
    journal: &Journal,
    changes: &ChangeSet,
) -> Result<Checked, TreeError> {
    let list = &changes.changes;
    let standings: Vec<Standing> =
        list.par_iter().map(|change| standing(root, change)).collect::<Result<_, _>>()?;
    let mut skipped = BTreeSet::new();
    let mut drifted = Vec::new();
    for (number, (change, standing)) in list.iter().zip(&standings).enumerate() {
        // A further name of a file that is to be replaced is linked anew, whatever it is now.
        let relink = leader_of(change).is_some_and(|leader| {
            let at = list.binary_search_by(|other| other.path.cmp(leader));
            at.is_ok_and(|at| Action::of(&list[at]) == Action::Replace && !skipped.contains(&at))
        });
        if standing.is_target && !relink {
            skipped.insert(number);
        } else if !standing.is_base && !standing.is_target {
            drifted.push(change.path.clone());
        }
    }
    if !drifted.is_empty() {
        return Err(TreeError::drift(root.label(), drifted));
    }
    let todo = || (0..list.len()).filter(|number| !skipped.contains(number));
    check_device(root, journal, todo().map(|number| (&list[number], &standings[number])))?;
    check_removals(root, list, todo())?;
    check_space(root, todo().map(|number| &list[number]))?;
    let replaced =
        todo().filter_map(|number| replaced(&list[number], &standings[number])).collect();
    let stamps =
        todo().map(|number| (number, standings[number].stat.as_ref().map(Stamp::of))).collect();
    Ok(Checked { skipped, stamps, replaced })
}

/// Once more, right before the commit: has anybody else been at the touched paths?
pub(super) fn recheck(
    root: &Root,
    changes: &ChangeSet,
    stamps: &[(usize, Option<Stamp>)],
) -> Result<(), TreeError> {
    for (number, stamp) in stamps {
        let change = &changes.changes[*number];
        let found = stat(root, &change.path)?.map(|(_, stat)| Stamp::of(&stat));
        if found != *stamp {
            let message = format!(
                "{} in {} changed while the update was staged; nothing was changed, try again",
                change.path,
                root.label().display()
            );
            return Err(TreeError::new(ErrorKind::Busy, message));
        }
    }
    Ok(())
}

/// The number in a staged file's name.
pub(super) fn parse_number(name: &[u8]) -> Option<usize> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

fn leader_of(change: &Change) -> Option<&ImagePath> {
    match &change.after.as_ref()?.kind {
        NodeKind::HardLink { leader } => Some(leader),
        _ => None,
    }
}

/// The directory that holds `path` and its metadata; `None` if it or a directory above is not
/// there.
fn stat(root: &Root, path: &ImagePath) -> Result<Option<(Dir, Stat)>, TreeError> {
    let (dir, name) = match root.locate(path) {
        Ok(place) => place,
        // A symbolic link on the way: whatever it leads to is not this path.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(root.failed("look at", path)(error)),
    };
    let stat = dir.try_stat(name).map_err(root.failed("look at", path))?;
    Ok(stat.map(|stat| (dir, stat)))
}

fn standing(root: &Root, change: &Change) -> Result<Standing, TreeError> {
    let path = &change.path;
    let Some((dir, stat)) = stat(root, path)? else {
        let (is_base, is_target) = (change.before.is_none(), change.after.is_none());
        return Ok(Standing { stat: None, is_base, is_target });
    };
    let name = if path.is_root() { b".".as_slice() } else { path.name() };
    let found = node(&dir, name, &stat, Digest::of(b"")).map_err(root.failed("read", path))?;
    let mut hashed = None;
    let mut equals = |expected: Option<&Node>| -> Result<bool, TreeError> {
        let Some(expected) = expected else {
            return Ok(false);
        };
        match &expected.kind {
            NodeKind::HardLink { leader } => same_inode(root, &stat, leader),
            NodeKind::File { len, content } => {
                let alike = Node { kind: found.kind.clone(), ..expected.clone() } == found;
                if !alike || !is_regular(&stat) || len_of(&stat) != *len {
                    return Ok(false);
                }
                let digest = match hashed {
                    Some(digest) => digest,
                    None => *hashed.insert(digest(root, &dir, name, path)?),
                };
                Ok(digest == *content)
            }
            _ => Ok(*expected == found),
        }
    };
    let is_base = equals(change.before.as_ref())?;
    let is_target = equals(change.after.as_ref())?;
    Ok(Standing { stat: Some(stat), is_base, is_target })
}

fn same_inode(root: &Root, found: &Stat, leader: &ImagePath) -> Result<bool, TreeError> {
    let leader = stat(root, leader)?;
    Ok(leader
        .is_some_and(|(_, leader)| (leader.st_dev, leader.st_ino) == (found.st_dev, found.st_ino)))
}

fn replaced(change: &Change, standing: &Standing) -> Option<Replaced> {
    let stat = standing.stat.as_ref().filter(|stat| is_regular(stat))?;
    let goes = matches!(Action::of(change), Action::Replace | Action::Remove | Action::MakeDir);
    goes.then(|| Replaced { path: change.path.clone(), dev: stat.st_dev, ino: stat.st_ino })
}

/// Renames do not cross file systems.
fn check_device<'a>(
    root: &Root,
    journal: &Journal,
    changes: impl Iterator<Item = (&'a Change, &'a Standing)>,
) -> Result<(), TreeError> {
    for (change, standing) in changes {
        let dev = match &standing.stat {
            Some(stat) => Some(stat.st_dev),
            None => match change.path.parent() {
                Some(parent) => stat(root, &parent)?.map(|(_, stat)| stat.st_dev),
                None => None,
            },
        };
        if dev.is_some_and(|dev| dev != journal.dev()) {
            let message = format!(
                "{} lies on another file system than the root of {}; updates across file systems are not supported, nothing was changed",
                change.path,
                root.label().display()
            );
            return Err(TreeError::new(ErrorKind::Unsupported, message));
        }
    }
    Ok(())
}

/// A directory can only go if nothing stays in it, such as files that belong to no version.
fn check_removals(
    root: &Root,
    list: &[Change],
    todo: impl Iterator<Item = usize>,
) -> Result<(), TreeError> {
    let mut kept = Vec::new();
    for change in todo.map(|number| &list[number]) {
        let was_dir = change.before.as_ref().is_some_and(Node::is_dir);
        if !was_dir || change.after.as_ref().is_some_and(Node::is_dir) {
            continue;
        }
        let Ok(dir) = root.dir(&change.path) else {
            continue; // Not there any more.
        };
        for name in dir.names().map_err(root.failed("list", &change.path))? {
            let child = change.path.join(&name).map_err(|error| {
                TreeError::new(ErrorKind::Drift, format!("{}: {error}", change.path))
            })?;
            let goes = list
                .binary_search_by(|other| other.path.cmp(&child))
                .is_ok_and(|at| list[at].after.is_none());
            if !goes {
                kept.push(child);
            }
        }
    }
    if kept.is_empty() { Ok(()) } else { Err(TreeError::drift(root.label(), kept)) }
}

/// The worst case: every staged file in full beside all that is there.
fn check_space<'a>(root: &Root, todo: impl Iterator<Item = &'a Change>) -> Result<(), TreeError> {
    let (mut bytes, mut inodes) = (SPARE_LEN, SPARE_INODES);
    for change in todo {
        if matches!(Action::of(change), Action::Replace | Action::MakeDir) {
            inodes += 1;
            let content = change.after.as_ref().and_then(Node::content);
            bytes = bytes.saturating_add(content.map_or(0, |(len, _)| len) + PER_FILE_LEN);
        }
    }
    let top = ImagePath::root();
    let stat = fstatvfs(root.dir(&top).map_err(root.failed("open", &top))?.fd())
        .map_err(root.failed("ask for free space in", &top))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Some file systems (btrfs) have no fixed number of inodes and report none.
    let no_inodes = stat.f_files > 0 && stat.f_favail < inodes;
    if free < bytes || no_inodes {
        let message = format!(
            "{} has {free} bytes and {} inodes free, the update needs {bytes} and {inodes}; make room and try again, nothing was changed",
            root.label().display(),
            stat.f_favail
        );
        return Err(TreeError::new(ErrorKind::NoSpace, message));
    }
    Ok(())
}
