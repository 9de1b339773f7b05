//! An update of a tree with every kind of node, and what kills and errors do to it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use vireo_model::{Digest, Ignore};
use vireo_testkit::{Run, fixture, programs};

use crate::errors::{Errors, fail_everywhere};
use crate::ext4::Ext4;
use crate::interrupt::{Interrupted, Moment, Threads};
use crate::kills::{Kills, kill_everywhere};
use crate::package::{Edition, write_package};
use crate::power::Neighbour;
use crate::program::vireo;
use crate::recorded::run;
use crate::recovery::{recovers_to, tree_digest};
use crate::scene::capture_args;

/// Bytes of the file system that the two trees are kept in.
const TREES_BYTES: u64 = 256 << 20;

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

    pub(crate) fn arg(&self, name: &str) -> String {
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

    /// Has the calls of `vireo-agent apply` fail, likewise. Its own recovery has to leave the base or
    /// the target, and records that say which.
    ///
    /// # Errors
    ///
    /// As [`fail_everywhere`].
    pub fn fail_agent_apply(&self, most: usize) -> anyhow::Result<Errors> {
        let (work, [base, target]) = (self.work(), self.versions()?);
        let state = self.dir.path().join("state");
        let mut renew = || {
            if state.exists() {
                fs::remove_dir_all(&state)?;
            }
            self.renew_work()
        };
        fail_everywhere(&self.apply_by_agent(&work, &state)?, most, &mut renew, &mut |success| {
            let claimed = !success || tree_digest(&work, &Ignore::default())? == target;
            ensure!(claimed, "it says that all went well, and the tree is not the target");
            agent_recovers_to(&work, &state, &[base, target])
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
}

/// Makes the directory `to` like `from`, to the last attribute.
pub(crate) fn copy(from: &Path, to: &Path) -> Vec<String> {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    ["cp", "-aT", "--sparse=always", &from, &to].map(str::to_owned).to_vec()
}

/// The agent's command `name` on the tree, with its records in `state`.
pub(crate) fn by_agent(name: &str, tree: &Path, state: &Path) -> anyhow::Result<Vec<String>> {
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
pub(crate) fn recovery(tree: &Path) -> anyhow::Result<Vec<String>> {
    let program = programs::find(FAULTS)?.display().to_string();
    Ok(vec![program, "recover".to_owned(), tree.display().to_string()])
}
