//! `kill -9` at every system call of a command that changes something.

use std::collections::HashMap;
use std::fmt;
use std::fs;

use anyhow::{Context as _, ensure};

use crate::interrupt::{Interrupted, Moment, Threads};

/// Calls that change something on a disk, or make it durable.
const CHANGING: &[&str] = &[
    "chmod",
    "chown",
    "copy_file_range",
    "creat",
    "fallocate",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fdatasync",
    "fremovexattr",
    "fsetxattr",
    "fsync",
    "ftruncate",
    "lchown",
    "link",
    "linkat",
    "lremovexattr",
    "lsetxattr",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "open",
    "openat",
    "openat2",
    "pwrite64",
    "pwritev",
    "removexattr",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "setxattr",
    "symlink",
    "symlinkat",
    "sync",
    "sync_file_range",
    "syncfs",
    "truncate",
    "unlink",
    "unlinkat",
    "utimensat",
    "write",
    "writev",
];

/// With one worker the calls come in the same order in every run.
const ONE_WORKER: &str = "RAYON_NUM_THREADS=1";

/// A moment before one call of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) moment: Moment,
    pub(crate) threads: Threads,
}

/// What killing a command at many moments came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kills {
    /// Calls of one whole run that change something.
    pub calls: usize,
    /// Those before which it can be killed exactly: all, but where several threads compete.
    pub reachable: usize,
    /// Runs that were killed, each before another call.
    pub killed: usize,
    /// Runs that ended before the moment came.
    pub ended: usize,
    /// Runs that left something that had to be recovered.
    pub mixed: usize,
    /// What was wrong after recovery.
    pub bad: Vec<String>,
}

impl Kills {
    /// Expects that nothing is wrong, that there was something to recover, and that nearly all runs
    /// were killed.
    ///
    /// # Errors
    ///
    /// One of these is not so; what was wrong is listed.
    pub fn all_whole(&self) -> anyhow::Result<()> {
        ensure!(self.bad.is_empty(), "{self}\n{}", self.bad.join("\n"));
        ensure!(self.killed > 9 * self.ended, "{self}: the runs differ too much");
        ensure!(self.mixed > 0, "{self}: nothing was left to recover, so nothing was tested");
        Ok(())
    }
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, reachable, killed, ended, mixed, bad } = self;
        let bad = bad.len();
        write!(
            f,
            "{killed} kills ({reachable} of {calls} calls can be hit, {ended} runs ended before): \
             {mixed} mixtures before recovery, {bad} bad after it"
        )
    }
}

/// Runs `command` again and again, each time from what `prepare` makes, and kills it before each call
/// that changes something, at most `most` times, spread evenly over the calls. `check` recovers,
/// fails if what is there then is not right, and says whether recovery was needed.
///
/// Any command will do: one that applies, one that undoes, one that recovers what `prepare` broke.
///
/// # Errors
///
/// `prepare` failed, or the command fails without being killed. What `check` finds is counted.
pub fn kill_everywhere(
    command: &[String],
    most: usize,
    prepare: &mut dyn FnMut() -> anyhow::Result<()>,
    check: &mut dyn FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Kills> {
    prepare().context("cannot prepare")?;
    let (calls, points) = points(command)?;
    check().context("after a whole run")?;
    let mut kills = Kills { calls, reachable: points.len(), ..Kills::default() };
    let count = most.min(points.len());
    for number in 0..count {
        let point = points[(2 * number + 1) * points.len() / (2 * count)];
        prepare().context("cannot prepare")?;
        match point.moment.kill_command(&with_environment(command), point.threads)? {
            Interrupted::Killed => kills.killed += 1,
            Interrupted::Ended(_) => kills.ended += 1,
        }
        match check() {
            Ok(mixed) => kills.mixed += usize::from(mixed),
            Err(error) => kills.bad.push(format!("killed at {point:?}: {error:#}")),
        }
    }
    Ok(kills)
}

pub(crate) fn with_environment(command: &[String]) -> Vec<String> {
    ["env", ONE_WORKER].map(str::to_owned).into_iter().chain(command.iter().cloned()).collect()
}

/// The calls of one whole run that change something, counted, and the moments before them.
pub(crate) fn points(command: &[String]) -> anyhow::Result<(usize, Vec<Point>)> {
    let trace = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    let run = Threads::All.strace().args(["-qq", "-esignal=none", "-o"]).arg(trace.path());
    // A question mark: an strace that does not know a call can do without.
    let run = run.args(["-e", &format!("trace=execve,?{}", CHANGING.join(",?"))]);
    run.args(with_environment(command)).text()?;
    Ok(points_of(&fs::read_to_string(trace.path())?))
}

/// Reads a trace of `strace -f`: each line begins with the number of a thread, the first with that of
/// the program's first one.
fn points_of(trace: &str) -> (usize, Vec<Point>) {
    let (mut calls, mut points) = (0, Vec::new());
    let mut counts: HashMap<(&str, &str), u32> = HashMap::new();
    let mut highest: HashMap<&str, u32> = HashMap::new();
    let main = trace.split_whitespace().next().unwrap_or_default();
    for line in trace.lines() {
        let Some((thread, line)) = line.split_once(' ') else { continue };
        let Some((name, arguments)) = line.trim_start().split_once('(') else { continue };
        let Some(call) = CHANGING.iter().copied().find(|call| *call == name) else { continue };
        let count = counts.entry((thread, call)).or_default();
        *count += 1;
        let nth = *count;
        let first = highest.get(call).is_none_or(|highest| nth > *highest);
        if first {
            highest.insert(call, nth);
        }
        if changes(call, arguments) {
            calls += 1;
            let moment = Moment { call, nth };
            match (thread == main, first) {
                (true, _) => points.push(Point { moment, threads: Threads::Main }),
                (false, true) => points.push(Point { moment, threads: Threads::All }),
                // Another thread would be killed, earlier.
                (false, false) => {}
            }
        }
    }
    (calls, points)
}

/// Whether a call with these arguments changes a file.
fn changes(call: &str, arguments: &str) -> bool {
    match call {
        "open" | "openat" | "openat2" => {
            ["O_CREAT", "O_TRUNC", "O_TMPFILE"].iter().any(|flag| arguments.contains(flag))
        }
        // Not what goes to a terminal or a pipe.
        "write" | "writev" => !["0,", "1,", "2,"].iter().any(|fd| arguments.starts_with(fd)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changing_call_is_a_moment_unless_another_thread_is_there_first() {
        let trace = "\
10 execve(\"/bin/x\", ...) = 0
10 openat(AT_FDCWD, \"/etc/x\", O_RDONLY) = 3
10 mkdirat(3, \"a\", 0700) = 0
11 mkdirat(3, \"b\", 0700) = 0
11 mkdirat(3, \"c\", 0700 <unfinished ...>
10 openat(3, \"x\", O_RDWR|O_CREAT, 0600) = 4
11 <... mkdirat resumed>) = 0
10 write(1, \"done\", 4) = 4
";
        let (calls, points) = points_of(trace);
        let found: Vec<(&str, u32, Threads)> = points
            .iter()
            .map(|point| (point.moment.call, point.moment.nth, point.threads))
            .collect();
        assert_eq!(calls, 4, "two of them at the same count");
        let expected = [
            ("mkdirat", 1, Threads::Main),
            ("mkdirat", 2, Threads::All),
            ("openat", 2, Threads::Main),
        ];
        assert_eq!(found, expected);
    }
}
