//! The normal form of what is on FAT, as on EFI system partitions: names, kinds and contents, and nothing else.
//!
//! FAT keeps no owners, modes, links or extended attributes, and times of two seconds in a zone that nobody names;
//! what a mount shows of them are options of the mount. So whoever reads FAT, by a mount or without, gives every
//! file and directory the same owner, mode and time, and the same files have one digest everywhere.
//!
//! # Not here
//!
//! Which file systems are FAT, and reading them.

use std::collections::BTreeMap;

use crate::{ChangeSet, Digest, ImagePath, Node, NodeKind, Timestamp, Tree};

/// The mode of files and directories: what most distributions mount with (`umask=0077`), since a system
/// partition holds nothing for others.
pub const PLAIN_MODE: u32 = 0o700;

/// Longest file, in bytes: its length has 32 bits.
const MAX_FILE_LEN: u64 = u32::MAX as u64;
/// Longest name, in characters.
const MAX_NAME_LEN: usize = 255;
/// Characters that no name on FAT has, beside control characters.
const FORBIDDEN: &[u8] = b"\"*/:<>?\\|";

/// What the top directory has that belongs to the machine: the state of updates and of fsck(8), the seed that
/// systemd-boot renews at each start (systemd-boot(7)), the variables of firmware that has no other place for them.
const MACHINES_OWN: &[&[u8]] = &[b".vireo", b"lost+found", b"loader/random-seed", b"NvVars"];

/// A regular file.
#[must_use]
pub fn plain_file(len: u64, content: Digest) -> Node {
    Node::new(NodeKind::File { len, content }, PLAIN_MODE)
}

/// A directory.
#[must_use]
pub fn plain_dir() -> Node {
    Node::new(NodeKind::Dir, PLAIN_MODE)
}

/// `node`, as a mount shows it, without what is the mount's own.
#[must_use]
pub fn plain(node: Node) -> Node {
    Node::new(node.kind, PLAIN_MODE)
}

/// Whether `path`, which begins below the top directory of a FAT file system, is the machine's own: in no version. FAT
/// does not tell large letters from small ones.
#[must_use]
pub fn is_machines_own(path: &[u8]) -> bool {
    MACHINES_OWN.iter().any(|own| own.eq_ignore_ascii_case(path))
}

/// Why FAT cannot hold `node` under `name`; none if it can.
#[must_use]
pub fn not_plain(name: &[u8], node: &Node) -> Option<&'static str> {
    match &node.kind {
        NodeKind::File { len, .. } if *len > MAX_FILE_LEN => return Some("is too long for vfat"),
        NodeKind::File { .. } | NodeKind::Dir => {}
        NodeKind::Symlink { .. } => return Some("is a symbolic link, which vfat has not"),
        NodeKind::HardLink { .. } => return Some("is a hard link, which vfat has not"),
        NodeKind::Device { .. } | NodeKind::Fifo | NodeKind::Socket => {
            return Some("is a special file, which vfat has not");
        }
    }
    if node.mtime != Timestamp::default() || *node != plain(node.clone()) {
        return Some("has an owner, a mode, a time or attributes, which vfat has not");
    }
    // Other characters a mount shows as its options say.
    let is_shown = |byte: &u8| (b' '..=b'~').contains(byte) && !FORBIDDEN.contains(byte);
    if name.len() > MAX_NAME_LEN || !name.iter().all(is_shown) {
        return Some("has a name that vfat cannot hold or that mounts show differently");
    }
    let ends_badly = name.ends_with(b".") || name.ends_with(b" ") || name.starts_with(b" ");
    ends_badly.then_some("has a name with a blank or a dot at its end, which vfat drops")
}

/// The first path that `changes` put into the FAT file system at `at` and that this cannot hold, and why.
#[must_use]
pub fn first_not_plain<'c>(
    changes: &'c ChangeSet,
    at: &ImagePath,
) -> Option<(&'c ImagePath, &'static str)> {
    changes.changes.iter().filter(|change| change.path.is_within(at)).find_map(|change| {
        // The top directory's name is not in it.
        let name = if change.path == *at { b"top" } else { change.path.name() };
        let after = change.after.as_ref()?;
        Some((&change.path, not_plain(name, after)?))
    })
}

/// Two paths of `tree` that FAT takes for one, below `at`: they differ in large and small letters alone.
#[must_use]
pub fn clash<'t>(tree: &'t Tree, at: &ImagePath) -> Option<(&'t ImagePath, &'t ImagePath)> {
    let mut seen: BTreeMap<Vec<u8>, &ImagePath> = BTreeMap::new();
    tree.iter().filter(|(path, _)| path.is_within(at)).find_map(|(path, _)| {
        let other = seen.insert(path.as_bytes().to_ascii_lowercase(), path)?;
        Some((other, path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Change;

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    #[test]
    fn what_a_mount_shows_has_one_form() {
        let content = Digest::of(b"x");
        let mut shown = Node::new(NodeKind::File { len: 1, content }, 0o755);
        (shown.uid, shown.gid, shown.mtime.secs) = (1000, 1000, 1_700_000_000);
        assert!(not_plain(b"file", &shown).is_some());
        assert_eq!(plain(shown), plain_file(1, content));
        assert_eq!(not_plain(b"Linux 6.1.conf", &plain_file(1, content)), None);
        assert_eq!(plain(Node::new(NodeKind::Dir, 0o755)), plain_dir());
    }

    #[test]
    fn what_fat_cannot_hold_is_named() {
        let file = || plain_file(1, Digest::of(b"x"));
        for name in
            ["a:b", "a*", "a\\b", "end.", "end ", " start", "größe", "a\n", &"x".repeat(256)]
        {
            assert!(not_plain(name.as_bytes(), &file()).is_some(), "{name}");
        }
        for kind in [
            NodeKind::Symlink { target: b"x".to_vec() },
            NodeKind::HardLink { leader: path("/a") },
            NodeKind::Fifo,
            NodeKind::File { len: 1 << 32, content: Digest::of(b"x") },
        ] {
            assert!(not_plain(b"a", &Node::new(kind, PLAIN_MODE)).is_some());
        }
        let change =
            |text: &str, node| Change { path: path(text), before: None, after: Some(node) };
        let changes = ChangeSet {
            base: Digest::of(b""),
            target: Digest::of(b""),
            changes: vec![
                change("/boot/efi/a", file()),
                change("/boot/efi/link", Node::hard_link(path("/boot/efi/a"))),
                change("/etc/a:b", file()),
            ],
        };
        let found = first_not_plain(&changes, &path("/boot/efi")).expect("a link");
        assert_eq!(found.0, &path("/boot/efi/link"));
        assert_eq!(first_not_plain(&changes, &path("/efi")), None);
    }

    #[test]
    fn names_that_differ_in_their_letters_size_clash() {
        let mut tree: Tree = ["/efi", "/efi/EFI", "/efi/efi2", "/A", "/a"]
            .map(|p| (path(p), plain_dir()))
            .into_iter()
            .collect();
        assert_eq!(clash(&tree, &path("/efi")), None);
        tree.insert(path("/efi/Efi"), plain_dir());
        assert_eq!(clash(&tree, &path("/efi")), Some((&path("/efi/EFI"), &path("/efi/Efi"))));
    }

    #[test]
    fn what_machines_write_themselves_is_theirs_in_any_letters() {
        assert!(is_machines_own(b"LOADER/RANDOM-SEED") && is_machines_own(b"NvVars"));
        assert!(!is_machines_own(b"loader") && !is_machines_own(b"EFI/NvVars"));
    }
}
