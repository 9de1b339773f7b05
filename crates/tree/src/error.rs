//! The crate's one error.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vireo_delta::DeltaError;
use vireo_model::ImagePath;

/// How many paths a message lists; the rest is counted.
const MAX_LISTED: usize = 10;

/// Why reading or patching a tree failed.
#[derive(Debug)]
pub struct TreeError {
    kind: ErrorKind,
    message: String,
    drifted: Vec<ImagePath>,
    shortage: Option<Shortage>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What a file system lacks for an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Where in the tree it is mounted.
    pub at: ImagePath,
    /// Bytes that it lacks.
    pub bytes: u64,
    /// Inodes that it lacks.
    pub inodes: u64,
    /// Bytes of its length for each inode that it has; 0 if it makes inodes as they are needed.
    pub len_per_inode: u64,
}

/// What a caller can do about a [`TreeError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The system refused; the source says why.
    Io,
    /// Make room and try again. Nothing was changed.
    NoSpace,
    /// Touched paths are neither the base's nor the target's: [`TreeError::drifted`] lists them.
    /// Nothing was changed.
    Drift,
    /// Another update of this tree is under way, or the tree is being changed: try again later.
    Busy,
    /// This cannot be done here, whatever the state.
    Unsupported,
    /// The bundle or the journal is damaged.
    Corrupt,
    /// Not enough rights, or the file system is read-only.
    Permission,
    /// The bundle does what its signer has not permitted it to do. Nothing was changed.
    Forbidden,
}

impl TreeError {
    pub(crate) fn new(kind: ErrorKind, message: String) -> Self {
        Self { kind, message, drifted: Vec::new(), shortage: None, source: None }
    }

    /// `step` failed at `path` below `label`: `cannot read /srv/web/etc/passwd`.
    pub(crate) fn io(
        step: &str,
        label: &Path,
        path: &ImagePath,
        source: impl Into<io::Error>,
    ) -> Self {
        let source = source.into();
        let place = place(label, path);
        Self {
            kind: kind_of(&source),
            message: format!("cannot {step} {place}"),
            drifted: Vec::new(),
            shortage: None,
            source: Some(source.into()),
        }
    }

    pub(crate) fn delta(label: &Path, source: DeltaError) -> Self {
        let kind = match source.kind() {
            vireo_delta::ErrorKind::Io => match std::error::Error::source(&source) {
                Some(cause) => cause.downcast_ref::<io::Error>().map_or(ErrorKind::Io, kind_of),
                None => ErrorKind::Io,
            },
            vireo_delta::ErrorKind::WrongBase => ErrorKind::Drift,
            _ => ErrorKind::Corrupt,
        };
        let message = format!("cannot decode the bundle's content for {}", label.display());
        Self { kind, message, drifted: Vec::new(), shortage: None, source: Some(source.into()) }
    }

    /// `what` says how the paths in `drifted` are not as expected: `differs from ... in`.
    pub(crate) fn drift(label: &Path, what: &str, drifted: Vec<ImagePath>) -> Self {
        let listed: Vec<String> =
            drifted.iter().take(MAX_LISTED).map(ToString::to_string).collect();
        let more = drifted.len().saturating_sub(MAX_LISTED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message = format!("{} {what}: {}{more}", label.display(), listed.join(", "));
        Self { kind: ErrorKind::Drift, message, drifted, shortage: None, source: None }
    }

    /// The same with `note` behind its message.
    pub(crate) fn with_note(mut self, note: &str) -> Self {
        self.message = format!("{}; {note}", self.message);
        self
    }

    pub(crate) fn short(shortage: Shortage, message: String) -> Self {
        Self { shortage: Some(shortage), ..Self::new(ErrorKind::NoSpace, message) }
    }

    /// What a file system lacks, if that was seen before anything was written.
    #[must_use]
    pub fn shortage(&self) -> Option<&Shortage> {
        self.shortage.as_ref()
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The touched paths that are neither as in the base nor as in the target.
    #[must_use]
    pub fn drifted(&self) -> &[ImagePath] {
        &self.drifted
    }
}

pub(crate) fn place(label: &Path, path: &ImagePath) -> String {
    if label == Path::new("/") {
        return path.to_string();
    }
    let mut place = PathBuf::from(label).display().to_string();
    if !path.is_root() {
        place.push_str(&path.to_string());
    }
    place
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => ErrorKind::NoSpace,
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => ErrorKind::Permission,
        Some(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOSYS) => ErrorKind::Unsupported,
        Some(Errno::BUSY) => ErrorKind::Busy,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TreeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
