//! Which of some files a process maps.
//!
//! The kernel is asked (`PROCMAP_QUERY`, Linux 6.11), or else its text is read: the answers are the
//! same, the first takes about half the time.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;

use vireo_classify::{FileId, make_dev, parse_maps};
use vireo_sys::procmap::FileMappings;

/// What a process maps of the files in question.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// Those it maps for certain.
    pub(crate) holds: BTreeSet<FileId>,
    /// It maps a file that could be one of them by another device number.
    pub(crate) doubtful: bool,
    /// Lines that were not understood.
    pub(crate) unread: usize,
}

/// What the process with this maps file maps of `files`.
///
/// # Errors
///
/// It cannot be read; `ESRCH` if the process has ended (proc_pid_maps(5)).
pub(crate) fn mapped(maps: File, files: &BTreeSet<FileId>) -> io::Result<Mapped> {
    match ask(&maps, files) {
        Some(asked) => Ok(asked),
        None => read(maps, files),
    }
}

/// The same from the text.
fn read(mut maps: File, files: &BTreeSet<FileId>) -> io::Result<Mapped> {
    let mut text = Vec::new();
    maps.read_to_end(&mut text)?;
    let found = parse_maps(&text);
    let mut mapped = Mapped { unread: found.unread, ..Mapped::default() };
    found.files.into_iter().for_each(|file| mapped.add(file, files));
    Ok(mapped)
}

/// The same by the kernel's own answers; none if it gives none.
fn ask(maps: &File, files: &BTreeSet<FileId>) -> Option<Mapped> {
    let mut mapped = Mapped::default();
    // The mappings of one file stand together.
    let mut last = None;
    for mapping in FileMappings::of(maps.as_fd()) {
        let mapping = mapping.ok()?;
        let file = FileId { dev: make_dev(mapping.major, mapping.minor), ino: mapping.inode };
        if last.replace(file) != Some(file) {
            mapped.add(file, files);
        }
    }
    Some(mapped)
}

impl Mapped {
    fn add(&mut self, file: FileId, files: &BTreeSet<FileId>) {
        if files.contains(&file) {
            self.holds.insert(file);
        } else if may_be_another_device(file, files) {
            self.doubtful = true;
        }
    }
}

/// On btrfs a map shows another device than `stat` gives, and the same inode number: whether
/// `mapped` could be one of `files` so. Asking for certain costs a look-up per mapping.
fn may_be_another_device(mapped: FileId, files: &BTreeSet<FileId>) -> bool {
    /// File systems without a block device, which btrfs is, have major number 0.
    const fn is_anonymous(dev: u64) -> bool {
        dev >> 8 & 0xfff == 0 && dev >> 44 == 0
    }
    is_anonymous(mapped.dev)
        && files
            .iter()
            .any(|file| file.ino == mapped.ino && file.dev != mapped.dev && is_anonymous(file.dev))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_kernels_answers_are_those_of_its_text() {
        let own = fs::metadata("/proc/self/exe").expect("a program");
        let exe = FileId { dev: own.dev(), ino: own.ino() };
        let files = BTreeSet::from([exe, FileId { dev: 1, ino: 1 }]);
        let open = || File::open("/proc/self/maps").expect("every process has one");
        let text = read(open(), &files).expect("readable");
        assert_eq!(text, Mapped { holds: BTreeSet::from([exe]), doubtful: false, unread: 0 });
        assert_eq!(mapped(open(), &files).expect("readable"), text);
        let asked = ask(&open(), &files);
        if kernel() >= (6, 11) {
            assert_eq!(asked, Some(text));
        } else {
            assert_eq!(asked, None);
        }
    }

    /// Major and minor number of the kernel that runs.
    fn kernel() -> (u32, u32) {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    #[test]
    fn only_devices_without_a_disk_can_be_shown_as_another() {
        let (disk, other_disk) = (FileId { dev: 0x801, ino: 5 }, FileId { dev: 0x802, ino: 5 });
        let (sub, whole) = (FileId { dev: 0x27, ino: 5 }, FileId { dev: 0x29, ino: 5 });
        assert!(may_be_another_device(whole, &BTreeSet::from([sub])));
        assert!(!may_be_another_device(sub, &BTreeSet::from([sub])));
        assert!(!may_be_another_device(disk, &BTreeSet::from([other_disk])));
    }
}
