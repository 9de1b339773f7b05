use std::path::PathBuf;

use serde::Serialize;
use vireo_model::Digest;

use crate::Context;
use crate::exit::{Failure, Report, json};
use crate::progress::Step;
use crate::source::{IgnoreArgs, RootPartitionArgs, TreeSource, UnmountedArgs};

/// Print the digest of an image's or directory's tree: its version
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image or directory
    #[arg(value_name = "SRC")]
    source: PathBuf,
    #[command(flatten)]
    ignore: IgnoreArgs,
    #[command(flatten)]
    partition: RootPartitionArgs,
    #[command(flatten)]
    unmounted: UnmountedArgs,
}

#[derive(Debug, Serialize)]
pub(crate) struct Digested {
    digest: Digest,
    paths: usize,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Digested, Failure> {
    let ignore = args.ignore.get()?;
    let _step = Step::new(context, format!("reading {}", args.source.display()));
    let source = TreeSource::open(&args.source, args.partition, args.unmounted)?;
    source.check(context, &args.source, &ignore)?;
    let tree = source.tree(&ignore)?;
    Ok(Digested { digest: tree.digest(), paths: tree.len() })
}

impl Report for Digested {
    fn to_text(&self) -> String {
        self.digest.to_string()
    }

    fn to_json(&self) -> String {
        json("vireo.digest/1", self)
    }
}
