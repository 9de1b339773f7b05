//! What can be captured, digested and compared: a directory, or a disk image.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use vireo_capture::Image;
use vireo_image::unmounted::{self, Disk, Unfinished};
use vireo_image::{
    Access, DiskImage, ErrorKind, FileSystemKind, Format, ImageError, LeftOut, Mounted,
    RootPartition, Volume, esp_changes,
};
use vireo_model::{Ignore, ImagePath, Tree};
use vireo_sys::durable::directory_of;
use vireo_tree::{Machine, Other, Root, ScanOptions, scan};

use crate::Context;
use crate::exit::Failure;

/// Which partition of an image holds the root file system.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct RootPartitionArgs {
    /// Number of the partition with the root file system, if it cannot be told
    #[arg(long, value_name = "NUMBER")]
    root_partition: Option<u32>,
}

impl RootPartitionArgs {
    pub(crate) fn get(self) -> RootPartition {
        self.root_partition.into()
    }

    pub(crate) fn number(self) -> Option<u32> {
        self.root_partition
    }
}

/// Paths that belong to no version.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct IgnoreArgs {
    /// File with patterns of paths that belong to no version, one a line, added to the built-in ones
    #[arg(long, value_name = "FILE")]
    ignore: Option<std::path::PathBuf>,
}

impl IgnoreArgs {
    /// The site's own patterns.
    pub(crate) fn site(&self) -> Result<Vec<String>, Failure> {
        let Some(path) = &self.ignore else {
            return Ok(Vec::new());
        };
        let text = fs::read_to_string(path).map_err(|error| Failure::io("read", path, error))?;
        let lines = text.lines().map(str::trim);
        Ok(lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect())
    }

    pub(crate) fn get(&self) -> Result<Ignore, Failure> {
        Ignore::with_site(&self.site()?).map_err(|error| {
            let path = self.ignore.as_deref().unwrap_or(Path::new("the built-in list"));
            Failure::refused(format!("cannot use the ignore list {}", path.display()))
                .caused_by(error)
        })
    }
}

/// An open source; an image is mounted for as long as this lives. A directory has the disk file systems that are
/// mounted in it, as on the machine that an agent updates.
#[derive(Debug)]
pub(crate) enum Source {
    Dir(Machine),
    Image(Mounted),
}

impl Source {
    pub(crate) fn open(path: &Path, partition: RootPartitionArgs) -> Result<Self, Failure> {
        let metadata = fs::metadata(path).map_err(|error| Failure::io("open", path, error))?;
        if metadata.is_dir() {
            return Ok(Self::Dir(Machine::open(path)?));
        }
        let image = DiskImage::open(path, partition.get())?;
        Ok(Self::Image(image.mount(Access::ReadOnly)?))
    }

    pub(crate) fn root(&self) -> &Root {
        match self {
            Self::Dir(machine) => machine.root(),
            Self::Image(mounted) => mounted.root(),
        }
    }

    fn vfat(&self) -> Vec<u32> {
        match self {
            Self::Dir(_) => Vec::new(),
            Self::Image(mounted) => vfat(mounted.volumes()),
        }
    }

    /// Tells what is left out of the tree of `path`, and fails if that cannot be.
    fn check(&self, context: &Context, path: &Path, ignore: &Ignore) -> Result<(), Failure> {
        match self {
            Self::Dir(machine) => check_others(context, path, machine.others(), ignore),
            Self::Image(mounted) => {
                warn_left_out(context, path, mounted.left_out());
                Ok(())
            }
        }
    }

    /// Where in its tree the file `file` is, if this is a directory that holds it.
    fn place_of(&self, file: &Path) -> Option<ImagePath> {
        let Self::Dir(machine) = self else { return None };
        let file = canonical(file)?;
        let below = file.strip_prefix(machine.place()?).ok()?.as_os_str().as_bytes();
        let at = ImagePath::parse(&[b"/".as_slice(), below].concat()).ok()?;
        let is_hidden = |other: &Other| at.is_within(&other.at) && !other.is_read;
        (!machine.others().iter().any(is_hidden)).then_some(at)
    }
}

/// The name of `file` without symbolic links; of one that is not there yet, the place that it would have.
fn canonical(file: &Path) -> Option<PathBuf> {
    let place = || {
        let name = file.file_name()?;
        Some(canonical(directory_of(file))?.join(name))
    };
    fs::canonicalize(file).ok().or_else(place)
}

/// Tells what is mounted in the directory `path` and is no part of its tree. Fails if that would be read as if it
/// were.
fn check_others(
    context: &Context,
    path: &Path,
    others: &[Other],
    ignore: &Ignore,
) -> Result<(), Failure> {
    let counts: Vec<&Other> = others.iter().filter(|other| !other.is_left_out(ignore)).collect();
    if counts.is_empty() {
        return Ok(());
    }
    let place = path.display();
    let named = named(counts.iter().map(|other| format!("{} ({})", other.at, other.kind)));
    if counts.iter().any(|other| other.is_read) {
        let message = format!("{place} has other file systems in it: {named}");
        return Err(Failure::refused(message).hint(
            "run it as root, outside of containers: it then reads what they hide; or leave them out with --ignore",
        ));
    }
    context.warn(&format!("{place}: read is what these mounts hide, not what they show: {named}"));
    Ok(())
}

/// The numbers of the partitions with FAT among `volumes`, which are the parts of a tree.
fn vfat<'v>(volumes: impl IntoIterator<Item = &'v Volume>) -> Vec<u32> {
    let vfat = volumes.into_iter().filter(|volume| volume.kind == FileSystemKind::Vfat);
    vfat.map(|volume| volume.partition.number).collect()
}

/// Tells what a machine of the image `path` has that belongs to no version.
fn warn_left_out(context: &Context, path: &Path, left_out: &[LeftOut]) {
    for LeftOut { at, why } in left_out {
        context.warn(&format!("{}: left out what is mounted at {at}: {why}", path.display()));
    }
}

/// Most paths that a message names.
const MAX_NAMED: usize = 8;

/// What differs between the EFI system partitions of two images that are no parts of their trees; nothing if one is no
/// image. Each image has the numbers of the partitions with FAT that are.
pub(crate) fn esp_difference(
    (base, in_base): (&Path, &[u32]),
    (target, in_target): (&Path, &[u32]),
) -> Result<Option<String>, ImageError> {
    if base.is_dir() || target.is_dir() {
        return Ok(None);
    }
    let in_both: Vec<u32> =
        in_base.iter().copied().filter(|number| in_target.contains(number)).collect();
    let changes = esp_changes(base, target, &in_both)?;
    if changes.is_empty() {
        return Ok(None);
    }
    let named = named(changes.iter().map(ToString::to_string));
    Ok(Some(format!(
        "what {} has on an EFI system partition (vfat) that its /etc/fstab does not mount, and that belongs to no \
         version for that, differs from {}: {named}",
        target.display(),
        base.display(),
    )))
}

/// A list for a message.
fn named(mut all: impl ExactSizeIterator<Item = String>) -> String {
    let first: Vec<String> = all.by_ref().take(MAX_NAMED).collect();
    match all.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Where digests of images' files are remembered.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct CacheArgs {
    /// Directory where digests of the images' files are remembered, so that the next capture reads
    /// only what changed since
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    cache: Option<PathBuf>,
    /// Remember nothing
    #[arg(long)]
    no_cache: bool,
}

impl CacheArgs {
    /// `--cache`, else `$XDG_CACHE_HOME/vireo/digests`, else that in `~/.cache`.
    pub(crate) fn dir(&self) -> Option<PathBuf> {
        if self.no_cache {
            return None;
        }
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let caches = || {
            let home = || set("HOME").map(|home| PathBuf::from(home).join(".cache"));
            set("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)
        };
        self.cache.clone().or_else(|| Some(caches()?.join("vireo/digests")))
    }
}

/// An open source of a capture: images are read in place, or mounted where only the kernel can read
/// them.
#[derive(Debug)]
pub(crate) enum CaptureSource {
    Root(Box<Source>),
    Image(Box<Image>),
}

impl CaptureSource {
    pub(crate) fn open(path: &Path, partition: RootPartitionArgs) -> Result<Self, Failure> {
        if path.is_dir() {
            return Source::open(path, partition).map(|source| Self::Root(Box::new(source)));
        }
        match Image::open(path, partition.get()) {
            Ok(image) => Ok(Self::Image(Box::new(image))),
            Err(error)
                if error.kind() == ErrorKind::Unsupported
                    && Format::of_name(path) == Format::Raw
                    && !unmounted::is_needed() =>
            {
                Source::open(path, partition).map(|source| Self::Root(Box::new(source)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The numbers of its partitions with FAT that are parts of its tree.
    pub(crate) fn vfat(&self) -> Vec<u32> {
        match self {
            Self::Root(source) => source.vfat(),
            Self::Image(image) => vfat(image.volumes()),
        }
    }

    /// Tells what is left out of it, and fails if that cannot be.
    pub(crate) fn check(
        &self,
        context: &Context,
        path: &Path,
        ignore: &Ignore,
    ) -> Result<(), Failure> {
        match self {
            Self::Root(source) => source.check(context, path, ignore),
            Self::Image(image) => {
                warn_left_out(context, path, image.left_out());
                Ok(())
            }
        }
    }

    /// Where `file`, which need not be there yet, would be read as a part of the tree, if it would.
    pub(crate) fn holds(&self, file: &Path, ignore: &Ignore) -> Option<ImagePath> {
        let Self::Root(source) = self else { return None };
        source.place_of(file).filter(|at| !ignore.covers(at))
    }

    /// Fails if the file `file`, which is `what`, would be read as a part of the tree of `path`.
    pub(crate) fn refuse_inside(
        &self,
        path: &Path,
        (what, file): (&str, &Path),
        ignore: &Ignore,
    ) -> Result<(), Failure> {
        let Some(at) = self.holds(file, ignore) else { return Ok(()) };
        let (file, path) = (file.display(), path.display());
        Err(Failure::refused(format!(
            "{what} {file} is {at} in {path}, which is captured: it would travel in the bundle"
        ))
        .hint(
            "keep it out of the directory, in a place that belongs to no version (/run, /tmp), or leave it out with \
             --ignore",
        ))
    }

    pub(crate) fn source(&self) -> vireo_capture::Source<'_> {
        match self {
            Self::Root(source) => vireo_capture::Source::Root(source.root()),
            Self::Image(image) => vireo_capture::Source::Image(image),
        }
    }
}

/// Whether images are read without mounting them.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct UnmountedArgs {
    /// Read images without mounting them, as is always done without root; one that was not shut
    /// down cleanly is then read as it would be after its journal is played back
    #[arg(long)]
    unmounted: bool,
}

/// What is only read as a tree, so that an image need not be mounted for it.
#[derive(Debug)]
pub(crate) enum TreeSource {
    Root(Box<Source>),
    Unmounted(Box<Disk>),
}

impl TreeSource {
    pub(crate) fn open(
        path: &Path,
        partition: RootPartitionArgs,
        args: UnmountedArgs,
    ) -> Result<Self, Failure> {
        let is_qcow2 = Format::of_name(path) == Format::Qcow2;
        if path.is_dir() || !(args.unmounted || is_qcow2 || unmounted::is_needed()) {
            return Source::open(path, partition).map(|source| Self::Root(Box::new(source)));
        }
        // An image that is in use looks like one of a crashed machine: only on request.
        let unfinished = if args.unmounted { Unfinished::Replay } else { Unfinished::Refuse };
        let disk = unmounted::open(path, partition.get(), unfinished)?;
        Ok(Self::Unmounted(Box::new(disk)))
    }

    /// The numbers of its partitions with FAT that are parts of its tree.
    pub(crate) fn vfat(&self) -> Vec<u32> {
        match self {
            Self::Root(source) => source.vfat(),
            Self::Unmounted(disk) => vfat(disk.volumes()),
        }
    }

    /// Tells what is left out of it, and fails if that cannot be.
    pub(crate) fn check(
        &self,
        context: &Context,
        path: &Path,
        ignore: &Ignore,
    ) -> Result<(), Failure> {
        match self {
            Self::Root(source) => source.check(context, path, ignore),
            Self::Unmounted(disk) => {
                warn_left_out(context, path, disk.left_out());
                Ok(())
            }
        }
    }

    pub(crate) fn tree(&self, ignore: &Ignore) -> Result<Tree, Failure> {
        match self {
            Self::Root(source) => Ok(scan(source.root(), ignore, &ScanOptions::default())?.tree),
            Self::Unmounted(disk) => {
                Ok(disk.scan(ignore, &unmounted::ScanOptions::default())?.tree)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_or_output_in_a_captured_directory_is_refused_and_one_beside_it_is_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("tree/tmp")).expect("made");
        fs::write(at("tree/key"), "secret").expect("written");
        fs::write(at("key"), "secret").expect("written");
        std::os::unix::fs::symlink("tree/key", at("link")).expect("linked");
        let partition = RootPartitionArgs::default();
        let source = CaptureSource::open(&at("tree"), partition).expect("opens");
        let refused = |name: &str, ignore: &Ignore| {
            let file = at(name);
            source.refuse_inside(&at("tree"), ("the key", &file), ignore).is_err()
        };
        let ignore = Ignore::default();
        // By any name, and whether it is there already or not.
        for name in
            ["tree/key", "link", "tree/new.vireo", "tree/tmp/../new.vireo", "tree/not/there/yet"]
        {
            assert!(refused(name, &ignore), "{name}");
        }
        for name in ["key", "new.vireo", "tree/../key", "tree/tmp/key"] {
            assert!(!refused(name, &ignore), "{name}");
        }
        assert!(!refused("tree/key", &Ignore::new(["/key"]).expect("a glob")));
    }

    #[test]
    fn a_message_names_the_first_and_counts_the_rest() {
        let numbers = |count: usize| named((0..count).map(|number| number.to_string()));
        assert_eq!(numbers(3), "0, 1, 2");
        assert_eq!(numbers(10), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}
