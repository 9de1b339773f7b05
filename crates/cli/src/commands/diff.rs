use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use vireo_image::unmounted;
use vireo_model::{ChangeKind, ChangeSet, Digest, Ignore, ImagePath};
use vireo_tree::{Root, ScanOptions, scan};

use crate::Context;
use crate::exit::{Failure, Report, json};
use crate::progress::Step;
use crate::source::{IgnoreArgs, RootPartitionArgs, TreeSource, UnmountedArgs, esp_difference};

/// List the paths in which two images or directories differ
///
/// Exits with 0 if there are none and with 1 if there are. Of two images that are read without
/// mounting, a file whose inode, times of modification and change and place on the disk are equal
/// in both is read once; of two directories, a file that shares all its blocks with the other's
/// (`cp --reflink` on btrfs and XFS).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The one
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// The other
    #[arg(value_name = "TARGET")]
    target: PathBuf,
    #[command(flatten)]
    ignore: IgnoreArgs,
    #[command(flatten)]
    partition: RootPartitionArgs,
    #[command(flatten)]
    unmounted: UnmountedArgs,
    /// Read every file, also those whose metadata or blocks say that they are the same
    #[arg(long)]
    paranoid: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Difference {
    base: Digest,
    target: Digest,
    paths: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    path: ImagePath,
    change: ChangeKind,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Difference, Failure> {
    let ignore = args.ignore.get()?;
    let _step = Step::new(
        context,
        format!("comparing {} and {}", args.base.display(), args.target.display()),
    );
    let changes = changes(args, &ignore, context)?;
    let line =
        |change: &vireo_model::Change| Line { path: change.path.clone(), change: change.kind() };
    Ok(Difference {
        base: changes.base,
        target: changes.target,
        paths: changes.changes.iter().map(line).collect(),
    })
}

fn changes(args: &Args, ignore: &Ignore, context: &Context) -> Result<ChangeSet, Failure> {
    let open = |path: &Path| TreeSource::open(path, args.partition, args.unmounted);
    let (base, target) = (open(&args.base)?, open(&args.target)?);
    base.check(context, &args.base, ignore)?;
    target.check(context, &args.target, ignore)?;
    match esp_difference((&args.base, &base.vfat()), (&args.target, &target.vfat())) {
        Ok(None) => {}
        Ok(Some(difference)) => context.warn(&difference),
        Err(error) => context.warn(&format!("what is on vfat was not compared: {error}")),
    }
    if let (TreeSource::Unmounted(base), TreeSource::Unmounted(target)) = (&base, &target) {
        return Ok(unmounted::compare(base, target, ignore, args.paranoid)?.changes);
    }
    if let (TreeSource::Root(base), TreeSource::Root(target)) = (&base, &target) {
        return between_roots(base.root(), target.root(), ignore, args.paranoid);
    }
    Ok(ChangeSet::between(&base.tree(ignore)?, &target.tree(ignore)?))
}

/// What differs between two directories or mounted images.
fn between_roots(
    base: &Root,
    target: &Root,
    ignore: &Ignore,
    paranoid: bool,
) -> Result<ChangeSet, Failure> {
    let before = scan(base, ignore, &ScanOptions::default())?;
    let shares_with = (!paranoid).then_some((base, &before));
    let after = scan(target, ignore, &ScanOptions { shares_with, ..ScanOptions::default() })?;
    Ok(ChangeSet::between(&before.tree, &after.tree))
}

impl Report for Difference {
    fn to_text(&self) -> String {
        if self.paths.is_empty() {
            return format!("no difference: both are {}", self.base);
        }
        let lines: Vec<String> = self
            .paths
            .iter()
            .map(|line| format!("{:<9} {}", format!("{:?}", line.change).to_lowercase(), line.path))
            .collect();
        lines.join("\n")
    }

    fn to_json(&self) -> String {
        json("vireo.diff/1", self)
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::from(!self.paths.is_empty()))
    }
}
