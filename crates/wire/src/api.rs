//! The messages of the interface, version 1. All are JSON; paths are below `/v1`.
//!
//! A server refuses requests with unknown fields, so that a misspelt wish is not ignored. A client
//! ignores unknown fields of replies, so that a server may say more than before.
//!
//! | request | who | body → reply |
//! |---|---|---|
//! | `GET /ca` | anybody | → CA certificate, PEM |
//! | `GET /images` | admin | → [`ImageList`] |
//! | `POST /images/{name}` | admin | zstd stream of the raw image, header `vireo-options`: [`CreateImage`] → [`VersionEntry`] |
//! | `GET /images/{name}` | all | → [`ImageLog`] |
//! | `GET /images/{name}/versions/{n}/tree` | all | → [`tree_text`](crate::tree_text) |
//! | `GET /images/{name}/versions/{n}/disk` | admin | → zstd stream of the raw image, header `vireo-image-bytes` |
//! | `POST /images/{name}/versions/{n}/verify` | admin | → [`VerifyReply`] |
//! | `POST /frames/missing` | admin | [`FramesQuery`] → [`FramesReply`] |
//! | `PUT /incoming/{bundle}/frames/{digest}` | admin | the frame's bytes → 204 |
//! | `POST /images/{name}/versions` | admin | the bundle's head, header `vireo-options`: [`PushOptions`] → [`PushReply`] |
//! | `POST /enroll` | enroll | [`EnrollRequest`] → [`EnrollReply`] |
//! | `GET /instances/{id}/next?have=..&wait=..` | that instance | → [`Next`] |
//! | `GET /bundles/{digest}` | admin, instances of that image | → the file; `Range: bytes=N-` |
//! | `POST /instances/{id}/receipts` | that instance | [`ReceiptPost`] → 204 |
//! | `GET /instances` | admin | → [`InstanceList`] |
//! | `GET /instances/{id}/receipts/last` | admin, that instance | → [`ReceiptPost`] |
//!
//! "All" are admins, enrolment tokens and instances; the latter two only for their own image.
//! The credential is `Authorization: Bearer <64 hex digits>`. A failed request is answered by an
//! [`ErrorReply`] with a fitting status.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vireo_delta::PublicKey;
use vireo_model::{Digest, Grow, ImageName};

use crate::error::ErrorKind;
use crate::token::Secret;

/// Header that carries a [`CreateImage`] or [`PushOptions`] as JSON; without it all is as by default.
pub const OPTIONS_HEADER: &str = "vireo-options";

/// Header of a disk download: the raw image's length in bytes, as decimal digits.
pub const IMAGE_BYTES_HEADER: &str = "vireo-image-bytes";

/// Body of every failed reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What the caller can do.
    pub kind: ErrorKind,
    /// What failed, why, and what to do, for people.
    pub message: String,
    /// For a push onto another version than the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<Conflict>,
}

/// Two versions that should have been one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Digest of the tree that the bundle was made for.
    pub bundle_base: Digest,
    /// Digest of the image's newest version.
    pub newest: Digest,
    /// Number of the image's newest version.
    pub newest_number: u64,
}

/// All images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageList {
    /// In order of their names.
    pub images: Vec<ImageSummary>,
}

/// One image and its newest version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// Its name.
    pub name: ImageName,
    /// Its newest version.
    pub newest: VersionEntry,
}

/// One image's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLog {
    /// Its name.
    pub name: ImageName,
    /// Patterns of the newest version's ignore list; digests are meant with it.
    pub ignore: Vec<String>,
    /// Keys whose bundles it accepts.
    pub trusted: Vec<PublicKey>,
    /// All versions, the first one first; never empty.
    pub versions: Vec<VersionEntry>,
}

impl ImageLog {
    /// The newest version.
    #[must_use]
    pub fn newest(&self) -> Option<&VersionEntry> {
        self.versions.last()
    }

    /// The newest version whose tree has this digest.
    #[must_use]
    pub fn by_tree(&self, tree: Digest) -> Option<&VersionEntry> {
        self.versions.iter().rev().find(|version| version.tree == tree)
    }
}

/// One version of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionEntry {
    /// 1 for the base that the image was created from, then counting.
    pub number: u64,
    /// Digest of its tree.
    pub tree: Digest,
    /// The bundle that made it; none for a base.
    pub bundle: Option<Digest>,
    /// Who signed that bundle; none for a base.
    pub signer: Option<PublicKey>,
    /// When it was published.
    pub created: Timestamp,
    /// Bytes of the bundle; for a base, of the compressed upload (0 if it did not come by wire).
    pub wire_bytes: u64,
    /// Bytes of the disk image, holes included.
    pub image_bytes: u64,
}

/// How to create an image; in the header [`OPTIONS_HEADER`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CreateImage {
    /// Patterns of the site, added to the default ignore list.
    pub ignore: Vec<String>,
    /// Keys whose bundles this image accepts, besides the repository's own.
    pub trusted: Vec<PublicKey>,
    /// Number of the partition with its root file system, if it cannot be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_partition: Option<u32>,
    /// Whether its file systems are repaired if they are damaged or were not unmounted cleanly; refused
    /// otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub repair: bool,
}

/// How to make a version; in the header [`OPTIONS_HEADER`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PushOptions {
    /// Whether the image is made larger for an update that does not fit.
    pub grow: Grow,
}

/// What reading a stored image again found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReply {
    /// The version's number.
    pub number: u64,
    /// Digest that the version is published under.
    pub expected: Digest,
    /// Digest of what is in the stored image.
    pub found: Digest,
    /// Paths that differ, printable; at most [`VerifyReply::MAX_DIFFERING`].
    pub differing: Vec<String>,
}

impl VerifyReply {
    /// Most differing paths that are listed.
    pub const MAX_DIFFERING: usize = 1000;

    /// Whether the stored image is what it should be.
    #[must_use]
    pub fn matches(&self) -> bool {
        self.expected == self.found
    }
}

/// Asks which frames of a bundle are to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FramesQuery {
    /// The bundle that is to be pushed.
    pub bundle: Digest,
    /// Its frames; at most [`MAX_FRAMES_ASKED`](crate::limits::MAX_FRAMES_ASKED).
    pub frames: Vec<Digest>,
}

/// The frames that the repository lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FramesReply {
    /// In the order of the question.
    pub missing: Vec<Digest>,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushReply {
    /// The image.
    pub image: ImageName,
    /// The version that the bundle made.
    pub version: VersionEntry,
    /// It was the newest version already; nothing was done.
    pub already: bool,
    /// Steps of the build with their milliseconds, in order; empty if nothing was built.
    pub steps: Vec<BuildStep>,
}

/// One step of building an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildStep {
    /// Its name: `clone`, `apply`, ...
    pub name: String,
    /// How long it took.
    pub millis: u64,
}

/// A machine asks to become an instance. The credential is an enrolment token's secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// What the machine calls itself, for people; its host name.
    pub name: String,
    /// The image that it was launched from.
    pub image: ImageName,
    /// Digest of the version that it stands on; ask for the [`ImageLog`] first: its ignore list is
    /// part of what a digest means.
    pub tree: Digest,
    /// How the cloud calls the machine, if it runs in one and knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_id: Option<String>,
}

/// A machine has become an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollReply {
    /// Its identity.
    pub instance: InstanceId,
    /// Its credential from now on; the server does not keep it.
    pub secret: Secret,
    /// The repository's CA certificate, PEM, for [`Client::with_ca`](crate::Client::with_ca).
    pub ca: String,
    /// Keys whose bundles the instance is to accept.
    pub trusted: Vec<PublicKey>,
    /// Its image.
    pub image: ImageName,
    /// The version that it stands on: the newest with the digest it gave.
    pub version: VersionRef,
    /// Patterns of that version's ignore list, defaults included.
    pub ignore: Vec<String>,
}

/// A version by number and digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRef {
    /// Its number.
    pub number: u64,
    /// Digest of its tree.
    pub tree: Digest,
}

/// What an instance is to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "next", rename_all = "snake_case")]
pub enum Next {
    /// Nothing: it has the newest version.
    UpToDate {
        /// That version.
        version: VersionRef,
    },
    /// Fetch a bundle and apply it. It leads to the version after the one it has, which need not
    /// be the newest: ask again afterwards.
    Update {
        /// The bundle's name.
        bundle: Digest,
        /// Number of the version that it makes.
        version: u64,
        /// Digest of the tree that it is for.
        base: Digest,
        /// Digest of the tree that it makes.
        target: Digest,
        /// The bundle file's length in bytes.
        file_len: u64,
    },
}

/// An instance reports what an update did to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptPost {
    /// Digest of the version that it is on now.
    pub tree: Digest,
    /// One word: `done`, `undone`, `refused`, ...
    pub outcome: String,
    /// The receipt (`vireo.receipt/1`), kept as it is.
    pub receipt: serde_json::Value,
}

/// The fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceList {
    /// In order of their names, then identities.
    pub instances: Vec<InstanceEntry>,
}

/// One instance, as far as the repository knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceEntry {
    /// Its identity.
    pub id: InstanceId,
    /// What it calls itself.
    pub name: String,
    /// Its image.
    pub image: ImageName,
    /// The version it said it is on; none if that is no version of its image.
    pub version: Option<u64>,
    /// Digest of the tree it said it is on.
    pub tree: Digest,
    /// When it was enrolled.
    pub enrolled: Timestamp,
    /// When it last asked or reported; written down at most once a minute.
    pub last_seen: Timestamp,
    /// Outcome of its last receipt.
    pub last_outcome: Option<String>,
    /// How the cloud calls its machine, if it said so when it was enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_id: Option<String>,
}

/// An instance's identity: `i-` and 16 hexadecimal digits; one safe file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct InstanceId(String);

/// A text is no [`InstanceId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an instance's identity is i- and 16 hexadecimal digits")]
pub struct InstanceIdError;

impl InstanceId {
    /// The identity with these bytes; they should be random.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(format!("i-{:016x}", u64::from_be_bytes(bytes)))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceId {
    type Err = InstanceIdError;

    fn from_str(text: &str) -> Result<Self, InstanceIdError> {
        let digits = text.strip_prefix("i-").ok_or(InstanceIdError)?;
        let plain = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let good = digits.len() == 16 && digits.bytes().all(plain);
        if good { Ok(Self(text.to_owned())) } else { Err(InstanceIdError) }
    }
}

impl TryFrom<String> for InstanceId {
    type Error = InstanceIdError;

    fn try_from(text: String) -> Result<Self, InstanceIdError> {
        text.parse()
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_identity_is_one_safe_file_name() {
        let id = InstanceId::from_bytes([0, 1, 2, 3, 4, 5, 6, 0xff]);
        assert_eq!(id.as_str(), "i-00010203040506ff");
        assert_eq!(id.as_str().parse(), Ok(id));
        for text in ["", "i-", "i-../../../../etc/", "i-00010203040506FF", "x-00010203040506ff"] {
            assert!(text.parse::<InstanceId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_server_refuses_unknown_fields_and_a_client_does_not() {
        let digest = Digest::of(b"x");
        let query = format!(r#"{{"bundle":"{digest}","frames":[],"x":1}}"#);
        assert!(serde_json::from_str::<FramesQuery>(&query).is_err());
        let reply: FramesReply =
            serde_json::from_str(r#"{"missing":[],"more":1}"#).expect("unknown fields are ignored");
        assert!(reply.missing.is_empty());
    }

    #[test]
    fn a_machine_that_knows_no_cloud_enrols_in_the_same_words_as_before() {
        let tree = Digest::of(b"x");
        let json = format!(r#"{{"name":"web-1","image":"web","tree":"{tree}"}}"#);
        let request: EnrollRequest = serde_json::from_str(&json).expect("as before");
        assert_eq!(request.cloud_id, None);
        assert_eq!(serde_json::to_string(&request).expect("it is plain data"), json);
        let known = EnrollRequest { cloud_id: Some("i-0a".into()), ..request };
        let json = serde_json::to_string(&known).expect("it is plain data");
        assert!(json.ends_with(r#","cloud_id":"i-0a"}"#), "{json}");
        assert_eq!(serde_json::from_str::<EnrollRequest>(&json).expect("read back"), known);
    }

    #[test]
    fn what_comes_next_has_a_stable_spelling() {
        let tree = Digest::of(b"x");
        let next = Next::UpToDate { version: VersionRef { number: 3, tree } };
        assert_eq!(
            serde_json::to_string(&next).expect("it is plain data"),
            format!(r#"{{"next":"up_to_date","version":{{"number":3,"tree":"{tree}"}}}}"#)
        );
    }
}
