//! What a program used: wall time, processor time, memory.
//!
//! The kernel tells it about the children of the process that asks, all together, and counts the
//! memory of a process that spawns as the child's own. So each program gets a parent of its own: a
//! small second process of this same program, which starts it, waits, asks and writes the answer.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde::{Deserialize, Serialize};
use vireo_testkit::Run;

use crate::window::Watch;

/// A command line from words of any kind: `argv!["cp", &from, &to]`.
macro_rules! argv {
    ($($word:expr),* $(,)?) => {
        vec![$(std::ffi::OsString::from($word)),*]
    };
}
pub(crate) use argv;

/// Longest for one measured program.
const DEADLINE: Duration = Duration::from_secs(900);

/// What one run used.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) wall_seconds: f64,
    /// User and system, of the program and all it started.
    pub(crate) cpu_seconds: f64,
    /// Resident memory of the largest of its processes, at its peak.
    pub(crate) peak_bytes: u64,
    /// How long what was watched was neither as before nor as after; only where it was watched.
    pub(crate) window_ms: Option<u64>,
}

/// Where the second process writes its answer.
#[derive(Debug)]
pub(crate) struct Meter {
    file: PathBuf,
}

impl Meter {
    /// One that keeps its answer in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { file: dir.join("usage.json") }
    }

    /// The command line that runs `argv` measured.
    pub(crate) fn wrap(&self, argv: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
        let own = std::env::current_exe().context("cannot find the running program")?;
        let stub = [own.into(), "measured".into(), self.file.clone().into(), "--".into()];
        Ok(stub.into_iter().chain(argv).collect())
    }

    /// [`Meter::wrap`], with the directory `dir` watched.
    pub(crate) fn wrap_watching(
        &self,
        dir: &str,
        argv: Vec<OsString>,
    ) -> anyhow::Result<Vec<OsString>> {
        let mut wrapped = self.wrap(argv)?;
        wrapped.splice(2..2, argv!["--watch", dir]);
        Ok(wrapped)
    }

    /// What the program used that ran last.
    pub(crate) fn read(&self) -> anyhow::Result<Usage> {
        let show = || self.file.display().to_string();
        let text = fs::read(&self.file).with_context(|| format!("cannot read {}", show()))?;
        fs::remove_file(&self.file).with_context(|| format!("cannot remove {}", show()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} has no usage", show()))
    }

    /// Runs `argv` in `dir` after everything that waits to be written was; gives what it used and
    /// printed.
    pub(crate) fn run(&self, dir: &Path, argv: Vec<OsString>) -> anyhow::Result<(Usage, String)> {
        let text = run(dir, self.wrap(argv)?)?;
        Ok((self.read()?, text))
    }
}

/// Runs `argv` in `dir` after everything that waits to be written was; gives what it printed.
pub(crate) fn run(dir: &Path, argv: Vec<OsString>) -> anyhow::Result<String> {
    rustix::fs::sync();
    let mut words = argv.iter();
    let mut command = Command::new(words.next().map_or(OsStr::new("true"), OsString::as_os_str));
    // The administrator's programs are needed, which a login without them does not find.
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(words).current_dir(dir).env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let label = argv.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    // Scripts are arguments too; their first line tells which one it was.
    let label: String = label.lines().take(2).collect::<Vec<_>>().join(" ");
    Ok(Run::of(command, label).deadline(DEADLINE).text()?)
}

/// The second process: runs `command`, writes what it used to `usage`.
pub(crate) fn child(
    usage: &Path,
    watched: Option<&Path>,
    command: &[OsString],
) -> anyhow::Result<()> {
    let (program, args) = command.split_first().context("no program to be measured")?;
    let watch = watched.map(Watch::start).transpose()?;
    let started = Instant::now();
    let status: ExitStatus = Command::new(program)
        .args(args)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let wall_seconds = started.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{} failed: {status}", program.display());
    }
    let window = watch.map(Watch::end).transpose()?;
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).context("cannot ask what children used")?;
    let cpu = used.user_time() + used.system_time();
    let found = Usage {
        wall_seconds,
        cpu_seconds: cpu.num_microseconds() as f64 / 1e6,
        // The kernel counts it in KiB: getrusage(2).
        peak_bytes: u64::try_from(used.max_rss()).unwrap_or(0) << 10,
        window_ms: window.map(|window| u64::try_from(window.as_millis()).unwrap_or(u64::MAX)),
    };
    fs::write(usage, serde_json::to_vec(&found)?)
        .with_context(|| format!("cannot write {}", usage.display()))
}
