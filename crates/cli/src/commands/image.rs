use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use tempfile::TempDir;
use vireo_image::{Format, clone_image};
use vireo_model::{ImageName, ImageRef};
use vireo_wire::api::{CreateImage, VerifyReply, VersionEntry};

use super::{Outcome, bytes, public_keys};
use crate::Context;
use crate::exit::{Failure, Report, json};
use crate::progress::Step;
use crate::repository::RepoArgs;
use crate::source::{IgnoreArgs, RootPartitionArgs};

/// Create, export and verify the images of a repository
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Create(Create),
    Export(Export),
    Verify(Verify),
}

/// Make a new image from a disk image, raw or qcow2, as its version 1
///
/// The repository keeps it raw, with its holes; `export` to a name that ends in .qcow2 gives qcow2.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// The image's name
    #[arg(value_name = "NAME")]
    name: ImageName,
    /// Disk image that it starts from; qcow2 if the name ends in .qcow2
    #[arg(value_name = "BASE.img")]
    disk: PathBuf,
    /// Public key, or file with public keys, whose bundles this image accepts
    #[arg(long, value_name = "KEY|FILE")]
    trust: Vec<String>,
    /// Have the repository repair its copy if a file system is damaged or was not unmounted cleanly
    ///
    /// By `e2fsck -fp`, so ext2, ext3 and ext4 alone; BASE.img stays as it is.
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    partition: RootPartitionArgs,
    #[command(flatten)]
    ignore: IgnoreArgs,
    #[command(flatten)]
    repo: RepoArgs,
}

/// Copy a version's disk image out of the repository
#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    /// The image, or one version of it
    #[arg(value_name = "NAME[@VERSION]")]
    image: ImageRef,
    /// The file to be written; qcow2 if the name ends in .qcow2
    #[arg(long, short, value_name = "OUT.img")]
    out: PathBuf,
    #[command(flatten)]
    repo: RepoArgs,
}

/// Have the repository read a stored disk image again and compare it with its version
///
/// Exits with 0 if they are equal, and with 1 and the differing paths if not.
#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// The image, or one version of it
    #[arg(value_name = "NAME[@VERSION]")]
    image: ImageRef,
    #[command(flatten)]
    repo: RepoArgs,
}

impl Command {
    pub(crate) fn run(&self, context: &Context) -> Outcome {
        Ok(match self {
            Self::Create(args) => Box::new(create(args, context)?),
            Self::Export(args) => Box::new(export(args, context)?),
            Self::Verify(args) => Box::new(verify(args, context)?),
        })
    }
}

/// A directory for a raw copy, where there has to be room for the image itself. Gone when dropped.
fn beside(file: &Path) -> Result<TempDir, Failure> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    TempDir::with_prefix_in(".vireo-raw-", dir).map_err(|error| {
        Failure::io("make a directory for its raw form in", dir, error).hint(
            "put the qcow2 file into a directory that you may write to, with room for the disk",
        )
    })
}

#[derive(Debug, Serialize)]
struct Created {
    image: ImageName,
    version: VersionEntry,
}

fn create(args: &Create, context: &Context) -> Result<Created, Failure> {
    let options = CreateImage {
        ignore: args.ignore.site()?,
        trusted: public_keys(&args.trust)?,
        root_partition: args.partition.number(),
        repair: args.repair,
    };
    let step = Step::new(context, format!("creating {} from {}", args.name, args.disk.display()));
    let progress = |p: vireo_wire::Progress| step.bytes(p.done, p.total);
    let repo = args.repo.open()?;
    let version = match Format::of_name(&args.disk) {
        Format::Qcow2 => {
            let beside = beside(&args.disk)?;
            let raw = beside.path().join("disk.img");
            clone_image(&args.disk, &raw)?;
            repo.create_image(&args.name, &raw, &options, &progress)?
        }
        _ => repo.create_image(&args.name, &args.disk, &options, &progress)?,
    };
    Ok(Created { image: args.name.clone(), version })
}

impl Report for Created {
    fn to_text(&self) -> String {
        format!("{}@{} is {}", self.image, self.version.number, self.version.tree)
    }

    fn to_json(&self) -> String {
        json("vireo.image/1", self)
    }
}

#[derive(Debug, Serialize)]
struct Exported {
    image: ImageName,
    version: u64,
    file: PathBuf,
    image_bytes: u64,
}

fn export(args: &Export, context: &Context) -> Result<Exported, Failure> {
    let repo = args.repo.open()?;
    let name = &args.image.name;
    let version = repo.version(name, args.image.version)?;
    let step = Step::new(context, format!("exporting {name}@{version}"));
    let progress = |p: vireo_wire::Progress| step.bytes(p.done, p.total);
    let image_bytes = match Format::of_name(&args.out) {
        Format::Qcow2 => {
            // Before anything is fetched.
            if args.out.symlink_metadata().is_ok() {
                let message = format!("{} exists already", args.out.display());
                return Err(Failure::new(message).hint("choose another name or remove it"));
            }
            let beside = beside(&args.out)?;
            let raw = beside.path().join("disk.img");
            let len = repo.export(name, version, &raw, &progress)?;
            clone_image(&raw, &args.out)?;
            len
        }
        _ => repo.export(name, version, &args.out, &progress)?,
    };
    Ok(Exported { image: name.clone(), version, file: args.out.clone(), image_bytes })
}

impl Report for Exported {
    fn to_text(&self) -> String {
        format!(
            "{}@{} is in {} ({})",
            self.image,
            self.version,
            self.file.display(),
            bytes(self.image_bytes)
        )
    }

    fn to_json(&self) -> String {
        json("vireo.export/1", self)
    }
}

#[derive(Debug, Serialize)]
struct Verified {
    image: ImageName,
    equal: bool,
    #[serde(flatten)]
    reply: VerifyReply,
}

fn verify(args: &Verify, context: &Context) -> Result<Verified, Failure> {
    let repo = args.repo.open()?;
    let name = &args.image.name;
    let version = repo.version(name, args.image.version)?;
    let _step = Step::new(context, format!("verifying {name}@{version}"));
    let reply = repo.verify(name, version)?;
    Ok(Verified { image: name.clone(), equal: reply.matches(), reply })
}

impl Report for Verified {
    fn to_text(&self) -> String {
        let VerifyReply { number, expected, found, differing } = &self.reply;
        if self.equal {
            return format!("{}@{number} is {expected}, as published", self.image);
        }
        let list = differing.join("\n");
        format!(
            "{}@{number} should be {expected}, but is {found}; it differs in\n{list}",
            self.image
        )
    }

    fn to_json(&self) -> String {
        json("vireo.verify/1", self)
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::from(!self.equal))
    }
}
