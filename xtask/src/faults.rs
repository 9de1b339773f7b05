//! `cargo xtask faults`: the full-size fault campaign, whose small form is among the tests.

use crate::{cargo, setup};

/// Arguments of the campaign's program.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Passed on: `--states N`, `--seed SEED`, `--only WORDS`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::run()?;
    cargo::run(&["build", "--release", "--workspace", "--bins"])?;
    let program =
        ["run", "--release", "-p", "vireo-tests", "--bin", "vireo-faults", "--", "campaign"];
    let mut command = program.to_vec();
    command.extend(args.args.iter().map(String::as_str));
    cargo::run(&command)
}
