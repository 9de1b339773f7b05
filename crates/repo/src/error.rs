//! The crate's one error.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vireo_delta::DeltaError;
use vireo_image::ImageError;
use vireo_model::{Digest, ImageName};
use vireo_store::StoreError;
use vireo_wire::api::Conflict;

/// Why the repository could not do something.
///
/// Branch on [`kind`](Self::kind); print the value itself and its sources.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RepoError(#[from] pub(crate) Detail);

/// What a caller can do about a [`RepoError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// Reading, writing or the network failed; the source says why.
    Io,
    /// The file system is full: make room, nothing was lost.
    NoSpace,
    /// Images can only be built by root: start it as root.
    NoRoot,
    /// There is no such thing.
    NotFound,
    /// There is something else: look, then decide.
    Conflict,
    /// Another is at it: try again later.
    Busy,
    /// Frames are missing: send them first.
    Incomplete,
    /// What was given cannot be used; nothing changed.
    Refused,
    /// Nobody trusted signed it: trust the signer, or find out who it is.
    Untrusted,
    /// What is stored is damaged: run fsck.
    Corrupt,
    /// A newer Vireo wrote it: upgrade this one.
    Unsupported,
}

/// Private, so that adding context is never a breaking change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Detail {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot {step} {path}", path = path.display())]
    Io {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the bundle for image {image}")]
    Bundle {
        image: ImageName,
        #[source]
        source: DeltaError,
    },
    #[error(
        "cannot use the bundle for image {image}: its signer is not trusted; if it should be, run `vireo-repo trust --image {image} KEY` on the repository's host"
    )]
    Untrusted {
        image: ImageName,
        #[source]
        source: DeltaError,
    },
    #[error(
        "the bundle is for version {} of image {image}, whose newest version is {} ({number}); capture the change again, against {image}@{number}",
        bundle_base.short(), newest.short()
    )]
    WrongBase { image: ImageName, bundle_base: Digest, newest: Digest, number: u64 },
    #[error(
        "the bundle for image {image} names the tree {claimed} and makes {found}; capture it again"
    )]
    Target { image: ImageName, claimed: Digest, found: Digest },
    #[error("there is an image {image} already; push a bundle to it, or take another name")]
    ImageExists { image: ImageName },
    #[error("image {image} is being made by somebody else; try again later")]
    ImageBusy { image: ImageName },
    #[error("cannot {step} {path}", path = path.display())]
    Image {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: ImageError,
    },
    #[error("{message}")]
    Worker { kind: ErrorKind, message: String },
    #[error("cannot use the disk image that was sent")]
    Upload {
        #[source]
        source: io::Error,
    },
    #[error("cannot use the ignore list")]
    Ignore {
        #[source]
        source: vireo_model::IgnoreError,
    },
    #[error("the listing of tree {tree} cannot be read; run `vireo-repo fsck`")]
    Listing {
        tree: Digest,
        #[source]
        source: vireo_wire::tree_text::TreeTextError,
    },
    #[error(
        "{tree} is no version of image {image}; if the machine was changed by hand, name the version it was launched from"
    )]
    NoSuchTree { image: ImageName, tree: Digest },
    #[error("{what}")]
    Refused { what: String },
    #[error("{what}")]
    NotFound { what: String },
    #[error("cannot {step}")]
    Tls {
        step: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("{path} is damaged; restore it from a backup", path = path.display())]
    Record {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "cannot publish image {image} to the cloud; it is tried again at the next start or push"
    )]
    Cloud {
        image: ImageName,
        #[source]
        source: vireo_cloud::CloudError,
    },
    #[error("cannot get random bytes: {why}")]
    Random { why: String },
    #[error("the repository failed at its own work: {what}")]
    Internal { what: String },
}

impl RepoError {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match &self.0 {
            Detail::Store(error) => store_kind(error),
            Detail::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorKind::NoSpace
            }
            Detail::Io { .. }
            | Detail::Tls { .. }
            | Detail::Random { .. }
            | Detail::Internal { .. } => ErrorKind::Io,
            Detail::Upload { source } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorKind::NoSpace
            }
            Detail::Bundle { source, .. }
                if source.kind() == vireo_delta::ErrorKind::Unsupported =>
            {
                ErrorKind::Unsupported
            }
            Detail::Bundle { .. }
            | Detail::Target { .. }
            | Detail::Upload { .. }
            | Detail::Ignore { .. }
            | Detail::Refused { .. } => ErrorKind::Refused,
            Detail::Untrusted { .. } => ErrorKind::Untrusted,
            Detail::WrongBase { .. } | Detail::ImageExists { .. } | Detail::NoSuchTree { .. } => {
                ErrorKind::Conflict
            }
            Detail::ImageBusy { .. } => ErrorKind::Busy,
            Detail::Image { source, .. } => image_kind(source),
            Detail::Worker { kind, .. } => *kind,
            Detail::Listing { .. } | Detail::Record { .. } => ErrorKind::Corrupt,
            Detail::NotFound { .. } => ErrorKind::NotFound,
            Detail::Cloud { source, .. } => match source.kind() {
                vireo_cloud::ErrorKind::NoSpace => ErrorKind::NoSpace,
                _ => ErrorKind::Io,
            },
        }
    }

    /// For a push onto another version than the newest: both, for programs.
    #[must_use]
    pub fn conflict(&self) -> Option<Conflict> {
        match &self.0 {
            Detail::WrongBase { bundle_base, newest, number, .. } => Some(Conflict {
                bundle_base: *bundle_base,
                newest: *newest,
                newest_number: *number,
            }),
            _ => None,
        }
    }

    /// The error and its causes, joined by `: `; for messages that travel.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Detail::Internal { what: what.into() }.into()
    }
}

impl From<StoreError> for RepoError {
    fn from(error: StoreError) -> Self {
        Detail::Store(error).into()
    }
}

fn store_kind(error: &StoreError) -> ErrorKind {
    use vireo_store::ErrorKind as Store;
    match error.kind() {
        Store::NoSpace => ErrorKind::NoSpace,
        Store::NotFound => ErrorKind::NotFound,
        Store::Conflict => ErrorKind::Conflict,
        Store::Busy => ErrorKind::Busy,
        Store::Incomplete => ErrorKind::Incomplete,
        Store::Refused => ErrorKind::Refused,
        Store::Corrupt => ErrorKind::Corrupt,
        Store::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    }
}

fn image_kind(error: &ImageError) -> ErrorKind {
    use vireo_image::ErrorKind as Image;
    match error.kind() {
        Image::NoSpace => ErrorKind::NoSpace,
        Image::NoRoot => ErrorKind::NoRoot,
        Image::Busy => ErrorKind::Busy,
        Image::NotAnImage
        | Image::UnknownPartition
        | Image::Unclean
        | Image::Unsupported
        | Image::Mismatch
        | Image::WrongBase
        | Image::Forbidden
        | Image::Damaged => ErrorKind::Refused,
        _ => ErrorKind::Io,
    }
}

pub(crate) fn io_error(step: &'static str, path: &Path) -> impl Fn(io::Error) -> RepoError {
    move |source| Detail::Io { step, path: path.to_owned(), source }.into()
}

pub(crate) fn tls_error<E>(step: &'static str) -> impl Fn(E) -> RepoError
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    move |source| Detail::Tls { step, source: source.into() }.into()
}
