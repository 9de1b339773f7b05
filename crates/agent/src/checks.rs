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
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vireo_classify::{ChangedFile, Check, Class};
use vireo_model::{ImagePath, NodeKind};
use vireo_sys::child::{self, ChildError, Limits};
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

/// Longest answer of the helper, in bytes: thousands of checks.
const MAX_ANSWER_LEN: u64 = 16 << 20;

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
        let failed = |error: ChildError| match error {
            ChildError::Io(error) => format!("the checks' helper cannot be run: {error}"),
            error => format!("the checks' helper was ended: {error}"),
        };
        let (program, arguments) =
            self.helper.split_first().ok_or_else(|| "there is no helper".to_owned())?;
        let text = serde_json::to_vec(order)
            .map_err(|error| format!("the checks cannot be written as JSON: {error}"))?;
        let runs = u32::try_from(order.checks.len().saturating_mul(2)).unwrap_or(u32::MAX);
        let limits = Limits {
            deadline: VIEW_DEADLINE.saturating_add(CHECK_DEADLINE.saturating_mul(runs)),
            output_len_max: MAX_ANSWER_LEN,
            // It leaves nothing, unless it was ended itself.
            ends_all: true,
        };
        let ended = child::run(Command::new(program).args(arguments), Some(text), &limits)
            .map_err(failed)?;
        serde_json::from_slice(&ended.output)
            .map_err(|_| "the checks' helper ended without an answer".to_owned())
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
