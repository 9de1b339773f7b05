//! The file systems' own checkers, as independent witnesses.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use vireo_sys::loopdev::{LoopDevice, Window};

use crate::layout::Volume;
use crate::partition::Partition;
use crate::probe::FileSystemKind;
use crate::{ErrorKind, ImageError};

/// Longest part of the checker's output in a message, in bytes.
const MAX_OUTPUT_LEN: usize = 800;

/// Has the checker of its kind look over every one of `volumes` of the raw image `image`:
/// `e2fsck -fn`, `xfs_repair -n`, `btrfs check --readonly`. Nothing is written.
///
/// # Errors
///
/// `Damaged` with the checker's words if one finds anything; `Io` if it cannot be run, with the
/// package that it is in; `NoRoot` for xfs and btrfs in a partition, which is attached for it.
pub fn check(image: &Path, volumes: &[Volume]) -> Result<(), ImageError> {
    let mut done: Vec<&Partition> = Vec::new();
    for volume in volumes {
        // Several subvolumes are one file system.
        if done.contains(&&volume.partition) {
            continue;
        }
        done.push(&volume.partition);
        match volume.kind {
            FileSystemKind::Ext => fsck(image, &volume.partition)?,
            FileSystemKind::Xfs => {
                check_attached(image, volume, "xfs_repair", &["-n"], "xfsprogs")?;
            }
            FileSystemKind::Btrfs => {
                check_attached(image, volume, "btrfs", &["check", "--readonly"], "btrfs-progs")?;
            }
            FileSystemKind::Vfat => {}
        }
    }
    Ok(())
}

/// Has `e2fsck -fn` look over the file system in `partition` of `image`; it writes nothing.
///
/// # Errors
///
/// `Damaged` with the checker's words if it finds anything; `Io` if it cannot be run (package
/// e2fsprogs).
pub fn fsck(image: &Path, partition: &Partition) -> Result<(), ImageError> {
    let mut target = image.as_os_str().to_owned();
    if partition.offset > 0 {
        // libext2fs's own notation for a file system inside a file.
        target.push(format!("?offset={}", partition.offset));
    }
    let mut command = Command::new("e2fsck");
    command.arg("-fn").arg(target);
    run(command, image, &partition.describe(), "e2fsck", "e2fsprogs")
}

/// For checkers that know no offset within a file.
fn check_attached(
    image: &Path,
    volume: &Volume,
    program: &str,
    args: &[&str],
    package: &str,
) -> Result<(), ImageError> {
    let failed = |error| ImageError::io("attach", image, error);
    let file = File::open(image).map_err(failed)?;
    let Partition { offset, len, .. } = volume.partition;
    let device =
        LoopDevice::attach(&file, Window { offset, len, read_only: true }).map_err(failed)?;
    let mut command = Command::new(program);
    command.args(args).arg(device.path());
    run(command, image, &volume.describe(), program, package)
}

fn run(
    mut command: Command,
    image: &Path,
    what: &str,
    program: &str,
    package: &str,
) -> Result<(), ImageError> {
    let output = command
        .env("LC_ALL", "C")
        .env("PATH", search_path())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            ImageError::io(&format!("run {program} (package {package}) on"), image, error)
        })?;
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).replace('\n', "; ");
    text.push_str(&String::from_utf8_lossy(&output.stderr).replace('\n', "; "));
    let cut = (0..=MAX_OUTPUT_LEN.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(cut.unwrap_or(0));
    let message = format!("{}: {program} finds its {what} damaged: {text}", image.display());
    Err(ImageError::new(ErrorKind::Damaged, message))
}

/// Administrators' shells do not always have the system programs on their path.
pub(crate) fn search_path() -> &'static str {
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}
