//! The crate's one error.

use std::io;

use vireo_model::{Digest, ImagePath};

use crate::{Permits, PublicKey};

/// Why encoding, reading or decoding a bundle or a delta failed.
///
/// Branch on [`kind`](Self::kind); print the value itself and its sources. Wording and detail
/// may change in any release, kinds only grow.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DeltaError(#[from] pub(crate) Detail);

/// What a caller can do about a [`DeltaError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes are not what their writer wrote: fetch them again.
    Corrupt,
    /// A newer Vireo wrote them: upgrade this one.
    Unsupported,
    /// The delta was made against another base: apply it to that one.
    WrongBase,
    /// Nobody trusted signed it: check where it comes from, or trust its signer.
    Untrusted,
    /// It is larger than a named limit allows: split it.
    Limit,
    /// It would do what nobody permitted: look at the change, then permit it.
    NotPermitted,
    /// Reading or writing failed; the source says why.
    Io,
}

/// Private, so that adding context is never a breaking change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Detail {
    #[error("not a Vireo bundle: the first bytes are not the bundle's magic number")]
    Magic,
    #[error("the bundle ends at byte {len}, inside its {part}")]
    Truncated { len: u64, part: &'static str },
    #[error("the bundle has {excess} bytes after its end")]
    Excess { excess: u64 },
    #[error("the bundle's {part} has a wrong checksum")]
    Checksum { part: &'static str },
    #[error("the bundle needs features {missing:#x} that this version of Vireo lacks")]
    Features { missing: u32 },
    #[error("the bundle's {what} is {found}, the most is {most}")]
    Limit { what: &'static str, found: u64, most: u64 },
    #[error("the bundle's signature does not fit its content and its signer {signer}")]
    Signature { signer: PublicKey },
    #[error("the bundle is signed by {signer}, who is not trusted here")]
    Signer { signer: PublicKey },
    #[error("the bundle's manifest is invalid: {what}")]
    Manifest { what: String },
    #[error("{path}: the bundle's content for it is invalid: {what}")]
    Content { path: ImagePath, what: String },
    #[error(
        "{path}: decoding gave digest {found} instead of {expected}, so the base is not the bundle's"
    )]
    Decoded { path: ImagePath, expected: Digest, found: Digest },
    #[error("{path}: cannot read the base's content that the bundle builds on")]
    Base {
        path: ImagePath,
        #[source]
        source: io::Error,
    },
    #[error("the delta cannot be read: {what}")]
    Delta { what: &'static str },
    #[error("the delta has version {found}, and this version of Vireo knows {known}")]
    DeltaVersion { found: u32, known: u32 },
    #[error("the delta's target has {found} bytes, the most is {most}")]
    TargetLen { found: u64, most: u64 },
    #[error("the delta was made from another base, which had digest {expected}")]
    OtherBase { expected: Digest },
    #[error("{what} cannot be read as a key; it has the form {form}")]
    Key { what: &'static str, form: &'static str },
    #[error("cannot get random bytes for a key: {why}")]
    Random { why: String },
    #[error("cannot {step}")]
    Io {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "the file that should have digest {expected} was read with {found}: it changed while it was captured"
    )]
    Changed { expected: Digest, found: Digest },
    #[error("the second bundle starts from {base}, but the first ends at {target}")]
    Chain { target: Digest, base: Digest },
    #[error(
        "the bundles differ in which paths belong to no version, so their digests mean different things"
    )]
    Ignores,
    #[error("the derived bundle needs the permit {missing}, which those it is made of have not")]
    Permits { missing: Permits },
    #[error("{path} is in the change set, but its content was never encoded")]
    NotEncoded { path: ImagePath },
}

impl DeltaError {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self.0 {
            Detail::Magic
            | Detail::Truncated { .. }
            | Detail::Excess { .. }
            | Detail::Checksum { .. }
            | Detail::Manifest { .. }
            | Detail::Content { .. }
            | Detail::Delta { .. }
            | Detail::Key { .. } => ErrorKind::Corrupt,
            Detail::Features { .. } | Detail::DeltaVersion { .. } => ErrorKind::Unsupported,
            Detail::Limit { .. } | Detail::TargetLen { .. } => ErrorKind::Limit,
            Detail::Signature { .. } | Detail::Signer { .. } => ErrorKind::Untrusted,
            Detail::Decoded { .. }
            | Detail::Base { .. }
            | Detail::OtherBase { .. }
            | Detail::Chain { .. }
            | Detail::Ignores => ErrorKind::WrongBase,
            Detail::Permits { .. } => ErrorKind::NotPermitted,
            Detail::Random { .. }
            | Detail::Io { .. }
            | Detail::Changed { .. }
            | Detail::NotEncoded { .. } => ErrorKind::Io,
        }
    }
}

impl DeltaError {
    /// Whether there was no room for what is written: make some and try again.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let Detail::Io { source, .. } = &self.0 else { return false };
        matches!(source.kind(), StorageFull | QuotaExceeded)
    }
}

/// The step that puts what was encoded aside.
pub(crate) const WRITE_SPOOL: &str = "write to the spool";

impl DeltaError {
    /// Whether what was encoded could not be put aside: the spool failed, and nothing that was read.
    #[must_use]
    pub fn is_spool(&self) -> bool {
        matches!(&self.0, Detail::Io { step, .. } if *step == WRITE_SPOOL)
    }
}

/// Shorthand for `map_err` on I/O: says which step failed.
pub(crate) fn io_step(step: &'static str) -> impl Fn(io::Error) -> DeltaError {
    move |source| Detail::Io { step, source }.into()
}
