//! The way back: undoing updates, and how long that is possible.

use std::time::{Duration, SystemTime};

use vireo_model::ImagePath;
use vireo_tree::apply::{
    Direction, Past, RecoverOptions, Recovered, UndoOptions, forget, history, recover_with,
    stage_undo,
};

use super::changed::summary;
use super::enact::Enactment;
use super::prepare::Outlook;
use super::watch::Watch;
use super::{Agent, Applied, LOCK_WAIT, Say};
use crate::error::{AgentError, ErrorKind};
use crate::packages::PackageLock;
use crate::root::open_root;
use crate::system::boot_id;

/// Most updates that can be undone; older ones are forgotten.
pub const UNDO_COUNT_MAX: usize = 16;
/// Most bytes that are kept on the disk for undoing, the newest update's apart.
pub const UNDO_LEN_MAX: u64 = 1 << 30;
/// How long an update can be undone, the newest apart.
pub const UNDO_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

impl Agent {
    /// Takes back the transaction `number` and all after it (the newest alone if it is none), and
    /// activates that. The version that is left is held: [`Session::run`] does not bring it back
    /// before there is a newer one.
    ///
    /// [`Session::run`]: crate::client::Session::run
    ///
    /// # Errors
    ///
    /// `Refused`, with the paths, if files were edited since and `options` does not set them
    /// aside, or if there is no such transaction; `Busy`; `NoSpace`. Nothing is changed then.
    pub fn undo(
        &self,
        number: Option<u64>,
        options: &UndoOptions,
        say: Say<'_>,
    ) -> Result<Applied, AgentError> {
        let _lock = self.state.lock_within(LOCK_WAIT)?;
        self.recover_locked(say)?;
        let number = undoable(&history(&open_root(&self.root)?)?, number)?;
        self.undo_locked(number, options, Vec::new(), say)
    }

    /// Takes the transaction `number` and all after it back; `because` says why if nobody asked.
    pub(super) fn undo_locked(
        &self,
        number: u64,
        options: &UndoOptions,
        because: Vec<String>,
        say: Say<'_>,
    ) -> Result<Applied, AgentError> {
        let mut watch = Watch::start();
        let policy = self.policy_of_return(say);
        let packages = PackageLock::take(&self.root, self.package_wait)?;
        let root = open_root(&self.root)?;
        let staged = stage_undo(&root, number, options)?;
        watch.lap("stage");
        let changes = staged.changes();
        let view = staged.view()?;
        let contents = |path: &ImagePath, most| view.read(path, most);
        let outlook = Outlook {
            changes: &changes,
            replaced: staged.replaced(),
            settled: staged.settled(),
            contents: &contents,
            reads: self.reads_for_return(say),
            wire_len: 0,
        };
        let prepared = self.prepare(policy, outlook)?;
        watch.lap("plan");
        say(&summary(&prepared.plan));
        let position = self.state.version_of(changes.target)?;
        let hold = self.state.position()?;
        drop(view);
        let enactment = Enactment {
            root: &root,
            staged,
            prepared,
            // What is gone back to was there before.
            checks: Vec::new(),
            position,
            hold,
            undone_because: because,
            packages,
        };
        self.enact(enactment, watch, say)
    }

    /// The updates that can be undone, newest first.
    ///
    /// # Errors
    ///
    /// `Busy` if an update is under way.
    pub fn history(&self) -> Result<Vec<Past>, AgentError> {
        Ok(history(&open_root(&self.root)?)?)
    }

    /// Brings the files of an interrupted update to base or target and leaves everything else to
    /// the next start of the agent; for the early boot, when no service runs. An update that waited to
    /// be confirmed when the machine was started anew is undone, unless a repository can be asked.
    /// Whether there was something to do.
    ///
    /// # Errors
    ///
    /// As [`Agent::recover`].
    pub fn recover_files(&self, direction: Direction) -> Result<bool, AgentError> {
        let root = open_root(&self.root)?;
        let recovered = recover_with(&root, &RecoverOptions { direction })?;
        let found = !matches!(recovered, Recovered::Nothing);
        // What an update did to services is judged when they run; an undo has but its records left.
        let is_update = matches!(&recovered, Recovered::Completed(it) if it.undoes().is_empty());
        drop(recovered);
        if is_update {
            return Ok(true);
        }
        if self.state.condemned()?.is_some() {
            return Ok(self.recover(&|_| {})?.is_some() || found);
        }
        if found {
            return Ok(true);
        }
        let boot = boot_id()?;
        match self.state.guard()?.filter(|guard| guard.boot != boot) {
            None => Ok(false),
            // An agent that follows a repository asks that first. Should it not come to that, a
            // timer does it.
            Some(guard) if self.state.enrolment()?.is_some() => {
                let _ = guard.arm(&*self.services, &self.undoer());
                Ok(false)
            }
            // The machine was started anew because it could not be reached, for all that is known.
            Some(guard) => Ok(self.undo_unconfirmed(&guard.nonce, &|_| {})?.is_some()),
        }
    }

    /// Forgets what is too old or too large to be kept for undoing.
    pub(super) fn prune(&self) -> Result<(), AgentError> {
        let root = open_root(&self.root)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match surplus(&history(&root)?, now) {
            Some(number) => Ok(forget(&root, number)?),
            None => Ok(()),
        }
    }
}

/// The transaction `number` of `list`, or else the newest.
fn undoable(list: &[Past], number: Option<u64>) -> Result<u64, AgentError> {
    let none = match number {
        Some(number) if list.iter().any(|past| past.number == number) => return Ok(number),
        Some(number) => {
            format!("there is no transaction {number} to undo; `vireo-agent history` lists them")
        }
        None => match list.first() {
            Some(newest) => return Ok(newest.number),
            None => "there is no update that could be undone".to_owned(),
        },
    };
    Err(AgentError::new(ErrorKind::Refused, none))
}

/// The newest transaction that is too old or beyond the limits, of a list with the newest first.
fn surplus(list: &[Past], now: Duration) -> Option<u64> {
    let mut kept_len = 0_u64;
    let mut goes = |place: usize, past: &Past| {
        let age = now.saturating_sub(Duration::from_secs(u64::try_from(past.time).unwrap_or(0)));
        if place > 0 {
            kept_len = kept_len.saturating_add(past.kept_len);
        }
        place > 0 && (place >= UNDO_COUNT_MAX || age > UNDO_AGE_MAX || kept_len > UNDO_LEN_MAX)
    };
    list.iter().enumerate().find(|(place, past)| goes(*place, past)).map(|(_, past)| past.number)
}

#[cfg(test)]
mod tests {
    use vireo_model::Digest;

    use super::*;

    fn past(number: u64, days_ago: u64, kept_len: u64) -> Past {
        Past {
            number,
            base: Digest::of(b"base"),
            target: Digest::of(b"target"),
            changes: 1,
            time: i64::try_from(NOW.as_secs() - days_ago * 86_400).expect("small"),
            kept_len,
            settled: Vec::new(),
        }
    }

    const NOW: Duration = Duration::from_secs(2_000_000_000);

    #[test]
    fn a_transaction_that_is_not_there_is_refused_by_its_number() {
        let list = [past(9, 1, 0), past(8, 2, 0)];
        assert_eq!(undoable(&list, None).ok(), Some(9));
        assert_eq!(undoable(&list, Some(8)).ok(), Some(8));
        let error = undoable(&list, Some(7)).expect_err("not there");
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("no transaction 7"), "{error}");
        assert_eq!(undoable(&[], None).expect_err("nothing").kind(), ErrorKind::Refused);
    }

    #[test]
    fn the_newest_stays_and_what_is_old_large_or_many_goes() {
        assert_eq!(surplus(&[], NOW), None);
        assert_eq!(surplus(&[past(9, 400, u64::MAX)], NOW), None, "the newest always stays");
        assert_eq!(surplus(&[past(9, 1, 0), past(8, 31, 0), past(7, 32, 0)], NOW), Some(8));
        let half = UNDO_LEN_MAX / 2 + 1;
        let list = [past(9, 1, half), past(8, 2, half), past(7, 3, half), past(6, 4, 0)];
        assert_eq!(surplus(&list, NOW), Some(7));
        let many: Vec<Past> = (0..20).map(|back| past(20 - back, back, 0)).collect();
        assert_eq!(surplus(&many, NOW), Some(20 - UNDO_COUNT_MAX as u64));
    }
}
