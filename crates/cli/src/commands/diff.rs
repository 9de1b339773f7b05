use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use vireo_model::{ChangeKind, ChangeSet, Digest, ImagePath};
use vireo_tree::{ScanOptions, scan};

use crate::Context;
use crate::exit::{Failure, Report, json};
use crate::progress::Step;
use crate::source::{IgnoreArgs, RootPartitionArgs, Source};

/// List the paths in which two images or directories differ
///
/// Exits with 0 if there are none and with 1 if there are.
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
    let base = Source::open(&args.base, args.partition)?;
    let target = Source::open(&args.target, args.partition)?;
    let base = scan(base.root(), &ignore, &ScanOptions::default())?.tree;
    let target = scan(target.root(), &ignore, &ScanOptions::default())?.tree;
    let changes = ChangeSet::between(&base, &target);
    let line =
        |change: &vireo_model::Change| Line { path: change.path.clone(), change: change.kind() };
    Ok(Difference {
        base: changes.base,
        target: changes.target,
        paths: changes.changes.iter().map(line).collect(),
    })
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
