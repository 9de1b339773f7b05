//! Running a program to its end, or to the end of somebody's patience.
//!
//! Nobody waits longer than a deadline, and no output takes more memory than its limit, whatever
//! the program and all that it starts do: whoever is late or prints too much is killed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

/// How often a running program is looked after.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How long after a program's end its output may still come.
const OUTPUT_WAIT: Duration = Duration::from_secs(1);

/// Bytes read from a pipe at once: what a pipe holds.
const PIECE_LEN: usize = 64 << 10;

/// What a program may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long it may run.
    pub deadline: Duration,
    /// Most bytes that it may print, and complain of, each.
    pub output_len_max: u64,
    /// Whether what it leaves running is ended with it, and does not only go on.
    pub ends_all: bool,
}

/// How a program ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed.
    pub output: Vec<u8>,
    /// What it wrote to its standard error.
    pub complaint: Vec<u8>,
    /// Whether `output` is all of it: something that it started may keep the pipe open.
    pub is_whole: bool,
}

/// Why a program did not end by itself.
#[derive(Debug)]
pub enum ChildError {
    /// It cannot be started or waited for.
    Io(io::Error),
    /// It had not ended in this time, and was killed.
    Late(Duration),
    /// It printed more than so many bytes, and was killed.
    TooMuch(u64),
}

impl fmt::Display for ChildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Late(deadline) => write!(f, "no end within {} s", deadline.as_secs()),
            Self::TooMuch(most) => {
                write!(f, "it prints without end, more than {} KiB", most >> 10)
            }
        }
    }
}

impl std::error::Error for ChildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // An I/O error is shown as itself.
        None
    }
}

/// Runs `command` in a process group of its own, with `input` to read (nothing without), and gives
/// what it printed. What it starts is killed with it if it is late or prints too much.
///
/// # Errors
///
/// It cannot be started, is late, or prints too much. An exit status is no error.
pub fn run(
    command: &mut Command,
    input: Option<Vec<u8>>,
    limits: &Limits,
) -> Result<Ended, ChildError> {
    command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn().map_err(ChildError::Io)?;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        // Should it end before it has read all, its status and complaint say why.
        thread::spawn(move || pipe.write_all(&input));
    }
    let output = Reader::of(child.stdout.take(), limits.output_len_max);
    let complaint = Reader::of(child.stderr.take(), limits.output_len_max);
    let is_too_much = || output.is_too_much() || complaint.is_too_much();
    let status = watch(&mut child, limits, Victim::Group, &is_too_much)?;
    let (output, is_whole) = output.finish()?;
    let (complaint, _) = complaint.finish()?;
    Ok(Ended { status, output, complaint, is_whole })
}

/// Runs `command`, all of whose output goes to `output`, in the process group of the caller: who
/// ends that ends it too. It alone is killed if it is late or prints too much; what it started is
/// the caller's to look after.
///
/// # Errors
///
/// As [`run`].
pub fn run_into(
    command: &mut Command,
    output: &File,
    limits: &Limits,
) -> Result<ExitStatus, ChildError> {
    let copy = || output.try_clone().map_err(ChildError::Io);
    command.stdin(Stdio::null()).stdout(copy()?).stderr(copy()?);
    let mut child = command.spawn().map_err(ChildError::Io)?;
    let is_too_much = || output.metadata().is_ok_and(|found| found.len() > limits.output_len_max);
    let status = watch(&mut child, limits, Victim::Process, &is_too_much)?;
    // It may have ended between two looks.
    if is_too_much() { Err(ChildError::TooMuch(limits.output_len_max)) } else { Ok(status) }
}

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Group,
    Process,
}

impl Victim {
    fn kill(self, pid: Pid) {
        // Killing what has just ended fails, which is fine.
        let _ = match self {
            Self::Group => kill_process_group(pid, Signal::KILL),
            Self::Process => kill_process(pid, Signal::KILL),
        };
    }
}

/// Waits for the end of `child`, or ends it.
fn watch(
    child: &mut Child,
    limits: &Limits,
    victim: Victim,
    is_too_much: &dyn Fn() -> bool,
) -> Result<ExitStatus, ChildError> {
    let pid = Pid::from_child(child);
    let start = Instant::now();
    let why = loop {
        match has_ended(pid) {
            Ok(true) => break None,
            Ok(false) => {}
            Err(error) => break Some(ChildError::Io(error)),
        }
        if is_too_much() {
            break Some(ChildError::TooMuch(limits.output_len_max));
        }
        if start.elapsed() >= limits.deadline {
            break Some(ChildError::Late(limits.deadline));
        }
        thread::sleep(POLL_INTERVAL);
    };
    if why.is_some() || limits.ends_all {
        // Before its number is given back: until then nobody else can have it.
        victim.kill(pid);
    }
    let status = child.wait().map_err(ChildError::Io)?;
    why.map_or(Ok(status), Err)
}

/// Whether the process has ended; it stays to be waited for.
fn has_ended(pid: Pid) -> io::Result<bool> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(pid), options)?.is_some())
}

/// Reads a pipe on a thread of its own, which lives as long as somebody may write to it.
struct Reader {
    read: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
    len_max: u64,
}

impl Reader {
    fn of(pipe: Option<impl Read + Send + 'static>, len_max: u64) -> Self {
        let read = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&read);
        let thread = thread::spawn(move || {
            let Some(mut pipe) = pipe else { return };
            let mut piece = vec![0; PIECE_LEN];
            loop {
                match pipe.read(&mut piece) {
                    Ok(0) => return,
                    Ok(len) => {
                        let mut all = lock(&shared);
                        all.extend(piece.iter().take(len));
                        if is_longer(&all, len_max) {
                            return;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // What cannot be read is missing, as if it had not been said.
                    Err(_) => return,
                }
            }
        });
        Self { read, thread, len_max }
    }

    fn is_too_much(&self) -> bool {
        is_longer(&lock(&self.read), self.len_max)
    }

    /// What was printed, and whether that is all, when the program has ended.
    fn finish(self) -> Result<(Vec<u8>, bool), ChildError> {
        let start = Instant::now();
        while !self.thread.is_finished() && start.elapsed() < OUTPUT_WAIT {
            thread::sleep(POLL_INTERVAL);
        }
        if self.is_too_much() {
            return Err(ChildError::TooMuch(self.len_max));
        }
        let is_whole = self.thread.is_finished();
        Ok((std::mem::take(&mut *lock(&self.read)), is_whole))
    }
}

fn lock(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    // Bytes are whole whatever became of whoever added some.
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_longer(bytes: &[u8], len_max: u64) -> bool {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX) > len_max
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENT: Limits =
        Limits { deadline: Duration::from_secs(20), output_len_max: 1 << 20, ends_all: false };
    const HASTY: Limits = Limits { deadline: Duration::from_millis(300), ..PATIENT };

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn is_running(pid: &str) -> bool {
        // A process that ended but was not waited for is none.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Waits for `pid` to end, for as long as a killed process may take under load.
    fn ends(pid: &str) -> bool {
        let start = Instant::now();
        while is_running(pid) && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(POLL_INTERVAL);
        }
        !is_running(pid)
    }

    #[test]
    fn a_program_reads_its_input_and_says_how_it_ended() {
        let long = vec![b'x'; 300_000];
        let ended = run(&mut shell("cat; echo why >&2; exit 3"), Some(long.clone()), &PATIENT);
        let ended = ended.expect("it ran");
        assert_eq!((ended.status.code(), ended.output == long), (Some(3), true));
        assert_eq!((ended.complaint.as_slice(), ended.is_whole), (b"why\n".as_slice(), true));
        let missing = run(&mut Command::new("/nonexistent"), None, &PATIENT).expect_err("missing");
        assert!(
            matches!(missing, ChildError::Io(error) if error.kind() == io::ErrorKind::NotFound)
        );
    }

    #[test]
    fn who_does_not_want_to_end_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let note = dir.path().join("pid");
        let script = format!(
            "trap '' TERM; (trap '' TERM; sleep 60) & echo $! > {}; sleep 60",
            note.display()
        );
        let late = run(&mut shell(&script), None, &HASTY).expect_err("late");
        assert!(matches!(late, ChildError::Late(_)), "{late}");
        let pid = std::fs::read_to_string(note).expect("it started");
        assert!(ends(&pid), "{pid}");
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipe_is_not_waited_for() {
        let start = Instant::now();
        let script = "sleep 60 & echo $!";
        let ended = run(&mut shell(script), None, &PATIENT).expect("it ran");
        let pid = String::from_utf8(ended.output).expect("a number");
        assert!(ended.status.success() && !ended.is_whole);
        assert!(is_running(&pid), "nobody said to end it");
        kill_process(
            Pid::from_raw(pid.trim().parse().expect("a number")).expect("one"),
            Signal::KILL,
        )
        .expect("killed");
        let all = Limits { ends_all: true, ..PATIENT };
        let ended = run(&mut shell(script), None, &all).expect("it ran");
        assert!(ended.is_whole, "who kept the pipe is gone");
        assert!(ends(&String::from_utf8(ended.output).expect("a number")));
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn too_much_output_ends_a_program_at_once() {
        let start = Instant::now();
        for script in ["cat /dev/zero", "cat /dev/zero >&2", "head -c 2000000 /dev/zero"] {
            let error = run(&mut shell(script), None, &PATIENT).expect_err("too much");
            assert!(matches!(error, ChildError::TooMuch(_)), "{script}: {error}");
        }
        let output = tempfile::tempfile().expect("a file");
        for script in ["cat /dev/zero", "head -c 2000000 /dev/zero"] {
            let error = run_into(&mut shell(script), &output, &PATIENT);
            assert!(matches!(error, Err(ChildError::TooMuch(_))), "{script}: {error:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn what_goes_to_a_file_is_all_that_was_printed_in_order() {
        let mut output = tempfile::tempfile().expect("a file");
        let script = "echo one; echo two >&2; echo three";
        let status = run_into(&mut shell(script), &output, &PATIENT).expect("it ran");
        assert!(status.success());
        let mut text = String::new();
        io::Seek::rewind(&mut output).expect("at its start");
        output.read_to_string(&mut text).expect("readable");
        assert_eq!(text, "one\ntwo\nthree\n");
        let late = run_into(&mut shell("trap '' TERM; sleep 60"), &output, &HASTY);
        assert!(matches!(late, Err(ChildError::Late(_))), "{late:?}");
    }
}
