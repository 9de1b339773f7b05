//! Looking at files below a root without leaving it: identity and first bytes, nothing more.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use vireo_classify::{FileId, HEAD_LEN, make_dev};
use vireo_model::ImagePath;

/// A directory below which paths are looked at.
#[derive(Debug)]
pub(crate) struct Beneath(OwnedFd);

impl Beneath {
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(root, flags, Mode::empty())?))
    }

    /// The identity of the regular file at `path`; `None` if there is none.
    pub(crate) fn file_id(&self, path: &ImagePath) -> Option<FileId> {
        let file = self.at(path, OFlags::PATH | OFlags::NOFOLLOW).ok()?;
        file_id_of(&file)
    }

    /// The first bytes of the regular file at `path`; `None` if it cannot be read.
    pub(crate) fn head(&self, path: &ImagePath) -> Option<Vec<u8>> {
        self.read(path, HEAD_LEN as u64)
    }

    /// The first `most` bytes of the regular file at `path`; `None` if it cannot be read. Leaves
    /// its access time alone where that is allowed.
    pub(crate) fn read(&self, path: &ImagePath, most: u64) -> Option<Vec<u8>> {
        self.file_id(path)?;
        // Should a pipe take its place now, opening must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = self.at(path, flags | OFlags::NOATIME).or_else(|_| self.at(path, flags)).ok()?;
        let mut content = Vec::new();
        File::from(file).take(most).read_to_end(&mut content).ok()?;
        Some(content)
    }

    fn at(&self, path: &ImagePath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let stay = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.0, path.relative(), flags | OFlags::CLOEXEC, Mode::empty(), stay)
    }
}

/// The identity of an open file, if it is a regular one. Never asks a server.
pub(crate) fn file_id_of(file: &OwnedFd) -> Option<FileId> {
    file_id_at(file, "", AtFlags::EMPTY_PATH)
}

/// The identity of what `name` in `dir` leads to, if that is a regular file.
pub(crate) fn file_id_at(
    dir: &OwnedFd,
    name: impl rustix::path::Arg,
    flags: AtFlags,
) -> Option<FileId> {
    let wanted = StatxFlags::TYPE | StatxFlags::INO;
    let stat = statx(dir, name, flags | AtFlags::STATX_DONT_SYNC, wanted).ok()?;
    let regular = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile;
    let dev = make_dev(stat.stx_dev_major, stat.stx_dev_minor);
    regular.then_some(FileId { dev, ino: stat.stx_ino })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn only_regular_files_below_the_root_are_seen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("a"), "text").expect("written");
        symlink("/etc", dir.path().join("etc")).expect("linked");
        symlink("a", dir.path().join("link")).expect("linked");
        let root = Beneath::open(dir.path()).expect("a directory");
        let path = |text: &str| ImagePath::parse(text.as_bytes()).expect("a valid path");
        let real = fs::metadata(dir.path().join("a")).expect("it is there");
        let id = FileId { dev: real.dev(), ino: real.ino() };
        assert_eq!(root.file_id(&path("/a")), Some(id));
        assert_eq!(root.head(&path("/a")), Some(b"text".to_vec()));
        for outside in ["/etc/passwd", "/link", "/gone", "/etc"] {
            assert_eq!(root.file_id(&path(outside)), None, "{outside}");
            assert_eq!(root.head(&path(outside)), None, "{outside}");
        }
    }
}
