//! The file system's own checker, as an independent witness.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::partition::Partition;
use crate::{ErrorKind, ImageError};

/// Longest part of the checker's output in a message, in bytes.
const MAX_OUTPUT_LEN: usize = 800;

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
    let output = Command::new("e2fsck")
        .arg("-fn")
        .arg(target)
        .env("LC_ALL", "C")
        .env("PATH", search_path())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| ImageError::io("run e2fsck (package e2fsprogs) on", image, error))?;
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).replace('\n', "; ");
    text.push_str(&String::from_utf8_lossy(&output.stderr).replace('\n', "; "));
    let cut = (0..=MAX_OUTPUT_LEN.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(cut.unwrap_or(0));
    let message =
        format!("{}: e2fsck finds its {} damaged: {text}", image.display(), partition.describe());
    Err(ImageError::new(ErrorKind::Damaged, message))
}

/// Administrators' shells do not always have the system programs on their path.
fn search_path() -> &'static str {
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}
