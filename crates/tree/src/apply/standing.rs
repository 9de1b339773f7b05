//! How each path of a change set stands: as in the base, as in the target, or otherwise.

use rustix::fs::Stat;
use rustix::io::Errno;
use vireo_model::{Change, Digest, ImagePath, Node, NodeKind, Timestamp};

use crate::dir::Dir;
use crate::node::{digest, is_dir, is_regular, len_of, mtime_of, node_at};
use crate::{Root, TreeError};

/// A state of a path that any write, replacement or change of rights would change. The change
/// time is not in it: linking the base's files into the stage moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) dev: u64,
    pub(super) ino: u64,
    /// Length and time; none for directories, in which entries come and go.
    content: Option<(u64, Timestamp)>,
    rights: (u32, u32, u32),
}

impl Stamp {
    /// Instead of an inode number, on FAT.
    pub(super) const NO_INODE: u64 = 0;

    fn of(stat: &Stat, is_on_fat: bool) -> Self {
        Self {
            dev: stat.st_dev,
            // The kernel makes one up whenever it looks anew.
            ino: if is_on_fat { Self::NO_INODE } else { stat.st_ino },
            content: (!is_dir(stat)).then(|| (len_of(stat), mtime_of(stat))),
            rights: (stat.st_mode, stat.st_uid, stat.st_gid),
        }
    }
}

/// How one path stands.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) stamp: Option<Stamp>,
    /// How many names the inode has that is there, if one is.
    pub(super) links: u64,
    /// What is there, content and all; a further name of an inode shows the inode.
    pub(super) found: Option<Node>,
    /// As in the base, times of files apart: a file that was only touched has nothing to lose.
    pub(super) is_base: bool,
    /// As in the target.
    pub(super) is_target: bool,
}

/// The directory that holds `path` and its metadata; `None` if it or a directory above is not
/// there.
pub(super) fn stat(root: &Root, path: &ImagePath) -> Result<Option<(Dir, Stat)>, TreeError> {
    let (dir, name) = match root.locate(path) {
        Ok(place) => place,
        // A symbolic link on the way: whatever it leads to is not this path.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(root.failed("look at", path)(error)),
    };
    let stat = dir.try_stat(name).map_err(root.failed("look at", path))?;
    Ok(stat.map(|stat| (dir, stat)))
}

pub(super) fn stamp(root: &Root, path: &ImagePath) -> Result<Option<Stamp>, TreeError> {
    Ok(stat(root, path)?.map(|(_, stat)| Stamp::of(&stat, root.is_on_fat(path))))
}

/// Looks at the path of `change`. Reads a regular file's content unless its length or rights
/// show already that it is neither the base's nor the target's.
pub(super) fn standing(root: &Root, change: &Change) -> Result<Standing, TreeError> {
    let path = &change.path;
    let Some((dir, stat)) = stat(root, path)? else {
        let (is_base, is_target) = (change.before.is_none(), change.after.is_none());
        return Ok(Standing { stamp: None, links: 0, found: None, is_base, is_target });
    };
    let name = if root.is_mount(path) || path.is_root() { b".".as_slice() } else { path.name() };
    let found = node_at(root, path, (&dir, name), &stat, Digest::of(b""));
    let mut found = found.map_err(root.failed("read", path))?;
    if is_regular(&stat) {
        let content = digest(root, &dir, name, path)?;
        found.kind = NodeKind::File { len: len_of(&stat), content };
    }
    let equals = |expected: Option<&Node>, time_counts: bool| -> Result<bool, TreeError> {
        match expected {
            None => Ok(false),
            Some(Node { kind: NodeKind::HardLink { leader }, .. }) => {
                same_inode(root, &stat, leader)
            }
            Some(expected) if time_counts => Ok(*expected == found),
            Some(expected) => Ok(Node { mtime: expected.mtime, ..found.clone() } == *expected),
        }
    };
    let is_target = equals(change.after.as_ref(), true)?;
    let is_base = equals(change.before.as_ref(), false)?;
    let stamp = Some(Stamp::of(&stat, root.is_on_fat(path)));
    #[allow(clippy::useless_conversion, reason = "on other processors it has 32 bits")]
    let links = u64::from(stat.st_nlink);
    Ok(Standing { stamp, links, found: Some(found), is_base, is_target })
}

fn same_inode(root: &Root, found: &Stat, leader: &ImagePath) -> Result<bool, TreeError> {
    let leader = stat(root, leader)?;
    Ok(leader
        .is_some_and(|(_, leader)| (leader.st_dev, leader.st_ino) == (found.st_dev, found.st_ino)))
}
