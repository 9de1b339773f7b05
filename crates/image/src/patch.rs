//! From one image to the next: clone, patch the clone, prove it, put it in place.

mod partial;

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use vireo_delta::{Bundle, Verified};
use vireo_model::{Digest, Grow, ImagePath, Tree};
use vireo_sys::confine::can_mount;
use vireo_sys::copy::CloneKind;
use vireo_sys::durable::directory_of;
use vireo_sys::lease;
use vireo_tree::{ScanOptions, apply, scan};

use crate::before::{BaseCheck, Before};
use crate::bytes::Format;
use crate::disk::{Access, DiskImage, busy, is_released};
use crate::fat::refuse_unholdable;
use crate::fsck::fsck_all;
use crate::grow::{self, Growth, MAX_GROWN_LEN};
use crate::host::{DetachedHost, MountHost};
use crate::layout::Volume;
use crate::partition::RootPartition;
use crate::probe::FileSystemKind;
use crate::rootless::{self, Outcome};
use crate::unmounted::{self, Unfinished};
use crate::{ErrorKind, ImageError};
use partial::Partial;

/// Less room than this on the host, in bytes, is none: what did not fit was some megabytes long.
const HOST_ROOM: u64 = 4 << 20;

/// Who writes into the clone.
#[derive(Clone, Copy, Debug, Default)]
pub enum Backend<'a> {
    /// [`Backend::Mount`] by the [`DetachedHost`] if this process may mount, else
    /// [`Backend::Rootless`].
    #[default]
    Auto,
    /// The kernel: the clone is mounted by this host.
    Mount(&'a dyn MountHost),
    /// debugfs(8), which needs no rights. Names with line ends are refused.
    Rootless,
}

/// How an image is patched.
#[derive(Clone, Copy, Debug, Default)]
pub struct PatchOptions<'a> {
    /// Which partition holds the root file system.
    pub root: RootPartition,
    /// What damage that the base has already makes of it.
    pub base: BaseCheck,
    /// Whether an image that is already at the output's path is replaced (atomically). Patching
    /// "in place" is patching with the base's own path as the output.
    pub replace: bool,
    /// Who writes.
    pub backend: Backend<'a>,
    /// Whether the image is made larger for an update that does not fit; refused without a mount.
    pub grow: Grow,
    /// Length in bytes that no image grows beyond; without it [`MAX_GROWN_LEN`](crate::MAX_GROWN_LEN).
    pub max_grown_len: Option<u64>,
}

/// The steps of [`patch_with`], in order, reported when each begins. Without a mount there is no
/// `Mount`, no `Unmount` and no `Reread`, and `Check` comes before `Verify`; with [`BaseCheck::Skip`] there is
/// no `CheckBase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchStep {
    /// The base is being cloned.
    Clone,
    /// The checkers look over the clone's file systems as the base has them, or repair them.
    CheckBase,
    /// The clone is being attached and mounted.
    Mount,
    /// The target's files are being written and checked.
    Stage,
    /// They are being renamed into place.
    Commit,
    /// The whole tree is being read again and compared with the bundle's target.
    Verify,
    /// It is being unmounted.
    Unmount,
    /// The file systems' checkers look over it.
    Check,
    /// The tree is being read once more, without the kernel.
    Reread,
    /// It is being made durable and put in place.
    Publish,
}

impl PatchStep {
    /// A word for reports: `clone`, `mount`, `reread`, ...
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::CheckBase => "check-base",
            Self::Mount => "mount",
            Self::Stage => "stage",
            Self::Commit => "commit",
            Self::Verify => "verify",
            Self::Unmount => "unmount",
            Self::Check => "check",
            Self::Reread => "reread",
            Self::Publish => "publish",
        }
    }
}

/// A patched image.
#[derive(Clone, Debug)]
pub struct Patched {
    /// Digest of its tree, read back from it: the bundle's target.
    pub tree: Digest,
    /// How the base was cloned.
    pub clone: CloneKind,
    /// How many of the bundle's changes the base had already.
    pub already: usize,
    /// The steps by name, each with how long it took.
    pub steps: Vec<(&'static str, Duration)>,
}

/// [`patch_with`] without options and without reports.
///
/// # Errors
///
/// As [`patch_with`].
pub fn patch(
    base: &Path,
    out: &Path,
    bundle: &Bundle<'_, Verified<'_>>,
) -> Result<Patched, ImageError> {
    patch_with(base, out, bundle, &PatchOptions::default(), &mut |_| ())
}

/// Makes at `out` the image that `bundle` turns `base` into.
///
/// The base's file systems are checked first, in the clone, and repaired there if `options` say so.
///
/// Works on a clone, named `out` with `.partial` added, and renames it to `out` when its tree has
/// the bundle's target digest, as the kernel shows it and, for ext file systems, as our own reader finds
/// it, every file system's own checker finds nothing, and its bytes are on the disk. What is qcow2 is
/// expanded to be patched, and packed again. After an error or a crash `base` and `out` are what they were;
/// a crash may leave files named `out` with `.partial`, `.packed.partial`, `.claim.partial` or
/// `.files.partial` added, which the next patch to the same `out` replaces. While one process makes
/// `out`, no other does.
///
/// Cost: a reflink or sparse copy of the image, one read of the whole tree, and the changed
/// files.
///
/// # Errors
///
/// `Damaged` or `Unclean` if the base is; `NoRoot` or `Unsupported` if it may grow and cannot be mounted;
/// `WrongBase` if `base` is not the bundle's base where it matters, `Mismatch` if the result is not its
/// target although every touched path was right, `Busy` if `out` is being made by another process, `NoSpace`
/// (with [`PatchOptions::grow`] only if growing does not help), and all that [`DiskImage::open`] and
/// [`DiskImage::mount`] say.
pub fn patch_with(
    base: &Path,
    out: &Path,
    bundle: &Bundle<'_, Verified<'_>>,
    options: &PatchOptions<'_>,
    step: &mut dyn FnMut(PatchStep),
) -> Result<Patched, ImageError> {
    let mut steps = Steps::default();
    let mut step = |next: PatchStep| {
        steps.begin(next);
        step(next);
    };
    let host = mounting_host(base, options)?;
    let touches = |at: &ImagePath| is_touched(bundle, at);
    let before = Before { base, root: options.root, how: options.base, host, touches: &touches };
    before.open()?;
    refuse_existing(out, options.replace)?;
    refuse_used(base, out, options.replace)?;
    step(PatchStep::Clone);
    let mut partial = Partial::new(base, out)?;
    let kind = partial.fill(base)?;

    let done = check_base(&before, &partial, &mut step).and_then(|()| match host {
        Some(host) => growing(&mut partial, (&before, host), bundle, options, &mut step),
        None => rootless::patch((&partial.path, options.root), (base, out), bundle, &mut step),
    });
    let done = done.map_err(|error| blame_host(&partial.path, out, error))?;
    partial.pack(Format::of_name(out))?;
    step(PatchStep::Publish);
    refuse_used(base, out, options.replace)?;
    partial.publish(out, options.replace)?;
    let Outcome { tree, already } = done;
    Ok(Patched { tree, clone: kind, already, steps: steps.end() })
}

/// Who mounts; `None` if debugfs writes, which cannot make an image larger.
fn mounting_host<'a>(
    base: &Path,
    options: &PatchOptions<'a>,
) -> Result<Option<&'a dyn MountHost>, ImageError> {
    let (kind, remedy) = match options.backend {
        Backend::Mount(host) => return Ok(Some(host)),
        Backend::Auto if can_mount() => return Ok(Some(&DetachedHost)),
        _ if options.grow == Grow::No => return Ok(None),
        Backend::Auto => (ErrorKind::NoRoot, "run it as root"),
        Backend::Rootless => (ErrorKind::Unsupported, "patch it with a mount"),
    };
    let message = format!(
        "{} cannot be made larger without mounting it: {remedy}, or do not let it grow (--grow)",
        base.display()
    );
    Err(ImageError::new(kind, message))
}

fn check_base(
    before: &Before<'_>,
    clone: &Partial,
    step: &mut dyn FnMut(PatchStep),
) -> Result<(), ImageError> {
    if before.how == BaseCheck::Skip {
        return Ok(());
    }
    step(PatchStep::CheckBase);
    before.check(&clone.path)?;
    // Who goes on finds out if somebody else has it.
    is_released(&clone.path).map(drop)
}

/// Whether the bundle changes anything at `at` or below it.
fn is_touched(bundle: &Bundle<'_, Verified<'_>>, at: &ImagePath) -> bool {
    bundle.change_set().changes.iter().any(|change| change.path.is_within(at))
}

/// Patches the clone `partial` of a base, larger and larger ones while the update does not fit and
/// `options` allow it.
fn growing(
    partial: &mut Partial,
    (before, host): (&Before<'_>, &dyn MountHost),
    bundle: &Bundle<'_, Verified<'_>>,
    options: &PatchOptions<'_>,
    step: &mut dyn FnMut(PatchStep),
) -> Result<Outcome, ImageError> {
    let base = before.base;
    let mut growth = Growth::new(options.grow, bundle.change_set());
    let most = options.max_grown_len.unwrap_or(MAX_GROWN_LEN).min(MAX_GROWN_LEN);
    loop {
        let image = DiskImage::open(&partial.path, options.root)?;
        match by_mount(image, (base, host), bundle, options.root, step) {
            Err(error) if error.is_for_room() && !is_full(&partial.path) => {
                let Some(len) = growth.next(error.shortage()) else {
                    return Err(ImageError::full(base, options.grow, error));
                };
                // What was staged is given up with the clone that it is in.
                step(PatchStep::Clone);
                partial.fill_again(base)?;
                if before.how == BaseCheck::Repair {
                    check_base(before, partial, step)?;
                }
                grow::grow((&partial.path, base), options.root, len, most)?;
            }
            outcome => return outcome,
        }
    }
}

/// Whether the host's file system that `path` is in has hardly any room left, for this process: asked by
/// taking it, as file systems count what is free differently. Where that cannot be asked, it is not.
fn is_full(path: &Path) -> bool {
    let take = || {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(directory_of(path), flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::fallocate(file, FallocateFlags::empty(), 0, HOST_ROOM)
    };
    matches!(take(), Err(Errno::NOSPC | Errno::DQUOT))
}

/// The clone is sparse: what is written into it needs room on the host, and where there is none, the
/// kernel says so of the file system inside, or that it cannot write.
fn blame_host(partial: &Path, out: &Path, error: ImageError) -> ImageError {
    use ErrorKind::{Damaged, Io, NoSpace, Unsupported};
    if !matches!(error.kind(), Damaged | Io | NoSpace | Unsupported) || !is_full(partial) {
        return error;
    }
    ImageError::full_host(out, error)
}

/// Patches the image, a clone of `base`, by mounting it with `host`; reads it back twice: as the
/// kernel shows it, and by our own reader once the kernel has let it go.
fn by_mount(
    image: DiskImage,
    (base, host): (&Path, &dyn MountHost),
    bundle: &Bundle<'_, Verified<'_>>,
    root: RootPartition,
    step: &mut dyn FnMut(PatchStep),
) -> Result<Outcome, ImageError> {
    step(PatchStep::Mount);
    let path = image.path().to_owned();
    let mounted = image.mount_by(host, Access::ReadWrite)?;
    let volumes = mounted.volumes().to_vec();
    let failed = |error| ImageError::tree(base, error);
    let changes = bundle.change_set();
    let is_holdable = |tree: &Tree| {
        let mut fats = volumes.iter().filter(|volume| volume.kind == FileSystemKind::Vfat);
        fats.try_for_each(|volume| refuse_unholdable(base, &volume.at, changes, tree))
    };
    is_holdable(&Tree::new())?;

    step(PatchStep::Stage);
    let staged =
        apply::stage(mounted.root(), bundle, &apply::ApplyOptions::default()).map_err(failed)?;
    let already = staged.already();
    step(PatchStep::Commit);
    staged.commit().and_then(apply::Committed::finish_for_good).map_err(failed)?;
    apply::seal(mounted.root(), bundle).map_err(failed)?;

    step(PatchStep::Verify);
    let tree = scan(mounted.root(), bundle.ignore(), &ScanOptions::default()).map_err(failed)?.tree;
    let digest = tree.digest();
    is_holdable(&tree)?;
    step(PatchStep::Unmount);
    mounted.finish()?;
    if digest != bundle.target() {
        let message = format!(
            "{}: patched, its tree would be {digest} instead of the bundle's target {}: it differs from the \
             bundle's base {} in paths that the bundle does not touch; nothing was changed",
            base.display(),
            bundle.target(),
            bundle.base()
        );
        return Err(ImageError::new(ErrorKind::Mismatch, message));
    }
    step(PatchStep::Check);
    // A vfat that the update does not touch is as the machine left it, which may not be tidy.
    let checked: Vec<Volume> = volumes
        .iter()
        .filter(|volume| volume.kind != FileSystemKind::Vfat || is_touched(bundle, &volume.at))
        .cloned()
        .collect();
    fsck_all(&path, &checked)?;
    if volumes
        .iter()
        .all(|volume| matches!(volume.kind, FileSystemKind::Ext | FileSystemKind::Vfat))
    {
        step(PatchStep::Reread);
        read_again(&path, root, tree, bundle)?;
    }
    Ok(Outcome { tree: digest, already })
}

/// Reads the tree in the image by our own reader, without the kernel and its caches of names and
/// inodes: all metadata, and the content of what the bundle changes. `tree` is what the kernel shows.
fn read_again(
    image: &Path,
    root: RootPartition,
    mut tree: Tree,
    bundle: &Bundle<'_, Verified<'_>>,
) -> Result<(), ImageError> {
    let disk = match unmounted::open(image, root, Unfinished::Refuse) {
        // What the kernel alone understands, such as casefold, the kernel alone can prove.
        Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(()),
        disk => disk?,
    };
    for change in &bundle.change_set().changes {
        tree.remove(&change.path);
    }
    let known = disk.known_from(&tree, bundle.ignore())?;
    let options = unmounted::ScanOptions { known: &known, ..Default::default() };
    let found = disk.scan(bundle.ignore(), &options)?.tree.digest();
    if found == bundle.target() {
        return Ok(());
    }
    let message = format!(
        "{}: the kernel shows the bundle's target {}, but without the kernel its tree is {found}: the host's \
         kernel or the image's file system is not sound; nothing was changed",
        image.display(),
        bundle.target()
    );
    Err(ImageError::new(ErrorKind::Mismatch, message))
}

/// Times the steps: each lasts until the next begins.
#[derive(Default)]
struct Steps {
    done: Vec<(&'static str, Duration)>,
    current: Option<(PatchStep, Instant)>,
}

impl Steps {
    fn begin(&mut self, step: PatchStep) {
        let now = Instant::now();
        if let Some((last, since)) = self.current.replace((step, now)) {
            self.done.push((last.name(), now - since));
        }
    }

    fn end(mut self) -> Vec<(&'static str, Duration)> {
        if let Some((last, since)) = self.current {
            self.done.push((last.name(), since.elapsed()));
        }
        self.done
    }
}

/// Makes `to` a clone of the image `from`, durably and under its name only when complete, in the
/// format that its name says: raw from qcow2, or the other way.
///
/// # Errors
///
/// `Io` if `to` exists, `NoSpace`, `Busy` if another process is making `to`.
pub fn clone_image(from: &Path, to: &Path) -> Result<CloneKind, ImageError> {
    refuse_existing(to, false)?;
    let mut partial = Partial::new(from, to)?;
    let kind = partial.fill(from)?;
    partial.pack(Format::of_name(to))?;
    partial.publish(to, false)?;
    Ok(kind)
}

fn refuse_existing(out: &Path, replace: bool) -> Result<(), ImageError> {
    if !replace && out.symlink_metadata().is_ok() {
        let message = format!("{} exists already; choose another name or remove it", out.display());
        return Err(ImageError::new(ErrorKind::Io, message));
    }
    Ok(())
}

/// Nobody may write to the base while it is cloned, and nobody may have open what is replaced: a
/// machine that runs on it would go on with the file that is gone.
fn refuse_used(base: &Path, out: &Path, replace: bool) -> Result<(), ImageError> {
    let ask = |path: &Path, free: fn(&File) -> io::Result<bool>| {
        let answer = File::open(path).and_then(|file| free(&file));
        match answer.map_err(|error| ImageError::io("ask who uses", path, error))? {
            true => Ok(()),
            false => Err(busy(path)),
        }
    };
    ask(base, lease::is_unwritten)?;
    if replace && out.exists() { ask(out, lease::is_exclusive) } else { Ok(()) }
}
