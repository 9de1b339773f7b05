//! Small trees and images for tests of reading, capturing and patching.

use std::path::Path;

use crate::error::{TestkitError, failed};
use crate::run::Run;

const FIXTURE: &str = include_str!("../recipes/fixture.sh");
const EDIT: &str = include_str!("../recipes/edit.sh");

/// Bytes of a fixture's image.
pub const IMAGE_BYTES: u64 = 32 << 20;

/// Writes into the empty directory `root` a tree with every kind of node: files (empty, sparse, names
/// that are not UTF-8), directories, symbolic and hard links, devices, a fifo, a socket; owners,
/// modes, times, capabilities, ACLs, extended attributes of every name space. Needs root.
///
/// # Errors
///
/// What failed; a file system without extended attributes is not enough.
pub fn write_base(root: &Path) -> Result<(), TestkitError> {
    Run::script("fixture.sh", FIXTURE).arg(root).arg("base").text().map(drop)
}

/// Changes a tree of [`write_base`] in every respect: content, metadata, links, moves, additions,
/// removals, files that become directories and the reverse.
///
/// # Errors
///
/// What failed.
pub fn change_to_target(root: &Path) -> Result<(), TestkitError> {
    Run::script("fixture.sh", FIXTURE).arg(root).arg("target").text().map(drop)
}

/// Makes an empty ext4 image of `bytes`, unpartitioned.
///
/// # Errors
///
/// The file exists already or cannot be made.
pub fn empty_image(image: &Path, bytes: u64) -> Result<(), TestkitError> {
    let file = std::fs::File::create_new(image).map_err(failed("create", image))?;
    file.set_len(bytes).map_err(failed("extend", image))?;
    Run::new("mke2fs").args(["-q", "-t", "ext4", "-m", "0"]).arg(image).text().map(drop)
}

/// The base of the fixture as an image; the target is made from a copy with [`edit_to_target`].
///
/// # Errors
///
/// What failed.
pub fn base_image(image: &Path) -> Result<(), TestkitError> {
    empty_image(image, IMAGE_BYTES)?;
    edit(image, 0, FIXTURE, &["base"])
}

/// Makes a copy of [`base_image`] the target.
///
/// # Errors
///
/// What failed.
pub fn edit_to_target(image: &Path) -> Result<(), TestkitError> {
    edit(image, 0, FIXTURE, &["target"])
}

/// Mounts `image`, whose file system begins at `offset`, and runs `script` (bash) on it: the mount
/// point is `$1`, `arguments` follow. The mount is private and gone afterwards. Needs root.
///
/// # Errors
///
/// Mounting or the script failed.
pub fn edit(
    image: &Path,
    offset: u64,
    script: &str,
    arguments: &[&str],
) -> Result<(), TestkitError> {
    let mount = tempfile::tempdir().map_err(failed("make", "a temporary directory"))?;
    let run =
        Run::new("unshare").args(["-m", "--propagation", "private", "bash", "-c", EDIT, "edit.sh"]);
    let run = run.arg(image).arg(offset.to_string()).arg(mount.path()).arg(script);
    run.args(arguments).text().map(drop)
}
