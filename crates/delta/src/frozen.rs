//! A bundle that has all the format can have, which every later reader must read.
//!
//! `frozen/all/base` and `frozen/all/target` are its trees, `frozen/all.vireo` is what
//! `examples/freeze.rs` made of them once. Writers may get better; this file stays.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use vireo_model::ImagePath;

use crate::format::feature;
use crate::frames::{Class, Part, StreamId};
use crate::manifest::{Body, Content, Packing};
use crate::{Bundle, ContentSource, Header, MemBase, SecretKey, TrustedKeys};

/// What the bundle must have. A feature that is not in it is one that nobody notices to be broken.
const FEATURES: [u32; 6] = [
    feature::LAYOUT_2,
    feature::READ_MAP,
    feature::TOKENS,
    feature::DICTIONARIES,
    feature::MODELS,
    feature::STREAMS,
];

fn frozen(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("frozen").join(name)
}

fn files(side: &str) -> BTreeMap<ImagePath, Vec<u8>> {
    let entries = fs::read_dir(frozen(side)).expect("the frozen tree");
    entries
        .map(|entry| {
            let entry = entry.expect("a name");
            let name = entry.file_name().into_string().expect("of letters");
            let path = ImagePath::parse(format!("/{name}").as_bytes()).expect("a valid path");
            (path, fs::read(entry.path()).expect("a file"))
        })
        .collect()
}

fn bundle() -> Vec<u8> {
    fs::read(frozen("all.vireo")).expect("the frozen bundle")
}

fn trusted() -> TrustedKeys {
    let key: SecretKey =
        format!("vireo-secret-key-v1:{}", "42".repeat(32)).parse().expect("a fixed key");
    TrustedKeys::from_iter([key.public()])
}

#[test]
fn a_bundle_of_all_features_is_read_for_ever() {
    let (base, target, file) = (files("all/base"), files("all/target"), bundle());
    let bundle = Bundle::open(&file).expect("whole").verify(&trusted()).expect("signed");
    bundle.check().expect("whole");
    let mem: MemBase = base.clone().into_iter().collect();
    for (path, bytes) in &target {
        let content = bundle.content(path).expect("all change");
        assert!(content.to_vec(&mem).expect("decodes") == *bytes, "{path}");
    }
    assert_eq!(bundle.change_set().changes.len(), target.len());
    assert!(bundle.read_map().is_some_and(|map| map.starts_with(b"{\"schema\"")));
}

#[test]
fn the_frozen_bundle_has_every_feature() {
    let header = Header::decode(&bundle()).expect("its head");
    let all = FEATURES.iter().fold(0, |sum, feature| sum | feature);
    assert_eq!(all, feature::INCOMPAT_KNOWN, "a new feature needs a frozen bundle that has it");
    assert_eq!(header.incompat, all);
}

#[test]
fn the_frozen_bundle_has_every_way_to_make_a_content() {
    let file = bundle();
    let bundle = Bundle::open(&file).expect("whole").verify(&trusted()).expect("signed");
    let paths: Vec<ImagePath> = files("all/target").into_keys().collect();
    let contents: Vec<ContentSource<'_>> =
        paths.iter().map(|path| bundle.content(path).expect("all change")).collect();
    let has = |what: &dyn Fn(&Content) -> bool| contents.iter().any(|one| what(one.content));
    assert!(has(&|one| one.packing == Packing::Tokens), "tokens");
    assert!(has(&|one| one.packing == Packing::Streams), "streams");
    assert!(has(&|one| matches!(one.packing, Packing::Recipe(_))), "a recipe");
    assert!(has(&|one| one.sparse), "holes");
    let delta_of = |class| {
        contents.iter().find_map(|one| match one.content.body {
            Body::Delta(delta) if one.content.class == class => Some((one.frames, delta)),
            _ => None,
        })
    };
    assert!(delta_of(Class::Text).is_some(), "a delta of text");
    let (frames, delta) = delta_of(Class::Program).expect("a delta of a program");
    assert!(delta.refs.len > 0, "corrected references");
    let stream = StreamId::new(Class::Program, Part::Control);
    assert_eq!(frames.cursor(stream, delta.control).byte(), Some(1), "a layout");
}
