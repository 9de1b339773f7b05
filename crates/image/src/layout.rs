//! Which partition is the root, and which of the others stand where in its tree.

use std::path::Path;

use vireo_ext4::{InodeKind, Reader, Unfinished};
use vireo_model::ImagePath;
use vireo_model::fstab::{self, Device, Entry};

use crate::bytes::Bytes;
use crate::disk::fstab_by_mount;
use crate::partition::{Partition, RootPartition, Slot};
use crate::probe::{Contents, FileSystem, FileSystemKind};
use crate::{ErrorKind, ImageError};

/// What root file systems and their partitions are called.
const ROOT_LABELS: &[&str] = &["/", "root", "rootfs", "cloudimg-rootfs"];

/// Places of a root's list of file systems, each to be followed by nothing but the next.
pub(crate) const FSTAB: [&str; 2] = ["/etc", "/etc/fstab"];

/// A file system that is a part of an image's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where it is mounted.
    pub at: ImagePath,
    /// Where it lies.
    pub partition: Partition,
    /// What it is.
    pub kind: FileSystemKind,
    pub(crate) subvolume: Option<String>,
    pub(crate) fs: FileSystem,
}

/// A directory that the image's `/etc/fstab` mounts, but that is read without what is mounted there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Where it would be mounted.
    pub at: ImagePath,
    /// What would be: `swap, which is not supported`.
    pub why: String,
}

impl Volume {
    pub(crate) fn root(slot: &Slot, fs: &FileSystem) -> Self {
        Self::new(ImagePath::root(), slot, fs, None)
    }

    fn new(at: ImagePath, slot: &Slot, fs: &FileSystem, subvolume: Option<String>) -> Self {
        let (partition, fs) = (slot.partition.clone(), fs.clone());
        Self { at, partition, kind: fs.kind, subvolume, fs }
    }

    /// `/var (partition 3 (GPT))`.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{} ({})", self.at, self.partition.describe())
    }

    /// Whether it is whole, was unmounted cleanly and has nothing that is not understood.
    pub(crate) fn check(&self, image: &Path) -> Result<(), ImageError> {
        match &self.fs.superblock {
            Some(superblock) => superblock.check(image, &self.partition),
            None => self.check_usable(image),
        }
    }

    /// As [`check`](Self::check), but for an unclean end that e2fsck can repair.
    pub(crate) fn check_usable(&self, image: &Path) -> Result<(), ImageError> {
        if let Some(superblock) = &self.fs.superblock {
            return superblock.check_usable(image, &self.partition);
        }
        let refuse = |kind, what: String| {
            let message = format!("{}: its {} {what}", image.display(), self.describe());
            Err(ImageError::new(kind, message))
        };
        if self.fs.len > self.partition.len {
            let what = format!(
                "has {} bytes of {}, its partition only {}; the image is cut short; copy it again",
                self.fs.len,
                self.kind.name(),
                self.partition.len
            );
            return refuse(ErrorKind::Damaged, what);
        }
        if self.fs.devices > 1 {
            let what = format!(
                "is one of {} devices of a {}, which is not supported; make it one (`btrfs device remove`)",
                self.fs.devices,
                self.kind.name()
            );
            return refuse(ErrorKind::Unsupported, what);
        }
        if self.fs.has_log {
            let what = "has an unfinished log: its machine is running or was not shut down cleanly; \
                        shut it down, or mount and unmount it once";
            return refuse(ErrorKind::Unclean, what.to_owned());
        }
        Ok(())
    }
}

/// The root file system among `slots`.
pub(crate) fn find_root(
    image: &Bytes,
    path: &Path,
    slots: &[Slot],
    wanted: RootPartition,
) -> Result<Volume, ImageError> {
    let mut candidates: Vec<(&Slot, &FileSystem)> =
        slots.iter().filter_map(|slot| Some((slot, slot.contents.root()?))).collect();
    if let RootPartition::Number(number) = wanted {
        // A number means nothing where there is no table.
        let is_it = |partition: &Partition| [0, number].contains(&partition.number);
        candidates.retain(|(slot, _)| is_it(&slot.partition));
    } else {
        let is_typed = |(slot, _): &(&Slot, &FileSystem)| slot.partition.is_root_type;
        narrow(&mut candidates, is_typed);
        let names_itself =
            |(slot, fs): &(&Slot, &FileSystem)| names_itself((image, path), slots, slot, fs);
        narrow(&mut candidates, names_itself);
        narrow(&mut candidates, |(slot, fs)| is_called_root(slot, fs));
        if slots.iter().any(|slot| slot.contents.name().and_then(remedy).is_some()) {
            // A lone `/boot` beside a logical volume must not be taken for the root.
            candidates.retain(|(slot, fs)| {
                slot.partition.is_root_type
                    || is_called_root(slot, fs)
                    || names_itself(&(*slot, *fs))
            });
        }
    }
    match candidates.as_slice() {
        [(slot, fs)] => Ok(Volume::root(slot, fs)),
        [] => Err(unknown(path, slots, wanted, false)),
        _ => Err(unknown(path, slots, wanted, true)),
    }
}

/// Keeps the one candidate of several that `is_it` holds for.
fn narrow<T: Copy>(candidates: &mut Vec<T>, is_it: impl Fn(&T) -> bool) {
    if candidates.len() < 2 {
        return;
    }
    let found: Vec<T> = candidates.iter().copied().filter(is_it).collect();
    if found.len() == 1 {
        *candidates = found;
    }
}

/// Whether its own `/etc/fstab` mounts it at `/`. Of what the kernel alone reads, this is known only where
/// this process may mount.
fn names_itself(
    (image, path): (&Bytes, &Path),
    slots: &[Slot],
    slot: &Slot,
    fs: &FileSystem,
) -> bool {
    let read = || match fs.kind {
        FileSystemKind::Ext => {
            let reader = open_reader(image, &slot.partition, Unfinished::Replay).ok()?;
            read_fstab(&reader, path).ok()?
        }
        _ => fstab_by_mount((image, path), Volume::root(slot, fs)),
    };
    let entries = read().map(|text| fstab::parse(&text)).unwrap_or_default();
    entries.iter().any(|entry| {
        let found = find(slots, &entry.device);
        entry.at.is_root() && found.is_some_and(|found| found.partition == slot.partition)
    })
}

fn is_called_root(slot: &Slot, fs: &FileSystem) -> bool {
    let is_root = |label: &[u8]| ROOT_LABELS.iter().any(|root| root.as_bytes() == label);
    is_root(&fs.label) || is_root(slot.partition.label.as_bytes())
}

/// Our own reader of the ext file system in `partition`.
pub(crate) fn open_reader(
    image: &Bytes,
    partition: &Partition,
    unfinished: Unfinished,
) -> Result<Reader, vireo_ext4::Ext4Error> {
    let source = vireo_ext4::Partition::new(image.clone(), partition.offset, partition.len);
    Reader::open(source, unfinished)
}

/// The text of `/etc/fstab` in `reader`; `None` if there is none.
pub(crate) fn read_fstab(reader: &Reader, image: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    let failed = |error| ImageError::ext4(image, error);
    let mut file = None;
    for place in FSTAB {
        let Ok(place) = ImagePath::parse(place.as_bytes()) else { return Ok(None) };
        let Some(inode) = reader.find(&place).map_err(failed)? else { return Ok(None) };
        if inode.kind == InodeKind::Symlink {
            return Err(linked_fstab(image));
        }
        file = Some(inode);
    }
    let Some(inode) = file.filter(|inode| inode.kind == InodeKind::File) else { return Ok(None) };
    if inode.len > fstab::MAX_LEN {
        return Err(long_fstab(image));
    }
    let mut text = vec![0; usize::try_from(inode.len).unwrap_or(0)];
    let read = reader.read_at(&inode, 0, &mut text).map_err(failed)?;
    text.truncate(read);
    Ok(Some(text))
}

pub(crate) fn linked_fstab(image: &Path) -> ImageError {
    let message = format!(
        "{}: its /etc/fstab is or lies behind a symbolic link, which is not followed; make it a file",
        image.display()
    );
    ImageError::new(ErrorKind::Unsupported, message)
}

pub(crate) fn long_fstab(image: &Path) -> ImageError {
    let most = fstab::MAX_LEN;
    let message = format!("{}: its /etc/fstab has more than {most} bytes", image.display());
    ImageError::new(ErrorKind::Unsupported, message)
}

/// The partition that an entry of `/etc/fstab` means.
fn find<'a>(slots: &'a [Slot], device: &Device) -> Option<&'a Slot> {
    let is_it = |slot: &&Slot| {
        let fs = match &slot.contents {
            Contents::FileSystem(fs) => Some(fs),
            _ => None,
        };
        match device {
            Device::Uuid(uuid) => fs.is_some_and(|fs| fs.uuid.eq_ignore_ascii_case(uuid)),
            Device::Label(label) => fs.is_some_and(|fs| fs.label == *label),
            Device::PartUuid(uuid) => {
                !uuid.is_empty() && slot.partition.uuid.eq_ignore_ascii_case(uuid)
            }
            Device::PartLabel(label) => {
                !label.is_empty() && slot.partition.label.as_bytes() == label.as_slice()
            }
            Device::Number(number) => slot.partition.number == *number,
            Device::Foreign => false,
        }
    };
    slots.iter().find(is_it)
}

/// The root's subvolume by its own `/etc/fstab`.
pub(crate) fn root_subvolume(text: &[u8]) -> Option<String> {
    let entries = fstab::parse(text);
    entries.into_iter().find(|entry| entry.at.is_root())?.subvolume
}

/// What the root's `/etc/fstab`, `text`, makes the tree of: the file systems beside `root` in path
/// order, and what is left out of it.
pub(crate) fn arrange(
    path: &Path,
    slots: &[Slot],
    root: &Volume,
    text: &[u8],
) -> Result<(Vec<Volume>, Vec<LeftOut>), ImageError> {
    let (mut volumes, mut left_out) = (Vec::<Volume>::new(), Vec::new());
    for Entry { device, name, at, subvolume, .. } in fstab::parse(text) {
        if at.is_root() {
            continue;
        }
        let slot = find(slots, &device);
        let why = match slot.map(|slot| &slot.contents) {
            None => format!("{name}, which is not in the image"),
            Some(Contents::Unknown) => format!("{name}, in which nothing known is"),
            Some(Contents::Other(kind)) => format!("{kind}, which is not supported"),
            Some(Contents::FileSystem(fs)) => {
                if let Some(slot) = slot {
                    volumes.push(Volume::new(at, slot, fs, subvolume));
                }
                continue;
            }
        };
        left_out.push(LeftOut { at, why });
    }
    refuse_overlaps(path, root, &volumes)?;
    Ok((volumes, left_out))
}

/// Two mounts of the same bytes by two devices would destroy them.
fn refuse_overlaps(path: &Path, root: &Volume, volumes: &[Volume]) -> Result<(), ImageError> {
    let all: Vec<&Volume> = std::iter::once(root).chain(volumes).collect();
    for (index, one) in all.iter().enumerate() {
        for other in &all[index + 1..] {
            let (a, b) = (&one.partition, &other.partition);
            let apart = a.offset.saturating_add(a.len) <= b.offset
                || b.offset.saturating_add(b.len) <= a.offset;
            let shared = one.kind == FileSystemKind::Btrfs && a == b;
            if apart || (shared && one.subvolume != other.subvolume) {
                continue;
            }
            let message = format!(
                "{}: its {} and {} are the same bytes; correct its partition table or /etc/fstab",
                path.display(),
                one.describe(),
                other.describe()
            );
            return Err(ImageError::new(ErrorKind::Unsupported, message));
        }
    }
    Ok(())
}

/// What is in the way of finding a root, and what can be done about it.
fn remedy(contents: &str) -> Option<&'static str> {
    Some(match contents {
        "LVM2_member" => {
            "logical volumes (LVM) are not supported: copy the root's volume into an image of its own"
        }
        "crypto_LUKS" => {
            "encrypted partitions (LUKS) are not supported: decrypt it (`cryptsetup reencrypt --decrypt`)"
        }
        "linux_raid_member" => {
            "RAID members (md) are not supported: copy the array's content into an image of its own"
        }
        "zfs_member" => "ZFS is not supported: use an image with ext4, xfs or btrfs",
        _ => return None,
    })
}

fn unknown(path: &Path, slots: &[Slot], wanted: RootPartition, several: bool) -> ImageError {
    let path = path.display();
    if slots.is_empty() {
        let message = format!(
            "{path} has neither a file system that can be read (ext2, ext3, ext4, xfs, btrfs) nor a GPT or \
             MBR partition table; convert other image formats first (`qemu-img convert -O raw`)"
        );
        return ImageError::new(ErrorKind::NotAnImage, message);
    }
    let show = |slot: &Slot| {
        let Slot { partition, contents } = slot;
        let name = contents.name().filter(|name| *name != FileSystemKind::Ext.name());
        let name = name.map(|name| format!(", {name}")).unwrap_or_default();
        let root = if partition.is_root_type { ", root" } else { "" };
        format!("{} ({} MiB{name}{root})", partition.number, partition.len >> 20)
    };
    let list = slots.iter().map(show).collect::<Vec<_>>().join(", ");
    let message = match wanted {
        RootPartition::Number(number) => format!(
            "{path} has no partition {number} with a file system that can be read (ext2, ext3, ext4, xfs, \
             btrfs); it has {list}"
        ),
        RootPartition::Find => {
            let remedy = slots.iter().find_map(|slot| remedy(slot.contents.name()?));
            if let (false, Some(remedy)) = (several, remedy) {
                let message = format!("{path}: {remedy}; it has {list}");
                return ImageError::new(ErrorKind::Unsupported, message);
            }
            format!(
                "{path}: cannot tell which partition is the root file system; name it with \
                 --root-partition, it has {list}"
            )
        }
    };
    ImageError::new(ErrorKind::UnknownPartition, message)
}
