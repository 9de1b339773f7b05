//! `vireo`: captures what changed on one machine or image and brings it to all.

mod commands;
mod exit;
mod progress;
mod repository;
mod source;

use std::process::ExitCode;

use clap::Parser;

use crate::commands::Command;
use crate::exit::Failure;

/// Keep virtual machine images and the machines launched from them on one version
///
/// Vireo captures what changed on one machine or image, signs it and pushes it to a repository,
/// which patches the stored image and hands the same change to the agents in the running
/// machines.
///
/// Exit status: 0 done or nothing to do, 1 failed, 2 wrong usage, 3 has to wait for something,
/// 4 undone, 5 refused.
#[derive(Debug, Parser)]
#[command(name = "vireo", version, propagate_version = true)]
struct Cli {
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
    /// No progress display
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

/// What every command needs to know about how it was called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context {
    /// Show no progress.
    pub(crate) quiet: bool,
}

impl Context {
    /// Tells of what is no failure.
    pub(crate) fn warn(&self, text: &str) {
        if !self.quiet {
            eprintln!("warning: {text}");
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context { quiet: cli.quiet || cli.json };
    match cli.command.run(&context) {
        Ok(report) => {
            let text = if cli.json { report.to_json() } else { report.to_text() };
            exit::print(&text);
            report.exit_code()
        }
        Err(failure) => failure.report(cli.json),
    }
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        Self::from(failure.code())
    }
}
