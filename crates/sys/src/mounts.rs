//! A view of the mounted file systems that nobody else has.

use std::io;

use rustix::mount::{MountPropagationFlags, mount_change};

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
