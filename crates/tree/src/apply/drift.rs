//! Local edits: what is there is neither the base's nor the target's.
//!
//! Pure decisions; the caller's policy says per path which of them may be taken.

use serde::{Deserialize, Serialize};
use vireo_model::{ImagePath, Node, Xattrs};

/// Largest text that is merged, in bytes; larger files are no configuration that people edit.
pub const MAX_MERGE_LEN: u64 = 256 << 10;

/// What to do with a path that was changed locally and that the update changes too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDrift {
    /// Refuse the update, with the list of such paths, before anything is touched.
    #[default]
    Refuse,
    /// The target's node takes its place. A regular file is kept beside it as `NAME.vireo-local`.
    Take,
    /// Text is merged line by line; what cannot be merged is decided by [`OnConflict`].
    Merge(OnConflict),
}

/// What to do with a text whose local and updated lines conflict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// The local file stays; the target's is put beside it as `NAME.vireo-new`.
    #[default]
    Keep,
    /// The target's takes its place; the local file is kept beside it as `NAME.vireo-local`.
    Take,
    /// Refuse the update.
    Refuse,
}

/// A local edit that an update met, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Where.
    pub path: ImagePath,
    /// What became of it.
    pub how: Settlement,
    /// Where the other file is, if there is one: the target's of a kept, the local one of a taken.
    pub beside: Option<ImagePath>,
}

/// What became of a local edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Settlement {
    /// Both changes are in the file.
    Merged,
    /// The local file stayed.
    Kept,
    /// The target's took its place.
    Taken,
}

impl Settlement {
    /// A word for reports: `merged`, `kept`, `taken`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Merged => "merged",
            Self::Kept => "kept",
            Self::Taken => "taken",
        }
    }
}

/// Suffix of the target's file beside a local one that stayed.
pub const NEW_SUFFIX: &str = ".vireo-new";
/// Suffix of the local file beside the target's that took its place.
pub const LOCAL_SUFFIX: &str = ".vireo-local";

/// Merges two texts that began as `base`; none if they change the same lines, or if any of the
/// three is no text.
pub(super) fn merge_text(base: &[u8], local: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    [base, local, target].into_iter().all(is_text).then_some(())?;
    diffy::merge_bytes(base, local, target).ok()
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.len() as u64 <= MAX_MERGE_LEN && !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok()
}

/// Merges what stands beside the content: each of mode, owner, group and every attribute is the
/// target's where it is not edited locally. Kind and time are the target's.
pub(super) fn merge_metadata(base: Option<&Node>, local: &Node, target: &Node) -> Node {
    let Some(base) = base else { return target.clone() };
    Node {
        kind: target.kind.clone(),
        mode: pick(&base.mode, &local.mode, &target.mode),
        uid: pick(&base.uid, &local.uid, &target.uid),
        gid: pick(&base.gid, &local.gid, &target.gid),
        mtime: target.mtime,
        xattrs: merge_xattrs(&base.xattrs, &local.xattrs, &target.xattrs),
    }
}

fn pick<T: Clone + PartialEq>(base: &T, local: &T, target: &T) -> T {
    if local == base { target.clone() } else { local.clone() }
}

fn merge_xattrs(base: &Xattrs, local: &Xattrs, target: &Xattrs) -> Xattrs {
    let names = base.keys().chain(local.keys()).chain(target.keys());
    names
        .filter_map(|name| {
            let value = pick(&base.get(name), &local.get(name), &target.get(name))?;
            Some((name.clone(), value.clone()))
        })
        .collect()
}

/// `path` with `suffix` behind its name, and a number if `is_taken` says so; none if the name
/// would be too long or every number is taken.
pub(super) fn beside(
    path: &ImagePath,
    suffix: &str,
    mut is_taken: impl FnMut(&ImagePath) -> bool,
) -> Option<ImagePath> {
    const MAX_COPIES: u32 = 100;
    let parent = path.parent()?;
    (1..=MAX_COPIES).find_map(|copy| {
        let mut name = path.name().to_vec();
        name.extend_from_slice(suffix.as_bytes());
        if copy > 1 {
            name.extend_from_slice(format!("-{copy}").as_bytes());
        }
        parent.join(&name).ok().filter(|path| !is_taken(path))
    })
}

#[cfg(test)]
mod tests {
    use vireo_model::{Digest, NodeKind};

    use super::*;

    #[test]
    fn edits_of_different_lines_are_both_kept() {
        let merged = merge_text(b"a\nb\nc\nd\n", b"A\nb\nc\nd\n", b"a\nb\nc\nD\n");
        assert_eq!(merged.as_deref(), Some(b"A\nb\nc\nD\n".as_slice()));
    }

    #[test]
    fn edits_of_one_line_and_what_is_no_text_are_left_to_the_policy() {
        assert_eq!(merge_text(b"a\n", b"b\n", b"c\n"), None);
        assert_eq!(merge_text(b"a\0\n", b"a\0\nb\n", b"a\0\n"), None);
        assert_eq!(merge_text(b"a\n", b"a\n\xff\n", b"a\n"), None);
        let large = vec![b'\n'; MAX_MERGE_LEN as usize + 1];
        assert_eq!(merge_text(&large, b"", &large), None);
    }

    #[test]
    fn a_local_mode_stays_and_an_updated_owner_comes() {
        let file = NodeKind::File { len: 1, content: Digest::of(b"x") };
        let base = Node::new(file, 0o644);
        let local = Node { mode: 0o600, ..base.clone() };
        let target = Node { uid: 33, mode: 0o640, ..base.clone() };
        let merged = merge_metadata(Some(&base), &local, &target);
        assert_eq!((merged.mode, merged.uid), (0o600, 33));
    }

    #[test]
    fn a_name_beside_is_numbered_when_it_is_taken() {
        let path = ImagePath::parse(b"/etc/a.conf").expect("a valid path");
        let name = |taken: &[&str]| {
            let is_taken = |path: &ImagePath| taken.contains(&path.to_string().as_str());
            beside(&path, LOCAL_SUFFIX, is_taken).expect("there is one").to_string()
        };
        assert_eq!(name(&[]), "/etc/a.conf.vireo-local");
        assert_eq!(name(&["/etc/a.conf.vireo-local"]), "/etc/a.conf.vireo-local-2");
    }
}
