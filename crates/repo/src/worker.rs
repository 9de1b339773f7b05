//! Work with disk images in a process of its own: one job each, and hardly a right but those that
//! mounting takes.
//!
//! An image is somebody else's file system, read by the kernel and by us. Whatever it does to the
//! process that reads it, the server goes on: [`WorkerImages`] starts this program anew for every
//! job, tells it the job on its standard input and reads what came of it from its standard output.
//! [`work`] is the other end: it gives up its rights ([`confine`](vireo_sys::confine)), forbids
//! itself all system calls that no build makes ([`sandbox`](crate::sandbox)), and only then looks at
//! the image. It checks the bundle's signature itself, and ends with its parent.
//!
//! Messages are JSON, one line each: the job, and the answer.
//!
//! # Not here
//!
//! What must not be done twice at a time, and undoing what a killed worker left: the journal, whose
//! records the server holds.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use serde::{Deserialize, Serialize};
use vireo_delta::{Bundle, PublicKey, TrustedKeys};
use vireo_image::RootPartition;
use vireo_model::{Grow, Ignore, Tree};
use vireo_sys::{confine, map_sealed};
use vireo_wire::api::BuildStep;
use vireo_wire::limits::MAX_TREE_TEXT_LEN;
use vireo_wire::tree_text;

use crate::builder::{BundleFile, HostImages, ImageBuilder};
use crate::error::{Detail, ErrorKind, RepoError, io_error};
use crate::sandbox;

/// Longest job, in bytes: a few paths, an ignore list, keys.
const MAX_JOB_LEN: u64 = 4 << 20;

/// Longest answer, in bytes: the longest listing of a tree, with what JSON escapes of it.
const MAX_ANSWER_LEN: u64 = 4 * MAX_TREE_TEXT_LEN as u64;

/// What a worker is to do, and for whom.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// Process number of the server: the worker ends with it.
    parent: u32,
    job: Job,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Job {
    Check {
        disk: PathBuf,
        root: RootPartition,
        repair: bool,
    },
    ReadTree {
        disk: PathBuf,
        root: RootPartition,
        ignore: Vec<String>,
    },
    Patch {
        base: PathBuf,
        out: PathBuf,
        bundle: PathBuf,
        trusted: Vec<PublicKey>,
        grow: Grow,
        root: RootPartition,
    },
    Probe,
}

/// What came of a job.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Checked,
    Tree(String),
    Patched(Vec<BuildStep>),
    Probed(Confinement),
    Failed { kind: ErrorKind, message: String },
}

/// What a worker cannot do, as it found by trying.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// No socket of any kind can be made.
    pub no_sockets: bool,
    /// No kernel module can be loaded.
    pub no_modules: bool,
    /// No other view of the mounts can be taken, and no user name space made.
    pub no_namespaces: bool,
    /// No program that it starts gets more rights than it has (`no_new_privs`).
    pub no_new_rights: bool,
    /// Rights that it has and needs not; none.
    pub excess_rights: Vec<String>,
    /// Whether it may mount; without, images are patched by debugfs.
    pub can_mount: bool,
}

impl Confinement {
    /// Whether it is all that it should be.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        self.no_sockets
            && self.no_modules
            && self.no_namespaces
            && self.no_new_rights
            && self.excess_rights.is_empty()
    }
}

/// Builds in confined processes of their own. Every job is a run of `program worker`, which has to
/// call [`work`].
#[derive(Clone, Debug)]
pub struct WorkerImages {
    program: PathBuf,
}

impl Default for WorkerImages {
    /// This very program, even if another version lies under its name by now.
    fn default() -> Self {
        Self::new("/proc/self/exe")
    }
}

impl WorkerImages {
    /// Workers that are runs of `program`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// Starts a worker and has it try what it must not be able to do.
    ///
    /// # Errors
    ///
    /// `Io`, `NoRoot`, `Unsupported` if it cannot be started or confined.
    pub fn probe(&self) -> Result<Confinement, RepoError> {
        match self.run(Job::Probe)? {
            Answer::Probed(confinement) => Ok(confinement),
            other => Err(unexpected(&other)),
        }
    }

    fn run(&self, job: Job) -> Result<Answer, RepoError> {
        let failed = || io_error("run a worker by", &self.program);
        let order = Order { parent: std::process::id(), job };
        let mut message = serde_json::to_vec(&order).map_err(|error| failed()(error.into()))?;
        message.push(b'\n');
        let mut child = Command::new(&self.program)
            .arg("worker")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed())?;
        // A worker that ends before it has read everything tells why by how it ends.
        let told = child.stdin.take().map(|mut pipe| pipe.write_all(&message));
        let answer = child.stdout.take().map_or(Ok(None), answer);
        let status = child.wait().map_err(failed())?;
        match answer.map_err(failed())? {
            Some(Answer::Failed { kind, message }) => Err(Detail::Worker { kind, message }.into()),
            Some(answer) if status.success() => Ok(answer),
            _ => {
                let said = told.and_then(Result::err).map_or(String::new(), |e| format!(" ({e})"));
                Err(ended(status, &said))
            }
        }
    }
}

/// The answer; `None` if there is none, or one that is cut: the end of a worker that was killed.
fn answer(pipe: impl Read) -> io::Result<Option<Answer>> {
    let mut text = Vec::new();
    pipe.take(MAX_ANSWER_LEN).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text).ok())
}

fn ended(status: ExitStatus, said: &str) -> RepoError {
    let how = match status.signal() {
        Some(signal) => format!("was ended by signal {signal}"),
        None => format!("ended without an answer ({status})"),
    };
    let message = format!(
        "the process that worked on the disk image {how}{said}; nothing was changed, try again; if it \
         happens again, the image may be damaged: look at it with `e2fsck -fn`"
    );
    Detail::Worker { kind: ErrorKind::Io, message }.into()
}

fn unexpected(answer: &Answer) -> RepoError {
    RepoError::internal(format!("a worker answered another question: {answer:?}"))
}

impl ImageBuilder for WorkerImages {
    fn check(&self, disk: &Path, root: RootPartition, repair: bool) -> Result<(), RepoError> {
        match self.run(Job::Check { disk: absolute(disk)?, root, repair })? {
            Answer::Checked => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn read_tree(
        &self,
        disk: &Path,
        root: RootPartition,
        ignore: &Ignore,
    ) -> Result<Tree, RepoError> {
        let ignore = ignore.patterns().to_vec();
        match self.run(Job::ReadTree { disk: absolute(disk)?, root, ignore })? {
            Answer::Tree(listing) => tree_text::parse(listing.as_bytes())
                .map_err(|error| RepoError::internal(format!("a worker's listing: {error}"))),
            other => Err(unexpected(&other)),
        }
    }

    fn patch(
        &self,
        base: &Path,
        out: &Path,
        bundle: &BundleFile<'_>,
    ) -> Result<Vec<BuildStep>, RepoError> {
        let job = Job::Patch {
            base: absolute(base)?,
            out: absolute(out)?,
            bundle: absolute(bundle.path)?,
            trusted: bundle.trusted.iter().collect(),
            grow: bundle.grow,
            root: bundle.root,
        };
        match self.run(job)? {
            Answer::Patched(steps) => Ok(steps),
            other => Err(unexpected(&other)),
        }
    }
}

/// Workers run in another directory.
fn absolute(path: &Path) -> Result<PathBuf, RepoError> {
    std::path::absolute(path).map_err(io_error("find", path))
}

/// Does the job that stands on `input`, in this process, which has to be one that does nothing
/// else, and writes to `output` what came of it. Gives up all rights that the job does not take.
///
/// # Errors
///
/// `input` cannot be read or is no job, or `output` cannot be written: nothing was done.
pub fn work(input: impl Read, mut output: impl Write) -> io::Result<()> {
    let order: Order = serde_json::from_reader(input.take(MAX_JOB_LEN))?;
    let answer = confined(order.parent).and_then(|()| perform(order.job));
    let answer = answer
        .unwrap_or_else(|error| Answer::Failed { kind: error.kind(), message: error.chain() });
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    output.write_all(&text)?;
    output.flush()
}

fn confined(parent: u32) -> Result<(), RepoError> {
    let failed = |source: io::Error| {
        let message = format!(
            "a worker cannot give up its rights: {source}; `vireo-repo serve --no-worker` does without"
        );
        RepoError::from(Detail::Worker { kind: ErrorKind::Unsupported, message })
    };
    confine::die_with_parent(parent).map_err(failed)?;
    confine::keep_build_rights().map_err(failed)?;
    sandbox::enter().map_err(failed)
}

fn perform(job: Job) -> Result<Answer, RepoError> {
    match job {
        Job::Probe => Ok(Answer::Probed(probe())),
        Job::Check { disk, root, repair } => {
            HostImages.check(&disk, root, repair).map(|()| Answer::Checked)
        }
        Job::ReadTree { disk, root, ignore } => {
            let ignore = Ignore::new(ignore).map_err(|source| Detail::Ignore { source })?;
            let tree = HostImages.read_tree(&disk, root, &ignore)?;
            Ok(Answer::Tree(tree_text::encode(&tree)))
        }
        Job::Patch { base, out, bundle: path, trusted, grow, root } => {
            let trusted: TrustedKeys = trusted.into_iter().collect();
            let refused = |error: vireo_delta::DeltaError| Detail::Refused {
                what: format!("cannot use the bundle {}: {error}", path.display()),
            };
            let file = File::open(&path).map_err(io_error("open", &path))?;
            let map = map_sealed(&file).map_err(io_error("map", &path))?;
            let bundle =
                Bundle::open(&map).and_then(|bundle| bundle.verify(&trusted)).map_err(refused)?;
            let steps = HostImages.build((&base, &out), &bundle, (grow, root))?;
            Ok(Answer::Patched(steps))
        }
    }
}

/// Tries what must fail.
fn probe() -> Confinement {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixDatagram;
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let any = "127.0.0.1:0";
    let no_sockets = TcpListener::bind(any).is_err_and(|error| denied(&error))
        && UdpSocket::bind(any).is_err_and(|error| denied(&error))
        && UnixDatagram::unbound().is_err_and(|error| denied(&error));
    Confinement {
        no_sockets,
        // An empty module is none: the kernel would say so if it got that far.
        no_modules: rustix::system::init_module(&[], c"") == Err(rustix::io::Errno::PERM),
        no_namespaces: vireo_sys::mounts::take_own().is_err_and(|error| denied(&error)),
        no_new_rights: confine::has_no_new_rights(),
        excess_rights: confine::excess_rights(),
        can_mount: confine::can_mount(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_if_it_is_whole() {
        let read = |text: &str| answer(text.as_bytes()).expect("memory can be read");
        assert!(matches!(read("{\"tree\":\"a\"}\n"), Some(Answer::Tree(text)) if text == "a"));
        for text in ["", "\n", "{\"tree\":\"a", "{\"tree\":\"a\"}{", "{\"step\":\"copy\"}\n"] {
            assert!(read(text).is_none(), "{text}");
        }
    }
}
