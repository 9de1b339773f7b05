//! FAT16 and FAT32 as tools make them are read in `tests/it/esp.rs`; here is what tools do not make.

use std::collections::BTreeMap;

use vireo_model::{Digest, ImagePath};

use super::{Fat, FatError};

const ATTRIBUTE_VOLUME: u8 = 0x08;
const ATTRIBUTE_DIR: u8 = 0x10;

type Files = BTreeMap<ImagePath, Option<Digest>>;

fn path(text: &str) -> ImagePath {
    ImagePath::parse(text.as_bytes()).expect("a valid path")
}

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

fn read_all(disk: &[u8]) -> Result<Files, FatError> {
    Fat::open(disk.to_vec(), 0, disk.len() as u64)?.digests()
}

fn damage(disk: &[u8]) -> &'static str {
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
    assert_eq!(files[&path("/A.TXT")], Some(Digest::of(&content)));
    assert_eq!(files[&path("/DIR/B")], Some(Digest::of(b"b")));
    assert_eq!(files[&path("/EMPTY")], Some(Digest::of(b"")));
    assert_eq!(files[&path("/DIR")], None);
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
    let whole = disk(&[entry(b"A          ", ATTRIBUTE_DIR, 2, 0), entry(b"B          ", 0, 3, 9)]);
    for at in (0..64).chain(512..530).chain(1024..1088) {
        for value in [0x00, 0x01, 0x0F, 0x7F, 0xFF] {
            let mut bad = whole.clone();
            bad[at] = value;
            // It ends, whatever it finds.
            drop(read_all(&bad));
        }
    }
}

/// A piece of a long name, with its number, for the entry `short`.
fn long(number: u8, text: &str, short: &[u8; 32]) -> [u8; 32] {
    let mut raw = [0xFF; 32];
    (raw[0], raw[11], raw[12], raw[26], raw[27]) = (number, 0x0F, 0, 0, 0);
    raw[13] = short[..11].iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let units: Vec<u16> = text.encode_utf16().chain([0]).collect();
    let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
    for (place, unit) in places.zip(units) {
        raw[place..place + 2].copy_from_slice(&unit.to_le_bytes());
    }
    raw
}

#[test]
fn names_are_as_linux_shows_them() {
    let short = entry(b"LONGNA~1CON", 0, 0, 0);
    let mut small = entry(b"SMALL   TXT", 0, 0, 0);
    small[12] = 0x18;
    let mut base = entry(b"NAME    EXT", 0, 0, 0);
    base[12] = 0x08;
    let orphan = long(0x41, "not it", &small);
    let disk = disk(&[
        long(0x41, "Long.conf", &short),
        short,
        small,
        base,
        orphan,
        entry(b"BIG        ", 0, 0, 0),
    ]);
    let files = read_all(&disk).expect("it is whole");
    let names: Vec<String> = files.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["/BIG", "/Long.conf", "/name.EXT", "/small.txt"]);
}

#[test]
fn names_that_no_tree_can_have_are_damage() {
    let short = entry(b"A          ", 0, 0, 0);
    for name in ["..", ".", "a/b", "a\u{1}"] {
        let disk = disk(&[long(0x41, name, &short), short]);
        assert!(damage(&disk).starts_with("a name in it"), "{name}");
    }
    let twice = disk(&[short, short]);
    assert_eq!(damage(&twice), "two of its files have one name");
    let old = disk(&[entry(b"GR\x99SSE     ", 0, 0, 0)]);
    assert_eq!(damage(&old), "a name in it has characters of an old code page");
}

#[test]
fn what_is_the_machines_own_is_not_listed() {
    let mut disk =
        disk(&[entry(b"NVVARS     ", 0, 0, 0), entry(b"LOADER     ", ATTRIBUTE_DIR, 3, 0)]);
    link(&mut disk, 3, 0xFFF);
    let at = 1536 + 512;
    let seed = entry(b"RANDOM~1   ", 0, 0, 0);
    disk[at..at + 32].copy_from_slice(&long(0x41, "random-seed", &seed));
    disk[at + 32..at + 64].copy_from_slice(&seed);
    let files = read_all(&disk).expect("it is whole");
    assert_eq!(files.into_keys().collect::<Vec<_>>(), [path("/LOADER")]);
}

#[test]
fn content_is_read_from_any_place_across_its_pieces() {
    let mut disk = disk(&[entry(b"A          ", 0, 5, 1200)]);
    for (cluster, next) in [(5, 6), (6, 3), (3, 0xFFF)] {
        link(&mut disk, cluster, next);
    }
    let mut expected = Vec::new();
    for cluster in [5_usize, 6, 3] {
        let piece: Vec<u8> = (0..512).map(|at| (at * 7 + cluster * 31) as u8).collect();
        disk[1536 + (cluster - 2) * 512..][..512].copy_from_slice(&piece);
        expected.extend(piece);
    }
    expected.truncate(1200);
    let fat = Fat::open(disk.clone(), 0, disk.len() as u64).expect("it is whole");
    let content = fat.content(5, 1200).expect("it is whole");
    assert_eq!(content.byte_len(), 1200);
    for from in [0, 1, 511, 512, 1000, 1024, 1199, 1200, 5000] {
        for len in [1, 100, 512, 1300] {
            let mut buffer = vec![0; len];
            let read = content.read_at(from as u64, &mut buffer).expect("readable");
            let there = expected.get(from..).unwrap_or(&[]);
            let there = &there[..there.len().min(len)];
            assert_eq!(&buffer[..read], there, "{len} from {from}");
        }
    }
}

#[test]
fn a_small_fat32_is_told_by_what_it_has_not() {
    let mut disk = disk(&[]);
    (disk[17], disk[22], disk[36], disk[44]) = (0, 0, 1, 2);
    for cluster in [2_usize, 3] {
        disk[512 + cluster * 4..][..4].copy_from_slice(&0x0FFF_FFFF_u32.to_le_bytes());
    }
    disk[1024..1056].copy_from_slice(&entry(b"A          ", 0, 3, 3));
    disk[1536..1539].copy_from_slice(b"abc");
    assert_eq!(
        read_all(&disk).expect("it is whole"),
        [(path("/A"), Some(Digest::of(b"abc")))].into()
    );
    let fat = Fat::open(disk.clone(), 0, disk.len() as u64).expect("it is whole");
    assert!(!fat.is_regular());
}
