//! The first look at a disk image: partition tables and superblock, before the kernel sees any.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use vireo_image::{DiskImage, RootPartition};

/// Bytes in a sector.
const SECTOR: usize = 512;
/// The image's length in bytes; what the input does not fill is zeros.
const IMAGE_LEN: u64 = 256 << 10;

/// The first byte of `input` chooses the partition and whether the GPT's checksums are made right,
/// the rest is the image from its first byte on.
pub fn run(input: &[u8]) {
    let Some((choice, bytes)) = input.split_first() else { return };
    let mut bytes = bytes.to_vec();
    bytes.truncate(usize::try_from(IMAGE_LEN).unwrap_or(usize::MAX));
    if choice & 1 != 0 {
        fix_gpt(&mut bytes);
    }
    let file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("memory is there"));
    (&file).write_all(&bytes).expect("memory is there");
    file.set_len(IMAGE_LEN).expect("memory is there");
    let wanted = match choice >> 4 {
        0 => RootPartition::Find,
        number => RootPartition::Number(number.into()),
    };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    if let Ok(image) = DiskImage::open(Path::new(&path), wanted) {
        let partition = image.partition();
        let end = partition.offset.checked_add(partition.len).expect("a sum that fits");
        assert!(end <= IMAGE_LEN, "beyond the file's end");
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, partition.offset + 1024 + 0x38).expect("there");
        assert_eq!(magic, [0x53, 0xEF]);
    }
}

/// Makes the checksums of the primary table right: UEFI specification, 5.3.2.
fn fix_gpt(bytes: &mut [u8]) {
    let Some(header) = bytes.get(SECTOR..2 * SECTOR) else { return };
    let u32_at = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize
    };
    let (len, first, count, each) = (u32_at(12), u32_at(72), u32_at(80), u32_at(84));
    let start = first.saturating_mul(SECTOR);
    let end = start.saturating_add(count.saturating_mul(each));
    if let Some(entries) = bytes.get(start..end) {
        let sum = crc32fast::hash(entries);
        bytes[SECTOR + 88..SECTOR + 92].copy_from_slice(&sum.to_le_bytes());
    }
    if (92..=SECTOR).contains(&len) {
        bytes[SECTOR + 16..SECTOR + 20].fill(0);
        let sum = crc32fast::hash(&bytes[SECTOR..SECTOR + len]);
        bytes[SECTOR + 16..SECTOR + 20].copy_from_slice(&sum.to_le_bytes());
    }
}
