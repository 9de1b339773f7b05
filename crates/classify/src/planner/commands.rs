//! Tools to run, checks of configuration, and what could cut the machine off.

use vireo_model::ChangeKind;

use super::{Work, evidence};
use crate::class::canonical;
use crate::plan::{Action, Check, DeadMan, INPUT_OF, Rule, ToolRun};
use crate::policy::{Confirm, DeadManRule, ToolRule};
use crate::{ChangedFile, Unit};

impl Work<'_> {
    pub(super) fn consider_tools(&mut self, change: &ChangedFile) {
        let removed = change.kind == ChangeKind::Removed;
        let policy = self.policy;
        for rule in policy.tools_for(&change.path) {
            let missing =
                rule.needs.as_deref().is_some_and(|path| self.host.has(path) != Some(true));
            if (removed && !rule.removed) || missing && !self.is_here_for_sure(rule) {
                continue;
            }
            if self.brings_output_of(rule) {
                continue;
            }
            let command = rule.command(&change.path, change.details.settings.as_deref());
            let source = format!("{INPUT_OF}{}", command.first().map_or("", String::as_str));
            self.plan.system.tools.push(ToolRun { tool: rule.stage, command });
            self.plan.system.because.push(evidence(change, Rule::Class, source));
        }
    }

    /// A tool that needs a program which nobody looked for is taken to be there; one that needs
    /// anything else is not.
    fn is_here_for_sure(&self, rule: &ToolRule) -> bool {
        let Some(path) = rule.needs.as_deref() else { return true };
        self.host.present.is_none() && path.contains("bin/")
    }

    /// Whether the update brings what the tool would make.
    fn brings_output_of(&mut self, rule: &ToolRule) -> bool {
        let brought = &self.brought;
        *self
            .outputs
            .entry(rule.words().to_vec())
            .or_insert_with(|| brought.iter().any(|place| rule.unless.first(place).is_some()))
    }

    /// Notes the checks that look at the file.
    pub(super) fn consider_checks(&mut self, change: &ChangedFile) {
        let policy = self.policy;
        for rule in policy.checks_for(&change.path) {
            // A link has nothing in it to be checked, least of all one that masks a unit.
            let empty = change.kind == ChangeKind::Removed
                || change.details.links_to.is_some()
                || change.masks();
            let gone = empty && rule.is_per_file();
            let missing = self.host.has(&rule.needs) == Some(false)
                && !self.brought.contains(rule.needs.as_bytes());
            if gone {
                continue;
            }
            if missing {
                let note = format!("{}: not checked, there is no {}", change.path, rule.needs);
                self.plan.notes.push(note);
                continue;
            }
            let command = rule.command(&change.path);
            let units = &self.index.units;
            let check = self.checks.entry(command).or_insert_with_key(|command| {
                let names = units.iter().map(|view| &view.facts.name);
                Check {
                    command: command.clone(),
                    needs: rule.needs.clone(),
                    files: Vec::new(),
                    units: names.filter(|unit| rule.checks_for(unit)).cloned().collect(),
                }
            });
            check.files.push(change.path.to_string());
        }
    }

    pub(super) fn consider_connectivity(&mut self, change: &ChangedFile) {
        if let Some(rule) = self.policy.dead_man_for_path(&change.path) {
            self.arm(rule, change.path.to_string());
        }
    }

    /// Units that the machine is reached by.
    pub(super) fn watch_connectivity(&mut self) {
        let acted = |action| matches!(action, Action::Reload | Action::Restart | Action::Stop);
        let units = self.plan.units.iter().filter(|unit| acted(unit.action));
        let names: Vec<Unit> = units.map(|unit| unit.unit.clone()).collect();
        for name in names {
            if let Some(rule) = self.policy.dead_man_for_unit(&name) {
                self.arm(rule, name.to_string());
            }
        }
    }

    fn arm(&mut self, rule: DeadManRule, because: String) {
        if rule.confirm == Confirm::None {
            return;
        }
        let seconds = rule.timeout.as_secs();
        let man = self.plan.system.dead_man.get_or_insert_with(|| DeadMan {
            confirm: rule.confirm,
            seconds,
            because: Vec::new(),
        });
        man.confirm = man.confirm.max(rule.confirm);
        man.seconds = man.seconds.max(seconds);
        man.because.push(because);
    }

    /// Whether the update removes what is at `place`.
    pub(super) fn removes(&self, place: &[u8]) -> bool {
        self.removed.contains(place)
    }

    /// Whether the update brings something to `place`.
    pub(super) fn brings(&self, place: &[u8]) -> bool {
        self.brought.contains(place)
    }

    /// The place of the time zone's file that the machine uses.
    pub(super) fn is_own_time_zone(&self, change: &ChangedFile) -> bool {
        let own = self.host.time_zone.as_deref().map(str::as_bytes);
        own.is_some_and(|own| canonical(&change.path) == own)
    }
}
