//! The mounted file systems: which there are, and a view of them that nobody else has.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

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

/// A mount that this process can walk into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub point: PathBuf,
    /// What, as it was named when it was mounted: `/dev/loop3`.
    pub source: PathBuf,
    /// The type of the file system: `ext4`.
    pub kind: String,
    /// Its device's major and minor number.
    pub device: (u32, u32),
    /// Which of its directories is seen: `/`, unless it is a bind mount of a part.
    pub root: PathBuf,
}

/// All mounts in this process's view, in the order in which they were made.
///
/// # Errors
///
/// `/proc` is not mounted.
pub fn list() -> io::Result<Vec<Mounted>> {
    Ok(parse(&fs::read(MOUNT_INFO)?))
}

/// The mounts that the text of a mount table names, as [`list`] reads it; what is no line of one is
/// passed over.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<Mounted> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// One line of proc_pid_mountinfo(5): device, root and mount point are the third to the fifth field;
/// after a field `-` come type and source.
fn parse_line(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ').skip(2);
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let mut path = || Some(PathBuf::from(OsString::from_vec(unescape(fields.next()?))));
    let (root, point) = (path()?, path()?);
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = OsString::from_vec(unescape(fields.next()?)).into();
    Some(Mounted { point, source, kind, device, root })
}

/// A field of a mount table or of fstab(5), where blanks, line ends and backslashes are `\` and three
/// octal digits.
#[must_use]
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let is_octal = |digits: &&[u8]| digits.iter().all(|digit| (b'0'..=b'7').contains(digit));
        let octal = after.get(..3).filter(|_| *first == b'\\').filter(is_octal);
        let code =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    bytes
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
    fn a_line_gives_point_and_source_with_their_odd_names() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/ro\\134ot rw,errors=continue";
        let [mounted] = &parse(line)[..] else { panic!("it is a line of the manual page") };
        assert_eq!(mounted.point, Path::new("/mnt 2"));
        assert_eq!(mounted.source, Path::new("/dev/ro\\ot"));
        assert_eq!((mounted.kind.as_str(), mounted.device), ("ext3", (98, 0)));
        assert_eq!(mounted.root, Path::new("/mnt1"));
        assert!(parse(b"\n36 35 98:0 /\n36 35 device / /mnt rw - ext4 /dev/sda rw").is_empty());
    }

    #[test]
    fn the_root_of_this_process_is_listed() {
        assert!(list().expect("readable").iter().any(|mounted| mounted.point == Path::new("/")));
    }
}
