//! The state directory of a tree: which transactions there are, and how far each is.
//!
//! A transaction is a directory, and its state is part of the directory's name, so that every
//! step from one state to the next is one rename. `docs/format/state.md` is the normative text.

use std::fs::File;
use std::io::{Read as _, Write as _};

use rustix::fs::fstat;
use rustix::io::Errno;
use vireo_model::ImagePath;
use vireo_sys::lock::FileLock;

use super::plan::{MAX_PLAN_LEN, Plan, PlanError};
use crate::dir::Dir;
use crate::fault::{Op, hit};
use crate::node::{len_of, mtime_of};
use crate::{ErrorKind, Root, TreeError};

/// The state directory's name in the tree's root and in the root of every further file system of
/// the tree; it belongs to no version.
pub const STATE_DIR: &str = "/.vireo";

pub(super) const NAME: &[u8] = b".vireo";
const GARBAGE: &[u8] = b"garbage";
const STAGED: &[u8] = b"s";
const BASE: &[u8] = b"b";
const PLAN: &[u8] = b"plan";

/// How far a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Being prepared; the tree is untouched.
    Staged,
    /// The tree is on its way to the target.
    Committed,
    /// The tree is the target; services may still use the base.
    Done,
    /// Over; kept so that it can be undone.
    Past,
}

impl State {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Staged => "-staged",
            Self::Committed => "-committed",
            Self::Done => "-done",
            Self::Past => "",
        }
    }
}

/// A transaction's place in the state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Txn {
    pub(super) number: u64,
    pub(super) state: State,
}

impl Txn {
    fn name(self) -> Vec<u8> {
        format!("{}{}", self.number, self.state.suffix()).into_bytes()
    }

    fn parse(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        let (number, suffix) = name.split_at(name.find('-').unwrap_or(name.len()));
        let states = [State::Staged, State::Committed, State::Done, State::Past];
        let state = states.into_iter().find(|state| state.suffix() == suffix)?;
        Some(Self { number: number.parse().ok()?, state })
    }
}

/// The state directory, locked against other updates for as long as this value lives.
#[derive(Debug)]
pub(super) struct Journal<'r> {
    root: &'r Root,
    dir: Dir,
    _lock: FileLock,
}

fn state_path() -> ImagePath {
    ImagePath::parse(STATE_DIR.as_bytes()).unwrap_or_else(|_| ImagePath::root())
}

fn failed<'a>(root: &'a Root, step: &'a str) -> impl Fn(Errno) -> TreeError + 'a {
    move |error| TreeError::io(step, root.label(), &state_path(), error)
}

/// The name of a transaction's part on a further file system.
fn part_name(number: u64, id: u64) -> Vec<u8> {
    format!("{number}-{id:016x}").into_bytes()
}

impl<'r> Journal<'r> {
    /// Opens and locks the state directory; makes it (mode 0700) if it is not there.
    pub(super) fn open(root: &'r Root) -> Result<Self, TreeError> {
        let top = top(root, None).map_err(failed(root, "open the directory of"))?;
        let before = top.stat(b".").map_err(failed(root, "open the directory of"))?;
        match top.make_dir(NAME) {
            // The directory is no part of the tree, so the root's time is not touched for it.
            Ok(()) => {
                top.set_mtime(b".", mtime_of(&before)).map_err(failed(root, "make"))?;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(root, "make")(error)),
        }
        Self::lock(root, &top)
    }

    /// Opens and locks the state directory if it is there.
    pub(super) fn open_existing(root: &'r Root) -> Result<Option<Self>, TreeError> {
        let top = top(root, None).map_err(failed(root, "open the directory of"))?;
        match top.try_stat(NAME).map_err(failed(root, "look for"))? {
            Some(_) => Self::lock(root, &top).map(Some),
            None => Ok(None),
        }
    }

    fn lock(root: &'r Root, top: &Dir) -> Result<Self, TreeError> {
        let dir = top.dir(NAME).map_err(|error| match error {
            Errno::NOTDIR | Errno::LOOP => TreeError::new(
                ErrorKind::Unsupported,
                format!(
                    "{} is where updates keep their state and has to be a directory; move what is \
                     there away; nothing was changed",
                    root.place(&state_path())
                ),
            ),
            error => failed(root, "open")(error),
        })?;
        let handle = dir.dir(b".").map_err(failed(root, "open"))?;
        let lock = FileLock::on(File::from(handle.into_fd()))
            .map_err(|error| TreeError::io("lock", root.label(), &state_path(), error))?;
        let Some(lock) = lock else {
            let message = format!(
                "another update of {} is under way; try again when it is done",
                root.label().display()
            );
            return Err(TreeError::new(ErrorKind::Busy, message));
        };
        Ok(Self { root, dir, _lock: lock })
    }

    pub(super) fn root(&self) -> &'r Root {
        self.root
    }

    /// Shorthand for `map_err`.
    fn failed<'a>(&'a self, step: &'a str) -> impl Fn(Errno) -> TreeError + 'a {
        failed(self.root, step)
    }

    /// Removes the state directories, which must be empty.
    pub(super) fn remove(root: &Root) -> Result<(), TreeError> {
        for mount in root.mounts().map(Some).chain([None]) {
            let top = top(root, mount).map_err(failed(root, "open the directory of"))?;
            top.remove_dir(NAME).map_err(failed(root, "remove"))?;
        }
        Ok(())
    }

    /// All transactions, oldest first.
    pub(super) fn list(&self) -> Result<Vec<Txn>, TreeError> {
        let names = self.dir.names().map_err(self.failed("list"))?;
        let mut list: Vec<Txn> = names.iter().filter_map(|name| Txn::parse(name)).collect();
        list.sort_unstable();
        Ok(list)
    }

    /// Makes an empty stage on the root's file system and on `mounts`, under the next number.
    pub(super) fn begin(&self, id: u64, mounts: &[ImagePath]) -> Result<Txn, TreeError> {
        let last = self.list()?.last().map_or(0, |txn| txn.number);
        let txn = Txn { number: last + 1, state: State::Staged };
        let failed = self.failed("make the stage in");
        let make = |parent: &Dir, name: &[u8]| -> Result<(), Errno> {
            parent.make_dir(name)?;
            let dir = parent.dir(name)?;
            dir.make_dir(STAGED)?;
            dir.make_dir(BASE)
        };
        make(&self.dir, &txn.name()).map_err(&failed)?;
        for at in mounts.iter().filter(|at| !self.root.is_on_fat(at)) {
            let failed = |error| TreeError::io("make the stage in", self.root.label(), at, error);
            let top = top(self.root, Some(at)).map_err(failed)?;
            match top.make_dir(NAME) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(error)),
            }
            let part = top.dir(NAME).map_err(failed)?;
            make(&part, &part_name(txn.number, id)).map_err(failed)?;
        }
        Ok(txn)
    }

    /// Where what belongs to the file system at `mount` is staged.
    pub(super) fn staged(
        &self,
        txn: Txn,
        id: u64,
        mount: Option<&ImagePath>,
    ) -> Result<Dir, TreeError> {
        self.part(txn, id, mount)?.dir(STAGED).map_err(self.failed("open the stage in"))
    }

    /// Where what was on the file system at `mount` is kept.
    pub(super) fn base(
        &self,
        txn: Txn,
        id: u64,
        mount: Option<&ImagePath>,
    ) -> Result<Dir, TreeError> {
        self.part(txn, id, mount)?.dir(BASE).map_err(self.failed("open the stage in"))
    }

    fn part(&self, txn: Txn, id: u64, mount: Option<&ImagePath>) -> Result<Dir, TreeError> {
        let Some(at) = mount else {
            return self.dir.dir(&txn.name()).map_err(self.failed("open the stage in"));
        };
        let part = top(self.root, Some(at))
            .and_then(|top| top.dir(NAME))
            .and_then(|dir| dir.dir(&part_name(txn.number, id)));
        match part {
            Err(Errno::NOENT) => {
                let message = format!(
                    "transaction {} has a part on the file system of {at}, which is not there; mount \
                     it and try again",
                    txn.number
                );
                Err(TreeError::new(ErrorKind::Unsupported, message))
            }
            other => other
                .map_err(|error| TreeError::io("open the stage in", self.root.label(), at, error)),
        }
    }

    /// Keeps what the transaction is to do.
    pub(super) fn write_plan(&self, txn: Txn, plan: &Plan) -> Result<(), TreeError> {
        let unusable = |error: PlanError| self.unreadable(txn, error);
        let bytes = plan.encode().map_err(unusable)?;
        let dir = self.dir.dir(&txn.name()).map_err(self.failed("open the stage in"))?;
        let mut file = dir.create(PLAN).map_err(self.failed("write the plan in"))?;
        hit(Op::Write).map_err(self.failed("write the plan in"))?;
        file.write_all(&bytes).map_err(|error| {
            TreeError::io("write the plan in", self.root.label(), &state_path(), error)
        })
    }

    pub(super) fn plan(&self, txn: Txn) -> Result<Plan, TreeError> {
        let failed = self.failed("read the journal in");
        let dir = self.dir.dir(&txn.name()).map_err(&failed)?;
        let len = match dir.try_stat(PLAN).map_err(&failed)? {
            Some(stat) => len_of(&stat),
            None => return Err(self.unreadable(txn, PlanError::Damaged("it is not there"))),
        };
        if len > MAX_PLAN_LEN {
            return Err(self.unreadable(txn, PlanError::Damaged("it is too long")));
        }
        let mut bytes = Vec::new();
        let mut file = dir.open(PLAN).map_err(&failed)?;
        file.read_to_end(&mut bytes).map_err(|error| {
            TreeError::io("read the journal in", self.root.label(), &state_path(), error)
        })?;
        Plan::decode(&bytes).map_err(|error| self.unreadable(txn, error))
    }

    fn unreadable(&self, txn: Txn, error: PlanError) -> TreeError {
        let place = format!("{}{STATE_DIR}/{}", self.root.label().display(), txn.number);
        match error {
            PlanError::Damaged(what) => {
                let message = format!(
                    "the plan of transaction {} in {place}* is damaged: {what}; nothing was changed \
                     now, compare the tree with its version (`vireo-agent verify`)",
                    txn.number
                );
                TreeError::new(ErrorKind::Corrupt, message)
            }
            PlanError::Newer(version) => {
                let message = format!(
                    "transaction {} in {place}* was begun by a newer program (layout {version}); finish \
                     it with that program",
                    txn.number
                );
                TreeError::new(ErrorKind::Unsupported, message)
            }
        }
    }

    /// Waits until everything written to the file systems of a transaction is on the disk.
    pub(super) fn barrier(&self, mounts: &[ImagePath]) -> Result<(), TreeError> {
        for at in mounts {
            let sync = top(self.root, Some(at)).and_then(|top| top.sync_all());
            sync.map_err(|error| TreeError::io("sync", self.root.label(), at, error))?;
        }
        self.dir.sync_all().map_err(self.failed("sync"))
    }

    /// Takes a transaction to its next state, durably unless it is only tidying up.
    pub(super) fn advance(&self, txn: Txn, state: State) -> Result<Txn, TreeError> {
        let failed = self.failed("take the next step in");
        let next = Txn { state, ..txn };
        self.dir.rename_to(&txn.name(), &self.dir, &next.name()).map_err(&failed)?;
        if state != State::Past {
            self.dir.sync().map_err(&failed)?;
        }
        Ok(next)
    }

    /// When a transaction was last taken to a next state, in seconds since 1970, and how many
    /// bytes it keeps that nothing else holds.
    pub(super) fn footprint(&self, txn: Txn, plan: &Plan) -> Result<(i64, u64), TreeError> {
        let failed = self.failed("look at");
        let dir = self.dir.dir(&txn.name()).map_err(&failed)?;
        let time = dir.stat(b".").map_err(&failed)?.st_ctime;
        let mut len = 0;
        let mounts = plan.mounts.iter().filter(|at| !self.root.is_on_fat(at));
        for mount in mounts.map(Some).chain([None]) {
            let base = self.base(txn, plan.id, mount)?;
            for name in base.names().map_err(&failed)? {
                let stat = base.try_stat(&name).map_err(&failed)?;
                // Another name would hold the bytes anyway.
                let only = stat.filter(|stat| stat.st_nlink == 1);
                len += only.map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
            }
        }
        Ok((time, len))
    }

    /// Removes a transaction; renames first, durably, so that a crash halfway never leaves one with
    /// parts missing. Parts on other file systems go last: [`Journal::sweep`] finds what is left.
    pub(super) fn throw_away(&self, txn: Txn) -> Result<(), TreeError> {
        let failed = self.failed("clean up");
        empty_garbage(&self.dir).map_err(&failed)?;
        match self.dir.rename_to(&txn.name(), &self.dir, GARBAGE) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        if txn.state != State::Staged {
            self.dir.sync().map_err(&failed)?;
        }
        empty_garbage(&self.dir).map_err(&failed)?;
        self.sweep_parts()
    }

    /// Removes stages that were not committed and whatever no transaction owns; whether there
    /// was a stage.
    pub(super) fn sweep(&self) -> Result<bool, TreeError> {
        let staged: Vec<Txn> =
            self.list()?.into_iter().filter(|txn| txn.state == State::Staged).collect();
        for txn in &staged {
            self.throw_away(*txn)?;
        }
        empty_garbage(&self.dir).map_err(self.failed("clean up"))?;
        self.sweep_parts()?;
        Ok(!staged.is_empty())
    }

    fn sweep_parts(&self) -> Result<(), TreeError> {
        let mut owned = None;
        for at in self.root.mounts() {
            if self.root.is_on_fat(at) {
                super::fat::tidy(self.root, at)?;
                continue;
            }
            let failed = |error| TreeError::io("clean up", self.root.label(), at, error);
            let dir = match top(self.root, Some(at)).and_then(|top| top.dir(NAME)) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(failed(error)),
            };
            empty_garbage(&dir).map_err(failed)?;
            let owned = match &owned {
                Some(owned) => owned,
                None => owned.insert(self.owned_parts()?),
            };
            for name in dir.names().map_err(failed)? {
                if !owned.contains(&name) {
                    dir.rename_to(&name, &dir, GARBAGE).map_err(failed)?;
                    empty_garbage(&dir).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// Names of the parts of transactions that are committed or over.
    fn owned_parts(&self) -> Result<Vec<Vec<u8>>, TreeError> {
        let txns = self.list()?.into_iter().filter(|txn| txn.state != State::Staged);
        txns.map(|txn| Ok(part_name(txn.number, self.plan(txn)?.id))).collect()
    }
}

/// The root directory of a file system of the tree.
fn top(root: &Root, mount: Option<&ImagePath>) -> Result<Dir, Errno> {
    match mount {
        Some(at) => root.dir(at),
        None => root.dir(&ImagePath::root()),
    }
}

/// The device of the file system at `mount`.
pub(super) fn device(root: &Root, mount: Option<&ImagePath>) -> Result<u64, Errno> {
    fstat(top(root, mount)?.fd()).map(|stat| stat.st_dev)
}

fn empty_garbage(dir: &Dir) -> Result<(), Errno> {
    match dir.dir(GARBAGE) {
        Ok(garbage) => clear(&garbage)?,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    }
    dir.remove_dir(GARBAGE).map(drop)
}

/// Removes everything in `dir`: two levels of names that this module made, and directories that
/// were staged or replaced, which a crash may have left with what was put into them.
fn clear(dir: &Dir) -> Result<(), Errno> {
    for name in dir.names()? {
        match dir.dir(&name) {
            Ok(below) => {
                clear(&below)?;
                dir.remove_dir(&name)?;
            }
            // A symbolic link, or anything else that is no directory.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {
                dir.unlink(&name)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_transactions_are_read_back() {
        for state in [State::Staged, State::Committed, State::Done, State::Past] {
            let txn = Txn { number: 12, state };
            assert_eq!(Txn::parse(&txn.name()), Some(txn));
        }
        for odd in ["", "x", "12-", "12-other", "-done", "garbage", "1-0000000000000001"] {
            assert_eq!(Txn::parse(odd.as_bytes()), None, "{odd:?}");
        }
    }
}
