//! Reading and patching disk images, as a port: the real thing needs root and a kernel.

use std::fmt::Debug;
use std::path::Path;
use std::time::Instant;

use vireo_delta::{Bundle, TrustedKeys, Verified};
use vireo_image::{BaseCheck, ImageError, PatchOptions, PatchStep, RootPartition, unmounted};
use vireo_model::{Grow, Ignore, Tree};
use vireo_wire::api::BuildStep;
use vireo_wire::limits;

use crate::error::{Detail, RepoError};

/// A bundle, where it lies, and whose signature makes it one: another process checks it anew.
#[derive(Debug)]
pub struct BundleFile<'a> {
    /// The bundle.
    pub bundle: &'a Bundle<'a, Verified<'a>>,
    /// Its file.
    pub path: &'a Path,
    /// The keys that are trusted.
    pub trusted: &'a TrustedKeys,
    /// Whether the image may be made larger for it.
    pub grow: Grow,
    /// Which partition of the image holds the root file system.
    pub root: RootPartition,
}

/// What a repository needs done with disk images.
///
/// Implementations are checked against [`testing::check_builder`](crate::testing::check_builder).
pub trait ImageBuilder: Debug + Send + Sync {
    /// Looks over the file systems of the disk image `disk`, which came from outside, and with `repair`
    /// repairs them in place.
    ///
    /// A crash leaves some of it repaired.
    ///
    /// # Errors
    ///
    /// `Refused` if they are damaged, or were not unmounted cleanly, and are not to be repaired or cannot be;
    /// `Io`.
    fn check(&self, disk: &Path, root: RootPartition, repair: bool) -> Result<(), RepoError>;

    /// Reads the tree in the disk image `disk`, without what `ignore` covers.
    ///
    /// # Errors
    ///
    /// `Refused` if it is no disk image that can be read; `NoRoot`, `Io`.
    fn read_tree(
        &self,
        disk: &Path,
        root: RootPartition,
        ignore: &Ignore,
    ) -> Result<Tree, RepoError>;

    /// Makes the disk image `out` from the disk image `base`, which was [checked](Self::check) or made by
    /// this, and a bundle, checks that the tree in it is the bundle's target, and says how long each step
    /// took. `base` stays as it is.
    ///
    /// A crash leaves `out` absent, and perhaps a sibling that ends in `.partial`.
    ///
    /// # Errors
    ///
    /// `Refused` if the bundle does not fit or does not make what it names; `NoSpace`, `NoRoot`, `Io`.
    fn patch(
        &self,
        base: &Path,
        out: &Path,
        bundle: &BundleFile<'_>,
    ) -> Result<Vec<BuildStep>, RepoError>;
}

/// The real thing: loop devices, detached mounts and `e2fsck` of this host; where this process may not
/// mount, our own reader and debugfs.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostImages;

impl ImageBuilder for HostImages {
    fn check(&self, disk: &Path, root: RootPartition, repair: bool) -> Result<(), RepoError> {
        let how = if repair { BaseCheck::Repair } else { BaseCheck::Refuse };
        vireo_image::check_base(disk, root, how).map_err(image_error("take", disk))
    }

    fn read_tree(
        &self,
        disk: &Path,
        root: RootPartition,
        ignore: &Ignore,
    ) -> Result<Tree, RepoError> {
        let read = match unmounted::is_needed() {
            true => unmounted::read_tree_in,
            false => vireo_image::read_tree_in,
        };
        read(disk, root, ignore).map_err(image_error("read the tree of", disk))
    }

    fn patch(
        &self,
        base: &Path,
        out: &Path,
        bundle: &BundleFile<'_>,
    ) -> Result<Vec<BuildStep>, RepoError> {
        self.build((base, out), bundle.bundle, (bundle.grow, bundle.root))
    }
}

impl HostImages {
    /// As [`ImageBuilder::patch`], for who has verified the bundle already.
    pub(crate) fn build(
        self,
        (base, out): (&Path, &Path),
        bundle: &Bundle<'_, Verified<'_>>,
        (grow, root): (Grow, RootPartition),
    ) -> Result<Vec<BuildStep>, RepoError> {
        let mut begun: Vec<(PatchStep, Instant)> = Vec::new();
        let mut begin = |step: PatchStep| begun.push((step, Instant::now()));
        // What could not be fetched again is not made.
        let max_grown_len = Some(limits::MAX_IMAGE_LEN);
        // Who made the base, or took it in, has looked it over.
        let base_check = BaseCheck::Skip;
        let options =
            PatchOptions { root, base: base_check, grow, max_grown_len, ..PatchOptions::default() };
        vireo_image::patch_with(base, out, bundle, &options, &mut begin)
            .map_err(image_error("build", out))?;
        Ok(steps(&begun, Instant::now()))
    }
}

/// A step lasts until the next one begins.
fn steps(begun: &[(PatchStep, Instant)], end: Instant) -> Vec<BuildStep> {
    let ends = begun.iter().skip(1).map(|(_, at)| *at).chain([end]);
    let step = |((step, start), end): (&(PatchStep, Instant), Instant)| BuildStep {
        name: step.name().to_owned(),
        millis: u64::try_from((end - *start).as_millis()).unwrap_or(u64::MAX),
    };
    begun.iter().zip(ends).map(step).collect()
}

fn image_error(step: &'static str, path: &Path) -> impl Fn(ImageError) -> RepoError {
    move |source| Detail::Image { step, path: path.to_owned(), source }.into()
}
