//! What is being done with images in a directory, on the disk before it is begun, so that whoever
//! comes after a crash knows what to undo.
//!
//! One file per piece of work, `builds/NAME.json`, locked (`flock(2)`) by its owner while it lives:
//! the lock, not a process number, tells whether it does. Work of the same name waits for each
//! other; so two builds of one image cannot meet.
//!
//! A crash leaves the file without a lock. [`Journal::undo`] then unmounts and detaches what is
//! attached, removes the unfinished file, and the record last, so that it can itself be interrupted.
//! Nothing outside of the journal's directory is ever touched, whatever a record says.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vireo_sys::durable;
use vireo_sys::lock::FileLock;

use crate::leaks::{self, Undone};
use crate::rootless::staging_dir;
use crate::{ErrorKind, ImageError};

/// Where the records are, beneath the journal's directory.
const RECORDS: &str = "builds";

/// Longest record that is read, in bytes: four paths of 4,095 bytes fit, however they are escaped.
const MAX_RECORD_LEN: u64 = 128 << 10;

/// How often a waiting caller tries again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Longest for a worker to end after its owner was killed.
const DYING: Duration = Duration::from_secs(2);

/// How the names of unfinished disk images end.
const UNFINISHED: [&str; 2] = [".partial", ".part"];

/// What is added to an image's name while it is made, and left by a crash: to that of the image, of its
/// packed form, and of the claim to make it.
pub(crate) const LEFT: [&str; 3] = [".partial", ".packed.partial", ".claim.partial"];

/// A piece of work with an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// The image that is read.
    pub base: PathBuf,
    /// The image that is made, if one is.
    pub out: Option<PathBuf>,
    /// The file that it is made in, which a crash leaves and which is removed then.
    pub partial: Option<PathBuf>,
    /// The file that a loop device may show meanwhile.
    pub backing: Option<PathBuf>,
}

impl Work {
    /// Making the image `out` from `base` ([`patch`](crate::patch)).
    #[must_use]
    pub fn build(base: &Path, out: &Path) -> Self {
        let [partial, ..] = left_of(out);
        Self {
            base: base.to_owned(),
            out: Some(out.to_owned()),
            backing: Some(partial.clone()),
            partial: Some(partial),
        }
    }

    /// Reading `image`.
    #[must_use]
    pub fn read(image: &Path) -> Self {
        Self { base: image.to_owned(), backing: Some(image.to_owned()), ..Self::default() }
    }
}

/// What [`Journal::undo`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// What had been interrupted.
    pub work: Vec<Work>,
    /// Unfinished files that were removed.
    pub removed: Vec<PathBuf>,
    /// Mounts and loop devices.
    pub undone: Undone,
}

/// The work with images beneath a directory.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: PathBuf,
}

/// Work that is under way; its record, or claim, goes when this is dropped.
#[derive(Debug)]
#[must_use = "dropping it says that the work is over"]
pub struct Begun {
    path: PathBuf,
    _lock: FileLock,
}

impl Drop for Begun {
    /// Removes the record while it is still locked. If that fails, the next [`Journal::undo`] finds
    /// nothing to undo and removes it.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Journal {
    /// The journal of the directory `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Records `work` under `name`, durably, once no other has that name; waits up to `wait` for it.
    ///
    /// # Errors
    ///
    /// `Busy` if another is at it for longer, `NoSpace`, `Io`.
    pub fn begin(&self, name: &str, work: &Work, wait: Duration) -> Result<Begun, ImageError> {
        let records = self.dir.join(RECORDS);
        let path = records.join(format!("{name}.json"));
        let failed = |error: io::Error| ImageError::io("record the build in", &path, error);
        match fs::create_dir(&records) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let started = Instant::now();
        loop {
            if let Taken::Ours(mut file, lock) = take(&path, true).map_err(failed)? {
                let begun = Begun { path: path.clone(), _lock: lock };
                let json = serde_json::to_vec(work).map_err(|error| failed(error.into()))?;
                file.set_len(0).and_then(|()| file.write_all(&json)).map_err(failed)?;
                file.sync_all().and_then(|()| durable::sync_dir(&records)).map_err(failed)?;
                return Ok(begun);
            }
            if started.elapsed() >= wait {
                return Err(busy(work));
            }
            thread::sleep(RETRY_INTERVAL);
        }
    }

    /// Undoes all work whose owner is gone, and detaches unfinished images that nobody works on.
    /// Living work is left alone.
    ///
    /// Cost without any: one look at the directory and at each loop device of the host.
    ///
    /// # Errors
    ///
    /// `NoRoot` if there is something that only root can undo; `Io`.
    pub fn undo(&self) -> Result<Recovered, ImageError> {
        let mut dead = Vec::new();
        let mut living = Vec::new();
        for path in self.records()? {
            let failed = |error: io::Error| ImageError::io("read the record", &path, error);
            match take(&path, false).map_err(failed)? {
                Taken::Ours(file, lock) => dead.push((read(&file), Begun { path, _lock: lock })),
                Taken::Living(file) => living.push(read(&file)),
                Taken::Over => {}
            }
        }
        let undone = self.detach(&dead, &living)?;
        let mut recovered = Recovered { undone, ..Recovered::default() };
        for (work, begun) in dead {
            // A worker that outlives its owner is still at it.
            let left = if self.is_claimed(&work) { Vec::new() } else { left_by(&work) };
            for left in left {
                recovered.removed.extend(self.remove(left)?);
            }
            recovered.work.push(work);
            drop(begun);
        }
        Ok(recovered)
    }

    /// Names are the kernel's: without symbolic links.
    fn detach(&self, dead: &[(Work, Begun)], living: &[Work]) -> Result<Undone, ImageError> {
        let real = |path: &Option<PathBuf>| path.as_deref().map(canonical);
        let dead: Vec<PathBuf> = dead.iter().filter_map(|(work, _)| real(&work.backing)).collect();
        let living: Vec<PathBuf> = living.iter().filter_map(|work| real(&work.backing)).collect();
        leaks::undo(&self.dir, &|backing| {
            let is_unfinished = || {
                let name = backing.as_os_str().as_encoded_bytes();
                UNFINISHED.iter().any(|suffix| name.ends_with(suffix.as_bytes()))
            };
            !living.iter().any(|path| path == backing)
                && (dead.iter().any(|path| path == backing) || is_unfinished() && is_free(backing))
        })
    }

    fn has(&self, path: &Path) -> bool {
        let is_plain = path.components().all(|part| part != Component::ParentDir);
        is_plain && path.starts_with(&self.dir)
    }

    /// Whether somebody makes the image, and does not end soon.
    fn is_claimed(&self, work: &Work) -> bool {
        let claimed = work.out.as_deref().map(|out| left_of(out)[2].clone());
        claimed.is_some_and(|claimed| self.has(&claimed) && !becomes_free(&claimed))
    }

    /// Removes what is unfinished, unless it lies elsewhere or somebody has its lock.
    fn remove(&self, left: PathBuf) -> Result<Option<PathBuf>, ImageError> {
        if !self.has(&left) || !becomes_free(&left) {
            return Ok(None);
        }
        let removed = match fs::symlink_metadata(&left) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&left),
            Ok(_) => fs::remove_file(&left),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => Ok(Some(left)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io("remove", &left, error)),
        }
    }

    fn records(&self) -> Result<Vec<PathBuf>, ImageError> {
        let records = self.dir.join(RECORDS);
        let failed = |error: io::Error| ImageError::io("read", &records, error);
        let entries = match fs::read_dir(&records) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let path = |entry: io::Result<fs::DirEntry>| Ok(entry.map_err(failed)?.path());
        let mut paths: Vec<PathBuf> = entries.map(path).collect::<Result<_, ImageError>>()?;
        paths.sort();
        Ok(paths)
    }
}

/// Names of what is there while `out` is made: see [`LEFT`].
pub(crate) fn left_of(out: &Path) -> [PathBuf; 3] {
    LEFT.map(|suffix| durable::sibling(out, suffix))
}

/// What interrupted work can have left. Its claim last: who has that is at work.
fn left_by(work: &Work) -> Vec<PathBuf> {
    let mut left: Vec<PathBuf> = work.partial.iter().cloned().collect();
    if let Some(out) = &work.out {
        left.push(staging_dir(out));
        left.extend(left_of(out).into_iter().filter(|path| work.partial.as_ref() != Some(path)));
    }
    left
}

/// Claims what the file `path` stands for, which is made for it and goes with the claim; `None` if
/// another process has it.
pub(crate) fn claim(path: &Path) -> io::Result<Option<Begun>> {
    match take(path, true)? {
        Taken::Ours(_, lock) => Ok(Some(Begun { path: path.to_owned(), _lock: lock })),
        Taken::Living(_) | Taken::Over => Ok(None),
    }
}

/// Whose a record is.
enum Taken {
    /// This caller's now, locked.
    Ours(File, FileLock),
    /// Another's, who is at work.
    Living(File),
    /// Nobody's: it has gone.
    Over,
}

/// Opens the record at `path`, which is made if it is not there and `make`, and locks it.
fn take(path: &Path, make: bool) -> io::Result<Taken> {
    let mut options = File::options();
    options.create(make).truncate(false).read(true).write(true).mode(0o600);
    loop {
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !make => {
                return Ok(Taken::Over);
            }
            opened => opened?,
        };
        let Some(lock) = FileLock::on(file.try_clone()?)? else { return Ok(Taken::Living(file)) };
        // Whoever had it before removed it before letting go: then this is no longer its name.
        let held = file.metadata()?;
        match fs::symlink_metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
                return Ok(Taken::Ours(file, lock));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}

/// What the record says. One that is cut was being written when its owner ended, who had begun
/// nothing then.
fn read(file: &File) -> Work {
    let mut json = Vec::new();
    match file.take(MAX_RECORD_LEN).read_to_end(&mut json) {
        Ok(_) => serde_json::from_slice(&json).unwrap_or_default(),
        Err(_) => Work::default(),
    }
}

/// Whether nobody has the lock of `file`; what is not there is nobody's.
fn is_free(file: &Path) -> bool {
    match File::open(file) {
        Ok(file) => FileLock::on(file).is_ok_and(|lock| lock.is_some()),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// The same, after a while: a worker whose owner was killed ends a moment later.
fn becomes_free(file: &Path) -> bool {
    let started = Instant::now();
    while !is_free(file) {
        if started.elapsed() >= DYING {
            return false;
        }
        thread::sleep(RETRY_INTERVAL);
    }
    true
}

/// The real name of a file that may be gone: that of its directory, and its own.
fn canonical(path: &Path) -> PathBuf {
    let dir = durable::directory_of(path).canonicalize();
    match (dir, path.file_name()) {
        (Ok(dir), Some(name)) => dir.join(name),
        _ => path.to_owned(),
    }
}

fn busy(work: &Work) -> ImageError {
    being_made(work.out.as_deref().unwrap_or(&work.base))
}

pub(crate) fn being_made(what: &Path) -> ImageError {
    let message = format!("{} is being made by another process; wait for it", what.display());
    ImageError::new(ErrorKind::Busy, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let journal = Journal::new(dir.path());
        (dir, journal)
    }

    #[test]
    fn living_work_is_left_alone_and_finished_work_leaves_nothing() {
        let (dir, journal) = journal();
        let out = dir.path().join("out.img");
        let work = Work::build(&dir.path().join("base.img"), &out);
        let partial = work.partial.clone().expect("it has one");
        fs::write(&partial, "half").expect("writable");
        let begun = journal.begin("out", &work, Duration::ZERO).expect("free");

        assert_eq!(journal.undo().expect("readable"), Recovered::default());
        assert!(partial.exists());
        let second = journal.begin("out", &work, Duration::ZERO).expect_err("one at a time");
        assert_eq!(second.kind(), ErrorKind::Busy);
        assert!(second.to_string().contains("out.img"), "{second}");
        journal.begin("other", &work, Duration::ZERO).map(drop).expect("another name is free");

        drop(begun);
        assert_eq!(fs::read_dir(dir.path().join(RECORDS)).expect("there").count(), 0);
        journal.begin("out", &work, Duration::ZERO).map(drop).expect("free again");
    }

    #[test]
    fn dead_work_is_undone_once() {
        let (dir, journal) = journal();
        let work = Work::build(&dir.path().join("base.img"), &dir.path().join("out.img"));
        let partial = work.partial.clone().expect("it has one");
        let kept = dir.path().join("base.img");
        let left = left_of(&dir.path().join("out.img"));
        for file in left.iter().chain([&kept]) {
            fs::write(file, "x").expect("writable");
        }
        fs::create_dir(dir.path().join(RECORDS)).expect("made");
        let record = dir.path().join(RECORDS).join("out.json");
        fs::write(&record, serde_json::to_vec(&work).expect("JSON")).expect("writable");

        let recovered = journal.undo().expect("undone");
        assert_eq!(recovered.work, [work]);
        assert_eq!(recovered.removed, left);
        assert!(!partial.exists() && !record.exists() && kept.exists());
        assert_eq!(journal.undo().expect("nothing is left"), Recovered::default());
    }

    #[test]
    fn what_a_worker_makes_that_outlives_its_owner_is_left_alone() {
        let (dir, journal) = journal();
        let out = dir.path().join("out.img");
        let work = Work::build(&dir.path().join("base.img"), &out);
        let [partial, _, claimed] = left_of(&out);
        let claimed = claim(&claimed).expect("made").expect("free");
        assert!(claim(&left_of(&out)[2]).expect("asked").is_none(), "one at a time");
        fs::write(&partial, "half").expect("writable");
        fs::create_dir(dir.path().join(RECORDS)).expect("made");
        let record = dir.path().join(RECORDS).join("out.json");
        fs::write(&record, serde_json::to_vec(&work).expect("JSON")).expect("writable");
        assert_eq!(journal.undo().expect("undone").removed, [] as [PathBuf; 0]);
        assert!(partial.exists());
        drop(claimed);
        assert!(!left_of(&out)[2].exists(), "it goes with the claim");
    }

    #[test]
    fn a_record_that_is_cut_or_names_what_is_elsewhere_removes_nothing() {
        let (dir, journal) = journal();
        let elsewhere = tempfile::tempdir().expect("a temporary directory");
        let victim = elsewhere.path().join("victim.partial");
        fs::write(&victim, "mine").expect("writable");
        let outside = Work { partial: Some(victim.clone()), ..Work::default() };
        let name = elsewhere.path().file_name().expect("named");
        let climbing = dir.path().join("..").join(name).join("victim.partial");
        let climbing = Work { partial: Some(climbing), ..Work::default() };
        fs::create_dir(dir.path().join(RECORDS)).expect("made");
        let whole = serde_json::to_vec(&outside).expect("JSON");
        let climbing = serde_json::to_vec(&climbing).expect("JSON");
        for (name, bytes) in [("a", &whole[..]), ("b", &climbing), ("c", &whole[..9]), ("d", b"")] {
            let path = dir.path().join(RECORDS).join(format!("{name}.json"));
            fs::write(path, bytes).expect("writable");
        }
        let recovered = journal.undo().expect("undone");
        assert_eq!((recovered.work.len(), recovered.removed.len()), (4, 0));
        assert!(victim.exists());
        assert_eq!(fs::read_dir(dir.path().join(RECORDS)).expect("there").count(), 0);
    }

    #[test]
    fn work_of_one_name_waits_for_each_other() {
        let (dir, journal) = journal();
        let counter = dir.path().join("counter");
        fs::write(&counter, "0").expect("writable");
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let work = Work::read(&counter);
                    let wait = Duration::from_secs(60);
                    let begun = journal.begin("counter", &work, wait).expect("in time");
                    let count: u32 = fs::read_to_string(&counter)
                        .expect("readable")
                        .parse()
                        .expect("a number, not a half-written one");
                    thread::sleep(Duration::from_millis(5));
                    fs::write(&counter, (count + 1).to_string()).expect("writable");
                    drop(begun);
                });
            }
        });
        assert_eq!(fs::read_to_string(&counter).expect("readable"), "8");
    }
}
