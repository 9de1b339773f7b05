//! Partition tables: GPT (by the crate `gpt`), MBR, none. The kernel is never asked to scan one.

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vireo_ext4::Source as _;

use crate::bytes::{Bytes, Device, le32};
use crate::probe::Contents;
use crate::{ErrorKind, ImageError};

/// Sector size of both tables in a file, in bytes.
pub(crate) const SECTOR: u64 = 512;
/// Most logical partitions followed in an MBR's extended partition; a loop ends there.
const MAX_LOGICAL: u32 = 64;

/// Most entries of a GUID partition table; tools make 128.
pub(crate) const MAX_GPT_ENTRIES: u32 = 1024;
/// Length of an entry, in bytes: the only one that the crate `gpt` reads.
pub(crate) const GPT_ENTRY_LEN: u32 = 128;
/// Length of a table's header, in bytes (UEFI specification, 5.3.2).
pub(crate) const GPT_HEADER_LEN: usize = 92;

/// Types of partitions with a root file system, for each processor (UAPI group, Discoverable
/// Partitions Specification).
const ROOT_TYPES: &[&str] = &[
    "6523f8ae-3eb1-4e2a-a05a-18b695ae656f", // alpha
    "d27f46ed-2919-4cb8-bd25-9531f3c16534", // arc
    "69dad710-2ce4-4e3c-b16c-21a1d49abed3", // arm
    "b921b045-1df0-41c3-af44-4c6f280d3fae", // arm64
    "993d8d3d-f80e-4225-855a-9daf8ed7ea97", // ia64
    "77055800-792c-4f94-b39a-98c91b762bb6", // loongarch64
    "e9434544-6e2c-47cc-bae2-12d6deafb44c", // mips
    "d113af76-80ef-41b4-bdb6-0cff4d3d4a25", // mips64
    "37c58c8a-d913-4156-a25f-48b1b64e07f0", // mips-le
    "700bda43-7a34-4507-b179-eeb93d7a7ca3", // mips64-le
    "1aacdb3b-5444-4138-bd9e-e5c2239b2346", // parisc
    "1de3f1ef-fa98-47b5-8dcd-4a860a654d78", // ppc
    "912ade1d-a839-4913-8964-a10eee08fbd2", // ppc64
    "c31c45e6-3f39-412e-80fb-4809c4980599", // ppc64-le
    "60d5a7fe-8e7d-435c-b714-3dd8162144e1", // riscv32
    "72ec70a6-cf74-40e6-bd49-4bda08e8f224", // riscv64
    "08a7acea-624c-4a20-91e8-6e0fa67d23f9", // s390
    "5eead9a9-fe09-4a1e-a1d7-520d00531306", // s390x
    "c50cdd70-3862-4cc3-90e1-809a8c93ee2c", // tilegx
    "44479540-f297-41b2-9af7-d131d5f0458a", // x86
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", // x86-64
];

/// Where the four entries of an MBR begin, and the length of each, in bytes.
pub(crate) const MBR_ENTRIES: usize = 446;
pub(crate) const MBR_ENTRY_LEN: usize = 16;
/// Where an entry has its type, its first sector and how many it has.
pub(crate) const MBR_KIND: usize = 4;
pub(crate) const MBR_FIRST: usize = 8;
pub(crate) const MBR_SECTORS: usize = 12;

const MBR_EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
pub(crate) const MBR_PROTECTIVE: u8 = 0xEE;

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
    /// Its own UUID (`PARTUUID=`), empty without a table.
    pub uuid: String,
    /// Its name (`PARTLABEL=`), empty where there is none.
    pub label: String,
}

/// A partition, and what is in it.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) partition: Partition,
    pub(crate) contents: Contents,
}

/// Which partition holds the root file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootPartition {
    /// The only one with a file system that can be a root; of several the one that its type marks as
    /// a Linux root, else the one whose `/etc/fstab` names itself, else the one that is called so.
    #[default]
    Find,
    /// The one with this number.
    Number(u32),
}

impl From<Option<u32>> for RootPartition {
    /// The one with the number, if there is one.
    fn from(number: Option<u32>) -> Self {
        number.map_or(Self::Find, Self::Number)
    }
}

impl Partition {
    pub(crate) fn whole(len: u64) -> Self {
        Self {
            layout: Layout::Whole,
            number: 0,
            offset: 0,
            len,
            is_root_type: false,
            uuid: String::new(),
            label: String::new(),
        }
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

/// The partitions of `image` with what is in them. Without a table the one that is the whole image;
/// nothing, if nothing is known in it.
pub(crate) fn slots(image: &Bytes, path: &Path) -> Result<Vec<Slot>, ImageError> {
    let failed = |error| ImageError::io("read", path, error);
    let len = image.len().map_err(failed)?;
    let slot = |partition: Partition| -> Result<Slot, ImageError> {
        let contents = Contents::of(image, partition.offset, partition.len).map_err(failed)?;
        Ok(Slot { partition, contents })
    };
    let whole = slot(Partition::whole(len))?;
    if whole.contents.root().is_some() {
        return Ok(vec![whole]);
    }
    let slots: Vec<Slot> =
        partitions(image, path, len)?.into_iter().map(slot).collect::<Result<_, _>>()?;
    if slots.is_empty() && whole.contents != Contents::Unknown {
        Ok(vec![whole])
    } else {
        Ok(slots)
    }
}

fn partitions(image: &Bytes, path: &Path, len: u64) -> Result<Vec<Partition>, ImageError> {
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
        let disk = le32(&sector, 440);
        mbr(image, &entries, disk)
            .map_err(|error| ImageError::io("read the partition table of", path, error))?
    };
    // What lies outside the file cannot be read; a cut image is named by its superblock.
    Ok(list.into_iter().filter(|partition| partition.offset < len).map(|p| clip(p, len)).collect())
}

fn clip(mut partition: Partition, len: u64) -> Partition {
    partition.len = partition.len.min(len - partition.offset);
    partition
}

fn gpt(image: &Bytes, path: &Path, len: u64) -> Result<Vec<Partition>, ImageError> {
    let bad = |error: String| {
        let message = format!("{} has a damaged GUID partition table: {error}", path.display());
        ImageError::new(ErrorKind::NotAnImage, message)
    };
    if !has_plain_entries(image, len).map_err(|error| ImageError::io("read", path, error))? {
        let most = format!("{MAX_GPT_ENTRIES} of {GPT_ENTRY_LEN} bytes");
        return Err(bad(format!("it has other entries than at most {most}")));
    }
    let device = Device::new(image).map_err(|error| ImageError::io("read", path, error))?;
    let size = gpt::disk::LogicalBlockSize::Lb512;
    let disk = gpt::GptConfig::new()
        .logical_block_size(size)
        .open_from_device(device)
        .map_err(|error| bad(error.to_string()))?;
    let mut list = Vec::new();
    for (number, entry) in disk.partitions().iter().filter(|(_, entry)| entry.is_used()) {
        let offset = entry.bytes_start(size).map_err(|error| bad(error.to_string()))?;
        let len = entry.bytes_len(size).map_err(|error| bad(error.to_string()))?;
        let kind = entry.part_type_guid.guid.to_string();
        list.push(Partition {
            layout: Layout::Gpt,
            number: *number,
            offset,
            len,
            is_root_type: ROOT_TYPES.iter().any(|root| root.eq_ignore_ascii_case(&kind)),
            uuid: entry.part_guid.to_string().to_ascii_lowercase(),
            label: entry.name.clone(),
        });
    }
    Ok(list)
}

/// Whether the entries that the table's headers announce, the first and its copy at the end, can be
/// read: the crate `gpt` panics over entries of another length, and reads as many as it is told.
fn has_plain_entries(image: &Bytes, len: u64) -> io::Result<bool> {
    for sector in [1, (len / SECTOR).saturating_sub(1)] {
        let mut header = [0; GPT_HEADER_LEN];
        match image.read_exact_at(&mut header, sector * SECTOR) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(error) => return Err(error),
        }
        let is_plain = le32(&header, 80) <= MAX_GPT_ENTRIES && le32(&header, 84) == GPT_ENTRY_LEN;
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
        let entry = &sector[MBR_ENTRIES + index * MBR_ENTRY_LEN..][..MBR_ENTRY_LEN];
        let (first, sectors) = (le32(entry, MBR_FIRST), le32(entry, MBR_SECTORS));
        MbrEntry { kind: entry[MBR_KIND], first, sectors }
    })
}

fn mbr(image: &Bytes, entries: &[MbrEntry; 4], disk: u32) -> io::Result<Vec<Partition>> {
    let partition = |number: u32, first: u64, sectors: u32| Partition {
        layout: Layout::Mbr,
        number,
        offset: first * SECTOR,
        len: u64::from(sectors) * SECTOR,
        is_root_type: false,
        // As the kernel makes it from the disk's signature.
        uuid: format!("{disk:08x}-{number:02x}"),
        label: String::new(),
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
fn logical(image: &Bytes, extended: u64) -> io::Result<Vec<(u32, u64, u32)>> {
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
