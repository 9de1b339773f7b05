//! Memory maps of sealed files.

use std::fs::File;
use std::io;
use std::ops::Deref;

/// The most that the kernel maps at a single access, in bytes: the largest folio of its page cache
/// (2 MiB on x86-64, and on arm64 with pages of 4 KiB). Multiples of it begin a page everywhere.
const MAX_FOLIO_LEN: usize = 2 << 20;

/// A file's bytes, mapped copy-on-write; reads as `&[u8]`, starts at a page boundary.
#[derive(Debug)]
pub struct Mapped(Option<memmap2::Mmap>);

impl Mapped {
    /// Gives the memory that `bytes`, a part of the map, and what the kernel has mapped along with
    /// them take back to the system. All stays readable: the next access reads it from the page
    /// cache or the file again. A process that walks through a large file this way, in any order,
    /// holds no more of it than it looks at.
    ///
    /// Bytes that are no part of the map, and a refusal by the kernel, change nothing.
    pub fn release(&self, bytes: &[u8]) {
        let Some(map) = &self.0 else { return };
        let from = (bytes.as_ptr() as usize).wrapping_sub(map.as_ptr() as usize);
        if bytes.is_empty() || from.checked_add(bytes.len()).is_none_or(|end| end > map.len()) {
            return;
        }
        // Whole folios, as an access maps them; other bytes are read again when they are used.
        let start = from - from % MAX_FOLIO_LEN;
        let end = (from + bytes.len()).next_multiple_of(MAX_FOLIO_LEN).min(map.len());
        // SAFETY: madvise(2): MADV_DONTNEED loses what was written to private pages. This map is
        // read-only and of a file, so there is nothing to lose; later reads see the file's bytes,
        // which `map_sealed` demands never to change.
        #[expect(unsafe_code, reason = "the crate's only discarding advice; see above")]
        let advised = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            map.unchecked_advise_range(advice, start, end - start)
        };
        // Advice: without it the memory stays in use, nothing else.
        drop(advised);
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Maps the whole of `file`; an empty file maps to no bytes.
///
/// For sealed files only, those written once and never again, as all bundles are. If another
/// process truncates `file` in place, reading the lost pages raises `SIGBUS`.
///
/// # Errors
///
/// As `mmap(2)`: the file is not mappable (a pipe, a directory) or address space is short.
pub fn map_sealed(file: &File) -> io::Result<Mapped> {
    if file.metadata()?.len() == 0 {
        return Ok(Mapped(None));
    }
    // SAFETY: the bytes must not change while borrowed. MAP_PRIVATE does not promise that:
    // mmap(2) leaves open whether later writes to the file show. It rests on the caller's file
    // being sealed: complete before it got its name, never written since. Vireo writes bundles
    // to a temporary name and renames them; nothing of ours writes in place.
    #[expect(unsafe_code, reason = "no safe mmap exists; this crate is the fence")]
    let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(file)? };
    Ok(Mapped(Some(map)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Resident pages of the process that are of files, in bytes (`proc_pid_status(5)`).
    fn resident_file_len() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("a status");
        let line = status.lines().find(|line| line.starts_with("RssFile:")).expect("a count");
        let count = line.split_whitespace().nth(1).expect("a number");
        count.parse::<u64>().expect("a number") << 10
    }

    #[test]
    fn released_bytes_leave_memory_and_stay_readable() {
        const LEN: usize = 32 << 20;
        let mut file = tempfile::tempfile().expect("a file");
        let bytes: Vec<u8> = (0..LEN).map(|at| (at >> 12) as u8).collect();
        file.write_all(&bytes).expect("written");
        let map = map_sealed(&file).expect("mapped");
        assert!(map.iter().eq(&bytes), "the map is the file");
        let before = resident_file_len();
        map.release(&map[..]);
        let after = resident_file_len();
        assert!(before > after + (LEN as u64) / 2, "{before} before, {after} after");
        map.release(&map[5..LEN - 7]);
        map.release(&bytes[..10]);
        assert!(map.iter().eq(&bytes), "the map is still the file");
    }
}
