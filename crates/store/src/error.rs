//! The crate's one error.

use std::io;
use std::path::{Path, PathBuf};

use vireo_model::{Digest, ImageName};

/// Why the store could not do something.
///
/// Branch on [`kind`](Self::kind); print the value itself and its sources.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StoreError(#[from] pub(crate) Detail);

/// What a caller can do about a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Reading or writing failed; the source says why.
    Io,
    /// The file system is full: make room, nothing was lost.
    NoSpace,
    /// There is no such thing.
    NotFound,
    /// There is something else already.
    Conflict,
    /// Another process is at it: try again later.
    Busy,
    /// Frames are missing: send them first.
    Incomplete,
    /// What was given is not what it claims to be: it was refused, nothing changed.
    Refused,
    /// What is stored is damaged: run fsck.
    Corrupt,
    /// A newer Vireo wrote it: upgrade this one.
    Unsupported,
}

/// Private, so that adding context is never a breaking change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Detail {
    #[error("cannot {step} {path}", path = path.display())]
    Io {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not empty; name a directory that is empty or absent", path = path.display())]
    NotEmpty { path: PathBuf },
    #[error("{path} is no repository: it has no vireo-repo.json; make one with `vireo-repo init`", path = path.display())]
    NoRepository { path: PathBuf },
    #[error("{path} asks for {missing:?}, which this version of Vireo does not know; upgrade it", path = path.display())]
    Unsupported { path: PathBuf, missing: String },
    #[error("{path} is damaged; run `vireo-repo fsck`", path = path.display())]
    Record {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} has {len} bytes, more than it can have; run `vireo-repo fsck`", path = path.display())]
    TooLong { path: PathBuf, len: u64 },
    #[error("{path} contradicts its name: {what}; run `vireo-repo fsck`", path = path.display())]
    Contradiction { path: PathBuf, what: String },
    #[error("{path} is locked by another process; try again later", path = path.display())]
    Busy { path: PathBuf },
    #[error("there is no image {name}; `vireo image create` makes one")]
    NoImage { name: ImageName },
    #[error("image {name} has no version {number}")]
    NoVersion { name: ImageName, number: u64 },
    #[error("image {name} has a version {number} already")]
    VersionExists { name: ImageName, number: u64 },
    #[error("there is no instance {id}")]
    NoInstance { id: String },
    #[error("there is no bundle {bundle}")]
    NoBundle { bundle: Digest },
    #[error(
        "{count} frames of the bundle {bundle} have not arrived, the first is {first}; push again"
    )]
    FramesMissing { bundle: Digest, count: usize, first: Digest },
    #[error("frame {frame} arrived with digest {found}; send it again")]
    FrameDigest { frame: Digest, found: Digest },
    #[error("the bundle {bundle} says {claimed} bytes and has {found}; capture it again")]
    BundleLen { bundle: Digest, claimed: u64, found: u64 },
    #[error("{path} is no usable bundle; run `vireo-repo fsck`", path = path.display())]
    Bundle {
        path: PathBuf,
        #[source]
        source: vireo_delta::DeltaError,
    },
}

impl StoreError {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match &self.0 {
            Detail::Io { source, .. } if is_no_space(source) => ErrorKind::NoSpace,
            Detail::Io { .. } => ErrorKind::Io,
            Detail::NotEmpty { .. } | Detail::VersionExists { .. } => ErrorKind::Conflict,
            Detail::NoRepository { .. }
            | Detail::NoImage { .. }
            | Detail::NoVersion { .. }
            | Detail::NoInstance { .. }
            | Detail::NoBundle { .. } => ErrorKind::NotFound,
            Detail::Unsupported { .. } => ErrorKind::Unsupported,
            Detail::Record { .. }
            | Detail::TooLong { .. }
            | Detail::Contradiction { .. }
            | Detail::Bundle { .. } => ErrorKind::Corrupt,
            Detail::Busy { .. } => ErrorKind::Busy,
            Detail::FramesMissing { .. } => ErrorKind::Incomplete,
            Detail::FrameDigest { .. } | Detail::BundleLen { .. } => ErrorKind::Refused,
        }
    }
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Shorthand for `map_err` on I/O: says which step failed on which path.
pub(crate) fn io_error(step: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| Detail::Io { step, path: path.to_owned(), source }.into()
}
