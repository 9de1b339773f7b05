//! The files of the unpatched copy, which deltas are decoded against.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vireo_delta::BaseRead;
use vireo_ext4::{FileState, Reader};
use vireo_model::{Ignore, ImagePath, NodeKind};

use crate::unmounted::{Content, Disk, Scan};

/// Most files of the base whose maps of blocks are kept for the next read.
const OPEN_FILES: usize = 16;

/// The files of the unpatched copy, read by path.
pub(super) struct ReaderBase<'a> {
    disk: &'a Disk,
    /// Of the ext file system.
    reader: &'a Reader,
    pub(super) before: &'a Scan,
    open: Mutex<Vec<(ImagePath, Arc<Content<'a>>)>>,
}

impl<'a> ReaderBase<'a> {
    pub(super) fn new(disk: &'a Disk, reader: &'a Reader, before: &'a Scan) -> Self {
        Self { disk, reader, before, open: Mutex::default() }
    }

    fn state(&self, path: &ImagePath) -> io::Result<&'a FileState> {
        let state = self.before.state(self.leader(path));
        state.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The first name of what is at `path`.
    fn leader<'p>(&self, path: &'p ImagePath) -> &'p ImagePath
    where
        'a: 'p,
    {
        match self.before.tree.get(path).map(|node| &node.kind) {
            Some(NodeKind::HardLink { leader }) => leader,
            _ => path,
        }
    }

    /// How many names the inode at `path` has, those that belong to no version among them.
    pub(super) fn links(&self, path: &ImagePath) -> io::Result<u16> {
        let ino = match self.state(path) {
            Ok(state) => state.ino,
            // No regular file, then: rare enough to look for it among all names.
            Err(_) => {
                let all = self.reader.walk_metadata(&Ignore::nothing());
                let all = all.map_err(io::Error::other)?;
                let found = all.iter().find(|entry| entry.path == *path);
                found.ok_or(io::ErrorKind::NotFound)?.state.ino
            }
        };
        Ok(self.reader.inode(ino).map_err(io::Error::other)?.links)
    }

    fn content(&self, path: &ImagePath) -> io::Result<Arc<Content<'a>>> {
        let leader = self.leader(path);
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, content)) = lock().iter().find(|(known, _)| known == leader) {
            return Ok(content.clone());
        }
        let content = self.disk.content(leader, self.state(leader)?).map_err(io::Error::other)?;
        let content = Arc::new(content);
        let mut open = lock();
        if open.len() >= OPEN_FILES {
            open.remove(0);
        }
        open.push((leader.clone(), content.clone()));
        Ok(content)
    }
}

impl BaseRead for ReaderBase<'_> {
    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let len = self.content(path)?.read_at(offset, buffer)?;
        if len == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn len_of(&self, path: &ImagePath) -> io::Result<u64> {
        Ok(self.state(path)?.len)
    }
}
