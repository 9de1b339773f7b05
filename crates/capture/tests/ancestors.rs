//! What a file was made of is found where its name does not tell: it does not travel whole.

use std::fs;

use tempfile::TempDir;
use vireo_capture::{CaptureOptions, capture};
use vireo_delta::{Permits, SecretKey};
use vireo_model::Digest;
use vireo_tree::Root;

const LEN: usize = 1 << 20;

/// What an edit of a file may cost, in bytes.
const MOST: u64 = 20_000;

/// Bytes that no compressor makes less of.
fn noise(seed: u32) -> Vec<u8> {
    noise_of(seed, LEN)
}

fn noise_of(seed: u32, len: usize) -> Vec<u8> {
    let piece = |at: u32| *Digest::of(&[seed.to_le_bytes(), at.to_le_bytes()].concat()).as_bytes();
    (0..(len / Digest::LEN) as u32).flat_map(piece).collect()
}

fn edited(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[LEN / 3] ^= 1;
    bytes
}

/// How long the bundle is from the files of `base` to those and `changed`.
fn wire_len(base: &[(&str, Vec<u8>)], changed: &[(&str, Vec<u8>)]) -> u64 {
    let dir = TempDir::new().expect("a temporary directory");
    let root = |name: &str, lists: &[&[(&str, Vec<u8>)]]| {
        for (path, bytes) in lists.iter().flat_map(|list| list.iter()) {
            let path = dir.path().join(name).join(path);
            fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
            fs::write(path, bytes).expect("written");
        }
        Root::open(&dir.path().join(name)).expect("opens")
    };
    let (before, after) = (root("base", &[base]), root("target", &[base, changed]));
    let key = SecretKey::generate().expect("random bytes");
    let options = CaptureOptions { permits: Permits::MASS, ..CaptureOptions::default() };
    let captured = capture(&before, &after, &options, &key, &dir.path().join("out.vireo"));
    captured.expect("captured").wire_len
}

#[test]
fn an_edited_copy_of_a_file_that_stays_is_found() {
    let copy = [("big-patched", edited(noise(1)))];
    let len = wire_len(&[("big", noise(1)), ("other", noise(2))], &copy);
    assert!(len < MOST, "{len} bytes");
}

#[test]
fn an_edited_copy_of_a_large_file_is_found() {
    let large = noise_of(1, 33 * LEN);
    let copy = [("large-patched", edited(large.clone()))];
    let len = wire_len(&[("large", large)], &copy);
    assert!(len < 100_000, "{len} bytes");
}

#[test]
fn an_edited_copy_of_a_directory_is_found() {
    let base = [("site/a/index", noise(1)), ("site/b/index", noise(2)), ("x/index", noise(3))];
    let copy = [("site-new/a/index", edited(noise(1))), ("site-new/b/index", edited(noise(2)))];
    let len = wire_len(&base, &copy);
    assert!(len < MOST, "{len} bytes");
}

#[test]
fn files_that_swapped_their_names_and_were_edited_are_found() {
    let swapped = [("a", edited(noise(2))), ("b", edited(noise(1)))];
    let len = wire_len(&[("a", noise(1)), ("b", noise(2))], &swapped);
    assert!(len < MOST, "{len} bytes");
}

#[test]
fn a_name_that_is_like_anothers_does_not_hide_where_a_file_comes_from() {
    let base = [("lib/libx-1.0.so", noise(1)), ("opt/vendor/blob", noise(2))];
    let len = wire_len(&base, &[("lib/libx-1.1.so", edited(noise(2)))]);
    assert!(len < MOST, "{len} bytes");
}
