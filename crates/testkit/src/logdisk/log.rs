//! The log: one record per write and per flush, in the order in which they were answered.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::error::{ErrorKind, TestkitError, failed};

/// Bytes of a record's head: kind, offset on the disk, length of the bytes that follow, when.
const HEAD_LEN: usize = 32;

const WRITE: u64 = 1;
const BARRIER: u64 = 2;

/// What happened to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Bytes were written. They may be lost until the next barrier.
    Write {
        /// Where on the disk.
        offset: u64,
        /// How many.
        len: u64,
        /// Where they are in the log.
        at: u64,
    },
    /// The cache was flushed: all writes before are durable.
    Barrier,
}

/// A recorded log.
#[derive(Debug)]
pub struct Log {
    file: File,
    records: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    /// Its end in the log.
    end: u64,
    /// When it was made, in nanoseconds of the monotonic clock, which all disks of a machine share.
    time: u64,
}

impl Log {
    /// Reads the heads of all records; the bytes stay in the file.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no log.
    pub(super) fn read(path: &Path) -> Result<Self, TestkitError> {
        let file = File::open(path).map_err(failed("open", path))?;
        let records = records(&file).map_err(failed("read", path))?;
        Ok(Self { file, records })
    }

    /// All records, in order.
    #[must_use = "iterators are lazy"]
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().map(|entry| &entry.record)
    }

    /// The number of records that were complete at a [`position`](super::LogDisk::position).
    #[must_use]
    pub fn count_until(&self, position: u64) -> usize {
        self.records.partition_point(|entry| entry.end <= position)
    }

    /// When the record with this number was made, on a clock that all disks share; `None` if there
    /// is none. What was answered before another disk was asked has the earlier time.
    #[must_use]
    pub fn time(&self, number: usize) -> Option<u64> {
        self.records.get(number).map(|entry| entry.time)
    }

    /// The number of records that were made until `time`.
    #[must_use]
    pub fn count_until_time(&self, time: u64) -> usize {
        self.records.partition_point(|entry| entry.time <= time)
    }

    /// The same writes on a disk that takes flushes for nothing.
    #[must_use]
    pub fn without_barriers(mut self) -> Self {
        self.records.retain(|entry| entry.record != Record::Barrier);
        self
    }

    /// The bytes of a write of this log; none of a barrier.
    ///
    /// # Errors
    ///
    /// The log cannot be read.
    pub fn bytes(&self, record: &Record) -> Result<Vec<u8>, TestkitError> {
        let Record::Write { len, at, .. } = *record else { return Ok(Vec::new()) };
        let len = usize::try_from(len).map_err(|_| unreadable("a write of impossible length"))?;
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at).map_err(failed("read", "the log of a disk"))?;
        Ok(bytes)
    }
}

fn unreadable(what: &str) -> TestkitError {
    TestkitError::new(ErrorKind::Failed, format!("the log of a disk has {what}"))
}

fn records(file: &File) -> io::Result<Vec<Entry>> {
    let mut reader = BufReader::new(file);
    let mut records = Vec::new();
    let mut at = 0;
    let mut head = [0; HEAD_LEN];
    let end = file.metadata()?.len();
    while at < end {
        reader.read_exact(&mut head)?;
        let [kind, offset, len, time] = [0, 8, 16, 24].map(|from| word(&head, from));
        at += HEAD_LEN as u64;
        let record = match kind {
            WRITE => Record::Write { offset, len, at },
            BARRIER => Record::Barrier,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "an unknown record")),
        };
        reader.seek_relative(i64::try_from(len).map_err(io::Error::other)?)?;
        at += len;
        records.push(Entry { record, end: at, time });
    }
    Ok(records)
}

fn word(head: &[u8; HEAD_LEN], from: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&head[from..from + 8]);
    u64::from_le_bytes(bytes)
}

/// Adds `bytes`, written at `offset`, to a log.
pub(super) fn add_write(mut log: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    log.write_all(&head(WRITE, offset, bytes.len() as u64))?;
    log.write_all(bytes)
}

/// Adds a flush to a log.
pub(super) fn add_barrier(mut log: &File) -> io::Result<()> {
    log.write_all(&head(BARRIER, 0, 0))
}

fn head(kind: u64, offset: u64, len: u64) -> Vec<u8> {
    [kind, offset, len, now()].iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // A machine that has run for less than 500 years.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
