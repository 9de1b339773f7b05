//! Tables made by hand, right and wrong.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

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

fn find(dir: &tempfile::TempDir, wanted: RootPartition) -> Result<Partition, (ErrorKind, String)> {
    let path = dir.path().join("disk.img");
    let find = || {
        let bytes = Bytes::open(&path)?;
        let slots = slots(&bytes, &path)?;
        Ok(crate::layout::find_root(&bytes, &path, &slots, wanted)?.partition)
    };
    find().map_err(|error: ImageError| (error.kind(), error.to_string()))
}

#[test]
fn a_file_system_without_a_table_is_the_whole_image() {
    let (dir, _) = image(&[], &[0]);
    assert_eq!(find(&dir, RootPartition::Find).expect("found").layout, Layout::Whole);
}

#[test]
fn the_only_ext_partition_of_an_mbr_is_the_root() {
    let sector = mbr_sector(&[(0x0C, 2048, 4096), (0x83, 8192, 65536)]);
    let (dir, _) = image(&sector, &[8192 * 512]);
    let partition = find(&dir, RootPartition::Find).expect("found");
    assert_eq!((partition.number, partition.offset, partition.len), (2, 8192 * 512, 65536 * 512));
}

#[test]
fn two_ext_partitions_ask_for_a_choice() {
    let sector = mbr_sector(&[(0x83, 2048, 4096), (0x83, 8192, 65536)]);
    let (dir, _) = image(&sector, &[2048 * 512, 8192 * 512]);
    let (kind, message) = find(&dir, RootPartition::Find).expect_err("ambiguous");
    assert_eq!(kind, ErrorKind::UnknownPartition);
    assert!(
        message.contains("--root-partition") && message.contains("1 (2 MiB), 2 (32 MiB)"),
        "{message}"
    );
    assert_eq!(find(&dir, RootPartition::Number(1)).expect("chosen").number, 1);
    assert_eq!(
        find(&dir, RootPartition::Number(7)).expect_err("none").0,
        ErrorKind::UnknownPartition
    );
}

#[test]
fn logical_partitions_are_found_and_a_loop_of_them_ends() {
    let sector = mbr_sector(&[(0x05, 2048, 100_000)]);
    let (dir, file) = image(&sector, &[(4096 + 64) * 512]);
    // Each record points at the next; the second back at itself.
    file.write_all_at(&mbr_sector(&[(0x82, 8, 8), (0x05, 2048, 9)]), 2048 * 512).expect("written");
    file.write_all_at(&mbr_sector(&[(0x83, 64, 4096), (0x05, 2048, 9)]), 4096 * 512)
        .expect("written");
    let found = find(&dir, RootPartition::Number(6)).expect("found");
    assert_eq!(found.offset, (4096 + 64) * 512);
}

#[test]
fn a_guid_table_with_odd_entries_is_refused_wherever_its_header_is() {
    for sector in [1, (64 << 20) / 512 - 1] {
        for (count, len) in [(128_u32, 64_u32), (u32::MAX, 128)] {
            let (dir, file) = image(&mbr_sector(&[(0xEE, 1, 9)]), &[]);
            let mut header = [0; GPT_HEADER_LEN];
            header[..8].copy_from_slice(b"EFI PART");
            header[80..84].copy_from_slice(&count.to_le_bytes());
            header[84..88].copy_from_slice(&len.to_le_bytes());
            file.write_all_at(&header, sector * 512).expect("written");
            let (kind, message) = find(&dir, RootPartition::Find).expect_err("odd");
            assert_eq!(kind, ErrorKind::NotAnImage);
            assert!(message.contains("other entries"), "{message}");
        }
    }
}

#[test]
fn a_file_of_something_else_says_what_to_do() {
    for (head, says) in [
        (b"QFI\xfb".as_slice(), "rename it to end in .qcow2"),
        (b"KDMV", "is a VMDK image"),
        (b"", "convert other image formats first"),
    ] {
        let (dir, _) = image(head, &[]);
        let (kind, message) = find(&dir, RootPartition::Find).expect_err("no raw disk");
        assert_eq!(kind, ErrorKind::NotAnImage);
        assert!(message.contains("qemu-img convert") && message.contains(says), "{message}");
    }
    let (dir, _) = image(&mbr_sector(&[(0xEE, 1, 9)]), &[]);
    assert_eq!(
        find(&dir, RootPartition::Find).expect_err("no GPT behind").0,
        ErrorKind::NotAnImage
    );
}

#[test]
fn what_hides_a_root_is_named_and_a_lone_boot_partition_is_not_taken_for_it() {
    let sector = mbr_sector(&[(0x83, 2048, 4096), (0x8E, 8192, 65536)]);
    for offsets in [&[][..], &[2048 * 512]] {
        let (dir, file) = image(&sector, offsets);
        file.write_all_at(b"LABELONE", 8192 * 512 + 512).expect("written");
        file.write_all_at(b"LVM2 001", 8192 * 512 + 536).expect("written");
        let (kind, message) = find(&dir, RootPartition::Find).expect_err("no root");
        assert_eq!(kind, ErrorKind::Unsupported, "{message}");
        assert!(
            message.contains("LVM") && message.contains("2 (32 MiB, LVM2_member)"),
            "{message}"
        );
    }
    let (dir, _) = image(&[], &[]);
    let file = File::options().write(true).open(dir.path().join("disk.img")).expect("opens");
    file.write_all_at(b"LUKS\xba\xbe", 0).expect("written");
    let (kind, message) = find(&dir, RootPartition::Find).expect_err("no root");
    assert_eq!(kind, ErrorKind::Unsupported, "{message}");
    assert!(message.contains("cryptsetup"), "{message}");
}
