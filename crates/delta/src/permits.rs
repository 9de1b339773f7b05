//! What a bundle's signer explicitly allows it to do.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};
use std::str::FromStr;

use vireo_model::{Change, ChangeKind, ChangeSet, ImagePath, Node, NodeKind};

/// Up to this many paths may be removed or replaced without [`Permits::MASS`], however small the
/// tree is: a mistaken base of a whole system touches thousands.
pub const MASS_FLOOR: u64 = 256;

/// The extended attribute that holds file capabilities (capabilities(7)).
const CAPABILITY: &[u8] = b"security.capability";
const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;

/// A set of permissions, signed with the bundle: what would be dangerous if it came unintended.
/// What a change set needs says [`permits_needed`].
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Permits(u32);

impl Permits {
    /// Nothing out of the ordinary.
    pub const NONE: Self = Self(0);
    /// May give a file rights on execution that the base's file at that path has not:
    /// set-user-ID, set-group-ID or file capabilities.
    pub const SETUID: Self = Self(1 << 0);
    /// May add device nodes.
    pub const DEVICES: Self = Self(1 << 1);
    /// May remove or replace more than half of the tree.
    pub const MASS: Self = Self(1 << 2);

    const ALL: [(Self, &'static str); 3] =
        [(Self::SETUID, "setuid"), (Self::DEVICES, "devices"), (Self::MASS, "mass")];

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What of it is not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is permitted.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its members, one by one.
    pub fn iter(self) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().map(|(one, _)| one).filter(move |one| self.contains(*one))
    }

    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// `None` if a bit has no meaning.
    pub(crate) fn from_bits(bits: u32) -> Option<Self> {
        let known = Self::ALL.into_iter().fold(Self::NONE, |all, (one, _)| all | one);
        (bits & !known.0 == 0).then_some(Self(bits))
    }
}

impl BitOr for Permits {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Permits {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

impl FromIterator<Permits> for Permits {
    fn from_iter<I: IntoIterator<Item = Permits>>(permits: I) -> Self {
        permits.into_iter().fold(Self::NONE, BitOr::bitor)
    }
}

impl fmt::Display for Permits {
    /// The names, with commas between them; `none` for the empty set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Self::ALL.iter().filter(|(one, _)| self.contains(*one)).map(|(_, name)| *name);
        let text = names.collect::<Vec<_>>().join(",");
        f.write_str(if text.is_empty() { "none" } else { &text })
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permits({self})")
    }
}

/// A text that names no permission.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no permission; they are setuid, devices and mass")]
pub struct PermitsError {
    text: String,
}

impl FromStr for Permits {
    type Err = PermitsError;

    /// Reads one name: `setuid`, `devices` or `mass`.
    fn from_str(text: &str) -> Result<Self, PermitsError> {
        let found = Self::ALL.into_iter().find(|(_, name)| *name == text);
        found.map(|(one, _)| one).ok_or_else(|| PermitsError { text: text.to_owned() })
    }
}

/// What `changes` need to be permitted, on a base of `base_paths` paths.
///
/// ```
/// use vireo_delta::{Permits, permits_needed};
/// use vireo_model::{ChangeSet, Digest, ImagePath, Node, NodeKind, Tree};
///
/// let kind = NodeKind::File { len: 2, content: Digest::of(b"su") };
/// let su = (ImagePath::parse(b"/su")?, Node::new(kind, 0o4755));
/// let changes = ChangeSet::between(&Tree::new(), &Tree::from_iter([su]));
/// assert_eq!(permits_needed(&changes, 0), Permits::SETUID);
/// # Ok::<(), vireo_model::ImagePathError>(())
/// ```
#[must_use]
pub fn permits_needed(changes: &ChangeSet, base_paths: u64) -> Permits {
    let each = changes.changes.iter().map(one_needs).collect::<Permits>();
    let gone = changes.changes.iter().filter(|change| takes_away(change)).count() as u64;
    let mass = gone > MASS_FLOOR && gone > base_paths / 2;
    each | if mass { Permits::MASS } else { Permits::NONE }
}

/// The paths because of which `changes` need `permit`, in path order.
pub fn paths_needing(changes: &ChangeSet, permit: Permits) -> impl Iterator<Item = &ImagePath> {
    let needs = move |change: &&Change| {
        permit.iter().any(|one| match one {
            Permits::MASS => takes_away(change),
            one => one_needs(change).contains(one),
        })
    };
    changes.changes.iter().filter(needs).map(|change| &change.path)
}

fn takes_away(change: &Change) -> bool {
    matches!(change.kind(), ChangeKind::Removed | ChangeKind::Modified) && change.before.is_some()
}

fn one_needs(change: &Change) -> Permits {
    let Some(after) = &change.after else {
        return Permits::NONE;
    };
    let mut needs = Permits::NONE;
    if gains_rights(change.before.as_ref(), after) {
        needs |= Permits::SETUID;
    }
    let is_device = matches!(after.kind, NodeKind::Device { .. });
    if is_device && change.before.as_ref().map(|before| &before.kind) != Some(&after.kind) {
        needs |= Permits::DEVICES;
    }
    needs
}

/// Whether executing `after` gives rights that executing `before` did not. Only regular files are
/// executed; on directories set-group-ID says who owns what is made in them.
fn gains_rights(before: Option<&Node>, after: &Node) -> bool {
    let is_file = |node: &Node| matches!(node.kind, NodeKind::File { .. });
    if !is_file(after) {
        return false;
    }
    let before = before.filter(|node| is_file(node));
    let user = |node: &Node| (node.mode & SET_USER_ID != 0).then_some(node.uid);
    let group = |node: &Node| (node.mode & SET_GROUP_ID != 0).then_some(node.gid);
    let capabilities = |node: &Node| node.xattrs.get(CAPABILITY).cloned();
    let gains_user = user(after).is_some() && user(after) != before.and_then(user);
    let gains_group = group(after).is_some() && group(after) != before.and_then(group);
    let gains_capabilities =
        capabilities(after).is_some() && capabilities(after) != before.and_then(capabilities);
    gains_user || gains_group || gains_capabilities
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_model::{DeviceKind, Digest, Tree};

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    fn file(text: &str, mode: u32) -> Node {
        let kind = NodeKind::File { len: text.len() as u64, content: Digest::of(text.as_bytes()) };
        Node::new(kind, mode)
    }

    fn needed(before: Option<Node>, after: Option<Node>) -> Permits {
        let tree = |node: Option<Node>| -> Tree {
            node.map(|node| (path("/x"), node)).into_iter().collect()
        };
        permits_needed(&ChangeSet::between(&tree(before), &tree(after)), 10_000)
    }

    #[test]
    fn rights_that_the_base_has_not_at_that_path_need_setuid() {
        let capable = |value: &[u8]| {
            let mut node = file("1", 0o755);
            node.xattrs.insert(CAPABILITY.to_vec(), value.to_vec());
            node
        };
        let plain = || Some(file("1", 0o755));
        for (before, after) in [
            (None, file("1", 0o4755)),
            (plain(), file("1", 0o4755)),
            (plain(), file("1", 0o2755)),
            (Some(file("1", 0o2755)), file("1", 0o6755)),
            (Some(file("1", 0o4755)), Node { uid: 7, ..file("1", 0o4755) }),
            (Some(Node::new(NodeKind::Fifo, 0o4755)), file("1", 0o4755)),
            (plain(), capable(b"net_raw")),
            (Some(capable(b"net_raw")), capable(b"sys_admin")),
        ] {
            assert_eq!(needed(before.clone(), Some(after.clone())), Permits::SETUID, "{before:?}");
        }
    }

    #[test]
    fn a_newer_program_with_the_rights_it_had_needs_nothing() {
        let suid = |text| Some(file(text, 0o4755));
        assert_eq!(needed(suid("1"), suid("2")), Permits::NONE);
        assert_eq!(needed(suid("1"), Some(file("2", 0o755))), Permits::NONE);
        assert_eq!(needed(suid("1"), None), Permits::NONE);
        assert_eq!(needed(None, Some(Node::new(NodeKind::Dir, 0o2775))), Permits::NONE);
    }

    #[test]
    fn device_nodes_need_devices() {
        let device = |minor| {
            let kind = NodeKind::Device { kind: DeviceKind::Char, major: 1, minor };
            Node::new(kind, 0o600)
        };
        assert_eq!(needed(None, Some(device(3))), Permits::DEVICES);
        assert_eq!(needed(Some(device(3)), Some(device(1))), Permits::DEVICES);
        assert_eq!(needed(Some(device(3)), Some(Node { uid: 1, ..device(3) })), Permits::NONE);
        assert_eq!(needed(Some(device(3)), None), Permits::NONE);
    }

    #[test]
    fn removing_or_replacing_more_than_half_needs_mass_but_in_a_small_tree() {
        let tree = |names: std::ops::Range<usize>, text: &str| -> Tree {
            names.map(|n| (path(&format!("/{n:05}")), file(text, 0o644))).collect()
        };
        let gone = ChangeSet::between(&tree(0..1000, "1"), &tree(0..499, "1"));
        assert_eq!(permits_needed(&gone, 1000), Permits::MASS);
        assert_eq!(permits_needed(&gone, 1002), Permits::NONE);
        let replaced = ChangeSet::between(&tree(0..300, "1"), &tree(0..300, "2"));
        assert_eq!(permits_needed(&replaced, 400), Permits::MASS);
        let added = ChangeSet::between(&tree(0..300, "1"), &tree(0..3000, "1"));
        assert_eq!(permits_needed(&added, 300), Permits::NONE);
        let few = ChangeSet::between(&tree(0..256, "1"), &Tree::new());
        assert_eq!(permits_needed(&few, 256), Permits::NONE);
        assert_eq!(paths_needing(&gone, Permits::MASS).count(), 501);
        assert_eq!(paths_needing(&gone, Permits::SETUID).count(), 0);
    }

    #[test]
    fn names_read_back_and_unknown_ones_are_refused() {
        for (one, name) in Permits::ALL {
            assert_eq!(name.parse(), Ok(one));
            assert_eq!(one.to_string(), name);
        }
        assert_eq!((Permits::SETUID | Permits::MASS).to_string(), "setuid,mass");
        let error = "root".parse::<Permits>().expect_err("no permission");
        assert_eq!(
            error.to_string(),
            "\"root\" is no permission; they are setuid, devices and mass"
        );
        assert_eq!(Permits::from_bits(8), None);
        assert_eq!(Permits::from_bits(5), Some(Permits::SETUID | Permits::MASS));
    }
}
