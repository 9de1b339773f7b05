//! The text of mount tables: what the kernel says is mounted (proc_pid_mountinfo(5)), and how it and
//! fstab(5) write names.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// A mount that a process can walk into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub point: PathBuf,
    /// What, as it was named when it was mounted: `/dev/loop3`.
    pub source: PathBuf,
    /// The type of the file system: `ext4`.
    pub kind: String,
    /// Its device's major and minor number.
    pub device: (u32, u32),
    /// Which of its directories is seen: `/`, unless it is a bind mount of a part.
    pub root: PathBuf,
}

/// The mounts that the text of a mount table names, in its order, which is the one in which they were
/// made; what is no line of one is passed over.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<Mounted> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// One line of proc_pid_mountinfo(5): device, root and mount point are the third to the fifth field;
/// after a field `-` come type and source.
fn parse_line(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ').skip(2);
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let mut path = || Some(PathBuf::from(OsString::from_vec(unescape(fields.next()?))));
    let (root, point) = (path()?, path()?);
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = OsString::from_vec(unescape(fields.next()?)).into();
    Some(Mounted { point, source, kind, device, root })
}

/// The bytes that a field of a mount table or of fstab(5) stands for: blanks, line ends and backslashes
/// are `\` and three octal digits there.
#[must_use]
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.split_first_chunk().filter(|_| *first == b'\\');
        let number = digits.and_then(|(digits, after)| Some((octal(*digits)?, after)));
        let (byte, after) = number.unwrap_or((*first, after));
        plain.push(byte);
        rest = after;
    }
    plain
}

/// None for what is no number of a byte.
fn octal(digits: [u8; 3]) -> Option<u8> {
    let is_octal = digits.iter().all(|digit| (b'0'..=b'7').contains(digit));
    let value = digits.iter().fold(0_u16, |value, digit| (value << 3) | u16::from(digit & 7));
    u8::try_from(value).ok().filter(|_| is_octal)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_line_gives_point_and_source_with_their_odd_names() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/ro\\134ot rw,errors=continue";
        let [mounted] = &parse(line)[..] else { panic!("it is a line of the manual page") };
        assert_eq!(mounted.point, Path::new("/mnt 2"));
        assert_eq!(mounted.source, Path::new("/dev/ro\\ot"));
        assert_eq!((mounted.kind.as_str(), mounted.device), ("ext3", (98, 0)));
        assert_eq!(mounted.root, Path::new("/mnt1"));
        assert!(parse(b"\n36 35 98:0 /\n36 35 device / /mnt rw - ext4 /dev/sda rw").is_empty());
    }

    #[test]
    fn a_field_is_read_as_it_was_written_and_what_is_no_number_stays() {
        for (field, plain) in [
            ("/plain", "/plain"),
            ("/a\\040b\\011c\\134040", "/a b\tc\\040"),
            ("/\\04", "/\\04"),
            ("/\\008", "/\\008"),
            ("/\\089", "/\\089"),
            ("/\\+12", "/\\+12"),
            ("/\\777", "/\\777"),
            ("\\", "\\"),
        ] {
            assert_eq!(unescape(field.as_bytes()), plain.as_bytes(), "{field}");
        }
    }
}
