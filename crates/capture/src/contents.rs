//! Encoding what the target has and the base has not.

use std::collections::{HashMap, HashSet};
use std::fs::File;

use vireo_delta::merge::{is_mergeable, may_be_mergeable};
use vireo_delta::{BundleWriter, Effort, Pair, Side};
use vireo_model::{Change, ChangeKind, ChangeSet, Digest, ImagePath, Node};

use crate::CaptureError;
use crate::ancestors::Ancestors;
use crate::snapshot::Snapshot;

/// Encodes the base's and the target's text of every file that a machine may have edited, next to
/// each other and whole, so that the edit can be merged whatever the machine's file has become.
pub(crate) fn encode_mergeable(
    base: &Snapshot<'_>,
    target: &Snapshot<'_>,
    changes: &ChangeSet,
    writer: &mut BundleWriter<File>,
) -> Result<(), CaptureError> {
    let content = |node: &Option<Node>| node.as_ref().and_then(Node::content);
    for change in &changes.changes {
        let (before, after) = (content(&change.before), content(&change.after));
        if before == after {
            continue;
        }
        for (side, content) in [(base, before), (target, after)] {
            let Some((len, digest)) = content else { continue };
            if !may_be_mergeable(&change.path, len) {
                continue;
            }
            let place = || side.files.place(&change.path);
            let text = side.files.read(&change.path, len);
            let text = text.map_err(|error| CaptureError::read(&place(), error))?;
            if is_mergeable(&change.path, &text) {
                writer
                    .encode_whole(digest, len, &text[..])
                    .map_err(|error| CaptureError::delta("read", &place(), error))?;
            }
        }
    }
    Ok(())
}

/// Encodes every content that the target needs and the base has not at that path. Returns their
/// length.
pub(crate) fn encode(
    base: &Snapshot<'_>,
    target: &Snapshot<'_>,
    changes: &ChangeSet,
    effort: Effort,
    writer: &mut BundleWriter<File>,
) -> Result<u64, CaptureError> {
    let in_base = in_base(base, changes);
    let ancestors = Ancestors::new(&base.tree, &changes.changes);
    let mut seen = HashMap::new();
    let (mut pairs, mut large) = (Vec::new(), Vec::new());
    let mut content_len = 0;
    for change in &changes.changes {
        let Some((len, digest)) = new_content(change) else { continue };
        content_len += len;
        if writer.has(digest) || seen.insert(digest, &change.path).is_some() {
            continue;
        }
        let sparse = target.sparse.contains(&change.path);
        if let Some(source) = in_base.get(&digest) {
            writer
                .reuse(digest, len, sparse, source)
                .map_err(|error| CaptureError::delta("read", &base.files.place(source), error))?;
            continue;
        }
        let pair = Pair { digest, len, sparse, ancestor: ancestors.of(&change.path) };
        if pair.fits() { pairs.push(pair) } else { large.push((pair, &change.path)) }
    }
    // Reading all of the base that changes, for files that nothing by their name is like, takes longer
    // than it is worth to who is in a hurry.
    let is_thorough = effort != Effort::Fast;
    if !large.is_empty() || (is_thorough && pairs.iter().any(|pair| pair.ancestor.is_none())) {
        index(base, changes, writer)?;
    }
    let read = |pair: &Pair, side: Side| match (side, &pair.ancestor) {
        (Side::Base, Some((path, len))) => base.files.read(path, *len),
        _ => target.files.read(seen[&pair.digest], pair.len),
    };
    writer
        .encode_pairs(&pairs, read)
        .map_err(|error| CaptureError::delta("read", target.files.label(), error))?;
    for (pair, path) in large {
        let place = || target.files.place(path);
        let file = target.files.open(path).map_err(|error| CaptureError::read(&place(), error))?;
        writer
            .encode(pair.digest, pair.len, pair.sparse, file)
            .map_err(|error| CaptureError::delta("read", &place(), error))?;
    }
    Ok(content_len)
}

/// Where the base has contents that the target needs: of each the first path.
fn in_base<'a>(base: &'a Snapshot<'_>, changes: &ChangeSet) -> HashMap<Digest, &'a ImagePath> {
    let new = changes.changes.iter().filter_map(new_content);
    let wanted: HashSet<Digest> = new.map(|(_, digest)| digest).collect();
    let mut found = HashMap::new();
    for (path, node) in base.tree.iter() {
        if let Some((_, digest)) = node.content().filter(|(_, digest)| wanted.contains(digest)) {
            found.entry(digest).or_insert(path);
        }
    }
    found
}

/// The content of the target that the base has not at that path.
fn new_content(change: &Change) -> Option<(u64, Digest)> {
    let (len, digest) = change.after.as_ref()?.content()?;
    let had = change.before.as_ref().and_then(Node::content).map(|(_, digest)| digest);
    (had != Some(digest)).then_some((len, digest))
}

/// Makes the chunks of every base file that changes or goes available: a file that was moved,
/// renamed and edited finds its own.
fn index(
    base: &Snapshot<'_>,
    changes: &ChangeSet,
    writer: &mut BundleWriter<File>,
) -> Result<(), CaptureError> {
    for change in &changes.changes {
        let content = change.before.as_ref().and_then(Node::content);
        if content.is_some() && matches!(change.kind(), ChangeKind::Modified | ChangeKind::Removed)
        {
            let place = || base.files.place(&change.path);
            let file = base.files.open(&change.path);
            let file = file.map_err(|error| CaptureError::read(&place(), error))?;
            writer
                .index_base(&change.path, file)
                .map_err(|error| CaptureError::delta("read", &place(), error))?;
        }
    }
    Ok(())
}
