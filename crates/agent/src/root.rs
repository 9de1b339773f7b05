//! The machine's root as its image has it: the file systems that hold its files, without what
//! else is mounted on them.
//!
//! The image knows the directories `/proc` and `/sys`, the running machine shows what is mounted
//! there instead. Detached copies of the mounts (`open_tree(2)`) show the directories themselves;
//! they are in no namespace and go with their handles.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, Stat, fstat, major, minor, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use vireo_model::ImagePath;
use vireo_tree::Root;

use crate::error::AgentError;

/// File systems that hold the files of versions. What else is mounted (proc, tmpfs, network
/// file systems, overlays of containers) is the machine's own.
const DISK_FILE_SYSTEMS: &[&str] = &["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"];

/// What EFI system partitions have. It counts where `/etc/fstab` names it, as in the image: what systemd finds by the
/// types of partitions, and media that somebody plugged in, are not in it.
const VFAT: &[u8] = b"vfat";

/// The mounts of this process (proc_pid_mountinfo(5)).
const MOUNT_INFO: &str = "/proc/self/mountinfo";

/// Opens the tree below `path` with the disk file systems mounted in it; where the kernel or
/// missing rights forbid copies of mounts, as it is shown.
pub(crate) fn open_root(path: &Path) -> Result<Root, AgentError> {
    let Some(directory) = detached(path)? else {
        return Ok(Root::open(path)?);
    };
    let stat = fstat(&directory).map_err(|error| AgentError::io("look at", path, error.into()))?;
    let device = format!("{}:{}", major(stat.st_dev), minor(stat.st_dev));
    let mut root = Root::from_fd(directory, path.to_owned());
    let Some(canonical) = place_of(path, &stat) else {
        return Ok(root);
    };
    let fstab = fs::read(canonical.join("etc/fstab")).unwrap_or_default();
    let vfat = vfat_places(&fstab);
    for at in &vfat {
        // One that systemd mounts when somebody looks (systemd.automount(5)).
        drop(fs::read_dir(canonical.join(OsStr::from_bytes(at.relative()))));
    }
    // Without a table there are no further file systems, as in a bare chroot.
    let table = fs::read(MOUNT_INFO).unwrap_or_default();
    for at in mounts_below(&table, &canonical, &device, &vfat) {
        let place = canonical.join(OsStr::from_bytes(at.relative()));
        if let Some(mount) = detached(&place)? {
            root = root.with_mount(at, mount);
        }
    }
    Ok(root)
}

/// Where this process's mount table has the directory `path`, whose metadata is `stat`; nowhere if it
/// is in another mount namespace, such as `/proc/PID/root`, or in none. The name alone would lie: that
/// of another namespace's root is `/` too.
fn place_of(path: &Path, stat: &Stat) -> Option<PathBuf> {
    let canonical = fs::canonicalize(path).ok()?;
    let found = fs::metadata(&canonical).ok()?;
    ((found.dev(), found.ino()) == (stat.st_dev, stat.st_ino)).then_some(canonical)
}

/// Whether `path` is the root directory that this process sees, whatever its name.
#[must_use]
pub fn is_own_root(path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    identity(path).is_some_and(|found| identity(Path::new("/")) == Some(found))
}

/// The root directory of a copy of the mount at `path`; none where that is not allowed.
fn detached(path: &Path) -> Result<Option<OwnedFd>, AgentError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = match open_tree(CWD, path, flags) {
        Ok(mount) => mount,
        Err(Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::INVAL) => return Ok(None),
        Err(error) => return Err(AgentError::io("open", path, error.into())),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(&mount, ".", flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        // A mount of a single file, as containers have for /etc/hosts: the machine's own.
        Err(Errno::NOTDIR) => Ok(None),
        Err(error) => Err(AgentError::io("open the directory", path, error.into())),
    }
}

/// Where below `root`, whose device is `device`, whole disk file systems of their own are
/// mounted, by the text of a mount table; vfat at the places `vfat` alone. The last mount at a place is the one
/// that is seen.
fn mounts_below(table: &[u8], root: &Path, device: &str, vfat: &[ImagePath]) -> Vec<ImagePath> {
    let root = root.as_os_str().as_bytes();
    let root = root.strip_suffix(b"/").unwrap_or(root);
    let mut found: Vec<(ImagePath, bool)> = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        let Some(mount) = Line::parse(line) else { continue };
        let point = unescape(mount.point);
        let Some(below) = point.strip_prefix(root).filter(|below| below.first() == Some(&b'/'))
        else {
            continue;
        };
        let Ok(at) = ImagePath::parse(below) else { continue };
        if at.is_root() {
            continue;
        }
        let is_disk = DISK_FILE_SYSTEMS.iter().any(|name| name.as_bytes() == mount.kind)
            || (mount.kind == VFAT && vfat.contains(&at));
        // A part of a file system (bind mount) or the root's once more shows files a second time.
        let is_whole = mount.root == b"/" || mount.kind == b"btrfs";
        let is_own = mount.device != device.as_bytes();
        found.retain(|(other, _)| *other != at);
        found.push((at, is_disk && is_whole && is_own));
    }
    let hidden: Vec<ImagePath> =
        found.iter().filter(|(_, counts)| !counts).map(|(at, _)| at.clone()).collect();
    let is_hidden = |at: &ImagePath| hidden.iter().any(|other| at != other && at.is_within(other));
    found.into_iter().filter(|(at, counts)| *counts && !is_hidden(at)).map(|(at, _)| at).collect()
}

/// Where the text of an `/etc/fstab` mounts vfat at boot (fstab(5)).
fn vfat_places(fstab: &[u8]) -> Vec<ImagePath> {
    let place = |line: &[u8]| {
        let mut fields = line
            .split(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
            .filter(|field| !field.is_empty());
        fields.next().filter(|device| !device.starts_with(b"#"))?;
        let (at, kind) = (unescape(fields.next()?), fields.next()?);
        let options = fields.next().unwrap_or(b"");
        let is_mounted = !options.split(|byte| *byte == b',').any(|option| option == b"noauto");
        let at = at.strip_suffix(b"/").unwrap_or(&at);
        let at = ImagePath::parse(at).ok().filter(|at| !at.is_root())?;
        (is_mounted && [VFAT, b"auto"].contains(&kind)).then_some(at)
    };
    fstab.split(|byte| *byte == b'\n').filter_map(place).collect()
}

/// One line of proc_pid_mountinfo(5).
pub(crate) struct Line<'a> {
    device: &'a [u8],
    root: &'a [u8],
    pub(crate) point: &'a [u8],
    pub(crate) kind: &'a [u8],
}

impl<'a> Line<'a> {
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
        // Optional fields end with a dash.
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Self { device, root, point, kind })
    }
}

/// Space, tab, newline and backslash are written as octal numbers.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let digits = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let octal = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(field[at]);
                at += 1;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use vireo_model::Ignore;
    use vireo_tree::{ScanOptions, scan};

    use super::*;

    #[test]
    fn a_directory_reads_the_same_as_by_its_path() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("a"), "text").expect("written");
        let read = |root: &Root| {
            scan(root, &Ignore::nothing(), &ScanOptions::default()).expect("readable").tree
        };
        let copy = open_root(dir.path()).expect("opens");
        assert_eq!(read(&copy), read(&Root::open(dir.path()).expect("opens")));
        assert_eq!(copy.label(), dir.path());
        assert!(open_root(&dir.path().join("gone")).is_err());
    }

    #[test]
    fn the_root_of_another_process_is_no_place_of_ours() {
        let other = tempfile::tempdir().expect("a temporary directory");
        let stat = |path: &Path| rustix::fs::stat(path).expect("there");
        // Its name is the same as another directory's.
        assert_eq!(place_of(Path::new("/proc/self/root"), &stat(other.path())), None);
        assert_eq!(
            place_of(other.path(), &stat(other.path())),
            fs::canonicalize(other.path()).ok()
        );
        assert!(is_own_root(Path::new("/proc/self/root")) && is_own_root(Path::new("/")));
        assert!(!is_own_root(other.path()) && !is_own_root(&other.path().join("gone")));
    }

    #[test]
    fn disk_file_systems_of_their_own_are_part_of_the_tree_and_nothing_else() {
        let table = b"22 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
            23 22 0:21 / /proc rw shared:12 - proc proc rw\n\
            24 22 254:2 / /boot rw shared:1 master:2 - ext4 /dev/vda2 rw\n\
            25 24 254:3 / /boot/efi rw - vfat /dev/vda3 rw\n\
            26 22 254:1 /srv /mnt/srv rw - ext4 /dev/vda1 rw\n\
            27 22 0:30 / /run rw - tmpfs tmpfs rw\n\
            28 27 254:4 / /run/media rw - ext4 /dev/vda4 rw\n\
            29 22 254:5 / /srv/with\\040space rw - xfs /dev/vda5 rw\n\
            30 22 254:6 /part /opt rw - ext4 /dev/vda6 rw\n\
            damaged\n";
        let found = |root: &str| -> Vec<String> {
            let mounts = mounts_below(table, Path::new(root), "254:1", &[]);
            mounts.iter().map(ToString::to_string).collect()
        };
        assert_eq!(found("/"), ["/boot", "/srv/with space"]);
        assert_eq!(found("/boot"), [""; 0]);
        assert_eq!(found("/bo"), [""; 0]);
        // The EFI system partition counts where the machine's own list has it.
        let named = vfat_places(
            b"# vfat\nUUID=1 / ext4\nUUID=2 /boot/efi/ vfat umask=0077 0 1\nUUID=3 /media auto noauto 0 0\n",
        );
        assert_eq!(named.iter().map(ToString::to_string).collect::<Vec<_>>(), ["/boot/efi"]);
        let mounts = mounts_below(table, Path::new("/"), "254:1", &named);
        let mounts: Vec<String> = mounts.iter().map(ToString::to_string).collect();
        assert_eq!(mounts, ["/boot", "/boot/efi", "/srv/with space"]);
    }
}
