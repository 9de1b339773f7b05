//! The cloud, as far as a repository needs it: where machines are launched from, and which run.
//!
//! [`Cloud`] is the port. [`Local`] is a directory of disk images on a host of virtual machines;
//! [`testing::FakeCloud`] remembers in memory. [`testing::check_cloud`] is the contract.
//!
//! # Not here
//!
//! Any provider's interface (EC2's is in `vireo-ec2`); launching and stopping machines; who decides what is published when.

pub mod blocks;
mod error;
mod local;
pub mod testing;

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vireo_model::{Digest, ImageName};

pub use error::{CloudError, ErrorKind};
pub use local::Local;

/// Where a version of an image can be launched from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launchable {
    /// The image.
    pub image: ImageName,
    /// The version's number.
    pub version: u64,
    /// Digest of the version's tree.
    pub tree: Digest,
    /// How the cloud calls it: a path, an image's identity.
    pub address: String,
}

/// A version to be published.
#[derive(Clone, Copy, Debug)]
pub struct Publication<'a> {
    /// The image.
    pub image: &'a ImageName,
    /// The version's number.
    pub version: u64,
    /// Digest of the version's tree.
    pub tree: Digest,
    /// Its raw disk image, which nobody writes into, now or later.
    pub disk: &'a Path,
    /// Versions before it whose disk images are here too, latest first. A cloud that already has one
    /// of them need only be sent what differs ([`blocks::changed`]).
    pub earlier: &'a [Earlier],
}

/// A version that was published before, perhaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// The version's number.
    pub version: u64,
    /// Digest of the version's tree.
    pub tree: Digest,
    /// Its raw disk image.
    pub disk: PathBuf,
}

/// A running machine, as the cloud knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// How the cloud calls it.
    pub name: String,
    /// The image that it was launched from.
    pub image: ImageName,
    /// The version that it was launched from, if the cloud knows.
    pub version: Option<u64>,
    /// Where it can be reached, if the cloud knows.
    pub address: Option<String>,
}

/// A place where images are launched.
pub trait Cloud: Debug + Send + Sync {
    /// Whether versions of `image` are to be published here at all.
    fn takes(&self, image: &ImageName) -> bool {
        let _ = image;
        true
    }

    /// Whether publishing takes so long that whoever pushed a version should not wait for it.
    fn is_slow(&self) -> bool {
        false
    }

    /// Makes new machines of the image start from this version: takes a copy of its raw disk image,
    /// then makes the copy the current one. Publishing what is current changes nothing; publishing an
    /// earlier version again makes that one current.
    ///
    /// A crash leaves the version before or this one current, and perhaps an unfinished copy that
    /// the next call completes or writes anew.
    ///
    /// # Errors
    ///
    /// `NoSpace`, `Io`; of a provider also `Unavailable`, `Denied`, `Refused`.
    fn publish(&self, publication: &Publication<'_>) -> Result<Launchable, CloudError>;

    /// Does what follows from the version that is current and was not done when it became so, as the
    /// process ended or lacked a right. Changes neither what is current nor what people chose since; does
    /// nothing if nothing was published.
    ///
    /// A crash leaves some of it done; the next call does the rest.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    fn settle(&self, image: &ImageName) -> Result<(), CloudError> {
        let _ = image;
        Ok(())
    }

    /// What new machines of `image` start from; `None` if nothing was published.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`; of a provider also `Unavailable`, `Denied`, `Refused`.
    fn current(&self, image: &ImageName) -> Result<Option<Launchable>, CloudError>;

    /// The machines of `image` that run, in order of their names.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`; of a provider also `Unavailable`, `Denied`, `Refused`.
    fn machines(&self, image: &ImageName) -> Result<Vec<Machine>, CloudError>;
}
