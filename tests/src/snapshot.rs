//! All that is in a directory, to be compared with what is in it later.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use vireo_model::{Digest, Hasher};

/// Names, inode numbers, modes, lengths and contents of everything below a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    dir: PathBuf,
    entries: BTreeMap<PathBuf, (u64, u32, u64, Option<Digest>)>,
}

impl Snapshot {
    /// What is in `dir` now. Cost: reads every file.
    ///
    /// # Errors
    ///
    /// Something cannot be read.
    pub fn of(dir: &Path) -> anyhow::Result<Self> {
        let mut entries = BTreeMap::new();
        collect(dir, &mut entries)?;
        Ok(Self { dir: dir.to_owned(), entries })
    }

    /// Expects that nothing has changed since.
    ///
    /// # Errors
    ///
    /// Something has; the message lists the paths.
    pub fn unchanged(&self) -> anyhow::Result<()> {
        let now = Self::of(&self.dir)?;
        let differs = |path: &&PathBuf| self.entries.get(*path) != now.entries.get(*path);
        let mut paths: Vec<_> =
            self.entries.keys().chain(now.entries.keys()).filter(differs).collect();
        paths.dedup();
        ensure!(paths.is_empty(), "changed, made or removed: {paths:?}");
        Ok(())
    }
}

fn collect(
    dir: &Path,
    entries: &mut BTreeMap<PathBuf, (u64, u32, u64, Option<Digest>)>,
) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let stat = path.symlink_metadata()?;
        let digest = if stat.is_file() { Some(digest_of(&path)?) } else { None };
        let len = if stat.is_dir() { 0 } else { stat.len() };
        if stat.is_dir() {
            collect(&path, entries)?;
        }
        entries.insert(path, (stat.ino(), stat.mode(), len, digest));
    }
    Ok(())
}

/// Digest of a file's bytes.
pub(crate) fn digest_of(path: &Path) -> anyhow::Result<Digest> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Hasher::new();
    io::copy(&mut file, &mut hasher).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hasher.finish())
}
