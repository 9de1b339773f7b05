//! Local edits: what the policy says of them, and the record of what became of them.

use std::collections::BTreeSet;
use std::path::Path;

use vireo_classify::{LocalEdit, OnConflict, OnDrift, Policy, class_of};
use vireo_model::ImagePath;
use vireo_tree::apply::{Committed, Settled};

use crate::beneath::Beneath;
use crate::error::AgentError;
use crate::state::{Edit, StateDir};

/// The mode that a file whose rights are not known is classified by.
const PLAIN_MODE: u32 = 0o644;

/// The policy's rules on the files of this machine.
#[derive(Debug)]
pub(super) struct DriftRules<'a> {
    beneath: Beneath,
    policy: &'a Policy,
}

impl<'a> DriftRules<'a> {
    pub(super) fn new(root: &Path, policy: &'a Policy) -> Result<Self, AgentError> {
        let beneath = Beneath::open(root).map_err(|error| AgentError::io("open", root, error))?;
        Ok(Self { beneath, policy })
    }

    /// What to do with the file at `path`, which was edited locally.
    pub(super) fn of(&self, path: &ImagePath) -> vireo_tree::apply::OnDrift {
        use vireo_tree::apply as tree;
        let class = class_of(path, PLAIN_MODE, self.beneath.head(path).as_deref());
        let rule = self.policy.drift_rule(path, class);
        match (rule.on, rule.conflict) {
            (OnDrift::Refuse, _) => tree::OnDrift::Refuse,
            (OnDrift::Take, _) => tree::OnDrift::Take,
            (OnDrift::Merge, OnConflict::Keep) => tree::OnDrift::Merge(tree::OnConflict::Keep),
            (OnDrift::Merge, OnConflict::Take) => tree::OnDrift::Merge(tree::OnConflict::Take),
            (OnDrift::Merge, OnConflict::Refuse) => tree::OnDrift::Merge(tree::OnConflict::Refuse),
        }
    }
}

/// Local edits as a plan shows them.
pub(super) fn shown(settled: &[Settled]) -> Vec<LocalEdit> {
    let shown = settled.iter().map(|settled| LocalEdit {
        path: settled.path.to_string(),
        how: settled.how.as_str().to_owned(),
        beside: settled.beside.as_ref().map(ToString::to_string),
    });
    shown.collect()
}

/// Brings the record of local edits up to date with what was just committed.
pub(super) fn record(state: &StateDir, committed: &Committed<'_>) -> Result<(), AgentError> {
    let before = state.edits()?;
    let changes = committed.changes();
    let touched: BTreeSet<String> =
        changes.changes.iter().map(|change| change.path.to_string()).collect();
    let mut edits = before.clone();
    edits.retain(|edit| {
        !touched.contains(&edit.path) && !committed.undoes().contains(&edit.transaction)
    });
    for settled in committed.settled() {
        edits.retain(|edit| edit.path != settled.path.to_string());
        edits.push(Edit {
            path: settled.path.to_string(),
            how: settled.how,
            beside: settled.beside.as_ref().map(ToString::to_string),
            transaction: committed.number(),
        });
    }
    if edits == before { Ok(()) } else { state.set_edits(&edits) }
}
