//! Every step of an apply, an undo and a recovery as a crash point.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::io::Errno;
use vireo_model::{Digest, Tree};

use super::tests::{bundle, copy_tree, open, populate, populate_fat, read, verified};
use super::*;
use crate::faults::{Fault, Which, with};

/// Where trees are made: in memory if there is such a place.
fn temp() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let place = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).expect("a temporary directory")
}

/// The pair of trees that everything is tried on.
struct World {
    base: tempfile::TempDir,
    digests: [Digest; 2],
    file: Vec<u8>,
}

/// One thread that tries.
struct Tester<'w> {
    world: &'w World,
    /// One thread, whose steps have an order.
    pool: rayon::ThreadPool,
}

/// What is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Apply,
    Undo,
}

/// Everything is tried with both, and on FAT too.
const WORLDS: [(fn() -> World, Work); 4] = [
    (World::new, Work::Apply),
    (World::new, Work::Undo),
    (World::on_fat, Work::Apply),
    (World::on_fat, Work::Undo),
];

impl World {
    fn new() -> Self {
        let (base, target) = (temp(), temp());
        populate(base.path(), 1);
        populate(target.path(), 2);
        Self::between(base, &target)
    }

    /// Trees that are on FAT, but for one file.
    fn on_fat() -> Self {
        let (base, target) = (temp(), temp());
        for (dir, edition) in [(&base, 1), (&target, 2)] {
            populate_fat(dir.path(), edition);
            fs::write(dir.path().join("version"), [edition]).expect("written");
        }
        Self::between(base, &target)
    }

    fn between(base: tempfile::TempDir, target: &tempfile::TempDir) -> Self {
        let file = bundle(base.path(), target.path());
        let digests = [read(base.path()).digest(), read(target.path()).digest()];
        Self { base, digests, file }
    }

    fn tester(&self) -> Tester<'_> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        Tester { world: self, pool }
    }

    /// Tries all `points`, on all processors.
    fn campaign<P: Sync>(
        &self,
        name: &str,
        points: &[P],
        try_one: impl Fn(&Tester<'_>, &P, &mut Tally) + Sync,
    ) -> Tally {
        let (next, sum) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
        let work = || {
            let (tester, mut tally) = (self.tester(), Tally::default());
            while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                try_one(&tester, point, &mut tally);
            }
            sum.lock().expect("nobody panicked").join(tally);
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        let tally = sum.into_inner().expect("nobody panicked");
        tally.report(name);
        tally
    }

    /// How many steps `work` has.
    fn steps(&self, work: Work, which: Which) -> usize {
        let (_, result, count) = self.tester().faulty(work, which, Fault::None, 0, true);
        result.expect("works without a fault");
        count
    }
}

impl Tester<'_> {
    /// A machine to be tried on. Inode numbers are new, so an undo needs an update of its own.
    fn machine(&self, work: Work) -> tempfile::TempDir {
        let machine = temp();
        let tree = machine.path().join("tree");
        fs::create_dir(&tree).expect("made");
        fs::create_dir(machine.path().join("side")).expect("made");
        copy_tree(self.world.base.path(), &tree);
        if work == Work::Undo {
            self.run(Work::Apply, &tree).expect("applies");
        }
        machine
    }

    fn run(&self, work: Work, tree: &Path) -> Result<(), TreeError> {
        let root = open(tree)?;
        match work {
            Work::Apply => stage(&root, &verified(&self.world.file), &ApplyOptions::default())?
                .commit()
                .and_then(Committed::finish),
            Work::Undo => {
                stage_undo(&root, 1, &UndoOptions::default())?.commit().and_then(Committed::finish)
            }
        }
    }

    /// `work` on a new machine with a fault; the machine, what it gave and how many steps it had.
    fn faulty(
        &self,
        work: Work,
        which: Which,
        fault: Fault,
        at: usize,
        barriers: bool,
    ) -> (tempfile::TempDir, Result<(), TreeError>, usize) {
        let machine = self.machine(work);
        let (result, count) =
            self.interrupt(&machine, which, fault, at, barriers, |tree| self.run(work, tree));
        (machine, result, count)
    }

    fn interrupt<T: Send>(
        &self,
        machine: &tempfile::TempDir,
        which: Which,
        fault: Fault,
        at: usize,
        barriers: bool,
        work: impl FnOnce(&Path) -> T + Send,
    ) -> (T, usize) {
        let (tree, side) = (machine.path().join("tree"), machine.path().join("side"));
        self.pool.install(|| with(which, fault, at, barriers, &side, || work(&tree)))
    }

    /// Recovers, as the next start would, and says whether the tree is base or target then.
    fn judge(&self, machine: &tempfile::TempDir) -> Result<Tree, String> {
        let tree = machine.path().join("tree");
        recover_all(&tree).map_err(|error| error.to_string())?;
        let found = read(&tree);
        if self.world.digests.contains(&found.digest()) {
            Ok(found)
        } else {
            Err("a mixture".into())
        }
    }

    fn is_mixed(&self, machine: &tempfile::TempDir) -> bool {
        !self.world.digests.contains(&read(&machine.path().join("tree")).digest())
    }
}

fn recover_all(tree: &Path) -> Result<(), TreeError> {
    let root = open(tree)?;
    if let Recovered::Completed(committed) = recover(&root)? {
        committed.finish()?;
    }
    Ok(())
}

/// What a campaign found.
#[derive(Debug, Default)]
struct Tally {
    points: usize,
    mixed: usize,
    bad: Vec<String>,
}

impl Tally {
    fn add(&mut self, what: impl FnOnce() -> String, mixed: bool, verdict: Result<(), String>) {
        self.points += 1;
        self.mixed += usize::from(mixed);
        if let Err(why) = verdict {
            self.bad.push(format!("{}: {why}", what()));
        }
    }

    fn join(&mut self, other: Self) {
        self.points += other.points;
        self.mixed += other.mixed;
        self.bad.extend(other.bad);
    }

    fn report(&self, name: &str) {
        let Self { points, mixed, bad } = self;
        println!("{name}: {points} points, {mixed} mixed before recovery, {} bad after", bad.len());
    }

    /// All are good, and there are `least` of them: a harness that sees less would pass, too.
    fn assert_good(&self, least: usize) {
        assert!(self.points >= least, "{} points, {least} at least were there before", self.points);
        let some: Vec<&String> = self.bad.iter().take(5).collect();
        assert!(self.bad.is_empty(), "{} of {}: {some:#?}", self.bad.len(), self.points);
        assert!(self.mixed > 0, "the harness does not see the window");
    }
}

#[test]
fn killed_at_any_step_it_is_the_base_or_the_target() {
    for (world, work) in WORLDS {
        let world = &world();
        let points: Vec<usize> = (0..world.steps(work, Which::Changes)).collect();
        let name = format!("kill -9 at every step, {work:?}");
        let tally = world.campaign(&name, &points, |tester, at, tally| {
            let kill = Fault::Kill;
            let (machine, result, _) = tester.faulty(work, Which::Changes, kill, *at, true);
            let mixed = tester.is_mixed(&machine);
            let verdict = tester.judge(&machine).map(drop);
            tally.add(|| format!("{work:?} step {at} ({result:?})"), mixed, verdict);
        });
        tally.assert_good(70);
    }
}

/// Kills `work` at step `at`, then has `fault` happen to recovery at each of its steps.
fn break_recovery(
    tester: &Tester<'_>,
    work: Work,
    at: usize,
    fault: impl Fn(usize) -> Fault,
    tally: &mut Tally,
) {
    for recovery_at in 0.. {
        let (machine, ..) = tester.faulty(work, Which::Changes, Fault::Kill, at, true);
        let fault = fault(recovery_at);
        let (is_done, count) =
            tester.interrupt(&machine, Which::Changes, fault, recovery_at, true, |tree| {
                recover_all(tree).is_ok()
            });
        if count <= recovery_at {
            break;
        }
        let mixed = tester.is_mixed(&machine);
        let verdict = match fault {
            Fault::Fail(_) if is_done && mixed => Err("success with a mixture".to_owned()),
            _ => tester.judge(&machine).map(drop),
        };
        tally.add(|| format!("{work:?} {at}, recovery {recovery_at}, {fault:?}"), mixed, verdict);
    }
}

#[test]
fn recovery_killed_at_any_step_is_completed_by_the_next() {
    for (world, work) in WORLDS {
        let world = &world();
        let points: Vec<usize> = (0..world.steps(work, Which::Changes)).collect();
        let name = format!("kill -9 at every step of recovery from a kill at every step, {work:?}");
        let tally = world.campaign(&name, &points, |tester, at, tally| {
            break_recovery(tester, work, *at, |_| Fault::Kill, tally);
        });
        tally.assert_good(900);
    }
}

/// Every so manieth step of an update or undo is where recoveries that fail begin.
const RECOVERY_STRIDE: usize = 4;

#[test]
fn recovery_that_fails_or_loses_power_at_any_step_is_completed_by_the_next() {
    for (world, work) in WORLDS {
        let world = &world();
        let steps = (0..world.steps(work, Which::Changes)).step_by(RECOVERY_STRIDE);
        let points: Vec<usize> = steps.collect();
        let name = format!("an error or a power cut at every step of recovery, {work:?}");
        let tally = world.campaign(&name, &points, |tester, at, tally| {
            for error in [Errno::NOSPC, Errno::IO, Errno::ROFS] {
                break_recovery(tester, work, *at, |_| Fault::Fail(error), tally);
            }
            let cut = |recovery_at| Fault::PowerCut((*at as u64) << 16 | recovery_at as u64);
            break_recovery(tester, work, *at, cut, tally);
        });
        tally.assert_good(900);
    }
}

#[test]
fn an_error_at_any_step_leaves_the_base_or_the_target() {
    let errors = [Errno::NOSPC, Errno::IO, Errno::DQUOT, Errno::ROFS, Errno::MFILE, Errno::PERM];
    for (world, work) in WORLDS {
        let world = &world();
        let steps = 0..world.steps(work, Which::All);
        let points: Vec<(usize, Errno)> =
            steps.flat_map(|at| errors.map(|error| (at, error))).collect();
        let name = format!("each of {} errors at every step, {work:?}", errors.len());
        let tally = world.campaign(&name, &points, |tester, (at, error), tally| {
            let fault = Fault::Fail(*error);
            let (machine, result, _) = tester.faulty(work, Which::All, fault, *at, true);
            let mixed = tester.is_mixed(&machine);
            let verdict = match &result {
                Ok(()) if mixed => Err("success with a mixture".to_owned()),
                _ => tester.judge(&machine).map(drop),
            };
            tally.add(|| format!("{work:?} {error:?} at {at} ({result:?})"), mixed, verdict);
        });
        tally.assert_good(2_000);
    }
}

/// Power cuts per step; each leaves another part of what was not yet on the disk.
const CUTS: u64 = 24;

fn power_cuts(name: &str, world: &World, work: Work, barriers: bool) -> Tally {
    let steps = 0..world.steps(work, Which::Changes);
    let points: Vec<(usize, u64)> =
        steps.flat_map(|at| (0..CUTS).map(move |cut| (at, (at as u64) << 8 | cut))).collect();
    world.campaign(name, &points, |tester, (at, seed), tally| {
        let fault = Fault::PowerCut(*seed);
        let (machine, result, _) = tester.faulty(work, Which::Changes, fault, *at, barriers);
        let mixed = tester.is_mixed(&machine);
        let verdict = tester.judge(&machine).map(drop);
        tally.add(|| format!("{work:?} step {at}, seed {seed} ({result:?})"), mixed, verdict);
    })
}

#[test]
fn cut_from_power_at_any_step_it_is_the_base_or_the_target() {
    for (world, work) in WORLDS {
        let world = &world();
        let name = format!("{CUTS} power cuts at every step, {work:?}");
        power_cuts(&name, world, work, true).assert_good(1_700);
    }
}

#[test]
fn without_barriers_the_same_harness_finds_bad_states() {
    let tally = power_cuts("the same without barriers, Apply", &World::new(), Work::Apply, false);
    assert!(tally.bad.len() > 10, "the harness would not see missing barriers");
}

#[test]
fn errors_read_as_absence_are_found_by_the_same_harness() {
    let world = World::new();
    let points: Vec<usize> = (0..world.steps(Work::Apply, Which::All)).collect();
    let name = "every failure reported as absence, Apply";
    let tally = world.campaign(name, &points, |tester, at, tally| {
        // What a program sees that takes any failure of stat(2) for "there is nothing".
        let fault = Fault::Fail(Errno::NOENT);
        let (machine, result, _) = tester.faulty(Work::Apply, Which::All, fault, *at, true);
        let mixed = tester.is_mixed(&machine);
        let verdict = match &result {
            Ok(()) if mixed => Err("success with a mixture".to_owned()),
            _ => tester.judge(&machine).map(drop),
        };
        tally.add(|| format!("step {at} ({result:?})"), mixed, verdict);
    });
    assert!(!tally.bad.is_empty(), "the harness would not see errors taken for absence");
}
