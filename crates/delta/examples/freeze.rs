//! Makes `frozen/all.vireo` of the trees `frozen/all/base` and `frozen/all/target`:
//!
//! ```text
//! cargo run --release -p vireo-delta --example freeze crates/delta/frozen/all crates/delta/frozen/all.vireo
//! ```
//!
//! Only for a format with a new feature, of which the trees then must have something: the bundle that is
//! there stays under another name, because what was released is read for ever.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use vireo_delta::{BundleWriter, Effort, Pair, Permits, SecretKey, Side, Statement};
use vireo_model::{ChangeSet, Digest, Ignore, ImagePath, Node, NodeKind, Tree};

type Failure = Box<dyn std::error::Error>;
type Files = BTreeMap<ImagePath, Vec<u8>>;

/// The base has this file's text packed by another program, so that its tokens are of no use.
const BY_RECIPE: &[u8] = b"/recipe.gz";
const SPARSE: &[u8] = b"/sparse";
const READ_MAP: &[u8] = br#"{"schema":"vireo.reads/1","watched":{},"files":[],"directories":[]}"#;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args_os().skip(1);
    let (Some(trees), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: freeze DIRECTORY BUNDLE".into());
    };
    let base = read(&Path::new(&trees).join("base"))?;
    let target = read(&Path::new(&trees).join("target"))?;
    fs::write(out, bundle(&base, &target)?)?;
    Ok(())
}

fn read(dir: &Path) -> Result<Files, Failure> {
    let mut files = Files::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|_| "a name is not UTF-8")?;
        files.insert(ImagePath::parse(format!("/{name}").as_bytes())?, fs::read(entry.path())?);
    }
    Ok(files)
}

fn bundle(base: &Files, target: &Files) -> Result<Vec<u8>, Failure> {
    let pairs = target.iter().map(|(path, bytes)| Pair {
        digest: Digest::of(bytes),
        len: bytes.len() as u64,
        sparse: path.as_bytes() == SPARSE,
        ancestor: base.get(path).map(|bytes| (path.clone(), bytes.len() as u64)),
    });
    let by_digest: BTreeMap<Digest, &Vec<u8>> =
        target.values().map(|bytes| (Digest::of(bytes), bytes)).collect();
    let packed = target.get(&ImagePath::parse(BY_RECIPE)?).ok_or("no file for the recipe")?;
    let packed = Digest::of(packed);
    let (by_recipe, pairs): (Vec<Pair>, Vec<Pair>) = pairs.partition(|pair| pair.digest == packed);
    let read = |pair: &Pair, side: Side| {
        let bytes = match (side, &pair.ancestor) {
            (Side::Base, Some((path, _))) => base.get(path),
            _ => by_digest.get(&pair.digest).copied(),
        };
        bytes.cloned().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    };
    let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
    writer.encode_pairs(&pairs, read)?;
    // So short a text saves too little for less effort.
    let mut writer = writer.with_effort(Effort::Max);
    writer.encode_pairs(&by_recipe, read)?;
    writer.set_read_map(READ_MAP)?;
    let statement = Statement {
        changes: &ChangeSet::between(&tree(base), &tree(target)),
        ignore: &Ignore::nothing(),
        permits: Permits::NONE,
        base_paths: base.len() as u64,
    };
    let key: SecretKey = format!("vireo-secret-key-v1:{}", "42".repeat(32)).parse()?;
    let mut file = Vec::new();
    writer.finish(&statement, &key, &mut file)?;
    Ok(file)
}

fn tree(files: &Files) -> Tree {
    let node = |bytes: &[u8]| {
        Node::new(NodeKind::File { len: bytes.len() as u64, content: Digest::of(bytes) }, 0o644)
    };
    files.iter().map(|(path, bytes)| (path.clone(), node(bytes))).collect()
}
