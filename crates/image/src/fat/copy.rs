//! The files of a FAT file system as files of another one, for those who work on directories.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{Mode, OFlags, Timespec, Timestamps, futimens, mkdirat, openat};
use vireo_ext4::Source;
use vireo_model::{ImagePath, PLAIN_MODE};

use super::{Fat, FatError};

/// Most bytes of files that are copied: they are in memory.
pub(crate) const MAX_COPY_LEN: u64 = 2 << 30;

/// Puts every file and directory of `fat` into the empty directory `top`, in the normal form of what is on FAT.
pub(crate) fn copy_to<S: Source>(fat: &Fat<S>, top: impl AsFd) -> Result<(), FatError> {
    let mode = Mode::from_bits_truncate(PLAIN_MODE);
    let items = fat.items()?;
    if items.values().fold(0, |sum: u64, item| sum.saturating_add(item.len)) > MAX_COPY_LEN {
        return Err(FatError::Damaged("it has more than 2 GiB of files, which is not supported"));
    }
    // In path order, so that a directory comes before what is in it.
    for (path, item) in &items {
        let name = relative(path);
        if item.is_dir {
            mkdirat(&top, name, mode).map_err(io::Error::from)?;
            continue;
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = openat(&top, name, flags | OFlags::CLOEXEC, mode).map_err(io::Error::from)?;
        let mut file = File::from(file);
        fat.content(item.cluster, item.len)?.pieces(|piece| file.write_all(piece))?;
        let epoch = Timespec { tv_sec: 0, tv_nsec: 0 };
        let times = Timestamps { last_access: epoch, last_modification: epoch };
        futimens(&file, &times).map_err(io::Error::from)?;
    }
    Ok(())
}

fn relative(path: &ImagePath) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(path.relative())
}
