//! Killing a program at a chosen system call, or having the call fail.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader};
use std::iter;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use vireo_testkit::{Output, Run, programs};

/// What the shell and strace report for a process that SIGKILL ended.
const KILLED: i32 = 128 + 9;

/// A moment in a program's run: before one of its threads makes a system call for the `nth` time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The system call's name.
    pub call: &'static str,
    /// Which time, from 1.
    pub nth: u32,
}

/// Whose system calls count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// Those of the program's first thread.
    Main,
    /// Those of every thread and child, each counted by itself.
    All,
}

impl Threads {
    /// strace(1), attached to them.
    pub(crate) fn strace(self) -> Run {
        match self {
            Self::Main => Run::new("strace"),
            Self::All => Run::new("strace").arg("-f"),
        }
    }
}

/// How a run ended that was to be killed.
#[derive(Clone, Debug)]
pub enum Interrupted {
    /// It was killed, as by `kill -9`.
    Killed,
    /// It never made that call so often, and ended by itself.
    Ended(Output),
}

impl Moment {
    /// Runs `name ARGS`, a program of ours, and kills it at this moment.
    ///
    /// # Errors
    ///
    /// It cannot be run, or strace itself failed.
    pub fn kill<S: AsRef<OsStr>>(
        self,
        name: &str,
        args: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Interrupted> {
        self.inject(Threads::All.strace(), &command(name, args)?)
    }

    /// The same with `strace`, the beginning of its command line: to run it somewhere else.
    ///
    /// # Errors
    ///
    /// As [`Moment::kill`].
    pub fn kill_by<S: AsRef<OsStr>>(
        self,
        strace: Run,
        name: &str,
        args: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Interrupted> {
        self.inject(strace.args(["-f"]), &command(name, args)?)
    }

    /// Runs a command and kills it at this moment, which is counted in each of these threads.
    pub(crate) fn kill_command<S: AsRef<OsStr>>(
        self,
        words: &[S],
        threads: Threads,
    ) -> anyhow::Result<Interrupted> {
        self.inject(threads.strace(), words)
    }

    /// Runs a command whose call fails with `error` (`EIO`) at this moment, which is counted in each
    /// of these threads; the call itself is not made.
    pub(crate) fn fail_command<S: AsRef<OsStr>>(
        self,
        words: &[S],
        threads: Threads,
        error: &str,
    ) -> anyhow::Result<Output> {
        self.tamper(threads.strace(), words, &format!("error={error}"))
    }

    fn inject<S: AsRef<OsStr>>(self, strace: Run, words: &[S]) -> anyhow::Result<Interrupted> {
        let output = self.tamper(strace, words, "signal=SIGKILL")?;
        let killed = output.code == KILLED;
        Ok(if killed { Interrupted::Killed } else { Interrupted::Ended(output) })
    }

    fn tamper<S: AsRef<OsStr>>(
        self,
        strace: Run,
        words: &[S],
        how: &str,
    ) -> anyhow::Result<Output> {
        let Self { call, nth } = self;
        let run = strace.args(["-qq", "-o", "/dev/null"]);
        let run = run.args(["-e", &format!("trace={call}")]);
        let run = run.args(["-e", &format!("inject={call}:{how}:when={nth}")]);
        let output = run.args(words).output()?;
        ensure!(!output.stderr.contains("strace:"), "strace failed: {}", output.stderr);
        Ok(output)
    }

    /// Kills the process `pid`, which runs already, at this moment, counted from now.
    ///
    /// # Errors
    ///
    /// strace cannot be attached to it.
    pub fn ambush(self, pid: u32) -> anyhow::Result<Ambush> {
        let Self { call, nth } = self;
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}")]);
        strace.args(["-e", &format!("inject={call}:signal=SIGKILL:when={nth}")]);
        strace.arg("-p").arg(pid.to_string()).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = strace.spawn().context("cannot start strace")?;
        let errors = child.stderr.take().context("strace has no standard error")?;
        let mut ambush = Ambush(child);
        let mut line = String::new();
        let mut errors = BufReader::new(errors);
        while errors.read_line(&mut line)? > 0 {
            if line.contains("attached") {
                ambush.drain(errors);
                return Ok(ambush);
            }
        }
        bail!("strace was not attached: {line}")
    }
}

/// The command line of `name ARGS`, a program of ours.
fn command<S: AsRef<OsStr>>(
    name: &str,
    args: impl IntoIterator<Item = S>,
) -> anyhow::Result<Vec<OsString>> {
    let program = programs::find(name)?.into_os_string();
    Ok(iter::once(program).chain(args.into_iter().map(|arg| arg.as_ref().to_owned())).collect())
}

/// A moment that is being waited for; given up when dropped.
#[derive(Debug)]
pub struct Ambush(Child);

impl Ambush {
    /// strace ends if nobody reads what it says.
    fn drain(&mut self, mut errors: BufReader<std::process::ChildStderr>) {
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
    }
}

impl Drop for Ambush {
    fn drop(&mut self) {
        // When strace goes, the process goes on by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
