//! `cargo xtask fuzz`: builds the fuzz targets with coverage counters and runs them.
//!
//! Stable Rust does it: the counters are a pass of LLVM, libFuzzer comes with the crate
//! `libfuzzer-sys` as C++ source. What is found over time is kept in `fuzz/corpus` of the target directory; what
//! once crashed a target is kept for good in `fuzz/regressions` and tried first, every time.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context as _, bail, ensure};

use crate::cargo;

/// What cargo-fuzz 0.13 passes without a sanitizer: counters at edges, compared values. Memory is
/// checked by the compiler, as `unsafe` is in one crate that no target reaches.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 --cfg fuzzing";

/// Targets that run at the same time.
const PARALLEL: usize = 2;

/// Longest for one input, in seconds; more is a finding.
const INPUT_SECONDS: u32 = 10;

/// Most memory of a target, in MiB; more is a finding.
const MEMORY_MIB: u32 = 1024;

/// Longest input, in bytes.
const INPUT_LEN: u32 = 64 << 10;

/// Fuzz everything that reads what others wrote
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long each target runs, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// These alone; all, if none is given
    targets: Vec<String>,
}

impl Args {
    /// All targets, for `seconds` each.
    pub(crate) fn all(seconds: u32) -> Self {
        Self { seconds, targets: Vec::new() }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let known = targets()?;
    for target in &args.targets {
        ensure!(known.contains(target), "no target {target}; there are {}", known.join(", "));
    }
    let targets = if args.targets.is_empty() { known } else { args.targets.clone() };
    let programs = build()?;
    seed(&programs)?;
    let queue = Mutex::new(targets.iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(target) = next(&queue) {
                    if let Err(error) = fuzz(&programs, target, args.seconds) {
                        eprintln!("{target}: {error:#}");
                        lock(&failures).push(format!("{target}: {error:#}"));
                    }
                }
            });
        }
    });
    let failures = lock(&failures);
    ensure!(failures.is_empty(), "{} of {} targets failed", failures.len(), targets.len());
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn next<'a>(queue: &Mutex<impl Iterator<Item = &'a String>>) -> Option<&'a String> {
    lock(queue).next()
}

fn source() -> PathBuf {
    cargo::root().join("fuzz")
}

/// Everything that is made: where cargo makes the rest, which may outlive the checkout.
fn place() -> PathBuf {
    let made = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    cargo::root().join(made).join("fuzz")
}

/// The names of the targets: those of their programs' sources.
fn targets() -> anyhow::Result<Vec<String>> {
    let dir = source().join("targets");
    let list = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in list {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Builds all targets; gives the directory of their programs.
fn build() -> anyhow::Result<PathBuf> {
    let mut command = cargo::cargo(&["build", "--release", "--bins", "--target-dir"]);
    // The variable replaces the flags of .cargo/config.toml: these programs are not static.
    command.arg(place()).current_dir(source()).env("RUSTFLAGS", FLAGS);
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "the fuzz targets do not build (they need g++)");
    let host = cargo::host()?;
    Ok(place().join(host).join("release"))
}

/// Has the first inputs written.
fn seed(programs: &Path) -> anyhow::Result<()> {
    let status = Command::new(programs.join("seeds"))
        .arg(place().join("seeds"))
        .status()
        .context("cannot run the program that writes the first inputs")?;
    ensure!(status.success(), "the first inputs cannot be written");
    Ok(())
}

/// Runs one target; one line says how it went.
fn fuzz(programs: &Path, target: &str, seconds: u32) -> anyhow::Result<()> {
    let [corpus, crashes] = ["corpus", "crashes"].map(|kind| place().join(kind).join(target));
    for dir in [&corpus, &crashes] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let log_path = crashes.with_extension("log");
    let log =
        File::create(&log_path).with_context(|| format!("cannot make {}", log_path.display()))?;
    let both = log.try_clone().context("cannot share the log")?;
    let mut command = Command::new(programs.join(target));
    command.arg(&corpus).arg(place().join("seeds").join(target));
    let kept = source().join("regressions").join(target);
    if kept.is_dir() {
        command.arg(kept);
    }
    let status = command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-max_len={INPUT_LEN}"))
        .arg("-print_final_stats=1")
        .stdout(log)
        .stderr(both)
        .status()
        .with_context(|| format!("cannot run {target}"))?;
    let text = fs::read(&log_path).context("cannot read the log")?;
    let text = String::from_utf8_lossy(&text);
    if !status.success() {
        bail!("{}", explain(&text, &log_path, target));
    }
    println!("fuzz {target}: {} inputs, {} edges, no crash", executed(&text)?, edges(&text));
    Ok(())
}

/// What a failed target says, and what to do with the input.
fn explain(log: &str, log_path: &Path, target: &str) -> String {
    let written = log.lines().find_map(|line| line.split("Test unit written to ").nth(1));
    let why = log
        .lines()
        .find(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"))
        .unwrap_or("it ended with an error");
    match written {
        Some(input) => format!(
            "{why}\n  input: {input}\n  once it is fixed, keep the input: mkdir -p fuzz/regressions/{target} && \
             cp {input} fuzz/regressions/{target}/"
        ),
        None => format!("{why}; see {}", log_path.display()),
    }
}

/// How many inputs were tried.
fn executed(log: &str) -> anyhow::Result<u64> {
    let count = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let count = count.context("the target does not say how many inputs it tried")?;
    count.trim().parse().context("the target gives no number of inputs")
}

/// How many edges of the program were taken: the last figure that libFuzzer shows.
fn edges(log: &str) -> u64 {
    let last = log.lines().rev().find_map(|line| line.split(" cov: ").nth(1));
    last.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "#2\tINITED cov: 11 ft: 12 corp: 1/1b\n#9\tDONE   cov: 345 ft: 400\n\
                       stat::number_of_executed_units: 9\n";

    #[test]
    fn a_log_says_how_much_was_tried_and_reached() {
        assert_eq!(executed(LOG).expect("it does"), 9);
        assert_eq!(edges(LOG), 345);
        assert!(executed("INFO: Seed: 1").is_err());
    }

    #[test]
    fn a_crash_names_its_input_and_where_to_keep_it() {
        let log = "thread '<unnamed>' panicked at src/x.rs:1:\nartifact_prefix='./'; Test unit \
                   written to ./crash-1\n";
        let text = explain(log, Path::new("x.log"), "path");
        assert!(text.contains("src/x.rs") && text.contains("input: ./crash-1"), "{text}");
        assert!(text.contains("fuzz/regressions/path/"), "{text}");
    }

    #[test]
    fn every_target_has_a_program_and_seeds() {
        let manifest = fs::read_to_string(source().join("Cargo.toml")).expect("readable");
        let names = targets().expect("listed");
        assert!(!names.is_empty());
        for name in names {
            assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name}");
        }
    }
}
