//! What an update leaves to be known: that a reboot waits, as other tools look for it; and which
//! files of earlier updates may still be held, so that what waits is seen and not remembered.

use std::collections::BTreeSet;
use std::fs;

use vireo_classify::{Evidence, FileId, Plan, Reboot};
use vireo_model::ImagePath;
use vireo_tree::Root;
use vireo_tree::apply::{Committed, history, remove_extra};

use super::Agent;
use crate::error::AgentError;
use crate::root::open_root;

/// Where Debian's tools look whether a reboot waits, below the root; `.pkgs` beside it has the
/// packages that want it.
const REBOOT_REQUIRED: &str = "run/reboot-required";

/// What stands in it, as Debian's packages write it.
const REBOOT_TEXT: &str = "*** System restart required ***\n";

impl Agent {
    /// Says to other tools that a reboot waits, if one does. The mark goes with the boot.
    pub(super) fn mark_reboot(&self, plan: &Plan, has_manager: bool) -> Result<(), AgentError> {
        let mark = self.root.join(REBOOT_REQUIRED);
        let runs = mark.parent().is_some_and(|dir| dir.is_dir());
        if plan.system.reboot == Reboot::None || !has_manager || !runs {
            return Ok(());
        }
        fs::write(&mark, REBOOT_TEXT).map_err(|error| AgentError::io("write", &mark, error))?;
        let packages = self.system.packages();
        let owner = |evidence: &Evidence| {
            let path = ImagePath::parse(evidence.path.as_bytes()).ok()?;
            packages.owner_of(&path).map(str::to_owned)
        };
        let list = mark.with_extension("pkgs");
        let before = fs::read_to_string(&list).unwrap_or_default();
        let mut names: BTreeSet<String> = before.lines().map(str::to_owned).collect();
        names.extend(plan.system.because.iter().filter_map(owner));
        let text: String = names.iter().map(|name| format!("{name}\n")).collect();
        fs::write(&list, text).map_err(|error| AgentError::io("write", &list, error))
    }

    /// Lets the running kernel have its modules until it ends, though the update removes them.
    pub(super) fn keep_modules(
        &self,
        committed: &Committed<'_>,
        plan: &Plan,
        release: &str,
    ) -> Result<(), AgentError> {
        let mut paths: Vec<String> = Vec::new();
        for directory in &plan.system.keep {
            let Ok(below) = ImagePath::parse(directory.as_bytes()) else { continue };
            let kept = committed.keep_removed(&below)?;
            paths.extend(kept.iter().map(ToString::to_string));
        }
        if paths.is_empty() {
            return Ok(());
        }
        let mut kept = self.state.kept()?.unwrap_or_default();
        release.clone_into(&mut kept.release);
        kept.paths.extend(paths);
        kept.paths.sort();
        kept.paths.dedup();
        self.state.set_kept(Some(&kept))
    }

    /// Removes the modules of a kernel that does not run any more, or with `anyway` those of the one
    /// that does.
    pub(super) fn drop_modules(&self, root: &Root, anyway: bool) -> Result<(), AgentError> {
        let Some(kept) = self.state.kept()? else { return Ok(()) };
        let running = rustix::system::uname().release().to_string_lossy().into_owned();
        if kept.release == running && !anyway {
            return Ok(());
        }
        let paths = kept.paths.iter().filter_map(|path| ImagePath::parse(path.as_bytes()).ok());
        remove_extra(root, &paths.collect::<Vec<_>>())?;
        self.state.set_kept(None)
    }

    /// The files that earlier updates of this boot replaced and whose inodes are kept: whoever
    /// holds one has not taken that update up. What the transactions replaced that `committed`
    /// undoes is in its place again.
    pub(super) fn replaced_earlier(
        &self,
        boot: &str,
        committed: &Committed<'_>,
    ) -> Result<BTreeSet<FileId>, AgentError> {
        let held = self.state.held()?.unwrap_or_default();
        if held.boot != boot {
            return Ok(BTreeSet::new());
        }
        let (kept, undone) = (committed.kept()?, committed.undoes());
        let counts = |number: &u64| kept.contains(number) && !undone.contains(number);
        let of_kept = held.files.into_iter().filter(|(number, _)| counts(number));
        Ok(of_kept.flat_map(|(_, files)| files).collect())
    }

    /// Notes which files transaction `number` replaced.
    pub(super) fn note_replaced(
        &self,
        boot: &str,
        number: u64,
        replaced: &BTreeSet<FileId>,
    ) -> Result<(), AgentError> {
        let mut held = self.state.held()?.filter(|held| held.boot == boot).unwrap_or_default();
        boot.clone_into(&mut held.boot);
        let kept = self.kept_numbers()?;
        held.files.retain(|other, _| kept.contains(other));
        held.files.insert(number, replaced.iter().copied().collect());
        self.state.set_held(&held)
    }

    /// Numbers of the transactions whose inodes are kept.
    fn kept_numbers(&self) -> Result<BTreeSet<u64>, AgentError> {
        let list = history(&open_root(&self.root)?)?;
        Ok(list.into_iter().map(|past| past.number).collect())
    }
}
