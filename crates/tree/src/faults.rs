//! Crash points, injected errors and power cuts, for the tests of this crate.
//!
//! Every step on the file system comes by [`hit`], which counts it and can end it there: as
//! `kill -9` does (nothing that follows happens), as a failing disk does (one step fails), or as a
//! power cut does: of the steps since the last barrier, any that do not depend on each other may
//! not have reached the disk. Such steps are taken back on the real file system, so that what
//! recovery then finds is real, inode numbers and all.
//!
//! What a power cut may leave is more here than on any file system with a journal: each step is
//! atomic, but any subset of the steps since the last barrier may be missing, and new files may be
//! empty or cut short.

use std::cell::RefCell;
use std::fs;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::fault::Op;

/// What happens at the step that is counted down to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// This and all that follows does not happen.
    Kill,
    /// This one fails.
    Fail(Errno),
    /// The machine stops, and chance (this number) decides what is on the disk.
    PowerCut(u64),
}

/// Which steps are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those that change something, and barriers.
    Changes,
    /// Reads too.
    All,
}

struct Run {
    which: Which,
    fault: Fault,
    at: usize,
    count: usize,
    is_dead: bool,
    barriers: bool,
    /// Where removed inodes are kept, outside the tree.
    side: PathBuf,
    log: Vec<Entry>,
    kept: usize,
}

/// A step that can be taken back.
enum Entry {
    Make { at: Place, ino: Option<u64> },
    Rename { from: Place, to: Place, exchange: bool, saved: Option<PathBuf> },
    Remove { at: Place, saved: PathBuf, is_dir: bool },
    Change { at: Place, before: Option<(u32, i64, i64)> },
}

#[derive(Clone)]
struct Place {
    dir: std::rc::Rc<OwnedFd>,
    dir_ino: u64,
    name: Vec<u8>,
}

thread_local! {
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
}

/// Runs `work`, which has to stay on this thread, with `fault` at step number `at`; the answer is
/// what it gave and how many steps it took. `side` is an empty directory on its file system.
pub(crate) fn with<T>(
    which: Which,
    fault: Fault,
    at: usize,
    barriers: bool,
    side: &Path,
    work: impl FnOnce() -> T,
) -> (T, usize) {
    let run = Run {
        which,
        fault,
        at,
        count: 0,
        is_dead: false,
        barriers,
        side: side.to_owned(),
        log: Vec::new(),
        kept: 0,
    };
    RUN.with_borrow_mut(|slot| *slot = Some(run));
    let answer = work();
    let count = RUN.with_borrow_mut(Option::take).map_or(0, |run| run.count);
    (answer, count)
}

pub(crate) fn hit(op: Op<'_>) -> Result<(), Errno> {
    RUN.with_borrow_mut(|run| run.as_mut().map_or(Ok(()), |run| run.hit(op)))
}

impl Run {
    fn hit(&mut self, op: Op<'_>) -> Result<(), Errno> {
        if self.is_dead {
            return Err(Errno::IO);
        }
        if self.which == Which::Changes && matches!(op, Op::Look) {
            return Ok(());
        }
        let number = self.count;
        self.count += 1;
        if number == self.at {
            match self.fault {
                Fault::None => {}
                Fault::Kill => {
                    self.is_dead = true;
                    return Err(Errno::IO);
                }
                Fault::Fail(error) => return Err(error),
                Fault::PowerCut(seed) => {
                    self.is_dead = true;
                    self.cut(seed);
                    return Err(Errno::IO);
                }
            }
        }
        if matches!(self.fault, Fault::PowerCut(_)) {
            self.record(op);
        }
        Ok(())
    }

    /// Notes how to take back what is about to be done.
    fn record(&mut self, op: Op<'_>) {
        match op {
            Op::Look | Op::Write => {}
            Op::Barrier if self.barriers => self.log.clear(),
            Op::Barrier => {}
            Op::Make(dir, name) => {
                let at = Place::new(dir, name);
                if !at.exists() {
                    self.log.push(Entry::Make { at, ino: None });
                }
            }
            Op::Rename((from_dir, from_name), (to_dir, to_name), exchange) => {
                let (from, to) = (Place::new(from_dir, from_name), Place::new(to_dir, to_name));
                if from.exists() && from.ino() != to.ino() {
                    let saved = (!exchange && to.exists() && !to.is_dir()).then(|| self.save(&to));
                    self.log.push(Entry::Rename { from, to, exchange, saved });
                }
            }
            Op::Remove(dir, name) => {
                let at = Place::new(dir, name);
                if !at.exists() {
                    return;
                }
                let is_dir = at.is_dir();
                if is_dir && fs::read_dir(at.path()).is_ok_and(|mut names| names.next().is_some()) {
                    return; // It will fail.
                }
                let saved = self.save(&at);
                self.log.push(Entry::Remove { at, saved, is_dir });
            }
            Op::Change(dir, name) => {
                let at = Place::new(dir, name);
                let before = fs::symlink_metadata(at.path()).ok();
                let before = before.map(|m| (m.mode() & 0o7777, m.mtime(), m.mtime_nsec()));
                self.log.push(Entry::Change { at, before });
            }
        }
    }

    /// Keeps the inode: by a link, or, as directories have none, by moving it away now.
    fn save(&mut self, place: &Place) -> PathBuf {
        self.kept += 1;
        let saved = self.side.join(self.kept.to_string());
        let kept = if place.is_dir() {
            fs::rename(place.path(), &saved)
        } else {
            fs::hard_link(place.path(), &saved)
        };
        kept.expect("the side directory is on the same file system");
        saved
    }

    /// Takes back some of the steps since the last barrier.
    fn cut(&mut self, seed: u64) {
        let mut chance = Chance(seed);
        for entry in &mut self.log {
            if let Entry::Make { at, ino } = entry {
                *ino = at.ino();
            }
        }
        let log = std::mem::take(&mut self.log);
        let lost = lost(&log, &mut chance);
        for (entry, is_lost) in log.iter().zip(&lost).rev() {
            if *is_lost {
                entry.take_back();
            } else if let Entry::Make { at, .. } = entry {
                // The name is on the disk; the content need not be, if it is new.
                let file = fs::symlink_metadata(at.path()).ok();
                let file = file.filter(|metadata| metadata.is_file() && metadata.nlink() == 1);
                if let (Some(metadata), true) = (file, chance.below(3) == 0) {
                    let len = metadata.len() / (1 + chance.below(2) * 1000);
                    let len = if len == metadata.len() { len / 2 } else { 0 };
                    if let Ok(file) = fs::File::options().write(true).open(at.path()) {
                        file.set_len(len).expect("can be cut");
                    }
                }
            }
        }
    }
}

/// Which steps did not reach the disk: a suffix, a random subset, or one; and all that follow and
/// depend on one of them.
fn lost(log: &[Entry], chance: &mut Chance) -> Vec<bool> {
    let len = log.len() as u64;
    let kind = chance.below(4);
    let pivot = chance.below(len.max(1)) as usize;
    let mut lost: Vec<bool> = (0..log.len())
        .map(|number| match kind {
            0 => number >= pivot,
            1 => chance.below(2) == 0,
            2 => number == pivot,
            _ => number != pivot,
        })
        .collect();
    for later in 0..log.len() {
        let depends = (0..later).any(|earlier| lost[earlier] && log[later].needs(&log[earlier]));
        lost[later] |= depends;
    }
    lost
}

impl Entry {
    fn places(&self) -> Vec<&Place> {
        match self {
            Self::Make { at, .. } | Self::Remove { at, .. } | Self::Change { at, .. } => vec![at],
            Self::Rename { from, to, .. } => vec![from, to],
        }
    }

    /// Whether this step is about a name of an earlier one, or in a directory that it made.
    fn needs(&self, earlier: &Self) -> bool {
        let made = match earlier {
            Self::Make { ino, .. } => *ino,
            _ => None,
        };
        self.places().iter().any(|place| {
            made == Some(place.dir_ino)
                || earlier
                    .places()
                    .iter()
                    .any(|other| place.dir_ino == other.dir_ino && place.name == other.name)
        })
    }

    fn take_back(&self) {
        match self {
            Self::Make { at, .. } => {
                let path = at.path();
                // It may have been the one step that failed.
                let _ = if at.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
            }
            Self::Rename { from, to, exchange: true, .. } => {
                let _ = renameat_with(CWD, to.path(), CWD, from.path(), RenameFlags::EXCHANGE);
            }
            Self::Rename { from, to, saved, .. } => {
                fs::rename(to.path(), from.path()).expect("was renamed");
                if let Some(saved) = saved {
                    fs::hard_link(saved, to.path()).expect("was kept");
                }
            }
            Self::Remove { at, saved, is_dir: true } => {
                fs::rename(saved, at.path()).expect("was kept");
            }
            Self::Remove { at, saved, .. } => {
                fs::hard_link(saved, at.path()).expect("was kept");
            }
            Self::Change { at, before: Some((mode, secs, nanos)) } => {
                let Ok(metadata) = fs::symlink_metadata(at.path()) else { return };
                if metadata.is_symlink() {
                    return;
                }
                let permissions = std::os::unix::fs::PermissionsExt::from_mode(*mode);
                fs::set_permissions(at.path(), permissions).expect("can be set");
                let time =
                    std::time::UNIX_EPOCH + std::time::Duration::new(*secs as u64, *nanos as u32);
                let file = fs::File::open(at.path()).expect("opens");
                file.set_modified(time).expect("can be set");
            }
            Self::Change { before: None, .. } => {}
        }
    }
}

impl Place {
    fn new(dir: BorrowedFd<'_>, name: &[u8]) -> Self {
        let dir = dir.try_clone_to_owned().expect("a descriptor is left");
        let dir_ino = rustix::fs::fstat(&dir).expect("is open").st_ino;
        Self { dir: dir.into(), dir_ino, name: name.to_vec() }
    }

    fn path(&self) -> PathBuf {
        let dir = format!("/proc/self/fd/{}", self.dir.as_raw_fd());
        Path::new(&dir).join(std::ffi::OsStr::from_bytes(&self.name))
    }

    fn ino(&self) -> Option<u64> {
        fs::symlink_metadata(self.path()).ok().map(|metadata| metadata.ino())
    }

    fn exists(&self) -> bool {
        self.ino().is_some()
    }

    fn is_dir(&self) -> bool {
        fs::symlink_metadata(self.path()).is_ok_and(|metadata| metadata.is_dir())
    }
}

/// Numbers that look random (`SplitMix64`), the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
