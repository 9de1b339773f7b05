//! Digests of images' files, remembered from one capture to the next.
//!
//! One file for each state of a file system that was captured, and a short one for its tree. What is damaged or of another
//! version is not used; what cannot be written is no reason for a capture to fail. Names tell a file
//! system's states apart, the content says which one it is.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use vireo_image::unmounted::{Identity, Known};
use vireo_model::{Digest, Hasher, Ignore};
use vireo_sys::durable::Unnamed;

/// Most states that are remembered, the ones used last; some MB for a large image each.
const MAX_STATES: usize = 32;

/// Longest file that is read: eight million files with their states.
const MAX_LEN: u64 = 1 << 30;

const EXTENSION: &str = "digests";

/// Of a state's tree alone.
const TREE_EXTENSION: &str = "tree";
const TREE_MAGIC: &[u8; 8] = b"VIREOTR1";

/// What is remembered of a whole tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownTree {
    /// Digest of the inodes it was read from.
    pub(crate) inodes: Digest,
    pub(crate) digest: Digest,
    /// Number of paths.
    pub(crate) paths: u64,
}

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
        self.write(&known.to_bytes(), &self.path(known.identity()))?;
        self.prune(EXTENSION)
    }

    /// The tree that the file system in this state has without what `ignore` leaves out.
    pub(crate) fn tree(&self, identity: &Identity, ignore: &Ignore) -> Option<KnownTree> {
        let bytes = fs::read(self.tree_path(identity, ignore)).ok()?;
        let rest = bytes.strip_prefix(TREE_MAGIC)?;
        let (inodes, rest) = rest.split_first_chunk()?;
        let (digest, rest) = rest.split_first_chunk()?;
        let (paths, check) = rest.split_first_chunk()?;
        let body = bytes.get(..bytes.len().checked_sub(check.len())?)?;
        (check == Digest::of(body).as_bytes().as_slice()).then_some(KnownTree {
            inodes: Digest::from_bytes(*inodes),
            digest: Digest::from_bytes(*digest),
            paths: u64::from_le_bytes(*paths),
        })
    }

    /// Remembers it, whole or not at all.
    pub(crate) fn put_tree(
        &self,
        identity: &Identity,
        ignore: &Ignore,
        tree: &KnownTree,
    ) -> io::Result<()> {
        let mut bytes = TREE_MAGIC.to_vec();
        bytes.extend_from_slice(tree.inodes.as_bytes());
        bytes.extend_from_slice(tree.digest.as_bytes());
        bytes.extend_from_slice(&tree.paths.to_le_bytes());
        let check = Digest::of(&bytes);
        bytes.extend_from_slice(check.as_bytes());
        self.write(&bytes, &self.tree_path(identity, ignore))?;
        self.prune(TREE_EXTENSION)
    }

    fn write(&self, bytes: &[u8], path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut file = Unnamed::new(path)?;
        file.file().write_all(bytes)?;
        // A torn file has a wrong checksum, so that it need not be synced.
        file.publish_unsynced()
    }

    fn tree_path(&self, identity: &Identity, ignore: &Ignore) -> PathBuf {
        let mut hasher = Hasher::new();
        ignore.patterns().iter().for_each(|pattern| {
            hasher.field(pattern.as_bytes());
        });
        let left_out = hasher.finish().to_string();
        let state = self.path(identity);
        let name = state.file_stem().unwrap_or_default().to_string_lossy();
        self.dir.join(format!("{name}-{}.{TREE_EXTENSION}", &left_out[..16]))
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
        let mut states = self.states(EXTENSION).ok()?;
        states.retain(|(_, path)| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        });
        states.into_iter().max().map(|(_, path)| path)
    }

    fn states(&self, of: &str) -> io::Result<Vec<(SystemTime, PathBuf)>> {
        let mut states = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == of) {
                states.push((fs::metadata(&path)?.modified()?, path));
            }
        }
        Ok(states)
    }

    /// Forgets the states that were not used for longest.
    fn prune(&self, of: &str) -> io::Result<()> {
        let mut states = self.states(of)?;
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
