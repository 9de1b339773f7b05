//! Steps on FAT, where there are no links, no inode numbers that last, and no journal.
//!
//! What is staged for such a path, and a copy of what stood there, lie in the stage of the root's file system. So a step
//! can be made as often as it takes: the file is written beside, under [`PART`], made durable and renamed. Whether a
//! step has been made, contents say.
//!
//! # What a crash leaves
//!
//! Between two steps what every transaction leaves: a mixture that recovery completes. Within one, on a FAT that lost
//! power, anything at the path that the step is about; so recovery takes whatever is there for what the crash left.

use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

use rustix::io::Errno;
use vireo_model::{Digest, Hasher, ImagePath, Node, plain_dir, plain_file};

use super::journal::NAME;
use super::plan::Step;
use super::stage::{COPY_LEN, Places, name_of};
use crate::dir::Dir;
use crate::fault::{Op, hit};
use crate::node::{digest, is_dir, is_regular, len_of};
use crate::{ErrorKind, Root, TreeError};

/// Where a file is written before it gets its name, in the state directory.
const PART: &[u8] = b"part";

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Dir,
    /// Its length and content.
    File(u64, Digest),
    /// What FAT has not; so it is none of ours.
    Other,
}

impl Found {
    pub(super) fn at(root: &Root, path: &ImagePath) -> Result<Self, TreeError> {
        let Some((dir, stat)) = super::standing::stat(root, path)? else {
            return Ok(Self::Nothing);
        };
        if is_dir(&stat) {
            return Ok(Self::Dir);
        }
        if !is_regular(&stat) {
            return Ok(Self::Other);
        }
        Ok(Self::File(len_of(&stat), digest(root, &dir, path.name(), path)?))
    }

    pub(super) fn is(self, node: Option<&Node>) -> bool {
        match (self, node) {
            (Self::Nothing, None) => true,
            (Self::Dir, Some(node)) => node.is_dir(),
            (Self::File(_, found), Some(node)) => {
                node.content().is_some_and(|(_, content)| content == found)
            }
            _ => false,
        }
    }

    /// As a tree has it.
    pub(super) fn node(self) -> Option<Node> {
        match self {
            Self::Nothing | Self::Other => None,
            Self::Dir => Some(plain_dir()),
            Self::File(len, content) => Some(plain_file(len, content)),
        }
    }
}

/// Copies what stands at the path of `step` to where it is kept.
pub(super) fn keep(
    root: &Root,
    places: &Places,
    number: usize,
    step: &Step,
) -> Result<(), TreeError> {
    let (path, failed) = (&step.path, root.failed("keep", &step.path));
    let mut from = root.open_file(path)?;
    let to = places.base(root, path).create(&name_of(number)).map_err(&failed)?;
    let (mut hasher, mut buffer, mut at) = (Hasher::new(), vec![0; COPY_LEN], 0);
    loop {
        let len = from.read(&mut buffer).map_err(root.failed("keep", path))?;
        if len == 0 {
            break;
        }
        hasher.update(&buffer[..len]);
        hit(Op::Write).map_err(&failed)?;
        to.write_all_at(&buffer[..len], at).map_err(root.failed("keep", path))?;
        at += len as u64;
    }
    let kept = Some(hasher.finish());
    if step.before.as_ref().and_then(Node::content).map(|(_, content)| content) != kept {
        return Err(super::check::changed_meanwhile(root, path));
    }
    Ok(())
}

/// Puts what is staged at the path of `step`.
pub(super) fn place(
    root: &Root,
    places: &Places,
    number: usize,
    step: &Step,
) -> Result<(), TreeError> {
    let (path, failed) = (&step.path, root.failed("put in place", &step.path));
    let found = Found::at(root, path)?;
    if found.is(step.after.as_ref()) {
        return Ok(()); // Done before an interruption.
    }
    let (dir, name) = root.require("put in place", path)?;
    match found {
        Found::Dir => drop(dir.remove_dir(name).map_err(&failed)?),
        Found::File(..) | Found::Other if step.is_dir() => drop(dir.unlink(name).map_err(&failed)?),
        _ => {}
    }
    if step.is_dir() {
        dir.make_dir(name).map_err(&failed)?;
    } else {
        let state = state_dir(root, path).map_err(&failed)?;
        write(places.staged(root, path), &name_of(number), &state).map_err(&failed)?;
        state.rename_to(PART, &dir, name).map_err(&failed)?;
    }
    // In this order onto the disk: an entry of a boot loader must not come before its kernel.
    dir.sync_all().map_err(&failed)
}

/// A durable copy of the staged file `name`, as the file [`PART`] in `state`.
fn write(staged: &Dir, name: &[u8], state: &Dir) -> Result<(), Errno> {
    state.unlink(PART)?;
    let (from, to) = (staged.open(name)?, state.create(PART)?);
    let (mut buffer, mut at) = (vec![0; COPY_LEN], 0);
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    loop {
        let len = from.read_at(&mut buffer, at).map_err(errno)?;
        if len == 0 {
            break;
        }
        hit(Op::Write)?;
        to.write_all_at(&buffer[..len], at).map_err(errno)?;
        at += len as u64;
    }
    to.sync_all().map_err(errno)
}

/// The state directory of the file system that `path` is on.
fn state_dir(root: &Root, path: &ImagePath) -> Result<Dir, Errno> {
    let top = root.dir(root.mount_of(path).unwrap_or(&ImagePath::root()))?;
    match top.make_dir(NAME) {
        Ok(()) | Err(Errno::EXIST) => top.dir(NAME),
        Err(error) => Err(error),
    }
}

/// Removes what this module needs on the FAT file system at `at`.
pub(super) fn tidy(root: &Root, at: &ImagePath) -> Result<(), TreeError> {
    let failed = root.failed("clean up", at);
    let top = root.dir(at).map_err(&failed)?;
    match top.dir(NAME) {
        Ok(state) => drop(state.unlink(PART).map_err(&failed)?),
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    match top.remove_dir(NAME) {
        // What somebody else has there is nothing to us.
        Ok(_) | Err(Errno::NOTEMPTY) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Fails if `path` cannot be told on FAT from another name that is there.
pub(super) fn check_name(root: &Root, path: &ImagePath) -> Result<(), TreeError> {
    let Some(dir) = path.parent().and_then(|parent| root.dir(&parent).ok()) else { return Ok(()) };
    let names = dir.names().map_err(root.failed("list", path))?;
    let is_like =
        |name: &&Vec<u8>| name.eq_ignore_ascii_case(path.name()) && name.as_slice() != path.name();
    let Some(other) = names.iter().find(is_like) else { return Ok(()) };
    Err(TreeError::new(
        ErrorKind::Unsupported,
        format!(
            "{path} differs from {} in large and small letters alone, which is nothing to vfat; remove that \
             by an update of its own; nothing was changed",
            String::from_utf8_lossy(other)
        ),
    ))
}
