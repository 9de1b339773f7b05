//! An error in place of every system call of a command that changes something.

use std::fmt;

use anyhow::{Context as _, ensure};

use crate::kills::{points, with_environment};

/// What a call may answer on a real machine: a broken disk, a full one, a spent quota, a file system
/// that the kernel has turned read-only, too many open files.
const ERRORS: [&str; 5] = ["EIO", "ENOSPC", "EDQUOT", "EROFS", "EMFILE"];

/// What errors in place of many calls came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Runs with one error each.
    pub runs: usize,
    /// Runs that said that they failed.
    pub failed: usize,
    /// Runs that got to the end all the same.
    pub coped: usize,
    /// Runs that left something that had to be recovered.
    pub mixed: usize,
    /// What was wrong in the end.
    pub bad: Vec<String>,
}

impl Errors {
    /// Expects that nothing is wrong and that most errors were seen; for programs that recover by
    /// themselves before they end.
    ///
    /// # Errors
    ///
    /// One of these is not so; what was wrong is listed.
    pub fn none_bad(&self) -> anyhow::Result<()> {
        ensure!(self.bad.is_empty(), "{self}\n{}", self.bad.join("\n"));
        ensure!(self.failed > self.coped, "{self}: most errors were overlooked");
        Ok(())
    }

    /// Expects the same, and that there was something to recover.
    ///
    /// # Errors
    ///
    /// One of these is not so; what was wrong is listed.
    pub fn all_whole(&self) -> anyhow::Result<()> {
        self.none_bad()?;
        ensure!(self.mixed > 0, "{self}: nothing was left to recover, so nothing was tested");
        Ok(())
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, failed, coped, mixed, bad } = self;
        let bad = bad.len();
        write!(
            f,
            "{runs} errors: {failed} runs failed, {coped} coped; {mixed} mixtures before recovery, \
             {bad} bad after it"
        )
    }
}

/// Runs `command` again and again, each time from what `prepare` makes, and has one call that changes
/// something fail, at most `most` times, spread evenly over calls and errors. `check` gets to know
/// whether the command claims success; it recovers, fails if what is there then is not right, and
/// says whether recovery was needed.
///
/// # Errors
///
/// `prepare` failed, or the command fails by itself. What `check` finds is counted.
pub fn fail_everywhere(
    command: &[String],
    most: usize,
    prepare: &mut dyn FnMut() -> anyhow::Result<()>,
    check: &mut dyn FnMut(bool) -> anyhow::Result<bool>,
) -> anyhow::Result<Errors> {
    prepare().context("cannot prepare")?;
    let (_, points) = points(command)?;
    check(true).context("after a whole run")?;
    let all = points.len() * ERRORS.len();
    let count = most.min(all);
    let mut errors = Errors { runs: count, ..Errors::default() };
    for number in 0..count {
        let at = (2 * number + 1) * all / (2 * count);
        // The next error at the next call: also a few runs see all of them.
        let (point, error) = (points[at / ERRORS.len()], ERRORS[number % ERRORS.len()]);
        prepare().context("cannot prepare")?;
        let output = point.moment.fail_command(&with_environment(command), point.threads, error)?;
        let success = output.code == 0;
        *(if success { &mut errors.coped } else { &mut errors.failed }) += 1;
        match check(success) {
            Ok(mixed) => errors.mixed += usize::from(mixed),
            Err(wrong) => errors.bad.push(format!("{error} at {point:?}: {wrong:#}")),
        }
    }
    Ok(errors)
}
