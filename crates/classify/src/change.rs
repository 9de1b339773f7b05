//! One changed file, as far as a plan depends on it.

use std::collections::BTreeSet;

use vireo_model::{Change, ChangeKind, ImagePath, Node, NodeKind};

use crate::class::class_under;
use crate::contents::{self, MountChange};
use crate::policy::pack;
use crate::{Class, FileId, Policy};

/// Where a link to it masks a unit.
pub(crate) const MASK: &[u8] = b"/dev/null";

/// One changed file, as far as the plan depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedFile {
    /// Where.
    pub path: ImagePath,
    /// How.
    pub kind: ChangeKind,
    /// What kind of file it is.
    pub class: Class,
    /// The identity of the file that the change replaces or removes: before the commit what
    /// stands at the path, after it what stood there.
    pub replaced: Option<FileId>,
    /// Whether set-ID bits or capabilities change, so that a program runs with other rights.
    pub privileges: bool,
    /// What a look at the contents showed.
    pub details: Details,
}

/// What a look at the contents of a changed file showed. Nothing need be known: a plan does more
/// then, never less than needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Where the target's symbolic link leads, as written in it.
    pub links_to: Option<Vec<u8>>,
    /// Where the base's symbolic link led: who reads that got there by the link, and would now
    /// get elsewhere. Links on the way are not followed.
    pub led_to: Option<ImagePath>,
    /// Of a unit file: which keys change (`Service.ExecStart`).
    pub unit_keys: Option<BTreeSet<String>>,
    /// Of a unit file: it becomes empty, which masks the unit as a link to `/dev/null` does
    /// (`systemd.unit(5)`).
    pub empty: bool,
    /// It is configuration in which some settings need more than others, by the policy.
    pub keys_matter: bool,
    /// Of such configuration: which settings change.
    pub config_keys: Option<BTreeSet<String>>,
    /// Of settings (`sysctl.d`): which change.
    pub settings: Option<Vec<String>>,
    /// Of `/etc/fstab`: which mounts change.
    pub mounts: Option<Vec<MountChange>>,
    /// Of `/etc/group`: whose groups change.
    pub members: BTreeSet<String>,
    /// Of a boot loader's configuration: the kernel gets other arguments.
    pub boot_arguments: bool,
}

impl ChangedFile {
    /// A file at `path`, of the class that the path tells.
    #[must_use]
    pub fn new(path: ImagePath, kind: ChangeKind) -> Self {
        let class = class_under(pack(), &path, 0o644, None);
        let keys_matter = class == Class::Config && pack().restart_keys_matter(&path);
        let details = Details { keys_matter, ..Details::default() };
        Self { path, kind, class, replaced: None, privileges: false, details }
    }

    /// The same for one change of a change set; none for directories, which activate nothing.
    /// `head` is the first [`HEAD_LEN`](crate::HEAD_LEN) bytes of the target's content, or of
    /// the base's if the file is removed; none if there is no content.
    #[must_use]
    pub fn of_change(change: &Change, head: Option<&[u8]>) -> Option<Self> {
        Self::under(pack(), change, head)
    }

    /// The same by the classes that `policy` adds.
    #[must_use]
    pub fn under(policy: &Policy, change: &Change, head: Option<&[u8]>) -> Option<Self> {
        let node = change.after.as_ref().or(change.before.as_ref())?;
        let is_dir = |node: &Option<Node>| node.as_ref().is_none_or(Node::is_dir);
        if is_dir(&change.before) && is_dir(&change.after) {
            return None;
        }
        let head =
            head.filter(|_| matches!(node.kind, NodeKind::File { .. } | NodeKind::HardLink { .. }));
        let links_to = match change.after.as_ref().map(|node| &node.kind) {
            Some(NodeKind::Symlink { target }) => Some(target.to_vec()),
            _ => None,
        };
        let class = class_under(policy, &change.path, node.mode, head);
        let keys_matter = class == Class::Config && policy.restart_keys_matter(&change.path);
        Some(Self {
            class,
            path: change.path.clone(),
            kind: change.kind(),
            replaced: None,
            privileges: match (&change.before, &change.after) {
                (Some(before), Some(after)) => rights_of(before) != rights_of(after),
                _ => false,
            },
            details: Details {
                links_to,
                led_to: led_to(change),
                keys_matter,
                ..Details::default()
            },
        })
    }

    /// Whether the target is a mask.
    pub(crate) fn masks(&self) -> bool {
        self.class == Class::Unit
            && (self.details.empty || self.details.links_to.as_deref() == Some(MASK))
    }

    /// Whether [`with_contents`](Self::with_contents) could learn something: whether it is worth
    /// reading the file for.
    #[must_use]
    pub fn wants_contents(&self) -> bool {
        self.details.keys_matter || contents::is_of_interest(&self.path, self.class)
    }

    /// The same with what its contents in the base and in the target show; none where there is
    /// no file. Contents that make no sense show nothing.
    #[must_use]
    pub fn with_contents(mut self, before: Option<&[u8]>, after: Option<&[u8]>) -> Self {
        if self.wants_contents() {
            contents::look(&mut self, before, after);
        }
        self
    }
}

/// Where a changed or removed symbolic link led in the base.
fn led_to(change: &Change) -> Option<ImagePath> {
    let NodeKind::Symlink { target } = &change.before.as_ref()?.kind else { return None };
    let mut at = if target.starts_with(b"/") { ImagePath::root() } else { change.path.parent()? };
    for part in target.split(|byte| *byte == b'/') {
        at = match part {
            b"" | b"." => at,
            b".." => at.parent().unwrap_or_else(ImagePath::root),
            name => at.join(name).ok()?,
        };
    }
    Some(at)
}

/// Set-user-ID, set-group-ID and capabilities.
fn rights_of(node: &Node) -> (u32, Option<&Vec<u8>>) {
    (node.mode & 0o6000, node.xattrs.get(b"security.capability".as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(target: &str) -> Node {
        Node::new(NodeKind::Symlink { target: target.as_bytes().into() }, 0o777)
    }

    #[test]
    fn a_link_is_known_by_where_it_led_and_where_it_leads() {
        let change = Change {
            path: ImagePath::parse(b"/etc/nginx/sites-enabled/a").expect("a valid path"),
            before: Some(link("../sites-available/./a")),
            after: Some(link("/dev/null")),
        };
        let file = ChangedFile::of_change(&change, None).expect("no directory");
        let led_to = file.details.led_to.map(|path| path.to_string());
        assert_eq!(led_to.as_deref(), Some("/etc/nginx/sites-available/a"));
        assert_eq!(file.details.links_to.as_deref(), Some(b"/dev/null".as_slice()));
    }
}
