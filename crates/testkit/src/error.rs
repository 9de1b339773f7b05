//! The one error of this crate.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// What went wrong, with the step and, where a program failed, the end of what it wrote.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct TestkitError {
    kind: ErrorKind,
    message: String,
    #[source]
    source: Option<io::Error>,
}

/// What the caller can do about a [`TestkitError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The host lacks something: become root, or [`host::install`](crate::host::install).
    Host,
    /// A deadline passed: the machine is overloaded, or what was waited for is broken.
    Deadline,
    /// The distribution has nothing newer, so that there is no update to be made.
    NothingNewer,
    /// A program or a guest failed; the message holds what it said.
    Failed,
    /// Reading or writing failed.
    Io,
}

impl TestkitError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// What a caller's own step of making something says of its failure.
    #[must_use]
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// `cannot <step> <path>`, because of `source`.
    pub(crate) fn io(step: &str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let message = format!("cannot {step} {}", path.as_ref().display());
        Self { kind: ErrorKind::Io, message, source: Some(source) }
    }

    /// The same error, with what else is known put behind it.
    pub(crate) fn with_detail(mut self, what: impl Display) -> Self {
        self.message = format!("{}\n{what}", self.message);
        self
    }

    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// Turns an I/O error into ours: `.map_err(failed("read", path))`.
pub(crate) fn failed<'a, P: AsRef<Path> + ?Sized>(
    step: &'a str,
    path: &'a P,
) -> impl FnOnce(io::Error) -> TestkitError + 'a {
    move |source| TestkitError::io(step, path, source)
}
