//! What two images have on their EFI system partitions, and on other partitions with FAT.
//!
//! None of it belongs to a version (see the crate's documentation), so nothing but a comparison tells that an
//! update lies there: a kernel that systemd-boot starts, a boot loader.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::bytes::Bytes;
use crate::fat::{self, FatError, Files};
use crate::partition::{Partition, slots};
use crate::probe::{Contents, FileSystemKind};
use crate::{ErrorKind, ImageError};

/// What a machine writes there by itself: the seed that systemd-boot renews at each start (systemd-boot(7)), and
/// the variables of firmware that has no other place for them.
const MACHINES_OWN: &[&str] = &["loader/random-seed", "NvVars"];

/// A path on a partition with FAT that differs between two images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspChange {
    /// The partition's number in its table, 0 without one.
    pub partition: u32,
    /// The path, as `EFI/Linux/debian.efi`.
    pub path: String,
    /// What became of it.
    pub kind: EspChangeKind,
}

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EspChangeKind {
    /// The target alone has it.
    Added,
    /// Both have it, with other content.
    Modified,
    /// The base alone has it.
    Removed,
}

impl fmt::Display for EspChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            EspChangeKind::Added => "added",
            EspChangeKind::Modified => "modified",
            EspChangeKind::Removed => "removed",
        };
        write!(f, "{} ({kind})", self.path)
    }
}

/// What differs between the EFI system partitions, and all other partitions with FAT, of two images; in order of
/// partitions and paths. What machines write there by themselves does not count. Costs reading their files.
///
/// # Errors
///
/// `NotAnImage`, `Unsupported`, `Damaged`, `Io`.
pub fn esp_changes(base: &Path, target: &Path) -> Result<Vec<EspChange>, ImageError> {
    let (before, after) = (read_all(base)?, read_all(target)?);
    let mut numbers: Vec<u32> = before.keys().chain(after.keys()).copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    let none = Files::new();
    let of = |partition: u32| {
        let before = before.get(&partition).unwrap_or(&none);
        let after = after.get(&partition).unwrap_or(&none);
        between(partition, before, after)
    };
    Ok(numbers.into_iter().flat_map(of).collect())
}

/// The content of every partition with FAT, by its number.
fn read_all(image: &Path) -> Result<BTreeMap<u32, Files>, ImageError> {
    let bytes = Bytes::open(image)?;
    let mut found = BTreeMap::new();
    for slot in slots(&bytes, image)? {
        let Contents::FileSystem(fs) = &slot.contents else { continue };
        if fs.kind == FileSystemKind::Vfat {
            let Partition { offset, len, .. } = slot.partition;
            let files = fat::read(&bytes, offset, len);
            let files = files.map_err(|error| unreadable(image, &slot.partition, error))?;
            found.insert(slot.partition.number, files);
        }
    }
    Ok(found)
}

fn between(partition: u32, before: &Files, after: &Files) -> Vec<EspChange> {
    let of = |path: &String| {
        let kind = match (before.get(path), after.get(path)) {
            (None, _) => EspChangeKind::Added,
            (_, None) => EspChangeKind::Removed,
            (one, other) if one != other => EspChangeKind::Modified,
            _ => return None,
        };
        Some(EspChange { partition, path: path.clone(), kind })
    };
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort_unstable();
    paths.dedup();
    paths.into_iter().filter(|path| !is_machines_own(path)).filter_map(of).collect()
}

/// FAT does not tell large letters from small ones.
fn is_machines_own(path: &str) -> bool {
    MACHINES_OWN.iter().any(|own| own.eq_ignore_ascii_case(path))
}

fn unreadable(image: &Path, partition: &Partition, error: FatError) -> ImageError {
    match error {
        FatError::Io(error) => ImageError::io("read the vfat in", image, error),
        FatError::Damaged(what) => {
            let message = format!(
                "{}: the vfat in its {} is damaged: {what}; check it (`fsck.vfat`)",
                image.display(),
                partition.describe()
            );
            ImageError::new(ErrorKind::Damaged, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_model::Digest;

    #[test]
    fn what_differs_is_named_but_for_what_machines_write_themselves() {
        let files = |list: &[(&str, &str)]| -> Files {
            let file = |(path, text): &(&str, &str)| {
                ((*path).to_owned(), Some(Digest::of(text.as_bytes())))
            };
            list.iter().map(file).collect()
        };
        let base = files(&[("EFI/a", "1"), ("EFI/b", "1"), ("loader/random-seed", "1")]);
        let target = files(&[("EFI/b", "2"), ("EFI/c", "1"), ("LOADER/RANDOM-SEED", "2")]);
        let shown: Vec<String> =
            between(1, &base, &target).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["EFI/a (removed)", "EFI/b (modified)", "EFI/c (added)"]);
    }
}
