//! The crate's one error.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use vireo_delta::DeltaError;
use vireo_ext4::Ext4Error;
use vireo_model::{Grow, ImagePath};
use vireo_tree::{Shortage, TreeError};

/// Why an image could not be read or patched. The image named is unchanged.
#[derive(Debug)]
pub struct ImageError {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    /// There is no room, and a larger root would not make any.
    is_beside_root: bool,
}

/// What a caller can do about an [`ImageError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The system refused; the source says why.
    Io,
    /// Make room, on the host or in the image, and try again.
    NoSpace,
    /// Run it as root: loop devices and mounts need CAP_SYS_ADMIN.
    NoRoot,
    /// Something else uses the image: stop it and try again.
    Busy,
    /// The file is no disk image with a file system that can be read.
    NotAnImage,
    /// Say which partition is the root: it cannot be told.
    UnknownPartition,
    /// Shut the machine down cleanly, or have a copy repaired
    /// ([`BaseCheck::Repair`](crate::BaseCheck::Repair)).
    Unclean,
    /// The image uses a feature that is not supported.
    Unsupported,
    /// The result is not what the bundle names.
    Mismatch,
    /// The file system or the bundle is damaged.
    Damaged,
    /// The image is not the bundle's base.
    WrongBase,
    /// The bundle does what its signer has not permitted it to do.
    Forbidden,
}

impl ImageError {
    pub(crate) fn new(kind: ErrorKind, message: String) -> Self {
        Self { kind, message, source: None, is_beside_root: false }
    }

    /// `step` failed for `image`: `cannot mount debian.img`.
    pub(crate) fn io(step: &str, image: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            io::ErrorKind::PermissionDenied => ErrorKind::NoRoot,
            io::ErrorKind::ResourceBusy => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        let message = format!("cannot {step} {}", image.display());
        Self { kind, message, source: Some(source.into()), is_beside_root: false }
    }

    pub(crate) fn tree(image: &Path, source: TreeError) -> Self {
        let kind = match source.kind() {
            vireo_tree::ErrorKind::NoSpace => ErrorKind::NoSpace,
            vireo_tree::ErrorKind::Drift => ErrorKind::WrongBase,
            vireo_tree::ErrorKind::Busy => ErrorKind::Busy,
            vireo_tree::ErrorKind::Unsupported => ErrorKind::Unsupported,
            vireo_tree::ErrorKind::Corrupt => ErrorKind::Damaged,
            vireo_tree::ErrorKind::Permission => ErrorKind::NoRoot,
            vireo_tree::ErrorKind::Forbidden => ErrorKind::Forbidden,
            _ => ErrorKind::Io,
        };
        let message = format!("cannot use the tree in {}", image.display());
        Self { kind, message, source: Some(source.into()), is_beside_root: false }
    }

    /// What a file system of the image lacks, if that is known.
    pub(crate) fn shortage(&self) -> Option<&Shortage> {
        self.source.as_ref()?.downcast_ref::<TreeError>()?.shortage()
    }

    /// An update does not fit into `image`. The cause names the file system, or the path.
    pub(crate) fn full(image: &Path, grow: Grow, error: Self) -> Self {
        let image = image.display();
        let other = error.shortage().map(|shortage| &shortage.at).filter(|at| !at.is_root());
        let message = match (other, grow) {
            (Some(at), _) => format!(
                "the update does not fit into {image}: the file system at {at} is too full, and an image \
                 grows by its root alone; make room there"
            ),
            (None, Grow::No) => format!(
                "the update does not fit into {image}: its file systems have too little space; let it grow \
                 (--grow auto, or --grow SIZE)"
            ),
            (None, Grow::To(len)) => {
                format!(
                    "the update does not fit into {image} grown to {len} bytes; allow more (--grow)"
                )
            }
            (None, Grow::Auto) => {
                format!("the update does not fit into {image}, even grown several times over")
            }
        };
        Self { kind: ErrorKind::NoSpace, message, source: error.source, is_beside_root: false }
    }

    /// A file system beside the root has no room.
    pub(crate) fn full_part(message: String) -> Self {
        Self { kind: ErrorKind::NoSpace, message, source: None, is_beside_root: true }
    }

    /// Whether making the root larger may make room for what had none.
    pub(crate) fn is_for_room(&self) -> bool {
        self.kind == ErrorKind::NoSpace && !self.is_beside_root
    }

    /// The host has no room for `out`.
    pub(crate) fn full_host(out: &Path, error: Self) -> Self {
        let message = format!(
            "cannot make {}: the host's file system that it is to be in is full",
            out.display()
        );
        Self {
            kind: ErrorKind::NoSpace,
            message,
            source: Some(error.into()),
            is_beside_root: false,
        }
    }

    /// The same error, with what can be done about it.
    pub(crate) fn advising(mut self, remedy: &str) -> Self {
        let said = self.message.trim_end_matches([';', ' ', '.']);
        self.message = format!("{said}; {remedy}");
        self
    }

    pub(crate) fn ext4(image: &Path, source: Ext4Error) -> Self {
        let kind = match source.kind() {
            vireo_ext4::ErrorKind::NotExt4 => ErrorKind::NotAnImage,
            vireo_ext4::ErrorKind::Unsupported | vireo_ext4::ErrorKind::Limit => {
                ErrorKind::Unsupported
            }
            vireo_ext4::ErrorKind::Unclean => ErrorKind::Unclean,
            vireo_ext4::ErrorKind::Damaged => ErrorKind::Damaged,
            _ => ErrorKind::Io,
        };
        let message = format!("cannot read the file system in {}", image.display());
        Self { kind, message, source: Some(source.into()), is_beside_root: false }
    }

    /// The content of `path` could not be decoded.
    pub(crate) fn delta(path: &ImagePath, source: DeltaError) -> Self {
        let kind = match source.kind() {
            vireo_delta::ErrorKind::WrongBase => ErrorKind::WrongBase,
            vireo_delta::ErrorKind::Io if is_full(&source) => ErrorKind::NoSpace,
            vireo_delta::ErrorKind::Io => ErrorKind::Io,
            _ => ErrorKind::Damaged,
        };
        let message = format!("cannot make the content of {path}");
        Self { kind, message, source: Some(source.into()), is_beside_root: false }
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// Whether a full disk is among the causes.
fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        if io.is_some_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded)) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ImageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
