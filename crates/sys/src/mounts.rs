//! The mounted file systems: which there are, and a view of them that nobody else has.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change};

/// Gives this process mounts of its own (`mount_namespaces(7)`): what it mounts from now on nobody
/// else sees, what others mount it does not see, and all of it goes with the last process that is
/// in there. To be called before the process has a second thread, which would keep the former
/// view.
///
/// # Errors
///
/// The right to do so (`CAP_SYS_ADMIN`) is missing.
#[expect(unsafe_code)]
pub fn take_own() -> io::Result<()> {
    // SAFETY: the call takes no pointer, and the table of open files, which is what it could pull
    // from under other code, is not among the flags.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", all)?)
}

/// The mounts of this process (proc_pid_mountinfo(5)).
const MOUNT_INFO: &str = "/proc/self/mountinfo";

/// The text of the table of all mounts in this process's view, in the order in which they were made.
///
/// # Errors
///
/// `/proc` is not mounted.
pub fn table() -> io::Result<Vec<u8>> {
    fs::read(MOUNT_INFO)
}

/// Unmounts what is at `point`, unless somebody uses it. Never follows a symbolic link there.
///
/// # Errors
///
/// As `umount2(2)`: `ResourceBusy` if a file in it is open.
pub fn unmount(point: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(point, UnmountFlags::NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_this_process_is_in_the_table() {
        let table = String::from_utf8(table().expect("readable")).expect("no odd names here");
        assert!(table.lines().any(|line| line.split(' ').nth(4) == Some("/")), "{table}");
    }
}
