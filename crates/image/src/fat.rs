//! What is in a FAT file system, as far as comparing two of them takes: paths, and digests of files.
//!
//! Layout as in Microsoft's *FAT32 File System Specification* 1.03, which the UEFI specification (13.3) refers to.
//! No number in it is believed: work and memory are bounded by the limits here and by the partition's length.
//!
//! # Not here
//!
//! Writing. Attributes and times.

use std::collections::BTreeMap;
use std::io;

use vireo_ext4::Source;
use vireo_model::{Digest, Hasher};

/// Bytes of a directory entry.
const ENTRY_LEN: usize = 32;
/// Longest directory, in bytes: the specification's own limit of 65,536 entries.
const MAX_DIR_LEN: usize = 65_536 * ENTRY_LEN;
/// Most directories that lie in each other: paths in FAT have 260 characters, so 130 names.
const MAX_DEPTH: usize = 130;
/// Most files and directories; a system partition has some dozens.
const MAX_PATHS: usize = 65_536;
/// Longest piece of content that is in memory, in bytes; the specification's largest cluster is 32 KiB.
const MAX_CLUSTER_LEN: u64 = 64 << 10;

/// Fewest clusters of FAT16, and of FAT32; nothing else tells the kinds apart.
const FAT16_FROM: u64 = 4085;
const FAT32_FROM: u64 = 65_525;

const ATTRIBUTE_VOLUME: u8 = 0x08;
const ATTRIBUTE_DIR: u8 = 0x10;
/// Marks a piece of a long name.
const ATTRIBUTE_LONG: u8 = 0x0F;

/// The content of each file by its path, with `/` between the names; none for directories.
pub(crate) type Files = BTreeMap<String, Option<Digest>>;

/// Why it cannot be read: what is wrong with it, or the cause.
#[derive(Debug)]
pub(crate) enum FatError {
    Damaged(&'static str),
    Io(io::Error),
}

impl From<io::Error> for FatError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads all of the file system in the `len` bytes from `offset` on.
pub(crate) fn read(disk: &dyn Source, offset: u64, len: u64) -> Result<Files, FatError> {
    let fat = Fat::open(disk, offset, len)?;
    // Clusters that several files share would make reading longer than the partition is.
    let mut budget = len;
    let mut spend = |len: u64| {
        let left =
            budget.checked_sub(len).ok_or(FatError::Damaged("its files are longer than it is"));
        left.map(|left| budget = left)
    };
    let mut files = Files::new();
    let mut waiting = vec![(String::new(), fat.root.clone(), 0)];
    while let Some((path, place, depth)) = waiting.pop() {
        let bytes = fat.dir(&place)?;
        spend(bytes.len() as u64)?;
        for entry in entries(&bytes, fat.width) {
            let path = if path.is_empty() { entry.name } else { format!("{path}/{}", entry.name) };
            let digest = if entry.is_dir {
                if depth >= MAX_DEPTH {
                    return Err(FatError::Damaged("directories lie in each other without end"));
                }
                waiting.push((path.clone(), Place::Chain(entry.cluster), depth + 1));
                None
            } else {
                spend(entry.len)?;
                Some(fat.digest(entry.cluster, entry.len)?)
            };
            files.insert(path, digest);
            if files.len() > MAX_PATHS {
                return Err(FatError::Damaged("it has too many files"));
            }
        }
    }
    Ok(files)
}

/// Where a directory lies.
#[derive(Clone, Debug)]
enum Place {
    /// At a fixed place, the root of FAT12 and FAT16: first byte and length in bytes.
    Fixed(u64, usize),
    /// In the chain that begins with this cluster.
    Chain(u32),
}

/// Bits of an entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Bits12,
    Bits16,
    Bits32,
}

struct Fat<'a> {
    disk: &'a dyn Source,
    /// First byte of the partition, and of the table and the first cluster behind that.
    offset: u64,
    table: u64,
    data: u64,
    cluster_len: u64,
    clusters: u64,
    width: Width,
    root: Place,
}

impl<'a> Fat<'a> {
    fn open(disk: &'a dyn Source, offset: u64, len: u64) -> Result<Self, FatError> {
        let mut head = [0; 512];
        disk.read_exact_at(&mut head, offset)?;
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([head[at], head[at + 1]]));
        let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
        let first_of = |one: u64, other: u64| if one == 0 { other } else { one };

        let (sector, per_cluster) = (u16_at(11), u64::from(head[13]));
        let cluster_len = sector * per_cluster;
        let is_plain = [512, 1024, 2048, 4096].contains(&sector)
            && per_cluster.is_power_of_two()
            && cluster_len <= MAX_CLUSTER_LEN;
        let (reserved, root_entries) = (u16_at(14), u16_at(17));
        let table_len = first_of(u16_at(22), u32_at(36));
        let sectors = first_of(u16_at(19), u32_at(32));
        if !is_plain || reserved == 0 || head[16] == 0 || table_len == 0 {
            return Err(FatError::Damaged("its first sector makes no sense"));
        }
        let root_at = (reserved + u64::from(head[16]) * table_len) * sector;
        let root_len = root_entries * ENTRY_LEN as u64;
        let data = root_at + root_len.div_ceil(sector) * sector;
        let end = sectors * sector;
        if end > len {
            return Err(FatError::Damaged("it is longer than its partition"));
        }
        let clusters = end.saturating_sub(data) / cluster_len;
        let (width, root) = if clusters >= FAT32_FROM {
            let first = u32_at(44);
            (Width::Bits32, Place::Chain(u32::try_from(first).unwrap_or(0)))
        } else {
            let width = if clusters >= FAT16_FROM { Width::Bits16 } else { Width::Bits12 };
            (width, Place::Fixed(offset + root_at, usize::try_from(root_len).unwrap_or(0)))
        };
        let table = offset + reserved * sector;
        Ok(Self { disk, offset, table, data, cluster_len, clusters, width, root })
    }

    /// First byte of a cluster; the first has number 2.
    fn place_of(&self, cluster: u32) -> Result<u64, FatError> {
        let index = u64::from(cluster).checked_sub(2).filter(|index| *index < self.clusters);
        let index = index.ok_or(FatError::Damaged("a chain of clusters leads out of it"))?;
        Ok(self.offset + self.data + index * self.cluster_len)
    }

    /// What the table says follows `cluster`; none at the end of a chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>, FatError> {
        let mut bytes = [0; 4];
        let (at, len) = match self.width {
            Width::Bits12 => (u64::from(cluster) * 3 / 2, 2),
            Width::Bits16 => (u64::from(cluster) * 2, 2),
            Width::Bits32 => (u64::from(cluster) * 4, 4),
        };
        self.disk.read_exact_at(&mut bytes[..len], self.table + at)?;
        let raw = u32::from_le_bytes(bytes);
        let (next, end) = match self.width {
            Width::Bits12 => ((raw >> (cluster % 2 * 4)) & 0xFFF, 0xFF8),
            Width::Bits16 => (raw, 0xFFF8),
            // The upper four bits are reserved.
            Width::Bits32 => (raw & 0x0FFF_FFFF, 0x0FFF_FFF8),
        };
        Ok((next < end).then_some(next))
    }

    /// Hands the chain from `first` on to `take`, cluster by cluster, until that has enough or the chain ends.
    fn walk(
        &self,
        first: u32,
        mut take: impl FnMut(&[u8]) -> Result<bool, FatError>,
    ) -> Result<(), FatError> {
        let mut buffer = vec![0; usize::try_from(self.cluster_len).unwrap_or(0)];
        let mut cluster = first;
        for _ in 0..self.clusters {
            self.disk.read_exact_at(&mut buffer, self.place_of(cluster)?)?;
            if !take(&buffer)? {
                return Ok(());
            }
            match self.next(cluster)? {
                Some(next) => cluster = next,
                None => return Ok(()),
            }
        }
        Err(FatError::Damaged("a chain of clusters has no end"))
    }

    /// The bytes of a directory.
    fn dir(&self, place: &Place) -> Result<Vec<u8>, FatError> {
        match *place {
            Place::Fixed(at, len) => {
                let mut bytes = vec![0; len];
                self.disk.read_exact_at(&mut bytes, at)?;
                Ok(bytes)
            }
            Place::Chain(first) => {
                let mut bytes = Vec::new();
                self.walk(first, |cluster| {
                    bytes.extend_from_slice(cluster);
                    if bytes.len() > MAX_DIR_LEN {
                        return Err(FatError::Damaged("a directory is too long"));
                    }
                    Ok(true)
                })?;
                Ok(bytes)
            }
        }
    }

    /// The digest of a file's content.
    fn digest(&self, first: u32, len: u64) -> Result<Digest, FatError> {
        let (mut hasher, mut left) = (Hasher::new(), len);
        if left > 0 {
            self.walk(first, |cluster| {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(cluster.len());
                hasher.update(&cluster[..here]);
                left -= here as u64;
                Ok(left > 0)
            })?;
        }
        if left > 0 {
            return Err(FatError::Damaged("a file ends before its length"));
        }
        Ok(hasher.finish())
    }
}

/// One file or directory.
struct Entry {
    name: String,
    is_dir: bool,
    cluster: u32,
    len: u64,
}

/// What a directory's bytes name, without itself, its parent and what was deleted.
fn entries(bytes: &[u8], width: Width) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut long = LongName::default();
    // Other systems have something else there where numbers are short.
    let upper = |half: u32| if width == Width::Bits32 { half } else { 0 };
    for raw in bytes.chunks_exact(ENTRY_LEN) {
        let attributes = raw[11];
        match raw[0] {
            0x00 => break,
            0xE5 => long = LongName::default(),
            _ if attributes & 0x3F == ATTRIBUTE_LONG => long.add(raw),
            _ => {
                let name = std::mem::take(&mut long).finish(raw);
                let is_itself = raw.starts_with(b".          ") || raw.starts_with(b"..         ");
                if attributes & ATTRIBUTE_VOLUME != 0 || is_itself {
                    continue;
                }
                let u16_at = |at: usize| u32::from(u16::from_le_bytes([raw[at], raw[at + 1]]));
                found.push(Entry {
                    name: name.unwrap_or_else(|| short_name(raw)),
                    is_dir: attributes & ATTRIBUTE_DIR != 0,
                    cluster: upper(u16_at(20)) << 16 | u16_at(26),
                    len: u64::from(u16_at(28) | u16_at(30) << 16),
                });
            }
        }
    }
    found
}

/// A long name whose pieces, the last one first, stand before the entry that they name.
#[derive(Default)]
struct LongName {
    /// The pieces' text, in its right order.
    units: Vec<u16>,
    /// Number of the last piece that was read, and the checksum that all have.
    number: u8,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, raw: &[u8]) {
        let (number, is_first, checksum) = (raw[0] & 0x3F, raw[0] & 0x40 != 0, raw[13]);
        if is_first {
            *self = Self { number, checksum, ..Self::default() };
        } else if number.checked_add(1) != Some(self.number) || checksum != self.checksum {
            *self = Self::default();
            return;
        }
        self.number = number;
        let places = [1..11, 14..26, 28..32];
        let bytes: Vec<u8> = places.into_iter().flat_map(|place| raw[place].to_vec()).collect();
        let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        self.units.splice(0..0, units);
    }

    /// The name, if its pieces are whole and are this entry's.
    fn finish(self, raw: &[u8]) -> Option<String> {
        let sum = |sum: u8, byte: &u8| sum.rotate_right(1).wrapping_add(*byte);
        if self.number != 1 || raw[..11].iter().fold(0, sum) != self.checksum {
            return None;
        }
        let end = self.units.iter().position(|unit| *unit == 0).unwrap_or(self.units.len());
        Some(shown(&String::from_utf16_lossy(&self.units[..end])))
    }
}

/// `NAME.EXT`, in small letters where the entry says so, as Linux shows it.
fn short_name(raw: &[u8]) -> String {
    let part = |bytes: &[u8], is_small: bool| {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let text = text.trim_end().to_owned();
        if is_small { text.to_lowercase() } else { text }
    };
    let (name, end) =
        (part(&raw[..8], raw[12] & 0x08 != 0), part(&raw[8..11], raw[12] & 0x10 != 0));
    shown(&if end.is_empty() { name } else { format!("{name}.{end}") })
}

/// A name that can be printed and has no separator in it.
fn shown(name: &str) -> String {
    name.chars().map(|char| if char.is_control() || char == '/' { '?' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A FAT12 of 64 KiB at the start of 128, with sectors and clusters of 512 bytes and `root` as its root directory.
    fn disk(root: &[[u8; 32]]) -> Vec<u8> {
        let mut disk = vec![0; 128 << 10];
        disk[..3].copy_from_slice(&[0xEB, 0x3C, 0x90]);
        disk[11..13].copy_from_slice(&512u16.to_le_bytes());
        (disk[13], disk[14], disk[16]) = (1, 1, 1);
        disk[17..19].copy_from_slice(&16u16.to_le_bytes());
        disk[19..21].copy_from_slice(&128u16.to_le_bytes());
        disk[22] = 1;
        for (number, entry) in root.iter().enumerate() {
            disk[1024 + number * 32..][..32].copy_from_slice(entry);
        }
        disk
    }

    fn entry(name: &[u8; 11], attributes: u8, cluster: u16, len: u32) -> [u8; 32] {
        let mut raw = [0; 32];
        raw[..11].copy_from_slice(name);
        raw[11] = attributes;
        raw[26..28].copy_from_slice(&cluster.to_le_bytes());
        raw[28..].copy_from_slice(&len.to_le_bytes());
        raw
    }

    /// Lets the table say that `next` follows `cluster`.
    fn link(disk: &mut [u8], cluster: usize, next: u16) {
        let at = 512 + cluster * 3 / 2;
        let raw = u16::from_le_bytes([disk[at], disk[at + 1]]);
        let raw =
            if cluster.is_multiple_of(2) { raw & 0xF000 | next } else { raw & 0x000F | next << 4 };
        disk[at..at + 2].copy_from_slice(&raw.to_le_bytes());
    }

    fn read_all(disk: &Vec<u8>) -> Result<Files, FatError> {
        read(disk, 0, disk.len() as u64)
    }

    fn damage(disk: &Vec<u8>) -> &'static str {
        match read_all(disk) {
            Err(FatError::Damaged(what)) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_are_read_along_their_chains() {
        let mut disk = disk(&[
            entry(b"VOLUME     ", ATTRIBUTE_VOLUME, 0, 0),
            entry(b"\xE5ONE    TXT", 0, 2, 5),
            entry(b"A       TXT", 0, 5, 600),
            entry(b"EMPTY      ", 0, 0, 0),
            entry(b"DIR        ", ATTRIBUTE_DIR, 3, 0),
        ]);
        link(&mut disk, 5, 8);
        link(&mut disk, 8, 0xFFF);
        link(&mut disk, 3, 0xFFF);
        let place = |cluster: usize| 1536 + (cluster - 2) * 512;
        disk[place(5)..][..512].fill(b'a');
        disk[place(8)..][..512].fill(b'b');
        disk[place(3)..][..32].copy_from_slice(&entry(b".          ", ATTRIBUTE_DIR, 3, 0));
        disk[place(3) + 32..][..32].copy_from_slice(&entry(b"B          ", 0, 8, 1));
        let files = read_all(&disk).expect("it is whole");
        let content = [vec![b'a'; 512], vec![b'b'; 88]].concat();
        assert_eq!(files["A.TXT"], Some(Digest::of(&content)));
        assert_eq!(files["DIR/B"], Some(Digest::of(b"b")));
        assert_eq!(files["EMPTY"], Some(Digest::of(b"")));
        assert_eq!(files["DIR"], None);
        assert_eq!(files.len(), 4);
    }

    #[test]
    fn what_never_ends_is_damage() {
        let mut endless = disk(&[entry(b"A          ", ATTRIBUTE_DIR, 2, 0)]);
        link(&mut endless, 2, 2);
        assert_eq!(damage(&endless), "a chain of clusters has no end");

        let mut itself = disk(&[entry(b"A          ", ATTRIBUTE_DIR, 2, 0)]);
        link(&mut itself, 2, 0xFFF);
        itself[1536..1568].copy_from_slice(&entry(b"A          ", ATTRIBUTE_DIR, 2, 0));
        assert_eq!(damage(&itself), "directories lie in each other without end");
    }

    #[test]
    fn numbers_that_lead_astray_are_damage() {
        let far = disk(&[entry(b"A          ", 0, 4000, 1)]);
        assert_eq!(damage(&far), "a chain of clusters leads out of it");
        let long = disk(&[entry(b"A          ", 0, 2, u32::MAX)]);
        assert_eq!(damage(&long), "its files are longer than it is");
        let mut short = disk(&[entry(b"A          ", 0, 2, 600)]);
        link(&mut short, 2, 0xFFF);
        assert_eq!(damage(&short), "a file ends before its length");
        for (at, value) in [(11, 7), (13, 3), (13, 0), (14, 0), (16, 0), (22, 0)] {
            let mut bad = disk(&[]);
            bad[at] = value;
            assert_eq!(damage(&bad), "its first sector makes no sense", "byte {at}");
        }
        let mut cut = disk(&[]);
        cut.truncate(4096);
        assert_eq!(damage(&cut), "it is longer than its partition");
    }

    #[test]
    fn no_byte_of_it_is_trusted() {
        let whole =
            disk(&[entry(b"A          ", ATTRIBUTE_DIR, 2, 0), entry(b"B          ", 0, 3, 9)]);
        for at in (0..64).chain(512..530).chain(1024..1088) {
            for value in [0x00, 0x01, 0x0F, 0x7F, 0xFF] {
                let mut bad = whole.clone();
                bad[at] = value;
                // It ends, whatever it finds.
                drop(read_all(&bad));
            }
        }
    }
}
