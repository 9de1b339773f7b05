//! The files of an EFI system partition, which capture compares.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use vireo_image::esp_changes;

/// The image's length in bytes; what the input does not fill is zeros.
const IMAGE_LEN: u64 = 256 << 10;

/// `input` is a file system from its first byte on; what says that it is FAT is made right.
pub fn run(input: &[u8]) {
    let mut bytes = input.to_vec();
    bytes.resize(usize::try_from(IMAGE_LEN).unwrap_or(usize::MAX), 0);
    (bytes[0], bytes[510], bytes[511]) = (0xEB, 0x55, 0xAA);
    if !bytes[0x52..].starts_with(b"FAT32   ") {
        bytes[0x36..0x3E].copy_from_slice(b"FAT16   ");
    }
    // No table of partitions is looked for in what boots.
    bytes[446..510].fill(0);
    let file = File::from(memfd_create("esp", MemfdFlags::CLOEXEC).expect("memory is there"));
    (&file).write_all(&bytes).expect("memory is there");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    if let Ok(changes) = esp_changes(Path::new(&path), Path::new(&path), &[]) {
        assert_eq!(changes, [], "nothing differs from itself");
    }
}

/// A FAT12 with a file that has a long name, one in a directory, and what was deleted.
#[must_use]
pub fn seed() -> Vec<u8> {
    let mut disk = vec![0; 8 << 10];
    disk[11..13].copy_from_slice(&512u16.to_le_bytes());
    (disk[13], disk[14], disk[16], disk[22]) = (1, 1, 1, 1);
    disk[17..19].copy_from_slice(&16u16.to_le_bytes());
    disk[19..21].copy_from_slice(&128u16.to_le_bytes());
    // Of the clusters from 2 on: a file of two, a directory, a file.
    disk[512..519].copy_from_slice(&[0xF8, 0xFF, 0xFF, 0x03, 0xF0, 0xFF, 0xFF]);
    disk[519..521].copy_from_slice(&[0xFF, 0xFF]);
    let mut long = [0xFF; 32];
    (long[0], long[11], long[12], long[26], long[27]) = (0x41, 0x0F, 0, 0, 0);
    let name: Vec<u8> = "größe".encode_utf16().flat_map(u16::to_le_bytes).collect();
    long[1..11].copy_from_slice(&name);
    long[14..16].fill(0);
    let short = entry(b"GRE~1      ", 0x20, 2, 700);
    long[13] = short[..11].iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let root = [
        entry(b"ESP        ", 0x08, 0, 0),
        entry(b"\xE5ONE       ", 0x20, 2, 9),
        long,
        short,
        entry(b"EFI        ", 0x10, 4, 0),
    ];
    disk[1024..1024 + 5 * 32].copy_from_slice(root.as_flattened());
    disk[2560..2592].copy_from_slice(&entry(b"BOOTX64 EFI", 0x20, 5, 100));
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
