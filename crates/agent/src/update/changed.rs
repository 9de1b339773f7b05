//! What a change set means for classification: classes, identities, sizes.

use std::collections::BTreeMap;
use std::path::Path;

use vireo_classify::{Action, ChangedFile, FileId, Plan};
use vireo_model::{Change, ChangeSet, ImagePath, NodeKind};
use vireo_tree::apply::Replaced;

use crate::beneath::Beneath;
use crate::error::AgentError;

/// The files that a change set touches, with class and the identity of what is replaced.
pub(super) fn changed_files(
    root: &Path,
    changes: &ChangeSet,
    replaced: &[Replaced],
) -> Result<Vec<ChangedFile>, AgentError> {
    let beneath = Beneath::open(root).map_err(|error| AgentError::io("open", root, error))?;
    let replaced: BTreeMap<&ImagePath, FileId> = replaced
        .iter()
        .map(|replaced| (&replaced.path, FileId { dev: replaced.dev, ino: replaced.ino }))
        .collect();
    let file = |change: &Change| {
        let head = beneath.head(&change.path);
        let mut file = ChangedFile::of_change(change, head.as_deref())?;
        file.replaced = replaced.get(&change.path).copied();
        if file.replaced.is_none() && file.class.is_code() {
            file.replaced = link_target(change).and_then(|target| beneath.file_id(&target));
        }
        Some(file)
    };
    Ok(changes.changes.iter().filter_map(file).collect())
}

/// Where a changed or removed symbolic link led in the base: who runs or maps that got there by
/// the link, and would now get elsewhere.
pub(super) fn link_target(change: &Change) -> Option<ImagePath> {
    let NodeKind::Symlink { target } = &change.before.as_ref()?.kind else { return None };
    let mut at = if target.starts_with(b"/") { ImagePath::root() } else { change.path.parent()? };
    for part in target.split(|b| *b == b'/') {
        at = match part {
            b"" | b"." => at,
            b".." => at.parent().unwrap_or_else(ImagePath::root),
            name => at.join(name).ok()?,
        };
    }
    Some(at)
}

/// Bytes of the files that are written.
pub(super) fn disk_bytes(changes: &ChangeSet) -> u64 {
    let written = changes.changes.iter().filter_map(|change| {
        let (len, digest) = change.after.as_ref()?.content()?;
        let before = change.before.as_ref().and_then(|node| node.content());
        (before != Some((len, digest))).then_some(len)
    });
    written.fold(0, u64::saturating_add)
}

/// The plan in one line.
pub(super) fn summary(plan: &Plan) -> String {
    let names = |action: Action| -> Vec<&str> {
        let units = plan.units.iter().filter(|unit| unit.action == action);
        units.map(|unit| unit.unit.as_str()).collect()
    };
    let mut parts = vec![format!("{} changed files", plan.files.len())];
    for action in [Action::Restart, Action::Reload, Action::Hold] {
        let names = names(action);
        if !names.is_empty() {
            parts.push(format!("{} {}", action.as_str(), names.join(", ")));
        }
    }
    parts.join("; ")
}
