//! Where tests stop, fail and record what touches the file system. Nothing in programs.

use std::os::fd::BorrowedFd;

#[cfg(not(test))]
use rustix::io::Errno;

/// One step on the file system, with what a test needs to know of it.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "only tests look into it"))]
pub(crate) enum Op<'a> {
    /// A read: opening, listing, metadata.
    Look,
    /// A name appears: a file, directory, link or special file.
    Make(BorrowedFd<'a>, &'a [u8]),
    /// Bytes are written to a file.
    Write,
    /// Owner, mode, time or attributes of an entry change.
    Change(BorrowedFd<'a>, &'a [u8]),
    /// A name moves, or two change places.
    Rename((BorrowedFd<'a>, &'a [u8]), (BorrowedFd<'a>, &'a [u8]), bool),
    /// A name goes.
    Remove(BorrowedFd<'a>, &'a [u8]),
    /// All that was written before is to be on the disk.
    Barrier,
}

#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn hit(_: Op<'_>) -> Result<(), Errno> {
    Ok(())
}

#[cfg(test)]
pub(crate) use crate::faults::hit;
