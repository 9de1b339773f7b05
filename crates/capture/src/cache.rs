//! Digests of images' files, remembered from one capture to the next.
//!
//! One file for each state of a file system that was captured. What is damaged or of another
//! version is not used; what cannot be written is no reason for a capture to fail. Names tell a file
//! system's states apart, the content says which one it is.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::NamedTempFile;
use vireo_image::unmounted::{Identity, Known};
use vireo_model::Hasher;

/// Most states that are remembered, the ones used last; some MB for a large image each.
const MAX_STATES: usize = 32;

/// Longest file that is read: eight million files with their states.
const MAX_LEN: u64 = 1 << 30;

const EXTENSION: &str = "digests";

/// A directory of remembered digests, of one user alone.
#[derive(Clone, Debug)]
pub struct DigestCache {
    dir: PathBuf,
}

impl DigestCache {
    /// The one in `dir`, which is made when something is put into it.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// What is known of the file system in the state `identity`, or of its state captured last.
    pub(crate) fn get(&self, identity: &Identity) -> Option<Known> {
        let exact = self.path(identity);
        let known = read(&exact).or_else(|| read(&self.latest(identity)?))?;
        // What was used last is kept longest. That it cannot be touched changes nothing here.
        drop(fs::File::open(&exact).and_then(|file| file.set_modified(SystemTime::now())));
        known.is_of(identity).then_some(known)
    }

    /// Whether just this state is remembered.
    pub(crate) fn has(&self, identity: &Identity) -> bool {
        self.path(identity).exists()
    }

    /// Remembers `known`, whole or not at all.
    pub(crate) fn put(&self, known: &Known) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut file = NamedTempFile::new_in(&self.dir)?;
        file.write_all(&known.to_bytes())?;
        // A torn file has a wrong checksum, so that it need not be synced.
        file.persist(self.path(known.identity()))?;
        self.prune()
    }

    fn path(&self, identity: &Identity) -> PathBuf {
        let mut hasher = Hasher::new();
        hasher.update(b"vireo digests");
        for time in [identity.mounted, identity.written] {
            hasher.update(&time.secs.to_le_bytes()).update(&time.nanos.to_le_bytes());
        }
        hasher.update(&[u8::from(identity.replayed)]);
        let state = hasher.finish().to_string();
        self.dir.join(format!("{}-{}.{EXTENSION}", file_system(identity), &state[..16]))
    }

    /// The state of the same file system that was used last.
    fn latest(&self, identity: &Identity) -> Option<PathBuf> {
        let prefix = file_system(identity);
        let mut states = self.states().ok()?;
        states.retain(|(_, path)| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        });
        states.into_iter().max().map(|(_, path)| path)
    }

    fn states(&self) -> io::Result<Vec<(SystemTime, PathBuf)>> {
        let mut states = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                states.push((fs::metadata(&path)?.modified()?, path));
            }
        }
        Ok(states)
    }

    /// Forgets the states that were not used for longest.
    fn prune(&self) -> io::Result<()> {
        let mut states = self.states()?;
        states.sort();
        let too_many = states.len().saturating_sub(MAX_STATES);
        states.iter().take(too_many).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

/// What all states of a file system have in common.
fn file_system(identity: &Identity) -> String {
    let mut hasher = Hasher::new();
    hasher.update(&identity.uuid).update(&identity.hash_seed);
    hasher.update(&identity.made.secs.to_le_bytes());
    hasher.finish().to_string()[..16].to_owned()
}

fn read(path: &Path) -> Option<Known> {
    let found = fs::metadata(path).ok()?;
    if found.len() > MAX_LEN {
        return None;
    }
    Known::from_bytes(&fs::read(path).ok()?)
}
