//! Images: their versions, disks and tree listings, and the lock that building takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vireo_delta::PublicKey;
use vireo_model::{Digest, ImageName};
use vireo_sys::lock::FileLock;

use crate::error::{Detail, StoreError, io_error};
use crate::{Store, locked, names_in, read_bounded, read_record};

/// Longest tree listing that is read, in bytes.
const MAX_TREE_LEN: u64 = 512 << 20;

/// One version, as its record says: `images/<name>/versions/<n>.json`. Written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// 1 for the base that the image was created from, then counting.
    pub number: u64,
    /// Digest of its tree; names the listing and the disk.
    pub tree: Digest,
    /// The version before it, by its tree's digest; none for a base.
    pub base: Option<Digest>,
    /// The bundle that made it; none for a base.
    pub bundle: Option<Digest>,
    /// Who signed that bundle.
    pub signer: Option<PublicKey>,
    /// When it was published.
    pub created: Timestamp,
    /// Bytes that were transferred for it.
    pub wire_bytes: u64,
    /// Bytes of the disk image, holes included.
    pub image_bytes: u64,
    /// Patterns of the ignore list that the digest is meant with.
    pub ignore: Vec<String>,
    /// Number of the partition with the root file system; without it the root is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_partition: Option<u32>,
}

/// Held while a version of one image is made: by one writer at a time, in all processes.
#[derive(Debug)]
#[must_use = "dropping it lets the next writer in"]
pub struct ImageLock(#[expect(dead_code, reason = "held for its lock")] FileLock);

impl Store {
    /// Names of all images that have a version, in order.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`.
    pub fn images(&self) -> Result<Vec<ImageName>, StoreError> {
        let names = names_in(&self.root.join("images"))?;
        let mut images = Vec::new();
        for name in names.iter().filter_map(|name| name.parse::<ImageName>().ok()) {
            if !self.load_versions(&name)?.is_empty() {
                images.push(name);
            }
        }
        Ok(images)
    }

    /// All versions of an image, the first one first; never empty. Cost: one `stat` when nothing
    /// was added since the last call.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such image; `Io`, `Corrupt`.
    pub fn versions(&self, name: &ImageName) -> Result<Arc<Vec<VersionRecord>>, StoreError> {
        let versions = self.load_versions(name)?;
        if versions.is_empty() {
            return Err(Detail::NoImage { name: name.clone() }.into());
        }
        Ok(versions)
    }

    /// One version of an image.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such image or version; `Io`, `Corrupt`.
    pub fn version(&self, name: &ImageName, number: u64) -> Result<VersionRecord, StoreError> {
        let versions = self.versions(name)?;
        let at = usize::try_from(number).unwrap_or(usize::MAX).wrapping_sub(1);
        versions
            .get(at)
            .cloned()
            .ok_or_else(|| Detail::NoVersion { name: name.clone(), number }.into())
    }

    /// Versions are written once and in order, so what was read stays valid and only what comes
    /// after it is looked for.
    fn load_versions(&self, name: &ImageName) -> Result<Arc<Vec<VersionRecord>>, StoreError> {
        let mut cache = locked(&self.versions);
        let mut versions = cache.get(name).cloned().unwrap_or_default();
        loop {
            let number = versions.len() as u64 + 1;
            let path = self.version_path(name, number);
            let Some(record) = read_record::<VersionRecord>(&path)? else { break };
            if record.number != number {
                let what = format!("it says number {}", record.number);
                return Err(Detail::Contradiction { path, what }.into());
            }
            Arc::make_mut(&mut versions).push(record);
        }
        if !versions.is_empty() {
            cache.insert(name.clone(), Arc::clone(&versions));
        }
        Ok(versions)
    }

    /// Publishes a version: from here on it is the image's newest. Its bundle, listing and disk
    /// must be in place before; this is the last write.
    ///
    /// A crash leaves the image with or without the version, never with a part of it.
    ///
    /// # Errors
    ///
    /// `Conflict` if the image has a version of that number; `NoSpace`, `Io`.
    pub fn publish(&self, name: &ImageName, version: &VersionRecord) -> Result<(), StoreError> {
        self.make_dir(&self.image_dir(name))?;
        self.make_dir(&self.image_dir(name).join("versions"))?;
        let path = self.version_path(name, version.number);
        if self.create_record(&path, version)? {
            return Ok(());
        }
        Err(Detail::VersionExists { name: name.clone(), number: version.number }.into())
    }

    /// Takes the right to make versions of an image; waits up to `wait` for it. The image need not
    /// be there yet.
    ///
    /// # Errors
    ///
    /// `Busy` if another has it for longer; `Io`.
    pub fn lock_image(&self, name: &ImageName, wait: Duration) -> Result<ImageLock, StoreError> {
        let path = self.image_dir(name).join("lock");
        // Under the repository's lock: a sweep, which has it, knows all names that could be locked.
        let guard = self.lock()?;
        self.make_dir(&self.image_dir(name))?;
        let taken = FileLock::exclusive(&path).map_err(io_error("lock", &path))?;
        drop(guard);
        if let Some(lock) = taken {
            return Ok(ImageLock(lock));
        }
        let lock = FileLock::exclusive_wait(&path, wait).map_err(io_error("lock", &path))?;
        lock.map(ImageLock).ok_or_else(|| Detail::Busy { path }.into())
    }

    /// Where the disk image with this tree is, or is to be put.
    #[must_use]
    pub fn disk_path(&self, tree: Digest) -> PathBuf {
        self.root.join("disks").join(format!("{tree}.img"))
    }

    /// Where a disk image is written before its tree is known. One per image: its lock must be held.
    #[must_use]
    pub fn upload_path(&self, name: &ImageName) -> PathBuf {
        self.root.join("disks").join(format!("{name}.upload.part"))
    }

    /// Keeps the listing of the tree with this digest.
    ///
    /// A crash leaves a listing that no version names.
    ///
    /// # Errors
    ///
    /// `NoSpace`, `Io`.
    pub fn put_tree(&self, tree: Digest, listing: &[u8]) -> Result<(), StoreError> {
        let path = self.tree_path(tree);
        self.writes.replace(&path, listing).map_err(io_error("write", &path))
    }

    /// The listing of the tree with this digest, as it was put.
    ///
    /// # Errors
    ///
    /// `Corrupt` if it is not there, as it is for every version; `Io`.
    pub fn tree(&self, tree: Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.tree_path(tree);
        read_bounded(&path, MAX_TREE_LEN)?
            .ok_or_else(|| Detail::Contradiction { path, what: "it is gone".into() }.into())
    }

    pub(crate) fn tree_path(&self, tree: Digest) -> PathBuf {
        self.root.join("trees").join(tree.to_string())
    }

    pub(crate) fn image_dir(&self, name: &ImageName) -> PathBuf {
        self.root.join("images").join(name.as_str())
    }

    pub(crate) fn version_path(&self, name: &ImageName, number: u64) -> PathBuf {
        self.image_dir(name).join("versions").join(format!("{number}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Durable, ErrorKind};

    fn version(number: u64) -> VersionRecord {
        VersionRecord {
            number,
            tree: Digest::of(&number.to_le_bytes()),
            base: None,
            bundle: None,
            signer: None,
            created: Timestamp::UNIX_EPOCH,
            wire_bytes: 0,
            image_bytes: 1,
            ignore: vec!["/tmp/**".into()],
            root_partition: None,
        }
    }

    #[test]
    fn a_record_without_a_root_partition_is_as_one_that_names_none() {
        let json = serde_json::to_string(&version(1)).expect("a record");
        assert!(!json.contains("root_partition"), "{json}");
        assert_eq!(serde_json::from_str::<VersionRecord>(&json).expect("read"), version(1));
        let named = VersionRecord { root_partition: Some(3), ..version(1) };
        let json = serde_json::to_string(&named).expect("a record");
        assert_eq!(serde_json::from_str::<VersionRecord>(&json).expect("read"), named);
    }

    fn store(dir: &tempfile::TempDir) -> Store {
        Store::init(dir.path(), Timestamp::UNIX_EPOCH, Arc::new(Durable)).expect("made")
    }

    #[test]
    fn of_two_writers_of_one_version_one_wins() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = store(&dir);
        let web: ImageName = "web".parse().expect("a name");
        assert_eq!(store.versions(&web).expect_err("none yet").kind(), ErrorKind::NotFound);
        store.publish(&web, &version(1)).expect("published");
        let late = store.publish(&web, &version(1)).expect_err("it is there");
        assert_eq!(late.kind(), ErrorKind::Conflict);
        assert_eq!(*store.versions(&web).expect("there"), [version(1)]);

        let other = Store::open(dir.path(), Arc::new(Durable)).expect("opened");
        other.publish(&web, &version(2)).expect("published");
        assert_eq!(
            store.versions(&web).expect("there").len(),
            2,
            "another process's version shows"
        );
        assert_eq!(store.version(&web, 3).expect_err("none").kind(), ErrorKind::NotFound);
        assert_eq!(store.version(&web, 0).expect_err("none").kind(), ErrorKind::NotFound);
        assert_eq!(store.images().expect("readable"), [web]);
    }

    #[test]
    fn one_image_is_locked_without_the_other() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = store(&dir);
        let [web, db] = ["web", "db"].map(|name| name.parse::<ImageName>().expect("a name"));
        let held = store.lock_image(&web, Duration::ZERO).expect("free");
        assert_eq!(
            store.lock_image(&web, Duration::ZERO).expect_err("held").kind(),
            ErrorKind::Busy
        );
        store.lock_image(&db, Duration::ZERO).map(drop).expect("free");
        drop(held);
        store.lock_image(&web, Duration::ZERO).map(drop).expect("free again");
        assert!(store.images().expect("readable").is_empty(), "a locked name is no image");
    }
}
