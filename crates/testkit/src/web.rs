//! The guest's web content: the same bytes on every machine, and its next release.
//!
//! Some MiB of the kinds that deltas meet: text pages, a long text of which a few lines change, an
//! archive that nothing can compress with bytes put into its middle, and a file that moves.

use std::fs;
use std::path::Path;

use crate::error::{TestkitError, failed};

/// Directory of the content inside the image, without the leading slash.
pub const ROOT: &str = "var/www/html";

/// A page that only the target has, as a request path.
pub const ADDED_PAGE: &str = "/news/release-2.html";

/// Text that is on [`ADDED_PAGE`] and nowhere else.
pub const ADDED_TEXT: &str = "Everything about release 2";

/// A page that both have and whose text changes, as a request path; it names the release.
pub const CHANGED_PAGE: &str = "/index.html";

const PAGES: usize = 120;
const CATALOG_LINES: usize = 20_000;
const ARCHIVE_BYTES: usize = 4 << 20;
const PICTURE_BYTES: usize = 1 << 20;

/// What the content is at one release.
type Files = Vec<(String, Vec<u8>)>;

/// Writes the base's content beneath `root`.
///
/// # Errors
///
/// A file cannot be written.
pub fn write_base(root: &Path) -> Result<(), TestkitError> {
    write(&base_files(), root)
}

/// Writes what the target changes and adds beneath `root`, and gives the paths it removes, relative
/// to the root of the image.
///
/// # Errors
///
/// A file cannot be written.
pub fn write_target(root: &Path) -> Result<Vec<String>, TestkitError> {
    write(&target_files(), root)?;
    Ok(vec![format!("{ROOT}/media/picture.bin"), format!("{ROOT}/pages/page-017.html")])
}

fn write(files: &Files, root: &Path) -> Result<(), TestkitError> {
    for (path, content) in files {
        let path = root.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed("make directory", parent))?;
        }
        fs::write(&path, content).map_err(failed("write", &path))?;
    }
    Ok(())
}

fn base_files() -> Files {
    let mut files = vec![
        at("index.html", index(1)),
        at("catalog.txt", catalog(|_| 1)),
        at("media/picture.bin", noise(11, PICTURE_BYTES)),
        at("media/archive.bin", noise(12, ARCHIVE_BYTES)),
    ];
    files.extend((0..PAGES).map(|number| page(number, 1)));
    files
}

fn target_files() -> Files {
    let mut archive = noise(12, ARCHIVE_BYTES);
    archive.splice(ARCHIVE_BYTES / 2..ARCHIVE_BYTES / 2, noise(13, 40_000));
    let news = format!("<html><h1>News</h1><p>{ADDED_TEXT}.</p>{}</html>\n", words(14, 400));
    vec![
        at("index.html", index(2)),
        at("catalog.txt", catalog(|line| if line % 700 == 3 { 2 } else { 1 })),
        at("media/archive.bin", archive),
        at("media/pictures/first.bin", noise(11, PICTURE_BYTES)),
        at("news/release-2.html", news),
        page(3, 2),
        page(90, 2),
    ]
}

fn at(path: &str, content: impl Into<Vec<u8>>) -> (String, Vec<u8>) {
    (format!("{ROOT}/{path}"), content.into())
}

fn index(release: u32) -> String {
    format!("<html><title>Guest</title><h1>Release {release}</h1>{}</html>\n", words(1, 300))
}

fn page(number: usize, release: u64) -> (String, Vec<u8>) {
    let text = words(100 + number as u64, 900);
    let title = format!("<html><h1>Page {number}, release {release}</h1>\n");
    at(&format!("pages/page-{number:03}.html"), format!("{title}{text}</html>\n"))
}

/// Many lines; `price` gives what changes in each.
fn catalog(price: impl Fn(usize) -> u64) -> String {
    let mut random = Random(2);
    let mut text = String::new();
    for line in 0..CATALOG_LINES {
        let (a, b) = (random.next(), random.next());
        text.push_str(&format!("{line:06} {a:016x} {b:016x} price={}\n", price(line)));
    }
    text
}

/// `count` words of a small vocabulary, in lines: as compressible as prose.
fn words(seed: u64, count: usize) -> String {
    const WORDS: [&str; 16] = [
        "image", "machine", "update", "version", "server", "content", "change", "cloud", "file",
        "system", "library", "page", "service", "network", "release", "process",
    ];
    let mut random = Random(seed);
    let mut text = String::new();
    for number in 0..count {
        text.push_str(WORDS[(random.next() >> 60) as usize]);
        text.push(if number % 12 == 11 { '\n' } else { ' ' });
    }
    text
}

/// `len` bytes that no compressor makes shorter.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes: Vec<u8> = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(files: &'a Files, page: &str) -> Option<&'a [u8]> {
        let path = format!("{ROOT}{page}");
        files.iter().find(|(name, _)| *name == path).map(|(_, content)| content.as_slice())
    }

    #[test]
    fn content_is_the_same_every_time_and_some_mib() {
        let files = base_files();
        assert_eq!(files, base_files());
        let bytes: usize = files.iter().map(|(_, content)| content.len()).sum();
        assert!((5 << 20..12 << 20).contains(&bytes), "{bytes} bytes");
    }

    #[test]
    fn the_target_changes_and_adds_what_it_promises() {
        let (base, target) = (base_files(), target_files());
        assert_eq!(find(&base, ADDED_PAGE), None);
        let added = find(&target, ADDED_PAGE).expect("the target adds it");
        assert!(String::from_utf8_lossy(added).contains(ADDED_TEXT));
        assert_ne!(find(&base, CHANGED_PAGE), find(&target, CHANGED_PAGE));
    }
}
