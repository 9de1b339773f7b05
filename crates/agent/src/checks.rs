//! Checks of new configuration before it is committed: each program is asked about the machine's
//! files as the update would make them.
//!
//! A helper process takes mounts of its own, lays an overlay over each file system, makes the
//! staged changes in the overlays, and runs the checkers with that as their root. All that they or
//! it write goes into memory and is gone with the helper, whatever ends it; nobody else sees it.
//!
//! A check that fails is run once more on the files as they are: if it fails there too, the
//! update is not to blame.
//!
//! Not here: which checks there are (the policy) and what a failure means for the plan.

use std::fmt::Debug;
use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use vireo_classify::{ChangedFile, Check, Class};
use vireo_model::{ImagePath, NodeKind};
use vireo_tree::apply::{StagedEntry, StagedView};

mod mounts;
mod run;
mod view;

pub use run::{answer, enter};

/// How long one check may take; large configurations of nginx take some seconds.
pub const CHECK_DEADLINE: Duration = Duration::from_secs(60);

/// The helper's word for "become this program in that root directory".
pub const ENTER: &str = "check-enter";

/// What [`enter`] gives for a program that is not there, as shells do.
const MISSING_CODE: i32 = 127;

/// How long making the view may take, in addition to the checks.
const VIEW_DEADLINE: Duration = Duration::from_secs(60);

/// How often the helper is looked after.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Most bytes of staged files that are copied into the view, which is in memory.
const VIEW_LEN_MAX: u64 = 1 << 30;

/// Longest file of content that is copied: programs that check configuration read no pages.
const CONTENT_LEN_MAX: u64 = 1 << 20;

/// Runs checks on what an update would make of the machine.
pub trait Checker: Debug + Send + Sync {
    /// Runs each of `checks` on the machine's files with `staged` in place; one answer each, in
    /// their order. Changes nothing that anybody else could see.
    ///
    /// # Errors
    ///
    /// Why the files could not be shown to any checker, for people.
    fn run(
        &self,
        checks: &[Check],
        staged: &StagedView<'_>,
        changes: &[ChangedFile],
    ) -> Result<Vec<CheckReport>, String>;
}

/// One check and how it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Its command line.
    pub command: Vec<String>,
    /// How it went.
    pub result: CheckResult,
    /// What the checker printed, or why it was not run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// How long it took.
    pub seconds: f64,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckResult {
    /// The checker is content.
    Passed,
    /// It is not: the update is refused.
    Failed,
    /// It was not run, or says nothing about the update.
    Skipped,
}

impl CheckResult {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

impl CheckReport {
    /// `check` was not run because of `why`.
    #[must_use]
    pub fn skipped(check: &Check, why: &str) -> Self {
        let (command, detail) = (check.command.clone(), why.to_owned());
        Self { command, result: CheckResult::Skipped, detail, seconds: 0.0 }
    }
}

/// No checker: for roots that are not the running system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoChecker;

impl Checker for NoChecker {
    fn run(
        &self,
        _checks: &[Check],
        _staged: &StagedView<'_>,
        _changes: &[ChangedFile],
    ) -> Result<Vec<CheckReport>, String> {
        Err("these are not the files of the running system".to_owned())
    }
}

/// Checks by a helper process with mounts of its own.
#[derive(Clone, Debug)]
pub struct NamespaceChecker {
    helper: Vec<PathBuf>,
    scratch: PathBuf,
}

impl NamespaceChecker {
    /// A checker whose helper is the command `helper`: a program that calls [`answer`]. `scratch`
    /// is a directory that the helper mounts over, for itself alone; it is made.
    #[must_use]
    pub fn new(helper: Vec<PathBuf>, scratch: &Path) -> Self {
        Self { helper, scratch: scratch.to_owned() }
    }

    fn ask(&self, order: &Order) -> Result<Answer, String> {
        let failed = |error: std::io::Error| format!("the checks' helper cannot be run: {error}");
        let (program, arguments) =
            self.helper.split_first().ok_or_else(|| "there is no helper".to_owned())?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // So that all it starts can be ended with it.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let group = Group::of(&child);
        let most =
            VIEW_DEADLINE + CHECK_DEADLINE * 2 * u32::try_from(order.checks.len()).unwrap_or(1);
        let answer = talk(&mut child, order, most);
        // Ends what is left, which is nothing unless it is late.
        drop(group);
        let _ = child.wait();
        answer
    }
}

impl Checker for NamespaceChecker {
    fn run(
        &self,
        checks: &[Check],
        staged: &StagedView<'_>,
        changes: &[ChangedFile],
    ) -> Result<Vec<CheckReport>, String> {
        let make = fs::DirBuilder::new().recursive(true).create(&self.scratch);
        make.map_err(|error| format!("{} cannot be made: {error}", self.scratch.display()))?;
        let order = Order::new(&self.scratch, checks, staged, changes)?;
        let answers = self.ask(&order)?.0?;
        if answers.len() != checks.len() {
            return Err("the checks' helper gave no answer".to_owned());
        }
        Ok(answers)
    }
}

/// Sends the order, waits for the answer.
fn talk(child: &mut Child, order: &Order, most: Duration) -> Result<Answer, String> {
    let failed = |error: String| format!("the checks' helper cannot be spoken with: {error}");
    let text = serde_json::to_vec(order).map_err(|error| failed(error.to_string()))?;
    let input = child.stdin.take();
    let sender = thread::spawn(move || {
        // Should it end early, its answer says why.
        input.and_then(|mut input| input.write_all(&text).ok())
    });
    let output = child.stdout.take();
    let receiver = thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = output.map(|mut output| std::io::Read::read_to_end(&mut output, &mut bytes));
        read.and_then(Result::ok).map(|_| bytes)
    });
    let start = Instant::now();
    while !receiver.is_finished() {
        if start.elapsed() > most {
            return Err(format!("the checks did not end within {} s", most.as_secs()));
        }
        thread::sleep(POLL_INTERVAL);
    }
    drop(sender.join());
    let answer = receiver.join().ok().flatten().unwrap_or_default();
    serde_json::from_slice(&answer)
        .map_err(|_| "the checks' helper ended without an answer".to_owned())
}

/// The processes of the helper; ended when dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(i32::try_from(child.id()).ok().and_then(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It has ended already, mostly.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// What the helper is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// The directory that it may mount over.
    scratch: PathBuf,
    /// Directories of staged files, as it reaches them.
    parts: Vec<PathBuf>,
    changes: Vec<Item>,
    checks: Vec<Question>,
}

/// One check.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Question {
    command: Vec<String>,
    /// All files that it looks at are new: on the files as they are it would say nothing.
    is_new: bool,
}

/// One path of the update.
#[derive(Debug, Serialize, Deserialize)]
struct Item {
    path: Vec<u8>,
    what: What,
}

/// What becomes of the path.
#[derive(Debug, Serialize, Deserialize)]
enum What {
    Gone,
    Dir(Rights),
    Link {
        target: Vec<u8>,
    },
    File {
        part: usize,
        name: Vec<u8>,
        rights: Rights,
    },
    /// What is there gets other rights.
    Rights(Rights),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Rights {
    mode: u32,
    uid: u32,
    gid: u32,
}

/// What the helper says: an answer for each check, or why there is none.
#[derive(Debug, Serialize, Deserialize)]
struct Answer(Result<Vec<CheckReport>, String>);

impl Order {
    fn new(
        scratch: &Path,
        checks: &[Check],
        staged: &StagedView<'_>,
        changes: &[ChangedFile],
    ) -> Result<Self, String> {
        let own = PathBuf::from(format!("/proc/{}/fd", std::process::id()));
        let parts = staged.parts().map(|fd| own.join(fd.as_raw_fd().to_string())).collect();
        let class_of = |path: &ImagePath| {
            let found = changes.binary_search_by(|change| change.path.cmp(path));
            found.ok().map(|at| changes[at].class)
        };
        let mut len = 0_u64;
        let mut items = Vec::new();
        for entry in staged.entries() {
            let Some(item) = Item::of(entry, class_of(entry.path)) else { continue };
            if matches!(item.what, What::File { .. }) {
                len += len_of(entry);
            }
            items.push(item);
        }
        if len > VIEW_LEN_MAX {
            return Err(format!("the update's files are too many to be shown, {len} bytes"));
        }
        // A program that is told to look at a file that is not there fails for that alone.
        let is_new = |check: &Check| {
            let added = staged.entries().iter().filter(|it| it.before.is_none());
            let mut paths = added.map(|it| it.path.to_string());
            paths.any(|path| check.files.contains(&path) && names(&check.command, &path))
        };
        let question =
            |check: &Check| Question { command: check.command.clone(), is_new: is_new(check) };
        let checks = checks.iter().map(question).collect();
        Ok(Self { scratch: scratch.to_owned(), parts, changes: items, checks })
    }
}

/// Whether the command line has the path, or its last component as a word.
fn names(command: &[String], path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    command.iter().any(|word| word.contains(path) || word == name)
}

impl Item {
    /// None for what no checker of configuration looks at.
    fn of(entry: &StagedEntry<'_>, class: Option<Class>) -> Option<Self> {
        let path = entry.path.as_bytes().to_vec();
        let Some(node) = entry.after else { return Some(Self { path, what: What::Gone }) };
        let rights = Rights { mode: node.mode & 0o7777, uid: node.uid, gid: node.gid };
        let idle = matches!(
            class,
            Some(
                Class::Documentation
                    | Class::Kernel
                    | Class::KernelModule
                    | Class::Initramfs
                    | Class::Firmware
                    | Class::BootLoader
            )
        );
        let what = match (&node.kind, &entry.file) {
            (NodeKind::Dir, _) => What::Dir(rights),
            (NodeKind::Symlink { target }, _) => What::Link { target: target.to_vec() },
            _ if idle => return None,
            (_, Some(_)) if class == Some(Class::Content) && len_of(entry) > CONTENT_LEN_MAX => {
                return None;
            }
            (_, Some((part, name))) => What::File { part: *part, name: name.clone(), rights },
            (NodeKind::File { .. } | NodeKind::HardLink { .. }, None) => What::Rights(rights),
            // Devices, pipes and sockets are no configuration.
            _ => return None,
        };
        Some(Self { path, what })
    }
}

fn len_of(entry: &StagedEntry<'_>) -> u64 {
    entry.after.and_then(|node| node.content()).map_or(0, |(len, _)| len)
}

#[cfg(test)]
mod tests;
