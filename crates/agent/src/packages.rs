//! Keeping out of the package manager's way: its lock is held while files change.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use crate::error::{AgentError, ErrorKind};

/// dpkg's locks below the root, in the order in which its front ends take them.
const LOCKS: &[&str] = &["var/lib/dpkg/lock-frontend", "var/lib/dpkg/lock"];

/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// The package manager's locks; it waits or refuses as long as this value lives.
#[derive(Debug)]
pub(crate) struct PackageLock {
    _files: Vec<File>,
}

impl PackageLock {
    /// Takes the locks of the package manager below `root`, if there is one, within `wait`.
    ///
    /// # Errors
    ///
    /// `Busy` if it is at work for longer.
    pub(crate) fn take(root: &Path, wait: Duration) -> Result<Self, AgentError> {
        let start = Instant::now();
        let mut files = Vec::new();
        for name in LOCKS {
            let path = root.join(name);
            let file = match File::options().write(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(AgentError::io("open", &path, error)),
            };
            lock(&file, &path, start, wait)?;
            files.push(file);
        }
        Ok(Self { _files: files })
    }
}

/// As dpkg does: a record lock over the whole file (fcntl(2)).
fn lock(file: &File, path: &Path, start: Instant, wait: Duration) -> Result<(), AgentError> {
    loop {
        match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            // Not by a point in time: there is none after so long a wait as somebody may give.
            Err(Errno::AGAIN | Errno::ACCESS) if start.elapsed() < wait => {
                std::thread::sleep(PAUSE.min(wait.saturating_sub(start.elapsed())));
            }
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let message = format!(
                    "the package manager is at work (it holds {}); try again when it is done, or wait \
                     for it with --wait SECONDS; nothing was changed",
                    path.display()
                );
                return Err(AgentError::new(ErrorKind::Busy, message));
            }
            Err(error) => return Err(AgentError::io("lock", path, error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_machine_without_package_manager_needs_no_lock() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        PackageLock::take(dir.path(), Duration::ZERO).expect("nothing to lock");
    }

    #[test]
    fn a_package_manager_at_work_is_waited_for_or_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let lock = dir.path().join("var/lib/dpkg/lock");
        std::fs::create_dir_all(lock.parent().expect("not the root")).expect("made");
        std::fs::write(&lock, "").expect("written");
        // Record locks are between processes, so another process has to hold it. (struct flock as
        // 64-bit Linux has it; perl is essential on Debian.)
        let script = "use Fcntl; $| = 1; open(F, '+<', $ARGV[0]) or die; \
                      my $whole = pack('s s x4 l! l! i', F_WRLCK, 0, 0, 0, 0); \
                      fcntl(F, F_SETLK, $whole) or die; \
                      print \"held\\n\"; <STDIN>;";
        let mut holder = Command::new("perl")
            .args(["-e", script])
            .arg(&lock)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("perl is installed");
        let mut line = String::new();
        let output = holder.stdout.take().expect("piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)
            .expect("it says when it holds the lock");
        assert_eq!(line, "held\n");
        let error = PackageLock::take(dir.path(), Duration::ZERO).expect_err("held");
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains("lib/dpkg/lock"), "{error}");
        drop(holder.stdin.take());
        PackageLock::take(dir.path(), Duration::MAX)
            .expect("free soon, however long one would wait");
        holder.wait().expect("ends");
    }
}
