//! The files that a process maps, asked for one by one with the ioctl `PROCMAP_QUERY` (Linux 6.11)
//! instead of read as text: the kernel leaves out anonymous memory and writes no line that would
//! be parsed again.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// `PROCMAP_QUERY` of <linux/fs.h>: `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611;

// Flags of `struct procmap_query`.
const COVERING_OR_NEXT_VMA: u64 = 0x10;
const FILE_BACKED_VMA: u64 = 0x20;

/// `struct procmap_query` of <linux/fs.h>.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Query {
    size: u64,
    flags: u64,
    addr: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name_addr: u64,
    build_id_addr: u64,
}

const _: () = assert!(size_of::<Query>() == 0x68);

/// One mapping of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMapping {
    /// Major number of the file's device, as the maps file shows it.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Inode number.
    pub inode: u64,
}

/// The file mappings of the process whose maps file (`/proc/PID/maps`) this is, in order.
///
/// The first item is `ENOTTY` if the kernel does not know the question. A process that has ended
/// meanwhile, and a kernel thread, have none.
#[derive(Debug)]
pub struct FileMappings<'a> {
    maps: BorrowedFd<'a>,
    /// Where to look on; none at the end.
    from: Option<u64>,
}

impl<'a> FileMappings<'a> {
    /// Of the process with this maps file.
    #[must_use]
    pub fn of(maps: BorrowedFd<'a>) -> Self {
        Self { maps, from: Some(0) }
    }
}

impl Iterator for FileMappings<'_> {
    type Item = io::Result<FileMapping>;

    fn next(&mut self) -> Option<io::Result<FileMapping>> {
        let addr = self.from.take()?;
        let flags = COVERING_OR_NEXT_VMA | FILE_BACKED_VMA;
        let mut query = Query { size: size_of::<Query>() as u64, flags, addr, ..Query::default() };
        match ask(self.maps, &mut query) {
            Ok(()) => {
                self.from = Some(query.end).filter(|end| *end > addr);
                let Query { major, minor, inode, .. } = query;
                Some(Ok(FileMapping { major, minor, inode }))
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

fn ask(maps: BorrowedFd<'_>, query: &mut Query) -> io::Result<()> {
    // SAFETY: PROCMAP_QUERY reads and writes one `struct procmap_query` at the address given, of
    // the size that its first field says; `query` has that layout (its size is asserted above) and
    // is ours alone. The addresses for names in it are zero with sizes zero: nothing else is written.
    #[expect(unsafe_code, reason = "an ioctl without a safe wrapper; this crate is the fence")]
    let result = unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, std::ptr::from_mut(query)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::{self, File};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn the_kernel_tells_what_its_text_says_or_that_it_cannot() {
        let maps = File::open("/proc/self/maps").expect("every process has one");
        let told: io::Result<BTreeSet<u64>> =
            FileMappings::of(maps.as_fd()).map(|mapping| Ok(mapping?.inode)).collect();
        match told {
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY)),
            Ok(told) => {
                let text = fs::read_to_string("/proc/self/maps").expect("readable");
                let inodes = text.lines().filter_map(|line| line.split_whitespace().nth(4));
                let read: BTreeSet<u64> = inodes
                    .filter_map(|inode| inode.parse().ok())
                    .filter(|inode| *inode != 0)
                    .collect();
                assert_eq!(told, read);
            }
        }
    }

    #[test]
    fn what_is_no_maps_file_is_an_error() {
        let null = File::open("/dev/null").expect("it is there");
        let mut asked = FileMappings::of(null.as_fd());
        assert!(asked.next().is_some_and(|first| first.is_err()));
        assert!(asked.next().is_none());
    }
}
