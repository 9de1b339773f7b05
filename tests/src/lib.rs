//! What the tests of the whole have in common: running Vireo's programs, fixture images, file
//! systems to write to, a guest with many services ([`zoo`]), and faults: killing a program at a
//! chosen moment or at every one that counts
//! ([`Moment`], [`kill_everywhere`]), errors in place of its calls ([`fail_everywhere`]), cutting the
//! power of its disk ([`Recording`]).
//!
//! The tests themselves are in `tests/it`, named by what they need: `root_*` (loop devices,
//! mounts, ext4), `live_*` (a guest with real systemd), `vm_*` (a real kernel). A test whose host
//! lacks something fails and says what to install ([`require_host`]); none is skipped.
//!
//! # Not here
//!
//! How guests are made and booted, and the independent judges (`vireo-testkit`).

mod disk;
mod errors;
mod ext4;
mod interrupt;
mod kills;
mod mounts;
mod package;
mod power;
mod program;
mod random;
mod recorded;
mod recovery;
mod scene;
mod scratch;
mod server;
mod snapshot;
mod update;
mod world;
pub mod zoo;

pub use disk::{Disk, FileSystem, wait_until_free};
pub use errors::{Errors, fail_everywhere};
pub use ext4::Ext4;
pub use interrupt::{Ambush, Interrupted, Moment};
pub use kills::{Kills, kill_everywhere};
pub use mounts::Mounts;
pub use power::{Neighbour, Place, Recording, Step, Tally};
pub use program::{Ran, measured, start_vireo, vireo, vireo_repo};
pub use random::{mutate_tree, write_tree};
pub use recorded::{record_dpkg, recover_dpkg, recover_nothing, recover_vireo};
pub use recovery::{recover_tree, recovers_to, tree_digest};
pub use scene::{Scene, capture_args, permissive};
pub use scratch::scratch;
pub use server::Server;
pub use snapshot::Snapshot;
pub use update::Update;
pub use vireo_testkit::Random;
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
