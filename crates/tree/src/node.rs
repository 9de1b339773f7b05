//! From a file system's entry to a [`Node`].

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FileType, Stat, fstat, major, minor};
use rustix::io::Errno;
use vireo_model::{DeviceKind, Digest, Hasher, ImagePath, Node, NodeKind, Timestamp};

use crate::dir::Dir;
use crate::{ErrorKind, Root, TreeError};

const READ_LEN: usize = 256 << 10;

/// The node at `name`, with `content` for a regular file.
pub(crate) fn node(dir: &Dir, name: &[u8], stat: &Stat, content: Digest) -> Result<Node, Errno> {
    let device =
        |kind| NodeKind::Device { kind, major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => NodeKind::File { len: len_of(stat), content },
        FileType::Directory => NodeKind::Dir,
        FileType::Symlink => NodeKind::Symlink { target: dir.link_target(name)? },
        FileType::CharacterDevice => device(DeviceKind::Char),
        FileType::BlockDevice => device(DeviceKind::Block),
        FileType::Fifo => NodeKind::Fifo,
        FileType::Socket => NodeKind::Socket,
        FileType::Unknown => return Err(Errno::NOTSUP),
    };
    Ok(Node {
        mtime: if kind == NodeKind::Dir { Timestamp::default() } else { mtime_of(stat) },
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        xattrs: dir.xattrs(name)?,
    })
}

/// [`node`], of what stands at `path`: in its normal form where that is on FAT.
pub(crate) fn node_at(
    root: &Root,
    path: &ImagePath,
    (dir, name): (&Dir, &[u8]),
    stat: &Stat,
    content: Digest,
) -> Result<Node, Errno> {
    let node = node(dir, name, stat, content)?;
    Ok(if root.is_plain(path) { vireo_model::plain(node) } else { node })
}

pub(crate) fn len_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

pub(crate) fn mtime_of(stat: &Stat) -> Timestamp {
    // The kernel gives nanoseconds below 1e9; the types differ between architectures.
    Timestamp { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

pub(crate) fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

pub(crate) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Whether the file occupies less than its length: it has holes.
pub(crate) fn is_sparse(stat: &Stat) -> bool {
    is_regular(stat)
        && u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < len_of(stat)
}

/// The digest of the regular file `name`; an error if it changes meanwhile.
pub(crate) fn digest(
    root: &Root,
    dir: &Dir,
    name: &[u8],
    path: &ImagePath,
) -> Result<Digest, TreeError> {
    digest_and_stat(root, dir, name, path).map(|(digest, _)| digest)
}

/// The same, with the metadata that the file had all the time.
pub(crate) fn digest_and_stat(
    root: &Root,
    dir: &Dir,
    name: &[u8],
    path: &ImagePath,
) -> Result<(Digest, Stat), TreeError> {
    let file = dir.open(name).map_err(root.failed("open", path))?;
    let before = fstat(&file).map_err(root.failed("read the metadata of", path))?;
    let digest =
        hash(&file, len_of(&before), is_sparse(&before)).map_err(root.failed("read", path))?;
    let after = fstat(&file).map_err(root.failed("read the metadata of", path))?;
    if is_same_state(&before, &after) { Ok((digest, before)) } else { Err(changed(root, path)) }
}

/// Whether a file was not written to between the two. Neither its number is looked at, which FAT gives
/// anew, nor its blocks, which it may get late.
pub(crate) fn is_same_state(before: &Stat, after: &Stat) -> bool {
    let state = |stat: &Stat| (len_of(stat), mtime_of(stat), stat.st_ctime, stat.st_ctime_nsec);
    state(before) == state(after)
}

/// `path` is not what it was when reading began.
pub(crate) fn changed(root: &Root, path: &ImagePath) -> TreeError {
    let place = root.label().display();
    let message =
        format!("{path} in {place} changed while it was read; try again when it is quiet");
    TreeError::new(ErrorKind::Busy, message)
}

fn hash(mut file: &File, len: u64, has_holes: bool) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; READ_LEN.min(usize::try_from(len).unwrap_or(READ_LEN).max(1))];
    if !has_holes {
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(hasher.finish());
            }
            hasher.update(&buffer[..read]);
        }
    }
    // Holes are not read: hashing zeros from memory is several times faster.
    let zeros = vec![0; READ_LEN];
    let mut at = 0;
    while at < len {
        let data = vireo_sys::copy::next_data(file, at, len)?.unwrap_or(len..len);
        while at < data.start {
            let step = usize::try_from((data.start - at).min(READ_LEN as u64)).unwrap_or(READ_LEN);
            hasher.update(&zeros[..step]);
            at += step as u64;
        }
        while at < data.end {
            let step =
                usize::try_from((data.end - at).min(buffer.len() as u64)).unwrap_or(READ_LEN);
            file.read_exact_at(&mut buffer[..step], at)?;
            hasher.update(&buffer[..step]);
            at += step as u64;
        }
    }
    Ok(hasher.finish())
}
