//! Loop devices by `LOOP_CONFIGURE` (Linux 5.8): attach, offset, limit and auto-clear in one
//! step, so that no kill can come in between and leak a device.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// How often a device that another process took first is followed by a try with the next.
const ATTACH_TRIES: u32 = 64;

// ioctl numbers and flags of <linux/loop.h>.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
/// Where the kernel tells about block devices.
const BLOCK_DEVICES: &str = "/sys/block";

/// What the kernel adds to the name of a backing file that has none any more.
const DELETED: &[u8] = b" (deleted)";

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of <linux/loop.h>.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of <linux/loop.h>.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// The part of a file that a loop device shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First byte.
    pub offset: u64,
    /// Length in bytes; 0 means to the end of the file.
    pub len: u64,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// A loop device on a file. It detaches itself when this value *and* the last mount are gone.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _device: File,
}

impl LoopDevice {
    /// Shows the part `window` of `backing` as a block device. Takes under a millisecond.
    ///
    /// # Errors
    ///
    /// As `open(2)` of `/dev/loop-control` and `/dev/loopN` (no permission, no such device: no
    /// root, or a container without loop devices) and `LOOP_CONFIGURE`; `EBUSY` only after 64
    /// devices in a row went to other processes.
    pub fn attach(backing: &File, window: Window) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let mut last = io::Error::from_raw_os_error(libc::EBUSY);
        for _ in 0..ATTACH_TRIES {
            let path = PathBuf::from(format!("/dev/loop{}", free_number(&control)?));
            let device = OpenOptions::new().read(true).write(!window.read_only).open(&path)?;
            match configure(&device, backing, window) {
                Ok(()) => return Ok(Self { path, _device: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The device's path, `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn free_number(control: &File) -> io::Result<i32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and touches no memory of ours.
    #[expect(unsafe_code, reason = "an ioctl without a safe wrapper; this crate is the fence")]
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

fn configure(device: &File, backing: &File, window: Window) -> io::Result<()> {
    let read_only = if window.read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let fd = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
    let config = LoopConfig {
        fd,
        block_size: 0,
        info: LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: window.offset,
            size_limit: window.len,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR | read_only,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config` at the address given. `config` has
    // that layout (sizes asserted above), is fully initialised and lives until the call returns.
    #[expect(unsafe_code, reason = "an ioctl without a safe wrapper; this crate is the fence")]
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A loop device that shows a file, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The device, `/dev/loopN`.
    pub device: PathBuf,
    /// The file behind it, under the name that it was attached by.
    pub backing: PathBuf,
    /// Whether that name is gone meanwhile.
    pub deleted: bool,
}

/// All loop devices of the host that show a file, in no order. Needs no rights.
///
/// # Errors
///
/// `/sys` is not mounted.
pub fn attached() -> io::Result<Vec<Attached>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(BLOCK_DEVICES)? {
        let entry = entry?;
        // What is no loop device, is free, or goes at this moment has no such file.
        let Ok(text) = fs::read(entry.path().join("loop/backing_file")) else { continue };
        let text = text.trim_ascii_end();
        let (name, deleted) = match text.strip_suffix(DELETED) {
            Some(name) => (name, true),
            None => (text, false),
        };
        let device = Path::new("/dev").join(entry.file_name());
        list.push(Attached { device, backing: OsStr::from_bytes(name).into(), deleted });
    }
    Ok(list)
}

/// Takes its file from the loop device at `path` (`LOOP_CLR_FD`). If a mount or a process still
/// uses the device, it goes when that is gone.
///
/// # Errors
///
/// As `open(2)` and the ioctl. That the device has no file is none.
pub fn detach(path: &Path) -> io::Result<()> {
    let device = OpenOptions::new().read(true).open(path)?;
    // SAFETY: LOOP_CLR_FD takes no argument and touches no memory of ours.
    #[expect(unsafe_code, reason = "an ioctl without a safe wrapper; this crate is the fence")]
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) };
    match io::Error::last_os_error() {
        error if result < 0 && error.raw_os_error() != Some(libc::ENXIO) => Err(error),
        _ => Ok(()),
    }
}
