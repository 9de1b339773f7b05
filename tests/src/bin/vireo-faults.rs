//! The full-size fault campaign, as `cargo xtask faults` runs it, and what its victims run.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Parser;
use vireo_tests::{
    Errors, FileSystem, Kills, Neighbour, Recording, Step, Tally, Update, record_dpkg,
    recover_dpkg, recover_nothing, recover_tree, recover_vireo,
};

/// Faults in updates, and what is left of the tree after recovery
#[derive(Debug, Parser)]
enum Command {
    /// Cut the power and kill at many points; prints one table
    Campaign {
        /// Power cuts on ext4; the other rows follow in proportion
        #[arg(long, default_value_t = 2000)]
        states: usize,
        /// Another seed makes other cuts
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only the rows whose names have this in them
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Recover the tree in a directory; what the campaign kills
    #[command(hide = true)]
    Recover { dir: PathBuf },
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Campaign { states, seed, only } => campaign(states, seed, &only),
        Command::Recover { dir } => recover_tree(&dir).map(drop),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A kind of fault.
struct Fault {
    name: &'static str,
    /// Power cuts for one on ext4, as its part.
    one_in: usize,
    /// Whether an update has to survive it; else it has to be found out.
    must_survive: bool,
    run: fn(usize, u64) -> anyhow::Result<Outcome>,
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "vireo apply, power cut on ext4",
        one_in: 1,
        must_survive: true,
        run: |count, seed| cut_vireo(FileSystem::Ext4, count, seed),
    },
    Fault {
        name: "vireo apply, power cut on xfs",
        one_in: 4,
        must_survive: true,
        run: |count, seed| cut_vireo(FileSystem::Xfs, count, seed),
    },
    Fault {
        name: "vireo apply, power cut on btrfs",
        one_in: 4,
        must_survive: true,
        run: |count, seed| cut_vireo(FileSystem::Btrfs, count, seed),
    },
    Fault {
        name: "recovery, power cut on ext4",
        one_in: 4,
        must_survive: true,
        run: |count, seed| {
            let update = Update::new()?;
            let record = |with| update.record_recovery(FileSystem::Ext4, with);
            cut_each(count, seed, &recover_vireo, &record)
        },
    },
    Fault {
        name: "vireo-agent undo, power cut on ext4",
        one_in: 4,
        must_survive: true,
        run: |count, seed| {
            let update = Update::new()?;
            let record = |with| update.record_undo(FileSystem::Ext4, with);
            cut_each(count, seed, &recover_vireo, &record)
        },
    },
    Fault {
        name: "vireo apply, kill -9 before every changing call",
        one_in: 1,
        must_survive: true,
        run: |_, _| Ok(Update::new()?.kill_apply(usize::MAX)?.into()),
    },
    Fault {
        name: "recovery, kill -9 before every changing call",
        one_in: 1,
        must_survive: true,
        run: |_, _| Ok(Update::new()?.kill_recovery(usize::MAX)?.into()),
    },
    Fault {
        name: "vireo-agent undo, kill -9 before every changing call",
        one_in: 1,
        must_survive: true,
        run: |_, _| Ok(Update::new()?.kill_undo(usize::MAX)?.into()),
    },
    Fault {
        name: "vireo apply, five errors in place of every changing call",
        one_in: 1,
        must_survive: true,
        run: |_, _| Ok(Update::new()?.fail_apply(usize::MAX)?.into()),
    },
    Fault {
        name: "vireo apply, power cut of three disks at once, ext4",
        one_in: 4,
        must_survive: true,
        run: |count, seed| {
            let update = Update::new()?;
            let record = |with| update.record_parts(FileSystem::Ext4, &["etc", "usr"], with);
            cut_each(count, seed, &recover_vireo, &record)
        },
    },
    Fault {
        name: "dpkg -i, power cut on ext4, dpkg --configure -a",
        one_in: 5,
        must_survive: false,
        run: |count, seed| {
            cut_each(count, seed, &recover_dpkg, &|with| record_dpkg(FileSystem::Ext4, with))
        },
    },
    Fault {
        name: "broken on purpose: plain renames, power cut on ext4",
        one_in: 10,
        must_survive: false,
        run: |count, seed| {
            let recording = Update::new()?.record_plain_renames(FileSystem::Ext4)?;
            Ok(recording.replay(count, seed, &recover_nothing)?.into())
        },
    },
    Fault {
        name: "broken on purpose: no barriers, power cut on ext4",
        one_in: 10,
        must_survive: false,
        run: |count, seed| {
            let update = Update::new()?;
            let recording = update.record_without_barriers(FileSystem::Ext4)?;
            Ok(recording.replay(count, seed, &recover_vireo)?.into())
        },
    },
    Fault {
        name: "broken on purpose: a disk that does not flush, ext4",
        one_in: 10,
        must_survive: false,
        run: |count, seed| {
            let recording = Update::new()?.record(FileSystem::Ext4, Neighbour::Busy)?;
            Ok(recording.without_barriers(None).replay(count, seed, &recover_vireo)?.into())
        },
    },
];

/// An update by Vireo.
fn cut_vireo(system: FileSystem, count: usize, seed: u64) -> anyhow::Result<Outcome> {
    let update = Update::new()?;
    cut_each(count, seed, &recover_vireo, &|with| update.record(system, with))
}

/// Half of them with nothing else on the disk, half beside a neighbour.
fn cut_each(
    count: usize,
    seed: u64,
    recover: Step<'_>,
    record: &dyn Fn(Neighbour) -> anyhow::Result<Recording>,
) -> anyhow::Result<Outcome> {
    let mut all = Tally::default();
    for neighbour in [Neighbour::None, Neighbour::Busy] {
        all = all.and(record(neighbour)?.replay(count / 2, seed, recover)?);
    }
    Ok(all.into())
}

/// What one kind of fault came to.
struct Outcome {
    text: String,
    points: usize,
    mixed: usize,
    bad: Vec<String>,
}

impl From<Tally> for Outcome {
    fn from(tally: Tally) -> Self {
        let text = tally.to_string();
        let Tally { points, mixed, bad, .. } = tally;
        Self { text, points, mixed, bad }
    }
}

impl From<Errors> for Outcome {
    fn from(errors: Errors) -> Self {
        let text = errors.to_string();
        let Errors { runs, mixed, bad, .. } = errors;
        Self { text, points: runs, mixed, bad }
    }
}

impl From<Kills> for Outcome {
    fn from(kills: Kills) -> Self {
        let text = kills.to_string();
        let Kills { killed, mixed, bad, .. } = kills;
        Self { text, points: killed, mixed, bad }
    }
}

fn campaign(states: usize, seed: u64, only: &str) -> anyhow::Result<()> {
    let mut table = String::new();
    let mut wrong = Vec::new();
    for fault in FAULTS.iter().filter(|fault| fault.name.contains(only)) {
        let started = Instant::now();
        let outcome = (fault.run)(states / fault.one_in, seed).with_context(|| fault.name)?;
        let seconds = started.elapsed().as_secs();
        let Outcome { text, points, mixed, bad } = outcome;
        eprintln!("{}: {text}", fault.name);
        // Of what is to go wrong, one example will do.
        let shown = if fault.must_survive { bad.len() } else { 1 };
        bad.iter().take(shown).for_each(|bad| eprintln!("BAD: {bad}"));
        let count = bad.len();
        table += &format!("| {} | {points} | {mixed} | {count} | {seconds} |\n", fault.name);
        let is_right = bad.is_empty() == fault.must_survive;
        wrong.extend((!is_right || points == 0).then_some(fault.name));
    }
    println!("| fault | points | mixtures before recovery | bad after recovery | seconds |");
    println!("|---|---:|---:|---:|---:|\n{table}");
    if !wrong.is_empty() {
        bail!("not as promised: {}", wrong.join(", "));
    }
    Ok(())
}
