//! The crate's one error.

use std::io;
use std::path::Path;

/// Why nothing could be recorded. Branch on [`kind`](Self::kind), print the value.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RecordError {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

/// What a caller can do about a [`RecordError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It needs root, outside of containers.
    Permission,
    /// The kernel or the root file system cannot report what is opened: record on another machine.
    Unsupported,
    /// The system failed; the cause says why.
    Failed,
}

impl RecordError {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// `cannot STEP`.
    pub(crate) fn io(step: &str, source: io::Error) -> Self {
        use rustix::io::Errno;
        let kind = match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ACCESS) => ErrorKind::Permission,
            Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NODEV | Errno::XDEV) => {
                ErrorKind::Unsupported
            }
            _ => ErrorKind::Failed,
        };
        Self { kind, message: format!("cannot {step}"), source: Some(source) }
    }

    /// `cannot STEP PATH`.
    pub(crate) fn at(step: &str, path: &Path, source: io::Error) -> Self {
        Self::io(&format!("{step} {}", path.display()), source)
    }

    pub(crate) fn ended() -> Self {
        let message = "the recording has ended by itself".to_owned();
        Self { kind: ErrorKind::Failed, message, source: None }
    }
}
