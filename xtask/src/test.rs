//! `cargo xtask test`: every check and every test, tier by tier, nothing left out in silence.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use vireo_testkit::{Cache, leaks};

use crate::{cargo, deps, fuzz, layers, setup};

/// Time for the kernel to give back what the last test used.
const LEAK_DEADLINE: Duration = Duration::from_secs(10);

/// How long each fuzz target runs, in seconds: what once crashed is tried again, and a little more.
const FUZZ_SECONDS: u32 = 15;

/// One kind of test: what it is called and how cargo is asked for it.
struct Tier {
    name: &'static str,
    /// Arguments of `cargo test`.
    cargo: &'static [&'static str],
    /// Arguments of the test programs.
    filter: &'static [&'static str],
}

const TIERS: &[Tier] = &[
    Tier {
        name: "unit, property, contract, flow",
        cargo: &["--all-targets"],
        filter: &["--skip", "root_", "--skip", "live_", "--skip", "vm_"],
    },
    Tier { name: "examples in the documentation", cargo: &["--doc"], filter: &[] },
    Tier {
        name: "root_*: loop devices, mounts",
        cargo: &["--tests"],
        filter: &["root_", "--test-threads=2"],
    },
    Tier {
        name: "root_*: mounts as kernels before 5.8 make them",
        cargo: &["-p", "vireo-image", "--features", "loopdev", "--test", "host"],
        filter: &["root_"],
    },
    Tier {
        name: "live_*: real systemd",
        cargo: &["--tests"],
        filter: &["live_", "--test-threads=1"],
    },
    Tier { name: "vm_*: real kernel", cargo: &["--tests"], filter: &["vm_", "--test-threads=1"] },
];

/// The crates of AWS, with what uses them: compiled in this tier alone, and once, so the compiler is the
/// one that also lints. Last, because it leaves `vireo-repo` as it is with the feature.
const EC2: Tier = Tier {
    name: "ec2: with its crates, and lints",
    cargo: &["-p", "vireo-ec2", "-p", "vireo-repo-bin", "--features", "vireo-repo-bin/ec2"],
    filter: &[],
};

/// How the compiler that lints is told to refuse warnings; as `cargo clippy` does it.
const LINTING: [(&str, &str); 2] = [
    ("RUSTC_WORKSPACE_WRAPPER", "clippy-driver"),
    ("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__"),
];

/// What one tier or check came to.
#[derive(Debug, Default)]
struct Tally {
    name: &'static str,
    passed: u64,
    failed: u64,
    seconds: f64,
    notes: Vec<String>,
}

pub(crate) fn run() -> anyhow::Result<()> {
    setup::run()?;
    let mut tallies = vec![check("build", || cargo::run(&["build", "--release", "--all-targets"]))];
    if tallies.iter().all(|tally| tally.failed == 0) {
        tallies.push(check("format", format));
        tallies.push(check("lints", lints));
        tallies.push(check("layers", layers::run));
        tallies.push(check("dependencies", deps::run));
        for tier in TIERS {
            tallies.push(run_tier(tier, &[])?);
        }
        tallies.push(run_tier(&EC2, &LINTING)?);
        tallies.push(check("fuzz targets", || fuzz::run(&fuzz::Args::all(FUZZ_SECONDS))));
        tallies.push(check("nothing left behind", no_leaks));
    }
    summarize(&tallies)
}

fn format() -> anyhow::Result<()> {
    cargo::run(&["fmt", "--all", "--check"])?;
    cargo::run(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"])
}

fn lints() -> anyhow::Result<()> {
    cargo::run(&["clippy", "--release", "--all-targets", "--", "-D", "warnings"])
}

fn no_leaks() -> anyhow::Result<()> {
    Ok(leaks::none(leaks::PREFIX, Cache::open()?.dir(), LEAK_DEADLINE)?)
}

/// A check that holds or does not: counted as one test.
fn check(name: &'static str, work: impl FnOnce() -> anyhow::Result<()>) -> Tally {
    eprintln!("== {name}");
    let started = Instant::now();
    let result = work();
    let seconds = started.elapsed().as_secs_f64();
    match result {
        Ok(()) => Tally { name, passed: 1, seconds, ..Tally::default() },
        Err(error) => {
            let notes = vec![format!("{error:#}")];
            Tally { name, failed: 1, seconds, notes, ..Tally::default() }
        }
    }
}

fn run_tier(tier: &Tier, env: &[(&str, &str)]) -> anyhow::Result<Tally> {
    eprintln!("== {}", tier.name);
    let mut command = cargo::cargo(&["test", "--release", "--no-fail-fast"]);
    command.envs(env.iter().copied());
    command.args(tier.cargo).arg("--").args(tier.filter);
    let started = Instant::now();
    let mut tally = Tally { name: tier.name, ..Tally::default() };
    let success = stream(command, |line| tally.read(line))?;
    tally.seconds = started.elapsed().as_secs_f64();
    if !success && tally.failed == 0 {
        tally.failed += 1;
        tally.notes.push("cargo test failed before it ran any test".to_owned());
    }
    if tally.passed + tally.failed == 0 {
        tally.failed += 1;
        tally.notes.push("no test of this tier was found".to_owned());
    }
    Ok(tally)
}

/// Runs `command`, passing its output on and showing each line to `read`; gives its success.
fn stream(mut command: Command, mut read: impl FnMut(&str)) -> anyhow::Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read cargo's output")?;
        let line = String::from_utf8_lossy(&line);
        read(&line);
        if worth_showing(&line) {
            println!("{line}");
        }
    }
    Ok(child.wait().context("cannot wait for cargo")?.success())
}

/// Leaves out what test programs say when they have nothing to do for a tier.
fn worth_showing(line: &str) -> bool {
    let idle = line.starts_with("running 0 tests") || line.contains(" 0 passed; 0 failed");
    !idle && !line.trim().is_empty()
}

impl Tally {
    /// Reads one line of a test program's output.
    fn read(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let count = |what: &str| {
            let part = result.split([';', '.']).find(|part| part.trim_end().ends_with(what));
            let number = part.and_then(|part| part.split_whitespace().next()?.parse::<u64>().ok());
            number.unwrap_or(0)
        };
        self.passed += count(" passed");
        self.failed += count(" failed");
        let ignored = count(" ignored");
        if ignored > 0 {
            self.failed += ignored;
            self.notes.push(format!("{ignored} tests are marked to be left out"));
        }
    }
}

/// Prints the table and the closing line.
fn summarize(tallies: &[Tally]) -> anyhow::Result<()> {
    println!("\n{:<34}{:>8}{:>8}{:>10}", "tier", "passed", "failed", "seconds");
    for Tally { name, passed, failed, seconds, notes } in tallies {
        println!("{name:<34}{passed:>8}{failed:>8}{seconds:>10.1}");
        for note in notes {
            println!("    {}", note.replace('\n', "\n    "));
        }
    }
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let (passed, failed) = (sum(|tally| tally.passed), sum(|tally| tally.failed));
    println!("\n{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("{failed} tests or checks failed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests whose names begin so need more than a processor, and share the machine's devices.
    const SPECIAL: [&str; 3] = ["root_", "live_", "vm_"];

    #[test]
    fn results_of_test_programs_add_up() {
        let mut tally = Tally::default();
        tally.read("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.00s");
        tally.read("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s");
        tally.read("test the_result ... ok");
        assert_eq!((tally.passed, tally.failed, tally.notes.len()), (5, 1, 0));
    }

    #[test]
    fn an_ignored_test_counts_as_failed() {
        let mut tally = Tally::default();
        tally.read("test result: ok. 3 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        assert_eq!((tally.passed, tally.failed, tally.notes.len()), (3, 2, 1));
    }

    #[test]
    fn the_tiers_leave_nothing_out() {
        let skipped = TIERS[0].filter.iter().filter(|arg| **arg != "--skip").copied();
        let skipped: Vec<&str> = skipped.collect();
        assert_eq!(skipped, SPECIAL, "what the first tier skips");
        for special in SPECIAL {
            let of_all = TIERS.iter().filter(|tier| tier.cargo == ["--tests"]);
            let tiers = of_all.filter(|tier| tier.filter.first() == Some(&special));
            assert_eq!(tiers.count(), 1, "{special} has a tier of its own");
        }
    }
}
