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
use std::time::Duration;

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

mod record;
mod records;

use record::{
    ACTIVATION, CONDEMNED, EDITS, ENROLMENT, GUARD, HELD, HOLD, KEPT, KNOWN, LEARNED, READS,
    RECEIPT, Record, UNREPORTED, VERSION,
};
pub use records::{Condemned, Edit, Enrolment, Held, Kept, Obligation, Position};

/// Where the state is by default.
pub const DEFAULT_DIR: &str = "/var/lib/vireo";

/// How long whoever settles the fate of an unconfirmed update may take.
const GUARD_LOCK_WAIT: Duration = Duration::from_secs(20);

/// Longest state file read, in bytes: a plan of a million files.
const MAX_FILE_LEN: u64 = 512 << 20;

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
        self.lock_within(Duration::ZERO)
    }

    /// Locks the file of this name, waiting so long if another process holds it.
    fn lock_file(&self, name: &str, wait: Duration) -> Result<FileLock, AgentError> {
        self.create()?;
        let path = self.0.join(name);
        let held = FileLock::exclusive_wait(&path, wait)
            .map_err(|error| AgentError::io("lock", &path, error))?;
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
        self.read(ENROLMENT)
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
        self.write(ENROLMENT, enrolment)
    }

    /// The version that the machine is on; `None` if none is known.
    ///
    /// # Errors
    ///
    /// `State` if it is damaged.
    pub fn position(&self) -> Result<Option<Position>, AgentError> {
        self.read(VERSION)
    }

    /// Keeps the version that the machine is on.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn set_position(&self, position: &Position) -> Result<(), AgentError> {
        self.write(VERSION, position)
    }

    /// The version with this tree, with its number if this machine has been on it.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn version_of(&self, tree: Digest) -> Result<Position, AgentError> {
        let known: Vec<Position> = self.read(KNOWN)?.unwrap_or_default();
        let found = known.into_iter().rev().find(|position| position.tree == tree);
        Ok(found.unwrap_or(Position { number: None, tree }))
    }

    /// Remembers the number of a version that the machine is or was on.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written.
    pub fn remember(&self, position: &Position) -> Result<(), AgentError> {
        let mut known: Vec<Position> = self.read(KNOWN)?.unwrap_or_default();
        if position.number.is_none() || known.last() == Some(position) {
            return Ok(());
        }
        known.retain(|other| other.tree != position.tree);
        known.push(*position);
        let surplus = known.len().saturating_sub(MAX_KNOWN);
        known.drain(..surplus);
        self.write(KNOWN, &known)
    }

    /// The version that was undone and is not to come back by itself; none if there is none.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn hold(&self) -> Result<Option<Position>, AgentError> {
        self.read(HOLD)
    }

    /// Keeps an undone version from coming back by itself, or with `None` lets it.
    ///
    /// # Errors
    ///
    /// The file cannot be written or removed.
    pub fn set_hold(&self, undone: Option<&Position>) -> Result<(), AgentError> {
        match undone {
            Some(position) => self.write(HOLD, position),
            None => self.remove(HOLD),
        }
    }

    /// The read map that came with an update last; none if none did.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn read_map(&self) -> Result<Option<ReadMap>, AgentError> {
        self.map_in(READS)
    }

    /// What was learned on this machine, an empty map if nothing was.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn learned(&self) -> Result<ReadMap, AgentError> {
        Ok(self.map_in(LEARNED)?.unwrap_or_default())
    }

    fn lock_learned(&self) -> Result<FileLock, AgentError> {
        self.lock_file("learned.lock", LEARNED_LOCK_WAIT)
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
        let path = self.0.join(LEARNED.name);
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
        let path = self.0.join(READS.name);
        durable::replace(&path, text).map_err(|error| AgentError::io("write", &path, error))
    }

    /// Files that updates replaced; none if nobody noted any.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn held(&self) -> Result<Option<Held>, AgentError> {
        self.read(HELD)
    }

    /// Keeps which files updates replaced.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn set_held(&self, held: &Held) -> Result<(), AgentError> {
        self.write(HELD, held)
    }

    /// Files that stay for the running kernel; none if there are none.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn kept(&self) -> Result<Option<Kept>, AgentError> {
        self.read(KEPT)
    }

    /// Keeps which files stay for the running kernel, or with `None` that none do.
    ///
    /// # Errors
    ///
    /// The file cannot be written or removed.
    pub fn set_kept(&self, kept: Option<&Kept>) -> Result<(), AgentError> {
        match kept {
            Some(kept) => self.write(KEPT, kept),
            None => self.remove(KEPT),
        }
    }

    /// Local edits that updates met.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn edits(&self) -> Result<Vec<Edit>, AgentError> {
        Ok(self.read(EDITS)?.unwrap_or_default())
    }

    /// Keeps the local edits that updates met.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn set_edits(&self, edits: &[Edit]) -> Result<(), AgentError> {
        self.write(EDITS, &edits)
    }

    /// The update under way, if there is one.
    ///
    /// # Errors
    ///
    /// `State` if it is damaged.
    pub fn obligation(&self) -> Result<Option<Obligation>, AgentError> {
        self.read(ACTIVATION)
    }

    /// Keeps what is to be done, before the files change.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn set_obligation(&self, obligation: &Obligation) -> Result<(), AgentError> {
        self.write(ACTIVATION, obligation)
    }

    /// Forgets the update under way.
    ///
    /// # Errors
    ///
    /// The file cannot be removed.
    pub fn clear_obligation(&self) -> Result<(), AgentError> {
        self.remove(ACTIVATION)
    }

    /// The update that waits to be confirmed, if there is one.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn guard(&self) -> Result<Option<Guard>, AgentError> {
        self.read(GUARD)
    }

    /// Keeps what an update waits for, or with `None` that none does.
    ///
    /// # Errors
    ///
    /// The file cannot be written or removed.
    pub fn set_guard(&self, guard: Option<&Guard>) -> Result<(), AgentError> {
        match guard {
            Some(guard) => self.write(GUARD, guard),
            None => self.remove(GUARD),
        }
    }

    /// The update that is being undone by itself, if there is one.
    ///
    /// # Errors
    ///
    /// `State` if the record is damaged.
    pub fn condemned(&self) -> Result<Option<Condemned>, AgentError> {
        self.read(CONDEMNED)
    }

    /// Keeps that an update is to be undone, or with `None` that none is.
    ///
    /// # Errors
    ///
    /// The file cannot be written or removed.
    pub fn set_condemned(&self, condemned: Option<&Condemned>) -> Result<(), AgentError> {
        match condemned {
            Some(condemned) => self.write(CONDEMNED, condemned),
            None => self.remove(CONDEMNED),
        }
    }

    /// What the last update did.
    ///
    /// # Errors
    ///
    /// `State` if it is damaged.
    pub fn last_receipt(&self) -> Result<Option<Receipt>, AgentError> {
        self.read(RECEIPT)
    }

    /// Keeps what an update did, and that the repository has yet to hear of it, shortened if that
    /// would be too long for it.
    ///
    /// # Errors
    ///
    /// The files cannot be written.
    pub fn set_receipt(&self, receipt: &Receipt) -> Result<(), AgentError> {
        self.write(RECEIPT, receipt)?;
        let report = receipt.report().map_err(|error| {
            AgentError::new(ErrorKind::Failed, "cannot write the receipt as JSON").caused_by(error)
        })?;
        self.write(UNREPORTED, &report)
    }

    /// The receipt that the repository does not have yet.
    ///
    /// # Errors
    ///
    /// `State` if it is damaged.
    pub fn unreported(&self) -> Result<Option<ReceiptPost>, AgentError> {
        self.read(UNREPORTED)
    }

    /// The repository has the receipt.
    ///
    /// # Errors
    ///
    /// The file cannot be removed.
    pub fn set_reported(&self) -> Result<(), AgentError> {
        self.remove(UNREPORTED)
    }

    /// Removes damaged records of what was, and tells what is lost with each: they must not keep an
    /// update from its end whose files are in place. A crash leaves them there or not.
    ///
    /// # Errors
    ///
    /// One cannot be read or removed.
    pub fn drop_damaged_memory(&self, say: &dyn Fn(&str)) -> Result<(), AgentError> {
        let memory = [
            (KNOWN, self.read::<Vec<Position>>(KNOWN).map(drop)),
            (HELD, self.held().map(drop)),
            (EDITS, self.edits().map(drop)),
            (KEPT, self.kept().map(drop)),
            (UNREPORTED, self.unreported().map(drop)),
        ];
        for (record, found) in memory {
            match found {
                Err(error) if error.kind() == ErrorKind::State => {
                    let path = self.0.join(record.name);
                    match fs::symlink_metadata(&path) {
                        Ok(there) if there.is_dir() => fs::remove_dir_all(&path)
                            .map_err(|error| AgentError::io("remove", &path, error))?,
                        _ => self.remove(record)?,
                    }
                    say(&format!(
                        "{} was damaged and is removed; what is lost: {}",
                        path.display(),
                        record.lost()
                    ));
                }
                other => other?,
            }
        }
        Ok(())
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
        self.lock_file("lock", wait)
    }

    /// Locks what decides whether an update that waits to be confirmed stays, so that it is not
    /// confirmed and undone at once. It is held for moments only.
    ///
    /// # Errors
    ///
    /// `Busy` if another process holds it for long.
    pub fn lock_guard(&self) -> Result<FileLock, AgentError> {
        self.lock_file("guard.lock", GUARD_LOCK_WAIT)
    }

    fn create(&self) -> Result<(), AgentError> {
        make_dir(&self.0)
    }

    fn read<T: DeserializeOwned>(&self, record: Record) -> Result<Option<T>, AgentError> {
        let Some(text) = self.text(record)? else { return Ok(None) };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| record.damaged(&self.0.join(record.name), &error.to_string()))
    }

    /// The read map in a record, or `None` if there is none.
    fn map_in(&self, record: Record) -> Result<Option<ReadMap>, AgentError> {
        let Some(text) = self.text(record)? else { return Ok(None) };
        ReadMap::from_json(&text).map(Some).map_err(|error| {
            record.damaged(&self.0.join(record.name), "no read map").caused_by(error)
        })
    }

    /// The bytes of a record, or `None` if there is none.
    fn text(&self, record: Record) -> Result<Option<Vec<u8>>, AgentError> {
        let path = self.0.join(record.name);
        match fs::metadata(&path) {
            // Whoever opens a pipe waits for its other end.
            Ok(there) if !there.is_file() => return Err(record.damaged(&path, "not a file")),
            Ok(there) if there.len() > MAX_FILE_LEN => {
                return Err(record.damaged(&path, "too long"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        fs::read(&path).map(Some).map_err(|error| AgentError::io("read", &path, error))
    }

    fn write(&self, record: Record, value: &impl Serialize) -> Result<(), AgentError> {
        self.create()?;
        let path = self.0.join(record.name);
        let bytes = serde_json::to_vec(value).map_err(|error| {
            let message = format!("cannot write {} as JSON", path.display());
            AgentError::new(ErrorKind::Failed, message).caused_by(error)
        })?;
        durable::replace(&path, &bytes).map_err(|error| AgentError::io("write", &path, error))
    }

    fn remove(&self, record: Record) -> Result<(), AgentError> {
        let path = self.0.join(record.name);
        match fs::remove_file(&path).and_then(|()| durable::sync_dir(&self.0)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(AgentError::io("remove", &path, error))
            }
            _ => Ok(()),
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
    fn a_damaged_record_says_what_mends_it_and_what_is_lost() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = StateDir::at(dir.path());
        let error = |name: &str, found: &dyn Fn() -> Option<AgentError>| {
            let path = dir.path().join(name);
            fs::write(&path, "[{").expect("written");
            let text = found().expect("damaged").to_string();
            fs::remove_file(&path).expect("removed");
            text
        };
        for (name, found) in [
            ("enrolment.json", &(|| state.enrolment().err()) as &dyn Fn() -> Option<AgentError>),
            ("version.json", &|| state.position().err()),
        ] {
            assert!(error(name, found).ends_with("; enrol again"), "{name}");
        }
        assert!(error("learned.json", &|| state.learned().err()).contains("learn --forget"));
        for (name, found) in [
            ("activation.json", &(|| state.obligation().err()) as &dyn Fn() -> Option<AgentError>),
            ("receipt.json", &|| state.last_receipt().err()),
            ("unreported.json", &|| state.unreported().err()),
            ("known.json", &|| state.version_of(Digest::of(b"")).err()),
            ("guard.json", &|| state.guard().err()),
            ("condemned.json", &|| state.condemned().err()),
            ("hold.json", &|| state.hold().err()),
            ("held.json", &|| state.held().err()),
            ("kept.json", &|| state.kept().err()),
            ("reads.json", &|| state.read_map().err()),
            ("edits.json", &|| state.edits().err()),
        ] {
            let text = error(name, found);
            let remedy = format!("; remove {}; what is lost: ", dir.path().join(name).display());
            assert!(text.contains(&remedy), "{text}");
            assert!(!text.contains("enrol again"), "{text}");
        }
    }

    #[test]
    fn damaged_memory_is_dropped_with_a_word_and_what_is_more_stays() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = StateDir::at(dir.path());
        let damaged = ["known.json", "held.json", "edits.json", "kept.json", "guard.json"];
        for name in damaged {
            fs::write(dir.path().join(name), "[{").expect("written");
        }
        fs::create_dir_all(dir.path().join("unreported.json/x")).expect("made");
        let said = std::sync::Mutex::new(Vec::new());
        let say = |line: &str| said.lock().expect("not poisoned").push(line.to_owned());
        state.drop_damaged_memory(&say).expect("removed");
        assert_eq!(said.lock().expect("not poisoned").len(), 5, "{said:?}");
        assert!(said.lock().expect("not poisoned")[0].contains("the numbers of versions"));
        let left: Vec<_> = damaged.iter().filter(|name| dir.path().join(name).exists()).collect();
        assert!(!dir.path().join("unreported.json").exists());
        assert_eq!(left, [&"guard.json"], "without it an update would stay that nobody confirmed");
        state.drop_damaged_memory(&|line| panic!("{line}")).expect("nothing is damaged any more");
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
