//! Makes an update's changes in a copy of the machine's files.
//!
//! Every step stays beneath the copy's root and follows no symbolic link: a link that leads
//! elsewhere would lead to the machine's own files.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, fchown, mkdirat, openat,
    openat2, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::{Item, Rights, What};

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Makes `changes` in the copy at `root`; the files are in the directories `parts`.
pub(super) fn change(root: &Path, parts: &[PathBuf], changes: &[Item]) -> Result<(), String> {
    let root = open_dir(CWD, root).map_err(|error| format!("{}: {error}", root.display()))?;
    let failed = |item: &Item, error: io::Error| {
        format!("{} cannot be shown: {error}", String::from_utf8_lossy(&item.path))
    };
    // What goes goes from the bottom up, what comes comes from the top down.
    let gone = changes.iter().rev().filter(|item| matches!(item.what, What::Gone));
    let rest = changes.iter().filter(|item| !matches!(item.what, What::Gone));
    for item in gone.chain(rest) {
        make(&root, parts, item).map_err(|error| failed(item, error))?;
    }
    Ok(())
}

fn make(root: &OwnedFd, parts: &[PathBuf], item: &Item) -> io::Result<()> {
    let below = item.path.strip_prefix(b"/").unwrap_or(&item.path);
    if below.is_empty() {
        return Ok(());
    }
    let (parent, name) = match below.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&below[..at], &below[at + 1..]),
        None => (b".".as_slice(), below),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = match openat2(root, parent, flags, Mode::empty(), BENEATH) {
        // What it was in is gone already.
        Err(Errno::NOENT | Errno::NOTDIR) if matches!(item.what, What::Gone) => return Ok(()),
        other => other?,
    };
    match &item.what {
        What::Gone => remove(&dir, name),
        What::Dir(rights) => {
            match mkdirat(&dir, name, Mode::RWXU) {
                Err(Errno::EXIST) if is_dir(&dir, name) => {}
                Err(Errno::EXIST) => {
                    remove(&dir, name)?;
                    mkdirat(&dir, name, Mode::RWXU)?;
                }
                other => other?,
            }
            set_rights(&dir, name, *rights)
        }
        What::Link { target } => {
            remove(&dir, name)?;
            Ok(symlinkat(target.as_slice(), &dir, name)?)
        }
        What::File { part, name: staged, rights } => {
            remove(&dir, name)?;
            let part = parts.get(*part).ok_or(Errno::NOENT)?;
            copy(&open_dir(CWD, part)?, staged, &dir, name, *rights)
        }
        What::Rights(rights) => set_rights(&dir, name, *rights),
    }
}

fn open_dir(at: rustix::fd::BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(at, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn is_dir(dir: &OwnedFd, name: &[u8]) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty()).is_ok()
}

/// Removes what is there, if anything is, with all that is in it.
fn remove(dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = openat(dir, name, flags, Mode::empty())?;
    let entries = rustix::fs::Dir::read_from(&inner)?;
    for entry in entries {
        let entry = entry?;
        let entry = entry.file_name().to_bytes();
        if entry != b"." && entry != b".." {
            remove(&inner, entry)?;
        }
    }
    Ok(unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

fn copy(
    from: &OwnedFd,
    staged: &[u8],
    dir: &OwnedFd,
    name: &[u8],
    rights: Rights,
) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut source = File::from(openat(from, staged, flags, Mode::empty())?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut target = File::from(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
    io::copy(&mut source, &mut target)?;
    fchown(&target, Some(Uid::from_raw(rights.uid)), Some(Gid::from_raw(rights.gid)))?;
    Ok(fchmod(&target, Mode::from_raw_mode(rights.mode))?)
}

fn set_rights(dir: &OwnedFd, name: &[u8], rights: Rights) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(rights.uid), Gid::from_raw(rights.gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match openat(dir, name, flags, Mode::empty()) {
        Ok(file) => Ok(fchmod(&file, Mode::from_raw_mode(rights.mode))?),
        // A link has no mode of its own.
        Err(Errno::LOOP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
