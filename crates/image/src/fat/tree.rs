//! All paths of a FAT file system, and the bytes of its files.

use std::collections::BTreeMap;
use std::io;

use vireo_ext4::Source;
use vireo_model::{Digest, Hasher, ImagePath, is_machines_own};

use super::{Fat, FatError, Place, entries};

/// Most directories that lie in each other: paths in FAT have 260 characters, so 130 names.
const MAX_DEPTH: usize = 130;
/// Longest path, in bytes: 260 characters with three bytes each fit.
const MAX_PATH_LEN: usize = 1024;
/// Most files and directories; a system partition has some dozens.
const MAX_PATHS: usize = 65_536;
/// Bytes of a file that are read at a time.
const BUFFER_LEN: usize = 256 << 10;

/// A file or directory: where it lies. All of it is false until it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) is_dir: bool,
    /// The first cluster; 0 for an empty file.
    pub(crate) cluster: u32,
    /// A file's length in bytes.
    pub(crate) len: u64,
}

impl<S: Source> Fat<S> {
    /// Every path but the root, without what machines have of their own.
    pub(crate) fn items(&self) -> Result<BTreeMap<ImagePath, Item>, FatError> {
        // Clusters that several files share would make reading longer than the partition is.
        let mut budget = self.len;
        let mut spend = |len: u64| {
            let left = budget.checked_sub(len);
            let left = left.ok_or(FatError::Damaged("its files are longer than it is"));
            left.map(|left| budget = left)
        };
        let mut items = BTreeMap::new();
        let mut waiting = vec![(ImagePath::root(), self.root.clone(), 0)];
        while let Some((dir, place, depth)) = waiting.pop() {
            let bytes = self.dir(&place)?;
            spend(bytes.len() as u64)?;
            for entry in entries(&bytes, self.width)? {
                let path = child(&dir, &entry.name)?;
                if is_machines_own(path.relative()) {
                    continue;
                }
                let len = if entry.is_dir { 0 } else { entry.len };
                let item = Item { is_dir: entry.is_dir, cluster: entry.cluster, len };
                if item.is_dir {
                    if depth >= MAX_DEPTH {
                        let what = "directories lie in each other without end";
                        return Err(FatError::Damaged(what));
                    }
                    waiting.push((path.clone(), Place::Chain(item.cluster), depth + 1));
                } else {
                    spend(item.len)?;
                }
                if items.insert(path, item).is_some() {
                    return Err(FatError::Damaged("two of its files have one name"));
                }
                if items.len() > MAX_PATHS {
                    return Err(FatError::Damaged("it has too many files"));
                }
            }
        }
        Ok(items)
    }

    /// The content of a file of `len` bytes that begins at the cluster `first`.
    pub(crate) fn content(&self, first: u32, len: u64) -> Result<Content<'_, S>, FatError> {
        let (mut runs, mut left): (Vec<(u64, u64)>, u64) = (Vec::new(), len);
        if left > 0 {
            self.walk(first, |at| {
                let here = left.min(self.cluster_len);
                match runs.last_mut().filter(|(start, len)| start + len == at) {
                    Some((_, len)) => *len += here,
                    None => runs.push((at, here)),
                }
                left -= here;
                Ok(left > 0)
            })?;
        }
        if left > 0 {
            return Err(FatError::Damaged("a file ends before its length"));
        }
        Ok(Content { disk: &self.disk, len, runs })
    }

    /// Every path with the digest of its content; none for directories.
    pub(crate) fn digests(&self) -> Result<BTreeMap<ImagePath, Option<Digest>>, FatError> {
        let digest = |item: &Item| {
            (!item.is_dir).then(|| self.content(item.cluster, item.len)?.digest()).transpose()
        };
        let items = self.items()?.into_iter();
        items.map(|(path, item)| Ok((path, digest(&item)?))).collect()
    }
}

fn child(dir: &ImagePath, name: &str) -> Result<ImagePath, FatError> {
    let path = dir.join(name.as_bytes());
    let path = path.map_err(|_| FatError::Damaged("a name in it is none"))?;
    if name.chars().any(char::is_control) {
        return Err(FatError::Damaged("a name in it has control characters"));
    }
    if path.as_bytes().len() > MAX_PATH_LEN {
        return Err(FatError::Damaged("its paths are too long"));
    }
    Ok(path)
}

/// The bytes of one file.
#[derive(Debug)]
pub(crate) struct Content<'a, S> {
    disk: &'a S,
    len: u64,
    /// First byte and length of each piece, in the file's order.
    runs: Vec<(u64, u64)>,
}

impl<S: Source> Content<'_, S> {
    /// Length in bytes.
    pub(crate) fn byte_len(&self) -> u64 {
        self.len
    }

    /// Fills `buffer` from `offset` on, as far as there is content; returns how many bytes that were.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let (mut before, mut done) = (0, 0);
        for (at, len) in &self.runs {
            let from = (offset + done as u64).saturating_sub(before);
            if from < *len && done < buffer.len() {
                let here = usize::try_from(len - from).unwrap_or(usize::MAX);
                let here = here.min(buffer.len() - done);
                self.disk.read_exact_at(&mut buffer[done..done + here], at + from)?;
                done += here;
            }
            before += len;
        }
        Ok(done)
    }

    pub(crate) fn digest(&self) -> Result<Digest, FatError> {
        let mut hasher = Hasher::new();
        self.pieces(|piece| {
            hasher.update(piece);
            Ok(())
        })?;
        Ok(hasher.finish())
    }

    /// Hands all bytes to `take`, in order.
    pub(crate) fn pieces(&self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let longest = usize::try_from(self.len).unwrap_or(BUFFER_LEN).min(BUFFER_LEN);
        let (mut buffer, mut at) = (vec![0; longest], 0);
        while at < self.len {
            let len = self.read_at(at, &mut buffer)?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            take(&buffer[..len])?;
            at += len as u64;
        }
        Ok(())
    }
}
