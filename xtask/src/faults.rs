//! `cargo xtask faults`: the full-size fault campaign, whose small form is among the tests.

use crate::{cargo, setup};

/// Arguments of the campaign's program.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Power cuts on ext4; the other rows follow in proportion
    #[arg(long, value_name = "N")]
    states: Option<usize>,
    /// Another seed makes other cuts
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::run()?;
    cargo::run(&["build", "--release", "--workspace", "--bins"])?;
    let mut command: Vec<String> =
        ["run", "--release", "-p", "vireo-tests", "--bin", "vireo-faults", "--", "campaign"]
            .map(str::to_owned)
            .to_vec();
    if let Some(states) = args.states {
        command.extend(["--states".to_owned(), states.to_string()]);
    }
    if let Some(seed) = args.seed {
        command.extend(["--seed".to_owned(), seed.to_string()]);
    }
    cargo::run(&command.iter().map(String::as_str).collect::<Vec<_>>())
}
