//! A static web site of 211 MB, and its next release: the same bytes on every machine.
//!
//! Two thirds are text (pages, styles, data) of a vocabulary as skewed as a language's, one third is
//! pictures, which nothing compresses. The next release edits, inserts, appends, renames, moves,
//! rewrites and deletes: about 10 MB of files are touched, about 1 MB of bytes is new.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

const DIRS: usize = 120;
const FILES_PER_DIR: usize = 56;
const VOCABULARY: usize = 6000;
/// Shortest and longest file; lengths are evenly spread over their logarithms.
const LEN_BITS: (u32, u32) = (11, 17);

/// Number of each kind of change in the next release.
const EDITS: usize = 28;
const APPENDS: usize = 63;
const INSERTS: usize = 89;
const RENAMES: usize = 28;
const MOVED_EDITS: usize = 7;
const REWRITES: usize = 16;
const DELETES: usize = 7;

/// Writes the site beneath `root`.
pub(crate) fn make(root: &Path) -> anyhow::Result<()> {
    let words = Words::new();
    for dir in 0..DIRS {
        let path = root.join(dir_name(dir));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        for file in 0..FILES_PER_DIR {
            let path = root.join(file_name(dir, file));
            let mut random = Random((dir * FILES_PER_DIR + file) as u64);
            let len = random.len();
            let bytes = content(&words, &mut random, is_picture(file), len);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

/// Makes the site beneath `root` its next release, in place, as people and programs do.
pub(crate) fn release(root: &Path) -> anyhow::Result<()> {
    let words = Words::new();
    let mut random = Random(1 << 40);
    let mut files = shuffled(&mut random).into_iter();
    let mut next = |count: usize| files.by_ref().take(count).collect::<Vec<_>>();
    for (dir, file) in next(EDITS) {
        change(root, (dir, file), |bytes| {
            let new = content(&words, &mut random, is_picture(file), 60);
            let at = random.below(bytes.len().saturating_sub(new.len()).max(1));
            let end = (at + new.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&new[..end - at]);
        })?;
    }
    for (dir, file) in next(APPENDS) {
        let len = 1000 + random.below(7000);
        let more = content(&words, &mut random, is_picture(file), len);
        let path = root.join(file_name(dir, file));
        let open = OpenOptions::new().append(true).open(&path);
        open.and_then(|mut open: File| open.write_all(&more))
            .with_context(|| format!("cannot append to {}", path.display()))?;
    }
    for (dir, file) in next(INSERTS) {
        let len = 500 + random.below(5000);
        let more = content(&words, &mut random, is_picture(file), len);
        change(root, (dir, file), |bytes| insert(bytes, &more, &mut random))?;
    }
    for (dir, file) in next(RENAMES) {
        let from = root.join(file_name(dir, file));
        rename(&from, &from.with_file_name(format!("renamed-{file}{}", extension(file))))?;
    }
    for (dir, file) in next(MOVED_EDITS) {
        let more = content(&words, &mut random, is_picture(file), 200);
        change(root, (dir, file), |bytes| insert(bytes, &more, &mut random))?;
        let to = root.join("moved");
        fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
        let name = format!("{dir}-{file}{}", extension(file));
        rename(&root.join(file_name(dir, file)), &to.join(name))?;
    }
    for (dir, file) in next(REWRITES) {
        let len = random.len().min(32 << 10);
        let bytes = content(&words, &mut random, is_picture(file), len);
        replace(&root.join(file_name(dir, file)), &bytes)?;
    }
    for (dir, file) in next(DELETES) {
        let path = root.join(file_name(dir, file));
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    rename(&root.join(dir_name(DIRS - 1)), &root.join("archive"))
}

fn insert(bytes: &mut Vec<u8>, more: &[u8], random: &mut Random) {
    let at = random.below(bytes.len().max(1));
    bytes.splice(at..at, more.iter().copied());
}

fn change(
    root: &Path,
    (dir, file): (usize, usize),
    edit: impl FnOnce(&mut Vec<u8>),
) -> anyhow::Result<()> {
    let path = root.join(file_name(dir, file));
    let mut bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    edit(&mut bytes);
    replace(&path, &bytes)
}

/// As editors do: another file takes the name.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let part: PathBuf = path.with_extension("part");
    fs::write(&part, bytes).with_context(|| format!("cannot write {}", part.display()))?;
    rename(&part, path)
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to)
        .with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

/// All files but those of the directory that is renamed, in an order that looks random.
fn shuffled(random: &mut Random) -> Vec<(usize, usize)> {
    let files = (0..DIRS - 1).flat_map(|dir| (0..FILES_PER_DIR).map(move |file| (dir, file)));
    let mut files: Vec<(usize, usize)> = files.collect();
    for end in (1..files.len()).rev() {
        files.swap(end, random.below(end + 1));
    }
    files
}

fn dir_name(dir: usize) -> String {
    format!("section-{dir:03}")
}

fn file_name(dir: usize, file: usize) -> String {
    format!("{}/item-{file:02}{}", dir_name(dir), extension(file))
}

fn is_picture(file: usize) -> bool {
    file % 3 == 2
}

fn extension(file: usize) -> &'static str {
    match file % 6 {
        0 | 3 | 4 => ".html",
        1 => ".json",
        _ => ".jpg",
    }
}

/// `len` bytes, of text or of what no compressor makes shorter.
fn content(words: &Words, random: &mut Random, is_picture: bool, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        if is_picture {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        } else {
            words.sentence(random, &mut bytes);
        }
    }
    bytes.truncate(len);
    bytes
}

/// Words of which few are frequent and many are rare.
struct Words(Vec<String>);

impl Words {
    fn new() -> Self {
        const SYLLABLES: [&str; 24] = [
            "ba", "con", "de", "er", "fi", "ga", "hol", "in", "ja", "ke", "lo", "men", "no", "or",
            "pre", "qui", "ra", "ser", "ti", "un", "ver", "wa", "xi", "zo",
        ];
        let mut random = Random(42);
        let word = |_| {
            let count = 1 + random.below(4);
            (0..count).map(|_| SYLLABLES[random.below(SYLLABLES.len())]).collect()
        };
        Self((0..VOCABULARY).map(word).collect())
    }

    fn sentence(&self, random: &mut Random, out: &mut Vec<u8>) {
        out.extend_from_slice(b"<p>");
        for _ in 0..6 + random.below(12) {
            // The logarithm of an even distribution: the word of rank n about as often as 1 / n.
            let rank = (self.0.len() as f64).powf(random.fraction()) as usize;
            out.extend_from_slice(self.0[rank.min(self.0.len() - 1)].as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(format!("{}.</p>\n", random.below(10_000)).as_bytes());
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn len(&mut self) -> usize {
        let (least, most) = (f64::from(LEN_BITS.0), f64::from(LEN_BITS.1));
        (least + (most - least) * self.fraction()).exp2() as usize
    }
}
