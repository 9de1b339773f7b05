//! A copy of the machine's file systems that can be written to without a trace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use vireo_model::mount_table::{self, Mounted};
use vireo_sys::mounts;

/// File systems of which changes can be kept in memory: what they show is files and nothing else.
const OVERLAID: &[&str] = &[
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs", "overlay", "squashfs",
    "erofs",
];

/// File systems that a look can hang on or set going.
const LEFT_OUT: &[&str] = &["autofs", "nfs", "nfs4", "cifs", "9p", "ceph", "fuse.sshfs"];

/// Which part of the memory that is available the copy may take: one half.
const MEMORY_SHARE: u64 = 2;

/// How much memory there is (proc_meminfo(5)).
const MEMORY_INFO: &str = "/proc/meminfo";

/// Mounts a copy of everything below `/` at `name` in `scratch`, which has to be a file system in
/// memory: writable where that leaves no trace, and read-only where it would.
pub(super) fn copy_root(scratch: &Path, name: &str) -> Result<PathBuf, String> {
    let root = scratch.join(name);
    make_dir(&root)?;
    let table =
        mounts::table().map_err(|error| format!("what is mounted cannot be read: {error}"))?;
    for (number, (point, kind)) in points(&table, scratch).into_iter().enumerate() {
        let to = if point == Path::new("/") {
            root.clone()
        } else {
            root.join(point.strip_prefix("/").unwrap_or(&point))
        };
        if point != Path::new("/") && fs::symlink_metadata(&to).is_err() {
            // Hidden by another mount, or of a file that is gone.
            continue;
        }
        let layers = scratch.join(format!("{name}-{number}"));
        let overlaid = OVERLAID.contains(&kind.as_str())
            && point.is_dir()
            && overlay(&point, &to, &layers).is_ok();
        if overlaid {
            continue;
        }
        let shown = bind_read_only(&point, &to).map_err(|error| {
            format!("{} can be written to in the copy, and that stays: {error}", point.display())
        })?;
        // What else is not there, a checker that needs it will say.
        if let (Err(error), true) = (shown, point == Path::new("/")) {
            return Err(format!("the root file system cannot be shown: {error}"));
        }
    }
    Ok(root)
}

/// Mounts a file system in memory at `scratch`.
pub(super) fn mount_memory(scratch: &Path) -> Result<(), String> {
    let text =
        fs::read_to_string(MEMORY_INFO).map_err(|error| format!("{MEMORY_INFO}: {error}"))?;
    let kib = available(&text).ok_or_else(|| format!("{MEMORY_INFO} does not say what is free"))?;
    let data = format!("size={}k,mode=0700", kib / MEMORY_SHARE);
    let data = std::ffi::CString::new(data).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", scratch, "tmpfs", flags, &*data)
        .map_err(|error| format!("{} cannot be mounted over: {error}", scratch.display()))
}

/// Memory that can be had without swapping, in KiB.
fn available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Mount points and kinds of a mount table, each once and those above before those below.
fn points(table: &[u8], scratch: &Path) -> Vec<(PathBuf, String)> {
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    for Mounted { point, kind, .. } in mount_table::parse(table) {
        // The last mount at a place is the one that is seen.
        found.retain(|(other, _)| *other != point);
        if !point.starts_with(scratch) && !LEFT_OUT.contains(&kind.as_str()) {
            found.push((point, kind));
        }
    }
    found.sort();
    found
}

fn overlay(point: &Path, to: &Path, layers: &Path) -> io::Result<()> {
    for part in ["lower", "upper", "work"] {
        fs::create_dir_all(layers.join(part))?;
    }
    let lower = layers.join("lower");
    // Under a name that needs no escapes.
    mount_bind(point, &lower)?;
    let part = |name: &str| layers.join(name).display().to_string();
    let data =
        format!("lowerdir={},upperdir={},workdir={}", part("lower"), part("upper"), part("work"));
    let data = std::ffi::CString::new(data)?;
    Ok(mount("overlay", to, "overlay", MountFlags::empty(), &*data)?)
}

/// Shows `point` at `to`, or says why that cannot be. An error if it is shown and can be written to.
fn bind_read_only(point: &Path, to: &Path) -> io::Result<io::Result<()>> {
    if let Err(error) = mount_bind(point, to) {
        return Ok(Err(error.into()));
    }
    let read_only = mount_remount(to, MountFlags::BIND | MountFlags::RDONLY, "");
    if read_only.is_err() {
        unmount(to, UnmountFlags::DETACH)?;
    }
    Ok(read_only.map_err(io::Error::from))
}

pub(super) fn make_dir(path: &Path) -> Result<(), String> {
    fs::create_dir_all(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_what_is_available_may_be_taken() {
        let text = "MemTotal:       24689180 kB\nMemAvailable:   23068672 kB\n";
        assert_eq!(available(text), Some(23_068_672));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn mounts_are_copied_once_and_from_the_top() {
        let table = b"22 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
            23 22 0:21 / /proc rw shared:12 - proc proc rw\n\
            30 22 0:30 / /var/lib rw - tmpfs tmpfs rw\n\
            24 22 254:2 / /var rw - xfs /dev/vda2 rw\n\
            25 22 0:31 / /home rw - nfs4 server:/home rw\n\
            26 22 0:32 / /var/lib/vireo/check rw - tmpfs none rw\n\
            27 22 0:33 / /proc rw - proc proc rw\n";
        let found = points(table, Path::new("/var/lib/vireo/check"));
        let shown: Vec<String> =
            found.iter().map(|(point, kind)| format!("{} {kind}", point.display())).collect();
        assert_eq!(shown, ["/ ext4", "/proc proc", "/var xfs", "/var/lib tmpfs"]);
    }
}
