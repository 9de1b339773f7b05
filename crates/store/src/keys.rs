//! Who is trusted: signers by their public keys, callers by digests of their secrets.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vireo_delta::{PublicKey, TrustedKeys};
use vireo_model::{Digest, ImageName};

use crate::error::{Detail, StoreError};
use crate::{Store, names_in, read_record};

/// A trusted signer: `trusted/<key>.json`.
#[derive(Debug, Serialize, Deserialize)]
struct TrustedRecord {
    key: PublicKey,
    added: Timestamp,
}

/// What the holder of a secret may do: `tokens/<digest of secret>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialRecord {
    /// What its holder may do.
    #[serde(flatten)]
    pub kind: CredentialKind,
    /// When it was made.
    pub created: Timestamp,
}

/// Kinds of credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum CredentialKind {
    /// Everything.
    Admin,
    /// Enrol machines.
    Enroll {
        /// As instances of this image alone; none means any.
        image: Option<ImageName>,
    },
    /// Act as one instance.
    Instance {
        /// Its identity.
        id: String,
    },
}

impl Store {
    /// Trusts a signer, for one image or for all. Trusting it again changes nothing.
    ///
    /// A crash leaves it trusted or not.
    ///
    /// # Errors
    ///
    /// `NoSpace`, `Io`.
    pub fn trust(
        &self,
        key: PublicKey,
        image: Option<&ImageName>,
        added: Timestamp,
    ) -> Result<(), StoreError> {
        if let Some(image) = image {
            self.make_dir(&self.image_dir(image))?;
        }
        let directory = self.trusted_dir(image);
        self.make_dir(&directory)?;
        let text = key.to_string();
        let name = text.rsplit(':').next().unwrap_or(&text);
        self.write_record(&directory.join(format!("{name}.json")), &TrustedRecord { key, added })
    }

    /// The signers that an image trusts: its own and the repository's.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`.
    pub fn trusted(&self, image: &ImageName) -> Result<TrustedKeys, StoreError> {
        let mut keys = keys_in(&self.trusted_dir(None))?;
        keys.extend(keys_in(&self.trusted_dir(Some(image)))?);
        Ok(keys.into_iter().collect())
    }

    /// Lets the holder of the secret with this digest do what `record` says.
    ///
    /// A crash leaves it or not.
    ///
    /// # Errors
    ///
    /// `NoSpace`, `Io`.
    pub fn add_credential(
        &self,
        secret: Digest,
        record: &CredentialRecord,
    ) -> Result<(), StoreError> {
        self.write_record(&self.credential_path(secret), record)
    }

    /// What the holder of the secret with this digest may do; `None` if there is no such secret.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`.
    pub fn credential(&self, secret: Digest) -> Result<Option<CredentialRecord>, StoreError> {
        read_record(&self.credential_path(secret))
    }

    fn credential_path(&self, secret: Digest) -> PathBuf {
        self.root.join("tokens").join(format!("{secret}.json"))
    }

    pub(crate) fn trusted_dir(&self, image: Option<&ImageName>) -> PathBuf {
        image.map_or_else(|| self.root.clone(), |name| self.image_dir(name)).join("trusted")
    }
}

fn keys_in(directory: &Path) -> Result<Vec<PublicKey>, StoreError> {
    let mut keys = Vec::new();
    for name in names_in(directory)?.iter().filter(|name| name.ends_with(".json")) {
        let path = directory.join(name);
        let Some(record) = read_record::<TrustedRecord>(&path)? else { continue };
        if !record.key.to_string().ends_with(name.trim_end_matches(".json")) {
            let what = format!("it has the key {}", record.key);
            return Err(Detail::Contradiction { path, what }.into());
        }
        keys.push(record.key);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Durable;

    #[test]
    fn an_image_trusts_its_own_signers_and_the_repositorys() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store =
            Store::init(dir.path(), Timestamp::UNIX_EPOCH, Arc::new(Durable)).expect("made");
        let [web, db] = ["web", "db"].map(|name| name.parse::<ImageName>().expect("a name"));
        let [one, two] = ["11", "22"].map(|byte| {
            format!("vireo-key-v1:{}", byte.repeat(32)).parse::<PublicKey>().expect("a key")
        });
        store.trust(one, None, Timestamp::UNIX_EPOCH).expect("trusted");
        store.trust(two, Some(&web), Timestamp::UNIX_EPOCH).expect("trusted");
        store.trust(two, Some(&web), Timestamp::UNIX_EPOCH).expect("trusted twice is trusted once");
        let keys = |image| store.trusted(image).expect("readable").iter().collect::<Vec<_>>();
        assert_eq!(keys(&web), [one, two]);
        assert_eq!(keys(&db), [one]);
    }

    #[test]
    fn credentials_are_found_by_digest_and_keep_their_kind() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store =
            Store::init(dir.path(), Timestamp::UNIX_EPOCH, Arc::new(Durable)).expect("made");
        let secret = Digest::of(b"secret");
        assert_eq!(store.credential(secret).expect("readable"), None);
        for kind in [
            CredentialKind::Admin,
            CredentialKind::Enroll { image: None },
            CredentialKind::Enroll { image: Some("web".parse().expect("a name")) },
            CredentialKind::Instance { id: "i-1".into() },
        ] {
            let record = CredentialRecord { kind, created: Timestamp::UNIX_EPOCH };
            store.add_credential(secret, &record).expect("added");
            assert_eq!(store.credential(secret).expect("readable"), Some(record));
        }
    }
}
