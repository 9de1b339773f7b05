//! What the tests of the whole have in common: running Vireo's programs, fixture images, file
//! systems to write to, killing a program at a chosen moment.
//!
//! The tests themselves are in `tests/it`, named by what they need: `root_*` (loop devices,
//! mounts, ext4), `live_*` (a guest with real systemd), `vm_*` (a real kernel). A test whose host
//! lacks something fails and says what to install ([`require_host`]); none is skipped.
//!
//! # Not here
//!
//! How guests are made and booted, and the independent judges (`vireo-testkit`).

mod ext4;
mod interrupt;
mod mounts;
mod program;
mod random;
mod scene;
mod server;
mod snapshot;
mod world;

pub use ext4::Ext4;
pub use interrupt::{Ambush, Interrupted, Moment};
pub use mounts::Mounts;
pub use program::{Ran, start_vireo, vireo, vireo_repo};
pub use random::{Random, mutate_tree, write_tree};
pub use scene::{Scene, capture_args, permissive};
pub use server::Server;
pub use snapshot::Snapshot;
pub use world::{World, agent, shell, text_at};

use anyhow::bail;

/// Says whether this host can run the tests that need root.
///
/// # Errors
///
/// It cannot; the message says what to install or to do.
pub fn require_host() -> anyhow::Result<()> {
    let obstacles = vireo_testkit::host::obstacles();
    if !obstacles.is_empty() {
        bail!("this test cannot run here:\n{}", obstacles.join("\n"));
    }
    Ok(())
}
