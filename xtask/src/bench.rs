//! `cargo xtask bench`: the benchmarks' own program, with its arguments.

use crate::{cargo, setup};

/// Arguments of the benchmarks' program.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Passed on as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::run()?;
    cargo::run(&["build", "--release", "--workspace", "--bins"])?;
    let mut command = vec!["run", "--release", "-p", "vireo-benches", "--"];
    command.extend(args.args.iter().map(String::as_str));
    cargo::run(&command)
}
