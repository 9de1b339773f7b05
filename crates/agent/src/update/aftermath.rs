//! What an update leaves to be known: that a reboot waits, as other tools look for it; and which
//! files of earlier updates may still be held, so that what waits is seen and not remembered.

use std::collections::BTreeSet;
use std::fs;

use vireo_classify::{Evidence, FileId, Plan, Reboot};
use vireo_model::ImagePath;
use vireo_tree::Root;
use vireo_tree::apply::{Committed, history, remove_extra};

use super::Agent;
use super::promise::CONFIRMATION;
use crate::activate::still_pending;
use crate::error::AgentError;
use crate::receipt::Pending;
use crate::root::open_root;
use crate::system::boot_id;

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
        let mut kept = self.state.kept()?.unwrap_or_default();
        let before = kept.clone();
        let stays = plan.files.iter().filter(|file| file.change != "removed");
        let brought: BTreeSet<&str> = stays.map(|file| file.path.as_str()).collect();
        // What the update brings is the version's and nobody's to clear away.
        kept.paths.values_mut().for_each(|paths| paths.retain(|it| !brought.contains(it.as_str())));
        let places = plan.system.keep.iter().filter_map(|it| ImagePath::parse(it.as_bytes()).ok());
        let places: Vec<ImagePath> = places.collect();
        let removed = places.iter().flat_map(|below| committed.removed(below));
        let removed: Vec<String> = removed.map(|path| path.to_string()).collect();
        if !removed.is_empty() {
            release.clone_into(&mut kept.release);
            kept.paths.insert(committed.number(), removed);
        }
        if kept != before {
            // Before they are there: what nobody knows of would stay.
            self.state.set_kept(Some(&kept))?;
        }
        places.iter().try_for_each(|below| Ok(committed.keep_removed(below)?))
    }

    /// What an undo has made part of the version again is nobody's to clear away.
    pub(super) fn give_back_modules(&self, undone: &[u64]) -> Result<(), AgentError> {
        let Some(mut kept) = self.state.kept()? else { return Ok(()) };
        let count = kept.paths.len();
        kept.paths.retain(|number, _| !undone.contains(number));
        match kept.paths.len() {
            0 => self.state.set_kept(None),
            len if len == count => Ok(()),
            _ => self.state.set_kept(Some(&kept)),
        }
    }

    /// Removes the modules of a kernel that does not run any more. Not while an update or an undo
    /// is under way, which may have made them part of the version again.
    pub(super) fn drop_modules(&self, root: &Root) -> Result<(), AgentError> {
        let Some(kept) = self.state.kept()? else { return Ok(()) };
        let running = rustix::system::uname().release().to_string_lossy().into_owned();
        if kept.release == running {
            return Ok(());
        }
        let paths = kept.paths.values().flatten();
        let paths = paths.filter_map(|path| ImagePath::parse(path.as_bytes()).ok());
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

    /// What the last update left to wait and still does, seen now: what was restarted by hand and
    /// what came with a boot since does not wait any more.
    ///
    /// # Errors
    ///
    /// The records cannot be read, or the machine cannot be looked at.
    pub fn still_pending(&self) -> Result<Vec<Pending>, AgentError> {
        let mut pending = self.state.last_receipt()?.map(|it| it.pending).unwrap_or_default();
        let held = self.state.held()?.unwrap_or_default();
        if pending.is_empty() {
            return Ok(pending);
        }
        if held.boot != boot_id()? {
            pending.retain(|pending| pending.needs == CONFIRMATION);
            return Ok(pending);
        }
        let files = held.files.into_values().flatten().collect();
        Ok(still_pending(pending, &self.system.facts(&files)?))
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
