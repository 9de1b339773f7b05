//! The language of debugfs(8), and running it.
//!
//! A script is lines of words. A word in double quotes is taken as it is, two quotes in it for one;
//! a line end cannot be said. What makes a name is said in its directory: some commands take no
//! path (`write`, `mknod`), the others take `/name` for a name in the working directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use vireo_model::{DeviceKind, ImagePath, Node, NodeKind, Timestamp};

use crate::fsck::{excerpt, output_to, search_path, target_of};
use crate::partition::Partition;
use crate::{ErrorKind, ImageError};

/// Longest line that debugfs reads, in bytes: `BUFSIZ` of the C library, less the end of the line.
const MAX_LINE_LEN: usize = 8190;

/// Name of a node for a moment, in the directory of the one that it becomes.
const MOMENT: &[u8] = b".vireo-moment";

/// Where the length of inodes stands in an ext superblock, and that of the oldest ones.
const INODE_LEN_AT: u64 = 1024 + 0x58;
const OLD_INODE_LEN: u16 = 128;

const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFSOCK: u32 = 0o140_000;

/// Whether inodes have room for nanoseconds and years beyond 2038.
pub(crate) fn has_wide_inodes(image: &Path, partition: &Partition) -> Result<bool, ImageError> {
    let mut len = [0; 2];
    File::open(image)
        .and_then(|file| {
            file.read_exact_at(&mut len, partition.offset.saturating_add(INODE_LEN_AT))
        })
        .map_err(|error| ImageError::io("read", image, error))?;
    Ok(u16::from_le_bytes(len) > OLD_INODE_LEN)
}

/// How many names of inodes are linked and removed, by first name.
#[derive(Default)]
pub(crate) struct Links(BTreeMap<ImagePath, Count>);

/// Names beyond the first.
#[derive(Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) added: u16,
    pub(crate) removed: u16,
}

impl Links {
    pub(crate) fn added(&mut self, leader: &ImagePath) {
        let count = self.0.entry(leader.clone()).or_default();
        count.added = count.added.saturating_add(1);
    }

    pub(crate) fn removed(&mut self, leader: &ImagePath) {
        let count = self.0.entry(leader.clone()).or_default();
        count.removed = count.removed.saturating_add(1);
    }

    /// The first names whose counts debugfs does not keep by itself: `ln` does not, `rm` does.
    pub(crate) fn uncounted(&self) -> impl Iterator<Item = (&ImagePath, Count)> {
        let linked = self.0.iter().filter(|(_, count)| count.added > 0);
        linked.map(|(leader, count)| (leader, *count))
    }
}

/// Commands for debugfs.
#[derive(Debug)]
pub(crate) struct Script {
    text: Vec<u8>,
    /// Where the working directory is.
    at: Option<ImagePath>,
    wide: bool,
    numbers: usize,
}

impl Script {
    pub(crate) fn new(wide: bool) -> Self {
        Self { text: Vec::new(), at: None, wide, numbers: 0 }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.text
    }

    /// Another number each time.
    pub(crate) fn next_number(&mut self) -> usize {
        self.numbers += 1;
        self.numbers
    }

    /// `about` is for messages.
    fn line(
        &mut self,
        about: &ImagePath,
        command: &str,
        words: &[&[u8]],
    ) -> Result<(), ImageError> {
        let start = self.text.len();
        self.text.extend_from_slice(command.as_bytes());
        for word in words {
            self.text.extend_from_slice(b" \"");
            for byte in *word {
                // Quotes are said twice.
                self.text.extend(std::iter::repeat_n(*byte, 1 + usize::from(*byte == b'"')));
            }
            self.text.push(b'"');
        }
        let said = &self.text[start..];
        if said.contains(&b'\n') || said.contains(&0) || said.len() > MAX_LINE_LEN {
            let message = format!(
                "{} cannot be patched without root: its name, target or place has a line end or is too \
                 long for debugfs; patch the image as root, which mounts it; nothing was changed",
                String::from_utf8_lossy(about.as_bytes()).escape_debug()
            );
            return Err(ImageError::new(ErrorKind::Unsupported, message));
        }
        self.text.push(b'\n');
        Ok(())
    }

    fn enter(&mut self, path: &ImagePath) -> Result<(), ImageError> {
        let parent = path.parent().unwrap_or_else(ImagePath::root);
        if self.at.as_ref() != Some(&parent) {
            self.line(path, "cd", &[parent.as_bytes()])?;
            self.at = Some(parent);
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, path: &ImagePath, node: &Node) -> Result<(), ImageError> {
        // The working directory must not be one that goes.
        if node.is_dir() {
            self.line(path, "cd", &[b"/"])?;
            self.at = Some(ImagePath::root());
        }
        self.line(path, if node.is_dir() { "rmdir" } else { "rm" }, &[path.as_bytes()])
    }

    pub(crate) fn file(&mut self, path: &ImagePath, staged: &Path) -> Result<(), ImageError> {
        self.enter(path)?;
        self.line(path, "write", &[staged.as_os_str().as_bytes(), path.name()])
    }

    pub(crate) fn dir(&mut self, path: &ImagePath) -> Result<(), ImageError> {
        self.enter(path)?;
        self.line(path, "mkdir", &[path.name()])
    }

    pub(crate) fn symlink(&mut self, path: &ImagePath, target: &[u8]) -> Result<(), ImageError> {
        self.enter(path)?;
        self.line(path, "symlink", &[path.name(), target])
    }

    pub(crate) fn fifo(&mut self, path: &ImagePath) -> Result<(), ImageError> {
        self.enter(path)?;
        self.line(path, "mknod", &[path.name(), b"p"])
    }

    /// debugfs makes no sockets, but gives a further name the kind that the inode has by then.
    pub(crate) fn socket(&mut self, path: &ImagePath, mode: u32) -> Result<(), ImageError> {
        self.enter(path)?;
        let parent = path.parent().unwrap_or_else(ImagePath::root);
        let moment = parent.join(MOMENT).map_err(|error| {
            ImageError::new(ErrorKind::Unsupported, format!("{path} is too long: {error}"))
        })?;
        self.line(path, "mknod", &[MOMENT, b"p"])?;
        self.set(&moment, "mode", &format!("0{:o}", S_IFSOCK | mode))?;
        self.link(&moment, path)?;
        self.line(path, "unlink", &[moment.as_bytes()])
    }

    /// Numbers beyond what debugfs takes are set as the inode keeps them.
    pub(crate) fn device(
        &mut self,
        path: &ImagePath,
        kind: DeviceKind,
        major: u32,
        minor: u32,
    ) -> Result<(), ImageError> {
        self.enter(path)?;
        let letter: &[u8] = match kind {
            DeviceKind::Char => b"c",
            DeviceKind::Block => b"b",
        };
        self.line(path, "mknod", &[path.name(), letter, b"1", b"1"])?;
        // <linux/kdev_t.h>: the old encoding where both fit into a byte, else the new one.
        let (old, new) = if major < 256 && minor < 256 {
            (major << 8 | minor, 0)
        } else {
            (0, (minor & 0xFF) | major << 8 | (minor & !0xFF) << 12)
        };
        self.set(path, "block[0]", &old.to_string())?;
        self.set(path, "block[1]", &new.to_string())
    }

    /// Gives an inode one more name. `ln` does not make a full directory longer, `mknod` does: so
    /// the place is made by a node that goes again.
    pub(crate) fn link(&mut self, leader: &ImagePath, path: &ImagePath) -> Result<(), ImageError> {
        self.fifo(path)?;
        self.line(path, "rm", &[path.as_bytes()])?;
        self.line(path, "ln", &[leader.as_bytes(), path.name()])
    }

    pub(crate) fn set(
        &mut self,
        path: &ImagePath,
        field: &str,
        value: &str,
    ) -> Result<(), ImageError> {
        self.line(path, "sif", &[path.as_bytes(), field.as_bytes(), value.as_bytes()])
    }

    pub(crate) fn owner_and_mode(
        &mut self,
        path: &ImagePath,
        node: &Node,
    ) -> Result<(), ImageError> {
        let kind = match &node.kind {
            NodeKind::File { .. } | NodeKind::HardLink { .. } => S_IFREG,
            NodeKind::Dir => S_IFDIR,
            NodeKind::Symlink { .. } => S_IFLNK,
            NodeKind::Device { kind: DeviceKind::Char, .. } => S_IFCHR,
            NodeKind::Device { kind: DeviceKind::Block, .. } => S_IFBLK,
            NodeKind::Fifo => S_IFIFO,
            NodeKind::Socket => S_IFSOCK,
        };
        self.set(path, "mode", &format!("0{:o}", kind | node.mode))?;
        self.set(path, "uid", &node.uid.to_string())?;
        self.set(path, "gid", &node.gid.to_string())
    }

    /// The time of last modification: the lower 32 bits of the seconds, and beside them two more and
    /// the nanoseconds (`Documentation/filesystems/ext4/inodes.rst`).
    pub(crate) fn time(&mut self, path: &ImagePath, time: Timestamp) -> Result<(), ImageError> {
        let bytes = time.secs.to_le_bytes();
        let low = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        // As the kernel reads it: the lower half has a sign.
        let signed = i64::from(low) - if low >> 31 == 1 { 1 << 32 } else { 0 };
        let epoch = (time.secs.wrapping_sub(signed) >> 32) & 3;
        let extra = (i64::from(time.nanos) << 2) | epoch;
        self.set(path, "mtime", &format!("@{low}"))?;
        if self.wide {
            self.set(path, "mtime_extra", &extra.to_string())?;
        }
        Ok(())
    }

    pub(crate) fn set_xattr(
        &mut self,
        path: &ImagePath,
        name: &[u8],
        staged: &Path,
    ) -> Result<(), ImageError> {
        self.line(path, "ea_set -f", &[staged.as_os_str().as_bytes(), path.as_bytes(), name])
    }

    pub(crate) fn remove_xattr(&mut self, path: &ImagePath, name: &[u8]) -> Result<(), ImageError> {
        self.line(path, "ea_rm", &[path.as_bytes(), name])
    }
}

/// Has debugfs do what `script` says with the file system in `partition` of `image`.
///
/// # Errors
///
/// `NoSpace` if it ran out of it, `Unsupported` with what it said about anything else; `Io` if it
/// cannot be run (package e2fsprogs).
pub(crate) fn run(image: &Path, partition: &Partition, script: &Path) -> Result<(), ImageError> {
    let failed =
        |error: io::Error| ImageError::io("run debugfs (package e2fsprogs) on", image, error);
    let file = File::options().read(true).write(true).open(image).map_err(failed)?;
    let mut command = Command::new("debugfs");
    command
        .args(["-w", "-f"])
        .arg(script)
        .arg(target_of(partition))
        .env("LC_ALL", "C")
        .env("PATH", search_path())
        // Nothing asks, and nothing waits for a terminal.
        .env("DEBUGFS_PAGER", "__none__")
        .stdin(Stdio::from(file));
    // It repeats every line of the script there.
    let output = output_to(&mut command, Stdio::null()).map_err(failed)?;
    let complaints = complaints(&String::from_utf8_lossy(&output.stderr));
    if output.status.success() && complaints.is_empty() {
        return Ok(());
    }
    let is_full = ["No free space", "Could not allocate"];
    let kind = match is_full.iter().any(|words| complaints.contains(words)) {
        true => ErrorKind::NoSpace,
        false => ErrorKind::Unsupported,
    };
    let message = format!(
        "{}: debugfs could not make the update ({}): {}; nothing was changed",
        image.display(),
        output.status,
        excerpt(&complaints)
    );
    Err(ImageError::new(kind, message))
}

/// What it wrote to its standard error besides its name and version.
fn complaints(text: &str) -> String {
    let said =
        text.lines().filter(|line| !line.starts_with("debugfs 1.") && !line.trim().is_empty());
    said.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a path")
    }

    fn text(script: &Script) -> String {
        String::from_utf8_lossy(script.bytes()).into_owned()
    }

    #[test]
    fn words_are_quoted_and_quotes_doubled() {
        let mut script = Script::new(true);
        script.symlink(&path("/a b"), b"c\"d\\e\tf").expect("sayable");
        assert_eq!(text(&script), "cd \"/\"\nsymlink \"a b\" \"c\"\"d\\e\tf\"\n");
    }

    #[test]
    fn what_cannot_be_said_is_refused_by_name() {
        let long = format!("/{}", vec!["x".repeat(250); 40].join("/"));
        let mut script = Script::new(true);
        let says = |outcome: Result<(), ImageError>| outcome.expect_err("refused").to_string();
        let line_end = says(script.dir(&path("/a\nb")));
        assert!(line_end.contains("/a\\nb") && line_end.contains("as root"), "{line_end}");
        assert!(says(script.symlink(&path("/l"), b"x\ny")).contains("/l"));
        assert!(says(script.symlink(&path("/l"), long.as_bytes())).contains("too long"));
    }

    #[test]
    fn times_before_1970_and_after_2038_are_split_as_the_kernel_joins_them() {
        // From inodes.rst: extra bits 0, 1, 1 and the lower half of each.
        let cases = [
            (-1, "@4294967295", 0),
            (0, "@0", 0),
            (0x7FFF_FFFF, "@2147483647", 0),
            (0x8000_0000, "@2147483648", 1),
            (0x1_7FFF_FFFF, "@2147483647", 1),
            (0x1_8000_0000, "@2147483648", 2),
        ];
        for (secs, low, epoch) in cases {
            let mut script = Script::new(true);
            script.time(&path("/f"), Timestamp { secs, nanos: 3 }).expect("sayable");
            let expected = format!(
                "sif \"/f\" \"mtime\" \"{low}\"\nsif \"/f\" \"mtime_extra\" \"{}\"\n",
                12 | epoch
            );
            assert_eq!(text(&script), expected, "{secs}");
        }
    }

    #[test]
    fn a_working_directory_is_entered_once() {
        let mut script = Script::new(false);
        for name in ["/d/a", "/d/b", "/c"] {
            script.fifo(&path(name)).expect("sayable");
        }
        let expected =
            "cd \"/d\"\nmknod \"a\" \"p\"\nmknod \"b\" \"p\"\ncd \"/\"\nmknod \"c\" \"p\"\n";
        assert_eq!(text(&script), expected);
    }

    #[test]
    fn only_the_banner_is_no_complaint() {
        assert_eq!(complaints("debugfs 1.47.0 (5-Feb-2023)\n"), "");
        let rm = "rm: File not found by ext2_lookup while trying to resolve filename";
        assert_eq!(complaints(&format!("debugfs 1.47.0 (5-Feb-2023)\n{rm}\n")), rm);
    }
}
