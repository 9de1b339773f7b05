//! Decides what a running system must do for changed files to take effect. Pure: no file, no
//! process, no clock is touched here.
//!
//! [`class_of`] says what kind of file a path is. [`Facts`] say which units a system has, which
//! of their processes hold which files, and which files they declare to read; a [`ReadMap`] says
//! which files they were seen to read, a [`Host`] what else is known of the machine. [`Planner`]
//! makes a [`Plan`] of these by a [`Policy`]: for each unit nothing, a reload or a restart, with
//! the evidence for it, what to check before and what proves it after. [`Plan::steps`] is the
//! order in which to do it.
//!
//! # Guarantees
//!
//! - Same changes, facts, read map and policy: same plan, in whatever order they are given.
//! - A unit has at most one action, the greatest that any of its files asks for, and each action
//!   names the files that it is for.
//! - A unit that is not running is never acted upon, nor one that the policy holds; what starts is
//!   new.
//! - What is not known makes a plan do more, never less: without the contents of a unit file its
//!   unit is restarted for any change, without a read map declarations and rules speak.
//! - Parsers take bytes, never panic, and count what they did not understand: a line form that
//!   a newer kernel brings must not hide a stale library.
//! - A process is matched with a replaced file by device and inode number, never by the text
//!   `(deleted)`: a rewrite in place does not show it, a roll-back shows it wrongly.
//!
//! # Not here
//!
//! Gathering facts, watching reads, running checks and acting on a plan (`vireo-agent`). What
//! nobody is known to read is listed in [`Plan::unclaimed`].
//!
//! # Example
//!
//! ```
//! use vireo_classify::{ChangedFile, Facts, FileId, Policy, Process, UnitFacts, plan};
//! use vireo_model::{ChangeKind, ImagePath};
//!
//! let library = FileId { dev: 2049, ino: 77 };
//! let facts = Facts::new()
//!     .with_unit(UnitFacts::running("cron.service"))
//!     .with_unit(UnitFacts { can_reload: true, ..UnitFacts::running("nginx.service") })
//!     .with_process(Process::of_unit(321, "cron.service", [library]));
//!
//! let changed = |path: &str| -> Result<ChangedFile, vireo_model::ImagePathError> {
//!     Ok(ChangedFile::new(ImagePath::parse(path.as_bytes())?, ChangeKind::Modified))
//! };
//! let changes = [
//!     ChangedFile { replaced: Some(library), ..changed("/usr/lib/x86_64-linux-gnu/libpam.so.0")? },
//!     changed("/etc/nginx/conf.d/site.conf")?,
//!     changed("/srv/www/index.html")?,
//! ];
//! let plan = plan(&changes, &facts, &Policy::default());
//! assert_eq!(
//!     plan.to_string(),
//!     "\
//! restart  cron.service   /usr/lib/x86_64-linux-gnu/libpam.so.0 (library, held by process 321)
//! reload   nginx.service  /etc/nginx/conf.d/site.conf (config, rule /etc/nginx/**)
//! nothing  for 1 file: 1 content
//! "
//! );
//! # Ok::<(), vireo_model::ImagePathError>(())
//! ```

mod cgroup;
mod change;
mod class;
mod contents;
mod elf;
mod error;
mod facts;
mod glob;
mod maps;
mod packages;
mod path_text;
mod plan;
mod planner;
mod policy;
mod reads;
mod show;
mod sockets;
mod steps;
mod text;
mod unit;
mod unit_file;

#[cfg(test)]
mod tests;

pub use cgroup::{Owner, owner_of};
pub use change::{ChangedFile, Details};
pub use class::{Class, HEAD_LEN, class_of};
pub use contents::{MountChange, MountChangeKind, mount_unit};
pub use elf::{ElfKind, elf_kind};
pub use error::{ClassifyError, ErrorKind};
pub use facts::{
    ActiveState, Declared, DeclaredBy, Facts, FileId, Host, Process, UnitFacts, parse_modules,
};
pub use maps::{Maps, make_dev, parse_maps};
pub use packages::Packages;
pub use plan::{
    Action, Check, DeadMan, Evidence, FileEntry, LocalEdit, ManagerAction, Plan, Probe,
    ProbeFailure, Proof, Reboot, Refusal, Rule, SystemPlan, Tool, ToolRun, UnitPlan, UserManager,
};
pub use planner::{Planner, plan};
pub use policy::{
    Confirm, Defaults, DriftRule, MAX_POLICY_LEN, OnConflict, OnDisable, OnDrift, OnFailure, Op,
    Policy, PolicyFile, RULE_PACK, StartEnabled, Unclaimed, UnitRule,
};
pub use reads::{MAX_READ_MAP_LEN, MAX_READ_MAP_PATHS, MAX_READ_MAP_UNITS, Phase, ReadMap};
pub use show::{SHOW_PROPERTIES, parse_show};
pub use sockets::listening_sockets;
pub use steps::Step;
pub use unit::Unit;
pub use unit_file::{Declarations, UnitFile, changed_keys, declarations_of};
