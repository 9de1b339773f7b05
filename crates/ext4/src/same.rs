//! Whether two states of one file system have the same inodes: the cheapest answer there is.
//!
//! The inode tables of both are compared byte for byte, in parallel and in long runs; no directory is
//! read and no inode is taken apart. Times of access, which reading changes, and checksums do not count.
//!
//! What is trusted is what [`compare`](mod@crate::compare) trusts, and more of it: names in directories,
//! attributes outside of inodes, and maps of blocks that do not fit into one, are taken to be the same
//! where the inode's time of change is. Kernels set that for all of them. A file that changed less
//! than [`RACY_SECS`](crate::RACY_SECS) before the end of the earlier state proves nothing here either;
//! nor does anything else if the inodes keep whole seconds alone (with parts of seconds, a change that
//! shows the same time would have had to come before the unmount and the mount between them).

use rayon::prelude::*;
use vireo_model::{Digest, Hasher};

use crate::Ext4Error;
use crate::bytes::{le16, le32, to_usize};
use crate::compare::trusted_until;
use crate::reader::Reader;

/// How much of a table is read at a time, in bytes.
const RUN_LEN: u32 = 256 << 10;

/// Fields of an inode that do not count: time of access, checksum, checksum, more of the time of access.
const IGNORED: [std::ops::Range<usize>; 4] = [0x8..0xc, 0x7c..0x7e, 0x82..0x84, 0x8c..0x90];
const MODE_AT: usize = 0;
/// Of a mode, what kind of inode it is, and which a regular file has.
const KIND: u16 = 0xf000;
const FILE: u16 = 0x8000;
const CTIME_AT: usize = 0xc;
/// Its two lowest bits go on where the seconds end.
const CTIME_EXTRA_AT: usize = 0x84;

/// Some inodes of one group: number of the first, and how many.
type Run = (u32, u32);

/// Whether every inode of `target` is as it was in `base`, and both are states of one file system, cleanly
/// unmounted: then their trees are equal. `false` proves nothing.
///
/// # Errors
///
/// As [`Reader::inode`].
pub fn is_unchanged(base: &Reader, target: &Reader) -> Result<bool, Ext4Error> {
    let Ok(until) = trusted_until(&base.identity(), &target.identity()) else { return Ok(false) };
    let shape = |reader: &Reader| {
        let superblock = &reader.superblock;
        (superblock.inodes, superblock.inodes_per_group, superblock.inode_len)
    };
    let runs = base.runs();
    if shape(base) != shape(target) || runs != target.runs() {
        return Ok(false);
    }
    let differs = |buffers: &mut (Vec<u8>, Vec<u8>), run: Run| -> Result<bool, Ext4Error> {
        let (before, after) = buffers;
        base.read_run(run, before)?;
        target.read_run(run, after)?;
        let len = to_usize(base.superblock.inode_len);
        let pairs = before.chunks_exact(len).zip(after.chunks_exact(len));
        Ok(pairs.into_iter().any(|(a, b)| !is_same(a, b) || changed_at(b) >= Some(until)))
    };
    let found = runs
        .into_par_iter()
        .map_init(Default::default, |buffers, run| differs(buffers, run))
        .find_any(|outcome| !matches!(outcome, Ok(false)));
    found.unwrap_or(Ok(false)).map(|differs| !differs)
}

impl Reader {
    /// A digest of all inodes, but for what [`is_unchanged`] leaves out.
    ///
    /// # Errors
    ///
    /// As [`Reader::inode`].
    pub fn inodes_digest(&self) -> Result<Digest, Ext4Error> {
        let digest = |buffer: &mut Vec<u8>, run: Run| -> Result<Digest, Ext4Error> {
            self.read_run(run, buffer)?;
            for inode in buffer.chunks_exact_mut(to_usize(self.superblock.inode_len)) {
                for field in IGNORED {
                    inode.get_mut(field).into_iter().for_each(|bytes| bytes.fill(0));
                }
            }
            Ok(Digest::of(buffer))
        };
        let runs = self.runs();
        let digests: Vec<Digest> = runs
            .par_iter()
            .map_init(Vec::new, |buffer, run| digest(buffer, *run))
            .collect::<Result<_, _>>()?;
        let mut hasher = Hasher::new();
        for ((first, count), digest) in runs.iter().zip(digests) {
            hasher.update(&first.to_le_bytes()).update(&count.to_le_bytes());
            hasher.update(digest.as_bytes());
        }
        Ok(hasher.finish())
    }

    /// The parts of the inode tables that were ever used, each to be read in one piece.
    fn runs(&self) -> Vec<Run> {
        let per_group = self.superblock.inodes_per_group;
        let most = RUN_LEN.checked_div(u32::from(self.superblock.inode_len)).unwrap_or(1).max(1);
        let mut runs = Vec::new();
        let mut first = 1_u32;
        for used in self.groups.used() {
            let mut done = 0_u32;
            while done < used {
                let count = used.saturating_sub(done).min(most);
                runs.push((first.saturating_add(done), count));
                done = done.saturating_add(count);
            }
            first = first.saturating_add(per_group);
        }
        runs
    }

    fn read_run(&self, (first, count): Run, buffer: &mut Vec<u8>) -> Result<(), Ext4Error> {
        let len = to_usize(self.superblock.inode_len);
        buffer.resize(to_usize(count).saturating_mul(len), 0);
        self.read_table(first, buffer)
    }
}

fn is_same(a: &[u8], b: &[u8]) -> bool {
    if a == b {
        return true;
    }
    let mut at = 0;
    for field in IGNORED {
        // A short inode ends before.
        let (start, end) = (field.start.min(a.len()), field.end.min(a.len()));
        if a.get(at..start) != b.get(at..start) {
            return false;
        }
        at = end;
    }
    a.get(at..) == b.get(at..)
}

/// The second in which an inode changed last; `None` if it is free, or one of which the time is enough.
fn changed_at(inode: &[u8]) -> Option<i64> {
    let mode = le16(inode, MODE_AT);
    let is_coarse = inode.len() <= CTIME_EXTRA_AT;
    if mode == 0 || (mode & KIND != FILE && !is_coarse) {
        return None;
    }
    let low = i64::from(le32(inode, CTIME_AT).cast_signed());
    let high = if inode.len() > CTIME_EXTRA_AT { le32(inode, CTIME_EXTRA_AT) & 3 } else { 0 };
    Some(low.saturating_add(i64::from(high) << 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_of_access_and_checksums_may_differ() {
        for len in [128, 256] {
            let inode = vec![7; len];
            for at in 0..len {
                let mut other = inode.clone();
                other[at] ^= 1;
                let ignored = IGNORED.iter().any(|field| field.contains(&at));
                assert_eq!(is_same(&inode, &other), ignored, "byte {at} of {len}");
            }
        }
    }

    #[test]
    fn a_time_of_change_has_34_bits() {
        let mut inode = vec![0; 256];
        assert_eq!(changed_at(&inode), None);
        inode[MODE_AT + 1] = 0x80;
        inode[CTIME_AT..CTIME_AT + 4].copy_from_slice(&(-2_i32).to_le_bytes());
        assert_eq!(changed_at(&inode), Some(-2));
        inode[CTIME_EXTRA_AT] = 1;
        assert_eq!(changed_at(&inode), Some((1 << 32) - 2));
        assert_eq!(changed_at(&inode[..128]), Some(-2));
        // A directory's time has parts of seconds, unless there is no room for them.
        inode[MODE_AT + 1] = 0x40;
        assert_eq!((changed_at(&inode), changed_at(&inode[..128])), (None, Some(-2)));
    }
}
