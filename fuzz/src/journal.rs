//! A hostile or damaged plan that recovery, history and undo find in a tree's state directory.
//!
//! The record is mutated behind its head (`docs/format/state.md`), whose length and checksum are
//! made right again; inode numbers, which no mutation would guess, are those of the tree.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vireo_model::{Digest, ImagePath, Node, Timestamp};
use vireo_tree::Root;
use vireo_tree::apply::{
    Direction, RecoverOptions, Recovered, Settled, UndoOptions, history, recover_with, stage_undo,
};

/// The record, as the format says.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    id: u64,
    base: Digest,
    target: Digest,
    undoes: Vec<u64>,
    mounts: Vec<ImagePath>,
    steps: Vec<Step>,
    dir_times: Vec<(ImagePath, Timestamp)>,
    dir_times_before: Vec<(ImagePath, Timestamp)>,
    settled: Vec<Settled>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Step {
    path: ImagePath,
    before: Option<Node>,
    after: Option<Node>,
    how: How,
    found: Option<u64>,
    staged: Option<u64>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum How {
    Place,
    Metadata,
    Remove,
}

/// Inode numbers that end in this stay as they are: somebody else's.
const FOREIGN: u64 = 7;

/// The first byte of `input` chooses the state that the plan is found in and what is called, the
/// rest is the record.
pub fn run(input: &[u8]) {
    let Some((choice, record)) = input.split_first() else { return };
    crate::sandbox::with(|tree| {
        let state = ["1-committed", "1-done", "1", "1-staged"][usize::from(choice & 3)];
        let txn = tree.join(".vireo").join(state);
        stage(&txn, record);
        let bytes = plan(record, tree, &txn).unwrap_or_else(|| record.to_vec());
        fs::write(txn.join("plan"), seal(&bytes)).expect("written");
        let root = Root::open(tree).expect("was just made");
        let back = choice & 4 != 0;
        let direction = if back { Direction::Back } else { Direction::Forward };
        let options = RecoverOptions { direction };
        if let Ok(Recovered::Completed(committed)) = recover_with(&root, &options) {
            let _ = (committed.changes(), committed.replaced().len());
            let _ = committed.finish();
        }
        let _ = history(&root);
        let options = UndoOptions { take: choice & 8 != 0 };
        if let Ok(staged) = stage_undo(&root, 1, &options) {
            let _ = staged.commit().and_then(|committed| committed.finish());
        }
    });
}

/// The record of a plan file, for a seed.
///
/// # Panics
///
/// The format has changed: this module has to follow.
#[must_use]
pub fn record_of(file: &[u8]) -> Vec<u8> {
    let record = &file[4 + 4 + 8 + Digest::LEN..];
    let plan: Plan = postcard::from_bytes(record).expect("the record is as described here");
    assert!(!plan.steps.is_empty());
    assert_eq!(seal(record), file, "the head is as described here");
    record.to_vec()
}

/// Something to be put in place for each step: files, mostly.
fn stage(txn: &Path, record: &[u8]) {
    fs::create_dir_all(txn.join("s")).expect("made");
    fs::create_dir_all(txn.join("b")).expect("made");
    for number in 0..8 {
        let name = txn.join("s").join(number.to_string());
        match record.get(number) {
            Some(byte) if byte % 16 == 1 => fs::create_dir(name).expect("made"),
            Some(byte) if byte % 16 == 2 => {}
            _ => fs::write(name, "staged").expect("written"),
        }
    }
}

/// `record` with the inode numbers of what is there; none if it is no plan.
fn plan(record: &[u8], tree: &Path, txn: &Path) -> Option<Vec<u8>> {
    let mut plan: Plan = postcard::from_bytes(record).ok()?;
    for (number, step) in plan.steps.iter_mut().enumerate() {
        let below = Path::new(std::ffi::OsStr::from_bytes(step.path.relative()));
        adopt(&mut step.found, &tree.join(below));
        adopt(&mut step.staged, &txn.join("s").join(number.to_string()));
    }
    postcard::to_allocvec(&plan).ok()
}

fn adopt(ino: &mut Option<u64>, at: &Path) {
    let found = fs::symlink_metadata(at).ok().map(|metadata| metadata.ino());
    if let (Some(ino), Some(found)) = (ino, found)
        && *ino % 8 != FOREIGN
    {
        *ino = found;
    }
}

/// Puts the head before a record.
fn seal(record: &[u8]) -> Vec<u8> {
    let mut file = b"VIRT\x01\0\0\0".to_vec();
    file.extend_from_slice(&(record.len() as u64).to_le_bytes());
    file.extend_from_slice(Digest::of(record).as_bytes());
    file.extend_from_slice(record);
    file
}
