//! `/proc/PID/maps`: which files a process has mapped, as `proc(5)` describes it.
//!
//! Every file-backed mapping counts, not only executable ones: a Java runtime maps its modules
//! read-only.

use std::collections::BTreeSet;

use crate::FileId;

/// The files of one maps file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// Each mapped file once. The device is in `st_dev` form, but on btrfs it is not the
    /// device that `stat` gives.
    pub files: BTreeSet<FileId>,
    /// Lines that did not parse.
    pub unread: usize,
}

/// Reads the content of a maps file. Anonymous memory is left out.
#[must_use]
pub fn parse_maps(maps: &[u8]) -> Maps {
    let mut result = Maps::default();
    for line in maps.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        match parse_line(line) {
            Some(file) if file.ino == 0 => {}
            Some(file) => {
                result.files.insert(file);
            }
            None => result.unread += 1,
        }
    }
    result
}

/// `7f0c-7f0d r-xp 00001000 fe:01 1234   /usr/lib/x.so`; the path is not needed.
fn parse_line(line: &[u8]) -> Option<FileId> {
    let mut fields = line.split(|b| *b == b' ').filter(|field| !field.is_empty());
    let (_range, _mode, _offset) = (fields.next()?, fields.next()?, fields.next()?);
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let major = u32::from_str_radix(major, 16).ok()?;
    let minor = u32::from_str_radix(minor, 16).ok()?;
    let ino = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    Some(FileId { dev: make_dev(major, minor), ino })
}

/// A device number as `stat(2)` reports it (`st_dev`), from its halves; glibc's `makedev(3)`.
#[must_use]
pub const fn make_dev(major: u32, minor: u32) -> u64 {
    let (major, minor) = (major as u64, minor as u64);
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12) | ((major & !0xfff) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_once_and_anonymous_memory_not_at_all() {
        let maps = parse_maps(
            b"55d0c0a00000-55d0c0a2c000 r--p 00000000 fe:01 1044 /usr/sbin/nginx\n\
              55d0c0a2c000-55d0c0b00000 r-xp 0002c000 fe:01 1044 /usr/sbin/nginx (deleted)\n\
              7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n\
              7f0000001000-7f0000002000 r--s 00000000 07:09 12 /opt/a name with spaces\n\
              7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]\n",
        );
        let nginx = FileId { dev: make_dev(0xfe, 1), ino: 1044 };
        let named = FileId { dev: make_dev(7, 9), ino: 12 };
        assert_eq!(maps, Maps { files: BTreeSet::from([nginx, named]), unread: 0 });
    }

    #[test]
    fn what_does_not_parse_is_counted() {
        let maps = parse_maps(
            b"garbage\n7f00-7f01 r--p 0 zz:01 3 /x\n7f00-7f01 r--p 0 fe:01 -3 /x\n\xff\n",
        );
        assert_eq!(maps, Maps { files: BTreeSet::new(), unread: 4 });
    }

    #[test]
    fn a_device_number_is_put_together_as_stat_reports_it() {
        assert_eq!(make_dev(8, 1), 0x801);
        assert_eq!(make_dev(0xfe, 0x12345), 0x1230_fe45);
        assert_eq!(make_dev(0x12345, 0), 0x0001_2000_0003_4500);
    }
}
