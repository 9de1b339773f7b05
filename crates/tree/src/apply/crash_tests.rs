//! Every step of an apply, an undo and a recovery as a crash point.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vireo_model::{Digest, Tree};

use super::tests::{bundle, copy_tree, populate, read, verified};
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
    _base: tempfile::TempDir,
    _target: tempfile::TempDir,
    /// The base, and the base after the update: what each try starts from.
    starts: [PathBuf; 2],
    _updated: tempfile::TempDir,
    digests: [Digest; 2],
    file: Vec<u8>,
    pool: rayon::ThreadPool,
}

/// What is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Apply,
    Undo,
}

impl World {
    fn new() -> Self {
        let (base, target, updated) = (temp(), temp(), temp());
        populate(base.path(), 1);
        populate(target.path(), 2);
        let file = bundle(base.path(), target.path());
        let starts = [base.path().to_owned(), updated.path().to_owned()];
        let digests = [read(base.path()).digest(), read(target.path()).digest()];
        // On one thread, whose steps have an order.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        let world =
            Self { _base: base, _target: target, starts, _updated: updated, digests, file, pool };
        copy_tree(&world.starts[0], &world.starts[1]);
        world.run(Work::Apply, &world.starts[1]).expect("applies");
        world
    }

    /// A machine to be tried on. Inode numbers are new, so an undo needs an update of its own.
    fn machine(&self, work: Work) -> tempfile::TempDir {
        let machine = temp();
        let tree = machine.path().join("tree");
        fs::create_dir(&tree).expect("made");
        fs::create_dir(machine.path().join("side")).expect("made");
        copy_tree(&self.starts[0], &tree);
        if work == Work::Undo {
            self.run(Work::Apply, &tree).expect("applies");
        }
        machine
    }

    fn run(&self, work: Work, tree: &Path) -> Result<(), TreeError> {
        let root = Root::open(tree)?;
        match work {
            Work::Apply => stage(&root, &verified(&self.file), &ApplyOptions::default())?
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
        if self.digests.contains(&found.digest()) { Ok(found) } else { Err("a mixture".into()) }
    }

    fn is_mixed(&self, machine: &tempfile::TempDir) -> bool {
        !self.digests.contains(&read(&machine.path().join("tree")).digest())
    }
}

fn recover_all(tree: &Path) -> Result<(), TreeError> {
    let root = Root::open(tree)?;
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

    fn report(&self, name: &str) {
        let Self { points, mixed, bad } = self;
        println!("{name}: {points} points, {mixed} mixed before recovery, {} bad after", bad.len());
    }

    fn assert_good(&self, name: &str) {
        self.report(name);
        let some: Vec<&String> = self.bad.iter().take(5).collect();
        assert!(self.bad.is_empty(), "{} of {}: {some:#?}", self.bad.len(), self.points);
    }
}

#[test]
fn killed_at_any_step_it_is_the_base_or_the_target() {
    let world = World::new();
    for work in [Work::Apply, Work::Undo] {
        let mut tally = Tally::default();
        let (_, _, steps) = world.faulty(work, Which::Changes, Fault::None, 0, true);
        for at in 0..steps {
            let (machine, result, _) = world.faulty(work, Which::Changes, Fault::Kill, at, true);
            let mixed = world.is_mixed(&machine);
            let verdict = world.judge(&machine).map(drop);
            tally.add(|| format!("{work:?} step {at} ({result:?})"), mixed, verdict);
        }
        tally.assert_good(&format!("kill {work:?}"));
        assert!(tally.mixed > 0, "the harness does not see the window");
    }
}

#[test]
fn recovery_killed_at_any_step_is_completed_by_the_next() {
    let world = World::new();
    let mut tally = Tally::default();
    for work in [Work::Apply, Work::Undo] {
        let (_, _, steps) = world.faulty(work, Which::Changes, Fault::None, 0, true);
        // Every other step of the work, and of each recovery every third, shifted.
        for at in (0..steps).step_by(2) {
            let mut recovery_at = at % 3;
            loop {
                let (machine, ..) = world.faulty(work, Which::Changes, Fault::Kill, at, true);
                let kill = Fault::Kill;
                let (_, count) =
                    world.interrupt(&machine, Which::Changes, kill, recovery_at, true, |tree| {
                        recover_all(tree).is_ok()
                    });
                if count <= recovery_at {
                    break;
                }
                let mixed = world.is_mixed(&machine);
                let verdict = world.judge(&machine).map(drop);
                tally.add(|| format!("{work:?} {at}, recovery {recovery_at}"), mixed, verdict);
                recovery_at += 3;
            }
        }
    }
    tally.assert_good("kill recovery");
}

#[test]
fn an_error_at_any_step_leaves_the_base_or_the_target() {
    let world = World::new();
    let errors = [Errno::NOSPC, Errno::IO, Errno::DQUOT, Errno::ROFS, Errno::MFILE, Errno::PERM];
    for work in [Work::Apply, Work::Undo] {
        let mut tally = Tally::default();
        let (_, _, steps) = world.faulty(work, Which::All, Fault::None, 0, true);
        for at in 0..steps {
            let error = errors[at % errors.len()];
            let second = errors[(at + 1) % errors.len()];
            for error in [error, second] {
                let fault = Fault::Fail(error);
                let (machine, result, _) = world.faulty(work, Which::All, fault, at, true);
                let mixed = world.is_mixed(&machine);
                let verdict = match &result {
                    Ok(()) if mixed => Err("success with a mixture".to_owned()),
                    _ => world.judge(&machine).map(drop),
                };
                tally.add(|| format!("{work:?} {error:?} at {at} ({result:?})"), mixed, verdict);
            }
        }
        tally.assert_good(&format!("error {work:?}"));
    }
}

/// Power cuts per step; each leaves another part of what was not yet on the disk.
const CUTS: u64 = 6;

fn power_cuts(world: &World, work: Work, barriers: bool) -> Tally {
    let mut tally = Tally::default();
    let (_, _, steps) = world.faulty(work, Which::Changes, Fault::None, 0, true);
    for at in 0..steps {
        for cut in 0..CUTS {
            let seed = (at as u64) << 8 | cut;
            let fault = Fault::PowerCut(seed);
            let (machine, result, _) = world.faulty(work, Which::Changes, fault, at, barriers);
            let mixed = world.is_mixed(&machine);
            let verdict = world.judge(&machine).map(drop);
            tally.add(|| format!("{work:?} step {at}, seed {seed} ({result:?})"), mixed, verdict);
        }
    }
    tally
}

#[test]
fn cut_from_power_at_any_step_it_is_the_base_or_the_target() {
    let world = World::new();
    for work in [Work::Apply, Work::Undo] {
        let tally = power_cuts(&world, work, true);
        tally.assert_good(&format!("power cut {work:?}"));
        assert!(tally.mixed > 0, "the harness does not see the window");
    }
}

#[test]
fn without_barriers_the_same_harness_finds_bad_states() {
    let tally = power_cuts(&World::new(), Work::Apply, false);
    tally.report("power cut without barriers");
    assert!(tally.bad.len() > 10, "the harness would not see missing barriers");
}

#[test]
fn errors_read_as_absence_are_found_by_the_same_harness() {
    let world = World::new();
    let mut bad = 0;
    let (_, _, steps) = world.faulty(Work::Apply, Which::All, Fault::None, 0, true);
    for at in 0..steps {
        // What a program sees that takes any failure of stat(2) for "there is nothing".
        let fault = Fault::Fail(Errno::NOENT);
        let (machine, result, _) = world.faulty(Work::Apply, Which::All, fault, at, true);
        let mixed = world.is_mixed(&machine);
        bad += usize::from((result.is_ok() && mixed) || world.judge(&machine).is_err());
    }
    println!("errors read as absence: {bad} bad of {steps}");
    assert!(bad > 0, "the harness would not see errors taken for absence");
}
