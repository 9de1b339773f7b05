//! Whether and how the tree can take an update: from change set and local state to steps.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rayon::prelude::*;
use vireo_delta::{Bundle, Verified};
use vireo_model::{Change, ChangeKind, Digest, ImagePath, Node, NodeKind};

use super::drift::{
    LOCAL_SUFFIX, NEW_SUFFIX, OnConflict, OnDrift, Settled, Settlement, beside, merge_metadata,
    merge_text,
};
use super::plan::How;
use super::stage::LiveBase;
use super::standing::{Stamp, Standing, stamp, standing};
use super::{ApplyOptions, Replaced};
use crate::{ErrorKind, Root, TreeError};

/// What a message says of paths that stop an update.
pub(super) const DIFFERS: &str = "differs from the bundle's base in what the bundle would change";

/// One step, before anything is written for it.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) path: ImagePath,
    pub(super) before: Option<Node>,
    pub(super) after: Option<Node>,
    pub(super) how: How,
    pub(super) source: Source,
    pub(super) stamp: Option<Stamp>,
}

/// Where what is staged comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// From the node alone, or from nothing.
    Node,
    /// The bundle's content with this digest.
    Bundle(Digest),
    /// These bytes.
    Bytes(Vec<u8>),
    /// The inode that this path is to have, staged or not.
    Leader(ImagePath),
    /// The inode that this path has now.
    Present(ImagePath),
    /// A copy of the content that this path has now.
    Copy(ImagePath),
}

impl Draft {
    /// The regular file that goes, if one does.
    pub(super) fn replaced(&self) -> Option<Replaced> {
        let is_file = self.before.as_ref()?.content().is_some();
        // On FAT nothing is known by a number.
        let has_number = |stamp: &Stamp| stamp.ino != Stamp::NO_INODE;
        let stamp = self.stamp.filter(|_| is_file && self.how != How::Metadata);
        let stamp = stamp.filter(has_number)?;
        Some(Replaced { path: self.path.clone(), dev: stamp.dev, ino: stamp.ino })
    }
}

/// A tree that can take the update.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) drafts: Vec<Draft>,
    /// How many changes the tree already has.
    pub(super) already: usize,
    pub(super) settled: Vec<Settled>,
}

impl Checked {
    /// The further file systems that the drafts touch.
    pub(super) fn mounts(&self, root: &Root) -> Vec<ImagePath> {
        let mounts: BTreeSet<&ImagePath> =
            self.drafts.iter().filter_map(|draft| root.mount_of(&draft.path)).collect();
        mounts.into_iter().cloned().collect()
    }

    /// The regular files that go.
    pub(super) fn replaced(&self) -> Vec<Replaced> {
        self.drafts.iter().filter_map(Draft::replaced).collect()
    }
}

/// Compares the tree with the bundle and decides, path by path. Writes nothing.
pub(super) fn check(
    root: &Root,
    bundle: &Bundle<'_, Verified<'_>>,
    options: &ApplyOptions<'_>,
) -> Result<Checked, TreeError> {
    super::limits::check_permits(root, bundle)?;
    let list = &bundle.change_set().changes;
    let standings: Vec<Standing> =
        list.par_iter().map(|change| standing(root, change)).collect::<Result<_, _>>()?;
    let mut decider = Decider {
        root,
        bundle,
        options,
        names: names(&standings),
        checked: Checked::default(),
        replaced: BTreeSet::new(),
        drifted: Vec::new(),
    };
    for (change, standing) in list.iter().zip(standings) {
        decider.decide(change, standing)?;
    }
    let Decider { mut checked, drifted, .. } = decider;
    if !drifted.is_empty() {
        return Err(TreeError::drift(root.label(), DIFFERS, drifted));
    }
    keep_parents_of_kept(&mut checked);
    super::limits::check(root, list, &checked)?;
    Ok(checked)
}

/// Once more, right before the commit: has anybody else been at the touched paths?
pub(super) fn recheck<'a>(
    root: &Root,
    stamps: impl Iterator<Item = (&'a ImagePath, Option<Stamp>)>,
) -> Result<(), TreeError> {
    for (path, expected) in stamps {
        if stamp(root, path)? != expected {
            return Err(changed_meanwhile(root, path));
        }
    }
    Ok(())
}

/// Somebody else was at `path`.
pub(super) fn changed_meanwhile(root: &Root, path: &ImagePath) -> TreeError {
    let message = format!(
        "{path} in {} changed while the update was staged; nothing was changed, try again",
        root.label().display()
    );
    TreeError::new(ErrorKind::Busy, message)
}

/// A directory that the update removes stays if a local file in it does.
fn keep_parents_of_kept(checked: &mut Checked) {
    let kept: Vec<ImagePath> = checked
        .settled
        .iter()
        .filter(|settled| settled.how == Settlement::Kept)
        .map(|settled| settled.path.clone())
        .collect();
    checked.drafts.retain(|draft| {
        draft.how != How::Remove || !kept.iter().any(|path| path.is_within(&draft.path))
    });
}

/// How many of the change set's paths each inode is at. All names that the base gives a file are in
/// it whenever its first name is.
fn names(standings: &[Standing]) -> BTreeMap<(u64, u64), u64> {
    let mut names = BTreeMap::new();
    for stamp in standings.iter().filter_map(|standing| standing.stamp) {
        *names.entry((stamp.dev, stamp.ino)).or_default() += 1;
    }
    names
}

/// A merged node and, if neither side has it, its content.
type Merged = (Node, Option<Vec<u8>>);

struct Decider<'a> {
    root: &'a Root,
    bundle: &'a Bundle<'a, Verified<'a>>,
    options: &'a ApplyOptions<'a>,
    /// How many of the paths each inode is at.
    names: BTreeMap<(u64, u64), u64>,
    checked: Checked,
    /// Paths that get another inode.
    replaced: BTreeSet<&'a ImagePath>,
    drifted: Vec<ImagePath>,
}

impl<'a> Decider<'a> {
    fn decide(&mut self, change: &'a Change, standing: Standing) -> Result<(), TreeError> {
        // A further name of a file that is to be replaced is linked anew, whatever it is now.
        let relink = leader_of(change).is_some_and(|leader| self.replaced.contains(leader));
        if standing.is_target && !relink {
            self.checked.already += 1;
            return Ok(());
        }
        if standing.is_base || standing.is_target {
            self.plain(change, standing);
            return Ok(());
        }
        if self.root.is_on_fat(&change.path) {
            // Nothing can be kept beside by a link.
            self.drifted.push(change.path.clone());
            return Ok(());
        }
        match (self.options.drift)(&change.path) {
            OnDrift::Refuse => self.drifted.push(change.path.clone()),
            OnDrift::Take => self.take(change, standing),
            OnDrift::Merge(on) => self.merge(change, standing, on)?,
        }
        Ok(())
    }

    fn plain(&mut self, change: &'a Change, standing: Standing) {
        let mut how = how(change, standing.found.as_ref());
        let copied = how == How::Metadata && self.has_other_names(&standing);
        if copied {
            how = How::Place;
        }
        if how == How::Place {
            self.replaced.insert(&change.path);
        }
        let source = match change.after.as_ref().map(|node| &node.kind) {
            Some(NodeKind::File { .. }) if copied => Source::Copy(change.path.clone()),
            Some(NodeKind::File { content, .. }) if how == How::Place => Source::Bundle(*content),
            Some(NodeKind::HardLink { leader }) => Source::Leader(leader.clone()),
            _ => Source::Node,
        };
        self.push(&change.path, standing, change.after.clone(), how, source);
    }

    /// Whether the inode has names that the version does not know. They may be outside of the tree:
    /// what is changed here must not be changed there.
    fn has_other_names(&self, standing: &Standing) -> bool {
        let is_dir = standing.found.as_ref().is_none_or(Node::is_dir);
        let has_number = |stamp: &Stamp| stamp.ino != Stamp::NO_INODE;
        let stamp = standing.stamp.filter(|_| !is_dir).filter(has_number);
        let Some(stamp) = stamp else { return false };
        let known = self.names.get(&(stamp.dev, stamp.ino)).copied().unwrap_or_default();
        standing.links > known
    }

    fn push(
        &mut self,
        path: &ImagePath,
        standing: Standing,
        after: Option<Node>,
        how: How,
        source: Source,
    ) {
        let Standing { stamp, found: before, .. } = standing;
        self.checked.drafts.push(Draft { path: path.clone(), before, after, how, source, stamp });
    }

    fn settle(&mut self, path: &ImagePath, how: Settlement, beside: Option<ImagePath>) {
        self.checked.settled.push(Settled { path: path.clone(), how, beside });
    }

    /// The target's node takes the place of whatever is there; a regular file is kept beside it.
    fn take(&mut self, change: &'a Change, standing: Standing) {
        let mut aside = None;
        if let Some(node) = standing.found.as_ref().filter(|node| node.content().is_some()) {
            let Some(path) = beside(&change.path, LOCAL_SUFFIX, |path| self.is_taken(path)) else {
                self.drifted.push(change.path.clone());
                return;
            };
            aside = Some(path.clone());
            self.checked.drafts.push(Draft {
                path,
                before: None,
                after: Some(node.clone()),
                how: How::Place,
                source: Source::Present(change.path.clone()),
                stamp: None,
            });
        }
        self.plain(change, standing);
        self.settle(&change.path, Settlement::Taken, aside);
    }

    fn merge(
        &mut self,
        change: &'a Change,
        standing: Standing,
        on: OnConflict,
    ) -> Result<(), TreeError> {
        let is_file = |node: Option<&Node>| node.is_none_or(|node| node.content().is_some());
        if ![&change.before, &change.after, &standing.found]
            .map(Option::as_ref)
            .map(is_file)
            .iter()
            .all(|is| *is)
        {
            self.drifted.push(change.path.clone());
            return Ok(());
        }
        let merged = match (&change.before, &standing.found, &change.after) {
            (before, Some(local), Some(target)) => {
                self.merged(&change.path, before.as_ref(), local, target)?
            }
            _ => None,
        };
        let Some((node, bytes)) = merged else {
            return self.conflict(change, standing, on);
        };
        if standing.found.as_ref() != Some(&node) {
            let same_content = standing.found.as_ref().and_then(Node::content) == node.content();
            let (how, source) = match bytes {
                _ if same_content && self.has_other_names(&standing) => {
                    (How::Place, Source::Copy(change.path.clone()))
                }
                _ if same_content => (How::Metadata, Source::Node),
                Some(bytes) => (How::Place, Source::Bytes(bytes)),
                None => (How::Place, content_source(&node)),
            };
            if how == How::Place {
                self.replaced.insert(&change.path);
            }
            self.push(&change.path, standing, Some(node), how, source);
        }
        self.settle(&change.path, Settlement::Merged, None);
        Ok(())
    }

    /// What both sides' changes make together; none if they conflict.
    fn merged(
        &self,
        path: &ImagePath,
        base: Option<&Node>,
        local: &Node,
        target: &Node,
    ) -> Result<Option<Merged>, TreeError> {
        let mut node = merge_metadata(base, local, target);
        let base_content = base.and_then(Node::content);
        let (local_content, target_content) = (local.content(), target.content());
        if local_content == base_content || local_content == target_content {
            return Ok(Some((node, None)));
        }
        if target_content == base_content {
            node.kind = local.kind.clone();
            node.mtime = local.mtime;
            return Ok(Some((node, None)));
        }
        let (Some((_, base)), Some((_, target))) = (base_content, target_content) else {
            return Ok(None);
        };
        let (Some(base), Some(target)) = (self.text(path, base), self.text(path, target)) else {
            return Ok(None);
        };
        let Some(local) = self.local_text(path, local)? else {
            return Ok(None);
        };
        Ok(merge_text(&base, &local, &target).map(|bytes| {
            let (len, content) = (bytes.len() as u64, Digest::of(&bytes));
            node.kind = NodeKind::File { len, content };
            (node, Some(bytes))
        }))
    }

    /// A text that the bundle carries whole.
    fn text(&self, path: &ImagePath, digest: Digest) -> Option<Vec<u8>> {
        let source = self.bundle.content_of(path, digest)?;
        let fits = source.is_self_contained() && source.content_len() <= super::MAX_MERGE_LEN;
        let base = LiveBase::new(self.root);
        fits.then(|| source.to_vec(&base).ok()).flatten()
    }

    fn local_text(&self, path: &ImagePath, local: &Node) -> Result<Option<Vec<u8>>, TreeError> {
        if local.content().is_none_or(|(len, _)| len > super::MAX_MERGE_LEN) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let mut file = self.root.open_file(path)?;
        let read = io::Read::read_to_end(&mut file, &mut bytes);
        read.map_err(self.root.failed("read", path))?;
        Ok(Some(bytes))
    }

    fn conflict(
        &mut self,
        change: &'a Change,
        standing: Standing,
        on: OnConflict,
    ) -> Result<(), TreeError> {
        match on {
            OnConflict::Refuse => self.drifted.push(change.path.clone()),
            OnConflict::Take => self.take(change, standing),
            OnConflict::Keep => self.keep(change)?,
        }
        Ok(())
    }

    /// The local file stays; the target's is put beside it.
    fn keep(&mut self, change: &'a Change) -> Result<(), TreeError> {
        let path = &change.path;
        let Some(node) = change.after.as_ref() else {
            self.settle(path, Settlement::Kept, None);
            return Ok(());
        };
        // One that an earlier update put there makes room: it is a copy, never an edit.
        let new = beside(path, NEW_SUFFIX, |_| false);
        let Some(new) = new.filter(|new| self.parent_exists(new)) else {
            // Its directory is gone as well: so it is to stay.
            self.settle(path, Settlement::Kept, None);
            return Ok(());
        };
        let there = Change { path: new.clone(), before: None, after: Some(node.clone()) };
        let standing = standing(self.root, &there)?;
        if standing.found.as_ref().is_some_and(|node| node.content().is_none()) {
            self.drifted.push(new);
            return Ok(());
        }
        if !standing.is_target {
            self.push(&new, standing, Some(node.clone()), How::Place, content_source(node));
        }
        self.settle(path, Settlement::Kept, Some(new));
        Ok(())
    }

    fn parent_exists(&self, path: &ImagePath) -> bool {
        path.parent().is_some_and(|parent| self.root.dir(&parent).is_ok())
    }

    /// Whether something is or will be at `path`. What cannot be looked at is.
    fn is_taken(&self, path: &ImagePath) -> bool {
        !matches!(stamp(self.root, path), Ok(None))
            || self.bundle.change_set().changes.iter().any(|change| change.path == *path)
    }
}

fn content_source(node: &Node) -> Source {
    node.content().map_or(Source::Node, |(_, content)| Source::Bundle(content))
}

fn leader_of(change: &Change) -> Option<&ImagePath> {
    match &change.after.as_ref()?.kind {
        NodeKind::HardLink { leader } => Some(leader),
        _ => None,
    }
}

/// How a change is made to what is there.
fn how(change: &Change, found: Option<&Node>) -> How {
    let Some(after) = &change.after else { return How::Remove };
    let Some(found) = found else { return How::Place };
    let same_content = change.kind() == ChangeKind::Metadata && found.kind == after.kind;
    if (after.is_dir() && found.is_dir()) || same_content { How::Metadata } else { How::Place }
}
