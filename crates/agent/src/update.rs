//! One update on one machine, from a bundle's file to its receipt, and what is left of one that
//! was interrupted.
//!
//! What a crash leaves: before the commit the base, with an obligation that recovery drops;
//! after it the target, with an obligation that recovery fulfils. The obligation is on disk
//! before the commit and goes after the receipt is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use vireo_classify::{Action, ChangedFile, Facts, FileId, Plan, Policy, Reboot, Unit, plan};
use vireo_delta::{Bundle, TrustedKeys, Verified};
use vireo_model::{Change, ChangeSet, Digest, ImagePath, NodeKind};
use vireo_sys::map_sealed;
use vireo_tree::apply::{ApplyOptions, Committed, Recovered, Staged, recover, stage};
use vireo_tree::{ErrorKind as TreeErrorKind, Root};

use crate::activate::{OWN_UNIT, Patience, activate};
use crate::beneath::Beneath;
use crate::error::{AgentError, ErrorKind};
use crate::receipt::{Outcome, Receipt, Step};
use crate::root::open_root;
use crate::services::Services;
use crate::state::{Obligation, Position, StateDir};
use crate::system::{SystemView, boot_id};

/// Told one line per event, for people who look on.
pub type Say<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// The agent of one machine: its files, its records, its service manager.
#[derive(Debug)]
pub struct Agent {
    root: PathBuf,
    state: StateDir,
    system: Box<dyn SystemView>,
    services: Box<dyn Services>,
    policy: Policy,
    patience: Patience,
}

/// What an update came to.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the receipt says how it ended, and the agent may have to be restarted"]
pub struct Applied {
    /// What it did.
    pub receipt: Receipt,
    /// The agent itself was replaced: call [`Agent::restart_self`] when everything is reported.
    pub restart_self: bool,
}

impl Agent {
    /// The agent of the machine whose files are below `root`.
    #[must_use]
    pub fn new(
        root: &Path,
        state: StateDir,
        system: Box<dyn SystemView>,
        services: Box<dyn Services>,
    ) -> Self {
        Self {
            root: root.to_owned(),
            state,
            system,
            services,
            policy: Policy::default(),
            patience: Patience::default(),
        }
    }

    /// The same with another patience.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The root that it updates.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its records.
    #[must_use]
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// What the bundle in `file` would change and need: all that [`Agent::apply`] does up to the
    /// commit, without writing the files.
    ///
    /// # Errors
    ///
    /// As [`Agent::apply`].
    pub fn plan(&self, file: &Path, trusted: &TrustedKeys) -> Result<Plan, AgentError> {
        let _lock = self.state.lock()?;
        let opened = OpenBundle::open(file)?;
        let bundle = opened.verify(trusted, file)?;
        self.check_base(&bundle)?;
        let root = open_root(&self.root)?;
        let staged = stage(&root, &bundle, &ApplyOptions { dry_run: true })?;
        let prepared = self.prepare(&bundle, &staged)?;
        staged.discard()?;
        Ok(prepared.plan)
    }

    /// Applies the bundle in `file` and activates it; finishes an interrupted update first.
    /// `version` is the number that the repository gives to the target, if it was asked.
    ///
    /// # Errors
    ///
    /// `Refused` if the bundle is damaged, by an unknown signer, for another base, or changes
    /// files that were edited here; `NoSpace`; `Busy`. Nothing is changed then. An action that
    /// fails is no error: the receipt says so.
    pub fn apply(
        &self,
        file: &Path,
        trusted: &TrustedKeys,
        version: Option<u64>,
        say: Say<'_>,
    ) -> Result<Applied, AgentError> {
        let _lock = self.state.lock()?;
        let earlier = self.recover_locked(say)?;
        let opened = OpenBundle::open(file)?;
        let bundle = opened.verify(trusted, file)?;
        if let Some(earlier) = &earlier {
            say(&format!(
                "an interrupted update is complete: {}",
                earlier.receipt.outcome.as_str()
            ));
        }
        if self.state.position()?.is_some_and(|position| position.tree == bundle.target()) {
            return Ok(match earlier {
                // It was this update.
                Some(earlier) if earlier.receipt.target == bundle.target() => earlier,
                earlier => Applied {
                    receipt: Receipt::unchanged(bundle.target(), version),
                    restart_self: earlier.is_some_and(|earlier| earlier.restart_self),
                },
            });
        }
        self.check_base(&bundle)?;
        let mut applied = self.apply_bundle(&bundle, version, say)?;
        applied.restart_self |= earlier.is_some_and(|earlier| earlier.restart_self);
        Ok(applied)
    }

    /// Finishes or drops an update that was interrupted; `None` if there was nothing to finish.
    /// To be called at every start.
    ///
    /// # Errors
    ///
    /// `Busy` if another process is at it; otherwise a step fails and can be tried again.
    pub fn recover(&self, say: Say<'_>) -> Result<Option<Applied>, AgentError> {
        let _lock = self.state.lock()?;
        self.recover_locked(say)
    }

    /// Has the service manager restart the agent, which ends this process soon.
    ///
    /// # Errors
    ///
    /// The restart could not be queued.
    pub fn restart_self(&self) -> Result<(), AgentError> {
        self.services.restart_later(&Unit::new(OWN_UNIT)).map_err(|error| {
            AgentError::new(ErrorKind::Failed, "cannot restart the agent; restart it by hand")
                .caused_by(error)
        })
    }

    fn check_base(&self, bundle: &Bundle<'_, Verified<'_>>) -> Result<(), AgentError> {
        let Some(position) = self.state.position()? else { return Ok(()) };
        if bundle.base() == position.tree || bundle.target() == position.tree {
            return Ok(());
        }
        let message = format!(
            "the bundle is refused: it is for version {}, this machine is on {}; \
             get the bundle that starts there",
            bundle.base().short(),
            position.tree.short()
        );
        Err(AgentError::new(ErrorKind::Refused, message))
    }

    fn apply_bundle(
        &self,
        bundle: &Bundle<'_, Verified<'_>>,
        version: Option<u64>,
        say: Say<'_>,
    ) -> Result<Applied, AgentError> {
        let mut watch = Watch::start();
        let root = open_root(&self.root)?;
        let staged = stage(&root, bundle, &ApplyOptions::default())?;
        watch.lap("stage");
        let prepared = self.prepare(bundle, &staged)?;
        watch.lap("plan");
        say(&summary(&prepared.plan));
        let position = Position { number: version, tree: bundle.target() };
        self.state.set_obligation(&Obligation {
            position,
            plan: prepared.plan.clone(),
            replaced: prepared.replaced.iter().copied().collect(),
            boot: boot_id()?,
        })?;
        let committed = self.commit(&root, staged)?;
        watch.lap("commit");
        say("the files are in place, activating");
        // Processes may have come since: the plan is made again from what is true now.
        let facts = self.system.facts(&prepared.replaced)?;
        let plan = plan(&prepared.changes, &facts, &self.policy).with_header_of(&prepared.plan);
        self.finish(committed, &plan, &prepared.replaced, &facts, position, watch, false)
    }

    /// Commits; an error after the point of no return is followed by one attempt to recover.
    fn commit<'r>(&self, root: &'r Root, staged: Staged<'r>) -> Result<Committed<'r>, AgentError> {
        let error = match staged.commit() {
            Ok(committed) => return Ok(committed),
            Err(error) => error,
        };
        if error.kind() != TreeErrorKind::Busy
            && let Ok(Recovered::Completed(committed)) = recover(root)
        {
            return Ok(committed);
        }
        // The next start finishes or drops it, obligation included.
        Err(error.into())
    }

    /// Activates, proves, and writes down that it is over.
    #[expect(clippy::too_many_arguments, reason = "each is one part of the update under way")]
    fn finish(
        &self,
        committed: Committed<'_>,
        plan: &Plan,
        replaced: &BTreeSet<FileId>,
        facts: &Facts,
        position: Position,
        mut watch: Watch,
        resumed: bool,
    ) -> Result<Applied, AgentError> {
        let (system, services) = (&*self.system, &*self.services);
        let activation = activate(plan, replaced, facts, system, services, self.patience)?;
        watch.lap("activate");
        let mut receipt = Receipt {
            base: committed.base(),
            outcome: Outcome::Done,
            resumed,
            plan: plan.clone(),
            actions: activation.actions,
            pending: activation.pending,
            failed_units: activation.failed_units,
            seconds: watch.total(),
            steps: watch.steps,
            ..Receipt::unchanged(position.tree, position.number)
        };
        receipt.outcome = receipt.judge();
        self.state.set_receipt(&receipt)?;
        self.state.set_position(&position)?;
        committed.finish()?;
        self.state.clear_obligation()?;
        Ok(Applied { receipt, restart_self: activation.restart_self })
    }

    fn recover_locked(&self, say: Say<'_>) -> Result<Option<Applied>, AgentError> {
        let root = open_root(&self.root)?;
        let committed = match recover(&root)? {
            Recovered::Completed(committed) => committed,
            Recovered::Nothing | Recovered::Discarded => {
                // What it was for did not happen, or all of it did.
                self.state.clear_obligation()?;
                return Ok(None);
            }
        };
        let obligation = self.state.obligation()?;
        match obligation.filter(|obligation| obligation.position.tree == committed.target()) {
            Some(obligation) => {
                say("an update was interrupted after its files were in place, activating");
                self.resume(committed, obligation).map(Some)
            }
            None => {
                self.adopt(&committed)?;
                committed.finish()?;
                Ok(None)
            }
        }
    }

    fn resume(
        &self,
        committed: Committed<'_>,
        obligation: Obligation,
    ) -> Result<Applied, AgentError> {
        let Obligation { position, mut plan, replaced, boot } = obligation;
        if boot != boot_id()? {
            // The machine was started anew since: the kernel and what was held are fresh.
            plan.system.reboot = Reboot::None;
            plan.units.retain(|unit| unit.action != Action::Hold);
        }
        let replaced: BTreeSet<FileId> = replaced.into_iter().collect();
        let facts = self.system.facts(&replaced)?;
        self.finish(committed, &plan, &replaced, &facts, position, Watch::start(), true)
    }

    /// Somebody else brought an update to its end: note the version.
    fn adopt(&self, committed: &Committed<'_>) -> Result<(), AgentError> {
        match self.state.position()? {
            Some(position) if position.tree == committed.base() => {
                self.state.set_position(&Position { number: None, tree: committed.target() })
            }
            _ => Ok(()),
        }
    }

    fn prepare(
        &self,
        bundle: &Bundle<'_, Verified<'_>>,
        staged: &Staged<'_>,
    ) -> Result<Prepared, AgentError> {
        let changes = changed_files(&self.root, bundle.change_set(), staged)?;
        let replaced: BTreeSet<FileId> =
            changes.iter().filter_map(|change| change.replaced).collect();
        let facts = self.system.facts(&replaced)?;
        let mut plan = plan(&changes, &facts, &self.policy);
        plan.base = Some(bundle.base());
        plan.target = Some(bundle.target());
        plan.wire_bytes = bundle.wire_len();
        plan.disk_bytes = disk_bytes(bundle.change_set());
        Ok(Prepared { changes, replaced, plan })
    }
}

struct Prepared {
    changes: Vec<ChangedFile>,
    replaced: BTreeSet<FileId>,
    plan: Plan,
}

/// A bundle's file, mapped. Bundles are written once, under another name, and never again.
#[derive(Debug)]
pub(crate) struct OpenBundle(vireo_sys::Mapped);

impl OpenBundle {
    pub(crate) fn open(path: &Path) -> Result<Self, AgentError> {
        let map = File::open(path).and_then(|file| map_sealed(&file));
        map.map(Self).map_err(|error| AgentError::io("open the bundle", path, error))
    }

    pub(crate) fn verify(
        &self,
        trusted: &TrustedKeys,
        path: &Path,
    ) -> Result<Bundle<'_, Verified<'_>>, AgentError> {
        let unusable = |error| AgentError::bundle(path, error);
        let bundle = Bundle::open(&self.0).and_then(|bundle| bundle.verify(trusted));
        let bundle = bundle.map_err(unusable)?;
        // The whole file, before anything is staged, so that the message names it.
        bundle.check().map_err(unusable)?;
        Ok(bundle)
    }
}

/// The files that a change set touches, with class and the identity of what is replaced.
fn changed_files(
    root: &Path,
    changes: &ChangeSet,
    staged: &Staged<'_>,
) -> Result<Vec<ChangedFile>, AgentError> {
    let beneath = Beneath::open(root).map_err(|error| AgentError::io("open", root, error))?;
    let replaced: BTreeMap<&ImagePath, FileId> = staged
        .replaced()
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
fn link_target(change: &Change) -> Option<ImagePath> {
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
fn disk_bytes(changes: &ChangeSet) -> u64 {
    let written = changes.changes.iter().filter_map(|change| {
        let (len, digest) = change.after.as_ref()?.content()?;
        let before = change.before.as_ref().and_then(|node| node.content());
        (before != Some((len, digest))).then_some(len)
    });
    written.fold(0, u64::saturating_add)
}

/// The plan in one line.
fn summary(plan: &Plan) -> String {
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

/// A copy of a plan's numbers on another one: versions and sizes do not depend on facts.
trait Header {
    fn with_header_of(self, other: &Plan) -> Self;
}

impl Header for Plan {
    fn with_header_of(self, other: &Plan) -> Self {
        let Plan { base, target, wire_bytes, disk_bytes, .. } = *other;
        Self { base, target, wire_bytes, disk_bytes, ..self }
    }
}

/// Times of steps.
struct Watch {
    start: Instant,
    last: Instant,
    steps: Vec<Step>,
}

impl Watch {
    fn start() -> Self {
        let now = Instant::now();
        Self { start: now, last: now, steps: Vec::new() }
    }

    fn lap(&mut self, name: &str) {
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64();
        self.steps.push(Step { name: name.to_owned(), seconds });
        self.last = now;
    }

    fn total(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

/// Whether the bundle in `file` is the one that was announced, and whole. Who signed it does not
/// count here.
pub(crate) fn is_bundle(file: &Path, digest: Digest) -> Result<bool, AgentError> {
    let opened = OpenBundle::open(file)?;
    let Ok(bundle) = Bundle::open(&opened.0) else { return Ok(false) };
    if bundle.digest() != digest {
        return Ok(false);
    }
    let signer = TrustedKeys::from_iter([bundle.signer()]);
    Ok(bundle.verify(&signer).is_ok_and(|bundle| bundle.check().is_ok()))
}

#[cfg(test)]
mod tests;
