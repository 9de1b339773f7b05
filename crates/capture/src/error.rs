//! The crate's one error.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use vireo_delta::DeltaError;
use vireo_tree::TreeError;

/// Why capturing failed. No output was left.
#[derive(Debug)]
pub struct CaptureError {
    kind: ErrorKind,
    message: String,
    source: Box<dyn Error + Send + Sync>,
}

/// What a caller can do about a [`CaptureError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A source cannot be read; the cause says why.
    Read,
    /// A source changes while it is read: try again when it is quiet, or capture a snapshot.
    Busy,
    /// The output cannot be written; the cause says why.
    Write,
    /// There is no room for the output: make some and try again.
    NoSpace,
    /// The change is larger than a bundle can carry.
    Limit,
}

impl CaptureError {
    pub(crate) fn io(step: &str, path: &Path, source: io::Error) -> Self {
        let message = format!("cannot {step} {}", path.display());
        let kind = if is_no_space(&source) { ErrorKind::NoSpace } else { ErrorKind::Write };
        Self { kind, message, source: source.into() }
    }

    pub(crate) fn delta(step: &str, path: &Path, source: DeltaError) -> Self {
        let cause = source.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        let kind = match source.kind() {
            vireo_delta::ErrorKind::Limit => ErrorKind::Limit,
            // The spool beside the output, too, grows while sources are read.
            _ if cause.is_some_and(is_no_space) => ErrorKind::NoSpace,
            _ if step == "write" => ErrorKind::Write,
            _ => ErrorKind::Read,
        };
        let message = format!("cannot {step} {}", path.display());
        Self { kind, message, source: source.into() }
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<TreeError> for CaptureError {
    fn from(source: TreeError) -> Self {
        let busy = source.kind() == vireo_tree::ErrorKind::Busy;
        let kind = if busy { ErrorKind::Busy } else { ErrorKind::Read };
        Self { kind, message: "cannot capture".to_owned(), source: source.into() }
    }
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CaptureError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
