//! The state directory of a tree: what is staged, and how far the update is.

use std::io::{Read as _, Write as _};

use rustix::fs::{fstat, fsync, syncfs};
use rustix::io::Errno;
use vireo_delta::{Head, TrustedKeys};
use vireo_model::{ChangeSet, ImagePath};
use vireo_sys::lock::FileLock;

use super::Replaced;
use super::check::parse_number;
use crate::dir::Dir;
use crate::{ErrorKind, Root, TreeError};

/// The state directory's name in the tree's root; it belongs to no version.
pub const STATE_DIR: &str = "/.vireo";

const TXN: &[u8] = b"txn";
const DONE: &[u8] = b"done";
const GARBAGE: &[u8] = b"garbage";
const STAGED: &[u8] = b"s";
const BASE: &[u8] = b"b";
const HEAD: &[u8] = b"head";
const COMMIT: &[u8] = b"COMMIT";

/// The state directory, locked against other updates for as long as this value lives.
#[derive(Debug)]
pub(super) struct Journal {
    dir: Dir,
    dev: u64,
    _lock: FileLock,
}

fn state_path() -> ImagePath {
    ImagePath::parse(STATE_DIR.as_bytes()).unwrap_or_else(|_| ImagePath::root())
}

fn failed<'a>(root: &'a Root, step: &'a str) -> impl Fn(Errno) -> TreeError + 'a {
    move |error| TreeError::io(step, root.label(), &state_path(), error)
}

impl Journal {
    pub(super) fn exists(root: &Root) -> Result<bool, TreeError> {
        let (top, name) = Self::place(root)?;
        Ok(top.try_stat(&name).map_err(failed(root, "look for"))?.is_some())
    }

    /// Opens and locks the state directory; makes it (mode 0700) if it is not there.
    pub(super) fn open(root: &Root) -> Result<Self, TreeError> {
        let (top, name) = Self::place(root)?;
        match top.make_dir(&name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(root, "make")(error)),
        }
        let dir = top.dir(&name).map_err(failed(root, "open"))?;
        let dev = fstat(dir.fd()).map_err(failed(root, "read the metadata of"))?.st_dev;
        let handle = dir.dir(b".").map_err(failed(root, "open"))?;
        let file = std::fs::File::from(handle.into_fd());
        let lock = FileLock::on(file)
            .map_err(|error| TreeError::io("lock", root.label(), &state_path(), error))?;
        let Some(lock) = lock else {
            let message = format!(
                "another update of {} is under way; try again when it is done",
                root.label().display()
            );
            return Err(TreeError::new(ErrorKind::Busy, message));
        };
        Ok(Self { dir, dev, _lock: lock })
    }

    pub(super) fn remove(root: &Root) -> Result<(), TreeError> {
        let (top, name) = Self::place(root)?;
        top.remove_dir(&name).map(drop).map_err(failed(root, "remove"))
    }

    fn place(root: &Root) -> Result<(Dir, Vec<u8>), TreeError> {
        let top = ImagePath::root();
        let dir = root.dir(&top).map_err(root.failed("open", &top))?;
        Ok((dir, state_path().name().to_vec()))
    }

    /// The device that everything is staged on.
    pub(super) fn dev(&self) -> u64 {
        self.dev
    }

    /// Makes an empty stage; leftovers that were never committed go.
    pub(super) fn begin(&self, root: &Root) -> Result<(), TreeError> {
        if self.is_committed(root)? {
            let message = format!(
                "an update of {} was interrupted and has to be completed first (`vireo-agent run` does it at start)",
                root.label().display()
            );
            return Err(TreeError::new(ErrorKind::Busy, message));
        }
        self.discard(root)?;
        self.forget_done(root)?;
        let failed = failed(root, "make the stage in");
        self.dir.make_dir(TXN).map_err(&failed)?;
        let txn = self.dir.dir(TXN).map_err(&failed)?;
        txn.make_dir(STAGED).map_err(&failed)?;
        txn.make_dir(BASE).map_err(&failed)
    }

    /// Keeps the bundle's head, from which recovery learns what was to be done.
    pub(super) fn write_head(&self, root: &Root, head: &[u8]) -> Result<(), TreeError> {
        let txn = self.txn(root)?;
        let mut file = txn.create(HEAD).map_err(failed(root, "stage the bundle's head in"))?;
        file.write_all(head).map_err(|error| {
            TreeError::io("stage the bundle's head in", root.label(), &state_path(), error)
        })
    }

    pub(super) fn staged(&self, root: &Root) -> Result<Dir, TreeError> {
        self.txn(root)?.dir(STAGED).map_err(failed(root, "open the stage in"))
    }

    pub(super) fn base(&self, root: &Root) -> Result<Dir, TreeError> {
        self.txn(root)?.dir(BASE).map_err(failed(root, "open the stage in"))
    }

    fn txn(&self, root: &Root) -> Result<Dir, TreeError> {
        self.dir.dir(TXN).map_err(failed(root, "open the stage in"))
    }

    /// Barrier, then the commit record. After a crash before the record's fsync the update may
    /// count as committed or not; either way all that was staged is on the disk.
    pub(super) fn commit(&self, root: &Root) -> Result<(), TreeError> {
        let failed = failed(root, "sync the stage in");
        syncfs(self.dir.fd()).map_err(&failed)?;
        let txn = self.txn(root)?;
        let record = txn.create(COMMIT).map_err(&failed)?;
        fsync(&record).map_err(&failed)?;
        txn.sync()
            .map_err(|error| TreeError::io("sync the stage in", root.label(), &state_path(), error))
    }

    pub(super) fn is_committed(&self, root: &Root) -> Result<bool, TreeError> {
        let failed = failed(root, "read the journal in");
        match self.dir.dir(TXN) {
            Ok(txn) => Ok(txn.try_stat(COMMIT).map_err(&failed)?.is_some()),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Barrier, then the stage counts as done. A crash in between repeats the renames.
    pub(super) fn mark_done(&self, root: &Root) -> Result<(), TreeError> {
        let failed = failed(root, "complete the update in");
        syncfs(self.dir.fd()).map_err(&failed)?;
        self.dir.rename_to(TXN, &self.dir, DONE).map_err(&failed)?;
        fsync(self.dir.fd()).map_err(&failed)
    }

    pub(super) fn is_done(&self, root: &Root) -> Result<bool, TreeError> {
        Ok(self.dir.try_stat(DONE).map_err(failed(root, "read the journal in"))?.is_some())
    }

    /// Removes a stage that was not committed; whether there was one.
    pub(super) fn discard(&self, root: &Root) -> Result<bool, TreeError> {
        self.throw_away(root, TXN)
    }

    /// Removes a finished stage, and with it the last names of the base's inodes.
    pub(super) fn forget_done(&self, root: &Root) -> Result<(), TreeError> {
        self.throw_away(root, DONE).map(drop)
    }

    /// Renames first, so that a crash halfway never leaves a stage with parts missing.
    fn throw_away(&self, root: &Root, name: &[u8]) -> Result<bool, TreeError> {
        let failed = failed(root, "clean up");
        self.empty_garbage().map_err(&failed)?;
        match self.dir.rename_to(name, &self.dir, GARBAGE) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
        self.empty_garbage().map_err(&failed)?;
        Ok(true)
    }

    /// The garbage holds two levels of names that this module made.
    fn empty_garbage(&self) -> Result<(), Errno> {
        let garbage = match self.dir.dir(GARBAGE) {
            Ok(garbage) => garbage,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error),
        };
        for name in garbage.names()? {
            match garbage.dir(&name) {
                Ok(below) => {
                    for file in below.names()? {
                        below.unlink(&file)?;
                    }
                    garbage.remove_dir(&name)?;
                }
                Err(Errno::NOTDIR) => {
                    garbage.unlink(&name)?;
                }
                Err(error) => return Err(error),
            }
        }
        self.dir.remove_dir(GARBAGE).map(drop)
    }

    /// The head of the bundle of the update that is or was under way.
    pub(super) fn head(&self, root: &Root) -> Result<Head, TreeError> {
        let corrupt = |what: &dyn std::fmt::Display| {
            let message = format!(
                "the journal in {}{STATE_DIR} cannot be read: {what}",
                root.label().display()
            );
            TreeError::new(ErrorKind::Corrupt, message)
        };
        let txn = match self.dir.dir(TXN) {
            Err(Errno::NOENT) => self.dir.dir(DONE),
            other => other,
        };
        let txn = txn.map_err(failed(root, "open the journal in"))?;
        let mut bytes = Vec::new();
        let mut file = txn.open(HEAD).map_err(failed(root, "open the journal in"))?;
        file.read_to_end(&mut bytes).map_err(|error| corrupt(&error))?;
        // Its signer was trusted when it was staged; here the signature shows that it is whole.
        let signer = vireo_delta::Header::decode(&bytes).map_err(|error| corrupt(&error))?.signer;
        let head = Head::read(&bytes, &TrustedKeys::from_iter([signer]));
        head.map_err(|error| corrupt(&error))
    }

    /// The files of the base that a done update keeps alive.
    pub(super) fn replaced(
        &self,
        root: &Root,
        changes: &ChangeSet,
    ) -> Result<Vec<Replaced>, TreeError> {
        let failed = failed(root, "read the journal in");
        let done = self.dir.dir(DONE).map_err(&failed)?;
        let base = done.dir(BASE).map_err(&failed)?;
        let mut replaced = Vec::new();
        for name in base.names().map_err(&failed)? {
            let change = parse_number(&name).and_then(|number| changes.changes.get(number));
            if let (Some(change), Some(stat)) = (change, base.try_stat(&name).map_err(&failed)?) {
                let path = change.path.clone();
                replaced.push(Replaced { path, dev: stat.st_dev, ino: stat.st_ino });
            }
        }
        Ok(replaced)
    }
}
