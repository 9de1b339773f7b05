//! What a change set means for classification: classes, identities, contents, sizes.

use std::collections::BTreeMap;
use std::path::Path;

use vireo_classify::{Action, ChangedFile, FileId, HEAD_LEN, Plan, Policy};
use vireo_model::{Change, ChangeSet, ImagePath};
use vireo_tree::TreeError;
use vireo_tree::apply::Replaced;

use crate::beneath::Beneath;
use crate::error::AgentError;

/// Longest file whose content is looked at to classify its change, in bytes: unit files, settings,
/// tables of mounts and groups.
const MAX_CONTENTS_LEN: u64 = 1 << 20;

/// Gives the first so many bytes of the file that will be at a path; none if there will be none.
pub(super) type Contents<'a> = dyn Fn(&ImagePath, u64) -> Result<Option<Vec<u8>>, TreeError> + 'a;

/// The files that a change set touches, with class, the identity of what is replaced, and what
/// their contents show.
pub(super) fn changed_files(
    root: &Path,
    policy: &Policy,
    changes: &ChangeSet,
    replaced: &[Replaced],
    target: &Contents<'_>,
) -> Result<Vec<ChangedFile>, AgentError> {
    let beneath = Beneath::open(root).map_err(|error| AgentError::io("open", root, error))?;
    let replaced: BTreeMap<&ImagePath, FileId> = replaced
        .iter()
        .map(|replaced| (&replaced.path, FileId { dev: replaced.dev, ino: replaced.ino }))
        .collect();
    // Whose content cannot be read goes by its name.
    let target = |path: &ImagePath, most| target(path, most).ok().flatten();
    let file = |change: &Change| {
        let head = beneath.head(&change.path);
        let head = head.or_else(|| target(&change.path, HEAD_LEN as u64));
        let mut file = ChangedFile::under(policy, change, head.as_deref())?;
        file.replaced = replaced.get(&change.path).copied();
        if file.replaced.is_none() && file.class.is_code() {
            // Who runs or maps what a link led to would now get elsewhere.
            let led_to = file.details.led_to.as_ref();
            file.replaced = led_to.and_then(|target| beneath.file_id(target));
        }
        if !file.wants_contents() {
            return Some(file);
        }
        let before = beneath.read(&change.path, MAX_CONTENTS_LEN);
        let after = target(&change.path, MAX_CONTENTS_LEN);
        Some(file.with_contents(before.as_deref(), after.as_deref()))
    };
    Ok(changes.changes.iter().filter_map(file).collect())
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
