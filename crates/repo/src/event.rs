//! What a repository tells whoever watches it.

use std::fmt;

use serde::Serialize;
use vireo_model::{Digest, ImageName};
use vireo_wire::api::InstanceId;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// An image has a new version.
    Published {
        /// The image.
        image: ImageName,
        /// The version's number.
        version: u64,
        /// Digest of its tree.
        tree: Digest,
        /// Bytes of its bundle; for a base, of the upload.
        wire_bytes: u64,
    },
    /// The current version of an image can be launched in the cloud.
    Launchable {
        /// The image.
        image: ImageName,
        /// The version's number.
        version: u64,
        /// Where.
        address: String,
    },
    /// A machine became an instance.
    Enrolled {
        /// Its identity.
        instance: InstanceId,
        /// What it calls itself.
        name: String,
        /// Its image.
        image: ImageName,
    },
    /// An instance reported.
    Receipt {
        /// Its identity.
        instance: InstanceId,
        /// Digest of the version it is on.
        tree: Digest,
        /// One word.
        outcome: String,
    },
    /// Something failed at the repository's side.
    Failed {
        /// What was asked for.
        request: String,
        /// The error with its causes.
        error: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Published { image, version, tree, wire_bytes } => {
                write!(
                    f,
                    "published {image}@{version}, tree {}, {wire_bytes} bytes by wire",
                    tree.short()
                )
            }
            Self::Launchable { image, version, address } => {
                write!(f, "new machines of {image} start from version {version}, {address}")
            }
            Self::Enrolled { instance, name, image } => {
                write!(f, "enrolled {name:?} as {instance}, image {image}")
            }
            Self::Receipt { instance, tree, outcome } => {
                write!(f, "{instance} reports {outcome:?}, tree {}", tree.short())
            }
            Self::Failed { request, error } => write!(f, "failed: {request}: {error}"),
        }
    }
}
