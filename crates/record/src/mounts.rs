//! Which mounted file systems are watched: those that hold a machine's files.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use vireo_model::mount_table::{self, Mounted};
use vireo_sys::fanotify::{FileSystemId, Watch, file_system_id, handle_of, open_handle};

use crate::error::RecordError;

/// Types of file systems on disks. The root is watched whatever its type.
const DISK_TYPES: &[&str] = &["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs"];

/// A mounted file system that is not watched.
#[derive(Debug)]
pub(crate) struct NotWatched {
    pub(crate) mount_point: PathBuf,
    pub(crate) why: io::Error,
}

/// What is watched: a handle on the mount of each file system.
pub(crate) type Watched = HashMap<FileSystemId, OwnedFd>;

/// Has `watch` watch every mounted disk file system; gives those it watches and those it cannot.
pub(crate) fn watch_all(watch: &Watch) -> Result<(Watched, Vec<NotWatched>), RecordError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(path).map_err(|error| RecordError::at("read", path, error))?;
    let (mut watched, mut refused) = (Watched::new(), Vec::new());
    for mount in disks(&text) {
        match watch_one(watch, &mount.point) {
            Ok((id, fd)) => drop(watched.insert(id, fd)),
            Err(why) if mount.point == Path::new("/") => {
                return Err(RecordError::at("watch the file system of", &mount.point, why));
            }
            Err(why) => refused.push(NotWatched { mount_point: mount.point, why }),
        }
    }
    Ok((watched, refused))
}

fn watch_one(watch: &Watch, mount_point: &Path) -> io::Result<(FileSystemId, OwnedFd)> {
    // A real descriptor: handles cannot be opened beside one that is a place only.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(mount_point, flags, Mode::empty())?;
    watch.add_file_system(fd.as_fd())?;
    let id = file_system_id(fd.as_fd())?;
    // Whether handles can be opened is known from the first one: a file system may make handles
    // for events and open none.
    open_handle(fd.as_fd(), &handle_of(fd.as_fd())?)?;
    Ok((id, fd))
}

/// One mount of each disk file system: the one that shows most of it.
fn disks(mountinfo: &[u8]) -> Vec<Mounted> {
    let mut by_device: HashMap<(u32, u32), Mounted> = HashMap::new();
    for mount in mount_table::parse(mountinfo) {
        let is_root = mount.point == Path::new("/");
        if !is_root && !DISK_TYPES.contains(&mount.kind.as_str()) {
            continue;
        }
        let rank = |mount: &Mounted| (mount.root.as_os_str().len(), mount.point.as_os_str().len());
        match by_device.get(&mount.device) {
            Some(known) if rank(known) <= rank(&mount) => {}
            _ => drop(by_device.insert(mount.device, mount)),
        }
    }
    let mut mounts: Vec<Mounted> = by_device.into_values().collect();
    mounts.sort_by(|a, b| a.point.cmp(&b.point));
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_is_watched_once_where_most_of_it_shows() {
        let text = b"22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
            23 22 0:5 / /proc rw - proc proc rw\n\
            24 22 254:1 /srv /mnt/srv rw - ext4 /dev/vda1 rw\n\
            25 22 254:2 / /my\\040data rw master:2 - xfs /dev/vdb rw\n\
            26 22 0:30 / /run rw - tmpfs tmpfs rw\n\
            27 22 254:2 / /my\\040data/again rw - xfs /dev/vdb rw\n\
            rubbish\n\n28 22\n";
        let mounts = disks(text);
        let points: Vec<&Path> = mounts.iter().map(|mount| mount.point.as_path()).collect();
        assert_eq!(points, [Path::new("/"), Path::new("/my data")]);
        let root = disks(b"22 1 0:40 / / rw - overlay overlay rw\n");
        assert_eq!(root[0].kind, "overlay", "the root counts whatever it is");
    }
}
