//! What the contents of a changed file show beyond that it changed: which keys of a unit, which
//! mounts, which settings, whose groups, which arguments of the kernel.
//!
//! Contents are whatever somebody wrote: lines that make no sense are passed over.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vireo_model::mount_table::unescape;
use vireo_model::{ChangeKind, ImagePath};

use crate::change::ChangedFile;
use crate::class::canonical;
use crate::unit_file::changed_keys;
use crate::{Class, Unit};

/// One line of `/etc/fstab` that changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MountChange {
    /// The mount point's unit, `srv-data.mount`.
    pub unit: Unit,
    /// How.
    pub what: MountChangeKind,
}

/// How a mount changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountChangeKind {
    /// It is new, and mounted at boot.
    Added,
    /// Other options: it can be mounted again over itself.
    Options,
    /// Another source or type: it would have to be unmounted.
    Source,
    /// It is gone.
    Removed,
}

/// Whether [`look`] could learn something from the file's contents.
pub(crate) fn is_of_interest(path: &ImagePath, class: Class) -> bool {
    match class {
        Class::Unit | Class::UnitDropIn | Class::BootLoader => true,
        _ => {
            let place = canonical(path);
            matches!(place.as_slice(), b"/etc/fstab" | b"/etc/group" | b"/etc/sysctl.conf")
                || place.windows(10).any(|part| part == b"/sysctl.d/")
        }
    }
}

/// Fills in the details of `change`.
pub(crate) fn look(change: &mut ChangedFile, before: Option<&[u8]>, after: Option<&[u8]>) {
    let (base, target) = (before.unwrap_or_default(), after.unwrap_or_default());
    let place = canonical(&change.path);
    let details = &mut change.details;
    match change.class {
        Class::Unit | Class::UnitDropIn => {
            details.unit_keys = Some(changed_keys(base, target));
            let is_file = details.links_to.is_none() && change.kind != ChangeKind::Removed;
            details.empty = is_file && after.is_some_and(<[u8]>::is_empty);
        }
        Class::BootLoader => {
            details.boot_arguments = boot_arguments(base) != boot_arguments(target)
        }
        _ => match place.as_slice() {
            b"/etc/fstab" => details.mounts = Some(mount_changes(base, target)),
            b"/etc/group" => details.members = members_changed(base, target),
            _ if details.keys_matter => {
                details.config_keys = Some(config_keys_changed(base, target));
            }
            _ => details.settings = Some(settings_changed(base, target)),
        },
    }
}

/// The words of each line; comments and empty lines left out.
fn lines_of(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.filter(|line| !matches!(line.first(), None | Some(b'#' | b';')))
}

/// The settings (`net.ipv4.ip_forward`, with `/` for `.`) whose values differ or that are new.
/// A leading `-` says that failures do not matter and is no part of the name (`sysctl.d(5)`).
fn settings_changed(before: &[u8], after: &[u8]) -> Vec<String> {
    let (before, after) = (settings_of(before), settings_of(after));
    after
        .iter()
        .filter(|(name, value)| before.get(*name) != Some(value))
        .map(|(name, _)| name.clone())
        .collect()
}

fn settings_of(content: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let setting = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b'=')?;
        let name = line[..at].trim_ascii();
        let name = name.strip_prefix(b"-").unwrap_or(name);
        // A pattern names many: leave those to the whole file.
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
        // The first separator says which of `/` and `.` stands between components.
        let slashes = name.find(['/', '.']).is_some_and(|at| name.as_bytes()[at] == b'/');
        let name = if slashes { name.to_owned() } else { swapped(name) };
        Some((name, line[at + 1..].trim_ascii().to_vec()))
    };
    lines_of(content).filter_map(setting).collect()
}

/// `/` and `.` in each other's place (`sysctl.d(5)`: an interface's name may have dots).
fn swapped(name: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

/// The settings of plain configuration whose values differ: of a line the first word is the name,
/// whatever stands between it and the value.
fn config_keys_changed(before: &[u8], after: &[u8]) -> BTreeSet<String> {
    let keys = |content: &[u8]| {
        let mut keys: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for line in lines_of(content) {
            let separates = |byte: &u8| byte.is_ascii_whitespace() || b"=:".contains(byte);
            let end = line.iter().position(separates).unwrap_or(line.len());
            let name = String::from_utf8_lossy(&line[..end]).into_owned();
            let value = line[end..].iter().skip_while(|byte| separates(byte));
            keys.entry(name).or_default().push(value.copied().collect());
        }
        keys
    };
    let (before, after) = (keys(before), keys(after));
    let names = before.keys().chain(after.keys());
    names.filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}

/// Source, type and options by mount point, of `fstab(5)`.
fn mounts_of(content: &[u8]) -> BTreeMap<Vec<u8>, [Vec<u8>; 3]> {
    let mount = |line: &[u8]| {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
        let (source, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        let options = fields.next().unwrap_or_default();
        point
            .starts_with(b"/")
            .then(|| (unescape(point), [source.to_vec(), kind.to_vec(), options.to_vec()]))
    };
    lines_of(content).filter_map(mount).collect()
}

fn mount_changes(before: &[u8], after: &[u8]) -> Vec<MountChange> {
    let (before, after) = (mounts_of(before), mounts_of(after));
    let points: BTreeSet<&Vec<u8>> = before.keys().chain(after.keys()).collect();
    let change = |point: &Vec<u8>| {
        let what = match (before.get(point), after.get(point)) {
            (Some(_), None) => MountChangeKind::Removed,
            (None, Some([_, _, options])) if !mounted_at_boot(options) => return None,
            (None, Some(_)) => MountChangeKind::Added,
            (Some(base), Some(target)) if base[..2] != target[..2] => MountChangeKind::Source,
            (Some(base), Some(target)) if base[2] != target[2] => MountChangeKind::Options,
            _ => return None,
        };
        Some(MountChange { unit: mount_unit(point), what })
    };
    points.into_iter().filter_map(change).collect()
}

fn mounted_at_boot(options: &[u8]) -> bool {
    !options.split(|byte| *byte == b',').any(|option| option == b"noauto")
}

/// The unit of a mount point, as `systemd-escape --path --suffix=mount` names it.
#[must_use]
pub fn mount_unit(point: &[u8]) -> Unit {
    let parts = point.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
    let joined = parts.collect::<Vec<_>>().join(&b'/');
    let mut name = String::new();
    for (at, byte) in joined.iter().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str(r"\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => {
                name.push(char::from(*byte));
            }
            other => name.push_str(&format!(r"\x{other:02x}")),
        }
    }
    Unit::new(if name.is_empty() { "-.mount".to_owned() } else { format!("{name}.mount") })
}

/// Users that are in a group in one content and not in the other (`group(5)`).
fn members_changed(before: &[u8], after: &[u8]) -> BTreeSet<String> {
    let pairs = |content: &[u8]| -> BTreeSet<(Vec<u8>, String)> {
        let mut pairs = BTreeSet::new();
        for line in lines_of(content) {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
            let [group, _, _, members] = fields.as_slice() else { continue };
            let members = members.split(|byte| *byte == b',').filter(|name| !name.is_empty());
            pairs.extend(
                members.map(|name| (group.to_vec(), String::from_utf8_lossy(name).into_owned())),
            );
        }
        pairs
    };
    let (before, after) = (pairs(before), pairs(after));
    before.symmetric_difference(&after).map(|(_, user)| user.clone()).collect()
}

/// The arguments of the kernels that a boot loader's configuration starts, without the kernels:
/// a new kernel is no new argument.
fn boot_arguments(content: &[u8]) -> BTreeSet<Vec<u8>> {
    let arguments = |line: &[u8]| {
        let line = line.trim_ascii();
        if line.starts_with(b"GRUB_CMDLINE_LINUX") {
            return Some(line.to_vec());
        }
        let words: Vec<&[u8]> =
            line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
        match words.as_slice() {
            [b"linux" | b"linux16" | b"linuxefi", _kernel, rest @ ..] => Some(rest.join(&b' ')),
            [b"options", rest @ ..] => Some(rest.join(&b' ')),
            _ => None,
        }
    };
    lines_of(content).filter_map(arguments).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_that_change_are_told_apart() {
        let before =
            b"UUID=1 / ext4 errors=remount-ro 0 1\n/dev/vdb /srv/my\\040data ext4 defaults 0 2\n\
                       /dev/vdc /mnt/gone xfs\n/dev/vdd /opt ext4 ro\n# x\nnone swap swap sw\n";
        let after = b"UUID=1 / ext4 noatime 0 1\n/dev/vde /srv/my\\040data ext4 defaults\n\
                      /dev/vdf /new ext4 defaults\n/dev/vdg /later ext4 ro,noauto\n/dev/vdd  /opt ext4 ro\n";
        let changes = mount_changes(before, after);
        let shown: Vec<String> =
            changes.iter().map(|change| format!("{:?} {}", change.what, change.unit)).collect();
        assert_eq!(
            shown,
            [
                "Options -.mount",
                "Removed mnt-gone.mount",
                "Added new.mount",
                r"Source srv-my\x20data.mount",
            ]
        );
    }

    #[test]
    fn settings_are_named_as_the_tool_takes_them() {
        let before = b"net.ipv4.ip_forward = 0\nkernel/panic=1\n";
        let after = b"# c\nnet.ipv4.ip_forward = 1\nkernel/panic = 1\n-net.ipv4.conf.enp3s0/200.forwarding=1\n";
        assert_eq!(
            settings_changed(before, after),
            ["net/ipv4/conf/enp3s0.200/forwarding", "net/ipv4/ip_forward"]
        );
    }

    #[test]
    fn users_who_change_groups_are_named() {
        let before = b"www:x:33:alice\nssl:x:7:\n";
        let after = b"www:x:33:alice,bob\nssl:x:7:alice\nbroken\n";
        let members: Vec<String> = members_changed(before, after).into_iter().collect();
        assert_eq!(members, ["alice", "bob"]);
    }

    #[test]
    fn a_new_kernel_is_no_new_argument() {
        let before = b"menuentry {\n linux /boot/vmlinuz-1 root=UUID=1 ro quiet\n}\n";
        let after = b"menuentry {\n linux /boot/vmlinuz-2 root=UUID=1 ro quiet\n}\n";
        assert_eq!(boot_arguments(before), boot_arguments(after));
        let other = b" linux /boot/vmlinuz-2 root=UUID=1 ro quiet mitigations=off\n";
        assert_ne!(boot_arguments(before), boot_arguments(other));
    }
}
