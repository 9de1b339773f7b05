//! Looking after the directory: what an interrupted write left is swept, what is damaged is found.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use vireo_delta::{Bundle, TrustedKeys};
use vireo_model::{Digest, ImageName};
use vireo_sys::lock::FileLock;

use crate::error::{StoreError, io_error};
use crate::files::is_leftover;
use crate::{CredentialRecord, Store, VersionRecord, names_in, read_record};

/// What a sweep removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Files and directories, in order.
    pub removed: Vec<PathBuf>,
    /// An image is being built by another process, so nothing was touched.
    pub busy: bool,
}

/// What is wrong with one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, and what to do.
    pub what: String,
}

/// What a check of the whole repository found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FsckReport {
    /// Bundles whose every byte was hashed.
    pub bundles: usize,
    /// Versions whose bundle, listing and disk were looked for.
    pub versions: usize,
    /// Tree listings that were read.
    pub trees: usize,
    /// Records of instances and credentials that were read.
    pub records: usize,
    /// What is wrong; empty if nothing is.
    pub findings: Vec<Finding>,
    /// Bundles, disks and listings that no version names: left by interrupted pushes, harmless.
    pub unused: Vec<PathBuf>,
}

impl Store {
    /// Removes what interrupted writes left behind. For the start of a server. Does nothing while
    /// any process builds an image, whose unfinished files look the same.
    ///
    /// A frame that another process receives right now may be removed with the rest; its sender
    /// is told, and sends it again.
    ///
    /// # Errors
    ///
    /// `Io`, `Busy`.
    pub fn sweep(&self) -> Result<Swept, StoreError> {
        let _guard = self.lock()?;
        let mut swept = Swept::default();
        let mut held = Vec::new();
        for name in names_in(&self.root.join("images"))? {
            let path = self.root.join("images").join(name).join("lock");
            match FileLock::exclusive(&path).map_err(io_error("lock", &path))? {
                Some(lock) => held.push(lock),
                None => return Ok(Swept { busy: true, ..swept }),
            }
        }
        for directory in self.directories()? {
            for name in names_in(&directory)?.iter().filter(|name| is_leftover(name)) {
                self.sweep_one(directory.join(name), &mut swept)?;
            }
        }
        for name in names_in(&self.root.join("incoming"))? {
            if name.parse().is_ok_and(|bundle| self.bundle_path(bundle).exists()) {
                self.sweep_one(self.root.join("incoming").join(name), &mut swept)?;
            }
        }
        Ok(swept)
    }

    fn sweep_one(&self, path: PathBuf, swept: &mut Swept) -> Result<(), StoreError> {
        self.writes.remove(&path).map_err(io_error("remove", &path))?;
        swept.removed.push(path);
        Ok(())
    }

    /// All directories that files are written to.
    fn directories(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut directories = vec![self.root.clone()];
        for name in crate::DIRECTORIES {
            directories.push(self.root.join(name));
        }
        for below in ["images", "incoming", "instances"] {
            let below = self.root.join(below);
            for name in names_in(&below)?.iter().filter(|name| below.join(name).is_dir()) {
                let directory = below.join(name);
                directories
                    .extend(["versions", "trusted", "receipts"].map(|sub| directory.join(sub)));
                directories.push(directory);
            }
        }
        Ok(directories)
    }

    /// Reads everything but the disks and says what is wrong. `tree_digest` reads a tree listing and
    /// gives back the digest of its tree, or what is wrong with it.
    ///
    /// Cost: one pass over all bundles and listings.
    ///
    /// # Errors
    ///
    /// `Io` if a directory cannot be listed; a file that cannot be read is a finding.
    pub fn fsck(
        &self,
        tree_digest: &dyn Fn(&[u8]) -> Result<Digest, String>,
    ) -> Result<FsckReport, StoreError> {
        let mut report = FsckReport::default();
        self.check_bundles(&mut report)?;
        let mut used = Vec::new();
        for name in names_in(&self.root.join("images"))? {
            match name.parse::<ImageName>() {
                Ok(image) => self.check_image(&image, &mut used, &mut report)?,
                Err(error) => report.find(&self.root.join("images").join(name), &chain(&error)),
            }
        }
        self.check_trees(tree_digest, &mut report)?;
        self.check_records(&mut report)?;
        for directory in ["bundles", "trees", "disks"] {
            let directory = self.root.join(directory);
            let paths = names_in(&directory)?.into_iter().map(|name| directory.join(name));
            report.unused.extend(paths.filter(|path| !used.contains(path)));
        }
        Ok(report)
    }

    fn check_bundles(&self, report: &mut FsckReport) -> Result<(), StoreError> {
        for bundle in self.bundles()? {
            report.bundles += 1;
            if let Err(what) = self.check_bundle(bundle) {
                let what = format!("{what}; remove it and push its bundle again");
                report.find(&self.bundle_path(bundle), &what);
            }
        }
        Ok(())
    }

    fn check_bundle(&self, bundle: Digest) -> Result<(), String> {
        let map = self.map_bundle(bundle).map_err(|error| chain(&error))?;
        let opened = Bundle::open(&map).map_err(|error| chain(&error))?;
        if opened.digest() != bundle {
            return Err(format!("it is the bundle {}", opened.digest()));
        }
        let trusted: TrustedKeys = [opened.signer()].into_iter().collect();
        let verified = opened.verify(&trusted).map_err(|error| chain(&error))?;
        verified.check().map_err(|error| chain(&error))
    }

    fn check_image(
        &self,
        image: &ImageName,
        used: &mut Vec<PathBuf>,
        report: &mut FsckReport,
    ) -> Result<(), StoreError> {
        let directory = self.image_dir(image).join("versions");
        let count =
            names_in(&directory)?.iter().filter(|name| name.ends_with(".json")).count() as u64;
        let mut before: Option<VersionRecord> = None;
        for number in 1..=count {
            let path = self.version_path(image, number);
            report.versions += 1;
            match read_record::<VersionRecord>(&path) {
                Ok(Some(version)) => {
                    self.check_version(&path, &version, number, before.as_ref(), used, report);
                    before = Some(version);
                }
                Ok(None) => report.find(&path, &"the version is missing; restore it from a backup"),
                Err(error) => report.find(&path, &chain(&error)),
            }
        }
        if let Err(error) = self.trusted(image) {
            report.find(&self.trusted_dir(Some(image)), &chain(&error));
        }
        Ok(())
    }

    fn check_version(
        &self,
        path: &Path,
        version: &VersionRecord,
        number: u64,
        before: Option<&VersionRecord>,
        used: &mut Vec<PathBuf>,
        report: &mut FsckReport,
    ) {
        if version.number != number {
            report.find(path, &format!("it says number {}", version.number));
        }
        if version.base != before.map(|before| before.tree) {
            report.find(path, &"its base is not the version before it");
        }
        let disk = self.disk_path(version.tree);
        if std::fs::metadata(&disk).map(|metadata| metadata.len()).ok() != Some(version.image_bytes)
        {
            report.find(
                &disk,
                &"the disk image is missing or has another length; restore it from a backup",
            );
        }
        let tree = self.tree_path(version.tree);
        if !tree.exists() {
            report.find(&tree, &"the tree listing is missing; restore it from a backup");
        }
        if let Some(bundle) = version.bundle {
            match self.bundle_len(bundle) {
                Ok(len) if len == version.wire_bytes => {}
                Ok(_) => report.find(&self.bundle_path(bundle), &"the bundle has another length"),
                Err(error) => report.find(&self.bundle_path(bundle), &chain(&error)),
            }
            used.push(self.bundle_path(bundle));
        }
        used.extend([disk, tree]);
    }

    fn check_trees(
        &self,
        tree_digest: &dyn Fn(&[u8]) -> Result<Digest, String>,
        report: &mut FsckReport,
    ) -> Result<(), StoreError> {
        for name in names_in(&self.root.join("trees"))? {
            let Ok(tree) = name.parse::<Digest>() else { continue };
            report.trees += 1;
            let read = self.tree(tree).map_err(|error| chain(&error));
            match read.and_then(|listing| tree_digest(&listing)) {
                Ok(found) if found == tree => {}
                Ok(found) => {
                    report.find(&self.tree_path(tree), &format!("it lists the tree {found}"))
                }
                Err(what) => report.find(&self.tree_path(tree), &what),
            }
        }
        Ok(())
    }

    fn check_records(&self, report: &mut FsckReport) -> Result<(), StoreError> {
        for name in names_in(&self.root.join("instances"))? {
            let Some(id) = name.strip_suffix(".json") else { continue };
            report.records += 1;
            if let Err(error) = self.instance(id) {
                report.find(&self.root.join("instances").join(&name), &chain(&error));
            }
        }
        for name in names_in(&self.root.join("tokens"))? {
            let path = self.root.join("tokens").join(name);
            report.records += 1;
            if let Err(error) = read_record::<CredentialRecord>(&path) {
                report.find(&path, &chain(&error));
            }
        }
        Ok(())
    }

    /// Waits for every build that runs, so that what is read next is settled. For fsck.
    ///
    /// # Errors
    ///
    /// `Busy` if a build takes longer than `wait`; `Io`.
    pub fn settle(&self, wait: Duration) -> Result<(), StoreError> {
        for name in names_in(&self.root.join("images"))?.iter().filter_map(|name| name.parse().ok())
        {
            drop(self.lock_image(&name, wait)?);
        }
        Ok(())
    }
}

impl FsckReport {
    fn find(&mut self, path: &Path, what: &dyn std::fmt::Display) {
        self.findings.push(Finding { path: path.to_owned(), what: what.to_string() });
    }
}

/// The error and its causes, joined by `: `.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
