//! The full-size fault campaign, as `cargo xtask faults` runs it, and what its victims run.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use clap::Parser;
use vireo_tests::{
    FileSystem, Kills, Neighbour, Tally, Update, record_dpkg, recover_dpkg, recover_nothing,
    recover_tree, recover_vireo,
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
    },
    /// Recover the tree in a directory; what the campaign kills
    #[command(hide = true)]
    Recover { dir: PathBuf },
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Campaign { states, seed } => campaign(states, seed),
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

/// One line of the table.
struct Row {
    name: String,
    points: usize,
    mixed: usize,
    bad: Vec<String>,
    /// Whether the fault is to be survived; else it must be seen.
    must_survive: bool,
    seconds: f64,
}

impl Row {
    fn of_cuts(name: String, must_survive: bool, started: Instant, tally: Tally) -> Self {
        eprintln!("{name}: {tally}");
        let Tally { points, mixed, bad, .. } = tally;
        Self { name, points, mixed, bad, must_survive, seconds: started.elapsed().as_secs_f64() }
    }

    fn of_kills(name: &str, started: Instant, kills: Kills) -> Self {
        eprintln!("{name}: {kills}");
        let Kills { killed: points, mixed, bad, .. } = kills;
        let seconds = started.elapsed().as_secs_f64();
        Self { name: name.to_owned(), points, mixed, bad, must_survive: true, seconds }
    }

    fn is_right(&self) -> bool {
        self.mixed > 0 && self.bad.is_empty() == self.must_survive
    }
}

fn campaign(states: usize, seed: u64) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (system, count) in
        [(FileSystem::Ext4, states), (FileSystem::Xfs, states / 4), (FileSystem::Btrfs, states / 4)]
    {
        rows.push(power_cuts(system, count, seed)?);
    }
    rows.extend(kills()?);
    rows.push(dpkg(states / 5, seed)?);
    rows.extend(broken(states / 10, seed)?);
    print(&rows);
    let wrong: Vec<&str> =
        rows.iter().filter(|row| !row.is_right()).map(|row| row.name.as_str()).collect();
    if !wrong.is_empty() {
        bail!("not as promised: {}", wrong.join(", "));
    }
    Ok(())
}

/// Half of them with nothing else on the disk, half beside a neighbour.
fn power_cuts(system: FileSystem, count: usize, seed: u64) -> anyhow::Result<Row> {
    let started = Instant::now();
    let update = Update::new(system)?;
    let mut all = Tally::default();
    for neighbour in [Neighbour::None, Neighbour::Busy] {
        let recording = update.record(system, neighbour)?;
        all = all.and(recording.replay(count / 2, seed, &recover_vireo)?);
    }
    Ok(Row::of_cuts(format!("power cut, {}", system.name()), true, started, all))
}

fn kills() -> anyhow::Result<[Row; 2]> {
    let update = Update::new(FileSystem::Ext4)?;
    let started = Instant::now();
    let apply = Row::of_kills("kill -9, apply", started, update.kill_apply(usize::MAX)?);
    let started = Instant::now();
    let recovery = update.kill_recovery(usize::MAX)?;
    Ok([apply, Row::of_kills("kill -9, recovery after a kill", started, recovery)])
}

fn dpkg(count: usize, seed: u64) -> anyhow::Result<Row> {
    let started = Instant::now();
    let mut all = Tally::default();
    for neighbour in [Neighbour::None, Neighbour::Busy] {
        let recording = record_dpkg(FileSystem::Ext4, neighbour)?;
        all = all.and(recording.replay(count / 2, seed, &recover_dpkg)?);
    }
    let name = "power cut, ext4, dpkg -i, then dpkg --configure -a".to_owned();
    Ok(Row::of_cuts(name, false, started, all))
}

/// What must be found out.
fn broken(count: usize, seed: u64) -> anyhow::Result<[Row; 2]> {
    let update = Update::new(FileSystem::Ext4)?;
    let started = Instant::now();
    let plain = update.record_plain_renames(FileSystem::Ext4)?;
    let plain = plain.replay(count, seed, &recover_nothing)?;
    let plain = Row::of_cuts("power cut, ext4, plain renames".to_owned(), false, started, plain);
    let started = Instant::now();
    let lying = update.record(FileSystem::Ext4, Neighbour::Busy)?.without_barriers();
    let lying = lying.replay(count, seed, &recover_vireo)?;
    let name = "power cut, ext4, a disk that does not flush".to_owned();
    Ok([plain, Row::of_cuts(name, false, started, lying)])
}

fn print(rows: &[Row]) {
    println!("| fault | points | mixtures before recovery | bad after recovery | seconds |");
    println!("|---|---:|---:|---:|---:|");
    for Row { name, points, mixed, bad, seconds, must_survive } in rows {
        println!("| {name} | {points} | {mixed} | {} | {seconds:.0} |", bad.len());
        if *must_survive {
            bad.iter().for_each(|bad| eprintln!("BAD {name}: {bad}"));
        }
    }
}
