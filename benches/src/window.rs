//! The time during which a tree is neither as it was nor as it will be.
//!
//! Watched from outside by inotify(7), the same way for every contestant: from the first file of
//! the workload that was written in place, replaced or removed to the last. Temporary names do not
//! count.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

/// How long the watcher waits for something to happen before it asks whether it is to end.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// Watches until asked.
pub(crate) struct Watch {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Duration>>,
}

impl Watch {
    /// Watches the directories at and below `dir`.
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .context("cannot watch files")?;
        let kinds =
            WatchFlags::MODIFY | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::DELETE;
        for dir in dirs(dir)? {
            inotify::add_watch(&fd, &dir, kinds)
                .with_context(|| format!("cannot watch {}", dir.display()))?;
        }
        let ended = Arc::new(AtomicBool::new(false));
        let flag = ended.clone();
        Ok(Self { ended, thread: thread::spawn(move || watch(&fd, &flag)) })
    }

    /// The time from the first change to the last.
    pub(crate) fn end(self) -> anyhow::Result<Duration> {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| bail!("the watcher panicked"))
    }
}

fn dirs(top: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![top.to_owned()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        next += 1;
        let list = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        for entry in list {
            let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn watch(fd: &OwnedFd, ended: &AtomicBool) -> anyhow::Result<Duration> {
    let mut buffer = vec![MaybeUninit::uninit(); 64 << 10];
    let mut seen: Option<(Instant, Instant)> = None;
    loop {
        // Asked before looking: what happened until then is looked at once more.
        let is_last = ended.load(Ordering::Relaxed);
        poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&TICK)).context("cannot wait")?;
        let mut reader = inotify::Reader::new(fd, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error).context("cannot watch files"),
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                bail!("more happened at once than can be watched (fs.inotify.max_queued_events)");
            }
            if event.file_name().is_some_and(|name| is_final(name.to_bytes())) {
                let now = Instant::now();
                seen = Some((seen.map_or(now, |(first, _)| first), now));
            }
        }
        if is_last {
            let (first, last) = seen.context("nothing happened where it was watched")?;
            return Ok(last - first);
        }
    }
}

/// Whether `name` is a file of the workload, not a temporary one.
fn is_final(name: &[u8]) -> bool {
    name.strip_prefix(b"f").is_some_and(|rest| rest.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_from_the_first_change_to_the_last_and_temporary_names_do_not_count() {
        let name = format!("vireo-bench-window-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(dir.join("below")).expect("made");
        let watch = Watch::start(&dir).expect("watches");
        let pause = || thread::sleep(Duration::from_millis(120));
        fs::write(dir.join(".f1.tmp"), "1").expect("written");
        pause();
        fs::rename(dir.join(".f1.tmp"), dir.join("f1")).expect("renamed");
        pause();
        fs::write(dir.join("below/f2"), "2").expect("written");
        pause();
        fs::write(dir.join("f2.dpkg-new"), "2").expect("written");
        let window = watch.end().expect("something happened").as_millis();
        fs::remove_dir_all(&dir).expect("removed");
        assert!((110..230).contains(&window), "{window} ms");
    }
}
