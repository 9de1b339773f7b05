//! The FUSE file system with one file, which is the disk. One thread serves it, so that the log's
//! order is the order of the answers.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request,
    Session, SessionACL, TimeOrNow, WriteFlags,
};

use super::log;
use crate::error::{TestkitError, failed};

/// The disk's name in the mount.
pub(super) const FILE_NAME: &str = "disk";

const FILE: INodeNo = INodeNo(2);

/// Nothing about the disk ever changes but its content: the kernel need not ask again.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// Serves the disk in the file `disk` on the FUSE connection `device`, which somebody else has
/// mounted, until that mount ends. Writes and flushes are added to `log`.
///
/// # Errors
///
/// The files cannot be opened, or the kernel's requests cannot be understood.
pub fn serve(device: OwnedFd, disk: &Path, log: &Path) -> Result<(), TestkitError> {
    let open =
        |path| File::options().read(true).write(true).open(path).map_err(failed("open", path));
    let (file, log) = (open(disk)?, open(log)?);
    let len = file.metadata().map_err(failed("read", disk))?.len();
    let serving = failed("serve", disk);
    let session =
        Session::from_fd(Disk { file, log, len }, device, SessionACL::All, Config::default());
    session.and_then(Session::run).map_err(serving)
}

struct Disk {
    file: File,
    log: File,
    len: u64,
}

impl Disk {
    fn attributes(&self, inode: INodeNo) -> Result<FileAttr, Errno> {
        let (kind, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0),
            FILE => (FileType::RegularFile, self.len),
            _ => return Err(Errno::ENOENT),
        };
        Ok(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// Recorded first: what is on the disk is never missing in the log.
    fn record_write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        log::add_write(&self.log, offset, bytes)?;
        self.file.write_all_at(bytes, offset)
    }
}

fn code(error: &io::Error) -> Errno {
    eprintln!("{}: {error}", super::SERVER);
    Errno::EIO
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent != INodeNo::ROOT || name != FILE_NAME {
            return reply.error(Errno::ENOENT);
        }
        match self.attributes(FILE) {
            Ok(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Ok(attributes) => reply.attr(&FOR_EVER, &attributes),
            Err(error) => reply.error(error),
        }
    }

    /// Accepted and forgotten: a disk has no times and no owner, and it keeps its size.
    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.attributes(inode) {
            Ok(_) if size.is_some_and(|size| size != self.len) => reply.error(Errno::EPERM),
            Ok(attributes) => reply.attr(&FOR_EVER, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = self.len.saturating_sub(offset).min(u64::from(size));
        let mut bytes = vec![0; len as usize];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => reply.data(&bytes),
            Err(error) => reply.error(code(&error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if offset.saturating_add(bytes.len() as u64) > self.len {
            return reply.error(Errno::ENOSPC);
        }
        match self.record_write(offset, bytes) {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(error) => reply.error(code(&error)),
        }
    }

    /// Closing a handle is nothing to a disk.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match log::add_barrier(&self.log) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(code(&error)),
        }
    }

    /// Refused, so that discarding and zeroing come as writes, or not at all.
    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }
}
