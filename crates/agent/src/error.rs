//! The crate's one error.

use std::error::Error;
use std::fmt;
use std::path::Path;

/// Why the agent could not do what was asked. Branch on [`kind`](Self::kind), print the value:
/// it names the step and the place.
#[derive(Debug)]
pub struct AgentError {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What a caller can do about an [`AgentError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Enrol the machine first.
    NotEnrolled,
    /// The repository does not answer: try again later.
    Unreachable,
    /// The update is not for this machine as it is: wrong base, unknown signer, damaged, or local
    /// edits in the way. Nothing was changed; the same will be refused again.
    Refused,
    /// Another update is under way: try again later.
    Busy,
    /// Make room and try again. Nothing was changed.
    NoSpace,
    /// A record of the agent's own is damaged; the message says what mends that one.
    State,
    /// It failed; the message says what to do.
    Failed,
}

impl AgentError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// `cannot STEP PATH`, because of `source`.
    pub(crate) fn io(step: &str, path: &Path, source: std::io::Error) -> Self {
        let kind = if is_full(&source) { ErrorKind::NoSpace } else { ErrorKind::Failed };
        Self::new(kind, format!("cannot {step} {}", path.display())).caused_by(source)
    }

    /// The bundle at `path` cannot be used.
    pub(crate) fn bundle(path: &Path, source: vireo_delta::DeltaError) -> Self {
        let (kind, advice) = match source.kind() {
            vireo_delta::ErrorKind::Io => (ErrorKind::Failed, "try again"),
            vireo_delta::ErrorKind::Untrusted => {
                (ErrorKind::Refused, "its signer's key must be one that this machine trusts")
            }
            vireo_delta::ErrorKind::Unsupported => (ErrorKind::Refused, "upgrade the agent first"),
            _ => (ErrorKind::Refused, "fetch it again"),
        };
        Self::new(kind, format!("the bundle {} is refused; {advice}", path.display()))
            .caused_by(source)
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// Whether it comes of a file system that has no room, by itself or by one of its causes.
fn is_full(error: &(dyn Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| matches!(io.kind(), StorageFull | QuotaExceeded)) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for AgentError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}

impl From<vireo_wire::WireError> for AgentError {
    fn from(error: vireo_wire::WireError) -> Self {
        use vireo_wire::ErrorKind as Wire;
        let (kind, message) = match error.kind() {
            Wire::Local if is_full(&error) => (
                ErrorKind::NoSpace,
                "cannot keep what the repository sends; make room and try again",
            ),
            Wire::Local => (ErrorKind::Failed, "cannot keep what the repository sends"),
            Wire::Unreachable => (ErrorKind::Unreachable, "cannot speak with the repository"),
            Wire::Refused | Wire::Conflict => (ErrorKind::Refused, "the repository refuses"),
            _ => (ErrorKind::Failed, "cannot speak with the repository"),
        };
        Self::new(kind, message).caused_by(error)
    }
}

impl From<vireo_tree::TreeError> for AgentError {
    fn from(error: vireo_tree::TreeError) -> Self {
        use vireo_tree::ErrorKind as Tree;
        let (kind, message) = match error.kind() {
            Tree::NoSpace => {
                (ErrorKind::NoSpace, "cannot apply the update; make room and try again")
            }
            Tree::Drift => (
                ErrorKind::Refused,
                "refused; put the files back as they are expected, then try again",
            ),
            Tree::Corrupt => (
                ErrorKind::Refused,
                "refused: the bundle, or the record of an earlier update, is damaged",
            ),
            Tree::Forbidden => (ErrorKind::Refused, "the update is refused"),
            Tree::Busy => (ErrorKind::Busy, "cannot apply the update now; try again"),
            _ => (ErrorKind::Failed, "cannot apply the update"),
        };
        Self::new(kind, message).caused_by(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_system_is_told_from_other_failures_wherever_it_is_found() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let failed = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let path = Path::new("/var/lib/vireo/incoming/x");
        assert_eq!(AgentError::io("write", path, full()).kind(), ErrorKind::NoSpace);
        assert_eq!(AgentError::io("write", path, failed()).kind(), ErrorKind::Failed);
        let outer = |source| AgentError::new(ErrorKind::Failed, "cannot fetch").caused_by(source);
        assert!(is_full(&outer(full())) && !is_full(&outer(failed())));
    }
}
