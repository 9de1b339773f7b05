//! Who opens what on a whole file system: fanotify(7) with file handles (Linux 5.9).
//!
//! Events carry the handle of the directory and the name in it, not an open file: taking one opens
//! nothing, and services with mounts of their own are seen where the file really is.
//!
//! Not here: from a handle to a path for good (names move), and what an event means.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Longest file handle, in bytes: the kernel's `MAX_HANDLE_SZ`.
const MAX_HANDLE_LEN: usize = 128;

/// Length of the fixed part of an event: `struct fanotify_event_metadata`.
const METADATA_LEN: usize = 24;

/// Length of an event's head of a piece of information and the file system's number behind it.
const INFO_LEN: usize = 4 + 8;

/// A file system's number, `f_fsid` of statfs(2).
pub type FileSystemId = [u8; 8];

/// A watch on file systems. It ends when this value goes.
#[derive(Debug)]
pub struct Watch(File);

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The process as this process numbers it; 0 for one that it cannot see.
    pub pid: u32,
    /// Whether the file was opened to be executed.
    pub executed: bool,
    /// Whether a directory was opened.
    pub directory: bool,
    /// What was opened; none if the queue ran over and events were lost.
    pub place: Option<Place<'a>>,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The file system.
    pub file_system: FileSystemId,
    /// The directory's handle, for [`open_handle`].
    pub directory: &'a [u8],
    /// The name in it; `.` for the directory itself.
    pub name: &'a [u8],
}

impl Watch {
    /// A watch on nothing yet. Reading it never blocks.
    ///
    /// # Errors
    ///
    /// As `fanotify_init(2)`: `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` before Linux 5.9, `ENOSYS`.
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_REPORT_DFID_NAME;
        let file_flags = (libc::O_RDONLY | libc::O_CLOEXEC) as libc::c_uint;
        // SAFETY: fanotify_init takes two integers and touches no memory of ours.
        #[expect(unsafe_code, reason = "no crate here wraps fanotify; this crate is the fence")]
        let fd = unsafe { libc::fanotify_init(flags, file_flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just given this descriptor to us, and nobody else knows it.
        #[expect(unsafe_code, reason = "taking over a descriptor that a system call made")]
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(File::from(fd)))
    }

    /// Watches all opening of files and directories on the file system that `directory` is on,
    /// whatever mount it goes through.
    ///
    /// # Errors
    ///
    /// As `fanotify_mark(2)`: `EOPNOTSUPP` and `ENODEV` on file systems without file handles or
    /// numbers, `EXDEV` on a btrfs subvolume.
    pub fn add_file_system(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        let mask = libc::FAN_OPEN | libc::FAN_OPEN_EXEC | libc::FAN_ONDIR;
        self.mark(flags, mask, directory)
    }

    /// Tells no more of `file` being opened, by whomever and on whichever path.
    ///
    /// # Errors
    ///
    /// As `fanotify_mark(2)`; `EINVAL` before Linux 6.0.
    pub fn ignore_file(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORE_SURV | libc::FAN_MARK_EVICTABLE;
        self.mark(flags, libc::FAN_OPEN | libc::FAN_OPEN_EXEC, file)
    }

    fn mark(&self, flags: libc::c_uint, mask: u64, at: BorrowedFd<'_>) -> io::Result<()> {
        // The path through /proc serves descriptors that were opened with O_PATH as well.
        let by_name = format!("/proc/self/fd/{}\0", at.as_raw_fd());
        let name = CStr::from_bytes_with_nul(by_name.as_bytes()).map_err(io::Error::other)?;
        // SAFETY: `name` is a string that ends with NUL and outlives the call, which only reads it;
        // the watch's descriptor is open for as long as `self` is borrowed.
        #[expect(unsafe_code, reason = "no crate here wraps fanotify; this crate is the fence")]
        let result = unsafe {
            libc::fanotify_mark(self.0.as_raw_fd(), flags, mask, libc::AT_FDCWD, name.as_ptr())
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Takes the events that are there into `buffer`, none if there are none.
    ///
    /// # Errors
    ///
    /// As `read(2)`; `EINVAL` if not even one event fits into `buffer` (300 bytes and the longest
    /// name do).
    pub fn read<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Events<'a>> {
        match (&self.0).read(buffer) {
            Ok(len) => Ok(Events(&buffer[..len])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Events(&[])),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The events of one read, in order.
#[derive(Clone, Debug)]
pub struct Events<'a>(&'a [u8]);

impl<'a> Iterator for Events<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        let len = u32_at(self.0, 0)? as usize;
        if len < METADATA_LEN || len > self.0.len() {
            self.0 = &[];
            return None;
        }
        let (event, rest) = self.0.split_at(len);
        self.0 = rest;
        let mask = u64::from(u32_at(event, 8)?) | u64::from(u32_at(event, 12)?) << 32;
        let infos = event.get(usize::from(u16_at(event, 6)?)..).unwrap_or_default();
        Some(Event {
            pid: u32_at(event, 20)?,
            executed: mask & libc::FAN_OPEN_EXEC != 0,
            directory: mask & libc::FAN_ONDIR != 0,
            place: if mask & libc::FAN_Q_OVERFLOW == 0 { place_in(infos) } else { None },
        })
    }
}

/// The first name among an event's pieces of information.
fn place_in(mut infos: &[u8]) -> Option<Place<'_>> {
    loop {
        let (kind, len) = (*infos.first()?, usize::from(u16_at(infos, 2)?));
        let info = infos.get(..len).filter(|info| info.len() >= INFO_LEN)?;
        if matches!(kind, libc::FAN_EVENT_INFO_TYPE_DFID_NAME | libc::FAN_EVENT_INFO_TYPE_DFID) {
            let handle_len = 8 + u32_at(info, INFO_LEN)? as usize;
            let (directory, name) = info[INFO_LEN..].split_at_checked(handle_len)?;
            let name = name.split(|byte| *byte == 0).next().filter(|name| !name.is_empty());
            let file_system = info[4..INFO_LEN].try_into().ok()?;
            return Some(Place { file_system, directory, name: name.unwrap_or(b".") });
        }
        infos = &infos[len..];
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The number of the file system that `file` is on, as events carry it.
///
/// # Errors
///
/// As `fstatfs(2)`.
pub fn file_system_id(file: BorrowedFd<'_>) -> io::Result<FileSystemId> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: fstatfs fills the one structure that the pointer leads to; all-zero bytes are a
    // valid one before; the descriptor is open for as long as `file` is borrowed.
    #[expect(unsafe_code, reason = "rustix hides f_fsid; this crate is the fence")]
    let stat = unsafe {
        if libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        stat.assume_init()
    };
    // SAFETY: fsid_t is two plain numbers of 32 bits, of which crate libc shows no fields.
    #[expect(unsafe_code, reason = "crate libc keeps the fields of fsid_t private")]
    let id = unsafe { std::mem::transmute::<libc::fsid_t, FileSystemId>(stat.f_fsid) };
    Ok(id)
}

/// Opens the directory that `handle` names on the file system of `mount`, as a place only
/// (`O_PATH`).
///
/// # Errors
///
/// As `open_by_handle_at(2)`: `ESTALE` once the directory is gone, `EPERM` without
/// `CAP_DAC_READ_SEARCH`, `EOPNOTSUPP` where handles cannot be opened; `EINVAL` for what is no
/// handle.
pub fn open_handle(mount: BorrowedFd<'_>, handle: &[u8]) -> io::Result<OwnedFd> {
    // Words, because the structure starts with two of them.
    let mut words = [0_u32; 2 + MAX_HANDLE_LEN / 4];
    let claimed = u32_at(handle, 0).map(|len| 8 + len as usize);
    if claimed != Some(handle.len()) || handle.len() > size_of_val(&words) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (word, bytes) in words.iter_mut().zip(handle.chunks(4)) {
        let mut whole = [0; 4];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_ne_bytes(whole);
    }
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the pointer leads to a `struct file_handle`: two words, of which the first is the
    // length of what follows, which was compared with the room; the kernel only reads it.
    #[expect(unsafe_code, reason = "rustix does not wrap file handles; this crate is the fence")]
    let fd =
        unsafe { libc::open_by_handle_at(mount.as_raw_fd(), words.as_mut_ptr().cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just given this descriptor to us, and nobody else knows it.
    #[expect(unsafe_code, reason = "taking over a descriptor that a system call made")]
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(fd)
}

/// The handle of `file` on its file system.
///
/// # Errors
///
/// As `name_to_handle_at(2)`: `EOPNOTSUPP` on file systems without handles.
pub fn handle_of(file: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut words = [0_u32; 2 + MAX_HANDLE_LEN / 4];
    words[0] = MAX_HANDLE_LEN as u32;
    let (mut mount_id, empty) = (0, c"");
    // SAFETY: the pointer leads to a `struct file_handle` whose first word is the room behind its
    // two words; the kernel writes no more than that, and one number to `mount_id`; the name is a
    // string that ends with NUL.
    #[expect(unsafe_code, reason = "rustix does not wrap file handles; this crate is the fence")]
    let result = unsafe {
        libc::name_to_handle_at(
            file.as_raw_fd(),
            empty.as_ptr(),
            words.as_mut_ptr().cast(),
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let len = 8 + (words[0] as usize).min(MAX_HANDLE_LEN);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(bytes[..len].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event as the kernel writes it, with these pieces of information.
    fn event(mask: u64, infos: &[u8]) -> Vec<u8> {
        let mut bytes = ((METADATA_LEN + infos.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend([3, 0]);
        bytes.extend((METADATA_LEN as u16).to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1_i32).to_ne_bytes());
        bytes.extend(77_i32.to_ne_bytes());
        bytes.extend(infos);
        bytes
    }

    /// The information "this name in this directory".
    fn named(name: &[u8]) -> Vec<u8> {
        let handle = [4, 0, 0, 0, 1, 0, 0, 0, b'h', b'a', b'n', b'd'];
        let len = (INFO_LEN + handle.len() + name.len() + 1) as u16;
        let head = [libc::FAN_EVENT_INFO_TYPE_DFID_NAME, 0];
        [&head[..], &len.to_ne_bytes(), b"fsid\0\0\0\x01", &handle, name, b"\0"].concat()
    }

    #[test]
    fn events_are_told_apart() {
        let other = [9, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let both = [&other[..], &named(b"x.conf")].concat();
        let mut bytes = event(libc::FAN_OPEN | libc::FAN_OPEN_EXEC, &both);
        bytes.extend(event(libc::FAN_Q_OVERFLOW, b""));
        bytes.extend(event(libc::FAN_OPEN | libc::FAN_ONDIR, &named(b".")));
        let events: Vec<Event<'_>> = Events(&bytes).collect();
        let place = |name| {
            let directory = &b"\x04\0\0\0\x01\0\0\0hand"[..];
            Some(Place { file_system: *b"fsid\0\0\0\x01", directory, name })
        };
        let first =
            Event { pid: 77, executed: true, directory: false, place: place(&b"x.conf"[..]) };
        let last = Event { pid: 77, executed: false, directory: true, place: place(b".") };
        assert_eq!(events[0], first);
        assert_eq!(events[1].place, None);
        assert_eq!(events[2], last);
    }

    #[test]
    fn bytes_that_no_kernel_wrote_end_the_list() {
        let whole = event(libc::FAN_OPEN, &named(b"x.conf"));
        for at in 0..whole.len() {
            assert!(Events(&whole[..at]).count() == 0, "cut at {at}");
            for byte in [0, 1, 0x7f, 0xff] {
                let mut hostile = whole.clone();
                hostile[at] = byte;
                let _ = Events(&hostile).count();
            }
        }
        assert!(open_handle(File::open("/").expect("opens").as_fd(), b"\xff\0\0\0").is_err());
    }
}
