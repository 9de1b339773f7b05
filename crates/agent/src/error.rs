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
    /// The agent's own records are damaged: enrol again.
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
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                ErrorKind::NoSpace
            }
            _ => ErrorKind::Failed,
        };
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
        let kind = match error.kind() {
            Wire::Unreachable => ErrorKind::Unreachable,
            Wire::Refused | Wire::Conflict => ErrorKind::Refused,
            _ => ErrorKind::Failed,
        };
        Self::new(kind, "cannot speak with the repository").caused_by(error)
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
