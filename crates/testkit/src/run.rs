//! Running a program to its end, with a deadline.

use std::ffi::OsStr;
use std::fmt;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::error::{ErrorKind, TestkitError};

/// Time a program gets if nothing else was said.
pub(crate) const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// What `timeout(1)` exits with once the deadline has passed.
const TIMED_OUT: i32 = 124;

/// Lines of a failed program's output that go into the error.
const TAIL_LINES: usize = 25;

/// What a finished program left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 128 and the signal's number if a signal ended it.
    pub code: i32,
    /// Standard output, with what is not UTF-8 replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
}

impl Output {
    /// Whether the exit code is 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// The end of both outputs, for error messages.
    #[must_use]
    pub fn tail(&self) -> String {
        let both = format!("{}\n{}", self.stdout.trim_end(), self.stderr.trim_end());
        tail(both.trim(), TAIL_LINES)
    }
}

/// The last `lines` lines of `text`.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let skip = text.lines().count().saturating_sub(lines);
    text.lines().skip(skip).collect::<Vec<_>>().join("\n")
}

/// A program to be run to its end; killed with all its children when its deadline passes.
pub struct Run {
    command: Command,
    label: String,
    deadline: Duration,
    input: Vec<u8>,
}

impl Run {
    /// `program`, found through `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let label = program.as_ref().to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.env("PATH", search_path());
        Self::of(command, label)
    }

    /// A command that was put together elsewhere; `label` names it in errors.
    #[must_use]
    pub fn of(command: Command, label: impl Into<String>) -> Self {
        Self { command, label: label.into(), deadline: DEFAULT_DEADLINE, input: Vec::new() }
    }

    /// A shell script given as text, called `label`; it finds `arguments` in `$1`, `$2`, ...
    #[must_use]
    pub fn script(label: &str, text: &str) -> Self {
        let mut run = Self::new("bash").args(["-c", text, label]);
        run.label = label.to_owned();
        run
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets the deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// What the program reads from its standard input; nothing by default.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Runs it and gives what it left, whatever its exit code.
    ///
    /// # Errors
    ///
    /// It could not be started, or its deadline passed.
    pub fn output(self) -> Result<Output, TestkitError> {
        let Self { command, label, deadline, input } = self;
        let cannot = |source| TestkitError::io("run", &label, source);
        let mut child = under_timeout(&command, deadline).spawn().map_err(cannot)?;
        let stdin = child.stdin.take();
        // A program need not read its input: a closed pipe is its business.
        let feeder = std::thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(&input)));
        let done = child.wait_with_output().map_err(cannot)?;
        drop(feeder.join());
        let output = Output {
            code: exit_code(done.status),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        };
        if output.code == TIMED_OUT {
            let message = format!("{label} was not done after {deadline:?}\n{}", output.tail());
            return Err(TestkitError::new(ErrorKind::Deadline, message));
        }
        Ok(output)
    }

    /// Runs it and gives its standard output.
    ///
    /// # Errors
    ///
    /// As [`Run::output`]; also any exit code but 0.
    pub fn text(self) -> Result<String, TestkitError> {
        let label = self.label.clone();
        let output = self.output()?;
        if output.success() {
            return Ok(output.stdout);
        }
        let message = format!("{label} failed with exit code {}\n{}", output.code, output.tail());
        Err(TestkitError::new(ErrorKind::Failed, message))
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("command", &self.command).finish_non_exhaustive()
    }
}

/// `PATH` with the administrator's directories, which a login without them lacks.
pub(crate) fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// The same command as a child of `timeout(1)`, which kills its whole process group.
fn under_timeout(command: &Command, deadline: Duration) -> Command {
    let mut outer = Command::new("timeout");
    outer.arg("--kill-after=5").arg(format!("{}", deadline.as_secs_f64()));
    outer.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        outer.current_dir(directory);
    }
    outer.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    outer
}

/// The exit code, with a signal as shells count it.
pub(crate) fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_past_its_deadline_is_an_error_of_that_kind() {
        let late = Run::new("sleep").arg("20").deadline(Duration::from_millis(50)).output();
        assert_eq!(late.expect_err("sleeps too long").kind(), ErrorKind::Deadline);
    }

    #[test]
    fn a_failed_program_is_quoted() {
        let error = Run::script("speak", "echo because >&2; exit 7").text();
        let text = error.expect_err("exits with 7").to_string();
        assert_eq!(text, "speak failed with exit code 7\nbecause");
    }

    #[test]
    fn input_reaches_the_program() {
        let echoed = Run::new("cat").input("hello").text().expect("cat runs");
        assert_eq!(echoed, "hello");
    }

    #[test]
    fn a_tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
