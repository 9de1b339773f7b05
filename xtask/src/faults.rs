//! `cargo xtask faults`: the full-size fault campaign, whose small form is among the tests.

use crate::cargo;

/// Arguments of the campaign's program.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Passed on: `--states N`, `--seed SEED`, `--only WORDS`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    cargo::run_program(
        &["-p", "vireo-tests", "--bin", "vireo-faults", "--", "campaign"],
        &args.args,
    )
}
