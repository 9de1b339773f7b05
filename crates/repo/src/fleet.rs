//! Instances: who asks, what comes next for them, what they report.

use std::time::Duration;

use vireo_model::{Digest, ImageName};
use vireo_store::{CredentialKind, CredentialRecord, InstanceRecord, ReceiptRecord, VersionRecord};
use vireo_wire::Secret;
use vireo_wire::api::{
    EnrollReply, EnrollRequest, InstanceEntry, InstanceId, Next, ReceiptPost, VersionRef,
};
use vireo_wire::limits::{MAX_CLOUD_ID_LEN, MAX_INSTANCE_NAME_LEN};

use crate::error::{Detail, RepoError};
use crate::event::Event;
use crate::repository::{Repository, random, random_secret};

/// How old an instance's `last_seen` must be to be written again: a poll is no reason to write.
const SEEN_INTERVAL: Duration = Duration::from_secs(60);

/// Longest outcome word that is kept, in bytes.
const MAX_OUTCOME_LEN: usize = 64;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody with an administrator's token.
    Admin,
    /// Somebody with an enrolment token.
    Enroll {
        /// For this image alone; none means any.
        image: Option<ImageName>,
    },
    /// An instance.
    Instance {
        /// Its identity.
        id: InstanceId,
        /// Its image.
        image: ImageName,
    },
}

impl Repository {
    /// Who has this secret; `None` if nobody does.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`.
    pub fn caller(&self, secret: &Secret) -> Result<Option<Caller>, RepoError> {
        let Some(record) = self.store.credential(secret.digest())? else { return Ok(None) };
        Ok(Some(match record.kind {
            CredentialKind::Admin => Caller::Admin,
            CredentialKind::Enroll { image } => Caller::Enroll { image },
            CredentialKind::Instance { id } => {
                let image = self.store.instance(&id)?.image;
                Caller::Instance { id: parse_id(&id)?, image }
            }
        }))
    }

    /// Makes a machine an instance. The caller has checked that it may enrol for that image.
    ///
    /// A crash leaves nothing, or an instance that nobody can act as.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such image, `Conflict` if no version of it has that tree, `Refused`
    /// if its name or the one that the cloud has for it is none; `NoSpace`, `Io`.
    pub fn enroll(&self, request: &EnrollRequest) -> Result<EnrollReply, RepoError> {
        check_name(&request.name)?;
        check_cloud_id(request.cloud_id.as_deref())?;
        let version = self.version_by_tree(&request.image, request.tree)?;
        let id = InstanceId::from_bytes(random()?);
        let secret = random_secret()?;
        let now = self.now();
        self.store.put_instance(&InstanceRecord {
            id: id.to_string(),
            name: request.name.clone(),
            image: request.image.clone(),
            tree: request.tree,
            enrolled: now,
            last_seen: now,
            last_outcome: None,
            cloud_id: request.cloud_id.clone(),
        })?;
        let kind = CredentialKind::Instance { id: id.to_string() };
        self.store.add_credential(secret.digest(), &CredentialRecord { kind, created: now })?;
        self.tell(&Event::Enrolled {
            instance: id.clone(),
            name: request.name.clone(),
            image: request.image.clone(),
        });
        Ok(EnrollReply {
            instance: id,
            secret,
            ca: self.ca_pem().to_owned(),
            trusted: self.store.trusted(&request.image)?.iter().collect(),
            image: request.image.clone(),
            version: VersionRef { number: version.number, tree: version.tree },
            ignore: version.ignore,
        })
    }

    /// What comes after the version `have` for an instance; notes that it was seen.
    ///
    /// # Errors
    ///
    /// `NotFound` if the instance is unknown, `Conflict` if `have` is no version of its image;
    /// `Io`, `Corrupt`.
    pub fn next(&self, id: &InstanceId, have: Digest) -> Result<Next, RepoError> {
        let record = self.store.instance(id.as_str())?;
        let image = record.image.clone();
        let version = self.version_by_tree(&image, have)?;
        self.note_seen(record, have, None)?;
        let versions = self.versions(&image)?;
        let at = usize::try_from(version.number).unwrap_or(usize::MAX);
        let Some(after) = versions.get(at) else {
            let version = VersionRef { number: version.number, tree: version.tree };
            return Ok(Next::UpToDate { version });
        };
        let bundle = after.bundle.ok_or_else(|| {
            RepoError::internal(format!("{image}@{} has no bundle", after.number))
        })?;
        Ok(Next::Update {
            bundle,
            version: after.number,
            base: version.tree,
            target: after.tree,
            file_len: after.wire_bytes,
        })
    }

    /// Keeps what an instance reports.
    ///
    /// # Errors
    ///
    /// `NotFound` if the instance is unknown, `Refused` if the outcome is no word; `NoSpace`, `Io`.
    pub fn receipt(&self, id: &InstanceId, post: ReceiptPost) -> Result<(), RepoError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b' ' | b',');
        if post.outcome.is_empty()
            || post.outcome.len() > MAX_OUTCOME_LEN
            || !post.outcome.bytes().all(word)
        {
            let what = "the receipt's outcome is not one short word".to_owned();
            return Err(Detail::Refused { what }.into());
        }
        let record = self.store.instance(id.as_str())?;
        let received = self.now();
        let (tree, outcome) = (post.tree, post.outcome.clone());
        let receipt =
            ReceiptRecord { tree, outcome: post.outcome, received, receipt: post.receipt };
        self.store.add_receipt(id.as_str(), &receipt)?;
        self.note_seen(record, tree, Some(outcome.clone()))?;
        self.tell(&Event::Receipt { instance: id.clone(), tree, outcome });
        Ok(())
    }

    /// The last receipt of an instance.
    ///
    /// # Errors
    ///
    /// `NotFound` if the instance is unknown or has sent none; `Io`, `Corrupt`.
    pub fn last_receipt(&self, id: &InstanceId) -> Result<ReceiptPost, RepoError> {
        self.store.instance(id.as_str())?;
        let Some(record) = self.store.last_receipt(id.as_str())? else {
            let what = format!("instance {id} has sent no receipt yet");
            return Err(Detail::NotFound { what }.into());
        };
        Ok(ReceiptPost { tree: record.tree, outcome: record.outcome, receipt: record.receipt })
    }

    /// All instances, in order of their names, then identities.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`.
    pub fn instances(&self) -> Result<Vec<InstanceEntry>, RepoError> {
        let mut entries = Vec::new();
        for record in self.store.instances()? {
            let version = self.version_by_tree(&record.image, record.tree).ok();
            entries.push(InstanceEntry {
                id: parse_id(&record.id)?,
                name: record.name,
                image: record.image,
                version: version.map(|version| version.number),
                tree: record.tree,
                enrolled: record.enrolled,
                last_seen: record.last_seen,
                last_outcome: record.last_outcome,
                cloud_id: record.cloud_id,
            });
        }
        entries.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(entries)
    }

    /// Whether a bundle made a version of this image.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such image; `Io`, `Corrupt`.
    pub fn has_bundle(&self, image: &ImageName, bundle: Digest) -> Result<bool, RepoError> {
        Ok(self.versions(image)?.iter().any(|version| version.bundle == Some(bundle)))
    }

    /// Where a stored bundle is, and its length in bytes.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such bundle; `Io`.
    pub fn bundle(&self, bundle: Digest) -> Result<(std::path::PathBuf, u64), RepoError> {
        let len = self.store.bundle_len(bundle)?;
        Ok((self.store.bundle_path(bundle), len))
    }

    /// The newest version with this tree: a tree can come back.
    fn version_by_tree(&self, image: &ImageName, tree: Digest) -> Result<VersionRecord, RepoError> {
        let versions = self.versions(image)?;
        let found = versions.iter().rev().find(|version| version.tree == tree).cloned();
        found.ok_or_else(|| Detail::NoSuchTree { image: image.clone(), tree }.into())
    }

    fn note_seen(
        &self,
        before: InstanceRecord,
        tree: Digest,
        outcome: Option<String>,
    ) -> Result<(), RepoError> {
        let now = self.now();
        let age = now.duration_since(before.last_seen).unsigned_abs();
        if before.tree == tree && outcome.is_none() && age < SEEN_INTERVAL {
            return Ok(());
        }
        let last_outcome = outcome.or(before.last_outcome);
        Ok(self.store.put_instance(&InstanceRecord {
            tree,
            last_seen: now,
            last_outcome,
            ..before
        })?)
    }
}

fn parse_id(text: &str) -> Result<InstanceId, RepoError> {
    text.parse().map_err(|_| RepoError::internal(format!("{text:?} is no instance's identity")))
}

fn check_name(name: &str) -> Result<(), RepoError> {
    let good = !name.is_empty()
        && name.len() <= MAX_INSTANCE_NAME_LEN
        && !name.chars().any(char::is_control);
    if good {
        return Ok(());
    }
    let what = format!(
        "a machine's name has 1 to {MAX_INSTANCE_NAME_LEN} bytes without control characters"
    );
    Err(Detail::Refused { what }.into())
}

fn check_cloud_id(cloud_id: Option<&str>) -> Result<(), RepoError> {
    let Some(id) = cloud_id else { return Ok(()) };
    let good = !id.is_empty()
        && id.len() <= MAX_CLOUD_ID_LEN
        && id.bytes().all(|byte| byte.is_ascii_graphic());
    if good {
        return Ok(());
    }
    let what = format!(
        "a machine's identity in the cloud has 1 to {MAX_CLOUD_ID_LEN} printable ASCII characters without blanks"
    );
    Err(Detail::Refused { what }.into())
}
