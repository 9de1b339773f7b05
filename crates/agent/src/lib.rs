//! The agent inside a machine: takes an update's files over, then has exactly those services
//! reload or restart that need it, and proves that they did.
//!
//! One update is: fetch a bundle → verify its signature → stage it beside the live files →
//! gather facts → plan by the machine's [policy](load_policy) → [check](checks) new configuration →
//! commit → [activate] → prove → receipt → report → confirm. [`Agent`] does all of it on one
//! machine, [`client`] speaks with a repository.
//!
//! # Guarantees
//!
//! - Files change wholly or not at all, whatever interrupts (`vireo-tree`). What was still to be
//!   activated is on disk before the files change, so an interrupted activation is resumed.
//! - No unit is reloaded or restarted that was not running or that the policy holds. What starts a
//!   unit otherwise is said at [`Services`]; a unit ends for good only if the update removes it.
//! - Configuration that its own program refuses is not committed. Programs look at a copy of the
//!   machine's files, in which nothing that they write stays.
//! - A reload that is not proven, by the inodes that the unit's processes hold, by files that it
//!   must have read and by what it answers, is followed by one restart; what is not proven after
//!   that is *pending*, and said so. No exit status is believed alone.
//! - If a unit that was active before is not well after an update, the update is undone and the
//!   unit runs again as before, unless the policy says otherwise.
//! - An update that could cut the machine off is undone by a timer of the service manager unless it
//!   is [confirmed](guard) over a new connection; where no timer can be set, what could do that is
//!   held.
//! - An update for another base, by an unknown signer, beyond what its signer permitted, or against
//!   local edits that the policy does not settle changes nothing.
//! - What an update replaced is kept, inode and all, so that it can be undone.
//!
//! # Not here
//!
//! What needs which action (`vireo-classify`), how files are replaced (`vireo-tree`), the
//! network protocol (`vireo-wire`).
//!
//! # Example
//!
//! A machine in memory, on which a changed configuration is activated:
//!
//! ```
//! use std::collections::BTreeSet;
//! use vireo_agent::activate::{Patience, activate};
//! use vireo_agent::testing::FakeMachine;
//! use vireo_classify::{ChangedFile, Facts, Policy, UnitFacts, plan};
//! use vireo_model::{ChangeKind, ImagePath};
//!
//! let nginx = UnitFacts { can_reload: true, ..UnitFacts::running("nginx.service") };
//! let facts = Facts::new().with_unit(nginx);
//! let path = ImagePath::parse(b"/etc/nginx/nginx.conf")?;
//! let changes = [ChangedFile::new(path, ChangeKind::Modified)];
//! let plan = plan(&changes, &facts, &Policy::default());
//!
//! let machine = FakeMachine::new(facts.clone());
//! let replaced = BTreeSet::new();
//! let done = activate(&plan, &replaced, &facts, &machine, &machine, Patience::default())?;
//! assert_eq!(machine.calls(), ["reload nginx.service"]);
//! assert!(done.pending.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod activate;
mod beneath;
pub mod checks;
pub mod client;
mod error;
pub mod guard;
mod host;
pub mod learn;
mod mapped;
mod packages;
mod policy;
pub mod receipt;
mod root;
pub mod services;
pub mod state;
pub mod system;
mod systemctl;
mod systemd;
pub mod testing;
mod update;
pub mod verify;
mod witness;

pub use error::{AgentError, ErrorKind};
pub use policy::{Brought, POLICY_DIRS, load_policy, load_policy_with};
pub use receipt::Receipt;
pub use root::is_own_root;
pub use services::{
    Job, ServiceError, Services, services_by_command, services_over_bus, system_services,
};
pub use state::StateDir;
pub use system::{LiveSystem, SystemView};
pub use update::{Agent, Applied, Say, UNDO_AGE_MAX, UNDO_COUNT_MAX, UNDO_LEN_MAX};
