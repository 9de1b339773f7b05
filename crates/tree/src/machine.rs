//! A directory as its image has it: the file systems that hold its files, without what else is
//! mounted on them.
//!
//! The image knows the directories `/proc` and `/sys`, the running machine shows what is mounted
//! there instead. Detached copies of the mounts (`open_tree(2)`) show the directories themselves;
//! they are in no namespace and go with their handles.

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, Stat, fstat, major, minor, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use vireo_model::fstab::{self, VFAT, vfat_places};
use vireo_model::mount_table;
use vireo_model::{Ignore, ImagePath};
use vireo_sys::mounts;

use crate::{Root, TreeError};

/// File systems that hold the files of versions. What else is mounted (proc, tmpfs, network
/// file systems, overlays of containers) is the machine's own.
const DISK_FILE_SYSTEMS: &[&str] = &["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"];

/// Of which a part is mounted as if it were a whole: a subvolume.
const BTRFS: &str = "btrfs";

/// The inode number of every subvolume's root directory (`BTRFS_FIRST_FREE_OBJECTID`), which no other directory has.
const SUBVOLUME_INO: u64 = 256;

/// A directory's tree, and what is mounted in it and is no part of that.
#[derive(Debug)]
pub struct Machine {
    root: Root,
    place: Option<PathBuf>,
    others: Vec<Other>,
}

/// A mount that is no part of the tree in which it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Where.
    pub at: ImagePath,
    /// The type of its file system: `proc`.
    pub kind: String,
    /// Whether its files are read as if they were the tree's: the kernel or missing rights forbid copies of
    /// mounts, so that nobody can see what it hides.
    pub is_read: bool,
}

impl Other {
    /// Whether `ignore` leaves out all that is mounted there, and what it hides.
    #[must_use]
    pub fn is_left_out(&self, ignore: &Ignore) -> bool {
        // `/proc/**` leaves the directory itself in the version, which no mount changes.
        ignore.covers(&self.at) || self.at.join(b"*").is_ok_and(|any| ignore.covers(&any))
    }
}

impl Machine {
    /// Opens the tree below `path` with the disk file systems mounted in it; where the kernel or
    /// missing rights forbid copies of mounts, as it is shown.
    ///
    /// # Errors
    ///
    /// `path`, or a file system mounted in it, is no directory or cannot be opened.
    pub fn open(path: &Path) -> Result<Self, TreeError> {
        let copy = detached(path)?;
        let is_copy = copy.is_some();
        let root = match copy {
            Some(directory) => Root::from_fd(directory, path.to_owned()),
            None => Root::open(path)?,
        };
        let top = ImagePath::root();
        let stat = root.dir(&top).and_then(|dir| dir.stat(b"."));
        let stat = stat.map_err(root.failed("look at", &top))?;
        let place = place_of(path, &stat);
        let mut machine = Self { root, place: place.clone(), others: Vec::new() };
        if let Some(canonical) = place {
            machine.join_mounts(&canonical, (major(stat.st_dev), minor(stat.st_dev)), is_copy)?;
        }
        Ok(machine)
    }

    /// The tree.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The tree alone.
    #[must_use]
    pub fn into_root(self) -> Root {
        self.root
    }

    /// Where names of this process lead to it, without symbolic links; none in another mount namespace.
    #[must_use]
    pub fn place(&self) -> Option<&Path> {
        self.place.as_deref()
    }

    /// What else is mounted in it, in path order, without what is mounted in that.
    #[must_use]
    pub fn others(&self) -> &[Other] {
        &self.others
    }

    /// The tree's own list of file systems; nothing if it has none that can be one. Whoever made the tree may have
    /// put a link, a pipe or a flood there.
    fn fstab(&self) -> Vec<u8> {
        let read = || {
            let file = self.root.open_file(&ImagePath::parse(b"/etc/fstab").ok()?).ok()?;
            let mut text = Vec::new();
            file.take(fstab::MAX_LEN + 1).read_to_end(&mut text).ok()?;
            Some(text)
        };
        read().unwrap_or_default()
    }

    /// Joins what is mounted below `canonical`, whose file system is on `device`.
    fn join_mounts(
        &mut self,
        canonical: &Path,
        device: (u32, u32),
        is_copy: bool,
    ) -> Result<(), TreeError> {
        let place = |at: &ImagePath| canonical.join(OsStr::from_bytes(at.relative()));
        // vfat counts where `/etc/fstab` names it, as in the image: what systemd finds by the types of
        // partitions, and media that somebody plugged in, are not in it.
        let vfat = vfat_places(&self.fstab());
        for at in &vfat {
            // One that systemd mounts when somebody looks (systemd.automount(5)).
            drop(fs::read_dir(place(at)));
        }
        // Without a table there are no further file systems, as in a bare chroot.
        let table = mounts::table().unwrap_or_default();
        for Below { at, kind, is_part } in mounts_below(&table, canonical, device, &vfat) {
            // Nothing is seen within what is no part.
            if self.others.iter().any(|other| at.is_within(&other.at)) {
                continue;
            }
            let copy = if is_copy && is_part { detached(&place(&at))? } else { None };
            match copy.filter(|mount| kind != BTRFS || is_subvolume(mount, device)) {
                Some(mount) => self.root.add_mount(at, mount),
                None => self.others.push(Other { at, kind, is_read: !is_copy }),
            }
        }
        Ok(())
    }
}

/// Where this process's mount table has the directory `path`, whose metadata is `stat`; nowhere if it
/// is in another mount namespace, such as `/proc/PID/root`, or in none. The name alone would lie: that
/// of another namespace's root is `/` too.
fn place_of(path: &Path, stat: &Stat) -> Option<PathBuf> {
    let canonical = fs::canonicalize(path).ok()?;
    let found = fs::metadata(&canonical).ok()?;
    ((found.dev(), found.ino()) == (stat.st_dev, stat.st_ino)).then_some(canonical)
}

/// The root directory of a copy of the mount at `path`; none where that is not allowed.
fn detached(path: &Path) -> Result<Option<OwnedFd>, TreeError> {
    let failed = |step: &'static str| {
        move |error: Errno| TreeError::io(step, path, &ImagePath::root(), error)
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = match open_tree(CWD, path, flags) {
        Ok(mount) => mount,
        Err(Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::INVAL) => return Ok(None),
        Err(error) => return Err(failed("open")(error)),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(&mount, ".", flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        // A mount of a single file, as containers have for /etc/hosts: the machine's own.
        Err(Errno::NOTDIR) => Ok(None),
        Err(error) => Err(failed("open the directory")(error)),
    }
}

/// Whether the directory at `mount`, which is on btrfs, is a subvolume other than that with the number `root`. Mount
/// tables have one number for all subvolumes of a file system, and parts of them (bind mounts) look like them there.
fn is_subvolume(mount: &OwnedFd, root: (u32, u32)) -> bool {
    let own = |stat: Stat| (major(stat.st_dev), minor(stat.st_dev)) != root;
    fstat(mount).is_ok_and(|stat| stat.st_ino == SUBVOLUME_INO && own(stat))
}

/// What is mounted in a directory.
#[derive(Debug)]
struct Below {
    at: ImagePath,
    kind: String,
    /// Whether it is a whole disk file system of its own.
    is_part: bool,
}

/// What is mounted below `root`, which is on `device`, by a mount table, in path order; vfat is a part at the places
/// `vfat` alone. The last mount at a place is the one that is seen, and nothing is seen within what is no part.
fn mounts_below(table: &[u8], root: &Path, device: (u32, u32), vfat: &[ImagePath]) -> Vec<Below> {
    let root = root.as_os_str().as_bytes();
    let root = root.strip_suffix(b"/").unwrap_or(root);
    let mut found: Vec<Below> = Vec::new();
    for mount in mount_table::parse(table) {
        let below = mount.point.as_os_str().as_bytes().strip_prefix(root);
        let Some(below) = below.filter(|below| below.first() == Some(&b'/')) else { continue };
        let Ok(at) = ImagePath::parse(below) else { continue };
        if at.is_root() {
            continue;
        }
        let kind = mount.kind;
        let is_disk =
            DISK_FILE_SYSTEMS.contains(&kind.as_str()) || (kind == VFAT && vfat.contains(&at));
        // A part of a file system (bind mount) or the root's once more shows files a second time.
        let is_whole = mount.root == Path::new("/") || kind == BTRFS;
        let is_part = is_disk && is_whole && mount.device != device;
        found.retain(|other| other.at != at);
        found.push(Below { at, kind, is_part });
    }
    found.sort_by(|a, b| a.at.cmp(&b.at));
    let others = found.iter().filter(|mount| !mount.is_part);
    let others: Vec<ImagePath> = others.map(|mount| mount.at.clone()).collect();
    let is_hidden = |at: &ImagePath| others.iter().any(|other| at != other && at.is_within(other));
    found.retain(|mount| !is_hidden(&mount.at));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ScanOptions, scan};

    #[test]
    fn a_directory_reads_the_same_as_by_its_path() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("a"), "text").expect("written");
        let read = |root: &Root| {
            scan(root, &Ignore::nothing(), &ScanOptions::default()).expect("readable").tree
        };
        let copy = Machine::open(dir.path()).expect("opens").into_root();
        assert_eq!(read(&copy), read(&Root::open(dir.path()).expect("opens")));
        assert_eq!(copy.label(), dir.path());
        assert!(Machine::open(&dir.path().join("gone")).is_err());
    }

    #[test]
    fn what_is_no_list_of_file_systems_is_not_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let place = dir.path().join("etc/fstab");
        fs::create_dir(dir.path().join("etc")).expect("made");
        let read = || Machine::open(dir.path()).expect("opens").fstab();
        assert_eq!(read(), b"");
        // A link out of the tree to what never ends, a pipe that nobody writes to, a flood.
        std::os::unix::fs::symlink("/dev/zero", &place).expect("linked");
        assert_eq!(read(), b"");
        fs::remove_file(&place).expect("removed");
        rustix::fs::mknodat(CWD, &place, rustix::fs::FileType::Fifo, Mode::RUSR, 0).expect("made");
        assert_eq!(read(), b"");
        fs::remove_file(&place).expect("removed");
        let line = b"UUID=2 /boot/efi vfat umask=0077 0 1\n";
        let flood = [&line[..], &vec![b'#'; fstab::MAX_LEN as usize * 2]].concat();
        fs::write(&place, flood).expect("written");
        assert_eq!(read().len() as u64, fstab::MAX_LEN + 1);
        assert!(vfat_places(&read()).is_empty(), "it is too long for a list");
        fs::write(&place, line).expect("written");
        assert_eq!(vfat_places(&read()).len(), 1);
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
    }

    const TABLE: &[u8] = b"22 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
        23 22 0:21 / /proc rw shared:12 - proc proc rw\n\
        24 22 254:2 / /boot rw shared:1 master:2 - ext4 /dev/vda2 rw\n\
        25 24 254:3 / /boot/efi rw - vfat /dev/vda3 rw\n\
        26 22 254:1 /srv /mnt/srv rw - ext4 /dev/vda1 rw\n\
        27 22 0:30 / /run rw - tmpfs tmpfs rw\n\
        28 27 254:4 / /run/media rw - ext4 /dev/vda4 rw\n\
        29 22 254:5 / /srv/with\\040space rw - xfs /dev/vda5 rw\n\
        30 22 254:6 /part /opt rw - ext4 /dev/vda6 rw\n\
        31 22 0:44 / /home rw - nfs4 server:/home rw\n\
        damaged\n";

    /// The parts below `root`, and what else is seen there.
    fn below(root: &str, vfat: &[ImagePath]) -> [Vec<String>; 2] {
        let found = mounts_below(TABLE, Path::new(root), (254, 1), vfat);
        [true, false].map(|is_part| {
            let list = found.iter().filter(|mount| mount.is_part == is_part);
            list.map(|mount| mount.at.to_string()).collect()
        })
    }

    #[test]
    fn disk_file_systems_of_their_own_are_part_of_the_tree_and_nothing_else() {
        let others = ["/boot/efi", "/home", "/mnt/srv", "/opt", "/proc", "/run"];
        let parts = ["/boot", "/srv/with space"];
        assert_eq!(below("/", &[]), [parts.to_vec(), others.to_vec()]);
        assert_eq!(below("/boot", &[]), [vec![], vec!["/efi"]]);
        assert_eq!(below("/bo", &[]), [vec![""; 0], vec![]]);
        // The EFI system partition counts where the machine's own list has it.
        let named = vfat_places(b"UUID=1 / ext4\nUUID=2 /boot/efi/ vfat umask=0077 0 1\n");
        let [parts, others] = below("/", &named);
        assert_eq!(parts, ["/boot", "/boot/efi", "/srv/with space"]);
        assert!(!others.contains(&"/boot/efi".to_owned()));
    }

    #[test]
    fn what_the_ignore_list_leaves_out_is_told_from_what_hides_files() {
        let is_left_out = |at: &str| {
            let at = ImagePath::parse(at.as_bytes()).expect("a valid path");
            Other { at, kind: "tmpfs".to_owned(), is_read: false }.is_left_out(&Ignore::default())
        };
        assert!(is_left_out("/proc") && is_left_out("/dev/pts") && is_left_out("/var/lib/vireo/x"));
        assert!(!is_left_out("/home") && !is_left_out("/var/lib"));
    }
}
