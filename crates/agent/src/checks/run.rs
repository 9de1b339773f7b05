//! The helper's side: takes an order, makes the view, runs the checkers in it.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::process::{
    Pid, Signal, WaitOptions, chroot, getpid, kill_process, set_child_subreaper, wait,
};
use vireo_sys::child::{self, ChildError, Limits};

use super::{Answer, CHECK_DEADLINE, CheckReport, CheckResult, Order, Question};
use super::{mounts, view};

/// Where checkers' programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of a checker's output is kept, from its end, in bytes.
const OUTPUT_LEN_MAX: u64 = 2000;

/// What a checker may cost. What it prints is kept in memory until its end.
const LIMITS: Limits =
    Limits { deadline: CHECK_DEADLINE, output_len_max: 16 << 20, ends_all: false };

/// The helper's whole work: reads an order from `input`, gives the answer to `output`. To be
/// called by a process of its own that has one thread; nothing is possible in it afterwards.
///
/// # Errors
///
/// `input` is no order, or `output` cannot be written.
pub fn answer(input: &mut dyn io::Read, output: &mut dyn io::Write) -> io::Result<()> {
    let mut text = Vec::new();
    input.read_to_end(&mut text)?;
    let order: Order = serde_json::from_slice(&text)?;
    let answer = Answer(carry_out(&order));
    output.write_all(&serde_json::to_vec(&answer)?)?;
    output.flush()
}

fn carry_out(order: &Order) -> Result<Vec<CheckReport>, String> {
    vireo_sys::mounts::take_own()
        .map_err(|error| format!("a view of the files cannot be made: {error}"))?;
    // What a checker leaves running comes to us.
    let own = Pid::from_raw(getpid().as_raw_nonzero().get());
    set_child_subreaper(own).map_err(|error| format!("cannot look after checkers: {error}"))?;
    mounts::mount_memory(&order.scratch)?;
    let target = mounts::copy_root(&order.scratch, "target")?;
    view::change(&target, &order.parts, &order.changes)?;
    let base = mounts::copy_root(&order.scratch, "base")?;
    let outputs = order.scratch.join("outputs");
    mounts::make_dir(&outputs)?;
    let mut rooms = Rooms { outputs, count: 0 };
    let reports = order.checks.iter().map(|question| check(question, &target, &base, &mut rooms));
    Ok(reports.collect())
}

/// Where outputs go.
struct Rooms {
    outputs: PathBuf,
    count: usize,
}

/// What a checker's run came to.
enum Ended {
    Well,
    /// With this output.
    Badly(String),
    /// It is not there, or what it needs to be loaded is not: ld.so(8) and shells use the same status.
    Missing(String),
}

fn check(question: &Question, target: &Path, base: &Path, rooms: &mut Rooms) -> CheckReport {
    let start = Instant::now();
    let (result, detail) = match run(&question.command, target, rooms) {
        Ended::Well => (CheckResult::Passed, String::new()),
        Ended::Missing(output) => match run(&question.command, base, rooms) {
            Ended::Missing(_) => {
                (CheckResult::Skipped, "its program is not on this machine".to_owned())
            }
            // It can be loaded now and could not with the update.
            Ended::Well | Ended::Badly(_) => (CheckResult::Failed, output),
        },
        Ended::Badly(output) if question.is_new => (CheckResult::Failed, output),
        Ended::Badly(output) => match run(&question.command, base, rooms) {
            Ended::Badly(_) => {
                (CheckResult::Skipped, format!("it fails without the update, too: {output}"))
            }
            Ended::Well | Ended::Missing(_) => (CheckResult::Failed, output),
        },
    };
    let (command, seconds) = (question.command.clone(), start.elapsed().as_secs_f64());
    CheckReport { command, result, detail, seconds }
}

fn run(command: &[String], root: &Path, rooms: &mut Rooms) -> Ended {
    rooms.count += 1;
    let path = rooms.outputs.join(rooms.count.to_string());
    let ended = File::options().create_new(true).read(true).write(true).open(&path);
    let ended = ended.and_then(|output| run_into(command, root, output));
    end_leftovers();
    match ended {
        Ok(ended) => ended,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ended::Missing(error.to_string()),
        Err(error) => Ended::Badly(format!("it cannot be run: {error}")),
    }
}

fn run_into(command: &[String], root: &Path, mut output: File) -> io::Result<Ended> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::NotFound)?;
    // The process that becomes the checker enters the view: this one has to stay outside to make
    // the next. `chroot` of a child needs a program that does it; the helper itself is one.
    let mut entering = Command::new("/proc/self/exe");
    entering.arg(super::ENTER).arg(root).arg(program).args(arguments).env_clear().envs([
        ("PATH", PATH),
        ("LC_ALL", "C"),
        ("HOME", "/root"),
    ]);
    let status = match child::run_into(&mut entering, &output, &LIMITS) {
        Ok(status) => status,
        Err(ChildError::Io(error)) => return Err(error),
        Err(error) => return Ok(Ended::Badly(error.to_string())),
    };
    if status.success() {
        return Ok(Ended::Well);
    }
    let len = output.metadata()?.len();
    output.seek(SeekFrom::Start(len.saturating_sub(OUTPUT_LEN_MAX)))?;
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let text = if text.is_empty() { status.to_string() } else { text };
    let is_missing = status.code() == Some(super::MISSING_CODE);
    Ok(if is_missing { Ended::Missing(text) } else { Ended::Badly(text) })
}

/// Becomes the program `command`, with `root` as its root directory.
pub fn enter(root: &Path, command: &[std::ffi::OsString]) -> i32 {
    use std::os::unix::process::CommandExt as _;
    let entered =
        chroot(root).map_err(io::Error::from).and_then(|()| std::env::set_current_dir("/"));
    let error = match (entered, command.split_first()) {
        (Ok(()), Some((program, arguments))) => Command::new(program).args(arguments).exec(),
        (Ok(()), None) => return super::MISSING_CODE,
        (Err(error), _) => error,
    };
    if error.kind() == io::ErrorKind::NotFound {
        return super::MISSING_CODE;
    }
    let _ = writeln!(io::stderr(), "cannot be run: {error}");
    1
}

/// Ends what a checker has left running.
fn end_leftovers() {
    loop {
        let own = format!("/proc/self/task/{}/children", getpid());
        let children = fs::read_to_string(own).unwrap_or_default();
        let children: Vec<Pid> = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw))
            .collect();
        if children.is_empty() {
            return;
        }
        for pid in children {
            let _ = kill_process(pid, Signal::KILL);
        }
        if wait(WaitOptions::empty()).is_err() {
            return;
        }
    }
}
