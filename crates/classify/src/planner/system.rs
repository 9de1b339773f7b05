//! What concerns the machine as a whole: kernel, boot, service manager, time zone, groups.

use vireo_model::{ChangeKind, ImagePath};

use super::{Effect, Work, evidence};
use crate::class::canonical;
use crate::contents::MountChangeKind;
use crate::plan::{Action, MANAGER_READS, ManagerAction, Plan, Reboot, Rule, UserManager};
use crate::policy::FileRule;
use crate::{ChangedFile, Class, Unit};

/// The first service manager that can start user space anew without the kernel.
const SOFT_REBOOT_SINCE: u32 = 254;

/// What users' managers read instead of process 1 (`systemd-user.conf(5)`).
const USERS_CONFIG: &[u8] = b"/systemd/user.conf";

impl Work<'_> {
    pub(super) fn consider_agent(&mut self, change: &ChangedFile) {
        let evidence = evidence(change, Rule::Class, "the agent itself".to_owned());
        self.ask_unit(&Unit::new(Plan::AGENT_UNIT), Action::Restart, evidence);
    }

    pub(super) fn ask_manager(&mut self, change: &ChangedFile, action: ManagerAction, rule: Rule) {
        self.plan.system.manager = self.plan.system.manager.max(action);
        let evidence = evidence(change, rule, MANAGER_READS.to_owned());
        self.plan.system.because.push(evidence);
    }

    pub(super) fn ask_user_manager(&mut self, unit: &Unit, action: ManagerAction) {
        let managers = &mut self.plan.system.user_managers;
        match managers.iter_mut().find(|manager| manager.unit == *unit) {
            Some(manager) => manager.action = manager.action.max(action),
            None => managers.push(UserManager { unit: unit.clone(), action }),
        }
    }

    pub(super) fn ask_reboot(&mut self, change: &ChangedFile, reboot: Reboot, why: &str) {
        self.plan.system.reboot = self.plan.system.reboot.max(reboot);
        self.plan.system.because.push(evidence(change, Rule::Class, why.to_owned()));
    }

    /// The reboot that starts user space anew: of the kernel too, where the manager cannot else.
    pub(super) fn soft_reboot(&self) -> Reboot {
        match self.host.manager_version {
            Some(version) if version >= SOFT_REBOOT_SINCE => Reboot::Soft,
            _ => Reboot::Full,
        }
    }

    /// Modules that are not loaded are taken from the disk when they are; loaded ones stay. The
    /// running kernel's modules must not go before it does.
    pub(super) fn consider_kernel_module(&mut self, change: &ChangedFile) {
        let release = self.facts.kernel_release.as_bytes();
        let place = canonical(&change.path);
        let below = place.strip_prefix(b"/usr/lib/modules/");
        let of_running = below.and_then(|rest| rest.split(|b| *b == b'/').next()) == Some(release);
        if release.is_empty() || !of_running || change.kind == ChangeKind::Added {
            return;
        }
        let Some(module) = module_name(change.path.name()) else { return };
        if change.kind == ChangeKind::Removed {
            let kept = format!("/usr/lib/modules/{}", self.facts.kernel_release);
            if !self.plan.system.keep.contains(&kept) {
                self.plan.system.keep.push(kept);
            }
        }
        let loaded = self.host.loaded_modules.as_ref();
        if loaded.is_none_or(|loaded| loaded.contains_key(&module)) {
            self.ask_reboot(change, Reboot::Full, "of the running kernel");
        }
    }

    /// The next boot reads it, whenever that is; only other arguments of the kernel are a reason
    /// for one.
    pub(super) fn consider_boot(&mut self, change: &ChangedFile) {
        match change.class {
            Class::BootLoader if change.details.boot_arguments => {
                self.ask_reboot(change, Reboot::Full, "the kernel gets other arguments");
            }
            Class::Firmware => {
                let note = format!("{}: loaded when its device is found again", change.path);
                self.plan.notes.push(note);
            }
            _ => {}
        }
    }

    /// `fstab`, `system.conf` and the like. What an update changes about mounts is done where
    /// that takes nothing away.
    pub(super) fn consider_manager_file(&mut self, change: &ChangedFile) {
        let place = canonical(&change.path);
        if place.windows(USERS_CONFIG.len()).any(|part| part == USERS_CONFIG) {
            return self.consider_user_unit_file(change);
        }
        self.ask_manager(change, ManagerAction::Reload, Rule::Class);
        for mount in change.details.mounts.iter().flatten() {
            let source = "its line in fstab".to_owned();
            let evidence = evidence(change, Rule::UnitFile, source);
            let unit = self.index.unit(&mount.unit);
            let is_up = unit.is_some_and(|at| self.index.units[at].facts.active.is_up());
            match mount.what {
                MountChangeKind::Added if !is_up => {
                    self.note(&mount.unit, Action::Start, None, evidence);
                }
                MountChangeKind::Options if is_up => {
                    self.note(&mount.unit, Action::Reload, None, evidence);
                }
                MountChangeKind::Source if is_up => {
                    self.hold(&mount.unit, "it would have to be unmounted", evidence);
                }
                MountChangeKind::Removed if is_up => {
                    self.hold(&mount.unit, "it stays mounted until somebody unmounts it", evidence);
                }
                _ => {}
            }
        }
    }

    /// The machine's own zone, or the rules of the zone that it is in.
    pub(super) fn consider_time_zone(&mut self, change: &ChangedFile, rule: Option<&FileRule<'_>>) {
        if rule.is_some_and(FileRule::names_units) {
            return self.ask_named(change, rule);
        }
        if self.is_own_time_zone(change)
            && let Ok(local) = ImagePath::parse(b"/etc/localtime")
        {
            let policy = self.policy;
            self.ask_named(change, policy.file_rule(&local).as_ref());
        }
    }

    /// Processes keep the groups that they started with.
    pub(super) fn consider_groups(&mut self, change: &ChangedFile) {
        for unit in 0..self.index.units.len() {
            let user = &self.index.units[unit].facts.user;
            if change.details.members.contains(user) {
                let source = format!("the groups of its user {user} change");
                self.ask(unit, Effect::Restart, evidence(change, Rule::Declared, source));
            }
        }
    }
}

/// `nf_tables` for `nf-tables.ko.zst`, as the kernel lists it.
fn module_name(file: &[u8]) -> Option<String> {
    let at = file.windows(3).position(|part| part == b".ko")?;
    let name = std::str::from_utf8(&file[..at]).ok()?;
    Some(name.replace('-', "_"))
}
