use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Serialize;
use vireo_delta::{Bundle, TrustedKeys, Verified};
use vireo_image::{Backend, BaseCheck, PatchOptions, patch_with};
use vireo_model::{Digest, Grow};
use vireo_sys::map_sealed;
use vireo_tree::apply::{ApplyOptions, Committed, Recovered, recover, stage};
use vireo_tree::{Root, ScanOptions, scan};

use super::public_keys;
use crate::Context;
use crate::exit::{Failure, Report, json};
use crate::progress::Step;
use crate::source::RootPartitionArgs;

/// Apply a bundle to an image or a directory, without a repository
///
/// An image is cloned, the clone is patched, proven and renamed into place: over the image
/// itself, or to the path given with `-o`. A directory is patched by staging and renaming; an
/// interrupted run is completed by the next.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bundle to be applied
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// Image or directory that it is applied to
    #[arg(long, value_name = "IMAGE|DIR")]
    to: PathBuf,
    /// Public key, or file with public keys, whose signature is trusted; can be given several times
    #[arg(long, value_name = "KEY|FILE", required = true)]
    trust: Vec<String>,
    /// Leave the image as it is and write the patched one here
    #[arg(long, short, value_name = "COPY")]
    out: Option<PathBuf>,
    /// Make the image larger if the update does not fit: by what it needs, or to SIZE (20G, 512M)
    ///
    /// The image's file, its last partition, and the ext4 root file system in it.
    #[arg(long, value_name = "SIZE|auto", value_parser = super::grow::parse, conflicts_with = "rootless")]
    grow: Option<Grow>,
    /// Patch the image with debugfs(8) instead of mounting it: needs no rights, and is what is done
    /// anyway where this process may not mount
    #[arg(long)]
    rootless: bool,
    /// Repair the clone of an image whose file systems are damaged or were not unmounted cleanly, and go on
    ///
    /// By `e2fsck -fp`, which plays back a journal; ext2, ext3 and ext4 alone. Without it they are refused.
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    partition: RootPartitionArgs,
}

#[derive(Debug, Serialize)]
pub(crate) struct Applied {
    to: PathBuf,
    target: Digest,
    /// Changes that were there already.
    already: usize,
    changed: usize,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Applied, Failure> {
    let path = &args.bundle;
    let trusted: TrustedKeys = public_keys(&args.trust)?.into_iter().collect();
    let file = File::open(path).map_err(|error| Failure::io("open", path, error))?;
    let map = map_sealed(&file).map_err(|error| Failure::io("map", path, error))?;
    let release = |bytes: &[u8]| map.release(bytes);
    let unusable = |error| Failure::bundle(path, error);
    let bundle = Bundle::open(&map)
        .and_then(|bundle| bundle.held_by(&release).verify(&trusted))
        .map_err(unusable)?;
    bundle.check().map_err(unusable)?;
    let metadata = fs::metadata(&args.to).map_err(|error| Failure::io("open", &args.to, error))?;
    let step = Step::new(context, format!("applying to {}", args.to.display()));
    if metadata.is_dir() && args.repair {
        let message = format!("{} is a directory; --repair is for images", args.to.display());
        return Err(Failure::refused(message).hint("leave --repair out"));
    }
    if metadata.is_dir() && args.grow.is_some_and(|grow| grow != Grow::No) {
        let message = format!("{} is a directory; --grow is for images", args.to.display());
        let hint = "leave --grow out; make room in the file system that the directory is in";
        return Err(Failure::refused(message).hint(hint));
    }
    match (&args.out, metadata.is_dir()) {
        (Some(_), true) => {
            Err(Failure::refused(format!("{} is a directory; -o is for images", args.to.display()))
                .hint("copy the directory first (`cp -a`), then apply to the copy"))
        }
        (None, true) => to_dir(&args.to, &bundle),
        (Some(out), false) => to_image(args, &args.to, out, &bundle, &step),
        (None, false) => {
            // Through symbolic links: what they lead to is patched, not a link replaced.
            let image =
                fs::canonicalize(&args.to).map_err(|error| Failure::io("open", &args.to, error))?;
            to_image(args, &image, &image, &bundle, &step)
        }
    }
}

fn to_image(
    args: &Args,
    base: &Path,
    out: &Path,
    bundle: &Bundle<'_, Verified<'_>>,
    step: &Step,
) -> Result<Applied, Failure> {
    let backend = if args.rootless { Backend::Rootless } else { Backend::Auto };
    let grow = args.grow.unwrap_or_default();
    let (root, replace) = (args.partition.get(), out == base);
    let check = if args.repair { BaseCheck::Repair } else { BaseCheck::Refuse };
    let options =
        PatchOptions { root, base: check, replace, backend, grow, ..PatchOptions::default() };
    let patched = patch_with(base, out, bundle, &options, &mut |next| step.set(next.name()))?;
    let changed = bundle.change_set().changes.len() - patched.already;
    Ok(Applied { to: out.to_owned(), target: patched.tree, already: patched.already, changed })
}

fn to_dir(dir: &Path, bundle: &Bundle<'_, Verified<'_>>) -> Result<Applied, Failure> {
    let root = Root::open(dir)?;
    if let Recovered::Completed(committed) = recover(&root)? {
        committed.finish_for_good()?;
    }
    let staged = stage(&root, bundle, &ApplyOptions::default())?;
    let already = staged.already();
    // Staging looked at what the bundle changes; all else has to be the base's as well.
    let before = scan(&root, bundle.ignore(), &ScanOptions::default())?;
    let mut expected = before.tree.clone();
    bundle.change_set().apply_to(&mut expected);
    if expected.digest() != bundle.target() {
        staged.discard()?;
        let message = format!(
            "{} differs from the bundle's base {} in paths that the bundle does not touch; nothing \
             was changed",
            dir.display(),
            bundle.base()
        );
        let hint = "use the directory that the bundle was captured from; `vireo diff` compares";
        return Err(Failure::refused(message).hint(hint));
    }
    staged.commit().and_then(Committed::finish_for_good)?;
    let options = ScanOptions { clone_of: Some(&before), ..ScanOptions::default() };
    let found = scan(&root, bundle.ignore(), &options)?.tree.digest();
    if found != bundle.target() {
        let target = bundle.target();
        let message = format!("{} was patched, but is {found}, not {target}", dir.display());
        let hint = "something else changes it; `vireo diff` compares it with the target";
        return Err(Failure::new(message).hint(hint));
    }
    let changed = bundle.change_set().changes.len() - already;
    Ok(Applied { to: dir.to_owned(), target: found, already, changed })
}

impl Report for Applied {
    fn to_text(&self) -> String {
        let done = if self.changed == 0 {
            "was the target already".to_owned()
        } else {
            format!(
                "is the target now: {} changes, {} were there already",
                self.changed, self.already
            )
        };
        format!("{} {done}\nversion {}", self.to.display(), self.target)
    }

    fn to_json(&self) -> String {
        json("vireo.apply/1", self)
    }
}
