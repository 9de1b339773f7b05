//! From an event's place to a path, directories remembered.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, fstat, readlinkat};
use vireo_model::ImagePath;
use vireo_sys::fanotify::{FileSystemId, Place, open_handle};

use crate::mounts::Watched;

/// Most directories remembered at a time; beyond that all are looked up anew.
pub const MAX_DIRECTORIES: usize = 50_000;

/// The directories that something was opened in.
#[derive(Debug)]
pub(crate) struct Places {
    watched: Watched,
    fds: OwnedFd,
    known: HashMap<Key, Option<Vec<u8>>>,
}

/// A directory's file system and handle.
type Key = (FileSystemId, Vec<u8>);

impl Places {
    pub(crate) fn new(watched: Watched) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fds = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
        Ok(Self { watched, fds, known: HashMap::new() })
    }

    /// The path of `place`; none if its directory is gone, or is on no file system that is watched.
    pub(crate) fn path_of(&mut self, place: &Place<'_>) -> Option<ImagePath> {
        let key = (place.file_system, place.directory.to_vec());
        if !self.known.contains_key(&key) {
            if self.known.len() >= MAX_DIRECTORIES {
                self.known.clear();
            }
            let path = self.look(place);
            self.known.insert(key.clone(), path);
        }
        let directory = self.known.get(&key)?.as_deref()?;
        let path = match place.name {
            b"." => directory.to_vec(),
            name => [directory.strip_suffix(b"/").unwrap_or(directory), b"/", name].concat(),
        };
        ImagePath::parse(&path).ok()
    }

    fn look(&self, place: &Place<'_>) -> Option<Vec<u8>> {
        let mount = self.watched.get(&place.file_system)?;
        let directory = open_handle(mount.as_fd(), place.directory).ok()?;
        // A removed directory still has a path, which would be told as another's.
        if fstat(&directory).ok()?.st_nlink == 0 {
            return None;
        }
        let number = directory.as_raw_fd().to_string();
        let path = readlinkat(&self.fds, number, Vec::new()).ok()?;
        Some(CStr::to_bytes(&path).to_vec()).filter(|path| path.starts_with(b"/"))
    }
}
