//! The crate's one error.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use vireo_delta::{DeltaError, Permits, paths_needing};
use vireo_image::ImageError;
use vireo_model::ChangeSet;
use vireo_tree::TreeError;

/// Why capturing failed. No output was left.
#[derive(Debug)]
pub struct CaptureError {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Paths that a message names before it only counts the rest.
const NAMED_PATHS: usize = 10;

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
    /// The change would do what was not permitted: look at the paths, then permit it or correct
    /// the target.
    NotPermitted,
    /// The trees cannot be turned into each other by a bundle: the cause names the path.
    Refused,
}

impl CaptureError {
    pub(crate) fn busy(message: String) -> Self {
        Self { kind: ErrorKind::Busy, message, source: None }
    }

    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        let message = format!("cannot read {}", path.display());
        let kind = if is_busy(&source) { ErrorKind::Busy } else { ErrorKind::Read };
        Self { kind, message, source: Some(source.into()) }
    }

    pub(crate) fn io(step: &str, path: &Path, source: io::Error) -> Self {
        let message = format!("cannot {step} {}", path.display());
        let kind = if is_no_space(&source) { ErrorKind::NoSpace } else { ErrorKind::Write };
        Self { kind, message, source: Some(source.into()) }
    }

    /// `changes` need `missing` to be permitted.
    pub(crate) fn not_permitted(missing: Permits, changes: &ChangeSet) -> Self {
        let mut message = format!("the change needs the permit {missing}:");
        for permit in missing.iter() {
            let what = match permit {
                Permits::SETUID => "rights on execution that the base does not give there",
                Permits::DEVICES => "new device nodes",
                _ => "more than half of the tree removed or replaced",
            };
            let paths: Vec<String> =
                paths_needing(changes, permit).map(ToString::to_string).collect();
            let named = paths[..paths.len().min(NAMED_PATHS)].join(", ");
            message.push_str(&format!(" {what} ({named}"));
            if paths.len() > NAMED_PATHS {
                message.push_str(&format!(" and {} more", paths.len() - NAMED_PATHS));
            }
            message.push_str(");");
        }
        let flags: Vec<String> =
            missing.iter().map(|permit| format!("--permit {permit}")).collect();
        message.push_str(&format!(" capture with {} if that is intended", flags.join(" ")));
        Self { kind: ErrorKind::NotPermitted, message, source: None }
    }

    pub(crate) fn delta(step: &str, path: &Path, source: DeltaError) -> Self {
        let cause = source.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        let kind = match source.kind() {
            vireo_delta::ErrorKind::Limit => ErrorKind::Limit,
            vireo_delta::ErrorKind::Corrupt => ErrorKind::Refused,
            _ if source.is_no_space() => ErrorKind::NoSpace,
            _ if cause.is_some_and(is_busy) => ErrorKind::Busy,
            _ if step == "write" || source.is_spool() => ErrorKind::Write,
            _ => ErrorKind::Read,
        };
        let message = match kind {
            // The cause names the file, which may be another's.
            ErrorKind::Busy => "cannot capture".to_owned(),
            _ => format!("cannot {step} {}", path.display()),
        };
        Self { kind, message, source: Some(source.into()) }
    }

    /// An error of encoding: what cannot be written then is the spool of the output `out`.
    pub(crate) fn of_output(self, out: &Path) -> Self {
        match self.kind {
            ErrorKind::Write | ErrorKind::NoSpace => {
                Self { message: format!("cannot write {}", out.display()), ..self }
            }
            _ => self,
        }
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<ImageError> for CaptureError {
    fn from(source: ImageError) -> Self {
        let busy = source.kind() == vireo_image::ErrorKind::Busy;
        let kind = if busy { ErrorKind::Busy } else { ErrorKind::Read };
        Self { kind, message: "cannot capture".to_owned(), source: Some(source.into()) }
    }
}

impl From<TreeError> for CaptureError {
    fn from(source: TreeError) -> Self {
        let busy = source.kind() == vireo_tree::ErrorKind::Busy;
        let kind = if busy { ErrorKind::Busy } else { ErrorKind::Read };
        Self { kind, message: "cannot capture".to_owned(), source: Some(source.into()) }
    }
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CaptureError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
