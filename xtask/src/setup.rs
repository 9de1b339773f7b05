//! `cargo xtask setup`: what the host needs, from the distribution.

use anyhow::Context as _;
use vireo_testkit::host;

/// Installs what is missing; does nothing, quickly, if nothing is.
pub(crate) fn run() -> anyhow::Result<()> {
    let missing = host::missing();
    if !missing.is_empty() {
        eprintln!("installing {}", missing.join(" "));
        host::install(&missing)
            .with_context(|| format!("cannot install: apt-get install {}", missing.join(" ")))?;
    }
    let obstacles = host::obstacles();
    if obstacles.is_empty() {
        return Ok(());
    }
    anyhow::bail!("this machine cannot run guests:\n  {}", obstacles.join("\n  "))
}
