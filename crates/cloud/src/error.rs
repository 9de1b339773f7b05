//! The crate's one error.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why the cloud could not do something.
///
/// Branch on [`kind`](Self::kind); print the value itself and its sources.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct CloudError(#[from] Detail);

/// What a caller can do about a [`CloudError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Reading or writing failed; the source says why.
    Io,
    /// The file system is full: make room, nothing was lost.
    NoSpace,
    /// What is there was not written by Vireo, or is damaged: look at it.
    Corrupt,
    /// The provider cannot be reached, is overloaded or is not done: try again later.
    Unavailable,
    /// The provider does not know the credentials, or they lack a right: correct them.
    Denied,
    /// The provider or the settings do not allow it: the message says what to change.
    Refused,
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
    #[error("{path} is not as Vireo writes it; correct or remove it", path = path.display())]
    Record {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(transparent)]
    Provider(#[from] Provider),
}

/// A provider's error, with what it means here.
#[derive(Debug)]
pub(crate) struct Provider {
    kind: ErrorKind,
    error: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Provider {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

impl CloudError {
    /// A provider's own error, for adapters.
    pub fn provider(kind: ErrorKind, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Detail::from(Provider { kind, error: error.into() }).into()
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match &self.0 {
            Detail::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorKind::NoSpace
            }
            Detail::Io { .. } => ErrorKind::Io,
            Detail::Record { .. } => ErrorKind::Corrupt,
            Detail::Provider(provider) => provider.kind,
        }
    }
}

pub(crate) fn io_error(step: &'static str, path: &Path) -> impl Fn(io::Error) -> CloudError {
    move |source| Detail::Io { step, path: path.to_owned(), source }.into()
}

pub(crate) fn record_error(path: &Path) -> impl Fn(serde_json::Error) -> CloudError {
    move |source| Detail::Record { path: path.to_owned(), source }.into()
}
