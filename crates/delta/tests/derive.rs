//! Bundles made of bundles: composed they do what both do in a row, reversed they lead back.

use std::collections::BTreeMap;
use std::io::Cursor;

use proptest::prelude::*;
use vireo_delta::{
    Bundle, BundleWriter, DeltaError, Derive, Effort, ErrorKind, MemBase, Pair, Permits, SecretKey,
    Side, Statement, TrustedKeys, Verified, compose, reverse,
};
use vireo_model::{ChangeSet, Digest, Ignore, ImagePath, Node, NodeKind, Timestamp, Tree};

/// Files by name; a text that starts with `>` is a further name of the file it names.
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
    let node = |bytes: &[u8]| match bytes.strip_prefix(b">") {
        Some(leader) => Node::hard_link(path(std::str::from_utf8(leader).expect("a name"))),
        None => {
            Node::new(NodeKind::File { len: bytes.len() as u64, content: Digest::of(bytes) }, 0o644)
        }
    };
    files.iter().map(|(name, bytes)| (path(name), node(bytes))).collect()
}

fn mem(files: &Files) -> MemBase {
    files.iter().map(|(name, bytes)| (path(name), bytes.clone())).collect()
}

/// As capture does it: pairs with the same path, or with any file of the base.
fn bundle(base: &Files, target: &Files) -> Vec<u8> {
    let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
    let mut pairs = Vec::new();
    let mut names = BTreeMap::new();
    for (name, bytes) in target {
        let mergeable = name.starts_with("etc/");
        if base.get(name) == Some(bytes) || bytes.starts_with(b">") {
            continue;
        }
        let digest = Digest::of(bytes);
        if mergeable {
            for text in [base.get(name), Some(bytes)].into_iter().flatten() {
                if !text.starts_with(b">") {
                    let len = text.len() as u64;
                    writer.encode_whole(Digest::of(text), len, &text[..]).expect("memory");
                }
            }
            continue;
        }
        let is_file = |(_, bytes): &(&String, &Vec<u8>)| !bytes.starts_with(b">");
        let origin =
            base.get_key_value(name).filter(is_file).or_else(|| base.iter().rfind(is_file));
        let ancestor = origin.map(|(origin, bytes)| (path(origin), bytes.len() as u64));
        let pair = Pair { digest, len: bytes.len() as u64, sparse: false, ancestor };
        if !pair.fits() {
            let read_at = |side, offset: u64, buffer: &mut [u8]| {
                let file = if side == Side::Base { &base[name] } else { bytes };
                buffer.copy_from_slice(&file[offset as usize..][..buffer.len()]);
                Ok(())
            };
            writer.encode_large(&pair, read_at).expect("memory reads");
            continue;
        }
        pairs.push(pair);
        names.insert(digest, name.clone());
    }
    let bases = &base;
    let read = |pair: &Pair, side: Side| match (side, &pair.ancestor) {
        (Side::Base, Some((path, _))) => {
            let name = path.to_string();
            Ok(bases[name.trim_start_matches('/')].clone())
        }
        _ => Ok(target[&names[&pair.digest]].clone()),
    };
    writer.encode_pairs(&pairs, read).expect("memory reads");
    let changes = ChangeSet::between(&tree(base), &tree(target));
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

fn open(file: &[u8]) -> Bundle<'_, Verified<'_>> {
    Bundle::open(file).and_then(|bundle| bundle.verify(&trusted())).expect("its own bundle")
}

/// What the bundle makes of `base`, checked to be what it says.
fn applied(file: &[u8], base: &Files) -> Files {
    let bundle = open(file);
    bundle.check().expect("whole");
    assert_eq!(bundle.base(), tree(base).digest());
    let mut files = base.clone();
    for change in &bundle.change_set().changes {
        let name = change.path.to_string().trim_start_matches('/').to_owned();
        match change.after.as_ref().map(|node| &node.kind) {
            None => drop(files.remove(&name)),
            Some(NodeKind::HardLink { leader }) => {
                let leader = leader.to_string();
                let text = format!(">{}", leader.trim_start_matches('/'));
                files.insert(name, text.into_bytes());
            }
            Some(_) => {
                if let Some(content) = bundle.content(&change.path) {
                    files.insert(name, content.to_vec(&mem(base)).expect("decodes"));
                }
            }
        }
    }
    assert_eq!(tree(&files).digest(), bundle.target());
    files
}

fn composed(first: &[u8], second: &[u8], base: &Files) -> Result<Vec<u8>, DeltaError> {
    let mut out = Vec::new();
    let (first, second) = (open(first), open(second));
    let spool = Cursor::new(Vec::new());
    compose(&first, &second, &mem(base), &Derive::default(), &key(), spool, &mut out)?;
    Ok(out)
}

fn reversed(file: &[u8], base: &Files) -> Vec<u8> {
    let mut out = Vec::new();
    let times = BTreeMap::from([(ImagePath::root(), Timestamp { secs: 7, nanos: 1 })]);
    let spool = Cursor::new(Vec::new());
    reverse(&open(file), &mem(base), &times, &Derive::default(), &key(), spool, &mut out)
        .expect("reversible");
    out
}

/// Bytes that hardly compress; those of neighbouring numbers have most in common.
fn text(seed: u8, edits: u8, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len)
        .map(|at| {
            (blake3::hash(&[seed, (at / 32 % 256) as u8, (at / 8192) as u8])).as_bytes()[at % 32]
        })
        .collect();
    for edit in 0..edits {
        let at = usize::from(edit) * 997 % len.max(1);
        bytes.splice(at..at, format!("edit {edit} of {seed}").into_bytes());
    }
    bytes
}

fn files() -> impl Strategy<Value = Files> {
    let name = prop::sample::select(vec!["a", "b", "c/d", "c/e", "etc/f", "g", "z"]);
    let content = (0..3_u8, 0..4_u8, prop::sample::select(vec![0, 50, 3000, 20_000]))
        .prop_map(|(seed, edits, len)| text(seed, edits, len));
    let file = (name, content, any::<bool>());
    prop::collection::vec(file, 0..7).prop_map(|list| {
        let mut files: Files = BTreeMap::new();
        for (name, content, is_link) in list {
            let content = match (is_link && name == "z", files.get("a")) {
                (true, Some(_)) => b">a".to_vec(),
                _ => content,
            };
            files.insert(name.to_owned(), content);
        }
        // A further name's file must still be a file.
        if files.get("z").is_some_and(|z| z.starts_with(b">")) && !files.contains_key("a") {
            files.remove("z");
        }
        files
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_composed_bundle_does_what_both_do_in_a_row(
        one in files(), two in files(), three in files(),
    ) {
        let (first, second) = (bundle(&one, &two), bundle(&two, &three));
        prop_assert_eq!(&applied(&second, &applied(&first, &one)), &three);
        let composed = composed(&first, &second, &one).expect("they follow each other");
        prop_assert_eq!(&applied(&composed, &one), &three);
        let direct = ChangeSet::between(&tree(&one), &tree(&three));
        let composed = open(&composed);
        prop_assert_eq!(composed.change_set(), &direct);
    }

    #[test]
    fn a_reversed_bundle_leads_back_and_reversed_again_forth(one in files(), two in files()) {
        let forth = bundle(&one, &two);
        let back = reversed(&forth, &one);
        prop_assert_eq!(&applied(&back, &two), &one);
        let again = reversed(&back, &two);
        prop_assert_eq!(&applied(&again, &one), &two);
        let (forth, again) = (open(&forth), open(&again));
        prop_assert_eq!(forth.change_set(), again.change_set());
        prop_assert_eq!(forth.base_paths(), again.base_paths());
    }

    #[test]
    fn there_and_back_composed_is_nothing(one in files(), two in files()) {
        let forth = bundle(&one, &two);
        let back = reversed(&forth, &one);
        let nothing = composed(&forth, &back, &one).expect("they follow each other");
        prop_assert!(open(&nothing).change_set().is_empty());
    }
}

fn one(name: &str, bytes: &[u8]) -> Files {
    Files::from([(name.to_owned(), bytes.to_vec())])
}

#[test]
fn bundles_that_do_not_follow_each_other_are_refused() {
    let (a, b, c) = (one("x", b"1"), one("x", b"2"), one("x", b"3"));
    let (first, third) = (bundle(&a, &b), bundle(&c, &a));
    let error = composed(&first, &third, &a).expect_err("no chain");
    assert_eq!(error.kind(), ErrorKind::WrongBase);
    assert!(error.to_string().contains("starts from"), "{error}");
}

#[test]
fn another_base_than_the_bundles_is_noticed() {
    let (a, b) = (one("x", &text(1, 0, 5000)), one("x", &text(1, 2, 5000)));
    let forth = bundle(&a, &b);
    let mut out = Vec::new();
    let spool = Cursor::new(Vec::new());
    let wrong = mem(&one("x", &text(1, 1, 5000)));
    let times = BTreeMap::new();
    let error = reverse(&open(&forth), &wrong, &times, &Derive::default(), &key(), spool, &mut out);
    assert!(error.is_err());
}

#[test]
fn a_base_that_changed_is_noticed_although_no_content_of_the_bundles_needs_it() {
    // What the first bundle brings has nothing of the base, what the second brings has much of it.
    let (base, middle) = (one("x", &text(1, 0, 20_000)), one("x", &text(2, 0, 20_000)));
    for name in ["x", "elsewhere"] {
        let target = one(name, &text(1, 2, 20_000));
        let (first, second) = (bundle(&base, &middle), bundle(&middle, &target));
        let file = composed(&first, &second, &base).expect("it is as it was");
        assert!(file.len() < 5000, "{} bytes", file.len());
        let error = composed(&first, &second, &one("x", &text(1, 1, 20_000))).expect_err("changed");
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(cause.contains("/x changed"), "{name}: {error}: {cause}");
    }
}

#[test]
fn a_small_edit_stays_small_both_ways_and_composed() {
    let versions: Vec<Files> = (0..3).map(|edits| one("x", &text(1, edits, 20_000))).collect();
    let (first, second) = (bundle(&versions[0], &versions[1]), bundle(&versions[1], &versions[2]));
    let composed = composed(&first, &second, &versions[0]).expect("a chain");
    let back = reversed(&first, &versions[0]);
    for (file, what) in [(&first, "first"), (&composed, "composed"), (&back, "back")] {
        assert!(file.len() < 1500, "{what}: {} bytes", file.len());
    }
}

#[test]
fn files_too_large_for_a_pair_stay_small_both_ways_and_composed() {
    let mut image = vec![0; 40 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut image);
    let base = one("disk", &image);
    image[20 << 20] ^= 1;
    let middle = one("disk", &image);
    image.splice(1 << 20..1 << 20, *b"some words");
    let target = one("disk", &image);
    let (first, second) = (bundle(&base, &middle), bundle(&middle, &target));
    let composed = composed(&first, &second, &base).expect("a chain");
    assert_eq!(applied(&composed, &base), target);
    let back = reversed(&composed, &base);
    assert_eq!(applied(&back, &target), base);
    for (file, what) in [(&first, "first"), (&second, "second"), (&composed, "composed")] {
        assert!(file.len() < 300_000, "{what}: {} bytes", file.len());
    }
    assert!(back.len() < 300_000, "back: {} bytes", back.len());
}

#[test]
fn what_needs_a_permit_needs_one_that_is_given() {
    let base = Files::new();
    let changes = |mode| {
        let kind = NodeKind::File { len: 1, content: Digest::of(b"1") };
        let set: Tree = [(path("x"), Node::new(kind, mode))].into_iter().collect();
        ChangeSet::between(&set, &tree(&base))
    };
    // Taking a set-user-ID program away needs no permit; bringing it back does.
    let statement = Statement {
        changes: &changes(0o4755),
        ignore: &Ignore::nothing(),
        permits: Permits::NONE,
        base_paths: 1,
    };
    let mut file = Vec::new();
    let writer = BundleWriter::new(Cursor::new(Vec::new())).with_effort(Effort::Fast);
    writer.finish(&statement, &key(), &mut file).expect("memory writes");
    let files = mem(&one("x", b"1"));
    let derive = |permits| {
        let options = Derive { permits, ..Derive::default() };
        let (times, spool) = (BTreeMap::new(), Cursor::new(Vec::new()));
        reverse(&open(&file), &files, &times, &options, &key(), spool, &mut Vec::new())
    };
    let error = derive(Permits::NONE).expect_err("not permitted");
    assert_eq!(error.kind(), ErrorKind::NotPermitted);
    derive(Permits::SETUID).expect("permitted");
}
