//! Whether anybody else has a file open.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

/// <asm-generic/fcntl.h>; crate libc has it for some targets only.
const F_SETSIG: libc::c_int = 10;

/// How often it is asked before a "no" counts, and how long in between.
const TRIES: u32 = 6;
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Whether nobody but the caller has `file` open, by taking and giving back a write lease
/// (`fcntl(2)`, `F_SETLEASE`). A loop device or a virtual machine that uses an image counts.
///
/// `file` must be the caller's only handle on it. On file systems without leases, and for files
/// of another user without privilege, the answer is `true`: nothing was seen.
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
/// Where there are no leases the answer is as for [`is_exclusive`].
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
            Some(libc::EINVAL | libc::EACCES | libc::EOPNOTSUPP) => Ok(true),
            _ => Err(error),
        },
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
}
