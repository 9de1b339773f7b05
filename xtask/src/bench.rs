//! `cargo xtask bench`: the benchmarks' own program, with its arguments.

use crate::cargo;

/// Arguments of the benchmarks' program.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Passed on as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    cargo::run_program(&["-p", "vireo-benches", "--"], &args.args)
}
