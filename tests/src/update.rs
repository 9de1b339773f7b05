//! An update of a tree with every kind of node, made by Vireo, by dpkg, and in ways that are wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use vireo_delta::{Bundle, TrustedKeys};
use vireo_model::{Digest, Ignore, ImagePath};
use vireo_testkit::{Run, fixture, programs};
use vireo_tree::apply::{ApplyOptions, stage};

use crate::disk::FileSystem;
use crate::errors::{Errors, fail_everywhere};
use crate::ext4::Ext4;
use crate::interrupt::{Interrupted, Moment, Threads};
use crate::kills::{Kills, kill_everywhere};
use crate::package::{Edition, debian_package, dpkg, empty_database, write_package};
use crate::power::{Neighbour, Place, Recording};
use crate::program::vireo;
use crate::recovery::{recover_root, recovers_to, tree_digest};
use crate::scene::capture_args;

/// Bytes of the file system that the two trees are kept in.
const TREES_BYTES: u64 = 256 << 20;

/// Time that a call which changes a name takes in a recording, in microseconds: the neighbour makes
/// what was done by then durable in between.
const NAME_CALL_MICROS: u32 = 2000;

/// Calls that change names.
const NAME_CALLS: &str = "rename,renameat,renameat2,unlink,unlinkat,rmdir";

/// Calls that make something durable.
const BARRIER_CALLS: &str = "sync,syncfs,fsync,fdatasync";

/// Every call that can put a name in place, somewhere in the middle of the update's.
const MID_RENAMES: Moment = Moment { call: "rename,renameat,renameat2", nth: 25 };

/// The program of the full-size campaign, which recovers a tree too.
const FAULTS: &str = "vireo-faults";

/// The base, the target, and the bundle that makes one of the other.
#[derive(Debug)]
pub struct Update {
    trees: Ext4,
    dir: TempDir,
}

impl Update {
    /// The package of [`write_package`] and the fixture with every kind of node.
    ///
    /// # Errors
    ///
    /// The host lacks something, or making it failed.
    pub fn new() -> anyhow::Result<Self> {
        crate::require_host()?;
        let trees = Ext4::new(TREES_BYTES)?;
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        let update = Self { trees, dir };
        for (name, edition) in [("base", Edition::Base), ("target", Edition::Target)] {
            let tree = update.tree(name);
            fs::create_dir(&tree)?;
            write_package(&tree, edition)?;
            let kinds = tree.join("kinds");
            fs::create_dir(&kinds)?;
            fixture::write_base(&kinds)?;
            if edition == Edition::Target {
                fixture::change_to_target(&kinds)?;
            }
        }
        vireo(["key", "generate", "--out", &update.arg("keys")])?.ok()?;
        let tree = |name: &str| update.tree(name).display().to_string();
        let key = update.arg("keys/vireo.key");
        vireo(capture_args(&tree("base"), &tree("target"), &key, &update.arg("update.vireo")))?
            .ok()?;
        Ok(update)
    }

    /// The tree `base` or `target`.
    #[must_use]
    pub fn tree(&self, name: &str) -> PathBuf {
        self.trees.path().join(name)
    }

    fn arg(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Makes `to` a copy of the base, to the last attribute.
    ///
    /// # Errors
    ///
    /// Copying failed.
    pub fn copy_base(&self, to: &Path) -> anyhow::Result<()> {
        run(&copy(&self.tree("base"), to), Neighbour::None)
    }

    /// `vireo apply` of the bundle to the tree `to`.
    ///
    /// # Errors
    ///
    /// It has not been built.
    pub fn apply(&self, to: &Path) -> anyhow::Result<Vec<String>> {
        let program = programs::find("vireo")?.display().to_string();
        let (bundle, key) = (self.arg("update.vireo"), self.arg("keys/vireo.pub"));
        let to = to.display().to_string();
        Ok(vec![program, "apply".into(), bundle, "--to".into(), to, "--trust".into(), key])
    }

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

    /// `vireo-agent apply` of the bundle to the tree `to`, with the agent's records in `state`: an
    /// update that can be undone.
    ///
    /// # Errors
    ///
    /// It has not been built.
    pub fn apply_by_agent(&self, to: &Path, state: &Path) -> anyhow::Result<Vec<String>> {
        let mut words = by_agent("apply", to, state)?;
        words.extend(["--trust".into(), self.arg("keys/vireo.pub"), self.arg("update.vireo")]);
        Ok(words)
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

    /// The tree that commands work on when they are killed.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.tree("work")
    }

    /// Kills `command`, which works on the tree [`Update::work`], before each of its changing calls, at
    /// most `most` times; each time the tree is the base with what `prepare` made of it. Recovery has
    /// to leave the base or the target.
    ///
    /// # Errors
    ///
    /// As [`kill_everywhere`].
    pub fn kill(
        &self,
        command: &[String],
        most: usize,
        prepare: &dyn Fn(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Kills> {
        let (work, versions) = (self.work(), self.versions()?);
        let mut renew = || {
            self.renew_work()?;
            prepare(&work)
        };
        kill_everywhere(command, most, &mut renew, &mut || recovers_to(&work, &versions))
    }

    /// Kills `vireo apply`.
    ///
    /// # Errors
    ///
    /// As [`kill_everywhere`].
    pub fn kill_apply(&self, most: usize) -> anyhow::Result<Kills> {
        self.kill(&self.apply(&self.work())?, most, &|_| Ok(()))
    }

    /// Kills `vireo-agent apply`. Its own recovery has to leave the base or the target, and records that
    /// say which.
    ///
    /// # Errors
    ///
    /// As [`kill_everywhere`].
    pub fn kill_agent_apply(&self, most: usize) -> anyhow::Result<Kills> {
        let (work, versions) = (self.work(), self.versions()?);
        let state = self.dir.path().join("state");
        let mut renew = || {
            if state.exists() {
                fs::remove_dir_all(&state)?;
            }
            self.renew_work()
        };
        let mut check = || agent_recovers_to(&work, &state, &versions);
        kill_everywhere(&self.apply_by_agent(&work, &state)?, most, &mut renew, &mut check)
    }

    /// Kills `vireo-agent undo`.
    ///
    /// # Errors
    ///
    /// As [`kill_everywhere`].
    pub fn kill_undo(&self, most: usize) -> anyhow::Result<Kills> {
        let state = self.dir.path().join("state");
        self.kill(&by_agent("undo", &self.work(), &state)?, most, &|work| {
            if state.exists() {
                fs::remove_dir_all(&state)?;
            }
            run(&self.apply_by_agent(work, &state)?, Neighbour::None)
        })
    }

    /// Has the calls of `vireo apply` fail, one in each of at most `most` runs. Recovery has to leave
    /// the base or the target, and the target if the program claims that all went well.
    ///
    /// # Errors
    ///
    /// As [`fail_everywhere`].
    pub fn fail_apply(&self, most: usize) -> anyhow::Result<Errors> {
        let (work, versions) = (self.work(), self.versions()?);
        let mut renew = || self.renew_work();
        fail_everywhere(&self.apply(&work)?, most, &mut renew, &mut |success| {
            let expected = if success { &versions[1..] } else { &versions };
            recovers_to(&work, expected)
        })
    }

    fn renew_work(&self) -> anyhow::Result<()> {
        let work = self.work();
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        self.copy_base(&work)
    }

    /// Kills the recovery of an interrupted update.
    ///
    /// # Errors
    ///
    /// As [`kill_everywhere`].
    pub fn kill_recovery(&self, most: usize) -> anyhow::Result<Kills> {
        self.kill(&recovery(&self.work())?, most, &|work| self.interrupt(work))
    }

    /// Applies the update to the base in `tree`, and kills it in the middle of its renames.
    ///
    /// # Errors
    ///
    /// It ended before.
    pub fn interrupt(&self, tree: &Path) -> anyhow::Result<()> {
        let ended = MID_RENAMES.kill_command(&self.apply(tree)?, Threads::All)?;
        ensure!(matches!(ended, Interrupted::Killed), "the update ended before {MID_RENAMES:?}");
        Ok(())
    }

    /// Digests of the base and the target.
    ///
    /// # Errors
    ///
    /// One cannot be read.
    pub fn versions(&self) -> anyhow::Result<[Digest; 2]> {
        let digest = |name| tree_digest(&self.tree(name), &Ignore::default());
        Ok([digest("base")?, digest("target")?])
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

/// Makes the directory `to` like `from`, to the last attribute.
fn copy(from: &Path, to: &Path) -> Vec<String> {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    ["cp", "-aT", "--sparse=always", &from, &to].map(str::to_owned).to_vec()
}

/// Runs a command; slowly where there is a neighbour, so that both get their turns.
fn run(words: &[String], neighbour: Neighbour) -> anyhow::Result<()> {
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

/// The agent's command `name` on the tree, with its records in `state`.
fn by_agent(name: &str, tree: &Path, state: &Path) -> anyhow::Result<Vec<String>> {
    let program = programs::find("vireo-agent")?.display().to_string();
    let (tree, state) = (tree.display().to_string(), state.display().to_string());
    Ok([&program, name, "--root", &tree, "--state", &state].map(str::to_owned).to_vec())
}

/// Has the agent recover the tree, which has to be the base or the target afterwards, with records that
/// agree; says whether it was neither before.
fn agent_recovers_to(tree: &Path, state: &Path, versions: &[Digest; 2]) -> anyhow::Result<bool> {
    let digest = || tree_digest(tree, &Ignore::default());
    let mixed = digest().map_or(true, |found| !versions.contains(&found));
    run(&by_agent("recover", tree, state)?, Neighbour::None)?;
    let found = digest()?;
    ensure!(versions.contains(&found), "neither base nor target after recovery: {found}");
    let words = by_agent("status", tree, state)?;
    let status = Run::new(&words[0]).args(&words[1..]).args(["--json"]).text()?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    ensure!(status["under_way"] == false, "{status}");
    // Before the first update nobody has told the agent what it is on.
    let is_known = status["tree"] == found.to_string();
    ensure!(is_known || status["tree"].is_null() && found == versions[0], "{found}: {status}");
    Ok(mixed)
}

/// The command that recovers `tree` as a start of the machine does.
fn recovery(tree: &Path) -> anyhow::Result<Vec<String>> {
    let program = programs::find(FAULTS)?.display().to_string();
    Ok(vec![program, "recover".to_owned(), tree.display().to_string()])
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
