//! What two images have on partitions with FAT that are no part of their trees.
//!
//! What `/etc/fstab` mounts travels in bundles. An EFI system partition that no entry names does not, and nothing but
//! a comparison tells that an update lies there: a kernel that systemd-boot starts, a boot loader.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use vireo_model::{Digest, ImagePath};

use crate::ImageError;
use crate::bytes::Bytes;
use crate::fat::Fat;
use crate::partition::{Partition, slots};
use crate::probe::{Contents, FileSystemKind};

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

/// What differs between the partitions with FAT of two images, EFI system partitions first of all, without those with
/// the numbers `in_trees`, which are parts of both trees; in order of partitions and paths. What machines write there
/// by themselves does not count. Costs reading their files.
///
/// # Errors
///
/// `NotAnImage`, `Unsupported`, `Damaged`, `Io`.
pub fn esp_changes(
    base: &Path,
    target: &Path,
    in_trees: &[u32],
) -> Result<Vec<EspChange>, ImageError> {
    let (before, after) = (read_all(base, in_trees)?, read_all(target, in_trees)?);
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

/// Digests of files by their paths; none for directories.
type Files = BTreeMap<ImagePath, Option<Digest>>;

/// The content of every partition with FAT but those with the numbers `but`, by its number.
fn read_all(image: &Path, but: &[u32]) -> Result<BTreeMap<u32, Files>, ImageError> {
    let bytes = Bytes::open(image)?;
    let mut found = BTreeMap::new();
    for slot in slots(&bytes, image)? {
        let Contents::FileSystem(fs) = &slot.contents else { continue };
        if fs.kind == FileSystemKind::Vfat && !but.contains(&slot.partition.number) {
            let Partition { offset, len, number, .. } = slot.partition;
            let files = Fat::open(bytes.clone(), offset, len).and_then(|fat| fat.digests());
            let files = files.map_err(|error| ImageError::fat(image, &slot.partition, error))?;
            found.insert(number, files);
        }
    }
    Ok(found)
}

fn between(partition: u32, before: &Files, after: &Files) -> Vec<EspChange> {
    let of = |path: &ImagePath| {
        let kind = match (before.get(path), after.get(path)) {
            (None, _) => EspChangeKind::Added,
            (_, None) => EspChangeKind::Removed,
            (one, other) if one != other => EspChangeKind::Modified,
            _ => return None,
        };
        let path = String::from_utf8_lossy(path.relative()).into_owned();
        Some(EspChange { partition, path, kind })
    };
    let mut paths: Vec<&ImagePath> = before.keys().chain(after.keys()).collect();
    paths.sort_unstable();
    paths.dedup();
    paths.into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let files = |list: &[(&str, &str)]| -> Files {
            let file = |(path, text): &(&str, &str)| {
                (
                    ImagePath::parse(path.as_bytes()).expect("a path"),
                    Some(Digest::of(text.as_bytes())),
                )
            };
            list.iter().map(file).collect()
        };
        let base = files(&[("/EFI/a", "1"), ("/EFI/b", "1"), ("/same", "1")]);
        let target = files(&[("/EFI/b", "2"), ("/EFI/c", "1"), ("/same", "1")]);
        let shown: Vec<String> =
            between(1, &base, &target).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["EFI/a (removed)", "EFI/b (modified)", "EFI/c (added)"]);
    }
}
