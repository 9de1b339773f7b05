//! A private place for guests and for the programs of the host that serve them.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cache::Cache;
use crate::error::{ErrorKind, TestkitError, failed};
use crate::run::{Run, search_path};
use crate::{host, image, leaks, wait};

/// The host's address in every lab: what guests call the repository by.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Length of the network's prefix.
const PREFIX_LEN: u8 = 24;

/// Guests get addresses from here on.
const FIRST_GUEST: u8 = 10;

/// Time for the guard to take everything down.
const FINISH_DEADLINE: Duration = Duration::from_secs(15);

/// Time for loop devices to be given back after their last user is gone.
const LEAK_DEADLINE: Duration = Duration::from_secs(5);

const NETWORK: &str = include_str!("../recipes/network.sh");
const ENTER: &str = include_str!("../recipes/enter.sh");
const GUARD: &str = include_str!("../recipes/guard.sh");

/// Where the unified control group hierarchy may be mounted: on systemd hosts, and on hosts with a
/// mixed one.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Labs that this process has made.
static LABS: AtomicU32 = AtomicU32::new(0);

/// A network of its own with a bridge ([`HOST_ADDRESS`]), a control group and a directory. Several
/// labs do not see each other, so that tests can run side by side.
///
/// Guests and programs started in it ([`Lab::command`]) end with it: [`Lab::finish`] and dropping
/// take everything down, and so does the death of the owner, because a guard process waits for it.
#[derive(Debug)]
pub struct Lab {
    id: String,
    dir: PathBuf,
    cgroup: PathBuf,
    key: PathBuf,
    guests: AtomicU8,
    guard: Option<Child>,
}

impl Lab {
    /// A new lab; its directory is in the cache directory. Cost: some 50 ms.
    ///
    /// # Errors
    ///
    /// This is not root, the host lacks the unified hierarchy, or making the network failed.
    pub fn new(cache: &Cache) -> Result<Self, TestkitError> {
        host::require_root()?;
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{}-{number}", leaks::PREFIX, std::process::id());
        let cgroup = cgroup_root()?.join(&id);
        let dir = cache.subdir("labs")?.join(&id);
        let key = image::login_key(cache)?;
        let mut lab = Self { id, dir, cgroup, key, guests: AtomicU8::new(0), guard: None };
        lab.guard = Some(lab.spawn_guard()?);
        fs::create_dir(&lab.dir).map_err(failed("make directory", &lab.dir))?;
        fs::create_dir(&lab.cgroup).map_err(failed("make control group", &lab.cgroup))?;
        let address = format!("{HOST_ADDRESS}/{PREFIX_LEN}");
        Run::script("network.sh", NETWORK).args([&lab.id, &address]).text()?;
        Ok(lab)
    }

    /// Its name: of the network namespace, of the control group, and what [`leaks`] looks for.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its directory, for images and other files that may go away with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command for `program` inside the lab: it sees the lab's network and the host's files, and
    /// is killed when the lab ends. Arguments, environment and pipes are the caller's to add.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.command_in("host", program.as_ref())
    }

    /// The same, in the control group `group` beneath the lab's.
    pub(crate) fn command_in(&self, group: &str, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.env("PATH", search_path()).args(["-c", ENTER, "enter.sh"]);
        command.arg(self.cgroup.join(group)).arg(&self.id).arg(program);
        command
    }

    /// Does `work` on a thread that is in the lab's network, so that its sockets are.
    ///
    /// # Errors
    ///
    /// The network cannot be entered. What `work` gives is passed on as it is.
    ///
    /// # Panics
    ///
    /// If `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, TestkitError> {
        let path = Path::new(NETNS_DIR).join(&self.id);
        let namespace = File::open(&path).map_err(failed("open", &path))?;
        let enter = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        let joined = std::thread::scope(|scope| scope.spawn(enter).join());
        let result: io::Result<T> = joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.map_err(failed("enter the network", &path))
    }

    /// Asks the server at `address` for `path`.
    ///
    /// # Errors
    ///
    /// Nobody answered within `timeout`.
    pub fn http_get(
        &self,
        address: SocketAddr,
        path: &str,
        timeout: Duration,
    ) -> Result<crate::Response, TestkitError> {
        let answer = self.inside(|| crate::http::get(address, path, timeout))?;
        answer.map_err(|source| TestkitError::io("get", format!("http://{address}{path}"), source))
    }

    /// Takes everything down and looks for what stayed.
    ///
    /// # Errors
    ///
    /// Something leaked; the message lists it.
    pub fn finish(mut self) -> Result<(), TestkitError> {
        self.take_down()?;
        leaks::none(&self.id, &self.dir, LEAK_DEADLINE)
    }

    /// The number and address of the next guest.
    pub(crate) fn next_guest(&self) -> (u8, Ipv4Addr) {
        let number = self.guests.fetch_add(1, Ordering::Relaxed);
        let [a, b, c, _] = HOST_ADDRESS.octets();
        (number, Ipv4Addr::new(a, b, c, FIRST_GUEST + number))
    }

    /// `address` with the network's prefix length.
    pub(crate) fn with_prefix(address: Ipv4Addr) -> String {
        format!("{address}/{PREFIX_LEN}")
    }

    pub(crate) fn cgroup(&self, group: &str) -> PathBuf {
        self.cgroup.join(group)
    }

    /// The private key that guests let in.
    pub(crate) fn login_key(&self) -> &Path {
        &self.key
    }

    /// Kills every process of a control group and removes it; fine if it is gone already.
    pub(crate) fn kill(&self, group: &str) -> Result<(), TestkitError> {
        let path = self.cgroup(group);
        wait::until("a control group's end", FINISH_DEADLINE, || {
            match fs::write(path.join("cgroup.kill"), "1") {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(TestkitError::io("kill the processes of", &path, error));
                }
                _ => {}
            }
            remove_cgroups(&path);
            Ok((!path.exists()).then_some(()))
        })
    }

    fn spawn_guard(&self) -> Result<Child, TestkitError> {
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "guard.sh", &self.id]).args([&self.cgroup, &self.dir]);
        guard.env("PATH", search_path()).stdin(Stdio::piped()).stdout(Stdio::null());
        // Its own process group: an interrupt from the terminal must reach the owner alone.
        guard.stderr(Stdio::null()).process_group(0);
        guard.spawn().map_err(failed("start", "guard.sh"))
    }

    /// Has the guard do its work and waits for it.
    fn take_down(&mut self) -> Result<(), TestkitError> {
        let Some(mut guard) = self.guard.take() else { return Ok(()) };
        drop(guard.stdin.take());
        wait::until("the lab's guard", FINISH_DEADLINE, || {
            guard.try_wait().map_err(failed("wait for", "guard.sh"))
        })?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // An error is already on its way, or the caller did not ask: nothing to tell it to.
        drop(self.take_down());
    }
}

/// Where named network namespaces are (ip-netns(8)).
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// Where this host has the unified control group hierarchy.
pub(crate) fn cgroup_root() -> Result<PathBuf, TestkitError> {
    let found = CGROUP_ROOTS.iter().map(Path::new).find(|root| root.join("cgroup.procs").exists());
    found.map(Path::to_owned).ok_or_else(|| {
        let message =
            format!("no unified control group hierarchy at {}", CGROUP_ROOTS.join(" or "));
        TestkitError::new(ErrorKind::Host, message)
    })
}

/// Removes a control group and those beneath it, as far as they are empty.
fn remove_cgroups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    // Busy ones are tried again by the caller's loop.
    drop(fs::remove_dir(path));
}
