//! What this host remembers of an image: which snapshot holds which disk, and what is half done.
//!
//! One small file per image, replaced durably. It is written before every step that could be lost: a
//! crash at any point leaves either nothing at EC2, or something that the file names. If the file itself
//! is lost, the next version is uploaded whole, and what was half done is found by its tags
//! ([`Ec2::sweep`](crate::Ec2::sweep)).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vireo_model::{Digest, ImageName};
use vireo_sys::durable;
use vireo_sys::lock::FileLock;

use crate::error::{Detail, Ec2Error, ErrorKind, io_error};

/// How long to wait for another process that publishes the same image.
const LOCK_WAIT: Duration = Duration::from_secs(3600);

/// Snapshots that are remembered; earlier ones are of no use as a base.
const KEPT: usize = 16;

const SCHEMA: &str = "vireo.ec2-journal/1";

/// A disk image that is to be published.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    pub(crate) stamp: Stamp,
}

/// By which a file is known to be the one that was uploaded: nobody writes into a disk image, but one of
/// the same name can be made anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) len: u64,
    inode: u64,
    mtime: i64,
    mtime_nanos: i64,
}

/// A snapshot that holds a disk image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) snapshot: String,
    pub(crate) version: u64,
    pub(crate) tree: Digest,
    pub(crate) disk: Stamp,
    pub(crate) volume_gib: u32,
    /// Whether a machine image came of it: if that goes, people decide what becomes of this. Entries that
    /// do not say are taken for such.
    #[serde(default = "yes")]
    pub(crate) registered: bool,
}

fn yes() -> bool {
    true
}

/// A snapshot that is being written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) version: u64,
    pub(crate) tree: Digest,
    pub(crate) disk: Stamp,
    pub(crate) volume_gib: u32,
    /// The snapshot that it starts from; its blocks are all written without one.
    pub(crate) parent: Option<Held>,
    /// The same for every try, so that trying again gives the same snapshot.
    pub(crate) token: String,
    /// Its identity, once it is known.
    pub(crate) snapshot: Option<String>,
    /// Whether blocks without data have to be written too.
    pub(crate) every_block: bool,
    /// Of its blocks in ascending order, how many at the beginning are certainly written.
    pub(crate) written: usize,
    /// Which others are, too, by their place in that order: they overtook slower ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ahead: Vec<usize>,
    /// Whether its completion was asked for.
    pub(crate) completing: bool,
}

/// All that is remembered of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    schema: String,
    /// The region that the snapshots are in; those that begun without it learn it.
    #[serde(default)]
    region: Option<String>,
    /// Counts the snapshots that were begun: two of the same content are never taken for one.
    begun: u64,
    snapshots: Vec<Held>,
    pending: Option<Pending>,
    /// The machine image that the launch template is being brought to, after it was made current.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    templating: Option<String>,
    /// What a launch template was brought to last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    templated: Option<Templated>,
}

/// A launch template, and the machine image that a version of it was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Templated {
    template: String,
    ami: String,
}

/// The file of one image, and the exclusive right to it.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    record: Record,
    /// Whether changes stay in memory: a dry run.
    dry: bool,
    _lock: FileLock,
}

impl Disk {
    pub(crate) fn open(path: &Path) -> Result<Self, Ec2Error> {
        let file = File::open(path).map_err(io_error("open", path))?;
        let metadata = file.metadata().map_err(io_error("read", path))?;
        let stamp = Stamp {
            len: metadata.len(),
            inode: metadata.ino(),
            mtime: metadata.mtime(),
            mtime_nanos: metadata.mtime_nsec(),
        };
        Ok(Self { file: Arc::new(file), path: path.to_owned(), stamp })
    }
}

impl Held {
    /// A snapshot that EC2 made of a volume: no disk of this host is known to equal it.
    pub(crate) fn of_volume(
        (snapshot, volume_gib): (String, u32),
        version: u64,
        tree: Digest,
    ) -> Self {
        let disk = Stamp { len: 0, inode: 0, mtime: 0, mtime_nanos: 0 };
        Self { snapshot, version, tree, disk, volume_gib, registered: false }
    }
}

impl Default for Record {
    fn default() -> Self {
        let schema = SCHEMA.to_owned();
        Self {
            schema,
            region: None,
            begun: 0,
            snapshots: Vec::new(),
            pending: None,
            templating: None,
            templated: None,
        }
    }
}

impl Record {
    /// Fails if it has something in another region: that would be forgotten there, not found here.
    fn belong_to(&mut self, region: &str, image: &ImageName, path: &Path) -> Result<(), Ec2Error> {
        let is_empty = self.snapshots.is_empty() && self.pending.is_none();
        match &self.region {
            Some(other) if other != region && !is_empty => Err(Ec2Error::refused(format!(
                "{} remembers snapshots of {image} in {other}, and the region is {region} now; set it back, or \
                 move the file away: the first version in {region} is then uploaded whole",
                path.display()
            ))),
            _ => {
                self.region = Some(region.to_owned());
                Ok(())
            }
        }
    }
}

impl Journal {
    /// Reads the journal of `image` in `dir`; waits for another process that uses it.
    ///
    /// # Errors
    ///
    /// `Refused` if what it remembers is in another region than `region`; `Damaged`, `Unavailable`, `Io`.
    pub(crate) fn open(
        dir: &Path,
        image: &ImageName,
        region: &str,
        dry: bool,
    ) -> Result<Self, Ec2Error> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let lock_path = dir.join(format!("{image}.lock"));
        let lock = FileLock::exclusive_wait(&lock_path, LOCK_WAIT)
            .map_err(io_error("lock", &lock_path))?
            .ok_or_else(|| {
                let what =
                    format!("another process has been publishing {image} for an hour; wait for it");
                Ec2Error::plain(ErrorKind::Unavailable, what)
            })?;
        let path = dir.join(format!("{image}.json"));
        let mut record = match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|source| Detail::State { path: path.clone(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Record::default(),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        record.belong_to(region, image, &path)?;
        Ok(Self { path, record, dry, _lock: lock })
    }

    /// Snapshots that hold disks, latest first.
    pub(crate) fn snapshots(&self) -> impl Iterator<Item = &Held> {
        self.record.snapshots.iter().rev()
    }

    pub(crate) fn pending(&self) -> Option<&Pending> {
        self.record.pending.as_ref()
    }

    /// A number that no snapshot was begun with.
    pub(crate) fn next_number(&self) -> u64 {
        self.record.begun + 1
    }

    /// Remembers what is about to be begun, or how far it is; `None` that nothing is.
    pub(crate) fn set_pending(&mut self, pending: Option<Pending>) -> Result<(), Ec2Error> {
        let begins = match (&self.record.pending, &pending) {
            (Some(before), Some(now)) => before.token != now.token,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        self.record.begun += u64::from(begins);
        self.record.pending = pending;
        self.save()
    }

    /// Remembers a snapshot, of which nothing is pending any more.
    pub(crate) fn hold(&mut self, held: Held) -> Result<(), Ec2Error> {
        self.record.snapshots.retain(|other| other.version != held.version);
        self.record.snapshots.push(held);
        let excess = self.record.snapshots.len().saturating_sub(KEPT);
        self.record.snapshots.drain(..excess);
        self.record.pending = None;
        self.save()
    }

    /// The machine image that the launch template was to be brought to when this was last written.
    pub(crate) fn templating(&self) -> Option<&str> {
        self.record.templating.as_deref()
    }

    /// Remembers that the launch template is about to be brought to a machine image.
    pub(crate) fn set_templating(&mut self, ami: &str) -> Result<(), Ec2Error> {
        self.record.templating = Some(ami.to_owned());
        self.save()
    }

    /// Whether the launch template was brought to the machine image last.
    pub(crate) fn is_templated(&self, template: &str, ami: &str) -> bool {
        let last = self.record.templated.as_ref();
        last.is_some_and(|last| last.template == template && last.ami == ami)
    }

    /// Remembers that the launch template was brought to the machine image.
    pub(crate) fn set_templated(&mut self, template: &str, ami: &str) -> Result<(), Ec2Error> {
        self.record.templating = None;
        self.record.templated =
            Some(Templated { template: template.to_owned(), ami: ami.to_owned() });
        self.save()
    }

    /// Remembers that machine images came of these snapshots; those that it does not know are no matter.
    pub(crate) fn note_registered<'s>(
        &mut self,
        snapshots: impl IntoIterator<Item = &'s String>,
    ) -> Result<(), Ec2Error> {
        let mut is_news = false;
        for id in snapshots {
            for held in self.record.snapshots.iter_mut().filter(|held| held.snapshot == *id) {
                is_news |= !std::mem::replace(&mut held.registered, true);
            }
        }
        if is_news { self.save() } else { Ok(()) }
    }

    /// Snapshots of versions before `version` of which no machine image came.
    pub(crate) fn unregistered_before(&self, version: u64) -> Vec<String> {
        let before = self.snapshots().filter(|held| held.version < version && !held.registered);
        before.map(|held| held.snapshot.clone()).collect()
    }

    /// Snapshots that this host goes on with: what is pending, and versions after `newest` that are
    /// complete and not registered yet.
    pub(crate) fn spared(&self, newest: u64) -> Vec<String> {
        let pending = self.pending().and_then(|pending| pending.snapshot.clone());
        let complete = self.snapshots().filter(|held| held.version > newest);
        pending.into_iter().chain(complete.map(|held| held.snapshot.clone())).collect()
    }

    /// Forgets a snapshot.
    pub(crate) fn forget(&mut self, snapshot: &str) -> Result<(), Ec2Error> {
        self.record.snapshots.retain(|held| held.snapshot != snapshot);
        self.save()
    }

    fn save(&self) -> Result<(), Ec2Error> {
        if self.dry {
            return Ok(());
        }
        let failed = |source| Detail::State { path: self.path.clone(), source };
        let json = serde_json::to_vec_pretty(&self.record).map_err(failed)?;
        durable::replace(&self.path, &json).map_err(io_error("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "eu-central-1";

    fn held(version: u64, disk: &Disk) -> Held {
        Held {
            snapshot: format!("snap-{version}"),
            version,
            tree: Digest::of(&version.to_le_bytes()),
            disk: disk.stamp.clone(),
            volume_gib: 1,
            registered: false,
        }
    }

    #[test]
    fn a_snapshot_of_which_a_machine_image_came_is_known_and_so_is_one_of_an_old_journal() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disk");
        fs::write(&path, "disk").expect("writable");
        let disk = Disk::open(&path).expect("there");
        let web: ImageName = "web".parse().expect("a name");
        let mut journal = Journal::open(dir.path(), &web, HERE, false).expect("opened");
        for version in 1..=3 {
            journal.hold(held(version, &disk)).expect("saved");
        }
        journal.note_registered(&["snap-2".to_owned(), "snap-x".to_owned()]).expect("saved");
        drop(journal);
        let journal = Journal::open(dir.path(), &web, HERE, false).expect("opened");
        assert_eq!(journal.unregistered_before(3), ["snap-1"]);
        drop(journal);
        let file = dir.path().join("web.json");
        let text = fs::read_to_string(&file).expect("readable");
        let without: Vec<&str> =
            text.lines().map(|line| if line.contains("registered") { "" } else { line }).collect();
        // The member before has lost its successor.
        let text = without.join("").replace(",    }", "    }");
        fs::write(&file, text).expect("writable");
        let journal = Journal::open(dir.path(), &web, HERE, false).expect("it reads old ones");
        assert_eq!(journal.unregistered_before(3), [""; 0], "nobody knows");
    }

    #[test]
    fn what_was_remembered_is_read_back_and_a_dry_run_leaves_no_trace() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disk");
        fs::write(&path, "disk").expect("writable");
        let disk = Disk::open(&path).expect("there");
        let web: ImageName = "web".parse().expect("a name");
        let mut dry = Journal::open(dir.path(), &web, HERE, true).expect("opened");
        dry.hold(held(1, &disk)).expect("not saved");
        drop(dry);
        let mut journal = Journal::open(dir.path(), &web, HERE, false).expect("opened");
        assert_eq!(journal.snapshots().count(), 0, "the dry run wrote nothing");
        for version in 1..=20 {
            journal.hold(held(version, &disk)).expect("saved");
        }
        drop(journal);
        let journal = Journal::open(dir.path(), &web, HERE, false).expect("opened");
        let versions: Vec<u64> = journal.snapshots().map(|held| held.version).collect();
        assert_eq!(versions, (5..=20).rev().collect::<Vec<_>>(), "the latest ones, latest first");
    }

    #[test]
    fn a_disk_that_was_made_anew_is_another() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disk");
        fs::write(&path, "disk").expect("writable");
        let before = Disk::open(&path).expect("there");
        assert_eq!(Disk::open(&path).expect("there").stamp, before.stamp);
        durable::replace(&path, b"disk").expect("replaced");
        assert_ne!(Disk::open(&path).expect("there").stamp, before.stamp);
    }

    #[test]
    fn a_journal_of_another_region_is_neither_used_nor_forgotten() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk_path = dir.path().join("disk");
        fs::write(&disk_path, "disk").expect("writable");
        let disk = Disk::open(&disk_path).expect("there");
        let web: ImageName = "web".parse().expect("a name");
        let there = "us-east-1";
        let mut journal = Journal::open(dir.path(), &web, HERE, false).expect("opened");
        journal.hold(held(1, &disk)).expect("saved");
        drop(journal);
        let file = dir.path().join("web.json");
        let before = fs::read(&file).expect("readable");
        let error = Journal::open(dir.path(), &web, there, false).expect_err("another region");
        assert_eq!(error.kind(), ErrorKind::Refused);
        for word in ["web.json", HERE, there, "move the file away"] {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
        assert_eq!(fs::read(&file).expect("readable"), before);
        // One that was written before journals said their region.
        let mut json: serde_json::Value = serde_json::from_slice(&before).expect("JSON");
        json.as_object_mut().expect("an object").remove("region");
        fs::write(&file, json.to_string()).expect("writable");
        let journal = Journal::open(dir.path(), &web, there, false).expect("opened");
        assert_eq!(journal.snapshots().count(), 1);
    }

    #[test]
    fn a_damaged_journal_says_what_to_do() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let web: ImageName = "web".parse().expect("a name");
        fs::write(dir.path().join("web.json"), "{").expect("writable");
        let error = Journal::open(dir.path(), &web, HERE, false).expect_err("damaged");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.to_string().contains("remove it"), "{error}");
    }
}
