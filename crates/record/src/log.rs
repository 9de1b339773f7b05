//! What was seen so far, and the map that it makes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::time::Duration;

use vireo_classify::{Class, Phase, ReadMap, Unit, class_of};
use vireo_model::{Ignore, ImagePath};

use crate::Starts;
use crate::mounts::NotWatched;
use crate::starts::SETTLE;

/// Most reads kept, each a unit with a path: some 200 bytes each. Beyond that new ones are counted
/// as lost.
pub const MAX_READS: usize = 500_000;

/// Most times kept for a read.
const MAX_TIMES: usize = 16;

/// Span within which two times of a read say all; a start lasts longer.
const SAME_TIME: Duration = Duration::from_secs(1);

/// Most moments kept at which something was missed; a start takes in more of them than it need be
/// doubted for. Beyond that every start is.
const MAX_MISSES: usize = 100_000;

/// How long after it happened an event may be taken at most, where the machine is busy.
const TAKEN_WITHIN: Duration = Duration::from_millis(50);

/// How often a file that no start and no reload read must be read by a unit that was left alone,
/// until it counts as one that is read whenever it is needed.
const RUN_READS_MIN: u32 = 2;

/// Whose reads count at the moment, and as what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Nobody's.
    #[default]
    Nobody,
    /// All units', with the time: what it was in is told later.
    Everybody,
    /// These units'.
    These(BTreeSet<Unit>, Phase),
}

/// How many events there were, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All files and directories opened on the watched file systems while somebody was watched.
    pub events: u64,
    /// Those of units that were watched.
    pub attributed: u64,
    /// Those of processes that had ended before it could be seen whose they were.
    pub ended: u64,
    /// Those that were attributed but have no path any more.
    pub unnamed: u64,
    /// How often the kernel or the memory for reads ran over, so that some are missing.
    pub lost: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    path: ImagePath,
    directory: bool,
}

/// In what one unit opened one place.
#[derive(Clone, Debug, Default)]
struct Seen {
    phases: BTreeSet<Phase>,
    runs: u32,
    times: Vec<Duration>,
}

impl Seen {
    /// Keeps the time. Of three within a second the middle one goes: whatever longer span it was
    /// in has one of its neighbours. Of too many the second goes: the first may be of a start long
    /// ago, the later ones of one just now.
    fn at(&mut self, now: Duration) {
        if let [.., before, last] = self.times.as_mut_slice()
            && now.saturating_sub(*before) < SAME_TIME
        {
            *last = now;
            return;
        }
        if self.times.len() >= MAX_TIMES {
            self.times.remove(1);
        }
        self.times.push(now);
    }
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Log {
    units: HashMap<Unit, HashMap<Place, Seen>>,
    watched: BTreeMap<Unit, BTreeSet<Phase>>,
    reads: usize,
    /// When something was missed that a plan could use, in order.
    misses: Vec<Duration>,
    pub(crate) counts: Counts,
}

impl Log {
    /// Notes that somebody opened something and that nobody knows who, or what.
    pub(crate) fn miss(&mut self, now: Duration) {
        if self.misses.len() < MAX_MISSES {
            self.misses.push(now);
        }
    }

    /// How much was missed so far; from some number on it stays the same.
    pub(crate) fn misses(&self) -> usize {
        self.misses.len()
    }

    /// Whether more was missed than is counted.
    pub(crate) fn misses_overflow(&self) -> bool {
        self.misses.len() == MAX_MISSES
    }

    /// Whether nothing was missed of what happened in `range`.
    fn is_whole(&self, range: &RangeInclusive<Duration>) -> bool {
        let end = *range.end() + TAKEN_WITHIN;
        let first = self.misses.partition_point(|time| time < range.start());
        !self.misses_overflow() && self.misses.get(first).is_none_or(|time| *time > end)
    }

    /// Notes that the units of `scope` were watched all through.
    pub(crate) fn note_watched(&mut self, scope: &Scope) {
        let Scope::These(units, phase) = scope else { return };
        for unit in units {
            self.watched.entry(unit.clone()).or_default().insert(*phase);
        }
    }

    /// Notes that `unit` opened the place at `path`, in `phase` if that is known.
    pub(crate) fn add(
        &mut self,
        unit: &Unit,
        path: ImagePath,
        directory: bool,
        phase: Option<Phase>,
        now: Duration,
    ) {
        self.counts.attributed += 1;
        let full = self.reads >= MAX_READS;
        let places = match self.units.get_mut(unit) {
            Some(places) => places,
            None if full => {
                self.counts.lost += 1;
                return;
            }
            None => self.units.entry(unit.clone()).or_default(),
        };
        let place = Place { path, directory };
        if !places.contains_key(&place) {
            if full {
                self.counts.lost += 1;
                return;
            }
            self.reads += 1;
        }
        let seen = places.entry(place).or_default();
        match phase {
            Some(phase) => {
                seen.phases.insert(phase);
                seen.runs += u32::from(phase == Phase::Run);
            }
            None => seen.at(now),
        }
    }
}

/// What a recording gave.
#[derive(Debug)]
pub struct Recorded {
    pub(crate) log: Log,
    pub(crate) ignore: Ignore,
    /// When it began, on the system's monotonic clock.
    pub began: Duration,
    /// When it ended.
    pub(crate) ended: Duration,
    pub(crate) not_watched: Vec<NotWatched>,
}

impl Recorded {
    /// What became of the events.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.log.counts
    }

    /// Where disk file systems are mounted that could not be watched, and why.
    #[must_use]
    pub fn not_watched(&self) -> BTreeMap<String, String> {
        let told = |refused: &NotWatched| {
            (refused.mount_point.display().to_string(), refused.why.to_string())
        };
        self.not_watched.iter().map(told).collect()
    }

    /// The read map. What was seen while everybody was watched counts for the units that `starts`
    /// says when they started, if that was after the recording began. That a start read no more than
    /// that is said only where nothing was missed meanwhile.
    #[must_use]
    pub fn map(&self, starts: &Starts) -> ReadMap {
        let mut map = ReadMap::new();
        for (unit, phases) in &self.log.watched {
            phases.iter().for_each(|phase| map.watched(unit, *phase));
        }
        let starts: BTreeMap<&Unit, _> =
            starts.iter().filter(|(_, range)| *range.start() >= self.began).collect();
        // Of a unit that was still starting at the end the rest was not seen.
        let had_started = |range: &RangeInclusive<Duration>| *range.end() <= self.ended + SETTLE;
        let whole =
            starts.iter().filter(|(_, range)| had_started(range) && self.log.is_whole(range));
        whole.for_each(|(unit, _)| map.watched(unit, Phase::Start));
        for (unit, places) in &self.log.units {
            for (place, seen) in places {
                for phase in phases_of(seen, starts.get(unit).copied()) {
                    self.add(&mut map, unit, place, phase);
                }
            }
        }
        map
    }

    fn add(&self, map: &mut ReadMap, unit: &Unit, place: &Place, phase: Phase) {
        if self.ignore.matches(&place.path) {
            return;
        }
        if place.directory {
            map.add_directory(&place.path, unit, phase);
        } else if is_of_use(&place.path) {
            map.add_file(&place.path, unit, phase);
        }
    }
}

/// The phases that a unit read a file in. A file that was read in none but while the unit was left
/// alone may have been read for good: only from the second time on it is read anew.
fn phases_of(seen: &Seen, start: Option<&RangeInclusive<Duration>>) -> BTreeSet<Phase> {
    let mut phases = seen.phases.clone();
    if start.is_some_and(|range| seen.times.iter().any(|time| range.contains(time))) {
        phases.insert(Phase::Start);
    }
    if phases.len() == 1 && seen.runs > 0 && seen.runs < RUN_READS_MIN {
        phases.remove(&Phase::Run);
    }
    phases
}

/// Whether a plan could use it: who has a library is seen by what it maps, and documentation is for
/// people.
pub(crate) fn is_of_use(path: &ImagePath) -> bool {
    !matches!(class_of(path, 0o644, None), Class::Library | Class::Documentation | Class::Foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    fn recorded(log: Log) -> Recorded {
        let ignore = Ignore::new(["/var/log/**"]).expect("a glob");
        Recorded { log, ignore, began: at(10), ended: at(60), not_watched: Vec::new() }
    }

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn what_says_nothing_about_an_update_is_left_out() {
        let unit = Unit::new("a.service");
        let mut log = Log::default();
        for name in ["/etc/a.conf", "/var/log/a.log", "/usr/lib/x86_64-linux-gnu/libc.so.6"] {
            log.add(&unit, path(name), false, Some(Phase::Start), at(11));
        }
        log.add(&unit, path("/etc/a.d"), true, Some(Phase::Start), at(11));
        log.note_watched(&Scope::These(BTreeSet::from([unit.clone()]), Phase::Start));
        let map = recorded(log).map(&Starts::new());
        assert!(map.was_watched(&unit, Phase::Start));
        assert_eq!(map.len(), 2, "{map:?}");
        assert!(map.readers_of(&path("/etc/a.conf")).is_some());
        assert_eq!(map.listers_of(&path("/etc/a.d/new.conf")).count(), 1);
    }

    #[test]
    fn a_full_log_takes_neither_new_places_nor_new_units() {
        let (known, new) = (Unit::new("a.service"), Unit::new("b.service"));
        let mut log = Log::default();
        log.add(&known, path("/etc/a.conf"), false, Some(Phase::Start), at(11));
        log.reads = MAX_READS;
        log.add(&known, path("/etc/a.conf"), false, Some(Phase::Start), at(12));
        log.add(&known, path("/etc/other"), false, Some(Phase::Start), at(12));
        log.add(&new, path("/etc/b.conf"), false, Some(Phase::Start), at(12));
        assert_eq!((log.counts.attributed, log.counts.lost), (4, 2));
        assert_eq!(log.units.keys().collect::<Vec<_>>(), [&known]);
    }

    #[test]
    fn only_what_is_read_again_is_read_anew() {
        let unit = Unit::new("a.service");
        let mut log = Log::default();
        log.add(&unit, path("/etc/a.conf"), false, Some(Phase::Start), at(11));
        for (name, times) in [("/etc/a.conf", 1), ("/srv/once", 1), ("/srv/twice", 2)] {
            for _ in 0..times {
                log.add(&unit, path(name), false, Some(Phase::Run), at(12));
            }
        }
        let map = recorded(log).map(&Starts::new());
        let phases = |name: &str| map.readers_of(&path(name)).map(|by| by[&unit].len());
        assert_eq!(phases("/etc/a.conf"), Some(2));
        assert_eq!(phases("/srv/once"), None);
        assert_eq!(phases("/srv/twice"), Some(1));
    }

    #[test]
    fn of_many_starts_in_a_row_the_last_is_remembered_and_the_first() {
        let unit = Unit::new("a.service");
        for step in [100, 400, 700, 1500, 3000] {
            let mut log = Log::default();
            let times: Vec<Duration> =
                (0..100).map(|n| at(20) + Duration::from_millis(n * step)).collect();
            for time in &times {
                log.add(&unit, path("/etc/x"), false, None, *time);
            }
            let recorded = recorded(log);
            for time in [times[0], times[99]] {
                let range = time.saturating_sub(Duration::from_millis(10))..=time + at(5);
                let map = recorded.map(&Starts::from([(unit.clone(), range)]));
                assert!(map.readers_of(&path("/etc/x")).is_some(), "{step} ms apart");
            }
        }
    }

    #[test]
    fn of_a_unit_that_still_starts_at_the_end_nothing_is_said_not_to_be_read() {
        let unit = Unit::new("slow.service");
        let mut log = Log::default();
        log.add(&unit, path("/etc/x"), false, None, at(21));
        let recorded = recorded(log);
        let started_until = |end| recorded.map(&Starts::from([(unit.clone(), at(20)..=end)]));
        for (end, whole) in [(at(64), true), (Duration::MAX / 2 + SETTLE, false)] {
            let map = started_until(end);
            assert!(map.readers_of(&path("/etc/x")).is_some());
            assert_eq!(map.was_watched(&unit, Phase::Start), whole, "until {end:?}");
        }
    }

    #[test]
    fn of_everybody_the_start_counts_if_it_was_seen_from_its_beginning() {
        let (early, late) = (Unit::new("early.service"), Unit::new("late.service"));
        let mut log = Log::default();
        for unit in [&early, &late] {
            log.add(unit, path("/etc/x"), false, None, at(21));
            log.add(unit, path("/etc/y"), false, None, at(40));
        }
        let starts =
            Starts::from([(early.clone(), at(9)..=at(25)), (late.clone(), at(20)..=at(25))]);
        let map = recorded(log).map(&starts);
        assert!(map.was_watched(&late, Phase::Start) && !map.was_watched(&early, Phase::Start));
        let readers = map.readers_of(&path("/etc/x")).expect("it was read");
        assert_eq!(readers.keys().collect::<Vec<_>>(), [&late]);
        assert!(map.readers_of(&path("/etc/y")).is_none(), "that was no part of a start");
    }

    #[test]
    fn a_start_in_which_something_was_missed_says_nothing_of_what_was_not_read() {
        let units =
            ["before", "within", "late", "after"].map(|name| Unit::new(format!("{name}.service")));
        let starts: Starts =
            units.iter().cloned().zip([20, 30, 40, 50].map(|n| at(n)..=at(n + 5))).collect();
        let mut log = Log::default();
        for (unit, secs) in units.iter().zip([21, 31, 41, 51]) {
            log.add(unit, path("/etc/x"), false, None, at(secs));
        }
        log.miss(at(33));
        // Taken some time after it happened.
        log.miss(at(45) + Duration::from_millis(20));
        let map = recorded(log).map(&starts);
        let watched = units.each_ref().map(|unit| map.was_watched(unit, Phase::Start));
        assert_eq!(watched, [true, false, false, true]);
        let readers = map.readers_of(&path("/etc/x")).expect("it was read");
        assert_eq!(readers.len(), 4, "what was seen counts");
    }

    #[test]
    fn where_too_much_was_missed_to_be_counted_every_start_is_doubted() {
        let unit = Unit::new("a.service");
        let mut log = Log::default();
        (0..=MAX_MISSES).for_each(|_| log.miss(at(11)));
        let starts = Starts::from([(unit.clone(), at(20)..=at(25))]);
        assert!(!recorded(log).map(&starts).was_watched(&unit, Phase::Start));
    }
}
