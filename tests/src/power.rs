//! Power cuts in an update: recorded once, replayed at many points, each judged by itself.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use vireo_model::{Digest, Ignore, ImagePath};
use vireo_testkit::leaks;
use vireo_testkit::logdisk::{Log, LogDisk, Record};
use vireo_testkit::powercut::{Cut, Left, cuts_of_all};
use vireo_tree::Root;

use crate::disk::{Disk, FileSystem, wait_until_free};
use crate::recovery::digest_of;
use crate::scratch::scratch;

/// Where the tree is on a recorded disk; beside it is room for what is no part of it.
const TREE: &str = "tree";
const BESIDE: &str = "beside";

/// A prefix that no lab has: what is looked for is on the disks of a recording.
const NO_LAB: &str = "no lab of ours";

/// Time for the kernel to let go of the last disk.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);

/// Between two writes of the neighbour.
const NEIGHBOUR_INTERVAL: Duration = Duration::from_millis(1);

/// What else happens on the disk during an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Nothing: only the update itself makes anything durable.
    None,
    /// Another program that makes its own file durable again and again, as databases do, and with it
    /// the part of the update that is done by then.
    Busy,
}

/// An update, as the disks have seen it.
#[derive(Debug)]
pub struct Recording {
    dir: TempDir,
    system: FileSystem,
    ignore: Ignore,
    /// The tree's own first.
    parts: Vec<Part>,
    /// How often the update had a disk flush its cache.
    flushes: usize,
    base: Digest,
    target: Digest,
}

/// A disk, and what it has seen.
#[derive(Debug)]
struct Part {
    /// Where in the tree its own tree is; `None`: it is the root.
    at: Option<ImagePath>,
    /// What was on it when the recording began.
    image: PathBuf,
    log: Log,
    /// The first record of the update; those before are of mounting.
    first: usize,
}

/// What is on the disks: the tree, and room beside it.
#[derive(Clone, Debug)]
pub struct Place {
    /// The tree that is updated.
    pub tree: PathBuf,
    /// A directory on the same disk that is no part of the tree.
    pub beside: PathBuf,
    /// Where the tree goes on on other disks, and what is there.
    pub parts: Vec<(ImagePath, PathBuf)>,
}

/// Something done to a disk.
pub type Step<'a> = &'a dyn Fn(&Place) -> anyhow::Result<()>;

impl Recording {
    /// Has `prepare` write the base to a new file system, then records what `update` does.
    ///
    /// # Errors
    ///
    /// The host lacks something, or one of the two failed.
    pub fn make(
        system: FileSystem,
        ignore: Ignore,
        neighbour: Neighbour,
        prepare: Step<'_>,
        update: Step<'_>,
    ) -> anyhow::Result<Self> {
        Self::of_parts(system, ignore, &[], neighbour, prepare, update)
    }

    /// The same for a tree whose directories `parts` are on disks of their own. The neighbour is on
    /// the last of all disks alone.
    ///
    /// # Errors
    ///
    /// As [`Recording::make`].
    pub fn of_parts(
        system: FileSystem,
        ignore: Ignore,
        parts: &[ImagePath],
        neighbour: Neighbour,
        prepare: Step<'_>,
        update: Step<'_>,
    ) -> anyhow::Result<Self> {
        let dir = scratch()?;
        let name = |kind: &str, number: usize| dir.path().join(format!("{kind}-{number}"));
        let count = 1 + parts.len();
        let bases: Vec<PathBuf> = (0..count).map(|number| name("base", number)).collect();
        bases.iter().try_for_each(|image| system.make(image))?;
        let open = |image: &PathBuf| Disk::open(image, system);
        let disks = bases.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
        for disk in &disks {
            fs::create_dir(disk.path().join(TREE))?;
            fs::create_dir(disk.path().join(BESIDE))?;
        }
        let place = Place::on(&disks, parts);
        prepare(&place)?;
        let base = digest_of(&place.root()?, &ignore)?;
        disks.into_iter().try_for_each(Disk::finish)?;

        let mut recorders = Vec::new();
        for (number, image) in bases.iter().enumerate() {
            wait_until_free(image)?;
            vireo_testkit::image::clone_image(image, &name("recorded", number))?;
            recorders.push(LogDisk::new(&name("recorded", number), &name("log", number))?);
        }
        let mount = |recorder: &LogDisk| Disk::mount(&recorder.open()?, system);
        let disks = recorders.iter().map(mount).collect::<anyhow::Result<Vec<_>>>()?;
        let positions = || recorders.iter().map(LogDisk::position).collect::<Result<Vec<_>, _>>();
        let place = Place::on(&disks, parts);
        let before = positions()?;
        let last = disks.last().context("there is a disk")?;
        beside(neighbour, last, system, || update(&place))?;
        let after = positions()?;
        let target = digest_of(&place.root()?, &ignore)?;
        disks.into_iter().try_for_each(Disk::finish)?;
        ensure!(base != target, "the update changed nothing");

        let (mut seen, mut flushes) = (Vec::new(), 0);
        for (number, recorder) in recorders.into_iter().enumerate() {
            let log = recorder.finish()?;
            fs::remove_file(name("recorded", number))?;
            let [first, end] = [&before, &after].map(|at| log.count_until(at[number]));
            let records = log.records().take(end).skip(first);
            flushes += records.filter(|record| **record == Record::Barrier).count();
            let at = number.checked_sub(1).map(|part| parts[part].clone());
            seen.push(Part { at, image: bases[number].clone(), log, first });
        }
        Ok(Self { dir, system, ignore, parts: seen, flushes, base, target })
    }

    /// Digest of the tree before the update.
    #[must_use]
    pub fn base(&self) -> Digest {
        self.base
    }

    /// Digest of the tree after the update.
    #[must_use]
    pub fn target(&self) -> Digest {
        self.target
    }

    /// How often the update had a disk flush its cache.
    #[must_use]
    pub fn flushes(&self) -> usize {
        self.flushes
    }

    /// The same, where another tree counts as the base.
    #[must_use]
    pub(crate) fn with_base(self, base: Digest) -> Self {
        Self { base, ..self }
    }

    /// The same on disks of which the one with this number, or each, takes flushes for nothing.
    #[must_use]
    pub fn without_barriers(mut self, disk: Option<usize>) -> Self {
        let without = |(number, part): (usize, Part)| {
            if disk.is_some_and(|disk| disk != number) {
                return part;
            }
            // A number of records is no position any more: everything counts as the update.
            Part { log: part.log.without_barriers(), first: 0, ..part }
        };
        self.parts = self.parts.into_iter().enumerate().map(without).collect();
        self
    }

    /// Cuts the power of all disks at `points` points and judges each state: the disks are mounted,
    /// `recover` does what a start of the machine would, and what is there then is compared.
    ///
    /// # Errors
    ///
    /// A state cannot be built. What is wrong with a state is counted, not an error.
    pub fn replay(&self, points: usize, seed: u64, recover: Step<'_>) -> anyhow::Result<Tally> {
        let mut tally = Tally { seed, ..Tally::default() };
        let logs: Vec<_> = self.parts.iter().map(|part| (&part.log, part.first)).collect();
        for (number, cuts) in cuts_of_all(&logs, points, seed).iter().enumerate() {
            let mut states = Vec::new();
            for (disk, (part, cut)) in self.parts.iter().zip(cuts).enumerate() {
                // A name is never used twice: a mount that somebody still holds writes to its own.
                let image = self.dir.path().join(format!("state-{seed}-{number}-{disk}.img"));
                cut.build(&part.image, &part.log, &image)?;
                states.push(image);
            }
            let judged = self.judge(&states, cuts, recover);
            tally.add(number, cuts, judged);
            states.iter().try_for_each(fs::remove_file)?;
        }
        leaks::none(NO_LAB, self.dir.path(), RELEASE_DEADLINE)?;
        Ok(tally)
    }

    fn judge(&self, images: &[PathBuf], cuts: &[Cut], recover: Step<'_>) -> anyhow::Result<Judged> {
        let (mut disks, mut restored) = (Vec::new(), false);
        for (image, cut) in images.iter().zip(cuts) {
            let disk = match Disk::open(image, self.system) {
                Err(error) if matches!(cut.left, Left::Torn(_)) => {
                    self.system.restore_superblock(image).context(error)?;
                    restored = true;
                    Disk::open(image, self.system)
                }
                disk => disk,
            };
            disks.push(disk?);
        }
        let parts: Vec<_> = self.parts.iter().filter_map(|part| part.at.clone()).collect();
        let place = Place::on(&disks, &parts);
        let digest = || digest_of(&place.root()?, &self.ignore);
        // Not even readable is not whole either.
        let mixed = digest().map_or(true, |found| found != self.base && found != self.target);
        let recovered = recover(&place).context("recovery failed");
        let found = digest();
        disks.into_iter().try_for_each(Disk::finish)?;
        images.iter().try_for_each(|image| wait_until_free(image))?;
        let whole = match (recovered, found) {
            (Err(error), _) => Err(error),
            (Ok(()), found) => found.and_then(|found| self.whole(found)),
        };
        let checked = images.iter().try_for_each(|image| self.system.check(image));
        let checked = checked.context("the file system is damaged");
        Ok(Judged { mixed, restored, is_target: whole.and_then(|whole| checked.map(|()| whole)) })
    }

    /// Whether the tree is the target; it may be the base instead.
    fn whole(&self, found: Digest) -> anyhow::Result<bool> {
        ensure!(found == self.base || found == self.target, "neither base nor target: {found}");
        Ok(found == self.target)
    }
}

impl Place {
    /// The first disk has the root, the others what `parts` name.
    fn on(disks: &[Disk], parts: &[ImagePath]) -> Self {
        let top = disks.first().map(Disk::path).unwrap_or_default();
        let trees = disks.iter().skip(1).map(|disk| disk.path().join(TREE));
        let parts = parts.iter().cloned().zip(trees).collect();
        Self { tree: top.join(TREE), beside: top.join(BESIDE), parts }
    }

    /// The tree over all its disks.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn root(&self) -> anyhow::Result<Root> {
        let mut root = Root::open(&self.tree)?;
        for (at, tree) in &self.parts {
            root = root.with_mount(at.clone(), File::open(tree)?.into());
        }
        Ok(root)
    }
}

/// Runs `update` beside a neighbour.
fn beside(
    neighbour: Neighbour,
    disk: &Disk,
    system: FileSystem,
    update: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if neighbour == Neighbour::None {
        return update();
    }
    let path = disk.path().join("neighbour");
    let file = File::create(&path).context("cannot make the neighbour's file")?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let busy = scope.spawn(|| keep_busy(&file, system, &done));
        let updated = update();
        done.store(true, Ordering::Relaxed);
        busy.join().map_err(|_| anyhow::anyhow!("the neighbour panicked"))??;
        updated
    })
}

fn keep_busy(mut file: &File, system: FileSystem, done: &AtomicBool) -> anyhow::Result<()> {
    for number in 0_u64.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        // Longer each time and never overwritten: metadata is part of it.
        file.write_all(&number.to_le_bytes())?;
        file.write_all_at(&number.to_le_bytes(), 0)?;
        match system {
            // On btrfs fsync(2) brings nothing but its own file: "tree log" in its documentation.
            FileSystem::Btrfs => rustix::fs::syncfs(file)?,
            FileSystem::Ext4 | FileSystem::Xfs => file.sync_all()?,
        }
        thread::sleep(NEIGHBOUR_INTERVAL);
    }
    Ok(())
}

/// What one state came to.
struct Judged {
    mixed: bool,
    restored: bool,
    is_target: anyhow::Result<bool>,
}

/// What many states came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// States that were judged.
    pub points: usize,
    /// Those that were neither base nor target when mounted: without them nothing was tested.
    pub mixed: usize,
    /// Those whose superblock was torn, so that it had to be restored before they could be mounted.
    pub restored: usize,
    /// Those that were the base in the end.
    pub base: usize,
    /// Those that were the target in the end.
    pub target: usize,
    /// What was wrong with the others.
    pub bad: Vec<String>,
    seed: u64,
}

impl Tally {
    fn add(&mut self, number: usize, cuts: &[Cut], judged: anyhow::Result<Judged>) {
        self.points += 1;
        let end = judged.and_then(|judged| {
            self.mixed += usize::from(judged.mixed);
            self.restored += usize::from(judged.restored);
            judged.is_target
        });
        match end {
            Ok(true) => self.target += 1,
            Ok(false) => self.base += 1,
            Err(error) => {
                let seed = self.seed;
                self.bad.push(format!("state {number} of seed {seed}, {cuts:?}: {error:#}"));
            }
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.seed = other.seed;
        self.points += other.points;
        self.mixed += other.mixed;
        self.restored += other.restored;
        self.base += other.base;
        self.target += other.target;
        self.bad.extend(other.bad);
        self
    }

    /// Expects `points` states, mixtures among them, both outcomes, and nothing wrong after recovery.
    ///
    /// # Errors
    ///
    /// One of these is not so; what was wrong is listed.
    pub fn all_whole(&self, points: usize) -> anyhow::Result<()> {
        ensure!(self.bad.is_empty(), "{self}\n{}", self.bad.join("\n"));
        ensure!(self.points == points, "{self}: {points} were to be judged");
        ensure!(self.mixed > 0, "{self}: no state was a mixture, so nothing was tested");
        ensure!(self.base > 0 && self.target > 0, "{self}: one outcome never came");
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { points, mixed, restored, base, target, bad, seed } = self;
        let bad = bad.len();
        write!(
            f,
            "{points} power cuts (seed {seed}, {restored} torn superblocks): {mixed} mixtures \
             before recovery; after it {base} base, {target} target, {bad} bad"
        )
    }
}
