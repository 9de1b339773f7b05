//! What an update means for the machine: from what changes to a plan.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use vireo_classify::{
    Action, ChangedFile, Facts, FileId, MAX_POLICY_LEN, Packages, Plan, Planner, Policy, ReadMap,
};
use vireo_model::{Change, ChangeSet, ImagePath};
use vireo_tree::apply::{Replaced, Settled};

use super::changed::{Contents, changed_files, disk_bytes};
use super::{Agent, Say, drift};
use crate::client::chain;
use crate::error::{AgentError, ErrorKind};
use crate::policy::{Brought, POLICY_DIRS, load_policy, load_policy_with};

/// What is about to change.
pub(super) struct Outlook<'a> {
    pub(super) changes: &'a ChangeSet,
    pub(super) replaced: &'a [Replaced],
    pub(super) settled: &'a [Settled],
    pub(super) contents: &'a Contents<'a>,
    /// Who was seen to read what.
    pub(super) reads: ReadMap,
    pub(super) wire_len: u64,
}

/// What it means for the machine.
pub(super) struct Prepared {
    pub(super) policy: Policy,
    reads: ReadMap,
    pub(super) changes: Vec<ChangedFile>,
    pub(super) replaced: BTreeSet<FileId>,
    /// What was true before anything was done.
    pub(super) facts: Facts,
    pub(super) plan: Plan,
    /// Nothing would bring the machine back if it were cut off: what could do that is held.
    pub(super) hold_cutters: bool,
}

impl Agent {
    /// The policy that holds now: the one given, or else what the machine's files say.
    pub(super) fn current_policy(&self) -> Result<Policy, AgentError> {
        match &self.policy {
            Some(policy) => Ok(policy.clone()),
            None => load_policy(&self.root),
        }
    }

    /// The policy that holds until `changes` are made: the current one. If that cannot be used, and
    /// the update changes or removes files of it, what they say does not count: the update may be
    /// the one that corrects them.
    pub(super) fn policy_before(&self, changes: &ChangeSet) -> Result<Policy, AgentError> {
        self.current_policy().or_else(|error| {
            let corrected = changes.changes.iter().filter(|change| change.before.is_some());
            let corrected: Brought =
                corrected.filter_map(policy_path).map(|path| (path, None)).collect();
            if corrected.is_empty() {
                return Err(error);
            }
            load_policy_with(&self.root, &corrected).map_err(|_| error)
        })
    }

    /// The policy with what an update brings of it.
    pub(super) fn policy_with(
        &self,
        policy: Policy,
        outlook: &Outlook<'_>,
    ) -> Result<Policy, AgentError> {
        let brought = policy_files(outlook)?;
        if brought.is_empty() || self.policy.is_some() {
            return Ok(policy);
        }
        load_policy_with(&self.root, &brought)
    }

    /// The policy for a way back or on, which must not depend on it: what an update has brought may
    /// be the very thing that is wrong.
    pub(super) fn policy_of_return(&self, say: Say<'_>) -> Policy {
        self.current_policy().unwrap_or_else(|error| {
            say(&format!("going on with the built-in policy: {}", chain(&error)));
            Policy::default()
        })
    }

    pub(super) fn prepare(
        &self,
        policy: Policy,
        outlook: Outlook<'_>,
    ) -> Result<Prepared, AgentError> {
        let Outlook { changes, replaced, .. } = &outlook;
        let mut changes = changed_files(&self.root, &policy, changes, replaced, outlook.contents)?;
        // A copy beside a file is read by nobody, whether it comes or goes.
        let beside: BTreeSet<_> =
            outlook.settled.iter().filter_map(|settled| settled.beside.as_ref()).collect();
        let earlier: BTreeSet<String> =
            self.state.edits()?.into_iter().filter_map(|edit| edit.beside).collect();
        changes.retain(|change| {
            !beside.contains(&change.path) && !earlier.contains(&change.path.to_string())
        });
        let replaced: BTreeSet<FileId> =
            changes.iter().filter_map(|change| change.replaced).collect();
        let facts = self.system.facts(&replaced)?;
        let mut plan = self.plan_of(&policy, &outlook.reads, &changes, &facts);
        plan.base = Some(outlook.changes.base);
        plan.target = Some(outlook.changes.target);
        plan.wire_bytes = outlook.wire_len;
        plan.disk_bytes = disk_bytes(outlook.changes);
        plan.drift = drift::shown(outlook.settled);
        Ok(Prepared {
            policy,
            reads: outlook.reads,
            changes,
            replaced,
            facts,
            plan,
            hold_cutters: true,
        })
    }

    fn plan_of(
        &self,
        policy: &Policy,
        reads: &ReadMap,
        changes: &[ChangedFile],
        facts: &Facts,
    ) -> Plan {
        let host = self.system.host(policy);
        let planner = Planner::new(policy).with_host(&host).with_reads(reads);
        let plan = planner.plan(changes, facts);
        if plan.unclaimed.is_empty() {
            return plan;
        }
        // The weakest hint costs most: it is asked for only where nobody else knows a reader.
        let packages = self.system.packages();
        if packages == Packages::new() {
            return plan;
        }
        planner.with_packages(&packages).plan(changes, facts)
    }

    /// What is known of who reads what, for a way back: what cannot be read of it must not be in the way.
    pub(super) fn reads_for_return(&self, say: Say<'_>) -> ReadMap {
        let or_none = |map: Result<ReadMap, AgentError>| {
            map.unwrap_or_else(|error| {
                say(&format!("going on without this read map: {}", chain(&error)));
                ReadMap::new()
            })
        };
        let mut map = or_none(self.state.learned());
        map.merge(&or_none(self.last_read_map()));
        map
    }

    /// What is known of who reads what: by a bundle, or else by the last one that came to this machine, and
    /// what was learned here.
    pub(super) fn reads(&self, of_bundle: Option<&[u8]>) -> Result<ReadMap, AgentError> {
        let mut map = self.state.learned()?;
        map.merge(&match of_bundle {
            Some(text) => parse_read_map(text)?,
            None => self.last_read_map()?,
        });
        Ok(map)
    }

    fn last_read_map(&self) -> Result<ReadMap, AgentError> {
        Ok(self.state.read_map()?.unwrap_or_default())
    }

    /// The same plan from what is true now that the files are in place: processes may have come.
    pub(super) fn plan_again(&self, prepared: &Prepared, facts: &Facts) -> Plan {
        let earlier = &prepared.plan;
        let mut plan = self.plan_of(&prepared.policy, &prepared.reads, &prepared.changes, facts);
        // What was to end has ended, and is not in the facts any more.
        for stopped in earlier.units.iter().filter(|unit| unit.action == Action::Stop) {
            plan.units.retain(|unit| unit.unit != stopped.unit);
            plan.units.push(stopped.clone());
        }
        plan.units.sort_by(|a, b| a.unit.cmp(&b.unit));
        let Plan { base, target, wire_bytes, disk_bytes, .. } = *earlier;
        if prepared.hold_cutters && earlier.system.dead_man.is_none() {
            plan = hold_what_cuts_off(plan);
        }
        plan.system.dead_man.clone_from(&earlier.system.dead_man);
        Plan {
            base,
            target,
            wire_bytes,
            disk_bytes,
            drift: earlier.drift.clone(),
            checks: earlier.checks.clone(),
            notes: earlier.notes.clone(),
            ..plan
        }
    }
}

fn parse_read_map(text: &[u8]) -> Result<ReadMap, AgentError> {
    ReadMap::from_json(text).map_err(|error| {
        let message = "the read map that came with the update cannot be used; upgrade the agent";
        AgentError::new(ErrorKind::Refused, message).caused_by(error)
    })
}

/// The policy files among what changes.
fn policy_files(outlook: &Outlook<'_>) -> Result<Brought, AgentError> {
    let stays = |path: &ImagePath| outlook.settled.iter().any(|settled| settled.path == *path);
    let mut brought = Brought::new();
    for change in &outlook.changes.changes {
        let Some(path) = policy_path(change) else { continue };
        let text = (outlook.contents)(&change.path, MAX_POLICY_LEN as u64 + 1);
        let text = text.map_err(|error| {
            let message = format!(
                "cannot read the policy {} that the update brings; nothing was changed",
                change.path
            );
            AgentError::new(ErrorKind::Failed, message).caused_by(error)
        })?;
        if let Some(text) = text {
            brought.insert(path, Some(text));
        } else if stays(&change.path) {
            // As it is on disk.
        } else if change.after.is_none() {
            brought.insert(path, None);
        } else {
            let message = format!(
                "the update brings the policy {}, which is no regular file; nothing was changed",
                change.path
            );
            return Err(AgentError::new(ErrorKind::Refused, message));
        }
    }
    Ok(brought)
}

/// The path below the root of what changes, if it is among the policy files.
fn policy_path(change: &Change) -> Option<PathBuf> {
    let path = PathBuf::from(OsStr::from_bytes(change.path.relative()));
    let is_policy = path.extension().is_some_and(|ending| ending == "toml")
        && POLICY_DIRS.iter().any(|dir| path.parent() == Some(Path::new(dir)));
    is_policy.then_some(path)
}

/// Refuses what the plan says must not be committed.
pub(super) fn refuse_unfit(plan: &Plan) -> Result<(), AgentError> {
    if !plan.is_refused() {
        return Ok(());
    }
    let reasons: Vec<String> = plan
        .refusals
        .iter()
        .map(|refusal| format!("{} ({})", refusal.reason, refusal.files.join(", ")))
        .collect();
    let message = format!("the update is refused, nothing was changed: {}", reasons.join("; "));
    Err(AgentError::new(ErrorKind::Refused, message))
}

/// Units that connections survive the reload of, and the agent, which comes last of all.
const KEEPS_CONNECTIONS: [&str; 3] = ["ssh.service", "sshd.service", Plan::AGENT_UNIT];

/// The plan for a machine that nothing would bring back if it were cut off: what could do that is
/// held.
pub(super) fn hold_what_cuts_off(mut plan: Plan) -> Plan {
    let Some(watch) = plan.system.dead_man.take() else { return plan };
    for unit in &mut plan.units {
        let name = unit.unit.as_str();
        let is_watched = watch.because.iter().any(|because| because == name);
        if is_watched && !KEEPS_CONNECTIONS.contains(&name) && unit.action != Action::Refuse {
            unit.action = Action::Hold;
            unit.reason = Some("it could cut this machine off; do it by hand".to_owned());
            unit.proof.clear();
        }
    }
    plan
}
