//! What is asked of an image before it is worked on: whether its file systems are whole.
//!
//! Found only after the work, damage would be laid at the update's door; and the kernel is not to mount
//! what is damaged. What writes here writes into a copy that nobody else has.

use std::path::Path;

use vireo_model::ImagePath;
use vireo_sys::confine::can_mount;

use crate::disk::DiskImage;
use crate::fsck::{fsck_all_named, repair};
use crate::host::{DetachedHost, MountHost};
use crate::layout::Volume;
use crate::partition::RootPartition;
use crate::probe::FileSystemKind;
use crate::{Access, ErrorKind, ImageError};

/// What damage in an image's own file systems, or the unclean end of its machine, makes of the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BaseCheck {
    /// It is refused, before anything is written.
    #[default]
    Refuse,
    /// The copy that is worked on is repaired first, as far as that can be done unasked: `e2fsck -fp`,
    /// which plays back a journal too (one of a partition takes the right to attach loop devices). Other
    /// file systems than ext are looked over, and refused.
    Repair,
    /// Nobody looks: the image was looked over when it was made.
    Skip,
}

/// Has the checkers look over the file systems of the tree in the raw image `image`, which nobody else may
/// have, and with [`BaseCheck::Repair`] repairs those in place; a crash leaves some of it repaired. FAT is
/// left alone: machines leave it untidy.
///
/// # Errors
///
/// `Damaged`, `Unclean`, `Unsupported`, `Io` if a checker cannot be run, and all that
/// [`DiskImage::open`] says.
pub fn check_base(image: &Path, root: RootPartition, how: BaseCheck) -> Result<(), ImageError> {
    let host: Option<&dyn MountHost> = if can_mount() { Some(&DetachedHost) } else { None };
    Before { base: image, root, how, host, touches: &|_| false }.check(image)
}

/// What is asked of the copies of one base.
pub(crate) struct Before<'a> {
    /// What messages call it.
    pub(crate) base: &'a Path,
    pub(crate) root: RootPartition,
    pub(crate) how: BaseCheck,
    /// Who mounts; none where nobody does.
    pub(crate) host: Option<&'a dyn MountHost>,
    /// Whether anything is to change below a directory.
    pub(crate) touches: &'a dyn Fn(&ImagePath) -> bool,
}

impl Before<'_> {
    /// Says by the base's own name, without running anything, what is wrong with it.
    pub(crate) fn open(&self) -> Result<(), ImageError> {
        let open = match self.how {
            BaseCheck::Repair => DiskImage::open_unclean,
            BaseCheck::Refuse | BaseCheck::Skip => DiskImage::open,
        };
        open(self.base, self.root).map(drop)
    }

    /// Looks over `image`, a copy of the base, the root first, and repairs it if it is to be repaired.
    pub(crate) fn check(&self, image: &Path) -> Result<(), ImageError> {
        if self.how == BaseCheck::Skip {
            return Ok(());
        }
        let disk = DiskImage::open_unclean(image, self.root)?;
        // It says which others there are.
        self.check_ext(image, disk.root())?;
        let volumes = DiskImage::open(image, self.root)?.volumes(self.host)?;
        let (ext, others): (Vec<Volume>, Vec<Volume>) =
            volumes.into_iter().partition(|volume| volume.kind == FileSystemKind::Ext);
        let beside = ext.iter().filter(|volume| volume.partition != disk.root().partition);
        beside.into_iter().try_for_each(|volume| self.check_ext(image, volume))?;
        self.check_others(image, others)
    }

    fn check_ext(&self, image: &Path, volume: &Volume) -> Result<(), ImageError> {
        if volume.kind != FileSystemKind::Ext {
            return Ok(());
        }
        if self.how == BaseCheck::Repair {
            return repair((image, self.base), volume);
        }
        volume.check(self.base)?;
        let checked = fsck_all_named((image, self.base), std::slice::from_ref(volume));
        checked.map_err(|error| advise(error, "have a copy of it repaired (--repair)"))
    }

    /// Looks over what is no ext: attached for that, so only where somebody may mount. Elsewhere FAT is looked over
    /// once it is changed.
    fn check_others(&self, image: &Path, mut others: Vec<Volume>) -> Result<(), ImageError> {
        // A vfat that nothing touches is as the machine left it, which may not be tidy.
        others.retain(|volume| volume.kind != FileSystemKind::Vfat || (self.touches)(&volume.at));
        let Some(host) = self.host else { return Ok(()) };
        if others.iter().any(|volume| volume.kind != FileSystemKind::Vfat) {
            // A log that was not played back is not damage, but the checkers take it for that. The kernel
            // says which it is.
            DiskImage::open(image, self.root)?.mount_by(host, Access::ReadOnly)?.finish()?;
        }
        let checked = fsck_all_named((image, self.base), &others);
        checked.map_err(|error| advise(error, "repair a copy by hand; --repair repairs ext alone"))
    }
}

/// Only who found damage is answered with how to repair it.
fn advise(error: ImageError, remedy: &str) -> ImageError {
    if error.kind() == ErrorKind::Damaged { error.advising(remedy) } else { error }
}
