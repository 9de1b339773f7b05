//! Measures Vireo beside the tools it competes with, all in one run, on the pair of images that the
//! demonstration uses: a real Debian base and a really upgraded copy.
//!
//! # Guarantees
//!
//! - Contestants take turns, so that a slow minute of the machine hits all of them.
//! - What a contestant made is compared with the target's digest: a wrong result is an error, no
//!   figure.
//! - A program that is needed and absent is installed or named; nothing is left out in silence.
//!
//! # Not here
//!
//! Assertions about time: figures are printed, not judged. Nothing here is part of a timed test.

mod activation;
mod apply;
mod bench;
mod capture;
mod contest;
mod curve;
mod facts;
mod images;
mod live;
mod many;
mod measured;
mod micro;
mod record;
mod report;
mod site;
mod table;
mod window;
mod workloads;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::bench::Bench;
use crate::report::{Report, Section};

/// Measure Vireo beside rsync, zstd, xdelta3, casync, borg and ostree; needs root
#[derive(Debug, Parser)]
#[command(name = "vireo-benches")]
struct Args {
    /// One short run of each, without the slowest contestants: shows that it works, not how fast
    #[arg(long)]
    quick: bool,
    /// Write the results as data (schema vireo.bench/1) to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print tables in Markdown
    #[arg(long)]
    markdown: bool,
    /// Measure this part alone; can be given several times
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// Of the workloads measure this alone; can be given several times
    #[arg(long, value_name = "WORKLOAD")]
    workload: Vec<workloads::Workload>,
    #[command(subcommand)]
    inner: Option<Inner>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Two images into what travels
    Capture,
    /// What travels into a patched image
    Apply,
    /// What travels into a directory
    Live,
    /// Thousands of files, and one large file, into a directory, beside dpkg
    Many,
    /// From a push to the page that a running machine serves
    Activation,
    /// Who of thousands of processes needs a restart, and the plan for thousands of files
    Facts,
    /// What recording costs the machine that is recorded
    Record,
    /// Four real changes of a server, beside more tools
    Workloads,
    /// What capturing costs as image and change grow
    Curve,
    /// Patching as the image grows around the same tree, and what its second reading costs
    Images,
    /// Chunking, decoding, reading trees
    Micro,
}

#[derive(Debug, Subcommand)]
enum Inner {
    /// Run a program and write what it used to a file
    #[command(hide = true)]
    Measured {
        /// Also say how long the workload's files here were a mixture
        #[arg(long)]
        watch: Option<PathBuf>,
        usage: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Apply a bundle to a directory, as the agent does
    #[command(hide = true)]
    Engine { bundle: PathBuf, dir: PathBuf, key: PathBuf },
    /// Print how many processes hold one of the files, given as DEVICE:INODE
    #[command(hide = true)]
    Holders { files: Vec<String> },
    /// In a process name space of its own: fill it with processes, let all look at them
    #[command(hide = true)]
    Crowd {
        dir: PathBuf,
        rounds: usize,
        #[arg(long)]
        quick: bool,
    },
    /// Make a web site its next release
    #[command(hide = true)]
    SiteRelease { dir: PathBuf },
    /// Replace the files of a directory one by one, each made durable
    #[command(hide = true)]
    FsyncEach { from: PathBuf, to: PathBuf },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.inner {
        Some(Inner::Measured { watch, usage, command }) => {
            measured::child(usage, watch.as_deref(), command)
        }
        Some(Inner::Engine { bundle, dir, key }) => many::engine(bundle, dir, key),
        Some(Inner::Holders { files }) => facts::holders(files),
        Some(Inner::Crowd { dir, rounds, quick }) => facts::crowd(dir, *rounds, *quick),
        Some(Inner::SiteRelease { dir }) => site::release(dir),
        Some(Inner::FsyncEach { from, to }) => many::fsync_each(from, to),
        None => run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let bench = Bench::open(args.quick)?;
    let mut sections: Vec<Section> = Vec::new();
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    if wanted(Part::Capture) {
        sections.push(capture::measure(&bench)?);
    }
    if wanted(Part::Apply) {
        sections.push(apply::measure(&bench)?);
    }
    if wanted(Part::Live) {
        sections.push(live::measure(&bench)?);
    }
    if wanted(Part::Many) {
        sections.extend(many::measure(&bench)?);
    }
    if wanted(Part::Activation) {
        sections.push(activation::measure(&bench)?);
    }
    if wanted(Part::Facts) {
        sections.extend(facts::measure(&bench)?);
    }
    if wanted(Part::Record) {
        sections.push(record::measure(&bench)?);
    }
    if wanted(Part::Workloads) {
        sections.extend(workloads::measure(&bench, &args.workload)?);
    }
    if wanted(Part::Curve) {
        sections.extend(curve::measure(&bench)?);
    }
    if wanted(Part::Images) {
        sections.extend(images::measure(&bench)?);
    }
    if wanted(Part::Micro) {
        sections.extend(micro::measure(&bench)?);
    }
    let report = Report::new(&bench, sections)?;
    println!("{}", if args.markdown { report.to_markdown() } else { report.to_text() });
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
