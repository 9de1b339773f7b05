//! One update on one machine, from a bundle's file to its receipt; and the way back.
//!
//! What a crash leaves: before the commit the base, with an obligation that recovery drops;
//! after it the target, with an obligation that recovery fulfils. The obligation is on disk
//! before the commit and goes after the receipt is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vireo_classify::{Plan, Policy, Unit};
use vireo_delta::{Bundle, TrustedKeys, Verified};
use vireo_model::ImagePath;
use vireo_tree::Root;
use vireo_tree::apply::{ApplyOptions, Staged, StagedView, forget, history, preview, stage};

use crate::activate::{OWN_UNIT, Patience};
use crate::checks::{CheckReport, CheckResult, Checker, NoChecker};
use crate::error::{AgentError, ErrorKind};
use crate::guard::Undoer;
use crate::packages::PackageLock;
use crate::receipt::Receipt;
use crate::root::open_root;
use crate::services::Services;
use crate::state::{Position, StateDir};
use crate::system::SystemView;

mod aftermath;
mod bundle;
mod changed;
mod condemned;
mod drift;
mod enact;
mod prepare;
mod promise;
mod undo;
mod watch;

pub(crate) use bundle::{OpenBundle, is_bundle};
pub use undo::{UNDO_AGE_MAX, UNDO_COUNT_MAX, UNDO_LEN_MAX};

use changed::summary;
use drift::DriftRules;
use enact::Enactment;
use prepare::{Outlook, Prepared, refuse_unfit};
use watch::Watch;

/// How long to wait for another agent that works on this machine: one that is about to end, or
/// only looks whether there is something to do.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Where the agent's program is, unless somebody says otherwise.
const DEFAULT_PROGRAM: &str = "/usr/bin/vireo-agent";

/// Told one line per event, for people who look on.
pub type Say<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// The agent of one machine: its files, its records, its service manager.
#[derive(Debug)]
pub struct Agent {
    root: PathBuf,
    state: StateDir,
    system: Box<dyn SystemView>,
    services: Box<dyn Services>,
    checker: Box<dyn Checker>,
    /// None: what the machine's policy files say, each time anew.
    policy: Option<Policy>,
    /// None: what the policy says.
    patience: Option<Patience>,
    package_wait: Duration,
    program: PathBuf,
    guarded: bool,
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
            checker: Box::new(NoChecker),
            policy: None,
            patience: None,
            package_wait: Duration::ZERO,
            program: PathBuf::from(DEFAULT_PROGRAM),
            guarded: true,
        }
    }

    /// The same with another patience.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience: Some(patience), ..self }
    }

    /// The same by this policy, whatever the machine's policy files say.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy: Some(policy), ..self }
    }

    /// The same with somebody who runs checks of new configuration; without, none is run.
    #[must_use]
    pub fn with_checker(self, checker: Box<dyn Checker>) -> Self {
        Self { checker, ..self }
    }

    /// The same, whose program is not where it is by default: timers call it.
    #[must_use]
    pub fn with_program(self, program: &Path) -> Self {
        Self { program: program.to_owned(), ..self }
    }

    /// The same, without the promise to undo what cuts the machine off: for whoever sits beside it.
    #[must_use]
    pub fn unguarded(self) -> Self {
        Self { guarded: false, ..self }
    }

    /// The same, waiting so long for the package manager if that is at work.
    #[must_use]
    pub fn with_package_wait(self, package_wait: Duration) -> Self {
        Self { package_wait, ..self }
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
    /// commit, without writing anything.
    ///
    /// # Errors
    ///
    /// As [`Agent::apply`].
    pub fn plan(&self, file: &Path, trusted: &TrustedKeys) -> Result<Plan, AgentError> {
        let opened = OpenBundle::open(file)?;
        let bundle = opened.verify(trusted, file)?;
        self.check_base(&bundle)?;
        let policy = self.policy_before(bundle.change_set())?;
        let root = open_root(&self.root)?;
        let rules = DriftRules::new(&self.root, &policy)?;
        let preview = preview(&root, &bundle, &ApplyOptions { drift: &|path| rules.of(path) })?;
        let contents = |path: &ImagePath, most| preview.read(&root, &bundle, path, most);
        let outlook = Outlook {
            changes: &preview.changes,
            replaced: &preview.replaced,
            settled: &preview.settled,
            contents: &contents,
            reads: self.reads(bundle.read_map())?,
            wire_len: bundle.wire_len(),
        };
        let policy = self.policy_with(policy.clone(), &outlook)?;
        Ok(self.prepare(policy, outlook)?.plan)
    }

    /// Applies the bundle in `file` and activates it; finishes an interrupted update first.
    /// `version` is the number that the repository gives to the target, if it was asked.
    ///
    /// # Errors
    ///
    /// `Refused` if the bundle is damaged, by an unknown signer, for another base, does what its
    /// signer did not permit, or changes files that were edited here and that the policy does not
    /// settle; `NoSpace`; `Busy`, also while the package manager is at work. Nothing is changed
    /// then. An action that fails is no error: the receipt says so.
    pub fn apply(
        &self,
        file: &Path,
        trusted: &TrustedKeys,
        version: Option<u64>,
        say: Say<'_>,
    ) -> Result<Applied, AgentError> {
        let _lock = self.state.lock_within(LOCK_WAIT)?;
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
    /// `Busy` if another process is at it; `Refused`, with the paths, if somebody else changed
    /// what was left to do; otherwise a step fails and can be tried again.
    pub fn recover(&self, say: Say<'_>) -> Result<Option<Applied>, AgentError> {
        let _lock = self.state.lock_within(LOCK_WAIT)?;
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
        let policy = self.policy_before(bundle.change_set())?;
        let packages = PackageLock::take(&self.root, self.package_wait)?;
        let root = open_root(&self.root)?;
        let staged = self.stage(&root, bundle, &policy, say)?;
        watch.lap("stage");
        let (prepared, checks) = match self.prepare_staged(&staged, policy, bundle, &mut watch, say)
        {
            Ok(prepared) => prepared,
            Err(error) => {
                // It must not take up room. What cannot be removed, the next stage removes.
                drop(staged.discard());
                return Err(error);
            }
        };
        if let Some(map) = bundle.read_map() {
            // For the way back, and for updates that bring none.
            self.state.set_read_map(map)?;
        }
        let position = Position { number: version, tree: bundle.target() };
        let undone_because = Vec::new();
        let enactment = Enactment {
            root: &root,
            staged,
            prepared,
            checks,
            position,
            hold: None,
            undone_because,
            packages,
        };
        self.enact(enactment, watch, say)
    }

    /// Plans, and has the new configuration checked.
    fn prepare_staged(
        &self,
        staged: &Staged<'_>,
        policy: Policy,
        bundle: &Bundle<'_, Verified<'_>>,
        watch: &mut Watch,
        say: Say<'_>,
    ) -> Result<(Prepared, Vec<CheckReport>), AgentError> {
        let (changes, view) = (staged.changes(), staged.view()?);
        let contents = |path: &ImagePath, most| view.read(path, most);
        let outlook = Outlook {
            changes: &changes,
            replaced: staged.replaced(),
            settled: staged.settled(),
            contents: &contents,
            reads: self.reads(bundle.read_map())?,
            wire_len: bundle.wire_len(),
        };
        let policy = self.policy_with(policy, &outlook)?;
        let mut prepared = self.prepare(policy, outlook)?;
        watch.lap("plan");
        say(&summary(&prepared.plan));
        refuse_unfit(&prepared.plan)?;
        let checks = self.check(&mut prepared, &view);
        if !checks.is_empty() {
            watch.lap("check");
        }
        refuse_unfit(&prepared.plan)?;
        Ok((prepared, checks))
    }

    /// Has the plan's checks run on what is staged, and tells the plan what failed.
    fn check(&self, prepared: &mut Prepared, view: &StagedView<'_>) -> Vec<CheckReport> {
        let plan = &mut prepared.plan;
        if plan.checks.is_empty() {
            return Vec::new();
        }
        let reports =
            self.checker.run(&plan.checks, view, &prepared.changes).unwrap_or_else(|why| {
                plan.checks.iter().map(|check| CheckReport::skipped(check, &why)).collect()
            });
        for (number, report) in reports.iter().enumerate() {
            if report.result == CheckResult::Failed {
                plan.refuse(number, &report.detail);
            }
        }
        reports
    }

    fn undoer(&self) -> Undoer<'_> {
        Undoer { program: &self.program, root: &self.root, state: &self.state }
    }

    /// Stages the bundle; what is kept for undoing earlier updates makes room, oldest first, if
    /// there is none.
    fn stage<'r>(
        &self,
        root: &'r Root,
        bundle: &Bundle<'_, Verified<'_>>,
        policy: &Policy,
        say: Say<'_>,
    ) -> Result<Staged<'r>, AgentError> {
        let rules = DriftRules::new(&self.root, policy)?;
        let options = ApplyOptions { drift: &|path| rules.of(path) };
        loop {
            let error = match stage(root, bundle, &options) {
                Ok(staged) => return Ok(staged),
                Err(error) => error,
            };
            let oldest = match error.kind() {
                vireo_tree::ErrorKind::NoSpace => history(root)?.pop(),
                _ => None,
            };
            let Some(oldest) = oldest else { return Err(error.into()) };
            say(&format!("making room: transaction {} can no longer be undone", oldest.number));
            forget(root, oldest.number)?;
        }
    }
}

#[cfg(test)]
mod tests;
