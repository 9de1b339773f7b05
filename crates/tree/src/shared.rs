//! Files that need not be read because they have all their blocks in common with files that were.

use std::fs::File;

use rustix::fs::fstat;
use vireo_model::{Digest, ImagePath};
use vireo_sys::fiemap;

use crate::read::file_stat;
use crate::{FileStat, Root, Scan};

/// The digest of the file `path` below `root`, which stands as `file`, if it has all its blocks in common with the
/// file of that path in the other tree. What cannot be told is read, and says then what is wrong.
///
/// As sound as reading: the blocks are the same at one moment ([`fiemap::share_all`]), and by their times of
/// change, looked at after it, neither file was written since the one was read and the other was listed.
pub(crate) fn shared_digest(
    root: &Root,
    path: &ImagePath,
    file: &FileStat,
    (base_root, base): (&Root, &Scan),
) -> Option<Digest> {
    let known = base.files.get(path).filter(|known| known.len == file.len)?;
    let (_, digest) = base.tree.get(path)?.content()?;
    let before = base_root.open_file(path).ok()?;
    let after = root.open_file(path).ok()?;
    let is_shared = fiemap::share_all(&before, &after).ok()?;
    let stands = |file: &File, as_seen: &FileStat| {
        fstat(file).is_ok_and(|stat| file_stat(&stat) == *as_seen)
    };
    (is_shared && stands(&before, known) && stands(&after, file)).then_some(digest)
}
