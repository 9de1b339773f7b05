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

/// Reads the content of a maps file. Anonymous memory is left out. Cost: one pass over the bytes
/// without a copy of any, some 0.1 us per line.
#[must_use]
pub fn parse_maps(maps: &[u8]) -> Maps {
    let mut result = Maps::default();
    // The mappings of one file stand together: most lines name the file of the line before.
    let mut last = None;
    let mut rest = maps;
    while !rest.is_empty() {
        if rest[0] == b'\n' {
            rest = &rest[1..];
            continue;
        }
        match parse_line(rest) {
            Some(file) if file.ino == 0 || last == Some(file) => {}
            Some(file) => {
                result.files.insert(file);
                last = Some(file);
            }
            None => result.unread += 1,
        }
        rest = &rest[end_of_line(rest)..];
    }
    result
}

fn end_of_line(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len())
}

/// `7f0c-7f0d r-xp 00001000 fe:01 1234   /usr/lib/x.so`; the path is not needed.
fn parse_line(line: &[u8]) -> Option<FileId> {
    let rest = skip_field(skip_field(skip_field(line)?)?)?;
    let (major, rest) = number(rest, 16)?;
    let (minor, rest) = number(rest.strip_prefix(b":")?, 16)?;
    let (ino, rest) = number(skip_blanks(rest.strip_prefix(b" ")?), 10)?;
    if !matches!(rest.first(), None | Some(b' ' | b'\n')) {
        return None;
    }
    let (major, minor) = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    Some(FileId { dev: make_dev(major, minor), ino })
}

/// What follows the field that `bytes` begin with and the blanks after it, on the same line.
fn skip_field(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| matches!(byte, b' ' | b'\n'))?;
    (bytes[end] == b' ').then(|| skip_blanks(&bytes[end..]))
}

/// The number that `bytes` begin with, and what follows it; none if there is none or it is too
/// great.
fn number(bytes: &[u8], base: u64) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    let mut len = 0;
    for byte in bytes {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' if base == 16 => byte - b'a' + 10,
            _ => break,
        };
        value = value.checked_mul(base)?.checked_add(u64::from(digit))?;
        len += 1;
    }
    (len > 0).then(|| (value, &bytes[len..]))
}

/// Without leading blanks, and no other white space: a line must not run into the next one.
fn skip_blanks(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| *byte != b' ').unwrap_or(bytes.len());
    &bytes[start..]
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
    fn a_line_that_ends_early_does_not_run_into_the_next() {
        let maps = parse_maps(b"7f00-7f01 r--p\n0 fe:01 3 /x\n7f00-7f01 r--p 0 fe:01 3x /x\n\n7f00-7f01 r--p 0 fe:01 7");
        assert_eq!(maps.files.iter().map(|file| file.ino).collect::<Vec<_>>(), [7]);
        assert_eq!(maps.unread, 3);
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
