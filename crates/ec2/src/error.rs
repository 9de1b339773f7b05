//! The crate's one error.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use vireo_cloud::CloudError;

/// Why EC2 could not be brought to do something.
///
/// Branch on [`kind`](Self::kind); print the value itself and its sources.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Ec2Error(Box<Detail>);

/// What a caller can do about an [`Ec2Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The settings are wrong or lack something: correct them.
    Settings,
    /// There are no credentials, they are not valid, or they lack a right.
    Denied,
    /// EC2 cannot be reached, is overloaded, or was not done in time: try again later.
    Unavailable,
    /// What a call names is not there.
    NotFound,
    /// EC2 or Vireo refuses what was asked; the message says what to change.
    Refused,
    /// A local file could not be read or written.
    Io,
    /// What was read is not what was written.
    Damaged,
}

/// Private, so that adding context is never a breaking change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Detail {
    #[error("{0}")]
    Call(Failed, #[source] Box<dyn Error + Send + Sync>),
    #[error("{what}")]
    Plain { kind: ErrorKind, what: String },
    #[error("cannot {step} {path}", path = path.display())]
    Io {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} is damaged; remove it: the next version is then uploaded whole",
        path = path.display()
    )]
    State {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// A call that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) kind: ErrorKind,
    pub(crate) operation: &'static str,
    /// What it was about: an identity, a name.
    pub(crate) what: String,
    /// The service's code for it, if the service answered.
    pub(crate) code: Option<String>,
    /// What the service or the connection says.
    pub(crate) message: String,
    /// What can be done.
    pub(crate) remedy: String,
    /// Whether an earlier try of the call had no answer: what it asked for may have been done.
    pub(crate) after_silence: bool,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} failed: ", self.operation, self.what)?;
        if let Some(code) = &self.code {
            write!(f, "{code}: ")?;
        }
        f.write_str(&self.message)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl From<Detail> for Ec2Error {
    fn from(detail: Detail) -> Self {
        Self(Box::new(detail))
    }
}

impl Ec2Error {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Detail::Call(failed, _) => failed.kind,
            Detail::Plain { kind, .. } => *kind,
            Detail::Io { .. } => ErrorKind::Io,
            Detail::State { .. } => ErrorKind::Damaged,
        }
    }

    /// The service's code, as `InvalidAMIID.NotFound`, if it was the service that refused.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match &*self.0 {
            Detail::Call(failed, _) => failed.code.as_deref(),
            _ => None,
        }
    }

    /// Whether it was this call that failed.
    pub(crate) fn is_of(&self, operation: &str) -> bool {
        matches!(&*self.0, Detail::Call(failed, _) if failed.operation == operation)
    }

    /// Whether an earlier try of the call had no answer.
    pub(crate) fn is_after_silence(&self) -> bool {
        matches!(&*self.0, Detail::Call(failed, _) if failed.after_silence)
    }

    pub(crate) fn settings(what: impl Into<String>) -> Self {
        Self::plain(ErrorKind::Settings, what)
    }

    pub(crate) fn refused(what: impl Into<String>) -> Self {
        Self::plain(ErrorKind::Refused, what)
    }

    pub(crate) fn plain(kind: ErrorKind, what: impl Into<String>) -> Self {
        Detail::Plain { kind, what: what.into() }.into()
    }
}

impl From<Ec2Error> for CloudError {
    fn from(error: Ec2Error) -> Self {
        use vireo_cloud::ErrorKind as Cloud;
        let kind = match error.kind() {
            ErrorKind::Denied => Cloud::Denied,
            ErrorKind::Unavailable => Cloud::Unavailable,
            ErrorKind::Settings | ErrorKind::NotFound | ErrorKind::Refused => Cloud::Refused,
            ErrorKind::Damaged => Cloud::Corrupt,
            ErrorKind::Io if is_full(&error) => Cloud::NoSpace,
            ErrorKind::Io => Cloud::Io,
        };
        Self::provider(kind, error)
    }
}

fn is_full(error: &Ec2Error) -> bool {
    matches!(&*error.0, Detail::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
}

pub(crate) fn io_error(step: &'static str, path: &Path) -> impl Fn(io::Error) -> Ec2Error {
    move |source| Detail::Io { step, path: path.to_owned(), source }.into()
}
