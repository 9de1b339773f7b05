//! What the agent keeps on disk between runs. Every write survives power loss whole or not at all.
//!
//! ```text
//! enrolment.json   repository, credential, image, trusted keys, ignore list
//! version.json     the version that this machine is on
//! activation.json  an update that is being committed and activated; there only meanwhile
//! receipt.json     what the last update did
//! unreported.json  a receipt that the repository does not have yet
//! known.json       versions that this machine has been on, and their numbers
//! guard.json       an update that waits to be confirmed
//! condemned.json   an update that is being undone because something was ill after it
//! held.json        files that updates of this boot replaced
//! hold.json        a version that was undone and is not to come back by itself
//! reads.json       the read map that came with an update last
//! learned.json     the read map of what was learned on this machine
//! kept.json        files beside the version that the running kernel needs
//! edits.json       local edits that updates met, and what became of them
//! incoming/        bundles on their way
//! lock             held while an update is under way
//! guard.lock       held while an update is confirmed or found to be unconfirmed
//! learned.lock     held while something learned is added
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use vireo_classify::ReadMap;
use vireo_model::Digest;
use vireo_sys::durable;
use vireo_sys::lock::FileLock;
use vireo_wire::api::ReceiptPost;

use crate::error::{AgentError, ErrorKind};
use crate::guard::Guard;
use crate::receipt::Receipt;

mod records;

pub use records::{Condemned, Edit, Enrolment, Held, Kept, Obligation, Position};

/// Where the state is by default.
pub const DEFAULT_DIR: &str = "/var/lib/vireo";

/// Time between two tries to lock the state.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// How long whoever settles the fate of an unconfirmed update may take.
const GUARD_LOCK_WAIT: Duration = Duration::from_secs(20);

/// Longest state file read, in bytes: a plan of a million files.
const MAX_FILE_LEN: u64 = 512 << 20;

/// What to do about a damaged record; without what the machine is to be, nothing is safe to be guessed.
const ENROL_AGAIN: &str = "enrol again";

/// What was learned on this machine.
const LEARNED: &str = "learned.json";

/// What to do where that is damaged.
const FORGET_LEARNED: &str = "forget what was learned with `vireo-agent learn --forget`";

/// How long to wait for another one who adds to it.
const LEARNED_LOCK_WAIT: Duration = Duration::from_secs(20);

/// Most versions whose numbers are remembered.
const MAX_KNOWN: usize = 64;

/// The agent's directory.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The state at `path`; nothing is made or read yet.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Locks the state for an update; it is let go when the answer is dropped. Makes the
    /// directory if it is not there.
    ///
    /// # Errors
    ///
    /// `Busy` if another process holds it.
    pub fn lock(&self) -> Result<FileLock, AgentError> {
        self.lock_file("lock")
    }

    fn lock_file(&self, name: &str) -> Result<FileLock, AgentError> {
        self.create()?;
        let path = self.0.join(name);
        let held =
            FileLock::exclusive(&path).map_err(|error| AgentError::io("lock", &path, error))?;
        held.ok_or_else(|| {
            let message = format!(
                "another vireo-agent works on this machine (it holds {}); try again later",
                path.display()
            );
            AgentError::new(ErrorKind::Busy, message)
        })
    }

    /// The enrolment; `None` if the machine is not enrolled.
    ///
    /// # Errors
    ///
    /// `State` if it is damaged.
    pub fn enrolment(&self) -> Result<Option<Enrolment>, AgentError> {
        self.read("enrolment.json")
    }

    /// The enrolment, which must be there.
    ///
    /// # Errors
    ///
    /// `NotEnrolled`, or `State` if it is damaged.
    pub fn require_enrolment(&self) -> Result<Enrolment, AgentError> {
        self.enrolment()?.ok_or_else(|| {
            let message = format!(
                "this machine is not enrolled ({} has no enrolment); run `vireo-agent enroll URL --token TOKEN`",
                self.0.display()
            );
            AgentError::new(ErrorKind::NotEnrolled, message)
        })
    }

    /// Keeps an enrolment and the version that goes with it.
    ///
    /// # Errors
    ///
    /// The files cannot be written.
    pub fn enroll(&self, enrolment: &Enrolment, position: &Position) -> Result<(), AgentError> {
        // In this order: an enrolment is never there without a version.
        self.set_position(position)?;
        self.write("enrolment.json", enrolment)
    }

    /// The version that the machine is on; `None` if none is known.
    ///
    /// # Errors
    ///
    /// `State` if it is damaged.
    pub fn position(&self) -> Result<Option<Position>, AgentError> {
        self.read("version.json")
    }

    /// Keeps the version that the machine is on.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn set_position(&self, position: &Position) -> Result<(), AgentError> {
        self.write("version.json", position)
    }

    /// The version with this tree, with its number if this machine has been on it.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn version_of(&self, tree: Digest) -> Result<Position, AgentError> {
        let known: Vec<Position> = self.read("known.json")?.unwrap_or_default();
        let found = known.into_iter().rev().find(|position| position.tree == tree);
        Ok(found.unwrap_or(Position { number: None, tree }))
    }

    /// Remembers the number of a version that the machine is or was on.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written.
    pub fn remember(&self, position: &Position) -> Result<(), AgentError> {
        let mut known: Vec<Position> = self.read("known.json")?.unwrap_or_default();
        if position.number.is_none() || known.last() == Some(position) {
            return Ok(());
        }
        known.retain(|other| other.tree != position.tree);
        known.push(*position);
        let surplus = known.len().saturating_sub(MAX_KNOWN);
        known.drain(..surplus);
        self.write("known.json", &known)
    }

    /// The version that was undone and is not to come back by itself; none if there is none.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn hold(&self) -> Result<Option<Position>, AgentError> {
        self.read("hold.json")
    }

    /// Keeps an undone version from coming back by itself, or with `None` lets it.
    ///
    /// # Errors
    ///
    /// The file cannot be written or removed.
    pub fn set_hold(&self, undone: Option<&Position>) -> Result<(), AgentError> {
        match undone {
            Some(position) => self.write("hold.json", position),
            None => self.remove("hold.json"),
        }
    }

    /// The text of the read map that came with an update last; none if none did.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn read_map(&self) -> Result<Option<Vec<u8>>, AgentError> {
        self.text("reads.json", ENROL_AGAIN)
    }

    /// What was learned on this machine, an empty map if nothing was.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn learned(&self) -> Result<ReadMap, AgentError> {
        let Some(text) = self.text(LEARNED, FORGET_LEARNED)? else { return Ok(ReadMap::new()) };
        ReadMap::from_json(&text).map_err(|error| {
            let path = self.0.join(LEARNED);
            damaged(&path, FORGET_LEARNED, "no read map").caused_by(error)
        })
    }

    fn lock_learned(&self) -> Result<FileLock, AgentError> {
        self.create()?;
        let lock = self.0.join("learned.lock");
        let held = FileLock::exclusive_wait(&lock, LEARNED_LOCK_WAIT)
            .map_err(|error| AgentError::io("lock", &lock, error))?;
        held.ok_or_else(|| {
            let message = format!("another vireo-agent holds {}; try again later", lock.display());
            AgentError::new(ErrorKind::Busy, message)
        })
    }

    /// Adds `seen` to what was learned on this machine, and gives all of it. Where both are too much for one map,
    /// what was learned earlier is forgotten.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged, `Busy` if another one adds to it for long, `Failed` if it is too long by
    /// itself or cannot be written.
    pub fn learn(&self, seen: &ReadMap) -> Result<ReadMap, AgentError> {
        let _held = self.lock_learned()?;
        let mut map = self.learned()?;
        map.merge(seen);
        let mut text = map.to_json();
        if text.is_err() {
            // Names of units that come and go would fill it in the end: the newest counts.
            map = seen.clone();
            text = map.to_json();
        }
        let text = text.map_err(|error| {
            let message = "cannot keep so much; watch for a shorter time";
            AgentError::new(ErrorKind::Failed, message).caused_by(error)
        })?;
        let path = self.0.join(LEARNED);
        durable::replace(&path, text.as_bytes())
            .map_err(|error| AgentError::io("write", &path, error))?;
        Ok(map)
    }

    /// Forgets what was learned on this machine.
    ///
    /// # Errors
    ///
    /// `Busy` if another one adds to it for long; the file cannot be removed.
    pub fn forget_learned(&self) -> Result<(), AgentError> {
        let _held = self.lock_learned()?;
        self.remove(LEARNED)
    }

    /// Keeps a read map's text.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn set_read_map(&self, text: &[u8]) -> Result<(), AgentError> {
        self.create()?;
        let path = self.0.join("reads.json");
        durable::replace(&path, text).map_err(|error| AgentError::io("write", &path, error))
    }

    /// Files that updates replaced; none if nobody noted any.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn held(&self) -> Result<Option<Held>, AgentError> {
        self.read("held.json")
    }

    /// Keeps which files updates replaced.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn set_held(&self, held: &Held) -> Result<(), AgentError> {
        self.write("held.json", held)
    }

    /// Files that stay for the running kernel; none if there are none.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn kept(&self) -> Result<Option<Kept>, AgentError> {
        self.read("kept.json")
    }

    /// Keeps which files stay for the running kernel, or with `None` that none do.
    ///
    /// # Errors
    ///
    /// The file cannot be written or removed.
    pub fn set_kept(&self, kept: Option<&Kept>) -> Result<(), AgentError> {
        match kept {
            Some(kept) => self.write("kept.json", kept),
            None => self.remove("kept.json"),
        }
    }

    /// Local edits that updates met.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn edits(&self) -> Result<Vec<Edit>, AgentError> {
        Ok(self.read("edits.json")?.unwrap_or_default())
    }

    /// Keeps the local edits that updates met.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn set_edits(&self, edits: &[Edit]) -> Result<(), AgentError> {
        self.write("edits.json", &edits)
    }

    /// The update under way, if there is one.
    ///
    /// # Errors
    ///
    /// `State` if it is damaged.
    pub fn obligation(&self) -> Result<Option<Obligation>, AgentError> {
        self.read("activation.json")
    }

    /// Keeps what is to be done, before the files change.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn set_obligation(&self, obligation: &Obligation) -> Result<(), AgentError> {
        self.write("activation.json", obligation)
    }

    /// Forgets the update under way.
    ///
    /// # Errors
    ///
    /// The file cannot be removed.
    pub fn clear_obligation(&self) -> Result<(), AgentError> {
        self.remove("activation.json")
    }

    /// The update that waits to be confirmed, if there is one.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn guard(&self) -> Result<Option<Guard>, AgentError> {
        self.read("guard.json")
    }

    /// Keeps what an update waits for, or with `None` that none does.
    ///
    /// # Errors
    ///
    /// The file cannot be written or removed.
    pub fn set_guard(&self, guard: Option<&Guard>) -> Result<(), AgentError> {
        match guard {
            Some(guard) => self.write("guard.json", guard),
            None => self.remove("guard.json"),
        }
    }

    /// The update that is being undone by itself, if there is one.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn condemned(&self) -> Result<Option<Condemned>, AgentError> {
        self.read("condemned.json")
    }

    /// Keeps that an update is to be undone, or with `None` that none is.
    ///
    /// # Errors
    ///
    /// The file cannot be written or removed.
    pub fn set_condemned(&self, condemned: Option<&Condemned>) -> Result<(), AgentError> {
        match condemned {
            Some(condemned) => self.write("condemned.json", condemned),
            None => self.remove("condemned.json"),
        }
    }

    /// What the last update did.
    ///
    /// # Errors
    ///
    /// `State` if it is damaged.
    pub fn last_receipt(&self) -> Result<Option<Receipt>, AgentError> {
        self.read("receipt.json")
    }

    /// Keeps what an update did, and that the repository has yet to hear of it.
    ///
    /// # Errors
    ///
    /// The files cannot be written.
    pub fn set_receipt(&self, receipt: &Receipt) -> Result<(), AgentError> {
        self.write("receipt.json", receipt)?;
        let value = serde_json::to_value(receipt).map_err(|error| {
            AgentError::new(ErrorKind::Failed, "cannot write the receipt as JSON").caused_by(error)
        })?;
        let outcome = receipt.outcome.as_str().to_owned();
        self.write(
            "unreported.json",
            &ReceiptPost { tree: receipt.target, outcome, receipt: value },
        )
    }

    /// The receipt that the repository does not have yet.
    ///
    /// # Errors
    ///
    /// `State` if it is damaged.
    pub fn unreported(&self) -> Result<Option<ReceiptPost>, AgentError> {
        self.read("unreported.json")
    }

    /// The repository has the receipt.
    ///
    /// # Errors
    ///
    /// The file cannot be removed.
    pub fn set_reported(&self) -> Result<(), AgentError> {
        self.remove("unreported.json")
    }

    /// Where the bundle of this name is put while it is fetched; the directory is made.
    ///
    /// # Errors
    ///
    /// The directory cannot be made.
    pub fn incoming(&self, bundle: Digest) -> Result<PathBuf, AgentError> {
        self.create()?;
        let dir = self.0.join("incoming");
        make_dir(&dir)?;
        Ok(dir.join(format!("{bundle}.vireo")))
    }

    /// Removes all bundles that were fetched.
    ///
    /// # Errors
    ///
    /// A file cannot be removed.
    pub fn clear_incoming(&self) -> Result<(), AgentError> {
        let dir = self.0.join("incoming");
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(AgentError::io("remove", &dir, error))
            }
            _ => Ok(()),
        }
    }

    /// Locks the state as [`StateDir::lock`] does, waiting so long if another process holds it.
    ///
    /// # Errors
    ///
    /// `Busy` if it still does then.
    pub fn lock_within(&self, wait: Duration) -> Result<FileLock, AgentError> {
        within(wait, || self.lock())
    }

    /// Locks what decides whether an update that waits to be confirmed stays, so that it is not
    /// confirmed and undone at once. It is held for moments only.
    ///
    /// # Errors
    ///
    /// `Busy` if another process holds it for long.
    pub fn lock_guard(&self) -> Result<FileLock, AgentError> {
        within(GUARD_LOCK_WAIT, || self.lock_file("guard.lock"))
    }

    fn create(&self) -> Result<(), AgentError> {
        make_dir(&self.0)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, AgentError> {
        let Some(text) = self.text(name, ENROL_AGAIN)? else { return Ok(None) };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| damaged(&self.0.join(name), ENROL_AGAIN, &error.to_string()))
    }

    /// The bytes of a record, or `None` if there is none; `remedy` is for one that cannot be read.
    fn text(&self, name: &str, remedy: &str) -> Result<Option<Vec<u8>>, AgentError> {
        let path = self.0.join(name);
        match fs::metadata(&path) {
            // Whoever opens a pipe waits for its other end.
            Ok(there) if !there.is_file() => return Err(damaged(&path, remedy, "not a file")),
            Ok(there) if there.len() > MAX_FILE_LEN => {
                return Err(damaged(&path, remedy, "too long"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        fs::read(&path).map(Some).map_err(|error| AgentError::io("read", &path, error))
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), AgentError> {
        self.create()?;
        let path = self.0.join(name);
        let bytes = serde_json::to_vec(value).map_err(|error| {
            let message = format!("cannot write {} as JSON", path.display());
            AgentError::new(ErrorKind::Failed, message).caused_by(error)
        })?;
        durable::replace(&path, &bytes).map_err(|error| AgentError::io("write", &path, error))
    }

    fn remove(&self, name: &str) -> Result<(), AgentError> {
        let path = self.0.join(name);
        match fs::remove_file(&path).and_then(|()| durable::sync_dir(&self.0)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(AgentError::io("remove", &path, error))
            }
            _ => Ok(()),
        }
    }
}

fn damaged(path: &Path, remedy: &str, why: &str) -> AgentError {
    let message = format!("the agent's record {} is damaged ({why}); {remedy}", path.display());
    AgentError::new(ErrorKind::State, message)
}

/// Tries to lock until it is free or the time is over.
fn within(
    wait: Duration,
    lock: impl Fn() -> Result<FileLock, AgentError>,
) -> Result<FileLock, AgentError> {
    let start = Instant::now();
    loop {
        match lock() {
            Err(error) if error.kind() == ErrorKind::Busy && start.elapsed() < wait => {
                std::thread::sleep(LOCK_PAUSE.min(wait));
            }
            other => return other,
        }
    }
}

/// Only the administrator may look: the credential is in there.
fn make_dir(path: &Path) -> Result<(), AgentError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| AgentError::io("make the directory", path, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use vireo_classify::{FileId, Plan};

    use super::*;

    #[test]
    fn what_is_written_reads_back_and_nothing_is_made_by_looking() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = StateDir::at(&dir.path().join("vireo"));
        assert_eq!(state.position().expect("readable"), None);
        let error = state.require_enrolment().expect_err("not enrolled");
        assert_eq!(error.kind(), ErrorKind::NotEnrolled);
        assert!(!state.path().exists());

        let position = Position { number: Some(3), tree: Digest::of(b"tree") };
        state.set_position(&position).expect("written");
        assert_eq!(state.position().expect("readable"), Some(position));
        let mode = fs::metadata(state.path()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "the credential is for root alone");

        let obligation = Obligation {
            position,
            plan: Plan::empty(),
            replaced: vec![FileId { dev: 1, ino: 2 }],
            boot: "b".to_owned(),
            hold: None,
            running: Vec::new(),
            checks: Vec::new(),
            actions: Vec::new(),
            undone_because: Vec::new(),
        };
        state.set_obligation(&obligation).expect("written");
        assert_eq!(state.obligation().expect("readable"), Some(obligation));
        state.clear_obligation().expect("removed");
        state.clear_obligation().expect("removed twice is removed once");
        assert_eq!(state.obligation().expect("readable"), None);
    }

    #[test]
    fn a_receipt_waits_until_it_is_reported() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = StateDir::at(dir.path());
        let receipt = Receipt::unchanged(Digest::of(b"t"), None);
        state.set_receipt(&receipt).expect("written");
        assert_eq!(state.last_receipt().expect("readable"), Some(receipt.clone()));
        assert_eq!(
            state.unreported().expect("readable").map(|post| post.tree),
            Some(receipt.target)
        );
        state.set_reported().expect("removed");
        assert_eq!(state.unreported().expect("readable"), None);
    }

    #[test]
    fn a_damaged_record_is_named_and_not_taken_for_absent() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("version.json"), "{").expect("written");
        let error = StateDir::at(dir.path()).position().expect_err("damaged");
        assert_eq!(error.kind(), ErrorKind::State);
        assert!(error.to_string().contains("version.json is damaged"), "{error}");
    }

    #[test]
    fn a_record_that_is_no_file_or_too_long_is_refused_without_being_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = StateDir::at(dir.path());
        fs::create_dir(dir.path().join("version.json")).expect("made");
        let too_long = fs::File::create(dir.path().join("learned.json")).expect("made");
        too_long.set_len(MAX_FILE_LEN + 1).expect("sparse");
        let error = state.position().expect_err("a directory");
        assert!(error.to_string().contains("version.json is damaged (not a file)"), "{error}");
        let error = state.learned().expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::State);
        assert!(error.to_string().contains("(too long); forget what was learned"), "{error}");
    }

    #[test]
    fn only_one_update_is_under_way() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = StateDir::at(dir.path());
        let held = state.lock().expect("free");
        assert_eq!(state.lock().expect_err("taken").kind(), ErrorKind::Busy);
        drop(held);
        assert!(state.lock().is_ok());
    }
}
