//! Whether anybody else has a file open.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

/// <asm-generic/fcntl.h>; crate libc has it for some targets only.
const F_SETSIG: libc::c_int = 10;

/// The byte that QEMU has locked in an image that it may write to: `RAW_LOCK_PERM_BASE` and
/// `BLK_PERM_WRITE` (block/file-posix.c).
const QEMU_WRITES: Range<i64> = 101..102;

/// How often it is asked before a "no" counts, and how long in between.
const TRIES: u32 = 6;
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Whether nobody but the caller has `file` open, by taking and giving back a write lease
/// (`fcntl(2)`, `F_SETLEASE`). A loop device or a virtual machine that uses an image counts.
///
/// `file` must be the caller's only handle on it. On file systems without leases, such as NFS, and for
/// files of another user without privilege, only those are seen who have locked a part of it, as virtual
/// machines of QEMU do.
///
/// # Errors
///
/// As `fcntl(2)`, but for the cases above.
pub fn is_exclusive(file: &File) -> io::Result<bool> {
    ask(file, libc::F_WRLCK)
}

/// Whether nobody has `file` open for writing, by taking and giving back a read lease. `file`
/// must be open for reading alone; readers do not count.
///
/// Where there are no leases, those are seen who have locked it as writers do.
///
/// # Errors
///
/// As for [`is_exclusive`].
pub fn is_unwritten(file: &File) -> io::Result<bool> {
    ask(file, libc::F_RDLCK)
}

fn ask(file: &File, kind: i32) -> io::Result<bool> {
    // A child that another thread is just starting holds copies of our own handles until it
    // executes its program: one "no" proves nothing.
    for _ in 1..TRIES {
        if ask_once(file, kind)? {
            return Ok(true);
        }
        thread::sleep(RETRY_INTERVAL);
    }
    ask_once(file, kind)
}

fn ask_once(file: &File, kind: i32) -> io::Result<bool> {
    match set_lease(file, kind) {
        Ok(()) => set_lease(file, libc::F_UNLCK).map(|()| true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(false),
            Some(libc::EINVAL | libc::EACCES | libc::EOPNOTSUPP) => is_unlocked(file, kind),
            _ => Err(error),
        },
    }
}

/// Whether nobody else has a lock on a part of `file` that whoever wants such a lease must not overlook.
/// Where locks cannot be asked for, nothing was seen.
fn is_unlocked(file: &File, kind: i32) -> io::Result<bool> {
    let whole = 0..0;
    let in_the_way: &[(i32, Range<i64>)] = match kind {
        libc::F_WRLCK => &[(libc::F_WRLCK, whole)],
        // Of QEMU, whose locks are all shared ones, the writers alone.
        _ => &[(libc::F_RDLCK, whole), (libc::F_WRLCK, QEMU_WRITES)],
    };
    for (kind, range) in in_the_way {
        match is_locked(file, *kind, range) {
            Ok(false) => {}
            Ok(true) => return Ok(false),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOLCK | libc::ENOSYS) => {}
                _ => return Err(error),
            },
        }
    }
    Ok(true)
}

/// Whether a lock of this kind on `range` of `file` would be refused; an empty range is the whole file.
fn is_locked(file: &File, kind: i32, range: &Range<i64>) -> io::Result<bool> {
    let mut lock = lock(kind, range);
    // SAFETY: fcntl with F_OFD_GETLK takes a pointer to a `struct flock`, which it reads and fills in;
    // `lock` is one and lives longer; the descriptor is open for as long as `file` is borrowed.
    #[expect(unsafe_code, reason = "rustix does not know these locks; see the fence in lib.rs")]
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// A lock of this kind; its process number has to be 0.
fn lock(kind: i32, range: &Range<i64>) -> libc::flock {
    libc::flock {
        l_type: kind as _,
        l_whence: libc::SEEK_SET as _,
        l_start: range.start,
        l_len: range.end - range.start,
        l_pid: 0,
    }
}

fn set_lease(file: &File, kind: i32) -> io::Result<()> {
    // Whoever opens the file while the lease is held has the kernel send its holder a signal:
    // SIGIO unless told otherwise, which ends a process that does not expect it. SIGURG does not.
    fcntl(file, F_SETSIG, libc::SIGURG)?;
    fcntl(file, libc::F_SETLEASE, kind)
}

fn fcntl(file: &File, command: i32, argument: i32) -> io::Result<()> {
    // SAFETY: fcntl with F_SETLEASE and F_SETSIG takes an integer argument and touches no memory
    // of ours; the descriptor is open for as long as `file` is borrowed.
    #[expect(unsafe_code, reason = "no crate here wraps F_SETLEASE; see the fence in lib.rs")]
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_handle_is_seen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").expect("writable");
        let file = File::options().read(true).write(true).open(&path).expect("opens");
        assert!(is_exclusive(&file).expect("a lease is granted or not"));
        let other = File::open(&path).expect("opens");
        assert!(!is_exclusive(&file).expect("a lease is granted or not"));
        drop(other);
        assert!(is_exclusive(&file).expect("a lease is granted or not"));
    }

    #[test]
    fn a_writer_is_told_from_a_reader() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").expect("writable");
        let file = File::open(&path).expect("opens");
        let _reader = File::open(&path).expect("opens");
        assert!(is_unwritten(&file).expect("a lease is granted or not"));
        let _writer = File::options().write(true).open(&path).expect("opens");
        assert!(!is_unwritten(&file).expect("a lease is granted or not"));
    }

    /// Locks `range` of the file at `path`, by a descriptor of its own.
    fn locked(path: &std::path::Path, kind: i32, range: Range<i64>) -> File {
        let file = File::options().read(true).write(true).open(path).expect("opens");
        let lock = lock(kind, &range);
        // SAFETY: as for F_OFD_GETLK above; the lock is only read.
        #[expect(unsafe_code, reason = "as above")]
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        file
    }

    /// What is said where no lease is to be had: of another user's file, by who has no right to that.
    fn without_leases(path: &std::path::Path) -> (bool, bool) {
        let path = path.to_owned();
        let ask = move || {
            let mut sets = rustix::thread::capabilities(None).expect("known");
            sets.effective -= rustix::thread::CapabilitySet::LEASE;
            rustix::thread::set_capabilities(None, sets).expect("fewer rights are always given");
            let file = File::options().read(true).write(true).open(&path).expect("opens");
            let refused = set_lease(&file, libc::F_WRLCK).expect_err("no lease is to be had");
            assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
            let exclusive = is_exclusive(&file).expect("answered");
            drop(file);
            (exclusive, is_unwritten(&File::open(&path).expect("opens")).expect("answered"))
        };
        thread::spawn(ask).join().expect("it ended")
    }

    #[test]
    fn root_where_no_lease_is_to_be_had_locks_are_seen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").expect("writable");
        std::os::unix::fs::chown(&path, Some(1), None).expect("given away, as root");
        assert_eq!(without_leases(&path), (true, true), "nobody has it");
        let _open = File::open(&path).expect("opens");
        assert_eq!(without_leases(&path), (true, true), "nobody has locked it");
        // As QEMU: what it does and what others may not do, by shared locks.
        let reader =
            [locked(&path, libc::F_RDLCK, 100..101), locked(&path, libc::F_RDLCK, 201..202)];
        assert_eq!(without_leases(&path), (false, true), "a machine reads it");
        let writer = locked(&path, libc::F_RDLCK, QEMU_WRITES);
        assert_eq!(without_leases(&path), (false, false), "a machine writes to it");
        drop((reader, writer));
        let other = locked(&path, libc::F_WRLCK, 5000..5001);
        assert_eq!(without_leases(&path), (false, false), "another program writes to it");
        drop(other);
        assert_eq!(without_leases(&path), (true, true), "nobody has locked it any more");
    }
}
