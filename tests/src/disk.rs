//! File systems of several kinds on loop devices, mounted where only the test and its children can
//! reach them.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use vireo_sys::loopdev::{LoopDevice, Window};
use vireo_sys::{detached, lease};
use vireo_testkit::Run;

/// How long the kernel may take to let an unmounted image go.
const RELEASE_TRIES: u32 = 300;
const RELEASE_INTERVAL: Duration = Duration::from_millis(10);

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// With its defaults: metadata journal, data written before it.
    Ext4,
    /// With its defaults.
    Xfs,
    /// With its defaults for one device.
    Btrfs,
}

impl FileSystem {
    /// What mount(8) calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Near the smallest that its mkfs makes, in bytes.
    fn image_len(self) -> u64 {
        match self {
            Self::Ext4 => 64 << 20,
            Self::Xfs => 320 << 20,
            Self::Btrfs => 256 << 20,
        }
    }

    /// Makes an empty one in the new file `image`.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn make(self, image: &Path) -> anyhow::Result<()> {
        let file = File::create_new(image)?;
        file.set_len(self.image_len())?;
        let words: &[&str] = match self {
            // What the kernel would initialize later, in writes of its own.
            Self::Ext4 => &["mkfs.ext4", "-q", "-m0", "-Elazy_itable_init=0,lazy_journal_init=0"],
            Self::Xfs => &["mkfs.xfs", "-q"],
            Self::Btrfs => &["mkfs.btrfs", "-q"],
        };
        Run::new(words[0]).args(&words[1..]).arg(image).text()?;
        Ok(())
    }

    /// Expects that its own checker finds nothing to repair in `image`; writes nothing.
    ///
    /// # Errors
    ///
    /// What it found.
    pub fn check(self, image: &Path) -> anyhow::Result<()> {
        let words: &[&str] = match self {
            Self::Ext4 => &["e2fsck", "-fn"],
            Self::Xfs => &["xfs_repair", "-n"],
            Self::Btrfs => &["btrfs", "check", "--readonly"],
        };
        Run::new(words[0]).args(&words[1..]).arg(image).text()?;
        Ok(())
    }

    /// Restores a superblock whose write was torn from its copy, as an administrator has to: it is
    /// larger than a sector, has a checksum, and no journal covers it.
    ///
    /// # Errors
    ///
    /// It cannot be restored.
    pub fn restore_superblock(self, image: &Path) -> anyhow::Result<()> {
        let words: &[&str] = match self {
            Self::Ext4 => &["e2fsck", "-fy"],
            Self::Btrfs => &["btrfs", "rescue", "super-recover", "-y"],
            // One sector, which cannot be torn.
            Self::Xfs => anyhow::bail!("the superblock of XFS is one sector"),
        };
        let output = Run::new(words[0]).args(&words[1..]).arg(image).output()?;
        // e2fsck(8): 1 is "errors corrected"; super-recover has 2 for that.
        ensure!(output.code <= 2, "no superblock can be restored:\n{}", output.tail());
        Ok(())
    }
}

/// A mounted file system. Unmounted when dropped; [`Disk::finish`] says whether all was written.
#[derive(Debug)]
pub struct Disk {
    mount: OwnedFd,
    device: LoopDevice,
}

impl Disk {
    /// Mounts what is in `file`; writing to it writes to the file. A journal is replayed.
    ///
    /// # Errors
    ///
    /// It cannot be attached or mounted; the message has the kernel's words.
    pub fn mount(file: &File, system: FileSystem) -> anyhow::Result<Self> {
        if system == FileSystem::Btrfs {
            // The kernel remembers devices by file system, and of two states of one it takes the
            // later for the only one: btrfs-device(8), "scan".
            Run::new("btrfs").args(["device", "scan", "--forget"]).text()?;
        }
        let window = Window { offset: 0, len: 0, read_only: false };
        let device = LoopDevice::attach(file, window).context("cannot attach a disk")?;
        let mount = detached::mount(device.path(), system.name(), false)
            .with_context(|| format!("cannot mount {} on a disk", system.name()))?;
        Ok(Self { mount, device })
    }

    /// Mounts what is in the file `image`.
    ///
    /// # Errors
    ///
    /// As [`Disk::mount`].
    pub fn open(image: &Path, system: FileSystem) -> anyhow::Result<Self> {
        let file = File::options().read(true).write(true).open(image);
        let file = file.with_context(|| format!("cannot open {}", image.display()))?;
        Self::mount(&file, system).with_context(|| image.display().to_string())
    }

    /// Its root, by a name that children of the test can use too.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.mount.as_raw_fd()).into()
    }

    /// The block device.
    #[must_use]
    pub fn device(&self) -> &Path {
        self.device.path()
    }

    /// Writes everything out.
    ///
    /// # Errors
    ///
    /// As `syncfs(2)`.
    pub fn sync(&self) -> anyhow::Result<()> {
        let top = File::open(self.path()).context("cannot open the root of a disk")?;
        rustix::fs::syncfs(top).context("cannot sync a disk")
    }

    /// Writes everything out and unmounts.
    ///
    /// # Errors
    ///
    /// The last writes failed.
    pub fn finish(self) -> anyhow::Result<()> {
        self.sync()
    }
}

/// Waits until nothing uses `image` any more: then it is unmounted, whoever had mounted it.
///
/// # Errors
///
/// Something still uses it after three seconds.
pub fn wait_until_free(image: &Path) -> anyhow::Result<()> {
    for _ in 0..RELEASE_TRIES {
        let file = File::options().read(true).write(true).open(image)?;
        if lease::is_exclusive(&file)? {
            return Ok(());
        }
        drop(file);
        thread::sleep(RELEASE_INTERVAL);
    }
    ensure!(fs::exists(image)?, "{} is gone", image.display());
    anyhow::bail!("{} is still in use", image.display())
}
