//! Writing a disk image into a snapshot, through the EBS direct interface: changed blocks alone.
//!
//! A snapshot that has a parent starts as its copy; what is put into it replaces blocks. A block that
//! became zeros is therefore put like any other. Without a parent, blocks without data are left out,
//! unless the snapshot is encrypted: there what was never put reads back as random bytes.
//!
//! # What a crash leaves
//!
//! A pending snapshot that the journal names, or whose client token it names: for the same token it is
//! given again, and by the tag with it found. The next call goes on where it was; if that snapshot is gone (EBS gives up after [`TIMEOUT_MINUTES`] without a block)
//! or could not be completed, or the disk is another by now, it is removed and a new one begun.

mod put;

use aws_sdk_ebs::operation::start_snapshot::StartSnapshotOutput;
use aws_sdk_ebs::types::{SseType, Tag};
use aws_sdk_ec2::types::SnapshotState;
use tokio::task::spawn_blocking;
use vireo_cloud::Publication;
use vireo_cloud::blocks::{self, BLOCK_LEN};

use crate::calls::Calls;
use crate::error::{Ec2Error, ErrorKind, io_error};
use crate::journal::{Disk, Held, Journal, Pending};
use crate::settings::{ImageSettings, MAX_VOLUME_GIB};
use crate::tags;

/// Bytes of a gibibyte, the unit of volume sizes.
const GIB: u64 = 1 << 30;

/// Minutes without a block after which EBS gives a pending snapshot up: long enough for a restart.
const TIMEOUT_MINUTES: i32 = 240;

/// What a dry run calls a snapshot that is not there.
const PLANNED: &str = "snap-(new)";

/// One disk image on its way into a snapshot.
#[derive(Debug)]
pub(crate) struct Upload<'a> {
    pub(crate) calls: &'a Calls,
    pub(crate) journal: &'a mut Journal,
    pub(crate) publication: &'a Publication<'a>,
    pub(crate) settings: &'a ImageSettings,
    pub(crate) disk: &'a Disk,
    pub(crate) parallel: usize,
}

impl Upload<'_> {
    /// Gives a complete snapshot with the disk's content: the one that is there already, the one that
    /// was begun, or a new one.
    ///
    /// # Errors
    ///
    /// Those of the calls; `Refused` if the disk is too large; `Io`. A pending snapshot is left for the
    /// next call.
    pub(crate) async fn run(mut self) -> Result<Held, Ec2Error> {
        let least = least_gib(self.settings, self.disk)?;
        if let Some(held) = self.complete_already().await? {
            return Ok(held);
        }
        if let Some(pending) = self.resumable(least).await? {
            match self.write(pending).await {
                // It was given up at EBS: begun anew, once.
                Err(error) if was_refused(&error) => self.abandon().await?,
                outcome => return outcome,
            }
        }
        let parent = self.parent().await?;
        let has_parent = parent.is_some();
        match self.begin(parent, least).await {
            // The parent cannot be used (it is gone, or the account encrypts by now): all is written.
            Err(error) if has_parent && was_refused(&error) && error.is_of("StartSnapshot") => {
                self.abandon().await?;
                self.begin(None, least).await
            }
            outcome => outcome,
        }
    }

    /// The snapshot of this very disk, if it was completed before.
    async fn complete_already(&mut self) -> Result<Option<Held>, Ec2Error> {
        let Publication { version, tree, .. } = *self.publication;
        let same = |held: &&Held| {
            held.version == version && held.tree == tree && held.disk == self.disk.stamp
        };
        let Some(held) = self.journal.snapshots().find(same).cloned() else { return Ok(None) };
        Ok(self.is_complete(&held.snapshot).await?.then_some(held))
    }

    async fn is_complete(&self, id: &str) -> Result<bool, Ec2Error> {
        let snapshot = self.calls.snapshot(id).await?;
        Ok(snapshot.is_some_and(|snapshot| snapshot.state() == Some(&SnapshotState::Completed)))
    }

    /// What was begun, if it is of this disk; else it is removed.
    async fn resumable(&mut self, least: u32) -> Result<Option<Pending>, Ec2Error> {
        let Some(pending) = self.journal.pending().cloned() else { return Ok(None) };
        let Publication { version, tree, .. } = *self.publication;
        let same = pending.version == version
            && pending.tree == tree
            && pending.disk == self.disk.stamp
            && pending.volume_gib >= least;
        let parent_is_here =
            pending.parent.as_ref().is_none_or(|parent| self.disk_of(parent).is_some());
        if same && parent_is_here && !self.has_failed(&pending).await? {
            return Ok(Some(pending));
        }
        self.abandon().await?;
        Ok(None)
    }

    /// Whether EBS could not complete what was begun: nobody waits for that again.
    async fn has_failed(&self, pending: &Pending) -> Result<bool, Ec2Error> {
        let Some(id) = pending.snapshot.as_ref().filter(|_| pending.completing) else {
            return Ok(false);
        };
        let snapshot = self.calls.snapshot(id).await?;
        Ok(snapshot.is_some_and(|snapshot| snapshot.state() == Some(&SnapshotState::Error)))
    }

    /// Removes the snapshot that was begun, and forgets it. One whose identity was not learnt, as the
    /// answer was lost or the process ended, is found by its token.
    async fn abandon(&mut self) -> Result<(), Ec2Error> {
        let ids = match self.journal.pending() {
            Some(Pending { snapshot: Some(id), .. }) => vec![id.clone()],
            Some(Pending { token, .. }) => {
                let filter = tags::filter(format!("tag:{}", tags::TOKEN), token);
                let found = self.calls.snapshots(&[filter]).await?;
                found.into_iter().filter_map(|snapshot| snapshot.snapshot_id).collect()
            }
            None => Vec::new(),
        };
        for id in ids {
            self.calls.delete_snapshot(&id).await?;
        }
        self.journal.set_pending(None)
    }

    /// The disk that a snapshot was made from, if it is still what it was.
    fn disk_of(&self, held: &Held) -> Option<Disk> {
        let same = |earlier: &&vireo_cloud::Earlier| {
            earlier.version == held.version && earlier.tree == held.tree
        };
        let earlier = self.publication.earlier.iter().find(same)?;
        Disk::open(&earlier.disk).ok().filter(|disk| disk.stamp == held.disk)
    }

    /// The latest snapshot that is complete and whose disk is here to compare with.
    async fn parent(&mut self) -> Result<Option<Held>, Ec2Error> {
        let held: Vec<Held> = self.journal.snapshots().cloned().collect();
        for held in held {
            if self.disk_of(&held).is_none() {
                continue;
            }
            if self.is_complete(&held.snapshot).await? {
                return Ok(Some(held));
            }
            self.journal.forget(&held.snapshot)?;
        }
        Ok(None)
    }

    async fn begin(&mut self, parent: Option<Held>, least: u32) -> Result<Held, Ec2Error> {
        let Publication { image, version, tree, .. } = *self.publication;
        // A child is at least as large as its parent.
        let volume_gib = parent.as_ref().map_or(least, |parent| parent.volume_gib.max(least));
        let number = self.journal.next_number();
        let of = parent.as_ref().map_or("nothing", |parent| &parent.snapshot);
        let text =
            format!("{image} {version} {tree} {of} {volume_gib} {number} {:?}", self.disk.stamp);
        let token = vireo_model::Digest::of(text.as_bytes()).to_string();
        let pending = Pending {
            version,
            tree,
            disk: self.disk.stamp.clone(),
            volume_gib,
            parent,
            token,
            snapshot: None,
            every_block: false,
            written: 0,
            ahead: Vec::new(),
            completing: false,
        };
        if let Some(parent) = pending.parent.clone() {
            let indices = self.indices(&pending).await?;
            if indices.is_empty() && volume_gib == parent.volume_gib {
                return self.share(parent);
            }
        }
        self.journal.set_pending(Some(pending.clone()))?;
        self.write(pending).await
    }

    /// The disk equals its parent's: one snapshot serves both versions.
    fn share(&mut self, parent: Held) -> Result<Held, Ec2Error> {
        let Publication { version, tree, .. } = *self.publication;
        let held = Held { version, tree, disk: self.disk.stamp.clone(), ..parent };
        self.journal.hold(held.clone())?;
        Ok(held)
    }

    /// Starts, fills and completes the snapshot, from wherever it is.
    async fn write(&mut self, mut pending: Pending) -> Result<Held, Ec2Error> {
        let id = match &pending.snapshot {
            Some(id) => id.clone(),
            None => {
                let id = self.start(&mut pending).await?;
                self.journal.set_pending(Some(pending.clone()))?;
                id
            }
        };
        if !(pending.completing && self.is_complete(&id).await?) {
            let indices = self.indices(&pending).await?;
            let sums = self.put_all(&mut pending, &id, &indices).await?;
            self.complete_once(&mut pending, &id, &sums).await?;
        }
        self.calls.await_snapshot(&id).await?;
        let Pending { version, tree, disk, volume_gib, .. } = pending;
        let held = Held { snapshot: id, version, tree, disk, volume_gib, registered: false };
        self.journal.hold(held.clone())?;
        Ok(held)
    }

    async fn start(&self, pending: &mut Pending) -> Result<String, Ec2Error> {
        let Publication { image, version, tree, .. } = *self.publication;
        let parent = pending.parent.as_ref().map(|parent| parent.snapshot.clone());
        let of = parent.as_deref().unwrap_or("nothing");
        let what = format!("{image}@{version} ({} GiB) from {of}", pending.volume_gib);
        let tags: Vec<Tag> = tags::of_content(image, version, tree, true)
            .into_iter()
            .chain([(tags::TOKEN, pending.token.clone())])
            .map(|(key, value)| Tag::builder().key(key).value(value).build())
            .collect();
        // A child is encrypted as its parent is, and must not be told so.
        let encrypted = (parent.is_none() && self.settings.encrypted).then_some(true);
        let call = || {
            let ebs = self.calls.ebs.start_snapshot();
            ebs.volume_size(pending.volume_gib.into())
                .set_parent_snapshot_id(parent.clone())
                .client_token(&pending.token)
                .set_tags(Some(tags.clone()))
                .description(format!("{image}@{version}"))
                .timeout(TIMEOUT_MINUTES)
                .set_encrypted(encrypted)
                .set_kms_key_arn(self.settings.kms_key.clone().filter(|_| encrypted.is_some()))
                .send()
        };
        let instead = || {
            let planned = StartSnapshotOutput::builder().snapshot_id(PLANNED);
            planned.block_size(BLOCK_LEN as i32).build()
        };
        let started = self.calls.change("StartSnapshot", what, instead, call).await?;
        if started.block_size().map(i64::from) != Some(BLOCK_LEN as i64) {
            let what = format!(
                "the service's blocks have {:?} bytes, not {BLOCK_LEN}",
                started.block_size()
            );
            return Err(Ec2Error::refused(what));
        }
        let is_encrypted = started.kms_key_arn().is_some()
            || started.sse_type().is_some_and(|kind| *kind != SseType::None)
            || encrypted.is_some();
        pending.every_block = is_encrypted && pending.parent.is_none();
        pending.snapshot = started.snapshot_id;
        pending.snapshot.clone().ok_or_else(|| Ec2Error::refused("StartSnapshot gave no identity"))
    }

    /// The blocks to be put, ascending: the same after every restart.
    async fn indices(&self, pending: &Pending) -> Result<Vec<u32>, Ec2Error> {
        if pending.every_block {
            let count = u64::from(pending.volume_gib) * GIB / BLOCK_LEN;
            return Ok((0..u32::try_from(count).unwrap_or(u32::MAX)).collect());
        }
        let base = match &pending.parent {
            Some(parent) => Some(self.disk_of(parent).ok_or_else(|| {
                Ec2Error::refused(format!(
                    "the disk of version {} changed meanwhile",
                    parent.version
                ))
            })?),
            None => None,
        };
        let disk = self.disk.clone();
        let path = disk.path.clone();
        let found = blocking(move || match base {
            Some(base) => blocks::changed(&base.file, &disk.file),
            None => blocks::with_data(&disk.file),
        });
        Ok(found.await?.map_err(io_error("compare", &path))?.indices)
    }
}

/// Whether the service answered that what was asked cannot be done, now or later.
fn was_refused(error: &Ec2Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Refused) && error.code().is_some()
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Ec2Error> {
    spawn_blocking(work).await.map_err(internal)
}

fn internal(error: tokio::task::JoinError) -> Ec2Error {
    Ec2Error::plain(ErrorKind::Io, format!("a thread of this process ended: {error}"))
}

/// The smallest volume that the disk fits; it must not be larger than the one that is asked for.
fn least_gib(settings: &ImageSettings, disk: &Disk) -> Result<u32, Ec2Error> {
    let gib = disk.stamp.len.div_ceil(GIB).max(1);
    if let Some(volume_gib) = settings.volume_gib
        && gib > u64::from(volume_gib)
    {
        return Err(Ec2Error::refused(format!(
            "the disk image {} has {gib} GiB and does not fit a volume of {volume_gib} GiB; raise `volume-gib`",
            disk.path.display()
        )));
    }
    if gib > u64::from(MAX_VOLUME_GIB) {
        return Err(Ec2Error::refused(format!(
            "the disk image {} has {gib} GiB; EBS volumes have {MAX_VOLUME_GIB} at most",
            disk.path.display()
        )));
    }
    u32::try_from(gib).map_err(|_| Ec2Error::refused("the disk image is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_to_fit_its_volume_and_ebs() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let least = |len: u64, volume_gib| {
            let mut disk = Disk::open(file.path()).expect("there");
            disk.stamp.len = len;
            let mut settings = ImageSettings::like("ami-1");
            settings.volume_gib = volume_gib;
            least_gib(&settings, &disk).map_err(|error| error.to_string())
        };
        assert_eq!(least(0, None), Ok(1));
        assert_eq!(least(GIB, None), Ok(1));
        assert_eq!(least(GIB + 1, Some(2)), Ok(2));
        let error = least(2 * GIB + 1, Some(2)).expect_err("too large");
        assert!(error.contains("3 GiB") && error.contains("`volume-gib`"), "{error}");
        let error = least(u64::from(MAX_VOLUME_GIB) * GIB + 1, None).expect_err("too large");
        assert!(error.contains("65536"), "{error}");
    }
}
