//! The text of `/etc/fstab` (fstab(5)): which file systems of a disk are mounted where at boot.
//!
//! Images and the machines launched from them are read by it, so that they cannot differ in what
//! belongs to a tree. It was written by whoever made the image, so that it decides nothing but which
//! partition of this image stands for which directory of its tree. Options count only where they
//! say which subvolume is meant, or that nothing is mounted.

use crate::ImagePath;
use crate::mount_table::unescape;

/// Longest `/etc/fstab` that is read, in bytes; a longer one has no entries.
pub const MAX_LEN: u64 = 64 << 10;
/// Most entries that are looked at.
const MAX_ENTRIES: usize = 256;

/// File systems that are no part of an image's tree: in memory, on other hosts, made of others.
const NOT_ON_DISK: &[&[u8]] = &[
    b"swap",
    b"tmpfs",
    b"ramfs",
    b"proc",
    b"sysfs",
    b"devpts",
    b"devtmpfs",
    b"cgroup",
    b"cgroup2",
    b"debugfs",
    b"tracefs",
    b"securityfs",
    b"efivarfs",
    b"hugetlbfs",
    b"mqueue",
    b"none",
    b"ignore",
    b"nfs",
    b"nfs4",
    b"cifs",
    b"smb3",
    b"9p",
    b"virtiofs",
    b"ceph",
    b"glusterfs",
    b"fuse",
    b"overlay",
];

/// What EFI system partitions have, as mount tables call it.
pub const VFAT: &str = "vfat";

/// Options with which nothing is mounted at boot, or nothing that is not there already.
const NOT_MOUNTED: &[&[u8]] = &[b"noauto", b"bind", b"rbind", b"_netdev", b"loop"];

/// Which partition an entry means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The file system with this UUID.
    Uuid(String),
    /// The file system with this label.
    Label(Vec<u8>),
    /// The partition with this UUID.
    PartUuid(String),
    /// The partition with this name.
    PartLabel(Vec<u8>),
    /// The partition with this number of the machine's first disk, 0 for the disk itself.
    Number(u32),
    /// What no partition of the image can be known by, such as `/dev/mapper/vg-var`.
    Foreign,
}

/// One entry that mounts a disk's file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is mounted.
    pub device: Device,
    /// As it stands there, for messages.
    pub name: String,
    /// Where.
    pub at: ImagePath,
    /// The type of the file system, as it stands there; `auto` is any.
    pub kind: Vec<u8>,
    /// `subvol=` of btrfs.
    pub subvolume: Option<String>,
}

/// The entries of `text` that count, the last for each mount point, in path order.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    if u64::try_from(text.len()).is_ok_and(|len| len > MAX_LEN) {
        return entries;
    }
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(entry) = entry(line) {
            // What is mounted later lies above.
            entries.retain(|other| other.at != entry.at);
            entries.push(entry);
        }
        if entries.len() > MAX_ENTRIES {
            break;
        }
    }
    entries.sort_by(|a, b| a.at.cmp(&b.at));
    entries
}

/// The directories at which `text` has vfat mounted, in path order.
#[must_use]
pub fn vfat_places(text: &[u8]) -> Vec<ImagePath> {
    let is_vfat = |entry: &Entry| [VFAT.as_bytes(), b"auto"].contains(&entry.kind.as_slice());
    let entries = parse(text).into_iter().filter(|entry| is_vfat(entry) && !entry.at.is_root());
    entries.map(|entry| entry.at).collect()
}

fn entry(line: &[u8]) -> Option<Entry> {
    let mut fields =
        line.split(|byte| matches!(byte, b' ' | b'\t' | b'\r')).filter(|field| !field.is_empty());
    let name = fields.next().filter(|name| !name.starts_with(b"#"))?;
    let at = unescape(fields.next()?);
    let kind = fields.next()?;
    let options: Vec<&[u8]> = fields.next().unwrap_or(b"").split(|byte| *byte == b',').collect();
    let is_fuse = kind.starts_with(b"fuse.");
    if NOT_ON_DISK.contains(&kind) || is_fuse || options.iter().any(|o| NOT_MOUNTED.contains(o)) {
        return None;
    }
    let value = |option: &[u8]| {
        let value = option.strip_prefix(b"subvol=")?;
        let value = value.strip_prefix(b"/").unwrap_or(value);
        String::from_utf8(value.to_vec()).ok().filter(|value| is_plain(value))
    };
    let at = if at.len() > 1 { at.strip_suffix(b"/").unwrap_or(&at) } else { &at };
    let name = unescape(name);
    Some(Entry {
        device: device(&name)?,
        name: String::from_utf8_lossy(&name).into_owned(),
        // What is not a plain absolute path is no place in the tree: `none`, `/a/../..`.
        at: ImagePath::parse(at).ok()?,
        kind: kind.to_vec(),
        subvolume: options.iter().find_map(|option| value(option)),
    })
}

/// Whether a subvolume's name leads to nothing but itself.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.split('/').any(|part| matches!(part, "" | "." | ".."))
}

/// None for what is on no disk: other hosts' directories, images in files.
fn device(name: &[u8]) -> Option<Device> {
    let tagged = |tag: &[u8], link: &[u8]| {
        let value = name.strip_prefix(tag).or_else(|| name.strip_prefix(link))?;
        let value = value.strip_prefix(b"\"").unwrap_or(value);
        Some(value.strip_suffix(b"\"").unwrap_or(value).to_vec())
    };
    let text = |value: Vec<u8>| String::from_utf8_lossy(&value).to_ascii_lowercase();
    if let Some(value) = tagged(b"UUID=", b"/dev/disk/by-uuid/") {
        return Some(Device::Uuid(text(value)));
    }
    if let Some(value) = tagged(b"LABEL=", b"/dev/disk/by-label/") {
        return Some(Device::Label(value));
    }
    if let Some(value) = tagged(b"PARTUUID=", b"/dev/disk/by-partuuid/") {
        return Some(Device::PartUuid(text(value)));
    }
    if let Some(value) = tagged(b"PARTLABEL=", b"/dev/disk/by-partlabel/") {
        return Some(Device::PartLabel(value));
    }
    let name = name.strip_prefix(b"/dev/")?;
    Some(number(name).map_or(Device::Foreign, Device::Number))
}

/// The number of a partition of the first disk, whichever driver names it: `sda2`, `vda2`,
/// `xvda2`, `nvme0n1p2`, `mmcblk0p2`.
fn number(name: &[u8]) -> Option<u32> {
    let name = std::str::from_utf8(name).ok()?;
    let disks = ["sda", "vda", "xvda", "hda", "nvme0n1", "mmcblk0"];
    let rest = disks.iter().find_map(|disk| name.strip_prefix(disk))?;
    let digits = rest.strip_prefix('p').unwrap_or(rest);
    match digits {
        "" => (rest == digits).then_some(0),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let show = |entry: &Entry| {
            let subvolume = entry.subvolume.as_deref().unwrap_or("-");
            format!("{} {:?} {subvolume}", entry.at, entry.device)
        };
        parse(text.as_bytes()).iter().map(show).collect()
    }

    #[test]
    fn file_systems_of_the_disk_are_found_by_each_kind_of_name() {
        let text = "# comment\n\
            PARTUUID=ABC-01 / ext4 errors=remount-ro 0 1\n\
            UUID=AB-12\t/boot/efi/  vfat umask=0077 0 1\r\n\
            LABEL=\"a\\040b\" /with\\040space xfs defaults 0 2\n\
            PARTLABEL=usr /usr ext4 ro 0 2\n\
            /dev/nvme0n1p15 /boot ext4\n\
            /dev/sda /whole ext2 defaults 0 0\n\
            /dev/mapper/vg-var /var ext4 defaults 0 2\n\
            /dev/disk/by-uuid/0A-1 /home btrfs compress=zstd,subvol=/@home 0 0\n";
        assert_eq!(
            shown(text),
            [
                "/ PartUuid(\"abc-01\") -",
                "/boot Number(15) -",
                "/boot/efi Uuid(\"ab-12\") -",
                "/home Uuid(\"0a-1\") @home",
                "/usr PartLabel([117, 115, 114]) -",
                "/var Foreign -",
                "/whole Number(0) -",
                "/with space Label([97, 32, 98]) -",
            ]
        );
    }

    /// What an image's tree has, a machine's has, too.
    #[test]
    fn the_places_of_vfat_are_those_of_the_entries() {
        let many: String =
            (0..MAX_ENTRIES + 9).map(|n| format!("UUID=1 /{n:04} vfat rw 0 0\n")).collect();
        let long = format!(
            "UUID=1 /boot/efi vfat\n#{}",
            "x".repeat(usize::try_from(MAX_LEN).expect("small"))
        );
        for (text, count) in [
            ("# vfat\nUUID=1 / ext4\nUUID=2 /boot/efi/ vfat umask=0077 0 1\n", 1),
            ("UUID=1 /media auto noauto 0 0\nUUID=2 /efi auto defaults 0 0\n", 1),
            ("UUID=1 /net vfat _netdev 0 0\n/a.img /loop vfat loop 0 0\n", 0),
            (
                "/srv /mnt vfat bind 0 0\n/srv/b.img /file vfat rw 0 0\nhost:/x /host vfat rw 0 0\n",
                0,
            ),
            ("UUID=1 /boot vfat\nUUID=2 /boot vfat\nUUID=3 / vfat\nUUID=4 relative vfat\n", 1),
            ("UUID=1 /boot/efi vfat\nUUID=2 /boot/efi ext4\n", 0),
            (&many, MAX_ENTRIES + 1),
            (&long, 0),
        ] {
            let places = vfat_places(text.as_bytes());
            assert_eq!(places.len(), count, "{text}");
            let entries = parse(text.as_bytes());
            assert!(places.iter().all(|at| entries.iter().any(|entry| entry.at == *at)), "{text}");
        }
    }

    #[test]
    fn what_is_not_mounted_from_the_disk_and_what_cannot_be_a_place_is_left_out() {
        let text = "UUID=1 none swap sw 0 0\ntmpfs /tmp tmpfs nosuid 0 0\n\
            host:/srv /srv nfs defaults 0 0\n//host/a /a cifs guest 0 0\n/srv /mnt none bind 0 0\n\
            UUID=2 /data ext4 noauto 0 0\nUUID=3 /x ext4 bind 0 0\nUUID=4 /net ext4 _netdev 0 0\n\
            UUID=5 /a/../../etc ext4 defaults 0 0\nUUID=6 relative ext4 defaults 0 0\n\
            UUID=7\nUUID=8 /only\n/images/a.img /loop ext4 loop 0 0\n/images/b.img /file ext4 defaults\n\
            host:/x /fuse fuse.sshfs defaults 0 0\n\\\n";
        assert_eq!(shown(text), [""; 0]);
        let twice = "UUID=1 /srv ext4\nUUID=2 /srv ext4 subvol=../x\n";
        assert_eq!(shown(twice), ["/srv Uuid(\"2\") -"]);
        for name in ["sdb1", "sda1x", "sdap", "vdaa", "nvme0n2p1", "sda99999999999"] {
            assert_eq!(number(name.as_bytes()), None, "{name}");
        }
    }
}
