//! The renames: from the base to the target, one name at a time, each step repeatable.

use std::collections::BTreeSet;

use rustix::io::Errno;
use vireo_model::{Change, ChangeSet, ImagePath, Node, Timestamp};

use super::check::Action;
use super::journal::Journal;
use crate::dir::Dir;
use crate::node::is_dir;
use crate::{Root, TreeError};

/// Makes the changes but the `skipped` ones. What was made before is not made again.
pub(super) fn perform(
    root: &Root,
    journal: &Journal,
    changes: &ChangeSet,
    skipped: &BTreeSet<usize>,
    dir_times: &[(ImagePath, Timestamp)],
) -> Result<(), TreeError> {
    let commit = Commit { root, staged: journal.staged(root)? };
    let todo: Vec<(usize, &Change)> = changes
        .changes
        .iter()
        .enumerate()
        .filter(|(number, _)| !skipped.contains(number))
        .collect();
    let with = |action: Action| {
        todo.iter().copied().filter(move |(_, change)| Action::of(change) == action)
    };

    for (_, change) in with(Action::MakeDir) {
        commit.make_dir(change)?;
    }
    let (mut over_dirs, mut plain): (Vec<_>, Vec<_>) = with(Action::Replace)
        .partition(|(_, change)| change.before.as_ref().is_some_and(Node::is_dir));
    plain.sort_by_key(|(number, change)| (rank(&change.path), *number));
    for (number, change) in plain {
        commit.replace(number, change)?;
    }
    // Children come after their directory in path order, so backwards.
    for (_, change) in with(Action::Remove).collect::<Vec<_>>().into_iter().rev() {
        commit.remove(&change.path)?;
    }
    over_dirs.reverse();
    for (number, change) in over_dirs {
        commit.remove_dir_for(number, &change.path)?;
        commit.replace(number, change)?;
    }
    for (_, change) in with(Action::Metadata) {
        commit.metadata(change)?;
    }
    set_dir_times(root, dir_times)
}

/// Gives directories their times; those that are not there are left out.
pub(super) fn set_dir_times(
    root: &Root,
    dir_times: &[(ImagePath, Timestamp)],
) -> Result<(), TreeError> {
    for (path, time) in dir_times {
        let failed = root.failed("set the time of", path);
        match root.dir(path) {
            Ok(dir) => dir.set_mtime(b".", *time).map_err(failed)?,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// The order in which files appear: what others need first, what makes a service manager look
/// again last.
fn rank(path: &ImagePath) -> u8 {
    let path = path.as_bytes();
    let holds = |part: &[u8]| path.windows(part.len()).any(|window| window == part);
    if holds(b"/systemd/system/") || holds(b"/systemd/user/") {
        4
    } else if path.starts_with(b"/etc/") {
        3
    } else if holds(b".so") && holds(b"/lib") {
        0
    } else if holds(b"/bin/") || holds(b"/sbin/") || holds(b"/libexec/") {
        1
    } else {
        2
    }
}

struct Commit<'a> {
    root: &'a Root,
    staged: Dir,
}

impl Commit<'_> {
    fn make_dir(&self, change: &Change) -> Result<(), TreeError> {
        let Some(node) = &change.after else {
            return Ok(());
        };
        let path = &change.path;
        let failed = self.root.failed("make the directory", path);
        let (dir, name) = self.root.require("make the directory", path)?;
        let there = dir.try_stat(name).map_err(&failed)?;
        if there.as_ref().is_some_and(|stat| !is_dir(stat)) {
            dir.unlink(name).map_err(&failed)?;
        }
        match dir.make_dir(name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(error)),
        }
        dir.set_metadata(name, node).map_err(&failed)
    }

    fn replace(&self, number: usize, change: &Change) -> Result<(), TreeError> {
        let path = &change.path;
        let staged = number.to_string().into_bytes();
        let failed = self.root.failed("put in place", path);
        if self.staged.try_stat(&staged).map_err(&failed)?.is_none() {
            return Ok(()); // Renamed before an interruption.
        }
        let (dir, name) = self.root.require("put in place", path)?;
        self.staged.rename_to(&staged, &dir, name).map_err(&failed)?;
        // Renaming one name of an inode over another of the same does nothing: rename(2).
        self.staged.unlink(&staged).map(drop).map_err(&failed)
    }

    /// Removes the directory that a staged node is about to replace.
    fn remove_dir_for(&self, number: usize, path: &ImagePath) -> Result<(), TreeError> {
        let staged = self.staged.try_stat(number.to_string().as_bytes());
        if staged.map_err(self.root.failed("look for the staged", path))?.is_some() {
            self.remove(path)?;
        }
        Ok(())
    }

    fn remove(&self, path: &ImagePath) -> Result<(), TreeError> {
        let failed = self.root.failed("remove", path);
        let (dir, name) = match self.root.locate(path) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        match dir.try_stat(name).map_err(&failed)? {
            None => Ok(()),
            Some(stat) if is_dir(&stat) => dir.remove_dir(name).map(drop).map_err(&failed),
            Some(_) => dir.unlink(name).map(drop).map_err(&failed),
        }
    }

    fn metadata(&self, change: &Change) -> Result<(), TreeError> {
        let Some(node) = &change.after else {
            return Ok(());
        };
        let path = &change.path;
        let (dir, name) = self.root.require("set the metadata of", path)?;
        dir.set_metadata(name, node).map_err(self.root.failed("set the metadata of", path))
    }
}
