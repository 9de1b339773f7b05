//! Prints as JSON what a plan is made from on this machine, so that it can be replayed:
//!
//! ```text
//! facts PATH...
//! ```
//!
//! `files` has those of the paths that are there, with their identity and class; `facts` the units
//! and who holds one of these files; `host` the rest. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use serde_json::{Value, json};
use vireo_agent::{LiveSystem, SystemView as _};
use vireo_classify::{FileId, HEAD_LEN, Policy, class_of};
use vireo_model::ImagePath;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut files, mut wanted) = (BTreeMap::new(), BTreeSet::new());
    for path in std::env::args().skip(1) {
        let Ok(stat) = fs::metadata(&path) else { continue };
        let id = FileId { dev: stat.dev(), ino: stat.ino() };
        let mut head = Vec::new();
        fs::File::open(&path)?.take(HEAD_LEN as u64).read_to_end(&mut head)?;
        let class =
            class_of(&ImagePath::parse(path.as_bytes())?, stat.permissions().mode(), Some(&head));
        wanted.insert(id);
        files.insert(path, json!({"id": id, "class": class}));
    }
    let system = LiveSystem::default();
    let found: Value = json!({"facts": system.facts(&wanted)?, "host": system.host(&Policy::default()), "files": files});
    println!("{found}");
    Ok(())
}
