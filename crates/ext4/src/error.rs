//! The crate's one error.

use std::fmt;
use std::io;

/// Why a file system could not be read. Messages name the structure and the place in it, not the
/// image: only the caller knows what that is called.
#[derive(Debug)]
pub struct Ext4Error {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

/// What a caller can do about an [`Ext4Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The image cannot be read; the source says why.
    Io,
    /// There is no ext2, ext3 or ext4 file system.
    NotExt4,
    /// It uses a feature that is not supported: mount it instead.
    Unsupported,
    /// It was not unmounted cleanly: shut its machine down, or run `e2fsck -p`.
    Unclean,
    /// A structure is wrong: run `e2fsck -f`, or copy the image again.
    Damaged,
    /// It is larger than a limit that protects against hostile images.
    Limit,
}

impl Ext4Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn damaged(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Damaged, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit, message)
    }

    pub(crate) fn io(message: impl Into<String>, source: io::Error) -> Self {
        Self { kind: ErrorKind::Io, message: message.into(), source: Some(source) }
    }

    /// Puts `what` before the message: which file, which directory.
    #[must_use]
    pub(crate) fn within(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Ext4Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Ext4Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source: &(dyn std::error::Error + 'static) = self.source.as_ref()?;
        Some(source)
    }
}
