//! Where the contents of files wait for debugfs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use vireo_sys::durable::sibling;

use crate::ImageError;

/// Where the contents of files wait for debugfs while `out` is made.
pub(crate) fn staging_dir(out: &Path) -> PathBuf {
    sibling(out, ".files.partial")
}

/// A directory of files that debugfs reads; removed when dropped.
pub(super) struct Staging {
    dir: PathBuf,
}

impl Staging {
    pub(super) fn new(out: &Path) -> Result<Self, ImageError> {
        // debugfs is told the whole name, wherever it runs.
        let dir = std::path::absolute(staging_dir(out))
            .map_err(|error| ImageError::io("find", out, error))?;
        let failed = |error: io::Error| ImageError::io("make", &dir, error);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&dir).map_err(failed)?;
        Ok(Self { dir })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Best effort: the next run to the same output begins by removing it.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
