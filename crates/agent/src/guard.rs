//! The dead man's switch: an update that could cut the machine off is undone unless somebody
//! confirms in time that the machine can still be reached.
//!
//! Before anything changes a timer of the service manager is set, which outlives the agent, and a
//! record with a number that nobody can guess. Confirming removes the record. What the timer runs
//! undoes the update only if the record is there and has the timer's number, so that neither a
//! late timer nor one of another update does anything.
//!
//! Not here: who confirms (`client`, the command line).

use std::path::Path;
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use vireo_classify::{Confirm, DeadMan};

use crate::error::{AgentError, ErrorKind};
use crate::services::{ServiceError, Services};
use crate::state::StateDir;

/// How much longer than the time to confirm an activation may take before the update is undone
/// all the same: the manager's jobs have a limit of their own, and units are watched after them.
const ACTIVATION_MAX: Duration = Duration::from_secs(420);

/// Bytes of the number: nobody can try them all.
const NONCE_LEN: usize = 16;

/// An update that waits for somebody to confirm it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// What has to be said to confirm it.
    pub nonce: String,
    /// The transaction that is undone otherwise.
    pub transaction: u64,
    /// Who has to confirm.
    pub confirm: Confirm,
    /// Within how many seconds from the end of the activation.
    pub seconds: u64,
    /// What could cut the machine off.
    pub because: Vec<String>,
    /// Which boot of the machine it belongs to: timers do not outlive it.
    pub boot: String,
}

impl Guard {
    /// What an update with this promise and number waits for.
    ///
    /// # Errors
    ///
    /// There are no random numbers.
    pub(crate) fn new(man: &DeadMan, transaction: u64, boot: &str) -> Result<Self, AgentError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom(&mut nonce, GetRandomFlags::empty()).map_err(|error| {
            AgentError::new(ErrorKind::Failed, "cannot draw a random number")
                .caused_by(std::io::Error::from(error))
        })?;
        Ok(Self {
            nonce: nonce.iter().map(|byte| format!("{byte:02x}")).collect(),
            transaction,
            confirm: man.confirm,
            seconds: man.seconds,
            because: man.because.clone(),
            boot: boot.to_owned(),
        })
    }

    /// Sets the timer that counts while the update is activated.
    pub(crate) fn arm(
        &self,
        services: &dyn Services,
        command: &Undoer<'_>,
    ) -> Result<(), ServiceError> {
        let delay = Duration::from_secs(self.seconds).saturating_add(ACTIVATION_MAX);
        services.set_timer(&self.timer(), delay, &command.words(&self.nonce))
    }

    /// Sets the timer that counts while the update waits to be confirmed, then takes the other
    /// back: there is one at any time.
    pub(crate) fn start(
        &self,
        services: &dyn Services,
        command: &Undoer<'_>,
    ) -> Result<(), ServiceError> {
        let delay = Duration::from_secs(self.seconds);
        services.set_timer(&self.last_timer(), delay, &command.words(&self.nonce))?;
        services.clear_timer(&self.timer())
    }

    /// Takes the timers back.
    pub(crate) fn disarm(&self, services: &dyn Services) {
        // One that stays does nothing without the record.
        let _ = services.clear_timer(&self.timer());
        let _ = services.clear_timer(&self.last_timer());
    }

    fn timer(&self) -> String {
        format!("vireo-guard-{}", self.nonce)
    }

    fn last_timer(&self) -> String {
        format!("vireo-confirm-{}", self.nonce)
    }
}

/// How the agent is called to undo an update.
#[derive(Debug)]
pub(crate) struct Undoer<'a> {
    pub(crate) program: &'a Path,
    pub(crate) root: &'a Path,
    pub(crate) state: &'a StateDir,
}

impl Undoer<'_> {
    /// What undoes the update that waits for `nonce`.
    pub(crate) fn words(&self, nonce: &str) -> Vec<String> {
        self.call(&["undo", "--unless-confirmed", nonce])
    }

    /// What finishes whatever is unfinished.
    pub(crate) fn recover_words(&self) -> Vec<String> {
        self.call(&["recover"])
    }

    fn call(&self, command: &[&str]) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let (root, state) = (path(self.root), path(self.state.path()));
        let words = [path(self.program), "--root".to_owned(), root, "--state".to_owned(), state];
        words.into_iter().chain(command.iter().map(|word| (*word).to_owned())).collect()
    }
}
