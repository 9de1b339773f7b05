//! `cargo xtask setup`: what the host needs, from the distribution.

use vireo_testkit::host;

/// Installs what is missing; does nothing, quickly, if nothing is.
pub(crate) fn run() -> anyhow::Result<()> {
    host::install(host::PACKAGES, |what| eprintln!("{what}"))?;
    let obstacles = host::obstacles();
    if obstacles.is_empty() {
        return Ok(());
    }
    anyhow::bail!("this machine cannot run guests:\n  {}", obstacles.join("\n  "))
}
