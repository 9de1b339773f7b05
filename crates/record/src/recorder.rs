//! The recorder: a thread that takes events as soon as they come, because the process that caused
//! one may end at once.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use vireo_classify::{Phase, Unit};
use vireo_model::{Ignore, ImagePath};
use vireo_sys::fanotify::{Event, Watch};

use crate::error::RecordError;
use crate::log::{Log, Recorded, Scope, is_of_use};
use crate::mounts::{NotWatched, watch_all};
use crate::places::Places;
use crate::processes::{Processes, Reader};

/// Room for the events of one read, in bytes: some 2,000 events.
const BUFFER_LEN: usize = 256 << 10;

/// How long the thread waits for events before it looks whether it shall end.
const WAIT: Duration = Duration::from_millis(10);

/// How long it leaves events alone after it took some, while everybody is watched: a machine that
/// opens thousands of files a second is disturbed no more often than that, and a process that lives
/// for less may not be seen. Where some units alone are watched it takes every event at once, because
/// what they were not seen to read then counts as not read.
const NAP: Duration = Duration::from_millis(4);

/// How much more urgent than other work the thread is, as nice(1) counts.
const NICE: i32 = -10;

/// For how long a unit must open nothing until it counts as quiet.
const QUIET: Duration = Duration::from_millis(400);

/// Longest to wait for a unit to become quiet; some read something all the time.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(5);

/// How a recording is done.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What belongs to no version, and so into no map.
    pub ignore: Ignore,
    /// Takes every event at once also while everybody is watched, so that short-lived processes are seen. Costs a
    /// machine that opens thousands of files a second some percent.
    pub at_once: bool,
}

/// A recording that goes on. Dropped without [`finish`](Self::finish) it ends and is lost.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    ignore: Ignore,
    began: Duration,
    not_watched: Vec<NotWatched>,
}

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    scope: Scope,
    log: Log,
    /// How much had been missed when the scope began.
    missed_before: usize,
    /// When a unit that is watched last opened something.
    last: Duration,
    /// How often there was nothing left to take.
    rounds: u64,
    stop: bool,
    failed: Option<io::Error>,
}

impl State {
    /// What counts from now on.
    fn begin(&mut self, scope: Scope) {
        self.scope = scope;
        self.missed_before = self.log.misses();
        self.last = now();
    }

    /// Ends the scope; notes that its units were watched all through, if nothing was missed.
    fn end(&mut self) -> bool {
        let whole = self.log.misses() == self.missed_before && !self.log.misses_overflow();
        let scope = std::mem::take(&mut self.scope);
        if whole {
            self.log.note_watched(&scope);
        }
        whole
    }
}

impl Shared {
    /// The state; whoever panicked with it left it whole, as all its parts are added to only.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder {
    /// Starts to watch all mounted disk file systems. Nobody's reads count before
    /// [`watch`](Self::watch) or [`watch_all`](Self::watch_all).
    ///
    /// # Errors
    ///
    /// `Permission` without root (`CAP_SYS_ADMIN` and `CAP_DAC_READ_SEARCH` outside of user
    /// namespaces), `Unsupported` if the kernel or the root file system cannot.
    pub fn start(options: &Options) -> Result<Self, RecordError> {
        let watch = Watch::new().map_err(|error| RecordError::io("watch file systems", error))?;
        let began = now();
        let (watched, not_watched) = watch_all(&watch)?;
        let failed = |error| RecordError::io("look at processes", error);
        let shared = Arc::new(Shared::default());
        let reader = Loop {
            places: Places::new(watched).map_err(failed)?,
            processes: Processes::new().map_err(failed)?,
            watch,
            shared: Arc::clone(&shared),
            own: std::process::id(),
            at_once: options.at_once,
        };
        let thread = thread::Builder::new()
            .name("record".to_owned())
            .spawn(move || reader.run())
            .map_err(|error| RecordError::io("start a thread", error))?;
        let ignore = options.ignore.clone();
        Ok(Self { shared, thread: Some(thread), ignore, began, not_watched })
    }

    /// From now on what `units` open counts, as read in `phase`, and nothing else does.
    ///
    /// # Errors
    ///
    /// The recording has ended by itself.
    pub fn watch<'a>(
        &self,
        units: impl IntoIterator<Item = &'a Unit>,
        phase: Phase,
    ) -> Result<(), RecordError> {
        self.set(Scope::These(units.into_iter().cloned().collect(), phase))
    }

    /// Says that what was watched since [`watch`](Self::watch) is all that there was: the unit did
    /// start, or did reload. Only then does the map say of a file that it was not read. Then
    /// nothing counts any more.
    ///
    /// `false` if something was missed meanwhile, by whomever: a process had ended before it could be
    /// seen whose it was, or the kernel lost events. What was seen counts; that there was no more is
    /// not said. It may be tried again.
    ///
    /// # Errors
    ///
    /// The recording has ended by itself.
    pub fn complete(&self) -> Result<bool, RecordError> {
        self.drain()?;
        Ok(self.shared.lock().end())
    }

    /// From now on what any unit opens is kept with its time; [`Recorded::map`] wants to know when
    /// the units started.
    ///
    /// # Errors
    ///
    /// The recording has ended by itself.
    pub fn watch_all(&self) -> Result<(), RecordError> {
        self.set(Scope::Everybody)
    }

    /// From now on nothing counts.
    ///
    /// # Errors
    ///
    /// The recording has ended by itself.
    pub fn pause(&self) -> Result<(), RecordError> {
        self.set(Scope::Nobody)
    }

    /// What happened before still counts for the scope before.
    fn set(&self, scope: Scope) -> Result<(), RecordError> {
        self.drain()?;
        self.shared.lock().begin(scope);
        Ok(())
    }

    /// Waits until all events that are there have been taken.
    fn drain(&self) -> Result<(), RecordError> {
        let wanted = self.shared.lock().rounds + 2;
        while self.shared.lock().rounds < wanted {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return Err(self.failure());
            }
            thread::sleep(NAP);
        }
        Ok(())
    }

    fn failure(&self) -> RecordError {
        match self.shared.lock().failed.take() {
            Some(error) => RecordError::io("take events", error),
            None => RecordError::ended(),
        }
    }

    /// Waits until the units that are watched have opened nothing for 0.4 s, at most 5 s.
    pub fn wait_quiet(&self) {
        let since = now();
        loop {
            let last = self.shared.lock().last;
            let now = now();
            if now.saturating_sub(last) >= QUIET || now.saturating_sub(since) >= QUIET_WAIT_MAX {
                return;
            }
            thread::sleep(QUIET / 8);
        }
    }

    /// Ends the recording and gives what was seen.
    ///
    /// # Errors
    ///
    /// It has ended by itself before.
    pub fn finish(mut self) -> Result<Recorded, RecordError> {
        self.drain()?;
        self.end();
        let mut state = self.shared.lock();
        if state.failed.is_some() {
            drop(state);
            return Err(self.failure());
        }
        let log = std::mem::take(&mut state.log);
        drop(state);
        let (ignore, not_watched) =
            (std::mem::take(&mut self.ignore), std::mem::take(&mut self.not_watched));
        Ok(Recorded { log, ignore, began: self.began, ended: now(), not_watched })
    }

    fn end(&mut self) {
        self.shared.lock().stop = true;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the thread works with.
#[derive(Debug)]
struct Loop {
    watch: Watch,
    places: Places,
    processes: Processes,
    shared: Arc<Shared>,
    own: u32,
    at_once: bool,
}

impl Loop {
    fn run(mut self) {
        // Without the right to it, it is just less prompt.
        let _ = rustix::process::setpriority_process(None, NICE);
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            match self.take(&mut buffer) {
                Ok(()) => {}
                Err(error) => {
                    self.shared.lock().failed = Some(error);
                    return;
                }
            }
            let mut state = self.shared.lock();
            state.rounds += 1;
            if state.stop {
                return;
            }
        }
    }

    /// Waits for events, takes those that are there, and leaves some time for more.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(WAIT.subsec_nanos()) };
        let ready = {
            let mut fds = [PollFd::from_borrowed_fd(self.watch.as_fd(), PollFlags::IN)];
            match poll(&mut fds, Some(&wait)) {
                Err(rustix::io::Errno::INTR) => 0,
                other => other?,
            }
        };
        if ready == 0 {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let at_once = loop {
            let events = self.watch.read(buffer)?;
            let now = now();
            let mut state = shared.lock();
            let mut any = false;
            for event in events {
                any = true;
                note(&mut self.places, &mut self.processes, self.own, &mut state, event, now);
            }
            if !any {
                break self.at_once || matches!(state.scope, Scope::These(..));
            }
        };
        if !at_once {
            thread::sleep(NAP);
        }
        Ok(())
    }
}

/// Adds one event to what was seen, if it is of use. The owner is looked up even if nobody is
/// watched: who is remembered is there when it counts.
fn note(
    places: &mut Places,
    processes: &mut Processes,
    own: u32,
    state: &mut State,
    event: Event<'_>,
    now: Duration,
) {
    let Some(place) = event.place else {
        state.log.counts.lost += 1;
        state.log.miss(now);
        return;
    };
    if event.pid == own || event.pid == 0 || state.scope == Scope::Nobody {
        return;
    }
    state.log.counts.events += 1;
    let unit = match processes.reader(event.pid, event.executed, now) {
        Reader::Unit(unit) => unit,
        Reader::Other => return,
        Reader::Ended => {
            state.log.counts.ended += 1;
            // Its name may be gone with it: then it may have been any.
            let of_use = |path: ImagePath| event.directory || is_of_use(&path);
            if places.path_of(&place).is_none_or(of_use) {
                state.log.miss(now);
            }
            return;
        }
    };
    let phase = match &state.scope {
        Scope::These(watched, phase) if watched.contains(&unit) => Some(*phase),
        Scope::Everybody => None,
        _ => return,
    };
    state.last = now;
    match places.path_of(&place) {
        Some(path) => state.log.add(&unit, path, event.directory, phase, now),
        None => state.log.counts.unnamed += 1,
    }
}

/// The system's monotonic clock, which systemd's times are on too.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Starts;

    #[test]
    fn only_a_phase_in_which_nothing_was_missed_is_complete() {
        let unit = Unit::new("a.service");
        let of_unit = |phase| Scope::These(BTreeSet::from([unit.clone()]), phase);
        let mut state = State::default();
        state.begin(of_unit(Phase::Reload));
        state.log.miss(now());
        assert!(!state.end(), "a process had ended");
        state.begin(of_unit(Phase::Start));
        assert!(state.end(), "what was missed before does not count");
        assert_eq!(state.scope, Scope::Nobody);
        let log = std::mem::take(&mut state.log);
        let (ignore, now) = (Ignore::default(), now());
        let recorded = Recorded { log, ignore, began: now, ended: now, not_watched: Vec::new() };
        let map = recorded.map(&Starts::new());
        assert!(map.was_watched(&unit, Phase::Start) && !map.was_watched(&unit, Phase::Reload));
    }
}
