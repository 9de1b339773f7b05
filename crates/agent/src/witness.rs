//! Whether somebody has read a file, by its access time.
//!
//! With `relatime` (mount(8)) the kernel moves the access time at a read if it is not after the
//! time of the last change; so the time is set back first, and the first read shows. Where a file
//! system keeps no access times there is no witness.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Mode, OFlags, StatVfsMountFlags, StatxFlags, Timespec, Timestamps, UTIME_OMIT,
    fstatvfs, futimens, open, statx,
};
use vireo_model::mount_table::unescape;

/// The access time that says "not read since": the first second of 1970.
const UNREAD: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Sets the access times of the files at `paths` below `root` back; gives the paths of which a
/// read will show.
pub(crate) fn watch(root: &Path, paths: &[String]) -> BTreeSet<String> {
    paths.iter().filter(|path| set_back(&place(root, path)).is_some()).cloned().collect()
}

/// Those of `paths` that somebody has read since [`watch`].
pub(crate) fn seen(root: &Path, paths: &BTreeSet<String>) -> BTreeSet<String> {
    let is_read = |path: &&String| {
        let wanted = StatxFlags::ATIME;
        let stat = statx(rustix::fs::CWD, place(root, path), AtFlags::empty(), wanted);
        stat.is_ok_and(|stat| stat.stx_atime.tv_sec != UNREAD.tv_sec)
    };
    paths.iter().filter(is_read).cloned().collect()
}

/// Whether a read of the file at `path` by the process of which `mounts` is the `mountinfo` file
/// (proc(5)) moves its access time: not where the process has the file on a read-only mount, as
/// services with `ProtectSystem=` have (systemd.exec(5)), or on one without access times.
pub(crate) fn leaves_trace(mounts: &str, path: &str) -> bool {
    let options = |line: &str| {
        let mut fields = line.split(' ').skip(4);
        let (point, options) = (fields.next()?, fields.next()?);
        let point = unescape(point.as_bytes());
        let below = path.as_bytes().strip_prefix(point.strip_suffix(b"/").unwrap_or(&point))?;
        let is_below = below.is_empty() || below.starts_with(b"/");
        is_below.then(|| (point.len(), options.to_owned()))
    };
    // Of two mounts on one point the later is on top.
    let found = mounts.lines().filter_map(options).max_by_key(|(len, _)| *len);
    found.is_none_or(|(_, options)| !options.split(',').any(|it| it == "ro" || it == "noatime"))
}

fn place(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn set_back(path: &Path) -> Option<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // Opening reads nothing.
    let file = File::from(open(path, flags, Mode::empty()).ok()?);
    let kept = fstatvfs(&file).ok()?.f_flag;
    if kept.contains(StatVfsMountFlags::NOATIME) || !file.metadata().ok()?.is_file() {
        return None;
    }
    let unchanged = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    futimens(&file, &Timestamps { last_access: UNREAD, last_modification: unchanged }).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_read_from_a_read_only_mount_leaves_no_trace() {
        let mounts = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            2 1 8:1 /etc /etc ro,relatime master:1 - ext4 /dev/sda1 rw\n\
            3 2 8:1 /etc/redis /etc/redis rw,relatime - ext4 /dev/sda1 rw\n\
            4 1 8:2 / /srv rw,noatime - ext4 /dev/sda2 rw\n\
            5 1 8:3 / /opt/two\\040words rw,noatime - ext4 /dev/sda3 rw\n";
        let traced = ["/opt/app.conf", "/etc/redis/redis.conf", "/etcetera"];
        assert!(traced.iter().all(|path| leaves_trace(mounts, path)));
        assert!(!leaves_trace(mounts, "/etc/memcached.conf"));
        assert!(!leaves_trace(mounts, "/srv/www/page"));
        assert!(
            !leaves_trace(mounts, "/opt/two words/app.conf"),
            "the table writes blanks otherwise"
        );
        assert!(leaves_trace("", "/etc/memcached.conf"), "nothing is known");
    }

    #[test]
    fn a_read_shows_and_a_look_does_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["a", "b"] {
            fs::write(dir.path().join(name), "text").expect("written");
        }
        let paths: Vec<String> = ["/a", "/b", "/gone"].map(str::to_owned).to_vec();
        let watched = watch(dir.path(), &paths);
        if watched.is_empty() {
            let flags =
                fstatvfs(File::open(dir.path()).expect("opens")).expect("a file system").f_flag;
            assert!(flags.contains(StatVfsMountFlags::NOATIME), "no reason not to watch");
            return;
        }
        assert_eq!(watched, paths[..2].iter().cloned().collect());
        fs::metadata(dir.path().join("a")).expect("there");
        assert!(seen(dir.path(), &watched).is_empty());
        fs::read(dir.path().join("b")).expect("readable");
        assert_eq!(seen(dir.path(), &watched), BTreeSet::from(["/b".to_owned()]));
    }
}
