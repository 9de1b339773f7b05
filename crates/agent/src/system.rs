//! Facts about the running system: a port, and the adapter that reads `/proc` and asks systemd.
//!
//! Not here: what the facts mean (`vireo-classify`).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{AtFlags, Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use vireo_classify::{
    Facts, FileId, Host, Owner, Packages, Policy, Process, SHOW_PROPERTIES, Unit, UnitFacts,
    declarations_of, listening_sockets, owner_of, parse_show,
};
use vireo_model::ImagePath;

use crate::beneath::file_id_at;
use crate::error::{AgentError, ErrorKind};
use crate::mapped::{Mapped, mapped};
use crate::{host, systemctl, witness};

/// Longest unit file read, in bytes; systemd's own lines may be that long.
const MAX_UNIT_FILE_LEN: u64 = 1 << 20;

/// Most threads that look at processes side by side: on many processors the kernel's own locks are
/// what they wait for.
const MAX_SCANNERS: usize = 4;

/// Where system units stand, in the order of their weight (`systemd.unit(5)`).
const UNIT_DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The running system, as far as a plan depends on it.
pub trait SystemView: Debug + Send + Sync {
    /// The facts: all loaded units, and the processes that hold one of `files` (run, map or have
    /// it open).
    ///
    /// Cost of the live system: about 0.1 ms per process when `files` is not empty, and one call of
    /// `systemctl`.
    ///
    /// # Errors
    ///
    /// `/proc` cannot be read. A service manager that does not answer is a fact, not an error.
    fn facts(&self, files: &BTreeSet<FileId>) -> Result<Facts, AgentError>;

    /// What is known of the machine beside that, as far as `policy` asks for it.
    fn host(&self, policy: &Policy) -> Host;

    /// Whose file is whose, by the package manager. Cost of the live system: reads the lists of
    /// all packages, some megabytes.
    fn packages(&self) -> Packages;

    /// What the processes of each of `units` listen on, by names that can be compared with those
    /// of another moment.
    fn sockets(&self, units: &BTreeSet<Unit>) -> BTreeMap<Unit, BTreeSet<String>>;

    /// Has the first read of each of these files show; gives those of which it will.
    fn watch_reads(&self, paths: &[String]) -> BTreeSet<String>;

    /// Those of the watched files that somebody has read since.
    fn reads_seen(&self, watched: &BTreeSet<String>) -> BTreeSet<String>;

    /// Whether a read of the file at `path` by process `pid` would show; so it is taken to be
    /// where nothing is known.
    fn shows_reads(&self, pid: u32, path: &str) -> bool {
        let _ = (pid, path);
        true
    }
}

impl<S: SystemView + ?Sized> SystemView for &S {
    fn facts(&self, files: &BTreeSet<FileId>) -> Result<Facts, AgentError> {
        (**self).facts(files)
    }

    fn host(&self, policy: &Policy) -> Host {
        (**self).host(policy)
    }

    fn packages(&self) -> Packages {
        (**self).packages()
    }

    fn sockets(&self, units: &BTreeSet<Unit>) -> BTreeMap<Unit, BTreeSet<String>> {
        (**self).sockets(units)
    }

    fn watch_reads(&self, paths: &[String]) -> BTreeSet<String> {
        (**self).watch_reads(paths)
    }

    fn reads_seen(&self, watched: &BTreeSet<String>) -> BTreeSet<String> {
        (**self).reads_seen(watched)
    }

    fn shows_reads(&self, pid: u32, path: &str) -> bool {
        (**self).shows_reads(pid, path)
    }
}

/// The system that this process runs on.
#[derive(Clone, Debug)]
pub struct LiveSystem {
    proc: PathBuf,
    root: PathBuf,
}

impl Default for LiveSystem {
    fn default() -> Self {
        Self { proc: PathBuf::from("/proc"), root: PathBuf::from("/") }
    }
}

impl LiveSystem {
    /// A system whose `/proc` is at `proc` and whose unit files are below `root`.
    #[must_use]
    pub fn at(proc: &Path, root: &Path) -> Self {
        Self { proc: proc.to_owned(), root: root.to_owned() }
    }

    /// The processes that hold one of `files`, and how many lines were not understood.
    fn processes(&self, files: &BTreeSet<FileId>) -> Result<(Vec<Process>, usize), AgentError> {
        let mut found = Vec::new();
        let mut unread = 0;
        if files.is_empty() {
            return Ok((found, unread));
        }
        let entries = fs::read_dir(&self.proc)
            .map_err(|error| AgentError::io("list the processes in", &self.proc, error))?;
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let pids: Vec<u32> = pids.collect();
        let next = AtomicUsize::new(0);
        let scan = || {
            let (mut found, mut unread) = (Vec::new(), 0);
            while let Some(pid) = pids.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (process, lines) = self.process(*pid, files);
                found.extend(process);
                unread += lines;
            }
            (found, unread)
        };
        thread::scope(|scope| {
            let cores = thread::available_parallelism().map_or(1, NonZero::get);
            let others: Vec<_> = (1..cores.min(MAX_SCANNERS)).map(|_| scope.spawn(scan)).collect();
            let own = scan();
            let parts = others.into_iter().map(|other| {
                // Facts that lack some processes must not pass for whole.
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            for (processes, lines) in parts.chain([own]) {
                found.extend(processes);
                unread += lines;
            }
        });
        found.sort_by_key(|process| process.pid);
        Ok((found, unread))
    }

    /// Process `pid` if it holds one of `files`, and how many lines were not understood.
    fn process(&self, pid: u32, files: &BTreeSet<FileId>) -> (Option<Process>, usize) {
        let Some(scan) = ProcessDir::open(&self.proc.join(pid.to_string())) else {
            return (None, 0);
        };
        let (holds, lines) = scan.holds(files);
        if holds.is_empty() {
            return (None, lines);
        }
        let cgroup = scan.read("cgroup");
        if cgroup.is_none() && scan.is_over() {
            // It held them and holds nothing any more: nobody needs to be restarted for it.
            return (None, 0);
        }
        let owner = owner_of(pid, &cgroup.unwrap_or_default());
        (Some(Process { pid, owner, holds }), lines)
    }

    /// Adds what the unit's own files declare; gives the number of lines not understood.
    fn add_declarations(&self, unit: &mut UnitFacts) -> usize {
        let contents: Vec<Vec<u8>> =
            unit.files.iter().filter_map(|path| self.unit_file(path).ok()).collect();
        let found = declarations_of(&unit.name, contents.iter().map(Vec::as_slice));
        unit.programs = found.programs;
        unit.declared = found.declared.into_iter().collect();
        unit.arguments = found.arguments;
        found.unread
    }

    /// The files of the unit's name that the one it is read from comes before.
    fn shadowed(&self, unit: &UnitFacts) -> Vec<ImagePath> {
        let Some(current) = unit.files.first() else { return Vec::new() };
        let mut found: Vec<ImagePath> = Vec::new();
        let own = identity(&self.root.join(relative(current)));
        for dir in UNIT_DIRECTORIES {
            let path = format!("{dir}/{}", String::from_utf8_lossy(current.name()));
            let Ok(path) = ImagePath::parse(path.as_bytes()) else { continue };
            let other = identity(&self.root.join(relative(&path)));
            // With a merged /usr one file has two names.
            if path != *current && other.is_some() && other != own {
                found.push(path);
            }
        }
        found
    }

    fn unit_file(&self, path: &ImagePath) -> io::Result<Vec<u8>> {
        use std::io::Read as _;
        let mut content = Vec::new();
        fs::File::open(self.root.join(relative(path)))?
            .take(MAX_UNIT_FILE_LEN)
            .read_to_end(&mut content)?;
        Ok(content)
    }
}

impl SystemView for LiveSystem {
    fn facts(&self, files: &BTreeSet<FileId>) -> Result<Facts, AgentError> {
        let (processes, mut unread) = self.processes(files)?;
        let shown = systemctl::show(SHOW_PROPERTIES);
        let manager = shown.is_ok();
        let (mut units, lines) = shown.map(|text| parse_show(&text)).unwrap_or_default();
        unread += lines;
        for unit in units.values_mut().filter(|unit| unit.active.is_up()) {
            unread += self.add_declarations(unit);
            unit.shadowed = self.shadowed(unit);
        }
        let release =
            fs::read_to_string(self.proc.join("sys/kernel/osrelease")).unwrap_or_default();
        let kernel_release = release.trim().to_owned();
        Ok(Facts { manager, kernel_release, units, processes, unread })
    }

    fn host(&self, policy: &Policy) -> Host {
        host::host_of(&self.proc, &self.root, policy)
    }

    fn packages(&self) -> Packages {
        host::packages_of(&self.root)
    }

    fn sockets(&self, units: &BTreeSet<Unit>) -> BTreeMap<Unit, BTreeSet<String>> {
        let mut found: BTreeMap<Unit, BTreeSet<String>> = BTreeMap::new();
        if units.is_empty() {
            return found;
        }
        // By network: a unit may have one of its own.
        let mut tables: BTreeMap<PathBuf, BTreeMap<u64, String>> = BTreeMap::new();
        for entry in fs::read_dir(&self.proc).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let Some(dir) = ProcessDir::open(&entry.path()) else { continue };
            let owner = owner_of(pid, &dir.read("cgroup").unwrap_or_default());
            let Owner::Unit(unit) = owner else { continue };
            let Some(network) = dir.link("ns/net").filter(|_| units.contains(&unit)) else {
                continue;
            };
            let table = tables.entry(network).or_insert_with(|| dir.listening());
            let sockets = dir.open_sockets();
            let names = sockets.iter().filter_map(|inode| table.get(inode)).cloned();
            found.entry(unit).or_default().extend(names);
        }
        found
    }

    fn watch_reads(&self, paths: &[String]) -> BTreeSet<String> {
        witness::watch(&self.root, paths)
    }

    fn reads_seen(&self, watched: &BTreeSet<String>) -> BTreeSet<String> {
        witness::seen(&self.root, watched)
    }

    fn shows_reads(&self, pid: u32, path: &str) -> bool {
        let mounts = fs::read_to_string(self.proc.join(format!("{pid}/mountinfo")));
        witness::leaves_trace(&mounts.unwrap_or_default(), path)
    }
}

fn relative(path: &ImagePath) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path.relative()))
}

/// Device and inode number of what is at `path`.
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// `/proc/PID`, held open: should the process end and its number be given to another, reading
/// fails instead of mixing the two.
struct ProcessDir(OwnedFd);

impl ProcessDir {
    fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Some(Self(rustix::fs::open(path, flags, Mode::empty()).ok()?))
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        use std::io::Read as _;
        let file = openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut content = Vec::new();
        fs::File::from(file).read_to_end(&mut content).ok()?;
        Some(content)
    }

    /// Whether the process has ended.
    fn is_over(&self) -> bool {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        openat(&self.0, "maps", flags, Mode::empty()).is_err_and(|error| has_ended(&error.into()))
    }

    fn link(&self, name: &str) -> Option<PathBuf> {
        let target = readlinkat(&self.0, name, Vec::new()).ok()?;
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(target.to_bytes())))
    }

    /// The listening sockets of the network that the process is in.
    fn listening(&self) -> BTreeMap<u64, String> {
        let mut found = BTreeMap::new();
        for name in ["tcp", "tcp6", "udp", "udp6", "unix"] {
            let content = self.read(&format!("net/{name}")).unwrap_or_default();
            found.extend(listening_sockets(name, &content));
        }
        found
    }

    /// The inode numbers of the sockets that the process has open.
    fn open_sockets(&self) -> BTreeSet<u64> {
        let inode = |dir: &OwnedFd, name: &CStr| {
            let target = readlinkat(dir, name, Vec::new()).ok()?;
            let target = target.to_str().ok()?.strip_prefix("socket:[")?;
            target.strip_suffix(']')?.parse().ok()
        };
        self.entries_of("fd", inode)
    }

    /// What `look` finds at the entries of the directory `name`.
    fn entries_of<T: Ord>(
        &self,
        name: &str,
        look: impl Fn(&OwnedFd, &CStr) -> Option<T>,
    ) -> BTreeSet<T> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(dir) = openat(&self.0, name, flags, Mode::empty()) else { return BTreeSet::new() };
        let Ok(entries) = rustix::fs::Dir::read_from(&dir) else { return BTreeSet::new() };
        entries
            .flatten()
            .filter(|entry| !entry.file_name().to_bytes().starts_with(b"."))
            .filter_map(|entry| look(&dir, entry.file_name()))
            .collect()
    }

    /// Which of `files` the process runs, maps or has open, and the map lines not understood.
    fn holds(&self, files: &BTreeSet<FileId>) -> (BTreeSet<FileId>, usize) {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let maps = openat(&self.0, "maps", flags, Mode::empty()).map_err(io::Error::from);
        let maps = match maps.and_then(|maps| mapped(fs::File::from(maps), files)) {
            Ok(maps) => maps,
            Err(error) if has_ended(&error) => return (BTreeSet::new(), 0),
            // The rest of it still tells something.
            Err(_) => Mapped { doubtful: true, unread: 1, ..Mapped::default() },
        };
        let Mapped { mut holds, doubtful, unread } = maps;
        if doubtful {
            holds.extend(self.targets_in("map_files", files));
        }
        holds.extend(file_id_at(&self.0, "exe", AtFlags::empty()).filter(|id| files.contains(id)));
        holds.extend(self.targets_in("fd", files));
        (holds, unread)
    }

    /// Which of `files` the links in the directory `name` lead to.
    fn targets_in(&self, name: &str, files: &BTreeSet<FileId>) -> BTreeSet<FileId> {
        let id = |dir: &OwnedFd, name: &CStr| {
            file_id_at(dir, name, AtFlags::empty()).filter(|id| files.contains(id))
        };
        self.entries_of(name, id)
    }
}

/// Whether an entry cannot be read because its process is no more (proc(5)).
fn has_ended(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH))
}

/// No system at all: a root that is not the one that runs. No unit, no process.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSystem;

impl SystemView for NoSystem {
    fn facts(&self, _files: &BTreeSet<FileId>) -> Result<Facts, AgentError> {
        Ok(Facts::default())
    }

    fn host(&self, _policy: &Policy) -> Host {
        Host::default()
    }

    fn packages(&self) -> Packages {
        Packages::new()
    }

    fn sockets(&self, _units: &BTreeSet<Unit>) -> BTreeMap<Unit, BTreeSet<String>> {
        BTreeMap::new()
    }

    fn watch_reads(&self, _paths: &[String]) -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn reads_seen(&self, _watched: &BTreeSet<String>) -> BTreeSet<String> {
        BTreeSet::new()
    }
}

/// The kernel's name for this boot, to tell a restart of the agent from one of the machine.
///
/// # Errors
///
/// `/proc` is not there.
pub fn boot_id() -> Result<String, AgentError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|error| {
        AgentError::new(ErrorKind::Failed, "cannot tell which boot this is").caused_by(error)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn id_of(path: &Path) -> FileId {
        let stat = fs::metadata(path).expect("it is there");
        FileId { dev: stat.dev(), ino: stat.ino() }
    }

    #[test]
    fn a_program_that_runs_is_held_even_after_its_file_is_gone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = dir.path().join("cat");
        fs::copy("/bin/cat", &program).expect("copied");
        let open = dir.path().join("open");
        fs::write(&open, "x").expect("written");
        let files = BTreeSet::from([id_of(&program), id_of(&open)]);
        let mut child = Command::new(&program)
            .arg("-")
            .stdin(Stdio::piped())
            .stdout(fs::File::options().append(true).open(&open).expect("opens"))
            .spawn()
            .expect("it starts");
        // Its first output shows that it has started for good.
        child.stdin.as_mut().expect("piped").write_all(b"y").expect("written");
        while fs::metadata(&open).expect("it is there").len() < 2 {
            std::thread::yield_now();
        }
        fs::remove_file(&program).expect("removed");

        let (found, _) = LiveSystem::default().processes(&files).expect("readable");
        child.kill().expect("killed");
        child.wait().expect("waited for");
        let held = found.iter().find(|process| process.pid == child.id()).expect("it is found");
        assert_eq!(held.holds, files, "the program as mapped, the other as open");
    }

    #[test]
    fn a_process_that_cannot_be_read_is_counted_and_its_other_entries_are_looked_at() {
        let proc = tempfile::tempdir().expect("a temporary directory");
        let held = proc.path().join("held");
        fs::write(&held, "x").expect("written");
        for pid in ["7", "8"] {
            fs::create_dir_all(proc.path().join(pid).join("fd")).expect("made");
        }
        // Reading a directory fails as reading a hidden entry does; the other process has ended.
        fs::create_dir(proc.path().join("7/maps")).expect("made");
        std::os::unix::fs::symlink(&held, proc.path().join("7/exe")).expect("linked");
        let files = BTreeSet::from([id_of(&held)]);
        let system = LiveSystem::at(proc.path(), Path::new("/"));
        let (found, unread) = system.processes(&files).expect("readable");
        assert_eq!(unread, 1);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].pid, &found[0].holds), (7, &files));
    }

    #[test]
    fn unit_files_below_the_root_are_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(dir.path().join("etc/systemd/system")).expect("made");
        let file = dir.path().join("etc/systemd/system/app.service");
        fs::write(&file, "[Service]\nExecStart=/usr/bin/app -c /etc/app/app.conf\n")
            .expect("written");
        let path = ImagePath::parse(b"/etc/systemd/system/app.service").expect("a valid path");
        let mut unit = UnitFacts { files: vec![path], ..UnitFacts::running("app.service") };
        let unread = LiveSystem::at(Path::new("/proc"), dir.path()).add_declarations(&mut unit);
        assert_eq!(unread, 0);
        assert_eq!(unit.programs[0].to_string(), "/usr/bin/app");
        assert_eq!(unit.declared[0].path.to_string(), "/etc/app/app.conf");
    }

    #[test]
    fn nothing_is_looked_for_when_nothing_is_asked() {
        let nowhere = LiveSystem::at(Path::new("/nonexistent"), Path::new("/"));
        assert_eq!(nowhere.processes(&BTreeSet::new()).expect("no look"), (Vec::new(), 0));
        let error = nowhere.processes(&BTreeSet::from([FileId { dev: 1, ino: 1 }]));
        let error = error.expect_err("there is no /proc");
        assert_eq!(error.to_string(), "cannot list the processes in /nonexistent");
    }
}
