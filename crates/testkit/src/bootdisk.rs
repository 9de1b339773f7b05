//! Whole disks that boot: firmware starts the disk's own boot loader, and that a kernel of the distribution.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cache::{Cache, Key};
use crate::error::{TestkitError, failed};
use crate::image::clone_image;
use crate::rootfs::rootfs_with;
use crate::run::Run;
use crate::sources::{SUITE, Sources};
use crate::web;

const DISK: &str = include_str!("../recipes/boot-disk.sh");
const KERNEL: &str = include_str!("../recipes/boot-kernel.sh");
const SYSTEMD: &str = include_str!("../recipes/boot-systemd.sh");
const BIOS: &str = include_str!("../recipes/boot-bios.sh");
const PACKAGE: &str = include_str!("../recipes/kernel-package.sh");

/// What such a machine has beside the guest's packages: what finds partitions by their UUIDs.
const MORE_PACKAGES: &[&str] = &["udev"];

/// MiB of the EFI system partition, of `/boot` and of the root, which lie behind each other.
const SIZES_MIB: [u64; 3] = [16, 64, 1024];

/// MiB of the EFI system partition that has the kernels.
const SYSTEMD_ESP_MIB: u64 = 80;

/// Bytes of a MiB; the first partition begins after one.
const MIB: u64 = 1 << 20;

/// Time to fetch a kernel's package, or to make a disk; some seconds are usual.
const DEADLINE: Duration = Duration::from_secs(600);

/// Two states of one disk: the target has a newer kernel, which its boot loader starts, with its modules,
/// initramfs and menu entry, and the next release of the web content ([`web`]).
///
/// GUID partition table, GRUB on an EFI system partition, `/boot` and root on ext4, mounted by `/etc/fstab`.
/// A machine started from one tells on its serial console what it runs and shuts down: see
/// [`boot`](crate::boot).
#[derive(Clone, Debug)]
pub struct BootDisks {
    /// The base. Shared: not to be written to.
    pub base: BootDisk,
    /// The target. Shared likewise.
    pub target: BootDisk,
}

/// A disk and what it starts.
#[derive(Clone, Debug)]
pub struct BootDisk {
    /// The image.
    pub image: PathBuf,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
}

impl BootDisks {
    /// Where the EFI system partition lies in both: offset and length, in bytes.
    pub const ESP: (u64, u64) = part(0);

    /// Where the file system of `/boot` lies in both, likewise.
    pub const BOOT: (u64, u64) = part(1);

    /// Where the root's file system lies in both, likewise.
    pub const ROOT: (u64, u64) = part(2);

    /// The disks, made or from the cache. Cost: about two minutes and 90 MB the first time, nothing later.
    ///
    /// # Errors
    ///
    /// The host or its package sources lack something, or making them failed.
    pub fn build(cache: &Cache) -> Result<Self, TestkitError> {
        let archive = rootfs_with(cache, "boot-rootfs", MORE_PACKAGES)?;
        let key = Key::of(DISK).and(include_str!("web.rs")).and(&archive.to_string_lossy());
        let key = key.and(&format!("{SIZES_MIB:?}"));
        let empty = cache.entry("boot-empty", "img", &key, |out| make(cache, &archive, out))?;
        let base = with_kernel(cache, "base", &empty, None)?;
        let content = tempfile::tempdir().map_err(failed("make", "a temporary directory"))?;
        let target = with_kernel(cache, "target", &base.image, Some(content.path()))?;
        Ok(Self { base, target })
    }

    /// The same two states, started by systemd-boot: kernels, initramfs and entries lie on the EFI system partition,
    /// mounted at `/efi`. The target has the base's kernel too, as a way back. Cost: some seconds the first time,
    /// beside [`BootDisks::build`]'s.
    ///
    /// # Errors
    ///
    /// As [`BootDisks::build`].
    pub fn build_systemd(cache: &Cache) -> Result<Self, TestkitError> {
        let Self { base, target } = Self::build(cache)?;
        let kernels = [target.kernel.as_str(), &base.kernel];
        Ok(Self {
            base: with_systemd_boot(cache, "base", &base, &kernels[1..])?,
            target: with_systemd_boot(cache, "target", &target, &kernels)?,
        })
    }

    /// The same two states as qcow2 images that a BIOS starts: MBR partition table, GRUB in the first sectors, `/boot`
    /// and root on ext4. Cost: some seconds the first time, beside [`BootDisks::build`]'s.
    ///
    /// # Errors
    ///
    /// As [`BootDisks::build`].
    pub fn build_bios(cache: &Cache) -> Result<Self, TestkitError> {
        let Self { base, target } = Self::build(cache)?;
        Ok(Self {
            base: for_bios(cache, "base", &base)?,
            target: for_bios(cache, "target", &target)?,
        })
    }
}

/// Offset and length of a partition, in bytes.
const fn part(index: usize) -> (u64, u64) {
    let (mut offset, mut before) = (MIB, 0);
    while before < index {
        offset += SIZES_MIB[before] * MIB;
        before += 1;
    }
    (offset, SIZES_MIB[index] * MIB)
}

/// The disk without a kernel.
fn make(cache: &Cache, archive: &Path, out: &Path) -> Result<(), TestkitError> {
    let work =
        tempfile::tempdir_in(cache.dir()).map_err(failed("make a directory in", cache.dir()))?;
    let content = work.path().join("web");
    web::write_base(&content)?;
    let run = Run::script("boot-disk.sh", DISK).arg(archive).arg(out).arg(work.path());
    let run = run.arg(content).arg(SIZES_MIB.map(|size| size.to_string()).join(","));
    run.deadline(DEADLINE).text().map(drop)
}

/// The disk `from` with the kernel of `state`, which is `base` or `target`; with a directory for it also with the
/// target's web content.
fn with_kernel(
    cache: &Cache,
    state: &str,
    from: &Path,
    content: Option<&Path>,
) -> Result<BootDisk, TestkitError> {
    let package = kernel_package(cache, state)?;
    let name = Run::new("dpkg-deb").arg("-f").args([package.as_path(), Path::new("Package")]);
    let name = name.text()?;
    let kernel = name.trim().trim_start_matches("linux-image-").to_owned();
    let key = Key::of(KERNEL).and(&package.to_string_lossy()).and(&from.to_string_lossy());
    let image = cache.entry(&format!("boot-{state}"), "img", &key, |out| {
        clone_image(from, out)?;
        let overlay = content.map(write_overlay).transpose()?;
        install_kernel(out, &package, overlay.as_ref().map(|paths| paths.as_slice()))
    })?;
    Ok(BootDisk { image, kernel })
}

/// The disk `from`, started by systemd-boot, with these `kernels`.
fn with_systemd_boot(
    cache: &Cache,
    state: &str,
    from: &BootDisk,
    kernels: &[&str],
) -> Result<BootDisk, TestkitError> {
    let key = Key::of(SYSTEMD).and(&from.image.to_string_lossy());
    let image = cache.entry(&format!("boot-systemd-{state}"), "img", &key, |out| {
        let work = tempfile::tempdir_in(cache.dir());
        let work = work.map_err(failed("make a directory in", cache.dir()))?;
        let run =
            Run::script("boot-systemd.sh", SYSTEMD).arg(&from.image).arg(out).arg(work.path());
        let run = run.args([window(part(1)), window(part(2)), SYSTEMD_ESP_MIB.to_string()]);
        run.args(kernels).deadline(DEADLINE).text().map(drop)
    })?;
    Ok(BootDisk { image, kernel: from.kernel.clone() })
}

/// The disk `from` as one that a BIOS starts.
fn for_bios(cache: &Cache, state: &str, from: &BootDisk) -> Result<BootDisk, TestkitError> {
    let key = Key::of(BIOS).and(&from.image.to_string_lossy());
    let image = cache.entry(&format!("boot-bios-{state}"), "qcow2", &key, |out| {
        let work = tempfile::tempdir_in(cache.dir());
        let work = work.map_err(failed("make a directory in", cache.dir()))?;
        let run = Run::script("boot-bios.sh", BIOS).arg(&from.image).arg(out).arg(work.path());
        let run = run.args([window(part(1)), window(part(2))]);
        run.deadline(DEADLINE).text().map(drop)
    })?;
    Ok(BootDisk { image, kernel: from.kernel.clone() })
}

/// As recipes are told it.
fn window((offset, len): (u64, u64)) -> String {
    format!("{offset},{len}")
}

fn kernel_package(cache: &Cache, state: &str) -> Result<PathBuf, TestkitError> {
    let Sources { main, security, .. } = Sources::of_host()?;
    let key = Key::of(PACKAGE).and(state).and(SUITE).and(&main).and(&security).and_week();
    cache.entry(&format!("kernel-{state}"), "deb", &key, |out| {
        // Of its own, as two processes may be at it.
        let lists = cache.subdir(&format!("kernels/{state}"))?;
        let run = Run::script("kernel-package.sh", PACKAGE).arg(state).arg(out).arg(lists);
        run.args([&main, &security, SUITE]).deadline(DEADLINE).text().map(drop)
    })
}

/// Writes what is new and a list of what is gone into `dir`; gives both paths.
fn write_overlay(dir: &Path) -> Result<[PathBuf; 2], TestkitError> {
    let (overlay, removed) = (dir.join("overlay"), dir.join("removed"));
    let paths = web::write_target(&overlay)?;
    fs::write(&removed, paths.join("\n") + "\n").map_err(failed("write", &removed))?;
    Ok([overlay, removed])
}

fn install_kernel(
    disk: &Path,
    package: &Path,
    overlay: Option<&[PathBuf]>,
) -> Result<(), TestkitError> {
    let mount = tempfile::tempdir().map_err(failed("make", "a temporary directory"))?;
    let run = Run::new("unshare").args(["-m", "--propagation", "private", "bash", "-c", KERNEL]);
    let run = run.arg("boot-kernel.sh").arg(disk).arg(mount.path());
    let run = run.args([window(part(1)), window(part(2))]).arg(package);
    run.args(overlay.unwrap_or_default()).deadline(DEADLINE).text().map(drop)
}
