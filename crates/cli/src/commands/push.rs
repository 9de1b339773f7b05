use std::fs::File;
use std::path::PathBuf;

use serde::Serialize;
use vireo_delta::{Bundle, TrustedKeys};
use vireo_model::{Grow, ImageName};
use vireo_wire::api::{PushOptions, PushReply};

use super::bytes;
use crate::Context;
use crate::exit::{Failure, Report, json};
use crate::progress::Step;
use crate::repository::RepoArgs;

/// Push a bundle: the repository patches the image and hands the change to its machines
///
/// Only what the repository lacks is sent, and an interrupted push goes on where it stopped.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bundle to be pushed
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// Image whose newest version it starts from
    #[arg(value_name = "NAME")]
    name: ImageName,
    /// Let the repository make the image larger if the update does not fit: by what it needs, or to SIZE
    /// (20G, 512M)
    ///
    /// The image's file, its last partition, and the ext4 root file system in it. Machines that run are
    /// not made larger.
    #[arg(long, value_name = "SIZE|auto", value_parser = super::grow::parse)]
    grow: Option<Grow>,
    #[command(flatten)]
    repo: RepoArgs,
}

#[derive(Debug, Serialize)]
pub(crate) struct Pushed(PushReply);

pub(crate) fn run(args: &Args, context: &Context) -> Result<Pushed, Failure> {
    let path = &args.bundle;
    let file = File::open(path).map_err(|error| Failure::io("open", path, error))?;
    let map = vireo_sys::map_sealed(&file).map_err(|error| Failure::io("map", path, error))?;
    let unusable = |error| Failure::bundle(path, error);
    let bundle = Bundle::open(&map).map_err(unusable)?;
    // Whether its signer is trusted, the repository says; here it is checked for being whole.
    let signer = TrustedKeys::from_iter([bundle.signer()]);
    bundle.verify(&signer).and_then(|bundle| bundle.check()).map_err(unusable)?;
    let step = Step::new(context, format!("pushing {} to {}", path.display(), args.name));
    let progress = |p: vireo_wire::Progress| step.bytes(p.done, p.total);
    let options = PushOptions { grow: args.grow.unwrap_or_default() };
    Ok(Pushed(args.repo.open()?.push(&args.name, &map, options, &progress)?))
}

impl Report for Pushed {
    fn to_text(&self) -> String {
        let PushReply { image, version, already, steps } = &self.0;
        if *already {
            return format!("{image}@{} is that version already; nothing to do", version.number);
        }
        let steps: Vec<String> =
            steps.iter().map(|step| format!("{} {} ms", step.name, step.millis)).collect();
        format!(
            "{image}@{} is {}\n{} pushed; image built: {}",
            version.number,
            version.tree,
            bytes(version.wire_bytes),
            steps.join(", ")
        )
    }

    fn to_json(&self) -> String {
        json("vireo.push/1", self)
    }
}
