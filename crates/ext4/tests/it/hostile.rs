//! Broken and hostile images: whatever the bytes, reading ends soon, with a tree or an error.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, lsetxattr};
use vireo_ext4::{Known, Reader, ScanOptions, Unfinished, compare};
use vireo_model::Ignore;

use crate::images::{Place, run};

/// Mutations of each image.
const MUTATIONS: u64 = 1500;
/// Longest that reading one mutated image may take; the whole one takes some milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);
/// Most content that is read of one.
const MAX_CONTENT_LEN: u64 = 256 << 20;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

/// A small image in which most blocks are metadata: directories with and without an index,
/// trees of extents or maps of blocks, attributes.
fn image(options: &[&str]) -> Vec<u8> {
    fs::read(place(options).image()).expect("read")
}

fn place(options: &[&str]) -> Place {
    let place = Place::new();
    let root = place.root();
    for number in 0..150 {
        let dir = root.join(format!("dir-{}", number % 12));
        fs::create_dir_all(&dir).expect("made");
        fs::write(dir.join(format!("file-{number}")), vec![b'x'; number * 7]).expect("written");
        if number % 10 == 0 {
            symlink("t".repeat(number + 1), dir.join(format!("link-{number}"))).expect("made");
            lsetxattr(&dir, "user.note", &vec![b'v'; 30 + number], XattrFlags::empty())
                .expect("set");
        }
    }
    let torn = fs::File::create(root.join("torn")).expect("made");
    for block in 0..300_u64 {
        use std::os::unix::fs::FileExt as _;
        torn.write_all_at(b"x", block * 3000).expect("written");
    }
    place.make(options, "4M");
    place
}

/// Reads everything that can be read of an image, any way.
fn read(image: Vec<u8>) -> Result<usize, vireo_ext4::Ext4Error> {
    let ignore = Ignore::nothing();
    let reader = Reader::open(image, Unfinished::Replay)?;
    let metadata = reader.walk_metadata(&ignore);
    let options = ScanOptions { max_content_len: MAX_CONTENT_LEN, ..ScanOptions::default() };
    let scan = reader.scan(&ignore, &options)?;
    let known = Known::from_scan(&scan);
    let again = reader.scan(&ignore, &ScanOptions { known: Some(&known), ..options })?;
    assert_eq!(again.tree, scan.tree);
    compare(&reader, &reader, &ignore)?;
    Ok(metadata?.len())
}

/// Runs `read` on `image` in a thread of its own. A panic or a loop fails the test.
fn ends(image: Vec<u8>, what: &str) -> Result<usize, vireo_ext4::Ext4Error> {
    let (sender, receiver) = mpsc::channel();
    let handle = thread::spawn(move || sender.send(read(image)));
    match receiver.recv_timeout(DEADLINE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: reading does not end"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            panic!("{what}: reading panicked: {:?}", handle.join().err())
        }
    }
}

/// Blocks with something in them; the superblock and the descriptors among them.
fn used(image: &[u8]) -> Vec<usize> {
    let blocks = image.chunks_exact(1024).enumerate();
    blocks.filter(|(_, block)| block.iter().any(|b| *b != 0)).map(|(index, _)| index).collect()
}

/// Changes a few bytes: random ones, extreme ones, numbers off by one, blocks over others.
fn mutate(image: &mut [u8], blocks: &[usize], random: &mut Random) {
    for _ in 0..=random.below(4) {
        // The superblock and the descriptors behind it decide most; then what is used.
        let block = match random.below(8) {
            0 => 1,
            1 => 2,
            _ => blocks[random.below(blocks.len())],
        };
        // Few structures begin in the second half of what they stand in.
        let at = block * 1024 + ((random.below(1024) / (1 + random.below(4))) & !random.below(4));
        match random.below(7) {
            0 => image[at] ^= 1 << random.below(8),
            1 => image[at] = random.below(256) as u8,
            2 => image[at..][..4].fill(0xFF),
            3 => image[at..][..4].fill(0),
            4 => image[at] = image[at].wrapping_add(1),
            5 => {
                let value = blocks[random.below(blocks.len())] as u32;
                image[at..][..4].copy_from_slice(&value.to_le_bytes());
            }
            _ => {
                let from = blocks[random.below(blocks.len())] * 1024;
                image.copy_within(from..from + 1024, block * 1024);
            }
        }
    }
}

/// Mutates an image made with `options` again and again.
fn survives(options: &[&str], seed: u64) {
    image_survives(image(options), &options.join(" "), seed);
}

fn image_survives(image: Vec<u8>, options: &str, seed: u64) {
    let whole = ends(image.clone(), "the whole image").expect("readable");
    assert!(whole > 150, "only {whole} paths");
    let blocks = used(&image);
    let mut random = Random(seed);
    let (mut refused, start) = (0, Instant::now());
    for round in 0..MUTATIONS {
        let mut mutant = image.clone();
        mutate(&mut mutant, &blocks, &mut random);
        if round % 50 == 0 {
            mutant.truncate(random.below(mutant.len()));
        }
        refused += u64::from(ends(mutant, &format!("{options}, round {round}")).is_err());
    }
    let took = start.elapsed();
    assert!(refused > MUTATIONS / 20, "only {refused} were noticed: are the right bytes changed?");
    assert!(refused < MUTATIONS, "none was readable, so nothing behind the first check was tried");
    assert!(took < Duration::from_secs(300), "{took:?} for all");
}

#[test]
fn extents_without_checksums_survive_mutation() {
    survives(&["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"], 1);
}

#[test]
fn maps_of_blocks_survive_mutation() {
    survives(&["-t", "ext2", "-b", "1024"], 2);
}

#[test]
fn data_in_inodes_survives_mutation() {
    survives(&["-t", "ext4", "-b", "1024", "-O", "inline_data,ea_inode,^metadata_csum"], 3);
}

#[test]
fn checksums_survive_mutation() {
    survives(&["-t", "ext4", "-b", "1024"], 4);
}

/// An image whose journal holds the root directory's block with another name in it.
fn with_journal(options: &[&str]) -> Vec<u8> {
    let place = place(&[options, &["-J", "size=1"]].concat());
    let image = fs::read(place.image()).expect("read");
    let at = image.windows(4).position(|window| window == b"torn").expect("its name") / 1024;
    let mut block = image[at * 1024..][..1024].to_vec();
    let name = block.windows(4).position(|window| window == b"torn").expect("its name");
    block[name..][..4].copy_from_slice(b"TORN");
    let file = place.root().join("block");
    fs::write(&file, &block).expect("written");
    let commands = place.root().join("commands");
    // Block 1 holds the superblock; revoking it in between changes nothing.
    let text = format!("jo\njw -b {at} {}\njw -r 1\njw -b {at} {0}\njc\n", file.display());
    fs::write(&commands, text).expect("written");
    let plain = |path: &std::path::Path| path.to_str().expect("a plain path").to_owned();
    run("debugfs", &["-w", "-f", &plain(&commands), &plain(&place.image())]);
    fs::read(place.image()).expect("read")
}

#[test]
fn journals_are_laid_over_and_survive_mutation() {
    for (options, seed) in [("^metadata_csum,^64bit", 5), ("^metadata_csum", 6)] {
        let image = with_journal(&["-t", "ext4", "-b", "1024", "-O", options]);
        let reader = Reader::open(image.clone(), Unfinished::Replay).expect("replayed");
        let entries = reader.walk_metadata(&Ignore::nothing()).expect("read");
        let is_new = |entry: &vireo_ext4::Entry| entry.path.name() == b"TORN";
        assert!(entries.iter().any(is_new), "the journal was not laid over");
        Reader::open(image.clone(), Unfinished::Refuse).expect_err("an unfinished journal");
        image_survives(image, options, seed);
    }
}

#[test]
fn a_directory_in_itself_ends_with_an_error() {
    let place = Place::new();
    fs::create_dir_all(place.root().join("a/b")).expect("made");
    place.make(&["-t", "ext4"], "4M");
    place.debugfs("link /a /a/b/again");
    let image = fs::read(place.image()).expect("read");
    let error = ends(image, "a directory in itself").expect_err("a loop");
    assert!(error.to_string().contains("stands elsewhere too"), "{error}");
}
