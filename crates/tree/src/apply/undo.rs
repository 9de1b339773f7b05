//! Taking transactions back: a transaction whose staged files are the inodes that were replaced.

use std::collections::BTreeMap;

use rustix::fs::Stat;
use vireo_model::{ImagePath, Node, NodeKind};

use super::check::{Draft, Source};
use super::drift::{LOCAL_SUFFIX, beside};
use super::fat::Found;
use super::journal::{Journal, State, Txn};
use super::limits;
use super::plan::{How, Plan, Step};
use super::stage::{Places, make, name_of, step};
use super::standing::stat;
use super::{Staged, random_id, refuse_unfinished, write_stage};
use crate::node::{is_dir, len_of, mtime_of};
use crate::{ErrorKind, Root, TreeError};

/// How transactions are undone.
#[derive(Clone, Copy, Debug, Default)]
pub struct UndoOptions {
    /// Files that were edited since are kept as `NAME.vireo-local` instead of stopping the undo.
    pub take: bool,
}

/// Prepares to take back the transaction `number` and all that came after it, in one step. The
/// tree is as before the oldest of them when this is committed; replaced files have their inodes
/// again.
///
/// # Errors
///
/// `Unsupported` if there is no such transaction (any more); `Drift`, with the paths, if what they
/// made was changed since; `Busy`, `NoSpace` and `Permission` as [`stage`](super::stage). The tree
/// is unchanged in every case.
pub fn stage_undo<'r>(
    root: &'r Root,
    number: u64,
    options: &UndoOptions,
) -> Result<Staged<'r>, TreeError> {
    let journal = Journal::open(root)?;
    refuse_unfinished(&journal)?;
    journal.sweep()?;
    let mut list = journal.list()?;
    list.retain(|txn| txn.state == State::Past && txn.number >= number);
    if list.first().is_none_or(|txn| txn.number != number) {
        let message = format!(
            "there is no transaction {number} to undo in {} (`vireo-agent history` lists them)",
            root.label().display()
        );
        return Err(TreeError::new(ErrorKind::Unsupported, message));
    }
    let undone: Vec<(Txn, Plan)> = list
        .into_iter()
        .map(|txn| Ok((txn, journal.plan(txn)?)))
        .collect::<Result<_, TreeError>>()?;
    let reverse = Reverse::of(&journal, &undone, options)?;
    let (txn, plan) = reverse.stage(&journal, &undone)?;
    let stamps = reverse.drafts.iter().map(|(draft, _)| draft.stamp).collect();
    let replaced = reverse.drafts.iter().filter_map(|(draft, _)| draft.replaced()).collect();
    Ok(Staged { journal, txn, plan, already: 0, stamps, replaced })
}

/// Stages the reverse of transactions, the last of which may be halfway.
pub(super) fn stage_reverse(
    journal: &Journal<'_>,
    undone: &[(Txn, Plan)],
) -> Result<(Txn, Plan), TreeError> {
    Reverse::of(journal, undone, &UndoOptions::default())?.stage(journal, undone)
}

/// What has to happen, and for each path where the inode is that it gets back.
struct Reverse<'r> {
    root: &'r Root,
    drafts: Vec<(Draft, Option<Kept>)>,
}

/// A link that an undone transaction keeps.
#[derive(Clone, Copy, Debug)]
struct Kept {
    /// Which of the undone transactions.
    txn: usize,
    /// Which of its steps.
    step: usize,
}

/// One path over all the undone transactions.
struct Trace<'p> {
    /// What it was before the oldest.
    before: Option<&'p Node>,
    found: Option<u64>,
    kept: Option<Kept>,
    /// The newest step about it.
    last: &'p Step,
}

impl<'r> Reverse<'r> {
    fn of(
        journal: &Journal<'r>,
        undone: &[(Txn, Plan)],
        options: &UndoOptions,
    ) -> Result<Self, TreeError> {
        let root = journal.root();
        // What is on a file system that is not mounted is not there, but was not changed either.
        for (txn, plan) in undone {
            Places::open(journal, *txn, plan.id, &plan.mounts)?;
        }
        let mut drafts = Vec::new();
        let mut changed = Vec::new();
        for (path, trace) in traces(undone) {
            if root.is_on_fat(path) {
                let is_halfway =
                    undone.last().is_some_and(|(txn, _)| txn.state == State::Committed);
                match on_fat(root, path, &trace, is_halfway)? {
                    OnFat::Back(draft) => drafts.push((*draft, trace.kept)),
                    OnFat::Same => {}
                    OnFat::Changed => changed.push(path.clone()),
                }
                continue;
            }
            let found = stat(root, path)?.map(|(_, stat)| stat);
            let ino = found.as_ref().map(|stat| stat.st_ino);
            // A halfway transaction has not got to it yet.
            let is_before = ino == trace.found && trace.last.how != How::Metadata;
            if is_before {
                continue;
            }
            // A directory that was there, went, and is there again is no edit that could be lost.
            let is_dir_again = trace.last.after.is_none()
                && trace.before.is_some_and(Node::is_dir)
                && found.as_ref().is_some_and(is_dir);
            let is_after = is_dir_again || is_after(trace.last, found.as_ref());
            let stamp = super::standing::stamp(root, path)?;
            if !is_after {
                if !options.take {
                    changed.push(path.clone());
                    continue;
                }
                drafts.extend(aside(root, path)?.map(|draft| (draft, None)));
            }
            let how = match trace.before {
                None => How::Remove,
                Some(_) if ino.is_some() && ino == trace.found => How::Metadata,
                Some(node) if node.is_dir() && found.as_ref().is_some_and(is_dir) => How::Metadata,
                Some(_) => How::Place,
            };
            if how == How::Remove && found.is_none() {
                continue;
            }
            let draft = Draft {
                path: path.clone(),
                before: trace.last.after.clone(),
                after: trace.before.cloned(),
                how,
                source: Source::Node,
                stamp,
            };
            drafts.push((draft, trace.kept));
        }
        check_removals(root, &drafts, &mut changed)?;
        if !changed.is_empty() {
            return Err(TreeError::drift(
                root.label(),
                "changed since in what the undo would change",
                changed,
            ));
        }
        drafts.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        check_mutable(root, &drafts)?;
        Ok(Self { root, drafts })
    }

    fn stage(
        &self,
        journal: &Journal<'_>,
        undone: &[(Txn, Plan)],
    ) -> Result<(Txn, Plan), TreeError> {
        let (Some((_, oldest)), Some((_, newest))) = (undone.first(), undone.last()) else {
            let message = "there is nothing to undo".to_owned();
            return Err(TreeError::new(ErrorKind::Unsupported, message));
        };
        let mut mounts: Vec<ImagePath> = self
            .drafts
            .iter()
            .filter_map(|(draft, _)| self.root.mount_of(&draft.path))
            .cloned()
            .collect();
        mounts.sort();
        mounts.dedup();
        let mut plan = Plan {
            id: random_id(self.root)?,
            base: newest.target,
            target: oldest.base,
            undoes: undone.iter().map(|(txn, _)| txn.number).collect(),
            mounts,
            steps: Vec::new(),
            dir_times: oldest.dir_times_before.clone(),
            dir_times_before: Vec::new(),
            settled: Vec::new(),
        };
        let kept: Vec<Places> = undone
            .iter()
            .map(|(txn, plan)| Places::open(journal, *txn, plan.id, &plan.mounts))
            .collect::<Result<_, _>>()?;
        let txn = write_stage(journal, &mut plan, |places| {
            let drafts = self.drafts.iter().enumerate();
            drafts
                .map(|(number, (draft, link))| {
                    self.draft(places, &kept, number, draft, *link)?;
                    step(self.root, places, number, draft)
                })
                .collect()
        })?;
        Ok((txn, plan))
    }

    /// Stages one node: by a link to its inode, or anew if it has no content.
    fn draft(
        &self,
        places: &Places,
        kept: &[Places],
        number: usize,
        draft: &Draft,
        link: Option<Kept>,
    ) -> Result<(), TreeError> {
        let (How::Place, Some(node)) = (draft.how, &draft.after) else { return Ok(()) };
        let path = &draft.path;
        let (name, staged) = (name_of(number), places.staged(self.root, path));
        let failed = self.root.failed("stage", path);
        if let Source::Present(local) = &draft.source {
            let (dir, local_name) = self.root.require("keep", local)?;
            return dir.link_to(local_name, staged, &name).map_err(failed);
        }
        let Some(Kept { txn, step }) = link else {
            return make(staged, &name, node).map_err(failed);
        };
        kept[txn].base(self.root, path).link_to(&name_of(step), staged, &name).map_err(&failed)?;
        // Its metadata may have been changed in place before it was replaced.
        let stat = staged.stat(&name).map_err(&failed)?;
        let now = crate::node::node(staged, &name, &stat, vireo_model::Digest::of(b""))
            .map_err(&failed)?;
        if (Node { kind: node.kind.clone(), ..now }) != *node {
            staged.set_metadata(&name, node).map_err(&failed)?;
        }
        Ok(())
    }
}

/// What becomes of one path on FAT.
enum OnFat {
    Back(Box<Draft>),
    /// It is as it was.
    Same,
    Changed,
}

/// By contents, as there are no inode numbers. What a halfway transaction was about may be anything.
fn on_fat(
    root: &Root,
    path: &ImagePath,
    trace: &Trace<'_>,
    is_halfway: bool,
) -> Result<OnFat, TreeError> {
    let found = Found::at(root, path)?;
    if found.is(trace.before) {
        return Ok(OnFat::Same);
    }
    if !is_halfway && !found.is(trace.last.after.as_ref()) {
        return Ok(OnFat::Changed);
    }
    Ok(OnFat::Back(Box::new(Draft {
        path: path.clone(),
        before: found.node(),
        after: trace.before.cloned(),
        how: if trace.before.is_some() { How::Place } else { How::Remove },
        source: Source::Node,
        stamp: super::standing::stamp(root, path)?,
    })))
}

/// Whether the path is still as the step left it; length and time stand for the content.
fn is_after(step: &Step, found: Option<&Stat>) -> bool {
    let (node, stat) = match (&step.after, found) {
        (None, None) => return true,
        (Some(node), Some(stat)) if node.is_dir() => return is_dir(stat),
        (Some(node), Some(stat)) => (node, stat),
        _ => return false,
    };
    let is_inode = Some(stat.st_ino) == step.staged.or(step.found);
    if matches!(node.kind, NodeKind::HardLink { .. }) {
        return is_inode; // All else about it stands at its first name.
    }
    if node.content().is_some_and(|(len, _)| len != len_of(stat)) {
        return false;
    }
    // One that is halfway may not have got to the metadata.
    let before = step.before.as_ref().filter(|_| step.how == How::Metadata);
    let times = [Some(node), before].map(|node| node.map(|node| node.mtime));
    is_inode && times.contains(&Some(mtime_of(stat)))
}

/// What the transactions, oldest first, did to each path.
fn traces(undone: &[(Txn, Plan)]) -> BTreeMap<&ImagePath, Trace<'_>> {
    let mut traces: BTreeMap<&ImagePath, Trace<'_>> = BTreeMap::new();
    for (txn, (_, plan)) in undone.iter().enumerate() {
        for (number, step) in plan.steps.iter().enumerate() {
            let kept = step.keeps().then_some(Kept { txn, step: number });
            traces
                .entry(&step.path)
                .and_modify(|trace| {
                    // As long as the inode stayed, the first that replaces it keeps it.
                    if trace.last.how == How::Metadata && trace.kept.is_none() {
                        trace.kept = kept;
                    }
                    trace.last = step;
                })
                .or_insert(Trace {
                    before: step.before.as_ref(),
                    found: step.found,
                    kept,
                    last: step,
                });
        }
    }
    traces
}

/// A draft that keeps what is at `path` beside it, if it is a regular file.
fn aside(root: &Root, path: &ImagePath) -> Result<Option<Draft>, TreeError> {
    let Some((dir, found)) = stat(root, path)?.filter(|(_, stat)| crate::node::is_regular(stat))
    else {
        return Ok(None);
    };
    let content = crate::node::digest(root, &dir, path.name(), path)?;
    let node =
        crate::node::node(&dir, path.name(), &found, content).map_err(root.failed("read", path))?;
    let is_taken = |other: &ImagePath| !matches!(super::standing::stamp(root, other), Ok(None));
    Ok(beside(path, LOCAL_SUFFIX, is_taken).map(|beside| Draft {
        path: beside,
        before: None,
        after: Some(node),
        how: How::Place,
        source: Source::Present(path.clone()),
        stamp: None,
    }))
}

/// What is immutable now would stop the undo halfway.
fn check_mutable(root: &Root, drafts: &[(Draft, Option<Kept>)]) -> Result<(), TreeError> {
    let mut parents = std::collections::BTreeSet::new();
    for (draft, _) in drafts {
        if draft.stamp.is_some() {
            limits::check_mutable(root, &draft.path)?;
        }
        parents.extend(draft.path.parent().filter(|_| draft.how != How::Metadata));
    }
    parents.iter().try_for_each(|parent| limits::check_mutable(root, parent))
}

/// A directory that the transactions made can only go if they made all that is in it.
fn check_removals(
    root: &Root,
    drafts: &[(Draft, Option<Kept>)],
    changed: &mut Vec<ImagePath>,
) -> Result<(), TreeError> {
    let goes: std::collections::BTreeSet<&ImagePath> = drafts
        .iter()
        .filter(|(draft, _)| draft.how == How::Remove)
        .map(|(draft, _)| &draft.path)
        .collect();
    for (draft, _) in drafts {
        let was_dir = draft.before.as_ref().is_some_and(Node::is_dir);
        if !was_dir || draft.after.as_ref().is_some_and(Node::is_dir) {
            continue;
        }
        let Ok(dir) = root.dir(&draft.path) else { continue };
        for name in dir.names().map_err(root.failed("list", &draft.path))? {
            let child = draft.path.join(&name);
            changed.extend(child.ok().filter(|child| !goes.contains(child)));
        }
    }
    Ok(())
}
