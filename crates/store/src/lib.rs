//! Keeps versions of images in one directory: bundles, disk images, tree listings, references.
//!
//! # Guarantees
//!
//! - An image's newest version is always a whole one: its record is the last thing written, and
//!   everything it names was durable before. A test stops the store at every write it makes.
//! - Of two writers that make the same version number, exactly one wins.
//! - What has a name is complete: files get their names by rename or link after they are synced.
//! - Nothing of a credential is kept but its BLAKE3 digest.
//!
//! # Layout (format 1; `docs/format/repository.md` is the normative text)
//!
//! ```text
//! vireo-repo.json                     format number, feature words
//! lock                                held for a moment by whoever starts or sweeps
//! bundles/<bundle>.vireo              by the digest of their header; never changed
//! incoming/<bundle>/<frame>           frames of bundles that are being pushed
//! images/<name>/lock                  held while a version of the image is made
//! images/<name>/versions/<n>.json     the versions, 1, 2, 3, ...: the references
//! images/<name>/trusted/<key>.json    keys whose bundles this image accepts
//! trees/<tree>                        tree listings, by the tree's digest
//! disks/<tree>.img                    raw disk images, by the digest of the tree in them
//! trusted/<key>.json                  keys whose bundles every image accepts
//! tokens/<digest of secret>.json      who may do what
//! instances/<id>.json                 machines
//! instances/<id>/receipts/<n>.json    what updates did to them
//! ca/                                 the certificate authority of the server
//! ```
//!
//! # Not here
//!
//! Building images, HTTP, certificates (`vireo-repo`); what a tree listing says: it is bytes here.

mod bundles;
mod error;
mod files;
mod fsck;
mod images;
mod instances;
mod keys;
pub mod testing;

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vireo_model::ImageName;
use vireo_sys::lock::FileLock;

pub use bundles::Location;
pub use error::{ErrorKind, StoreError};
pub use files::{Durable, Fill, Writes};
pub use fsck::{Finding, FsckReport, Swept};
pub use images::{ImageLock, VersionRecord};
pub use instances::{InstanceRecord, RECEIPTS_KEPT, ReceiptRecord};
pub use keys::{CredentialKind, CredentialRecord};

use error::{Detail, io_error};

/// Number of the layout that this build writes and reads.
pub const FORMAT: u32 = 1;

/// Features of a repository that a reader must know to touch it; all that this build knows.
pub const INCOMPAT_KNOWN: &[&str] = &["raw-disks"];

/// Longest JSON record that is read, in bytes; what is longer was not written by a store.
const MAX_RECORD_LEN: u64 = 4 << 20;

/// How long a start or a sweep may keep others waiting at the repository's lock.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// Directories of a repository, as [`Store::init`] makes them.
const DIRECTORIES: &[&str] =
    &["bundles", "incoming", "images", "trees", "disks", "trusted", "tokens", "instances", "ca"];

const FORMAT_FILE: &str = "vireo-repo.json";

/// A repository's directory.
///
/// Any number of processes may have it open: what two could spoil for each other is done under
/// locks, and all locks vanish with the process that holds them.
pub struct Store {
    root: PathBuf,
    writes: Arc<dyn Writes>,
    versions: Mutex<HashMap<ImageName, Arc<Vec<VersionRecord>>>>,
    frames: Mutex<Option<HashMap<vireo_model::Digest, Location>>>,
    /// Held while a bundle is put together.
    assembling: Mutex<()>,
}

/// What `vireo-repo.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Format {
    format: u32,
    incompat: Vec<String>,
    compat: Vec<String>,
    created: Timestamp,
}

impl Store {
    /// Makes a repository in the directory `root`, which must be empty or absent. Its mode becomes
    /// 0700: the repository holds keys and addresses.
    ///
    /// A crash leaves a directory without `vireo-repo.json`, which is no repository; remove it.
    ///
    /// # Errors
    ///
    /// `Conflict` if there is something in `root`; `Io`.
    pub fn init(
        root: &Path,
        created: Timestamp,
        writes: Arc<dyn Writes>,
    ) -> Result<Self, StoreError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(io_error("create", root))?;
        if fs::read_dir(root).map_err(io_error("read", root))?.next().is_some() {
            return Err(Detail::NotEmpty { path: root.to_owned() }.into());
        }
        let store = Self::at(root, writes);
        store.restrict()?;
        for directory in DIRECTORIES {
            store.make_dir(&root.join(directory))?;
        }
        let incompat = INCOMPAT_KNOWN.iter().map(ToString::to_string).collect();
        let format = Format { format: FORMAT, incompat, compat: Vec::new(), created };
        // Last: from here on it is a repository.
        store.write_record(&root.join(FORMAT_FILE), &format)?;
        Ok(store)
    }

    /// Opens the repository in `root`.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is none, `Unsupported` if a newer Vireo made it, `Corrupt`, `Io`.
    pub fn open(root: &Path, writes: Arc<dyn Writes>) -> Result<Self, StoreError> {
        let store = Self::at(root, writes);
        let path = root.join(FORMAT_FILE);
        let Some(format) = read_record::<Format>(&path)? else {
            return Err(Detail::NoRepository { path: root.to_owned() }.into());
        };
        if format.format != FORMAT {
            let missing = format!("format {}", format.format);
            return Err(Detail::Unsupported { path, missing }.into());
        }
        if let Some(missing) =
            format.incompat.into_iter().find(|word| !INCOMPAT_KNOWN.contains(&word.as_str()))
        {
            return Err(Detail::Unsupported { path, missing }.into());
        }
        Ok(store)
    }

    fn at(root: &Path, writes: Arc<dyn Writes>) -> Self {
        Self {
            root: root.to_owned(),
            writes,
            versions: Mutex::new(HashMap::new()),
            frames: Mutex::new(None),
            assembling: Mutex::new(()),
        }
    }

    fn restrict(&self) -> Result<(), StoreError> {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&self.root, mode).map_err(io_error("restrict the mode of", &self.root))
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The writes it makes; whoever adds files to the directory uses them too.
    #[must_use]
    pub fn writes(&self) -> &dyn Writes {
        &*self.writes
    }

    /// Takes the lock of the whole repository.
    fn lock(&self) -> Result<FileLock, StoreError> {
        let path = self.root.join("lock");
        let lock = FileLock::exclusive_wait(&path, LOCK_WAIT).map_err(io_error("lock", &path))?;
        lock.ok_or_else(|| Detail::Busy { path }.into())
    }

    fn make_dir(&self, path: &Path) -> Result<(), StoreError> {
        self.writes.make_dir(path).map_err(io_error("create", path))
    }

    fn write_record(&self, path: &Path, record: &impl Serialize) -> Result<(), StoreError> {
        self.writes.replace(path, &to_json(path, record)?).map_err(io_error("write", path))
    }

    fn create_record(&self, path: &Path, record: &impl Serialize) -> Result<bool, StoreError> {
        self.writes.create(path, &to_json(path, record)?).map_err(io_error("write", path))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

/// A record is for people too, so it is indented, and ends with a line end.
fn to_json(path: &Path, record: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let mut json = serde_json::to_vec_pretty(record)
        .map_err(|source| Detail::Record { path: path.to_owned(), source })?;
    json.push(b'\n');
    Ok(json)
}

/// The record at `path`; `None` if there is no such file.
fn read_record<R: DeserializeOwned>(path: &Path) -> Result<Option<R>, StoreError> {
    let Some(bytes) = read_bounded(path, MAX_RECORD_LEN)? else { return Ok(None) };
    let record = serde_json::from_slice(&bytes)
        .map_err(|source| Detail::Record { path: path.to_owned(), source })?;
    Ok(Some(record))
}

/// The bytes at `path`; `None` if there is no such file.
fn read_bounded(path: &Path, len_max: u64) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > len_max => {
            Err(Detail::TooLong { path: path.to_owned(), len: metadata.len() }.into())
        }
        Ok(_) => fs::read(path).map(Some).map_err(io_error("read", path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// Names of the entries of a directory, sorted; those that are not UTF-8 are none of ours.
fn names_in(path: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("read", path))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// What a poisoned lock protects is a cache: a panic elsewhere cannot have left it half written
/// in a way that matters, because every entry is inserted whole.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    #[test]
    fn a_repository_is_made_once_and_opened_often() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path().join("repo");
        let missing = Store::open(&root, Arc::new(Durable)).expect_err("nothing there");
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        Store::init(&root, now(), Arc::new(Durable)).expect("made");
        Store::open(&root, Arc::new(Durable)).expect("opened");
        let again = Store::init(&root, now(), Arc::new(Durable)).expect_err("not empty");
        assert_eq!(again.kind(), ErrorKind::Conflict);
    }

    #[test]
    fn a_newer_repository_is_unsupported_and_a_damaged_one_corrupt() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Store::init(dir.path(), now(), Arc::new(Durable)).expect("made");
        let path = dir.path().join(FORMAT_FILE);
        let text = fs::read_to_string(&path).expect("readable");
        for (text, kind) in [
            (text.replace("raw-disks", "packs"), ErrorKind::Unsupported),
            (text.replace("\"format\": 1", "\"format\": 2"), ErrorKind::Unsupported),
            (text[..10].to_owned(), ErrorKind::Corrupt),
        ] {
            fs::write(&path, text).expect("writable");
            let error = Store::open(dir.path(), Arc::new(Durable)).expect_err("not usable");
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(FORMAT_FILE), "{error}");
        }
    }

    #[test]
    fn a_crash_while_it_is_made_leaves_no_repository() {
        for allowed in 0.. {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let stop = Arc::new(testing::StopAfter::new(allowed));
            let outcome = Store::init(dir.path(), now(), stop);
            let opened = Store::open(dir.path(), Arc::new(Durable));
            assert_eq!(outcome.is_ok(), opened.is_ok(), "after {allowed} writes");
            if outcome.is_ok() {
                return;
            }
        }
    }
}
