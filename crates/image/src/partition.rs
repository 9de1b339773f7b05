//! Partition tables: GPT (by the crate `gpt`), MBR, none. The kernel is never asked to scan one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::superblock::Superblock;
use crate::{ErrorKind, ImageError};

/// Sector size of both tables in a file, in bytes.
const SECTOR: u64 = 512;
/// Most logical partitions followed in an MBR's extended partition; a loop ends there.
const MAX_LOGICAL: u32 = 64;

/// Most entries of a GUID partition table; tools make 128.
const MAX_GPT_ENTRIES: u32 = 1024;
/// Length of an entry, in bytes: the only one that the crate `gpt` reads.
const GPT_ENTRY_LEN: u32 = 128;
/// Length of a table's header, in bytes (UEFI specification, 5.3.2).
const GPT_HEADER_LEN: usize = 92;

const MBR_EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
const MBR_PROTECTIVE: u8 = 0xEE;

/// How an image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One file system from the first byte on.
    Whole,
    /// A GUID partition table (UEFI specification, chapter 5).
    Gpt,
    /// A master boot record.
    Mbr,
}

/// A part of the image that may hold a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The table it stands in.
    pub layout: Layout,
    /// Its number in the table, from 1; 0 without a table.
    pub number: u32,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether its type says that it is the root of a Linux system for this or any processor.
    pub is_root_type: bool,
}

/// Which partition holds the root file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootPartition {
    /// The one that its type marks as a Linux root, else the only one with an ext file system.
    #[default]
    Find,
    /// The one with this number.
    Number(u32),
}

impl Partition {
    pub(crate) fn whole(len: u64) -> Self {
        Self { layout: Layout::Whole, number: 0, offset: 0, len, is_root_type: false }
    }

    /// `partition 2 (GPT)`, or `whole image`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.layout {
            Layout::Whole => "whole image".to_owned(),
            Layout::Gpt => format!("partition {} (GPT)", self.number),
            Layout::Mbr => format!("partition {} (MBR)", self.number),
        }
    }
}

/// The partition of `image` with the root file system, and that file system's superblock.
pub(crate) fn find_root(
    image: &File,
    path: &Path,
    wanted: RootPartition,
) -> Result<(Partition, Superblock), ImageError> {
    let len = image
        .metadata()
        .map_err(|error| ImageError::io("read the metadata of", path, error))?
        .len();
    let read = |partition: &Partition| {
        Superblock::read(image, partition.offset)
            .map_err(|error| ImageError::io("read", path, error))
    };
    let whole = Partition::whole(len);
    if let Some(superblock) = read(&whole)? {
        return Ok((whole, superblock));
    }
    let partitions = partitions(image, path, len)?;
    let mut candidates = Vec::new();
    for partition in &partitions {
        if matches!(wanted, RootPartition::Number(number) if number != partition.number) {
            continue;
        }
        if let Some(superblock) = read(partition)? {
            candidates.push((partition.clone(), superblock));
        }
    }
    if candidates.len() > 1 && candidates.iter().filter(|(p, _)| p.is_root_type).count() == 1 {
        candidates.retain(|(partition, _)| partition.is_root_type);
    }
    match candidates.len() {
        1 => candidates.pop().ok_or_else(|| unknown(path, &partitions, wanted)),
        _ => Err(unknown(path, &partitions, wanted)),
    }
}

fn unknown(path: &Path, partitions: &[Partition], wanted: RootPartition) -> ImageError {
    let path = path.display();
    if partitions.is_empty() {
        let message = format!(
            "{path} has neither an ext2, ext3 or ext4 file system nor a GPT or MBR partition table; \
             convert other image formats first (`qemu-img convert -O raw`)"
        );
        return ImageError::new(ErrorKind::NotAnImage, message);
    }
    let list: Vec<String> = partitions
        .iter()
        .map(|p| {
            format!(
                "{} ({} MiB{})",
                p.number,
                p.len >> 20,
                if p.is_root_type { ", root" } else { "" }
            )
        })
        .collect();
    let list = list.join(", ");
    let message = match wanted {
        RootPartition::Number(number) => {
            format!(
                "{path} has no partition {number} with an ext2, ext3 or ext4 file system; it has {list}"
            )
        }
        RootPartition::Find => format!(
            "{path}: cannot tell which partition is the root file system; name it with --root-partition, it has {list}"
        ),
    };
    ImageError::new(ErrorKind::UnknownPartition, message)
}

fn partitions(image: &File, path: &Path, len: u64) -> Result<Vec<Partition>, ImageError> {
    let mut sector = [0; SECTOR as usize];
    match image.read_exact_at(&mut sector, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
        Err(error) => return Err(ImageError::io("read", path, error)),
    }
    if sector[510..] != [0x55, 0xAA] {
        return Ok(Vec::new());
    }
    let entries = mbr_entries(&sector);
    let list = if entries.iter().any(|entry| entry.kind == MBR_PROTECTIVE) {
        gpt(image, path, len)?
    } else {
        mbr(image, &entries)
            .map_err(|error| ImageError::io("read the partition table of", path, error))?
    };
    // What lies outside the file cannot be read; a cut image is named by its superblock.
    Ok(list.into_iter().filter(|partition| partition.offset < len).map(|p| clip(p, len)).collect())
}

fn clip(mut partition: Partition, len: u64) -> Partition {
    partition.len = partition.len.min(len - partition.offset);
    partition
}

fn gpt(image: &File, path: &Path, len: u64) -> Result<Vec<Partition>, ImageError> {
    use gpt::partition_types::{
        LINUX_ROOT_ARM_32, LINUX_ROOT_ARM_64, LINUX_ROOT_X64, LINUX_ROOT_X86,
    };
    let bad = |error: String| {
        let message = format!("{} has a damaged GUID partition table: {error}", path.display());
        ImageError::new(ErrorKind::NotAnImage, message)
    };
    if !has_plain_entries(image, len).map_err(|error| ImageError::io("read", path, error))? {
        let most = format!("{MAX_GPT_ENTRIES} of {GPT_ENTRY_LEN} bytes");
        return Err(bad(format!("it has other entries than at most {most}")));
    }
    let device = image.try_clone().map_err(|error| ImageError::io("read", path, error))?;
    let size = gpt::disk::LogicalBlockSize::Lb512;
    let disk = gpt::GptConfig::new()
        .logical_block_size(size)
        .open_from_device(device)
        .map_err(|error| bad(error.to_string()))?;
    let mut list = Vec::new();
    for (number, entry) in disk.partitions().iter().filter(|(_, entry)| entry.is_used()) {
        let offset = entry.bytes_start(size).map_err(|error| bad(error.to_string()))?;
        let len = entry.bytes_len(size).map_err(|error| bad(error.to_string()))?;
        let roots = [LINUX_ROOT_X64, LINUX_ROOT_ARM_64, LINUX_ROOT_X86, LINUX_ROOT_ARM_32];
        let is_root_type = roots.contains(&entry.part_type_guid);
        list.push(Partition { layout: Layout::Gpt, number: *number, offset, len, is_root_type });
    }
    Ok(list)
}

/// Whether the entries that the table's headers announce, the first and its copy at the end, can be
/// read: the crate `gpt` panics over entries of another length, and reads as many as it is told.
fn has_plain_entries(image: &File, len: u64) -> io::Result<bool> {
    for sector in [1, (len / SECTOR).saturating_sub(1)] {
        let mut header = [0; GPT_HEADER_LEN];
        match image.read_exact_at(&mut header, sector * SECTOR) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(error) => return Err(error),
        }
        let u32_at = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let is_plain = u32_at(80) <= MAX_GPT_ENTRIES && u32_at(84) == GPT_ENTRY_LEN;
        if header.starts_with(b"EFI PART") && !is_plain {
            return Ok(false);
        }
    }
    Ok(true)
}

#[derive(Clone, Copy)]
struct MbrEntry {
    kind: u8,
    first: u32,
    sectors: u32,
}

fn mbr_entries(sector: &[u8; SECTOR as usize]) -> [MbrEntry; 4] {
    [0, 1, 2, 3].map(|index| {
        let entry = &sector[446 + index * 16..][..16];
        let u32_at = |at: usize| {
            u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
        };
        MbrEntry { kind: entry[4], first: u32_at(8), sectors: u32_at(12) }
    })
}

fn mbr(image: &File, entries: &[MbrEntry; 4]) -> io::Result<Vec<Partition>> {
    let partition = |number, first: u64, sectors: u32| Partition {
        layout: Layout::Mbr,
        number,
        offset: first * SECTOR,
        len: u64::from(sectors) * SECTOR,
        is_root_type: false,
    };
    let mut list = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        if entry.kind == 0 || entry.sectors == 0 {
            continue;
        }
        if MBR_EXTENDED.contains(&entry.kind) {
            list.extend(
                logical(image, u64::from(entry.first))?
                    .into_iter()
                    .map(|(number, first, sectors)| partition(number, first, sectors)),
            );
        } else {
            list.push(partition(number, u64::from(entry.first), entry.sectors));
        }
    }
    list.sort_by_key(|partition| partition.number);
    Ok(list)
}

/// The chain of logical partitions: number, first sector, sectors.
fn logical(image: &File, extended: u64) -> io::Result<Vec<(u32, u64, u32)>> {
    let mut list = Vec::new();
    let mut record = extended;
    for number in 5..5 + MAX_LOGICAL {
        let mut sector = [0; SECTOR as usize];
        match image.read_exact_at(&mut sector, record * SECTOR) {
            Ok(()) if sector[510..] == [0x55, 0xAA] => {}
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
        let [entry, next, ..] = mbr_entries(&sector);
        if entry.kind != 0 && entry.sectors != 0 {
            list.push((number, record + u64::from(entry.first), entry.sectors));
        }
        if next.kind == 0 || next.first == 0 {
            break;
        }
        record = extended + u64::from(next.first);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image file with an ext superblock at each of `offsets`, and `sector` in front.
    fn image(sector: &[u8], offsets: &[u64]) -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disk.img");
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(path)
            .expect("made");
        file.set_len(64 << 20).expect("sized");
        file.write_all_at(sector, 0).expect("written");
        for offset in offsets {
            let mut superblock = [0; 1024];
            superblock[0x38..0x3A].copy_from_slice(&0xEF53_u16.to_le_bytes());
            superblock[0x4] = 10;
            superblock[0x3A] = 1;
            file.write_all_at(&superblock, offset + 1024).expect("written");
        }
        (dir, file)
    }

    fn mbr_sector(entries: &[(u8, u32, u32)]) -> Vec<u8> {
        let mut sector = vec![0; 512];
        for (index, (kind, first, sectors)) in entries.iter().enumerate() {
            let entry = &mut sector[446 + index * 16..][..16];
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&first.to_le_bytes());
            entry[12..].copy_from_slice(&sectors.to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xAA]);
        sector
    }

    fn find(file: &File, wanted: RootPartition) -> Result<Partition, (ErrorKind, String)> {
        let found = find_root(file, Path::new("disk.img"), wanted);
        found.map(|(partition, _)| partition).map_err(|error| (error.kind(), error.to_string()))
    }

    #[test]
    fn a_file_system_without_a_table_is_the_whole_image() {
        let (_dir, file) = image(&[], &[0]);
        assert_eq!(find(&file, RootPartition::Find).expect("found").layout, Layout::Whole);
    }

    #[test]
    fn the_only_ext_partition_of_an_mbr_is_the_root() {
        let sector = mbr_sector(&[(0x0C, 2048, 4096), (0x83, 8192, 65536)]);
        let (_dir, file) = image(&sector, &[8192 * 512]);
        let partition = find(&file, RootPartition::Find).expect("found");
        assert_eq!(
            (partition.number, partition.offset, partition.len),
            (2, 8192 * 512, 65536 * 512)
        );
    }

    #[test]
    fn two_ext_partitions_ask_for_a_choice() {
        let sector = mbr_sector(&[(0x83, 2048, 4096), (0x83, 8192, 65536)]);
        let (_dir, file) = image(&sector, &[2048 * 512, 8192 * 512]);
        let (kind, message) = find(&file, RootPartition::Find).expect_err("ambiguous");
        assert_eq!(kind, ErrorKind::UnknownPartition);
        assert!(
            message.contains("--root-partition") && message.contains("1 (2 MiB), 2 (32 MiB)"),
            "{message}"
        );
        assert_eq!(find(&file, RootPartition::Number(1)).expect("chosen").number, 1);
        assert_eq!(
            find(&file, RootPartition::Number(7)).expect_err("none").0,
            ErrorKind::UnknownPartition
        );
    }

    #[test]
    fn logical_partitions_are_found_and_a_loop_of_them_ends() {
        let sector = mbr_sector(&[(0x05, 2048, 100_000)]);
        let (_dir, file) = image(&sector, &[(4096 + 64) * 512]);
        // Each record points at the next; the second back at itself.
        file.write_all_at(&mbr_sector(&[(0x82, 8, 8), (0x05, 2048, 9)]), 2048 * 512)
            .expect("written");
        file.write_all_at(&mbr_sector(&[(0x83, 64, 4096), (0x05, 2048, 9)]), 4096 * 512)
            .expect("written");
        let found = find(&file, RootPartition::Number(6)).expect("found");
        assert_eq!(found.offset, (4096 + 64) * 512);
    }

    #[test]
    fn a_guid_table_with_odd_entries_is_refused_wherever_its_header_is() {
        for sector in [1, (64 << 20) / 512 - 1] {
            for (count, len) in [(128_u32, 64_u32), (u32::MAX, 128)] {
                let (_dir, file) = image(&mbr_sector(&[(0xEE, 1, 9)]), &[]);
                let mut header = [0; GPT_HEADER_LEN];
                header[..8].copy_from_slice(b"EFI PART");
                header[80..84].copy_from_slice(&count.to_le_bytes());
                header[84..88].copy_from_slice(&len.to_le_bytes());
                file.write_all_at(&header, sector * 512).expect("written");
                let (kind, message) = find(&file, RootPartition::Find).expect_err("odd");
                assert_eq!(kind, ErrorKind::NotAnImage);
                assert!(message.contains("other entries"), "{message}");
            }
        }
    }

    #[test]
    fn a_file_of_something_else_says_what_to_do() {
        let (_dir, file) = image(b"QFI\xfb", &[]);
        let (kind, message) = find(&file, RootPartition::Find).expect_err("qcow2");
        assert_eq!(kind, ErrorKind::NotAnImage);
        assert!(message.contains("qemu-img convert"), "{message}");
        let (_dir, file) = image(&mbr_sector(&[(0xEE, 1, 9)]), &[]);
        assert_eq!(
            find(&file, RootPartition::Find).expect_err("no GPT behind").0,
            ErrorKind::NotAnImage
        );
    }
}
