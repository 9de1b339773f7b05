//! The file systems' own checkers, as independent witnesses.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use vireo_sys::loopdev::{LoopDevice, Window};

use crate::layout::Volume;
use crate::partition::Partition;
use crate::probe::FileSystemKind;
use crate::{ErrorKind, ImageError};

/// Longest part of a program's output in a message, in bytes.
const MAX_OUTPUT_LEN: usize = 800;

/// Most bytes of a program's output that are kept.
const MAX_SAID_LEN: u64 = 1 << 20;

/// How e2fsck ends when it has repaired everything (e2fsck(8)).
const REPAIRED: i32 = 1;

/// What e2fsck may repair after debugfs: numbers that it counts anew itself.
const COUNTS: [&str; 3] =
    ["Free blocks count wrong", "Free inodes count wrong", "Directories count wrong"];

/// And this, if all that follows has a minus: blocks that are marked as used and that nobody uses.
const FREED: &str = "Block bitmap differences:";

/// Has the checker of its kind look over every one of `volumes` of the raw image `image`:
/// `e2fsck -fn`, `xfs_repair -n`, `btrfs check --readonly`, `fsck.fat -n`. Nothing is written.
///
/// # Errors
///
/// `Damaged` with the checker's words if one finds anything; `Io` if it cannot be run, with the
/// package that it is in; `NoRoot` for all but ext file systems, which are attached for it.
pub fn fsck_all(image: &Path, volumes: &[Volume]) -> Result<(), ImageError> {
    fsck_all_named((image, image), volumes)
}

/// As [`fsck_all`], of an image that messages call by the second name.
pub(crate) fn fsck_all_named(
    (image, name): (&Path, &Path),
    volumes: &[Volume],
) -> Result<(), ImageError> {
    let mut done: Vec<&Partition> = Vec::new();
    for volume in volumes {
        // Several subvolumes are one file system.
        if done.contains(&&volume.partition) {
            continue;
        }
        done.push(&volume.partition);
        match volume.kind {
            FileSystemKind::Ext => fsck_named((image, name), &volume.partition)?,
            FileSystemKind::Xfs => {
                check_attached((image, name), volume, &["xfs_repair", "-n"], "xfsprogs")?
            }
            FileSystemKind::Btrfs => {
                let command = ["btrfs", "check", "--readonly"];
                check_attached((image, name), volume, &command, "btrfs-progs")?;
            }
            FileSystemKind::Vfat => {
                check_attached((image, name), volume, &["fsck.fat", "-n"], "dosfstools")?
            }
        }
    }
    Ok(())
}

/// For checkers that know no offset within a file: program and arguments, and its package.
fn check_attached(
    (image, name): (&Path, &Path),
    volume: &Volume,
    command: &[&str],
    package: &str,
) -> Result<(), ImageError> {
    let failed = |error| ImageError::io("attach", name, error);
    let file = File::open(image).map_err(failed)?;
    let Partition { offset, len, .. } = volume.partition;
    let device =
        LoopDevice::attach(&file, Window { offset, len, read_only: true }).map_err(failed)?;
    let program = command.first().copied().unwrap_or_default();
    judge(&run_on(device.path(), name, command, package)?, name, volume, program)
}

/// Has fsck.fat look over the FAT file system that `volume` of `image` is, in a copy of it at `copy`: the checker knows
/// no offset within a file, and attaching takes rights.
pub(crate) fn fsck_copy(image: &Path, volume: &Volume, copy: &Path) -> Result<(), ImageError> {
    let Partition { offset, len, .. } = volume.partition;
    let write = || -> io::Result<()> {
        let mut from = File::open(image)?;
        from.seek(SeekFrom::Start(offset))?;
        io::copy(&mut from.take(len), &mut File::create(copy)?).map(drop)
    };
    write().map_err(|error| ImageError::io("write", copy, error))?;
    let output = run_on(copy, image, &["fsck.fat", "-n"], "dosfstools")?;
    judge(&output, image, volume, "fsck.fat")
}

fn judge(output: &Output, image: &Path, volume: &Volume, program: &str) -> Result<(), ImageError> {
    if output.status.success() {
        return Ok(());
    }
    let text = said(&output.stdout, image) + &said(&output.stderr, image);
    let (image, what, text) = (image.display(), volume.describe(), excerpt(&text));
    let message = format!("{image}: {program} finds its {what} damaged: {text}");
    Err(ImageError::new(ErrorKind::Damaged, message))
}

/// Runs a program with its arguments, of `package`, on the device that `image` is attached as.
pub(crate) fn run_on(
    device: &Path,
    image: &Path,
    command: &[&str],
    package: &str,
) -> Result<Output, ImageError> {
    let program = command.first().copied().unwrap_or_default();
    let step = format!("run {program} (package {package}) on");
    let mut found = Command::new(program);
    found
        .args(command.iter().skip(1))
        .arg(device)
        .env("LC_ALL", "C")
        .env("PATH", search_path())
        .stdin(Stdio::null());
    output(&mut found).map_err(|error| ImageError::io(&step, image, error))
}

/// Has `e2fsck -fn` look over the file system in `partition` of `image`; it writes nothing.
///
/// # Errors
///
/// `Damaged` with the checker's words if it finds anything; `Io` if it cannot be run (package
/// e2fsprogs).
pub fn fsck(image: &Path, partition: &Partition) -> Result<(), ImageError> {
    fsck_named((image, image), partition)
}

/// As [`fsck`], of an image that messages call `name`.
fn fsck_named((image, name): (&Path, &Path), partition: &Partition) -> Result<(), ImageError> {
    let output = check(image, partition, "-fn")?;
    if output.status.success() {
        return Ok(());
    }
    Err(damaged(name, "finds", partition, "damaged", &output))
}

/// Has `e2fsck -fp` play back the journal of the ext file system that `volume` of `image` is, which messages
/// call `name`, and repair what can be repaired without asking. It writes into `image`; a crash leaves
/// some of it repaired.
///
/// # Errors
///
/// `Damaged` with the checker's words if somebody has to be asked; `Io` if it cannot be run; `NoRoot` for
/// the journal of a partition, which is attached for it.
pub(crate) fn repair((image, name): (&Path, &Path), volume: &Volume) -> Result<(), ImageError> {
    let partition = &volume.partition;
    let Partition { offset, len, .. } = *partition;
    let has_journal = volume.fs.superblock.as_ref().is_some_and(|found| found.needs_recovery);
    // Once it has played a journal back, e2fsck 1.47 looks for the file system at the file's beginning.
    let output = if has_journal && offset > 0 {
        let failed = |error| ImageError::io("attach, to play a journal back,", name, error);
        let file = File::options().read(true).write(true).open(image).map_err(failed)?;
        let device =
            LoopDevice::attach(&file, Window { offset, len, read_only: false }).map_err(failed)?;
        run_on(device.path(), name, &["e2fsck", "-fp"], "e2fsprogs")?
    } else {
        check(image, partition, "-fp")?
    };
    if matches!(output.status.code(), Some(0 | REPAIRED)) {
        return Ok(());
    }
    let error = damaged(name, "cannot repair", partition, "unasked", &output);
    Err(error.advising("repair a copy by hand (`e2fsck -f`)"))
}

/// What e2fsck says of a partition of the image that is called `name`.
fn damaged(
    name: &Path,
    does: &str,
    partition: &Partition,
    what: &str,
    output: &Output,
) -> ImageError {
    let text = said(&output.stdout, name) + &said(&output.stderr, name);
    let (name, partition) = (name.display(), partition.describe());
    let message = format!("{name}: e2fsck {does} its {partition} {what}: {}", excerpt(&text));
    ImageError::new(ErrorKind::Damaged, message)
}

/// Has `e2fsck -fy` free blocks that nobody uses and count anew what is free.
///
/// # Errors
///
/// `Damaged` if it repaired anything else, or not everything: the image is not to be used then.
pub(crate) fn mend(image: &Path, partition: &Partition) -> Result<(), ImageError> {
    let output = check(image, partition, "-fy")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let code = output.status.code();
    if is_harmless(&text) && (code == Some(0) || code == Some(REPAIRED)) {
        return Ok(());
    }
    let message = format!(
        "{}: e2fsck has to repair more than counts in its {}: {}",
        image.display(),
        partition.describe(),
        excerpt(&said(text.as_bytes(), image))
    );
    Err(ImageError::new(ErrorKind::Damaged, message))
}

/// Whether all that e2fsck repaired is what debugfs may leave. Every repair is a question, perhaps on
/// a line of its own, answered with yes.
fn is_harmless(text: &str) -> bool {
    let mut finding = String::new();
    for line in text.lines().filter(|line| !line.starts_with("Pass ")) {
        finding.push_str(line);
        finding.push(' ');
        if !line.trim_end().ends_with("? yes") {
            continue;
        }
        let blocks = finding.split_once(FREED).map(|(_, blocks)| blocks.replace("Fix? yes", ""));
        let freed = blocks
            .is_some_and(|blocks| blocks.split_whitespace().all(|block| block.starts_with('-')));
        if !freed && !COUNTS.iter().any(|count| finding.contains(count)) {
            return false;
        }
        finding.clear();
    }
    true
}

fn check(image: &Path, partition: &Partition, how: &str) -> Result<Output, ImageError> {
    let failed = |error| ImageError::io("run e2fsck (package e2fsprogs) on", image, error);
    let file = File::options().read(true).write(how != "-fn").open(image).map_err(failed)?;
    let mut command = Command::new("e2fsck");
    command
        .arg(how)
        .arg(target_of(partition))
        .env("LC_ALL", "C")
        .env("PATH", search_path())
        .stdin(Stdio::from(file));
    output(&mut command).map_err(failed)
}

/// Runs it and keeps the beginning of what it says. An image can have it say gigabytes: who says more than
/// [`MAX_SAID_LEN`] finds nobody listening, and ends by that (`SIGPIPE`).
pub(crate) fn output(command: &mut Command) -> io::Result<Output> {
    output_to(command, Stdio::piped())
}

/// The same, of a program whose standard output goes to `stdout`.
pub(crate) fn output_to(command: &mut Command, stdout: Stdio) -> io::Result<Output> {
    let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = thread::scope(|scope| {
        let stderr = thread::Builder::new().spawn_scoped(scope, || beginning(stderr))?;
        io::Result::Ok((beginning(stdout), stderr.join().unwrap_or_default()))
    })?;
    Ok(Output { status: child.wait()?, stdout, stderr })
}

/// What comes from a pipe, as far as it is kept; the pipe is closed then.
fn beginning(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What cannot be read is missing, as if it had not been said.
        drop(pipe.take(MAX_SAID_LEN).read_to_end(&mut bytes));
    }
    bytes
}

/// The file system in `partition` of the image that is a program's standard input, in the notation
/// of libext2fs: so the image's own name, in which a question mark would mean something, does not
/// matter.
pub(crate) fn target_of(partition: &Partition) -> OsString {
    let mut target = OsString::from(STDIN);
    if partition.offset > 0 {
        target.push(format!("?offset={}", partition.offset));
    }
    target
}

const STDIN: &str = "/proc/self/fd/0";

pub(crate) fn said(output: &[u8], image: &Path) -> String {
    let text = String::from_utf8_lossy(output).replace('\n', "; ");
    text.replace(STDIN, &image.display().to_string())
}

/// The beginning of `text`, for a message.
pub(crate) fn excerpt(text: &str) -> &str {
    let cut = (0..=MAX_OUTPUT_LEN.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..cut.unwrap_or(0)]
}

/// Administrators' shells do not always have the system programs on their path.
pub(crate) fn search_path() -> &'static str {
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_says_too_much_is_not_kept_and_not_waited_for() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            output(&mut command).expect("it runs")
        };
        let said = shell("echo one; echo two >&2; exit 3");
        assert_eq!(
            (said.status.code(), &*said.stdout, &*said.stderr),
            (Some(3), &b"one\n"[..], &b"two\n"[..])
        );
        let mut long = Command::new("head");
        let said = output_to(long.args(["-c", "3000000", "/dev/zero"]), Stdio::null());
        assert!(said.expect("it runs").status.success(), "nobody reads it, nobody counts it");
        for script in ["exec cat /dev/zero", "exec cat /dev/zero >&2"] {
            let said = shell(script);
            assert!(!said.status.success(), "{script}");
            assert_eq!((said.stdout.len() + said.stderr.len()) as u64, MAX_SAID_LEN, "{script}");
        }
    }

    #[test]
    fn only_counts_and_unused_blocks_are_harmless() {
        let pass = "Pass 5: Checking group summary information\n";
        let counted = "Free blocks count wrong for group #0 (4694, counted=4695).\nFix? yes\n\n";
        let freed = "Block bitmap differences:  -1427 -(1430--1433)\nFix? yes\n\n";
        assert!(is_harmless(pass));
        assert!(is_harmless(&format!(
            "{pass}{freed}{counted}Free blocks count wrong (1, counted=2).\nFix? yes\n"
        )));
        let used = "Block bitmap differences:  -1427 +1500\nFix? yes\n\n";
        assert!(!is_harmless(&format!("{pass}{used}{counted}")));
        let links = "Inode 414 ref count is 3, should be 4.  Fix? yes\n\n";
        assert!(!is_harmless(&format!(
            "Pass 4: Checking reference counts\n{links}{pass}{counted}"
        )));
    }
}
