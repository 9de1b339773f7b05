//! The guest's root file system, from the distribution's packages.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::cache::{Cache, Key};
use crate::error::{TestkitError, failed};
use crate::run::Run;
use crate::sources::{SUITE, Sources};

const ROOTFS: &str = include_str!("../recipes/rootfs.sh");
const CUSTOMIZE: &str = include_str!("../recipes/customize.sh");

/// Time to fetch and unpack the packages; about a minute is usual.
const DEADLINE: Duration = Duration::from_secs(900);

/// The guest's root as a tar archive: Debian 12 of the `main` suite alone, with systemd, D-Bus, nginx
/// and sshd, set up to boot quickly and always alike. Made anew when its recipe changes and every
/// week. Cost: about a minute and 210 MB the first time, nothing later.
///
/// # Errors
///
/// The host's package sources do not name the release, or making it failed.
pub fn rootfs(cache: &Cache) -> Result<PathBuf, TestkitError> {
    rootfs_with(cache, "rootfs", &[])
}

/// The same with more packages, as the cache's entry `name`.
pub(crate) fn rootfs_with(
    cache: &Cache,
    name: &str,
    more: &[&str],
) -> Result<PathBuf, TestkitError> {
    let sources = Sources::of_host()?;
    let more = more.join(",");
    let key = Key::of(ROOTFS).and(CUSTOMIZE).and(SUITE).and(&sources.main).and(&more).and_week();
    cache.entry(name, "tar", &key, |out| {
        let packages = cache.subdir("debs")?;
        let recipes = tempfile::tempdir().map_err(failed("make", "a temporary directory"))?;
        let customize = recipes.path().join("customize.sh");
        fs::write(&customize, CUSTOMIZE).map_err(failed("write", &customize))?;
        let run = Run::script("rootfs.sh", ROOTFS).arg(out).arg(packages);
        let run = run.args([&sources.main, SUITE]).arg(recipes.path()).arg(&more);
        run.deadline(DEADLINE).text()?;
        Ok(())
    })
}
