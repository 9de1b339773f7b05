//! What a power cut leaves of a recorded disk.
//!
//! A disk with a volatile cache keeps everything that was written before the last completed flush,
//! and of the later writes any part, in any order. A [`Cut`] is one such outcome; [`cuts`] spreads a
//! bounded number of them evenly over a log. The same seed gives the same cuts.
//!
//! # Not here
//!
//! Recording ([`logdisk`](crate::logdisk)); mounting and judging what is left.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::error::{TestkitError, failed};
use crate::image::clone_image;
use crate::logdisk::{Log, Record};
use crate::random::Random;

/// What a disk writes whole or not at all, in bytes: the smallest unit that disks have.
const SECTOR: usize = 512;

/// What is left of the writes since the last barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// All of them: the disk wrote in order.
    Prefix,
    /// Each write with even odds, by this seed.
    Subset(u64),
    /// All but the last, of which each sector is written with even odds, by this seed.
    Torn(u64),
}

/// One power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Records before this one are on the disk.
    pub durable: usize,
    /// Power was lost before this record; those between are left as `left` says.
    pub end: usize,
    /// What is left of them.
    pub left: Left,
}

/// `count` cuts at evenly spread writes of `log`, of its records from `first` on; the three kinds of
/// [`Left`] in turn. Fewer writes than that are cut more than once, by other kinds and seeds.
#[must_use]
pub fn cuts(log: &Log, first: usize, count: usize, seed: u64) -> Vec<Cut> {
    cuts_of_all(&[(log, first)], count, seed).into_iter().flatten().collect()
}

/// The same for several disks, each with its log and the first record that counts, whose power is
/// lost at the same moment: one cut a disk. Each keeps of its own unflushed writes what it will, and
/// the writes are those of all disks in the order in which they were made.
#[must_use]
pub fn cuts_of_all(disks: &[(&Log, usize)], count: usize, seed: u64) -> Vec<Vec<Cut>> {
    let mut random = Random::new(seed);
    let mut writes = Vec::new();
    for (disk, (log, first)) in disks.iter().enumerate() {
        for (number, record) in log.records().enumerate().skip(*first) {
            if matches!(record, Record::Write { .. }) {
                writes.push((log.time(number), disk, number));
            }
        }
    }
    writes.sort_unstable();
    let all = if writes.is_empty() { 0 } else { count };
    let mut cut = |which: usize| {
        let (time, hit, number) = writes[(2 * which + 1) * writes.len() / (2 * count)];
        let of = |(disk, (log, _)): (usize, &(&Log, usize))| {
            let is_hit = disk == hit;
            let end = match time {
                Some(time) if !is_hit => log.count_until_time(time),
                _ => number + 1,
            };
            let left = match which % 3 {
                0 => Left::Prefix,
                // Only one write was under way.
                2 if is_hit => Left::Torn(random.number()),
                _ => Left::Subset(random.number()),
            };
            Cut { durable: durable(log, end), end, left }
        };
        disks.iter().enumerate().map(of).collect()
    };
    (0..all).map(&mut cut).collect()
}

/// The number of the last barrier before the record `end`; 0 if there is none.
fn durable(log: &Log, end: usize) -> usize {
    let records = log.records().enumerate().take(end);
    records.filter(|(_, record)| **record == Record::Barrier).last().map_or(0, |(number, _)| number)
}

impl Cut {
    /// Makes the new file `image` what this cut leaves of a disk that was `base` when `log` began.
    ///
    /// # Errors
    ///
    /// Reading or writing failed.
    pub fn build(&self, base: &Path, log: &Log, image: &Path) -> Result<(), TestkitError> {
        clone_image(base, image)?;
        let disk = File::options().write(true).open(image).map_err(failed("open", image))?;
        for (number, record) in log.records().enumerate().take(self.end) {
            let Record::Write { offset, .. } = *record else { continue };
            let bytes = log.bytes(record)?;
            self.write(number, &bytes, offset, &disk).map_err(failed("write", image))?;
        }
        Ok(())
    }

    /// Writes what is left of the write that has this `number` in the log.
    fn write(&self, number: usize, bytes: &[u8], at: u64, disk: &File) -> std::io::Result<()> {
        if number < self.durable {
            return disk.write_all_at(bytes, at);
        }
        match self.left {
            Left::Subset(seed) if Random::new(seed ^ number as u64).once_in(2) => Ok(()),
            Left::Torn(seed) if number + 1 == self.end => {
                let mut random = Random::new(seed);
                for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
                    if random.once_in(2) {
                        disk.write_all_at(bytes, at + (sector * SECTOR) as u64)?;
                    }
                }
                Ok(())
            }
            _ => disk.write_all_at(bytes, at),
        }
    }
}
