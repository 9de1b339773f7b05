//! Vireo's development commands: `cargo xtask <command>`.
//!
//! One file per command; this one only chooses.

mod bench;
mod cargo;
mod demo;
mod deps;
mod faults;
mod fuzz;
mod layers;
mod setup;
mod steps;
mod test;

use std::process::ExitCode;

use clap::Parser;

/// Vireo's development commands
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Install what tests and the demonstration need from the distribution; needs root
    Setup,
    /// Show the main job end to end on a real image and real guests; needs root
    Demo(demo::Args),
    /// Run every check and every test; needs root
    Test,
    /// Fuzz everything that reads what others wrote
    Fuzz(fuzz::Args),
    /// Check the dependencies between crates against the design
    Layers,
    /// Check that there is one TLS stack, and that everyday builds leave the crates of AWS out
    Deps,
    /// Kill updates, cut their power, fill their disks, at many more points than the tests; needs root
    Faults(faults::Args),
    /// Run the benchmarks; needs root
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Setup => setup::run(),
        Command::Demo(args) => demo::run(&args),
        Command::Test => test::run(),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Layers => layers::run(),
        Command::Deps => deps::run(),
        Command::Faults(args) => faults::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
