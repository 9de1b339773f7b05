//! Which blocks of a disk image differ from those of another.
//!
//! Clouds take disk images in blocks of [`BLOCK_LEN`]; a version that starts from an earlier one needs
//! only the blocks that differ. The cost follows the data: what is a hole in both files is never
//! looked at, so an image of 100 GiB with 2 GiB of data costs what one of 4 GiB with the same data does.
//!
//! A block that was data and now is zeros has changed like any other: who leaves it out leaves the
//! earlier content in place.
//!
//! # Not here
//!
//! File systems: a block is bytes. Blocks that two files share on disk (reflinks) are still compared.
//!
//! # Example
//!
//! ```
//! use std::io::Write as _;
//! use vireo_cloud::blocks::{self, BLOCK_LEN};
//!
//! let (base, mut target) = (tempfile::tempfile()?, tempfile::tempfile()?);
//! base.set_len(64 << 20)?;
//! target.set_len(64 << 20)?;
//! std::os::unix::fs::FileExt::write_all_at(&target, b"boot", 5 * BLOCK_LEN)?;
//! assert_eq!(blocks::changed(&base, &target)?.indices, [5]);
//! # Ok::<(), std::io::Error>(())
//! ```

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};

use vireo_sys::copy::next_data;

/// Length of a block, in bytes: the one that the EBS direct interface takes.
pub const BLOCK_LEN: u64 = 512 * 1024;

/// A block's length as an index.
const BLOCK: usize = BLOCK_LEN as usize;

/// What a search found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Indices of the blocks, ascending.
    pub indices: Vec<u32>,
    /// How many blocks were read for it, each from one file or two: what it cost.
    pub looked_at: u64,
}

/// The blocks in which `target` differs from `base`. What is beyond a file's end counts as zeros, so a
/// shorter target has changed where the base had data.
///
/// Cost: reads the data of both files once; two blocks of memory and four bytes per changed block.
///
/// # Errors
///
/// As `lseek(2)` and `pread(2)`; also a file longer than 2 PiB.
pub fn changed(base: &File, target: &File) -> io::Result<Found> {
    let [mut base, mut target] = [Extents::of(base)?, Extents::of(target)?];
    let [mut base_bytes, mut target_bytes] = [vec![0; BLOCK], vec![0; BLOCK]];
    let mut found = Found::default();
    let mut at = 0;
    while let Some(index) = first(base.next_block(at)?, target.next_block(at)?) {
        base.read(index, &mut base_bytes)?;
        target.read(index, &mut target_bytes)?;
        found.looked_at += 1;
        if base_bytes != target_bytes {
            found.push(index)?;
        }
        at = index + 1;
    }
    Ok(found)
}

/// The blocks of `disk` that are not all zeros: what has to be written where nothing was.
///
/// # Errors
///
/// As [`changed`].
pub fn with_data(disk: &File) -> io::Result<Found> {
    let mut disk = Extents::of(disk)?;
    let mut bytes = vec![0; BLOCK];
    let mut found = Found::default();
    let mut at = 0;
    while let Some(index) = disk.next_block(at)? {
        disk.read(index, &mut bytes)?;
        found.looked_at += 1;
        if bytes.iter().any(|byte| *byte != 0) {
            found.push(index)?;
        }
        at = index + 1;
    }
    Ok(found)
}

/// Reads block `index` of `disk`; what is beyond the file's end is zeros.
///
/// # Errors
///
/// As `pread(2)`.
pub fn read(disk: &File, index: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; BLOCK];
    fill(disk, u64::from(index) * BLOCK_LEN, &mut bytes)?;
    Ok(bytes)
}

/// Copies the blocks `indices` of `disk` to `target`, a file or a block device, as far as that reaches.
///
/// # Errors
///
/// As `pread(2)` and `pwrite(2)`.
pub fn copy(disk: &File, target: &File, indices: &[u32]) -> io::Result<()> {
    let end = len(target)?;
    let mut bytes = vec![0; BLOCK];
    for index in indices {
        let start = u64::from(*index) * BLOCK_LEN;
        fill(disk, start, &mut bytes)?;
        let part = usize::try_from(end.saturating_sub(start)).unwrap_or(BLOCK).min(BLOCK);
        target.write_all_at(&bytes[..part], start)?;
    }
    Ok(())
}

/// Length of a file or a block device, in bytes.
///
/// # Errors
///
/// As `lseek(2)`.
pub fn len(mut file: &File) -> io::Result<u64> {
    // Block devices have no length in their metadata.
    file.seek(SeekFrom::End(0))
}

/// How many blocks a disk of `len` bytes has.
#[must_use]
pub fn count(len: u64) -> u64 {
    len.div_ceil(BLOCK_LEN)
}

impl Found {
    fn push(&mut self, index: u64) -> io::Result<()> {
        let index = u32::try_from(index)
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "the disk is over 2 PiB"))?;
        self.indices.push(index);
        Ok(())
    }
}

fn first(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Reads from `at` until `bytes` is full or the file ends; the rest becomes zeros.
fn fill(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[filled..].fill(0);
    Ok(())
}

/// Walks a file's data from its start to its end.
struct Extents<'f> {
    file: &'f File,
    len: u64,
    /// Block devices have no holes, and refuse to be asked for them.
    has_holes: bool,
    /// The extent that was found last; none is left if it is `None`.
    extent: Option<Range<u64>>,
}

impl<'f> Extents<'f> {
    fn of(file: &'f File) -> io::Result<Self> {
        let (len, has_holes) = (len(file)?, !file.metadata()?.file_type().is_block_device());
        let mut extents = Self { file, len, has_holes, extent: None };
        extents.extent = extents.next_data(0)?;
        Ok(extents)
    }

    /// The first extent that ends behind `from`.
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        match self.has_holes {
            true => next_data(self.file, from, self.len),
            false => Ok((from < self.len).then_some(from..self.len)),
        }
    }

    /// The first block at or after block `at` that has data. Successive calls must not go back.
    fn next_block(&mut self, at: u64) -> io::Result<Option<u64>> {
        let from = at * BLOCK_LEN;
        while self.extent.as_ref().is_some_and(|extent| extent.end <= from) {
            self.extent = self.next_data(from)?;
        }
        Ok(self.extent.as_ref().map(|extent| extent.start.max(from) / BLOCK_LEN))
    }

    /// Fills `bytes` with block `index`, without asking the file where it has no data.
    fn read(&self, index: u64, bytes: &mut [u8]) -> io::Result<()> {
        let start = index * BLOCK_LEN;
        let has_data = self.extent.as_ref().is_some_and(|extent| extent.start < start + BLOCK_LEN);
        if !has_data {
            bytes.fill(0);
            return Ok(());
        }
        fill(self.file, start, bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(len: u64, writes: &[(u64, Vec<u8>)]) -> File {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(len).expect("a hole");
        for (at, bytes) in writes {
            file.write_all_at(bytes, *at).expect("written");
        }
        file
    }

    fn with_blocks(blocks: &[(u64, u8)], len: u64) -> File {
        let writes: Vec<_> =
            blocks.iter().map(|(at, byte)| (at * BLOCK_LEN, vec![*byte; BLOCK])).collect();
        file(len, &writes)
    }

    /// Every byte of every block, with no thought for holes.
    fn naive(base: &File, target: &File) -> Vec<u32> {
        let len = [base, target].map(|file| file.metadata().expect("metadata").len());
        let blocks = u32::try_from(count(len[0].max(len[1]))).expect("small");
        let differs = |index: &u32| {
            read(base, *index).expect("readable") != read(target, *index).expect("readable")
        };
        (0..blocks).filter(differs).collect()
    }

    #[test]
    fn copied_blocks_make_the_target_the_disk_and_zeros_behind_it() {
        let disk = with_blocks(&[(1, 1), (3, 3)], 4 * BLOCK_LEN - 100);
        // Longer, with something where the disk has ended, and not to the end of a block.
        let target = with_blocks(&[(0, 9), (1, 1), (4, 7)], 5 * BLOCK_LEN + 10);
        let indices = changed(&target, &disk).expect("compared").indices;
        assert_eq!(indices, [0, 3, 4]);
        copy(&disk, &target, &indices).expect("copied");
        assert_eq!(changed(&target, &disk).expect("compared").indices, [0; 0]);
        assert_eq!(len(&target).expect("its length"), 5 * BLOCK_LEN + 10, "it keeps its length");
    }

    #[test]
    fn a_block_that_became_zeros_has_changed() {
        let len = 8 * BLOCK_LEN;
        let base = with_blocks(&[(1, 1), (2, 2), (6, 6)], len);
        let hole = with_blocks(&[(1, 1), (6, 6)], len);
        let zeros = with_blocks(&[(1, 1), (2, 0), (6, 6)], len);
        assert_eq!(changed(&base, &hole).expect("compared").indices, [2], "punched out");
        assert_eq!(changed(&base, &zeros).expect("compared").indices, [2], "overwritten");
        assert_eq!(changed(&hole, &zeros).expect("compared").indices.len(), 0, "zeros are zeros");
    }

    #[test]
    fn the_last_block_may_be_short_and_lengths_may_differ() {
        let base = file(BLOCK_LEN + 10, &[(BLOCK_LEN + 9, vec![7])]);
        let longer = file(3 * BLOCK_LEN, &[(BLOCK_LEN + 9, vec![7]), (2 * BLOCK_LEN, vec![8])]);
        assert_eq!(changed(&base, &longer).expect("compared").indices, [2]);
        assert_eq!(changed(&longer, &base).expect("compared").indices, [2], "cut off is zeros");
        assert!(changed(&base, &base).expect("compared").indices.is_empty());
        assert_eq!(with_data(&base).expect("searched").indices, [1]);
    }

    #[test]
    fn an_empty_file_is_a_disk_of_zeros() {
        let (empty, disk) = (file(0, &[]), with_blocks(&[(3, 9)], 5 * BLOCK_LEN));
        assert_eq!(changed(&empty, &disk).expect("compared").indices, [3]);
        assert_eq!(changed(&disk, &empty).expect("compared").indices, [3]);
        assert_eq!(with_data(&empty).expect("searched"), Found::default());
    }

    #[test]
    fn holes_cost_nothing_however_large() {
        let blocks: Vec<(u64, u8)> = (0..16).map(|at| (at * 3, 5)).collect();
        let search = |len: u64| {
            let base = with_blocks(&blocks, len);
            let target = with_blocks(&[&blocks[1..], &[(60, 1)]].concat(), len);
            changed(&base, &target).expect("compared")
        };
        let (small, large) = (search(4 << 30), search(100 << 30));
        assert_eq!(small.indices, [0, 60]);
        assert_eq!(small, large, "25 times the size, the same cost");
        assert!(small.looked_at <= 2 * 17, "{} blocks", small.looked_at);
    }

    #[test]
    fn a_block_in_the_middle_of_an_extent_is_found_once() {
        let base = file(64 * BLOCK_LEN, &[(0, vec![1; 20 * BLOCK])]);
        let target =
            file(64 * BLOCK_LEN, &[(0, vec![1; 20 * BLOCK]), (7 * BLOCK_LEN + 3, vec![2])]);
        let found = changed(&base, &target).expect("compared");
        assert_eq!((found.indices, found.looked_at), (vec![7], 20));
    }

    fn writes() -> impl Strategy<Value = (u64, Vec<(u64, Vec<u8>)>)> {
        let len = 0..6 * BLOCK_LEN;
        // Values 0 and 1 only, so that equal blocks and blocks of written zeros are frequent.
        let write = (0..6 * BLOCK_LEN, 0..2u8, 1..2 * BLOCK).prop_map(|(at, byte, len)| {
            // Aligned half of the time: whole blocks then are equal.
            let at = if at % 2 == 0 { at / BLOCK_LEN * BLOCK_LEN } else { at };
            (at, vec![byte; len])
        });
        (len, prop::collection::vec(write, 0..5))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_search_finds_what_a_naive_comparison_finds(base in writes(), target in writes()) {
            let [base, target] = [base, target].map(|(len, writes)| file(len, &writes));
            prop_assert_eq!(changed(&base, &target)?.indices, naive(&base, &target));
            let nothing = file(0, &[]);
            prop_assert_eq!(with_data(&target)?.indices, naive(&nothing, &target));
        }
    }
}
