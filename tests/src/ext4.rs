//! Mounted ext4 file systems that only the test and its children can reach.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use vireo_testkit::{Run, fixture};

use crate::disk::{Disk, FileSystem};

/// A mounted ext4 file system: whatever the host's own file system can hold, here are extended
/// attributes of all name spaces, devices, and an end of the space. Unmounted when dropped.
#[derive(Debug)]
pub struct Ext4 {
    disk: Disk,
    dir: TempDir,
}

/// Mounts the device `$1` at `$2` as well, and runs the text `$3` there. Some programs cannot work
/// in a mount that is in no namespace.
const WITHIN: &str = "mount \"$1\" \"$2\"; cd \"$2\"; eval \"$3\"";

/// Prints what would make the directory `$4` like `$5`; times count to the nanosecond.
const COMPARE: &str =
    "rsync -aHAXnic --modify-window=-1 --delete --exclude=/.vireo \"$5/\" \"$4/\"";

/// Copies the tree in the image `$4`, which begins at `$5`, to the directory `$6`.
const UNPACK: &str = "mkdir .image; mount -o loop,ro,noload,offset=$5 \"$4\" .image
  rsync -aHAXS --exclude=/lost+found .image/ \"$6/\"; umount .image; rmdir .image";

impl Ext4 {
    /// A new, empty file system of `bytes`.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn new(bytes: u64) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        let image = dir.path().join("scratch.img");
        fixture::empty_image(&image, bytes)?;
        Self::open(&image)
    }

    /// The file system in `image`, which has no partition table; writing to it writes to the image.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn open(image: &Path) -> anyhow::Result<Self> {
        let disk = Disk::open(image, FileSystem::Ext4)?;
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        Ok(Self { disk, dir })
    }

    /// Its root, by a name that children of the test can use too.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.disk.path()
    }

    /// Runs a script (bash) in its root and gives what it printed.
    ///
    /// # Errors
    ///
    /// The script failed.
    pub fn script(&self, script: &str, args: &[&str]) -> anyhow::Result<String> {
        let run = Run::new("unshare").args(["-m", "--propagation", "private"]);
        let run = run.args(["bash", "-euo", "pipefail", "-c", WITHIN, "within"]);
        let run = run.arg(self.disk.device()).arg(self.dir.path()).arg(script);
        Ok(run.args(args).text()?)
    }

    /// Expects that rsync has nothing to do to make its directory `left` like `right`.
    ///
    /// # Errors
    ///
    /// It has; the message lists it.
    pub fn no_difference(&self, left: &str, right: &str) -> anyhow::Result<()> {
        let found = self.script(COMPARE, &[left, right])?;
        ensure!(found.is_empty(), "{left} differs from {right}:\n{found}");
        Ok(())
    }

    /// Makes its directory `into` a copy of the tree in `image`, whose file system begins at
    /// `offset`.
    ///
    /// # Errors
    ///
    /// Copying failed.
    pub fn unpack(&self, image: &Path, offset: u64, into: &str) -> anyhow::Result<()> {
        let image = image.to_str().context("an image whose name is text")?;
        self.script(UNPACK, &[image, &offset.to_string(), into])?;
        Ok(())
    }

    /// Writes everything out to the image.
    ///
    /// # Errors
    ///
    /// As `syncfs(2)`.
    pub fn sync(&self) -> anyhow::Result<()> {
        self.disk.sync()
    }
}
