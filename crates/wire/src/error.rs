//! Why a call to a repository failed, and what the caller can do.

use std::error::Error;

use serde::{Deserialize, Serialize};

use crate::api::Conflict;

/// Why a call to a repository failed.
///
/// Branch on [`kind`](Self::kind); print the value itself: it names the step, the address and the
/// remedy. The cause is in `source()`.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    kind: ErrorKind,
    message: String,
    conflict: Option<Box<Conflict>>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What a caller can do about a [`WireError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nobody answered, or the connection broke: try again later.
    Unreachable,
    /// The credential is missing, unknown or not good for this, or the server is not the one that
    /// the token pins: get another token.
    Unauthorised,
    /// There is no such image, version, bundle or instance.
    NotFound,
    /// Somebody was faster, or what is there is something else: look, then decide.
    Conflict,
    /// The image is being worked on: try again in a moment.
    Busy,
    /// What the request builds on has not arrived: send it first.
    Incomplete,
    /// The request itself is wrong and will be refused again.
    Refused,
    /// The server failed at its own work; its log says more.
    Server,
    /// The answer is not what this version of Vireo understands: is it a repository, and is one
    /// of the two sides to be upgraded?
    Protocol,
    /// Reading or writing a file of this machine failed.
    Local,
}

impl WireError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), conflict: None, source: None }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn with_conflict(mut self, conflict: Option<Conflict>) -> Self {
        self.conflict = conflict.map(Box::new);
        self
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// For a refused push: what the bundle is for and what the image's newest version is.
    #[must_use]
    pub fn conflict(&self) -> Option<&Conflict> {
        self.conflict.as_deref()
    }
}
