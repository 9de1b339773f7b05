//! Images: listing, reading, copying out, reading back. Making them is in [`create`], their next
//! versions in [`push`], what of them a cloud has in [`launch`].

mod create;
mod launch;
mod push;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vireo_delta::TrustedKeys;
use vireo_image::journal::{Begun, Work};
use vireo_model::{ChangeSet, Digest, Ignore, ImageName, Tree};
use vireo_store::{ImageLock, VersionRecord};
use vireo_sys::{copy, durable};
use vireo_wire::api::{ImageLog, ImageSummary, VerifyReply, VersionEntry};
use vireo_wire::{limits, tree_text};

use crate::error::{Detail, RepoError, io_error};
use crate::repository::Repository;

/// How long to wait for another image's version of the same tree.
const DISK_WAIT: Duration = limits::BUILD_TIMEOUT;

impl Repository {
    /// All images with their newest versions.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`.
    pub fn images(&self) -> Result<Vec<ImageSummary>, RepoError> {
        let mut images = Vec::new();
        for name in self.store.images()? {
            let newest = entry(&self.newest(&name)?);
            images.push(ImageSummary { name, newest });
        }
        Ok(images)
    }

    /// An image's versions, ignore list and trusted keys.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such image; `Io`, `Corrupt`.
    pub fn log(&self, image: &ImageName) -> Result<ImageLog, RepoError> {
        let versions = self.store.versions(image)?;
        Ok(ImageLog {
            name: image.clone(),
            ignore: versions.last().map(|newest| newest.ignore.clone()).unwrap_or_default(),
            trusted: self.store.trusted(image)?.iter().collect(),
            versions: versions.iter().map(entry).collect(),
        })
    }

    /// The listing of a version's tree (`vireo_wire::tree_text`).
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such version; `Io`, `Corrupt`.
    pub fn tree_listing(&self, image: &ImageName, version: u64) -> Result<Vec<u8>, RepoError> {
        let version = self.store.version(image, version)?;
        Ok(self.store.tree(version.tree)?)
    }

    /// Where the disk image of a version is, and its length in bytes. Not to be written to.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such version; `Io`, `Corrupt`.
    pub fn disk(&self, image: &ImageName, version: u64) -> Result<(PathBuf, u64), RepoError> {
        let version = self.store.version(image, version)?;
        Ok((self.store.disk_path(version.tree), version.image_bytes))
    }

    /// Copies the disk image of a version to the file `to`, with its holes; gives back its length.
    /// `to` is as it was before, or complete.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such version; `NoSpace`, `Io`, `Corrupt`.
    pub fn export(&self, image: &ImageName, version: u64, to: &Path) -> Result<u64, RepoError> {
        let (disk, len) = self.disk(image, version)?;
        let part = durable::sibling(to, ".part");
        let from = File::open(&disk).map_err(io_error("open", &disk))?;
        let out = File::create(&part).map_err(io_error("create", &part))?;
        copy::clone(&from, &out).map_err(io_error("write", &part))?;
        out.sync_all().map_err(io_error("sync", &part))?;
        durable::rename(&part, to).map_err(io_error("finish", to))?;
        Ok(len)
    }

    /// Reads the stored disk image of a version again and compares its tree with the version's.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such version; `NoRoot`, `Io`, `Corrupt`.
    pub fn verify(&self, image: &ImageName, version: u64) -> Result<VerifyReply, RepoError> {
        let version = self.store.version(image, version)?;
        let ignore = Ignore::new(version.ignore.iter().cloned())
            .map_err(|source| Detail::Ignore { source })?;
        let disk = self.store.disk_path(version.tree);
        let _begun = self.begin_reading(&disk)?;
        let found = self.builder.read_tree(&disk, version.root_partition.into(), &ignore)?;
        let digest = found.digest();
        let mut differing = Vec::new();
        if digest != version.tree {
            let changes = ChangeSet::between(&self.read_tree(version.tree)?, &found).changes;
            differing = changes
                .iter()
                .take(VerifyReply::MAX_DIFFERING)
                .map(|change| change.path.to_string())
                .collect();
        }
        Ok(VerifyReply { number: version.number, expected: version.tree, found: digest, differing })
    }

    /// Takes the turn at the disk image of `tree`, until what is given back is dropped: whoever makes it, or
    /// a version of it, has it from the look at what is there to the version's record.
    fn take_disk(&self, base: &Path, tree: Digest) -> Result<Begun, RepoError> {
        let disk = self.store.disk_path(tree);
        self.begin(&Work::build(base, &disk), &disk, DISK_WAIT)
    }

    /// Whether there is a disk image that some version has; with the [turn](Self::take_disk) at it. Trees
    /// have one disk each, whichever image they are of: it never changes, and has the root in one place.
    /// One that no version has is left by a crash, and was made for nobody knows which root partition.
    fn has_disk(
        &self,
        tree: Digest,
        root: Option<u32>,
        ignore: &Ignore,
    ) -> Result<bool, RepoError> {
        let disk = self.store.disk_path(tree);
        if !disk.exists() {
            return Ok(false);
        }
        let refuse = |other: &ImageName, what: &str| {
            let tree = tree.short();
            let what = format!(
                "image {other} has the tree {tree} already, with another {what}; give both the same"
            );
            Err(Detail::Refused { what }.into())
        };
        let mut is_named = false;
        for other in self.store.images()? {
            let versions = self.versions(&other)?;
            for version in versions.iter().filter(|version| version.tree == tree) {
                is_named = true;
                if version.root_partition != root {
                    return refuse(&other, "--root-partition");
                }
                // What its list leaves out is on the disk, and may count by this one.
                if version.ignore != ignore.patterns()
                    && self.builder.read_tree(&disk, root.into(), ignore)?.digest() != tree
                {
                    return refuse(&other, "--ignore");
                }
            }
        }
        Ok(is_named)
    }

    pub(super) fn lock_image(
        &self,
        image: &ImageName,
        wait: Duration,
    ) -> Result<ImageLock, RepoError> {
        self.store.lock_image(image, wait).map_err(|error| {
            if error.kind() == vireo_store::ErrorKind::Busy {
                return Detail::ImageBusy { image: image.clone() }.into();
            }
            error.into()
        })
    }

    pub(super) fn trusted(&self, image: &ImageName) -> Result<TrustedKeys, RepoError> {
        Ok(self.store.trusted(image)?)
    }

    pub(super) fn read_tree(&self, tree: Digest) -> Result<Tree, RepoError> {
        let listing = self.store.tree(tree)?;
        tree_text::parse(&listing).map_err(|source| Detail::Listing { tree, source }.into())
    }

    pub(crate) fn newest(&self, image: &ImageName) -> Result<VersionRecord, RepoError> {
        let versions = self.versions(image)?;
        versions
            .last()
            .cloned()
            .ok_or_else(|| RepoError::internal(format!("image {image} has no version")))
    }

    pub(crate) fn versions(&self, image: &ImageName) -> Result<Arc<Vec<VersionRecord>>, RepoError> {
        Ok(self.store.versions(image)?)
    }
}

/// A record as it travels.
fn entry(record: &VersionRecord) -> VersionEntry {
    VersionEntry {
        number: record.number,
        tree: record.tree,
        bundle: record.bundle,
        signer: record.signer,
        created: record.created,
        wire_bytes: record.wire_bytes,
        image_bytes: record.image_bytes,
    }
}
