use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vireo_capture::{
    CaptureError, CaptureOptions, Captured, DigestCache, ErrorKind, Source, capture_images,
    capture_mixed,
};
use vireo_classify::ReadMap;
use vireo_delta::{Effort, Permits, SecretKey, limits};
use vireo_model::Digest;

use super::{bytes, secret_key};
use crate::Context;
use crate::exit::{Failure, Report, json};
use crate::progress::Step;
use crate::source::{CacheArgs, CaptureSource, IgnoreArgs, RootPartitionArgs, esp_difference};

/// Capture what turns one image or directory into another, as a signed bundle
///
/// Neither source is changed. Both may be disk images, raw or qcow2, which are read in place, or directories, of which
/// the disk file systems mounted in them are parts: / is a machine's root as its agent reads it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image or directory before the change
    #[arg(long, value_name = "SRC")]
    base: PathBuf,
    /// Image or directory after the change
    #[arg(long, value_name = "SRC")]
    target: PathBuf,
    /// File with the secret key that signs
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The bundle to be written
    #[arg(long, short, value_name = "OUT.vireo")]
    out: PathBuf,
    /// Read every file, also those whose metadata or blocks say that they are the same
    #[arg(long)]
    paranoid: bool,
    /// How hard to try to make the bundle small: fast, default or max
    #[arg(long, value_name = "HOW", default_value = "default")]
    effort: Effort,
    /// Allow what would be dangerous if it came unintended: setuid, devices or mass (repeatable)
    ///
    /// setuid: files get set-user-ID, set-group-ID or capabilities that the base's files at those
    /// paths have not. devices: device nodes are added. mass: more than half of the tree is removed
    /// or replaced. The permits are signed with the bundle.
    #[arg(long, value_name = "WHAT")]
    permit: Vec<Permits>,
    /// The read map of `vireo record`, to travel with the bundle
    #[arg(long, value_name = "FILE")]
    read_map: Option<PathBuf>,
    /// Leave out what differs on EFI system partitions (vfat): images and machines keep what they have
    /// there
    #[arg(long)]
    without_esp: bool,
    #[command(flatten)]
    ignore: IgnoreArgs,
    #[command(flatten)]
    partition: RootPartitionArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

#[derive(Debug, Serialize)]
pub(crate) struct Done {
    bundle: Digest,
    file: PathBuf,
    base: Digest,
    target: Digest,
    wire_bytes: u64,
    changed_bytes: u64,
    new_bytes: u64,
    added: usize,
    modified: usize,
    removed: usize,
    metadata: usize,
    paths: usize,
    hashed: usize,
    base_hashed: usize,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Done, Failure> {
    let key = secret_key(&args.key)?;
    let options = CaptureOptions {
        ignore: args.ignore.get()?,
        paranoid: args.paranoid,
        permits: args.permit.iter().copied().collect(),
        effort: args.effort,
        read_map: args.read_map.as_deref().map(read_map).transpose()?,
        without_esp: args.without_esp,
    };
    let _step = Step::new(context, format!("capturing {}", args.target.display()));
    let base = CaptureSource::open(&args.base, args.partition)?;
    let target = CaptureSource::open(&args.target, args.partition)?;
    base.check(context, &args.base, &options.ignore)?;
    target.check(context, &args.target, &options.ignore)?;
    for (source, path) in [(&base, &args.base), (&target, &args.target)] {
        for file in [("the key", &*args.key), ("the output", &*args.out)] {
            source.refuse_inside(path, file, &options.ignore)?;
        }
    }
    if !args.without_esp {
        refuse_esp_changes((&args.base, &base.vfat()), (&args.target, &target.vfat()))?;
    }
    let captured =
        capture(&base, &target, args, &options, &key).map_err(|error| match error.kind() {
            ErrorKind::NotPermitted => Failure::refused(error.to_string())
                .hint("look at the paths; --permit takes setuid, devices and mass"),
            _ => error.into(),
        })?;
    if let Some(error) = &captured.not_remembered {
        context.warn(&format!("the images' digests cannot be remembered: {error}"));
    }
    Ok(Done::new(args.out.clone(), &captured))
}

/// A bundle would be without what lies there, and a kernel without its modules or the reverse.
fn refuse_esp_changes(base: (&Path, &[u32]), target: (&Path, &[u32])) -> Result<(), Failure> {
    let found = esp_difference(base, target);
    let found = found.map_err(|error| {
        Failure::from(error).hint("repair it, or capture the rest with --without-esp")
    });
    let Some(difference) = found? else { return Ok(()) };
    Err(Failure::refused(format!("cannot capture all of the update: {difference}")).hint(
        "mount it by /etc/fstab in both (at /efi, /boot/efi or /boot), so that it is part of the image; or \
         capture the rest with --without-esp",
    ))
}

fn capture(
    base: &CaptureSource,
    target: &CaptureSource,
    args: &Args,
    options: &CaptureOptions,
    key: &SecretKey,
) -> Result<Captured, CaptureError> {
    // What is written into a directory that is captured would be captured, too.
    let is_inside = |dir: &PathBuf| {
        [base, target].iter().any(|source| source.holds(dir, &options.ignore).is_some())
    };
    let cache = args.cache.dir().filter(|dir| !is_inside(dir)).map(DigestCache::new);
    let cache = cache.as_ref();
    match (base.source(), target.source()) {
        (Source::Image(base), Source::Image(target)) => {
            capture_images(base, target, options, cache, key, &args.out)
        }
        (Source::Root(base), Source::Root(target)) => {
            vireo_capture::capture(base, target, options, key, &args.out)
        }
        (base, target) => capture_mixed(base, target, options, cache, key, &args.out),
    }
}

/// What a bundle may carry is what a machine reads from it.
const _: () = assert!(vireo_classify::MAX_READ_MAP_LEN as u64 == limits::MAX_READ_MAP_LEN);

/// The map in `path`, found good: machines refuse a bundle with another.
fn read_map(path: &Path) -> Result<Vec<u8>, Failure> {
    let file = fs::File::open(path).map_err(|error| {
        let absent = error.kind() == std::io::ErrorKind::NotFound;
        let failure = Failure::io("read the read map", path, error);
        if absent { failure.hint("make one with `vireo record`") } else { failure }
    })?;
    let mut text = Vec::new();
    file.take(limits::MAX_READ_MAP_LEN + 1)
        .read_to_end(&mut text)
        .map_err(|error| Failure::io("read the read map", path, error))?;
    let map = ReadMap::from_json(&text).map_err(|error| {
        Failure::refused(format!("cannot use {}", path.display()))
            .caused_by(error)
            .hint("make another one with `vireo record`")
    })?;
    map.to_json().map(String::into_bytes).map_err(|error| Failure::refused(error.to_string()))
}

impl Done {
    fn new(file: PathBuf, captured: &Captured) -> Self {
        Self {
            bundle: captured.bundle,
            file,
            base: captured.base,
            target: captured.target,
            wire_bytes: captured.wire_len,
            changed_bytes: captured.content_len,
            new_bytes: captured.literal_len,
            added: captured.added,
            modified: captured.modified,
            removed: captured.removed,
            metadata: captured.metadata,
            paths: captured.paths,
            hashed: captured.hashed,
            base_hashed: captured.base_hashed,
        }
    }
}

impl Report for Done {
    fn to_text(&self) -> String {
        format!(
            "{}  {} for {} of changed files\n{} modified, {} added, {} removed, {} with metadata only, of {} paths\nbase    {}\ntarget  {}",
            self.file.display(),
            bytes(self.wire_bytes),
            bytes(self.changed_bytes),
            self.modified,
            self.added,
            self.removed,
            self.metadata,
            self.paths,
            self.base,
            self.target
        )
    }

    fn to_json(&self) -> String {
        json("vireo.capture/1", self)
    }
}
