//! Updates as disks see them: by Vireo, by dpkg, and in ways that are wrong; and what a start does
//! after a cut in one.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use vireo_delta::{Bundle, TrustedKeys};
use vireo_model::{Ignore, ImagePath};
use vireo_testkit::Run;
use vireo_tree::apply::{ApplyOptions, stage};

use crate::disk::FileSystem;
use crate::package::{Edition, debian_package, dpkg, empty_database, write_package};
use crate::power::{Neighbour, Place, Recording};
use crate::recovery::recover_root;
use crate::update::{Update, by_agent, copy, recovery};

/// Time that a call which changes a name takes in a recording, in microseconds: the neighbour makes
/// what was done by then durable in between.
const NAME_CALL_MICROS: u32 = 2000;

/// Calls that change names.
const NAME_CALLS: &str = "rename,renameat,renameat2,unlink,unlinkat,rmdir";

/// Calls that make something durable.
const BARRIER_CALLS: &str = "sync,syncfs,fsync,fdatasync";

impl Update {
    /// Records the update made by `vireo apply`.
    ///
    /// # Errors
    ///
    /// As [`Recording::make`].
    pub fn record(&self, system: FileSystem, neighbour: Neighbour) -> anyhow::Result<Recording> {
        let prepare = |place: &Place| self.copy_base(&place.tree);
        let update = |place: &Place| run(&self.apply(&place.tree)?, neighbour);
        Recording::make(system, Ignore::default(), neighbour, &prepare, &update)
    }

    /// Records the update of a tree whose directories `parts` are on disks of their own, made as
    /// `vireo apply` makes it, by the library.
    ///
    /// # Errors
    ///
    /// As [`Recording::make`].
    pub fn record_parts(
        &self,
        system: FileSystem,
        parts: &[&str],
        neighbour: Neighbour,
    ) -> anyhow::Result<Recording> {
        let paths = parts.iter().map(|part| ImagePath::parse(format!("/{part}").as_bytes()));
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        let prepare = |place: &Place| {
            self.copy_base(&place.tree)?;
            for ((_, disk), part) in place.parts.iter().zip(parts) {
                let of_tree = place.tree.join(part);
                run(&copy(&of_tree, disk), Neighbour::None)?;
                // What a mount would hide.
                fs::remove_dir_all(&of_tree)?;
                fs::create_dir(&of_tree)?;
            }
            Ok(())
        };
        let trusted = self.trusted()?;
        let update = |place: &Place| {
            let bytes = fs::read(self.arg("update.vireo"))?;
            let bundle = Bundle::open(&bytes)?.verify(&trusted)?;
            let root = place.root()?;
            stage(&root, &bundle, &ApplyOptions::default())?.commit()?.finish()?;
            Ok(())
        };
        Recording::of_parts(system, Ignore::default(), &paths, neighbour, &prepare, &update)
    }

    fn trusted(&self) -> anyhow::Result<TrustedKeys> {
        let key = fs::read_to_string(self.arg("keys/vireo.pub"))?;
        Ok(TrustedKeys::from_iter([key.trim().parse()?]))
    }

    /// Records how `vireo-agent apply` makes the update. Its own records are on another disk.
    ///
    /// # Errors
    ///
    /// As [`Recording::make`].
    pub fn record_agent(&self, system: FileSystem) -> anyhow::Result<Recording> {
        let prepare = |place: &Place| self.copy_base(&place.tree);
        let state = self.tree("state");
        let update =
            |place: &Place| run(&self.apply_by_agent(&place.tree, &state)?, Neighbour::None);
        Recording::make(system, Ignore::default(), Neighbour::None, &prepare, &update)
    }

    /// Records how `vireo-agent undo` takes the update back.
    ///
    /// # Errors
    ///
    /// As [`Recording::make`].
    pub fn record_undo(
        &self,
        system: FileSystem,
        neighbour: Neighbour,
    ) -> anyhow::Result<Recording> {
        let state = |place: &Place| place.beside.join("state");
        let prepare = |place: &Place| {
            self.copy_base(&place.tree)?;
            run(&self.apply_by_agent(&place.tree, &state(place))?, Neighbour::None)
        };
        let undo = |place: &Place| run(&by_agent("undo", &place.tree, &state(place))?, neighbour);
        let recording = Recording::make(system, Ignore::default(), neighbour, &prepare, &undo)?;
        let [base, target] = self.versions()?;
        ensure!(recording.base() == target && recording.target() == base, "nothing was undone");
        Ok(recording)
    }

    /// Records the recovery of an update that was interrupted in the middle of its renames.
    ///
    /// # Errors
    ///
    /// As [`Recording::make`].
    pub fn record_recovery(
        &self,
        system: FileSystem,
        neighbour: Neighbour,
    ) -> anyhow::Result<Recording> {
        let prepare = |place: &Place| {
            self.copy_base(&place.tree)?;
            self.interrupt(&place.tree)
        };
        let update = |place: &Place| run(&recovery(&place.tree)?, neighbour);
        let recording = Recording::make(system, Ignore::default(), neighbour, &prepare, &update)?;
        let [base, target] = self.versions()?;
        ensure!(recording.base() != base && recording.target() == target, "nothing was recovered");
        // What it began with is a mixture, and must not stay.
        Ok(recording.with_base(base))
    }

    /// Records the update made by a `vireo apply` whose barriers do nothing. It is meant to fail.
    ///
    /// # Errors
    ///
    /// As [`Recording::make`].
    pub fn record_without_barriers(&self, system: FileSystem) -> anyhow::Result<Recording> {
        let prepare = |place: &Place| self.copy_base(&place.tree);
        let update = |place: &Place| {
            let calls = format!("trace={NAME_CALLS},{BARRIER_CALLS}");
            let words =
                ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &calls, "-e", &slow(), "-e"];
            let mut words = words.map(str::to_owned).to_vec();
            words.push(format!("inject={BARRIER_CALLS}:retval=0"));
            words.extend(self.apply(&place.tree)?);
            run(&words, Neighbour::None)
        };
        Recording::make(system, Ignore::default(), Neighbour::Busy, &prepare, &update)
    }

    /// Records the update made by renames alone: no barrier, no journal. It is meant to fail.
    ///
    /// # Errors
    ///
    /// As [`Recording::make`].
    pub fn record_plain_renames(&self, system: FileSystem) -> anyhow::Result<Recording> {
        let prepare = |place: &Place| write_package(&place.tree, Edition::Base);
        let update = |place: &Place| {
            // `kinds` is not in the tree: this can do files and nothing else.
            for dir in ["etc", "usr"] {
                replace_files(&self.tree("target").join(dir), &place.tree.join(dir))?;
            }
            Ok(())
        };
        Recording::make(system, Ignore::default(), Neighbour::Busy, &prepare, &update)
    }
}

/// Copies the files in `from` beside those in `to` and renames them into place.
fn replace_files(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            replace_files(&from, &to)?;
        } else if !from.is_symlink() {
            let part = to.with_added_extension("part");
            fs::copy(&from, &part)?;
            thread::sleep(Duration::from_micros(NAME_CALL_MICROS.into()));
            fs::rename(&part, &to)?;
        }
    }
    Ok(())
}

/// Runs a command; slowly where there is a neighbour, so that both get their turns.
pub(crate) fn run(words: &[String], neighbour: Neighbour) -> anyhow::Result<()> {
    let run = match neighbour {
        Neighbour::None => Run::new(&words[0]).args(&words[1..]),
        Neighbour::Busy => {
            let run = Run::new("strace").args(["-f", "-qq", "-o", "/dev/null"]);
            run.args(["-e", &format!("trace={NAME_CALLS}"), "-e", &slow()]).args(words)
        }
    };
    run.text()?;
    Ok(())
}

/// Has strace(1) make every change of a name slow.
fn slow() -> String {
    format!("inject={NAME_CALLS}:delay_enter={NAME_CALL_MICROS}")
}

/// Records the package's update by `dpkg -i`.
///
/// # Errors
///
/// As [`Recording::make`].
pub fn record_dpkg(system: FileSystem, neighbour: Neighbour) -> anyhow::Result<Recording> {
    crate::require_host()?;
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let base = debian_package(dir.path(), Edition::Base)?;
    let target = debian_package(dir.path(), Edition::Target)?;
    let prepare = |place: &Place| {
        empty_database(&place.beside)?;
        let mut words = dpkg(&place.tree, &place.beside);
        words.extend(["-i".to_owned(), base.display().to_string()]);
        run(&words, Neighbour::None)
    };
    let update = |place: &Place| {
        let mut words = dpkg(&place.tree, &place.beside);
        words.extend(["-i".to_owned(), target.display().to_string()]);
        run(&words, neighbour)
    };
    // What it leaves lying about is not held against it.
    let ignore = Ignore::with_site(&["/**/*.dpkg-new", "/**/*.dpkg-tmp"])?;
    Recording::make(system, ignore, neighbour, &prepare, &update)
}

/// What a start does after a cut in an update by Vireo.
///
/// # Errors
///
/// Recovery failed.
pub fn recover_vireo(place: &Place) -> anyhow::Result<()> {
    recover_root(&place.root()?).map(drop)
}

/// Nothing: for updates that have no recovery.
///
/// # Errors
///
/// Never.
pub fn recover_nothing(_: &Place) -> anyhow::Result<()> {
    Ok(())
}

/// What a start does after a cut in an update by dpkg, as its manual page says.
///
/// # Errors
///
/// Never: that it does not help is what is to be counted.
pub fn recover_dpkg(place: &Place) -> anyhow::Result<()> {
    let words = dpkg(&place.tree, &place.beside);
    Run::new(&words[0]).args(&words[1..]).args(["--configure", "-a"]).output()?;
    Ok(())
}
