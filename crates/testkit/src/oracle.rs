//! Independent judges: the kernel's file system, rsync, e2fsck. Nothing of Vireo.

use std::path::Path;

use crate::error::{ErrorKind, TestkitError, failed};
use crate::run::Run;

const COMPARE: &str = include_str!("../recipes/compare.sh");

/// What differs between the file systems in two images, as `rsync -aHAXic` lists it: content, links,
/// modes, owners, times of files, devices, ACLs and extended attributes. Empty if nothing does. The
/// file system of each begins at its offset. Needs root.
///
/// # Errors
///
/// One cannot be mounted or read.
pub fn differences(left: (&Path, u64), right: (&Path, u64)) -> Result<String, TestkitError> {
    let mounts = tempfile::tempdir().map_err(failed("make", "a temporary directory"))?;
    let at = ["left", "right"].map(|name| mounts.path().join(name));
    for path in &at {
        std::fs::create_dir(path).map_err(failed("make directory", path))?;
    }
    let run = Run::new("unshare").args(["-m", "--propagation", "private", "bash", "-c", COMPARE]);
    let run = run.arg("compare.sh").arg(left.0).arg(left.1.to_string());
    run.arg(right.0).arg(right.1.to_string()).args(&at).text()
}

/// Asserts that a full check of the ext4 file system at `offset` in `image` finds nothing to repair.
/// Does not write.
///
/// # Errors
///
/// What e2fsck found.
pub fn check_file_system(image: &Path, offset: u64) -> Result<(), TestkitError> {
    let device = format!("{}?offset={offset}", image.display());
    let output = Run::new("e2fsck").args(["-f", "-n", &device]).output()?;
    if output.success() {
        return Ok(());
    }
    let message = format!("{} is damaged\n{}", image.display(), output.tail());
    Err(TestkitError::new(ErrorKind::Failed, message))
}
