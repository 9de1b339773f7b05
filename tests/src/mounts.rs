//! A tree of several file systems, mounted where only the test and its children see them.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use vireo_model::{Ignore, ImagePath, Tree};
use vireo_testkit::{Run, fixture, programs};
use vireo_tree::{Root, ScanOptions, scan};

use crate::{Interrupted, Moment, Ran};

/// Where its further file systems are.
const PARTS: [&str; 2] = ["boot", "var"];

/// Bytes of each file system.
const PART_LEN: u64 = 32 << 20;

/// Mounts the images of the directory `$1` and stays until its standard input ends; loop devices and
/// mounts go with it.
const HOLD: &str = "cd \"$1\"; mkdir tree; mount -o loop root.img tree; rm -r tree/lost+found
  for part in boot var; do mkdir tree/$part; mount -o loop $part.img tree/$part; done
  echo mounted; read -r _ || true";

/// Prints what would make the tree like the directory `$2`, apart from what file systems and
/// updates have of their own.
const COMPARE: &str = "rsync -aHAXnic --delete --exclude=.vireo --exclude=lost+found \
    --exclude=/var/lib/vireo \"$2/\" \"$1/\"";

/// Everything that is there, with inode number, rights, length and times, but for the root's own and
/// what updates have of their own.
const LISTING: &str = "cd \"$1\"; find . -mindepth 1 \\( -name .vireo -o -path ./var/lib/vireo \\) -prune \
    -o -printf '%p %i %m %s %T@ %C@ %n\\n' | sort";

/// A directory `tree` on a file system of its own, with two more mounted at `boot` and `var`, in a
/// mount namespace of its own. Gone when dropped.
#[derive(Debug)]
pub struct Mounts {
    holder: Child,
    dir: TempDir,
}

impl Mounts {
    /// Three new file systems; the script `fill` (bash) puts the base into the current directory,
    /// which is then copied, and `change` makes the copy the target: the directories `base` and
    /// `target` beside `tree`.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn new(fill: &str, change: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        for name in ["root.img", "boot.img", "var.img"] {
            fixture::empty_image(&dir.path().join(name), PART_LEN)?;
        }
        let make = format!(
            "cd \"$1\"; mkdir base; (cd base; {fill}); cp -a base target; (cd target; {change})"
        );
        Run::new("bash").args(["-euo", "pipefail", "-c", &make, "make"]).arg(dir.path()).text()?;
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "bash", "-euc", HOLD, "hold"]);
        command.arg(dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().context("cannot start unshare")?;
        let output = holder.stdout.take().context("it has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let mounts = Self { holder, dir };
        ensure!(line == "mounted\n", "the file systems cannot be mounted");
        mounts.refill()?;
        Ok(mounts)
    }

    /// Makes the tree the base again, as if it had never been updated.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn refill(&self) -> anyhow::Result<()> {
        // cp(1), because rsync leaves the nanoseconds of new symbolic links as they come.
        self.script(
            "find \"$1\" -mindepth 1 ! -path \"$1/boot\" ! -path \"$1/var\" ! -name lost+found -delete; \
             cp -a \"$2/.\" \"$1/\"",
            &["base"],
        )
        .map(drop)
    }

    /// The tree's name, for programs run by [`Mounts::run`].
    #[must_use]
    pub fn tree(&self) -> String {
        self.arg("tree")
    }

    /// `name` beside the tree.
    #[must_use]
    pub fn arg(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn enter(&self, program: impl AsRef<std::ffi::OsStr>) -> Run {
        let run = Run::new("nsenter").args(["-t", &self.holder.id().to_string(), "-m"]);
        run.arg(program)
    }

    /// Runs a script (bash) that finds the tree in `$1` and the directories `beside` it from `$2`.
    ///
    /// # Errors
    ///
    /// It failed.
    pub fn script(&self, script: &str, beside: &[&str]) -> anyhow::Result<String> {
        let run = self.enter("bash").args(["-euo", "pipefail", "-c", script, "script"]);
        let run = run.arg(self.tree()).args(beside.iter().map(|name| self.arg(name)));
        Ok(run.text()?)
    }

    /// Runs one of our programs where the file systems are.
    ///
    /// # Errors
    ///
    /// It cannot be run.
    pub fn run(&self, name: &str, args: &[&str]) -> anyhow::Result<Ran> {
        let label = format!("{name} {}", args.join(" "));
        Ran::of(self.enter(programs::find(name)?).args(args), label)
    }

    /// The same, killed at `moment`.
    ///
    /// # Errors
    ///
    /// As [`Moment::kill`].
    pub fn kill(&self, moment: Moment, name: &str, args: &[&str]) -> anyhow::Result<Interrupted> {
        moment.kill_by(self.enter("strace"), name, args)
    }

    /// The tree over all its file systems.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn read(&self) -> anyhow::Result<Tree> {
        // The namespace's view, as procfs shows it.
        let seen = PathBuf::from(format!("/proc/{}/root{}", self.holder.id(), self.tree()));
        let mut root = Root::open(&seen)?;
        for part in PARTS {
            let at = ImagePath::parse(format!("/{part}").as_bytes())?;
            root = root.with_mount(at, File::open(seen.join(part))?.into());
        }
        read(&root)
    }

    /// The directory `name` beside the tree.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn read_beside(&self, name: &str) -> anyhow::Result<Tree> {
        read(&Root::open(Path::new(&self.arg(name)))?)
    }

    /// Expects that rsync finds no difference between the tree and the directory `name` beside it.
    ///
    /// # Errors
    ///
    /// It does; the message lists it.
    pub fn no_difference(&self, name: &str) -> anyhow::Result<()> {
        let found = self.script(COMPARE, &[name])?;
        // Mounting sets the times of no directory, updates those of the root's alone.
        let found: Vec<&str> = found.lines().filter(|line| !line.starts_with(".d..t")).collect();
        ensure!(found.is_empty(), "the tree differs from {name}:\n{}", found.join("\n"));
        Ok(())
    }

    /// Everything in the tree as text, to be compared with what it is later.
    ///
    /// # Errors
    ///
    /// It cannot be listed.
    pub fn listing(&self) -> anyhow::Result<String> {
        self.script(LISTING, &[])
    }
}

fn read(root: &Root) -> anyhow::Result<Tree> {
    Ok(scan(root, &Ignore::default(), &ScanOptions::default())?.tree)
}

impl Drop for Mounts {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        drop(self.holder.wait());
    }
}
