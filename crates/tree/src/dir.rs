//! One open directory; every operation names one entry of it and follows nothing.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, StatxAttributes, StatxFlags, Timespec,
    Timestamps, UTIME_OMIT, XattrFlags, chmodat, chownat, fchmod, fchown, fgetxattr, flistxattr,
    fremovexattr, fsetxattr, fstat, futimens, lgetxattr, linkat, llistxattr, lremovexattr,
    lsetxattr, makedev, mkdirat, mknodat, openat, readlinkat, renameat, renameat_with, statat,
    statx, symlinkat, syncfs, unlinkat, utimensat,
};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use vireo_model::{DeviceKind, Node, Timestamp, Xattrs};

use crate::fault::{Op, hit};

/// XFS lists each ACL a second time in its own form.
const XFS_ACL: &[u8] = b"trusted.SGI_ACL_";

/// First try for attribute lists and values; grown when the kernel says that it is too small.
const XATTR_BUFFER_LEN: usize = 1 << 10;

#[derive(Debug)]
pub(crate) struct Dir(OwnedFd);

fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

impl Dir {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// The names in it, sorted, without `.` and `..`.
    pub(crate) fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        hit(Op::Look)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn stat(&self, name: &[u8]) -> Result<Stat, Errno> {
        hit(Op::Look)?;
        statat(&self.0, os(name), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The entry's metadata; `None` if there is no such entry. Only ENOENT and ENOTDIR mean that.
    pub(crate) fn try_stat(&self, name: &[u8]) -> Result<Option<Stat>, Errno> {
        match self.stat(name) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the entry is immutable or append-only; file systems that know no such thing have
    /// none.
    pub(crate) fn is_frozen(&self, name: &[u8]) -> Result<bool, Errno> {
        hit(Op::Look)?;
        let stat = match statx(&self.0, os(name), AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MODE) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NOSYS) => return Ok(false),
            Err(error) => return Err(error),
        };
        let frozen = StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
        Ok(stat.stx_attributes.intersects(frozen))
    }

    pub(crate) fn dir(&self, name: &[u8]) -> Result<Self, Errno> {
        hit(Op::Look)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.0, os(name), flags, Mode::empty()).map(Self)
    }

    /// Opens a regular file for reading without leaving a trace in its access time, which
    /// later tells whether a service has read its configuration.
    pub(crate) fn open(&self, name: &[u8]) -> Result<File, Errno> {
        hit(Op::Look)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match openat(&self.0, os(name), flags | OFlags::NOATIME, Mode::empty()) {
            // Only the owner and root may ask for it.
            Err(Errno::PERM) => openat(&self.0, os(name), flags, Mode::empty()),
            other => other,
        }
        .map(File::from)
    }

    /// Makes a regular file that was not there, readable by nobody else yet.
    pub(crate) fn create(&self, name: &[u8]) -> Result<File, Errno> {
        hit(Op::Make(self.0.as_fd(), name))?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.0, os(name), flags, Mode::RUSR | Mode::WUSR).map(File::from)
    }

    pub(crate) fn make_dir(&self, name: &[u8]) -> Result<(), Errno> {
        hit(Op::Make(self.0.as_fd(), name))?;
        mkdirat(&self.0, os(name), Mode::RWXU)
    }

    pub(crate) fn make_symlink(&self, name: &[u8], target: &[u8]) -> Result<(), Errno> {
        hit(Op::Make(self.0.as_fd(), name))?;
        symlinkat(os(target), &self.0, os(name))
    }

    pub(crate) fn make_special(&self, name: &[u8], kind: FileType, dev: u64) -> Result<(), Errno> {
        hit(Op::Make(self.0.as_fd(), name))?;
        mknodat(&self.0, os(name), kind, Mode::RUSR | Mode::WUSR, dev)
    }

    pub(crate) fn make_device(
        &self,
        name: &[u8],
        kind: DeviceKind,
        major: u32,
        minor: u32,
    ) -> Result<(), Errno> {
        let file_type = match kind {
            DeviceKind::Char => FileType::CharacterDevice,
            DeviceKind::Block => FileType::BlockDevice,
        };
        self.make_special(name, file_type, makedev(major, minor))
    }

    pub(crate) fn link_to(&self, name: &[u8], to: &Self, to_name: &[u8]) -> Result<(), Errno> {
        hit(Op::Make(to.0.as_fd(), to_name))?;
        linkat(&self.0, os(name), &to.0, os(to_name), AtFlags::empty())
    }

    pub(crate) fn rename_to(&self, name: &[u8], to: &Self, to_name: &[u8]) -> Result<(), Errno> {
        hit(Op::Rename(self.entry(name), to.entry(to_name), false))?;
        renameat(&self.0, os(name), &to.0, os(to_name))
    }

    /// Has two entries change places.
    pub(crate) fn exchange(&self, name: &[u8], with: &Self, with_name: &[u8]) -> Result<(), Errno> {
        hit(Op::Rename(self.entry(name), with.entry(with_name), true))?;
        renameat_with(&self.0, os(name), &with.0, os(with_name), RenameFlags::EXCHANGE)
    }

    fn entry<'a>(&'a self, name: &'a [u8]) -> (BorrowedFd<'a>, &'a [u8]) {
        (self.0.as_fd(), name)
    }

    /// Removes an entry that is no directory; `false` if it was not there.
    pub(crate) fn unlink(&self, name: &[u8]) -> Result<bool, Errno> {
        hit(Op::Remove(self.0.as_fd(), name))?;
        match unlinkat(&self.0, os(name), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes an empty directory; `false` if it was not there.
    pub(crate) fn remove_dir(&self, name: &[u8]) -> Result<bool, Errno> {
        hit(Op::Remove(self.0.as_fd(), name))?;
        match unlinkat(&self.0, os(name), AtFlags::REMOVEDIR) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn link_target(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        readlinkat(&self.0, os(name), Vec::new()).map(CString::into_bytes)
    }

    /// Gives the entry the owner, mode, attributes and time of `node`, in the order that makes
    /// each survive the next: a change of owner clears set-user-ID bits and capabilities.
    pub(crate) fn set_metadata(&self, name: &[u8], node: &Node) -> Result<(), Errno> {
        hit(Op::Change(self.0.as_fd(), name))?;
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        chownat(&self.0, os(name), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        let is_symlink = matches!(node.kind, vireo_model::NodeKind::Symlink { .. });
        if !is_symlink {
            // Linux has no mode for links, and no way to change one without following.
            chmodat(&self.0, os(name), Mode::from_bits_truncate(node.mode), AtFlags::empty())?;
        }
        self.set_xattrs(name, &node.xattrs)?;
        if node.is_dir() {
            return Ok(());
        }
        self.set_mtime(name, node.mtime)
    }

    /// [`Dir::set_metadata`] of a regular file that was just made here and is still open: without
    /// looking its name up again, and without what is so already.
    pub(crate) fn set_file_metadata(
        &self,
        file: &File,
        name: &[u8],
        node: &Node,
    ) -> Result<(), Errno> {
        hit(Op::Change(self.0.as_fd(), name))?;
        let stat = fstat(file)?;
        if (stat.st_uid, stat.st_gid) != (node.uid, node.gid) {
            fchown(file, Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)))?;
        }
        fchmod(file, Mode::from_bits_truncate(node.mode))?;
        // A security module or a default ACL of the stage may have given it some.
        let present = read_xattrs(
            |buffer| flistxattr(file, buffer),
            |key, buffer| fgetxattr(file, os(key), buffer),
        )?;
        change_xattrs(
            &present,
            &node.xattrs,
            |key| fremovexattr(file, os(key)),
            |key, value| fsetxattr(file, os(key), value, XattrFlags::empty()),
        )?;
        futimens(file, &mtime(node.mtime))
    }

    /// Sets the entry's time of modification and leaves its access time.
    pub(crate) fn set_mtime(&self, name: &[u8], time: Timestamp) -> Result<(), Errno> {
        hit(Op::Change(self.0.as_fd(), name))?;
        utimensat(&self.0, os(name), &mtime(time), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Makes the entry's extended attributes exactly `wanted`.
    fn set_xattrs(&self, name: &[u8], wanted: &Xattrs) -> Result<(), Errno> {
        let path = self.proc_path(name);
        change_xattrs(
            &self.xattrs(name)?,
            wanted,
            |key| lremovexattr(os(&path), os(key)),
            |key, value| lsetxattr(os(&path), os(key), value, XattrFlags::empty()),
        )
    }

    /// The entry's extended attributes; none on file systems that have none.
    pub(crate) fn xattrs(&self, name: &[u8]) -> Result<Xattrs, Errno> {
        let path = self.proc_path(name);
        read_xattrs(
            |buffer| llistxattr(os(&path), buffer),
            |key, buffer| lgetxattr(os(&path), os(key), buffer),
        )
    }

    /// Makes the names in this directory durable.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        hit(Op::Barrier)?;
        rustix::fs::fsync(&self.0)
    }

    /// Makes everything on the file system durable that was written before.
    pub(crate) fn sync_all(&self) -> Result<(), Errno> {
        hit(Op::Barrier)?;
        syncfs(&self.0)
    }

    /// A path for calls that take no directory handle. `/proc/self/fd/N` leads to the directory
    /// itself, even where it is in no mount namespace; the entry is not followed.
    fn proc_path(&self, name: &[u8]) -> Vec<u8> {
        let mut path = format!("/proc/self/fd/{}/", self.0.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        path
    }
}

/// The time of modification alone.
fn mtime(time: Timestamp) -> Timestamps {
    let Timestamp { secs, nanos } = time;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: secs, tv_nsec: nanos.into() },
    }
}

/// Extended attributes, by the call that lists their names and the one that reads a value.
fn read_xattrs(
    list: impl Fn(&mut Vec<u8>) -> Result<usize, Errno>,
    get: impl Fn(&[u8], &mut Vec<u8>) -> Result<usize, Errno>,
) -> Result<Xattrs, Errno> {
    let mut xattrs = Xattrs::new();
    let list = match growing(list) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => return Ok(xattrs),
        Err(error) => return Err(error),
    };
    let keys = list.split(|byte| *byte == 0);
    for key in keys.filter(|key| !key.is_empty() && !key.starts_with(XFS_ACL)) {
        match growing(|buffer| get(key, buffer)) {
            Ok(value) => {
                xattrs.insert(key.to_vec(), value);
            }
            // Gone between the two calls.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(xattrs)
}

/// Makes `present` extended attributes `wanted`.
fn change_xattrs(
    present: &Xattrs,
    wanted: &Xattrs,
    remove: impl Fn(&[u8]) -> Result<(), Errno>,
    set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    for key in present.keys().filter(|key| !wanted.contains_key(*key)) {
        remove(key)?;
    }
    for (key, value) in wanted.iter().filter(|(key, value)| present.get(*key) != Some(value)) {
        set(key, value)?;
    }
    Ok(())
}

/// Calls `read` with a buffer that grows until what it reads fits.
fn growing(read: impl Fn(&mut Vec<u8>) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; XATTR_BUFFER_LEN];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => buffer.resize(buffer.len() * 4, 0),
            Err(error) => return Err(error),
        }
    }
}
