//! Vireo's programs, run as a user would, and what is expected of them.

use std::ffi::OsStr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_testkit::{Output, Run, programs};

/// Longest for a program: the update of a kernel and its modules takes 20 seconds of the processor to capture.
const DEADLINE: Duration = Duration::from_secs(240);

/// `vireo ARGS`, run to its end.
///
/// # Errors
///
/// It has not been built, cannot be started, or takes more than four minutes.
pub fn vireo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> anyhow::Result<Ran> {
    program("vireo", args)
}

/// `vireo ARGS`, started and left to itself; what it prints is thrown away.
///
/// # Errors
///
/// It has not been built or cannot be started.
pub fn start_vireo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> anyhow::Result<Child> {
    let mut command = Command::new(programs::find("vireo")?);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("cannot start vireo")
}

/// `vireo-repo ARGS`, run to its end.
///
/// # Errors
///
/// As [`vireo`].
pub fn vireo_repo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> anyhow::Result<Ran> {
    program("vireo-repo", args)
}

fn program<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> anyhow::Result<Ran> {
    let args: Vec<S> = args.into_iter().collect();
    let words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
    let label = format!("{name} {}", words.join(" "));
    Ran::of(Run::new(programs::find(name)?).args(args).deadline(DEADLINE), label)
}

/// Runs a program of ours; with the most memory that it had resident, in KiB (`getrusage(2)`).
///
/// # Errors
///
/// As [`vireo`], or there is no `/usr/bin/time`.
pub fn measured<S: AsRef<OsStr>>(
    name: &str,
    args: impl IntoIterator<Item = S>,
) -> anyhow::Result<(Ran, u64)> {
    let report = tempfile::NamedTempFile::new()?;
    let run = Run::new("/usr/bin/time").args(["-q", "-f", "%M", "-o"]).arg(report.path());
    let ran = Ran::of(run.arg(programs::find(name)?).args(args).deadline(DEADLINE), name)?;
    let text = std::fs::read_to_string(report.path())?;
    let memory = text.trim().parse().with_context(|| format!("time says {text:?}"))?;
    Ok((ran, memory))
}

/// A program's end. Every expectation that does not hold quotes what the program wrote.
#[derive(Clone, Debug)]
pub struct Ran {
    label: String,
    output: Output,
}

impl Ran {
    /// Runs `run`, called `label` in messages.
    ///
    /// # Errors
    ///
    /// It cannot be started or misses its deadline.
    pub fn of(run: Run, label: impl Into<String>) -> anyhow::Result<Self> {
        Ok(Self { label: label.into(), output: run.output()? })
    }

    /// What a program in a guest left.
    #[must_use]
    pub fn in_guest(output: Output, label: String) -> Self {
        Self { label, output }
    }

    /// What it left.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Expects exit code 0.
    ///
    /// # Errors
    ///
    /// It had another.
    pub fn ok(self) -> anyhow::Result<Self> {
        self.exits(0)
    }

    /// Expects this exit code.
    ///
    /// # Errors
    ///
    /// It had another.
    pub fn exits(self, code: i32) -> anyhow::Result<Self> {
        ensure!(
            self.output.code == code,
            "{}: exit code {} instead of {code}\n{}",
            self.label,
            self.output.code,
            self.output.tail()
        );
        Ok(self)
    }

    /// Expects exit code `code` with nothing on the standard output and one error message, which
    /// has each of `says` in it.
    ///
    /// # Errors
    ///
    /// One of these is not so.
    pub fn fails(self, code: i32, says: &[&str]) -> anyhow::Result<()> {
        let ran = self.exits(code)?;
        let Output { stdout, stderr, .. } = &ran.output;
        ensure!(stdout.is_empty(), "{} failed, but printed a result: {stdout}", ran.label);
        let errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
        ensure!(errors == 1, "{}: not one error message but\n{stderr}", ran.label);
        ran.says(says)
    }

    /// Expects each of `says` in what it wrote.
    ///
    /// # Errors
    ///
    /// One is missing.
    pub fn says(&self, says: &[&str]) -> anyhow::Result<()> {
        let Output { stdout, stderr, .. } = &self.output;
        for word in says {
            ensure!(
                stdout.contains(word) || stderr.contains(word),
                "{}: does not say {word:?} but\n{}",
                self.label,
                self.output.tail()
            );
        }
        Ok(())
    }

    /// What it printed, as JSON.
    ///
    /// # Errors
    ///
    /// It is no JSON, or not of the schema `vireo.NAME/1`.
    pub fn json(&self, schema: &str) -> anyhow::Result<Value> {
        let text = &self.output.stdout;
        let value: Value = serde_json::from_str(text)
            .with_context(|| format!("{} printed no JSON but {text:?}", self.label))?;
        let named = value["schema"].as_str().unwrap_or_default();
        ensure!(named == format!("vireo.{schema}/1"), "{}: schema {named:?}", self.label);
        Ok(value)
    }
}
