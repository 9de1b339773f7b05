//! `vireo-repo`: makes, serves and looks after a repository of virtual machine images.
//!
//! This crate parses arguments, chooses adapters and prints. What a repository does is in
//! `vireo-repo`, the library.

mod commands;
mod exit;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::Failure;

/// Keep virtual machine images, patch them, and serve the updates to running machines
///
/// Exit codes: 0 done or nothing to do, 1 failed, 2 usage, 3 waits for something (a lock), 5
/// refused.
#[derive(Debug, Parser)]
#[command(name = "vireo-repo", version)]
struct Cli {
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(commands::init::Args),
    Serve(commands::serve::Args),
    Trust(commands::trust::Args),
    #[command(subcommand)]
    Token(commands::token::Command),
    Fsck(commands::fsck::Args),
    /// One job with a disk image, told on the standard input; for the server
    #[command(hide = true)]
    Worker,
    #[cfg(feature = "ec2")]
    #[command(subcommand)]
    Ec2(commands::ec2::Command),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = run(&cli);
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    match &cli.command {
        Command::Init(args) => report::print(&commands::init::run(args)?, cli.json)?,
        Command::Serve(args) => commands::serve::run(args, cli.json)?,
        Command::Trust(args) => report::print(&commands::trust::run(args)?, cli.json)?,
        Command::Token(command) => report::print(&commands::token::run(command)?, cli.json)?,
        Command::Worker => commands::worker::run()?,
        Command::Fsck(args) => {
            let report = commands::fsck::run(args)?;
            report::print(&report, cli.json)?;
            return Ok(report.exit_code());
        }
        #[cfg(feature = "ec2")]
        Command::Ec2(command) => commands::ec2::run(command, cli.json)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
