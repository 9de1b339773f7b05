//! The renames: from the base to the target, one name at a time, each step repeatable.
//!
//! What a step finds decides whether it has been done: the inode numbers of what was there and of
//! what was staged are in the plan, and both inodes are held, so the numbers cannot be used again.

use rustix::fs::Stat;
use rustix::io::Errno;
use vireo_model::{ImagePath, Timestamp};

use super::plan::{How, Plan, Step};
use super::stage::{Places, name_of};
use crate::dir::Dir;
use crate::node::is_dir;
use crate::{Root, TreeError};

/// Makes the steps of `plan`. What was made before is not made again.
///
/// # Errors
///
/// `Drift`, with the paths, if somebody else changed what a step is about; it looks at all steps
/// before it makes any.
pub(super) fn perform(root: &Root, places: &Places, plan: &Plan) -> Result<(), TreeError> {
    const WHAT: &str = "was changed by somebody else while an update was interrupted; put these paths \
                        back as they were, or remove what is in their place";
    let foreign = foreign(root, plan)?;
    if !foreign.is_empty() {
        return Err(TreeError::drift(root.label(), WHAT, foreign));
    }
    let mut commit = Commit { root, places, parent: None };
    for number in order(&plan.steps) {
        commit.step(number, &plan.steps[number])?;
    }
    set_dir_times(root, &plan.dir_times)
}

/// The paths that are neither as they were before the plan nor as they are after it.
fn foreign(root: &Root, plan: &Plan) -> Result<Vec<ImagePath>, TreeError> {
    let mut foreign = Vec::new();
    for step in plan.steps.iter().filter(|step| !root.is_on_fat(&step.path)) {
        let found = super::standing::stat(root, &step.path)?.map(|(_, stat)| stat);
        if !is_ours(step, found.as_ref()) {
            foreign.push(step.path.clone());
        }
    }
    Ok(foreign)
}

fn is_ours(step: &Step, found: Option<&Stat>) -> bool {
    match found {
        // Below a directory that the plan makes or has removed there is nothing (yet).
        None => step.how != How::Metadata && (step.found.is_none() || step.how == How::Remove),
        Some(stat) => Some(stat.st_ino) == step.staged || Some(stat.st_ino) == step.found,
    }
}

/// The order of the steps: directories and what takes a directory's place from something else;
/// new files; libraries, programs, the rest, configuration, units; removals, children first;
/// what takes the place of a directory; metadata.
pub(super) fn order(steps: &[Step]) -> Vec<usize> {
    let key = |number: usize| -> (u8, u8, i64) {
        let step = &steps[number];
        // Steps are in path order: a directory comes before what it holds.
        let position = i64::try_from(number).unwrap_or(i64::MAX);
        match step.how {
            How::Place if step.is_dir() => (0, 0, position),
            How::Place if step.was_dir() => (3, 0, -position),
            How::Place => (1, rank(step), position),
            How::Remove => (2, 0, -position),
            How::Metadata => (4, 0, position),
        }
    };
    let mut numbers: Vec<usize> = (0..steps.len()).collect();
    numbers.sort_by_key(|number| key(*number));
    numbers
}

/// The order in which files appear: what others need first, what makes a service manager look
/// again last. New files come early, because nothing uses them yet; but for what is read whenever
/// it is there.
fn rank(step: &Step) -> u8 {
    let path = step.path.as_bytes();
    let holds = |part: &[u8]| path.windows(part.len()).any(|window| window == part);
    if holds(b"/systemd/system/") || holds(b"/systemd/user/") {
        5
    } else if holds(b"/loader/") {
        // What systemd-boot reads names kernels, which have to be there.
        4
    } else if path.starts_with(b"/etc/") {
        4
    } else if step.before.is_none() {
        0
    } else if holds(b".so") && holds(b"/lib") {
        1
    } else if holds(b"/bin/") || holds(b"/sbin/") || holds(b"/libexec/") {
        2
    } else {
        3
    }
}

/// Gives directories their times; those that are not there are left out.
pub(super) fn set_dir_times(
    root: &Root,
    dir_times: &[(ImagePath, Timestamp)],
) -> Result<(), TreeError> {
    for (path, time) in dir_times.iter().filter(|(path, _)| !root.is_plain(path)) {
        let failed = root.failed("set the time of", path);
        match root.dir(path) {
            Ok(dir) => dir.set_mtime(b".", *time).map_err(failed)?,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// The times that the same directories have now.
pub(super) fn dir_times(
    root: &Root,
    paths: &[(ImagePath, Timestamp)],
) -> Result<Vec<(ImagePath, Timestamp)>, TreeError> {
    let mut times = Vec::new();
    for (path, _) in paths {
        if let Some((_, stat)) = super::standing::stat(root, path)? {
            times.push((path.clone(), crate::node::mtime_of(&stat)));
        }
    }
    Ok(times)
}

struct Commit<'a> {
    root: &'a Root,
    places: &'a Places,
    /// The directory of the last step: the next one is mostly in the same.
    parent: Option<(ImagePath, Dir)>,
}

impl Commit<'_> {
    fn step(&mut self, number: usize, step: &Step) -> Result<(), TreeError> {
        match step.how {
            How::Place => self.place(number, step),
            How::Metadata => self.metadata(step),
            How::Remove => self.remove(step),
        }
    }

    fn place(&mut self, number: usize, step: &Step) -> Result<(), TreeError> {
        let path = &step.path;
        if self.root.is_on_fat(path) {
            self.parent = None;
            return super::fat::place(self.root, self.places, number, step);
        }
        let staged = self.places.staged(self.root, path);
        let failed = self.root.failed("put in place", path);
        let dir = self.parent("put in place", path)?;
        let found = dir.try_stat(path.name()).map_err(&failed)?;
        if found.as_ref().map(|stat| stat.st_ino) == step.staged {
            return Ok(()); // Done before an interruption.
        }
        let changes_type = found.as_ref().is_some_and(|stat| is_dir(stat) || step.is_dir());
        if step.was_dir() && found.is_some() {
            // What appeared in it since it was checked would go with it.
            let names = dir.dir(path.name()).and_then(|old| old.names()).map_err(&failed)?;
            if !names.is_empty() {
                return Err(failed(Errno::NOTEMPTY));
            }
        }
        let moved = if changes_type {
            staged.exchange(&name_of(number), dir, path.name())
        } else {
            staged.rename_to(&name_of(number), dir, path.name())
        };
        moved.map_err(&failed)?;
        if changes_type {
            self.parent = None; // It may be the directory that was exchanged.
        }
        Ok(())
    }

    fn remove(&mut self, step: &Step) -> Result<(), TreeError> {
        let path = &step.path;
        let failed = self.root.failed("remove", path);
        let (dir, name) = match self.root.locate(path) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        if step.was_dir() {
            self.parent = None;
            dir.remove_dir(name).map(drop).map_err(failed)
        } else {
            dir.unlink(name).map(drop).map_err(failed)
        }
    }

    fn metadata(&self, step: &Step) -> Result<(), TreeError> {
        let Some(node) = step.after.as_ref().filter(|_| !self.root.is_on_fat(&step.path)) else {
            return Ok(());
        };
        let path = &step.path;
        let (dir, name) = self.root.require("set the metadata of", path)?;
        dir.set_metadata(name, node).map_err(self.root.failed("set the metadata of", path))
    }

    fn parent(&mut self, step: &str, path: &ImagePath) -> Result<&Dir, TreeError> {
        let parent = path.parent().unwrap_or_else(ImagePath::root);
        if self.parent.as_ref().is_none_or(|(open, _)| *open != parent) {
            let (dir, _) = self.root.require(step, path)?;
            self.parent = Some((parent, dir));
        }
        match &self.parent {
            Some((_, dir)) => Ok(dir),
            None => Err(self.root.failed(step, path)(Errno::NOENT)),
        }
    }
}

#[cfg(test)]
mod tests {
    use vireo_model::{Digest, Node, NodeKind};

    use super::*;

    fn step(path: &str, how: How, before: Option<&str>, after: Option<&str>) -> Step {
        let node = |kind: &str| match kind {
            "dir" => Node::new(NodeKind::Dir, 0o755),
            _ => Node::new(NodeKind::File { len: 1, content: Digest::of(kind.as_bytes()) }, 0o644),
        };
        let path = ImagePath::parse(path.as_bytes()).expect("a valid path");
        let (before, after) = (before.map(node), after.map(node));
        Step { path, before, after, how, found: None, staged: None }
    }

    #[test]
    fn what_others_need_comes_first_and_what_makes_others_look_comes_last() {
        // In path order, as plans have them; the numbers say when each is to come.
        let file =
            |path, before, number: usize| (step(path, How::Place, before, Some("b")), number);
        let gone = |path, kind, number: usize| (step(path, How::Remove, Some(kind), None), number);
        let mut steps = vec![
            file("/etc/app.conf", Some("a"), 7),
            file("/etc/systemd/system/app.service", None, 8),
            (step("/opt/file-to-dir", How::Place, Some("a"), Some("dir")), 0),
            (step("/opt/new", How::Place, None, Some("dir")), 1),
            file("/opt/new/file", None, 2),
            (step("/srv/dir-to-file", How::Place, Some("dir"), Some("b")), 12),
            gone("/srv/dir-to-file/child", "a", 11),
            gone("/srv/gone", "dir", 10),
            gone("/srv/gone/child", "a", 9),
            (step("/srv/mode", How::Metadata, Some("a"), Some("a")), 13),
            file("/usr/bin/app", Some("a"), 4),
            file("/usr/lib/libapp.so.1", Some("a"), 3),
            file("/usr/share/app/text", Some("a"), 5),
            file("/var/www/index.html", Some("a"), 6),
        ];
        steps.sort_by(|a, b| a.0.path.cmp(&b.0.path));
        let (steps, expected): (Vec<Step>, Vec<usize>) = steps.into_iter().unzip();
        let order = order(&steps);
        let got: Vec<usize> = order.iter().map(|number| expected[*number]).collect();
        assert_eq!(got, (0..steps.len()).collect::<Vec<_>>());
    }
}
