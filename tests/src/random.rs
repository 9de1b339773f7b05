//! Random trees with every kind of node, the same for the same seed.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, lsetxattr,
    makedev, mknodat, utimensat,
};
use vireo_testkit::Random;

/// Directories are no deeper than this below the root.
const MAX_DEPTH: usize = 3;

/// Names that meet each other again and again, and names that programs stumble over. None is one
/// that belongs to no version.
const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"lib.so.1",
    b"page.html",
    b".hidden",
    b"-rf",
    b"with space",
    b"new\nline",
    b"not\xffutf8",
    b"quote'\"\\",
    &[b'n'; 255],
];

/// Fills the empty directory `root` with a random tree. Needs root and a file system with
/// extended attributes.
///
/// # Errors
///
/// The system refused; that is no finding about Vireo.
pub fn write_tree(root: &Path, random: &mut Random) -> anyhow::Result<()> {
    let mut linkable = Vec::new();
    fill(root, 0, random, &mut linkable)?;
    set_dir_times(root, random)
}

/// Changes the tree in `root` at random: contents, metadata, kinds, links; moves, copies, removes
/// and adds.
///
/// # Errors
///
/// As [`write_tree`].
pub fn mutate_tree(root: &Path, random: &mut Random) -> anyhow::Result<()> {
    let mut paths = Vec::new();
    list(root, &mut paths)?;
    let mut linkable: Vec<PathBuf> = paths.iter().filter(|path| !is_dir(path)).cloned().collect();
    for path in &paths {
        if exists(path) && random.once_in(3) {
            mutate(path, root, random, &mut linkable)
                .with_context(|| format!("cannot change {}", path.display()))?;
        }
    }
    for dir in paths.iter().filter(|path| is_dir(path)) {
        if random.once_in(3) {
            fill(dir, MAX_DEPTH - 1, random, &mut linkable)?;
        }
    }
    set_dir_times(root, random)
}

fn mutate(
    path: &Path,
    root: &Path,
    random: &mut Random,
    linkable: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    match random.below(6) {
        0 => remove(path),
        1 => set_metadata(path, random),
        2 => {
            remove(path)?;
            make(path, 1, random, linkable)
        }
        3 if path.is_file() && !path.is_symlink() => edit(path, random),
        4 => {
            let to = root.join(os(random.pick(NAMES)));
            if !exists(&to) && !to.starts_with(path) {
                fs::rename(path, &to)?;
            }
            Ok(())
        }
        5 if path.is_file() && !path.is_symlink() => {
            let to = root.join(os(random.pick(NAMES)));
            if !exists(&to) {
                fs::copy(path, &to)?;
                set_metadata(&to, random)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Adds some nodes to the directory `dir`.
fn fill(
    dir: &Path,
    depth: usize,
    random: &mut Random,
    linkable: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    for _ in 0..random.below(7) + u64::from(depth == 0) * 2 {
        let path = dir.join(os(random.pick(NAMES)));
        if !exists(&path) {
            make(&path, depth, random, linkable)
                .with_context(|| format!("cannot make {}", path.display()))?;
        }
    }
    Ok(())
}

/// Makes a node of a random kind at `path`, where nothing is.
fn make(
    path: &Path,
    depth: usize,
    random: &mut Random,
    linkable: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    let special = |kind, device| mknodat(CWD, path, kind, Mode::from_bits_truncate(0o600), device);
    match random.below(16) {
        0..=3 if depth < MAX_DEPTH => {
            fs::create_dir(path)?;
            fill(path, depth + 1, random, linkable)?;
            return set_metadata(path, random);
        }
        4 => {
            let target: &[u8] =
                random.pick(&[b"a".as_slice(), b"../b", b"/etc/passwd", b"not\xffthere"]);
            std::os::unix::fs::symlink(os(target), path)?;
        }
        5 | 6 => {
            let alive: Vec<&Path> =
                linkable.iter().map(PathBuf::as_path).filter(|path| exists(path)).collect();
            if alive.is_empty() {
                fs::write(path, b"")?;
            } else {
                // No new metadata: the inode has its own.
                fs::hard_link(random.pick(&alive), path)?;
                return Ok(());
            }
        }
        7 => special(FileType::CharacterDevice, makedev(1, 3 + random.below(3) as u32))?,
        8 => special(FileType::BlockDevice, makedev(259, random.below(1 << 20) as u32))?,
        9 => special(FileType::Fifo, 0)?,
        10 => special(FileType::Socket, 0)?,
        _ => write_content(path, random)?,
    }
    linkable.push(path.to_owned());
    set_metadata(path, random)
}

fn write_content(path: &Path, random: &mut Random) -> anyhow::Result<()> {
    let file = File::create_new(path)?;
    match random.below(6) {
        0 => {}
        1 => {
            let len = random.below(20_000) as usize;
            (&file).write_all(&b"all work and no play ".repeat(1 + len / 21)[..len])?;
        }
        2 => {
            // Data between holes, and perhaps a hole at the end.
            for _ in 0..random.below(4) {
                let at = random.below(1 << 20);
                file.write_all_at(&random.bytes(5000), at)?;
            }
            let len = file.metadata()?.len();
            file.set_len(len + random.below(2) * random.below(1 << 18))?;
        }
        3 => (&file).write_all(&vec![0; random.below(100_000) as usize])?,
        _ => {
            // One of four long contents, which so meet again in other places, slightly edited.
            let mut content = Random::new(1000 + random.below(4)).bytes(150_000);
            if random.once_in(2) {
                let at = random.below(150_000) as usize;
                let insert = random.below(50) as usize;
                content.splice(at..at, random.bytes(insert));
            }
            (&file).write_all(&content)?;
        }
    }
    Ok(())
}

/// Writes to the inode that is there, as an editor that saves in place does.
fn edit(path: &Path, random: &mut Random) -> anyhow::Result<()> {
    let file = File::options().write(true).open(path)?;
    let len = file.metadata()?.len();
    match random.below(3) {
        0 => file.set_len(len / 2)?,
        1 => file.write_all_at(&random.bytes(700), len)?,
        _ => file.write_all_at(&random.bytes(100), random.below(len + 1))?,
    }
    set_time(path, random)
}

/// Owner, mode, extended attributes and time, in the order that each survives the next.
fn set_metadata(path: &Path, random: &mut Random) -> anyhow::Result<()> {
    let stat = path.symlink_metadata()?;
    let owner = |random: &mut Random| *random.pick(&[&0_u32, &33, &1000, &65534, &4_000_000_000]);
    let (uid, gid) = (Uid::from_raw(owner(random)), Gid::from_raw(owner(random)));
    chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !stat.is_symlink() {
        let mode = random.pick(&[
            &0o644_u32, &0o755, &0o600, &0o4755, &0o2755, &0o1777, &0o000, &0o7777, &0o640,
        ]);
        fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
    }
    set_xattrs(path, &stat, random)?;
    set_time(path, random)
}

fn set_xattrs(path: &Path, stat: &fs::Metadata, random: &mut Random) -> anyhow::Result<()> {
    let set = |name: &str, value: &[u8]| lsetxattr(path, name, value, XattrFlags::empty());
    if random.once_in(6) {
        let len = random.below(100) as usize;
        set("trusted.mark", &random.bytes(len))?;
    }
    if random.once_in(6) {
        let label: &str =
            random.pick(&["system_u:object_r:etc_t:s0", "system_u:object_r:bin_t:s0"]);
        set("security.selinux", label.as_bytes())?;
    }
    if (stat.is_file() || stat.is_dir()) && random.once_in(5) {
        let len = random.below(200) as usize;
        set("user.note", &random.bytes(len))?;
    }
    if stat.is_file() && random.once_in(8) {
        set("security.capability", &capability(random.below(1 << 10) as u32))?;
    }
    if !stat.is_symlink() && random.once_in(6) {
        set("system.posix_acl_access", &acl(33 + random.below(3) as u32))?;
    }
    if stat.is_dir() && random.once_in(6) {
        set("system.posix_acl_default", &acl(1000))?;
    }
    Ok(())
}

/// `struct vfs_cap_data` of <linux/capability.h>, revision 2, effective and permitted.
fn capability(permitted: u32) -> Vec<u8> {
    let words = [0x0200_0001, permitted, 0, 0, 0_u32];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `struct posix_acl_xattr_header` of <linux/posix_acl_xattr.h> and its entries: the owner, the
/// user `user`, the group, the mask, others.
fn acl(user: u32) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in
        [(1_u16, 7_u16, NOBODY), (2, 4, user), (4, 5, NOBODY), (16, 5, NOBODY), (32, 0, NOBODY)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn set_time(path: &Path, random: &mut Random) -> anyhow::Result<()> {
    let time = Timespec {
        tv_sec: 1_000_000_000 + random.below(1 << 29) as i64,
        tv_nsec: random.below(1_000_000_000) as _,
    };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Times of all directories, the root too, from the leaves up.
fn set_dir_times(root: &Path, random: &mut Random) -> anyhow::Result<()> {
    let mut paths = Vec::new();
    list(root, &mut paths)?;
    for dir in paths.iter().rev().filter(|path| is_dir(path)) {
        // Most stay what they have become, which is what they share with nobody.
        if random.once_in(2) {
            set_time(dir, random)?;
        }
    }
    set_time(root, random)
}

/// All paths below `dir`, parents first, in the same order everywhere.
fn list(dir: &Path, paths: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.path());
    }
    names.sort();
    for path in names {
        let below = is_dir(&path);
        paths.push(path.clone());
        if below {
            list(&path, paths)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> anyhow::Result<()> {
    if is_dir(path) {
        fs::remove_dir_all(path)?
    } else {
        fs::remove_file(path)?
    }
    Ok(())
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|stat| stat.is_dir())
}

fn os(name: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_has_one_entry_of_eight_bytes_for_each_subject() {
        assert_eq!(acl(1000).len(), 4 + 5 * 8);
    }
}
