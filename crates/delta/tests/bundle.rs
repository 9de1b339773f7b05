//! The bundle as a whole: round trips over random trees, and what damaged or hostile bytes do.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use vireo_delta::{
    BaseRead, Bundle, BundleWriter, Effort, ErrorKind, HEADER_LEN, Head, MemBase, Pair, Permits,
    SecretKey, Side, Statement, TargetView, TrustedKeys,
};
use vireo_model::{ChangeSet, Digest, Ignore, ImagePath, Node, NodeKind, Tree};

type Files = BTreeMap<String, Vec<u8>>;

fn key() -> SecretKey {
    format!("vireo-secret-key-v1:{}", "42".repeat(32)).parse().expect("a fixed key")
}

fn trusted() -> TrustedKeys {
    TrustedKeys::from_iter([key().public()])
}

fn path(name: &str) -> ImagePath {
    ImagePath::parse(format!("/{name}").as_bytes()).expect("a valid path")
}

fn tree(files: &Files) -> Tree {
    let node = |bytes: &[u8]| {
        Node::new(NodeKind::File { len: bytes.len() as u64, content: Digest::of(bytes) }, 0o644)
    };
    files.iter().map(|(name, bytes)| (path(name), node(bytes))).collect()
}

/// The bundle of what was encoded.
fn finish(writer: BundleWriter<Cursor<Vec<u8>>>, base: &Files, target: &Files) -> Vec<u8> {
    let changes = ChangeSet::between(&tree(base), &tree(target));
    // Not the default list, which may grow without a new format.
    let statement = Statement {
        changes: &changes,
        ignore: &Ignore::nothing(),
        permits: Permits::NONE,
        base_paths: base.len() as u64,
    };
    let mut file = Vec::new();
    writer.finish(&statement, &key(), &mut file).expect("memory writes");
    file
}

/// Encodes the way capture does: same content in the base is reused, the rest is chunked.
fn bundle(base: &Files, target: &Files) -> Vec<u8> {
    let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in base {
        writer.index_base(&path(name), &bytes[..]).expect("memory reads");
    }
    for bytes in target.values() {
        let digest = Digest::of(bytes);
        let len = bytes.len() as u64;
        match base.iter().find(|(_, content)| *content == bytes) {
            Some((source, _)) => {
                writer.reuse(digest, len, false, &path(source)).expect("few files");
            }
            None => writer.encode(digest, len, false, &bytes[..]).expect("memory reads"),
        }
    }
    finish(writer, base, target)
}

fn files(list: &[(&str, &[u8])]) -> Files {
    list.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect()
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    std::iter::repeat_with(|| {
        // Knuth's MMIX generator; any that is the same everywhere would do.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

#[test]
fn a_renamed_file_costs_no_content() {
    let content = noise(1, 1 << 20);
    let file = bundle(&files(&[("a", &content)]), &files(&[("b", &content)]));
    assert!(file.len() < 1000, "{} bytes for a rename", file.len());
}

#[test]
fn an_edit_costs_its_chunks_and_content_shared_by_two_files_travels_once() {
    let base = noise(1, 1 << 20);
    let mut edited = base.clone();
    edited.splice(300_000..300_000, *b"some words");
    let added = noise(9, 200_000);
    let target = files(&[("a", &edited), ("x", &added), ("y", &added)]);
    let len = bundle(&files(&[("a", &base)]), &target).len();
    assert!(len < 200_000 + 100_000, "{len} bytes");
}

#[test]
fn zeros_cost_nothing() {
    let file = bundle(&Files::new(), &files(&[("z", &vec![0; 8 << 20])]));
    assert!(file.len() < 1000, "{} bytes for zeros", file.len());
}

#[test]
fn same_inputs_give_the_same_bytes_and_they_are_frozen() {
    let base = files(&[("a", &noise(1, 100_000)), ("b", b"text")]);
    let target = files(&[("a", &noise(1, 90_000)), ("c", b"text")]);
    let file = bundle(&base, &target);
    assert_eq!(file, bundle(&base, &target));
    let frozen = include_str!("../frozen/bundle-digest.txt");
    assert_eq!(Digest::of(&file).to_string(), frozen.trim_end(), "the format changed");
}

#[test]
fn new_text_is_modelled_and_only_then_a_reader_must_know_that() {
    const MODELS: u8 = 1 << 5;
    let text = prose(7, 150_000);
    let target = files(&[("a", &text), ("b", &noise(1, 100_000))]);
    let file = bundle(&Files::new(), &target);
    assert_eq!(file[8] & MODELS, MODELS);
    let bundle_of = Bundle::open(&file).expect("whole").verify(&trusted()).expect("signed");
    for name in ["a", "b"] {
        let content =
            bundle_of.content(&path(name)).expect("it changes").to_vec(&MemBase::default());
        assert!(content.expect("decodes") == target[name], "{name}");
    }
    let frames = zstd::bulk::compress(&text, 19).expect("memory").len() + 100_000;
    assert!(file.len() < frames, "{} bytes, {frames} by zstd", file.len());
    let without = bundle(&Files::new(), &files(&[("a", b"short text"), ("b", &noise(1, 100_000))]));
    assert_eq!(without[8] & MODELS, 0);
}

/// A bundle with a read map, which is any text here.
fn with_read_map(map: &[u8]) -> Vec<u8> {
    let (base, target) = (files(&[("a", b"1")]), files(&[("a", b"2")]));
    let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
    writer.encode(Digest::of(b"2"), 1, false, &b"2"[..]).expect("memory reads");
    writer.set_read_map(map).expect("within the limit");
    finish(writer, &base, &target)
}

#[test]
fn a_read_map_travels_signed_and_its_bytes_are_frozen() {
    let map = b"{\"schema\":\"vireo.reads/1\"}".repeat(100);
    let file = with_read_map(&map);
    let bundle = Bundle::open(&file).expect("whole").verify(&trusted()).expect("signed");
    assert_eq!(bundle.read_map(), Some(&map[..]));
    let content = bundle.content(&path("a")).expect("it changes").to_vec(&MemBase::default());
    assert_eq!(content.expect("decodes"), b"2");
    Head::read(bundle.head_bytes(), &trusted()).expect("a repository reads it too");
    let frozen = include_str!("../frozen/read-map-bundle-digest.txt");
    assert_eq!(Digest::of(&file).to_string(), frozen.trim_end(), "the format changed");

    for at in 0..file.len() {
        let mut flipped = file.clone();
        flipped[at] ^= 1 << (at % 8);
        let bundle = Bundle::open(&flipped).and_then(|bundle| bundle.verify(&trusted()));
        assert!(bundle.and_then(|bundle| bundle.check()).is_err(), "byte {at} of {}", file.len());
    }
}

#[test]
fn a_bundle_without_a_read_map_has_none() {
    let file = bundle(&Files::new(), &files(&[("a", b"1")]));
    let bundle = Bundle::open(&file).expect("whole").verify(&trusted()).expect("signed");
    assert_eq!(bundle.read_map(), None);
}

#[test]
fn a_read_map_that_readers_would_refuse_is_not_written() {
    let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
    assert!(writer.set_read_map(b"").is_err());
    let most = usize::try_from(vireo_delta::limits::MAX_READ_MAP_LEN).expect("64 bits");
    let error = writer.set_read_map(&vec![0; most + 1]).expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::Limit);
}

#[test]
fn a_bundle_cut_anywhere_is_refused() {
    let file = bundle(&Files::new(), &files(&[("a", &noise(1, 10_000))]));
    for len in (0..file.len()).step_by(7) {
        assert!(Bundle::open(&file[..len]).is_err(), "cut at {len}");
    }
    let mut longer = file.clone();
    longer.push(0);
    assert_eq!(Bundle::open(&longer).expect_err("too long").kind(), ErrorKind::Corrupt);
}

#[test]
fn no_flipped_bit_gets_through() {
    let target = files(&[("a", &noise(1, 3_000)), ("b", b"text")]);
    let file = bundle(&Files::new(), &target);
    for at in 0..file.len() {
        let mut flipped = file.clone();
        flipped[at] ^= 1 << (at % 8);
        let outcome = Bundle::open(&flipped).and_then(|bundle| {
            let bundle = bundle.verify(&trusted())?;
            bundle.check()?;
            bundle.content(&path("a")).expect("in the bundle").to_vec(&MemBase::default())
        });
        assert!(outcome.is_err(), "byte {at} of {}", file.len());
    }
}

#[test]
fn a_bundle_of_a_stranger_is_refused() {
    let file = bundle(&Files::new(), &files(&[("a", b"1")]));
    let stranger = SecretKey::generate().expect("random bytes").public();
    for trusted in [TrustedKeys::default(), TrustedKeys::from_iter([stranger])] {
        let error = Bundle::open(&file).expect("whole").verify(&trusted).expect_err("not trusted");
        assert_eq!(error.kind(), ErrorKind::Untrusted);
        assert!(error.to_string().contains(&key().public().to_string()), "{error}");
    }
}

#[test]
fn another_base_is_noticed_before_the_content_counts_as_whole() {
    let base = files(&[("a", &noise(1, 100_000))]);
    let mut edited = noise(1, 100_000);
    edited[50_000] ^= 1;
    let file = bundle(&base, &files(&[("a", &edited)]));
    let bundle = Bundle::open(&file).expect("whole").verify(&trusted()).expect("signed");
    let path = path("a");
    let content = bundle.content(&path).expect("it changes");
    let other = MemBase::from_iter([(path.clone(), noise(2, 100_000))]);
    assert_eq!(content.to_vec(&other).expect_err("other base").kind(), ErrorKind::WrongBase);
    let error = content.to_vec(&MemBase::default()).expect_err("no base");
    assert_eq!(error.kind(), ErrorKind::WrongBase);
}

#[test]
fn the_head_lists_the_frames_of_the_file() {
    let file = bundle(&Files::new(), &files(&[("a", &noise(3, 9 << 20))]));
    let head_len = Head::peek_len(&file[..HEADER_LEN]).expect("a header");
    let head = Head::read(&file[..head_len as usize], &trusted()).expect("signed");
    assert_eq!(head.file_len, file.len() as u64);
    assert_eq!(head.frames.len(), 18, "one of 512 KiB each");
    let mut at = head.head_len as usize;
    for frame in &head.frames {
        let end = at + frame.len as usize;
        assert_eq!(Digest::of(&file[at..end]), frame.digest);
        at = end;
    }
    assert_eq!(at, file.len());
    let bundle = Bundle::open(&file).expect("whole").verify(&trusted()).expect("signed");
    assert_eq!(bundle.digest(), head.digest);
    let content = bundle.content(&path("a")).expect("added").to_vec(&MemBase::default());
    assert_eq!(content.expect("decodes"), noise(3, 9 << 20));
}

#[test]
fn a_content_needs_its_own_frames_and_no_others() {
    const FRAME_LEN: usize = 512 << 10;
    let target = files(&[
        ("a", &noise(1, FRAME_LEN)),
        ("b", &noise(2, FRAME_LEN)),
        ("c", &noise(3, FRAME_LEN)),
    ]);
    let mut file = bundle(&Files::new(), &target);
    let head = Head::read(&file, &trusted()).expect("signed");
    assert_eq!(head.frames.len(), target.len(), "one for each file");
    let mut at = head.head_len as usize;
    for (number, frame) in head.frames.iter().enumerate() {
        if number != 1 {
            file[at + 100] ^= 1;
        }
        at += frame.len as usize;
    }
    let bundle = Bundle::open(&file).expect("whole").verify(&trusted()).expect("signed");
    for (name, bytes) in &target {
        let path = path(name);
        let made = bundle.content(&path).expect("added").to_vec(&MemBase::default());
        if name == "b" {
            assert!(made.expect("its frame is whole") == *bytes);
        } else {
            assert_eq!(made.expect_err("damaged").kind(), ErrorKind::Corrupt);
        }
    }
}

/// A base that counts what is read of it.
struct Counting(MemBase, AtomicU64);

impl BaseRead for Counting {
    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.0.read_at(path, offset, buffer)
    }
}

#[test]
fn a_piece_of_a_large_file_costs_its_own_bytes_of_the_base() {
    const PIECE_LEN: usize = 4 << 10;
    let base = noise(1, 8 << 20);
    let mut edited = base.clone();
    for at in (0..edited.len()).step_by(100_000) {
        edited[at] ^= 1;
    }
    let file = bundle(&files(&[("a", &base)]), &files(&[("a", &edited)]));
    let bundle = Bundle::open(&file).expect("whole").verify(&trusted()).expect("signed");
    let counting = Counting(MemBase::from_iter([(path("a"), base)]), AtomicU64::new(0));
    let view = TargetView::new(&bundle, &counting);
    let last = edited.len() - PIECE_LEN;
    let mut piece = vec![0; PIECE_LEN];
    for at in (0..last).step_by(77_777).chain([last, 0, 1]) {
        counting.1.store(0, Ordering::Relaxed);
        view.read_at(&path("a"), at as u64, &mut piece).expect("there");
        assert!(piece == edited[at..at + PIECE_LEN], "at {at}");
        let read = counting.1.load(Ordering::Relaxed);
        assert!(read <= PIECE_LEN as u64, "{read} bytes of the base at {at}");
    }
    view.read_at(&path("a"), last as u64 + 1, &mut piece).expect_err("behind the end");
    assert!(view.read_at(&path("a"), u64::MAX, &mut piece).is_err());
}

#[test]
fn a_whole_content_needs_no_base_and_two_texts_alike_cost_little_more_than_one() {
    let words: Vec<String> = noise(4, 4000).iter().map(|n| format!("option_{n} on;\n")).collect();
    let base = words.concat().into_bytes();
    let mut target = base.clone();
    target.extend_from_slice(b"one_more on;\n");
    let (before, after) = (Digest::of(&base), Digest::of(&target));
    let write = |whole: &[&Vec<u8>]| {
        let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
        writer.index_base(&path("a"), &base[..]).expect("memory reads");
        // Whichever comes first, the whole one stays.
        writer.reuse(before, base.len() as u64, false, &path("a")).expect("few files");
        writer.encode(after, target.len() as u64, false, &target[..]).expect("memory reads");
        for text in whole {
            let len = text.len() as u64;
            writer.encode_whole(Digest::of(text), len, &text[..]).expect("memory reads");
        }
        writer.encode(after, target.len() as u64, false, &target[..]).expect("memory reads");
        let tree = |text: &[u8]| tree(&files(&[("a", text)]));
        let mut file = Vec::new();
        let statement = Statement {
            changes: &ChangeSet::between(&tree(&base), &tree(&target)),
            ignore: &Ignore::nothing(),
            permits: Permits::SETUID | Permits::MASS,
            base_paths: 77,
        };
        writer.finish(&statement, &key(), &mut file).expect("memory writes");
        file
    };
    let file = write(&[&base, &target]);
    let bundle = Bundle::open(&file).expect("whole").verify(&trusted()).expect("signed");
    for (digest, text) in [(before, &base), (after, &target)] {
        let a = path("a");
        let content = bundle.content_of(&a, digest).expect("encoded");
        assert!(content.is_self_contained());
        assert_eq!(&content.to_vec(&MemBase::default()).expect("decodes"), text);
    }
    let one = write(&[&target]).len();
    assert!(file.len() < one + one / 4, "{} bytes for two, {one} for one", file.len());
    assert_eq!((bundle.permits(), bundle.base_paths()), (Permits::SETUID | Permits::MASS, 77));
    let head = Head::read(bundle.head_bytes(), &trusted()).expect("signed");
    assert_eq!((head.permits(), head.base_paths()), (bundle.permits(), bundle.base_paths()));
}

/// Encodes the way capture does: every file against the one of that name in the base.
fn paired(base: &Files, target: &Files, effort: Effort) -> Vec<u8> {
    let mut writer = BundleWriter::new(Cursor::new(Vec::new())).with_effort(effort);
    let len = |name: &String| base.get(name).map(|bytes| (path(name), bytes.len() as u64));
    let pairs: Vec<Pair> = target
        .iter()
        .filter(|(name, bytes)| base.get(*name) != Some(bytes))
        .map(|(name, bytes)| Pair {
            digest: Digest::of(bytes),
            len: bytes.len() as u64,
            sparse: false,
            ancestor: len(name),
        })
        .collect();
    let by_digest: BTreeMap<Digest, &Vec<u8>> =
        target.values().map(|bytes| (Digest::of(bytes), bytes)).collect();
    let read = |pair: &Pair, side: Side| {
        Ok(match (side, &pair.ancestor) {
            (Side::Base, Some((path, _))) => base[&path.to_string()[1..]].clone(),
            _ => by_digest[&pair.digest].clone(),
        })
    };
    writer.encode_pairs(&pairs, read).expect("memory reads");
    finish(writer, base, target)
}

fn assert_decodes(file: &[u8], base: &Files, target: &Files) {
    let bundle = Bundle::open(file).expect("whole").verify(&trusted()).expect("signed");
    let mem = base.iter().map(|(name, bytes)| (path(name), bytes.clone())).collect::<MemBase>();
    for (name, bytes) in target.iter().filter(|(name, bytes)| base.get(*name) != Some(bytes)) {
        let path = path(name);
        let content = bundle.content(&path).expect("its content changes");
        assert!(content.to_vec(&mem).expect("decodes") == *bytes, "{name}");
    }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut writer, plain).expect("memory writes");
    writer.finish().expect("memory writes")
}

fn prose(seed: u8, words: usize) -> Vec<u8> {
    let words = noise(seed, words).into_iter().map(|n| format!("word{} ", n / 3));
    words.collect::<String>().into_bytes()
}

/// Pairs of every kind: edited, packed, unlike, grown, new.
fn pair_files() -> (Files, Files) {
    let text = prose(1, 20_000);
    let mut edited = text.clone();
    edited.splice(70_000..70_000, *b"some more words ");
    let base = files(&[
        ("binary", &noise(2, 100_000)),
        ("packed", &gzip(&text)),
        ("text", &text),
        ("unlike", &noise(3, 50_000)),
    ]);
    let mut grown = noise(2, 100_000);
    grown.splice(10..10, noise(4, 100));
    let target = files(&[
        ("binary", &grown),
        ("new", &prose(5, 1000)),
        ("new.gz", &gzip(&prose(6, 1000))),
        ("packed", &gzip(&edited)),
        ("text", &edited),
        ("unlike", &noise(7, 50_000)),
    ]);
    (base, target)
}

#[test]
fn deltas_cost_what_changed_also_inside_gzip_files() {
    let (base, target) = pair_files();
    let file = paired(&base, &target, Effort::Default);
    assert_decodes(&file, &base, &target);
    // The unlike file, 50 KB, and two thousand new words.
    assert!(file.len() < 57_000, "{} bytes", file.len());
}

#[test]
fn packed_files_that_cannot_be_taken_apart_travel_as_they_are() {
    const STREAMS: u8 = 1 << 6;
    let text = prose(1, 20_000);
    let edited = [b"more ", &text[..]].concat();
    let xz = |seed| [b"\xfd7zXZ\0\0\x04", &noise(seed, 20_000)[..]].concat();
    let cut = |plain: &[u8]| gzip(plain)[..10_000].to_vec();
    let long = |plain: &[u8]| [gzip(plain), vec![0; 3 << 20]].concat();
    let packed = |seed, plain: &[u8]| {
        let zst = zstd::bulk::compress(plain, 3).expect("memory");
        files(&[("cut", &cut(plain)), ("long", &long(plain)), ("xz", &xz(seed)), ("zst", &zst)])
    };
    let (base, target) = (packed(1, &text), packed(2, &edited));
    for effort in [Effort::Fast, Effort::Default] {
        let file = paired(&base, &target, effort);
        assert_eq!(file[8] & STREAMS, 0, "nothing was taken apart");
        assert_decodes(&file, &base, &target);
    }
}

#[test]
fn more_effort_never_makes_much_more_and_all_efforts_decode() {
    let (base, target) = pair_files();
    let len = |effort| {
        let file = paired(&base, &target, effort);
        assert_decodes(&file, &base, &target);
        file.len()
    };
    let (fast, default, max) = (len(Effort::Fast), len(Effort::Default), len(Effort::Max));
    assert!(default <= fast + fast / 50 && max <= default + default / 50, "{fast} {default} {max}");
}

#[test]
fn the_number_of_threads_does_not_show_in_the_bytes() {
    let (base, mut target) = pair_files();
    for number in 0..40_u8 {
        target.insert(format!("more{number}"), prose(number, 3000));
    }
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| paired(&base, &target, Effort::Fast))
    };
    let one = with(1);
    assert!(one == with(2) && one == with(5));
}

#[test]
fn another_base_is_noticed_by_deltas_too() {
    let (base, target) = pair_files();
    let file = paired(&base, &target, Effort::Fast);
    let bundle = Bundle::open(&file).expect("whole").verify(&trusted()).expect("signed");
    for name in ["binary", "packed", "text"] {
        let path = path(name);
        let content = bundle.content(&path).expect("it changes");
        for other in [noise(99, base[name].len()), gzip(b"other"), Vec::new()] {
            let mem = MemBase::from_iter([(path.clone(), other)]);
            let error = content.to_vec(&mem).expect_err("another base");
            assert_eq!(error.kind(), ErrorKind::WrongBase, "{name}: {error}");
        }
    }
}

fn any_files() -> impl Strategy<Value = Files> {
    // Few names and contents built from few blocks, so that renames, copies and shared chunks
    // are frequent; empty files and single bytes too.
    let block = (0_u8..6, 0_usize..40_000).prop_map(|(seed, len)| noise(seed, len));
    let content = prop_oneof![
        3 => prop::collection::vec(block, 0..4).prop_map(|blocks| blocks.concat()),
        1 => prop::collection::vec(any::<u8>(), 0..3),
    ];
    prop::collection::btree_map("[a-e]", content, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The crate's first guarantee, over pairs of trees that share names, files and ranges.
    #[test]
    fn decoding_gives_the_target(base in any_files(), target in any_files()) {
        let file = bundle(&base, &target);
        let bundle = Bundle::open(&file)?.verify(&trusted())?;
        prop_assert_eq!(bundle.change_set(), &ChangeSet::between(&tree(&base), &tree(&target)));
        let mem = base.iter().map(|(name, bytes)| (path(name), bytes.clone())).collect::<MemBase>();
        for (name, bytes) in &target {
            if base.get(name) == Some(bytes) {
                continue;
            }
            let path = path(name);
            let content = bundle.content(&path).expect("its content changes");
            prop_assert_eq!(&content.to_vec(&mem)?, bytes);
        }
    }

    /// The same for deltas.
    #[test]
    fn deltas_give_the_target(base in any_files(), target in any_files()) {
        assert_decodes(&paired(&base, &target, Effort::Fast), &base, &target);
    }

    /// Bytes from anywhere are refused without a panic.
    #[test]
    fn random_bytes_are_no_bundle(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Bundle::open(&bytes).is_err());
    }
}
