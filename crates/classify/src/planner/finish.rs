//! The end of planning: what checks a unit's files before, what proves its action after.

use std::collections::{HashMap, HashSet};

use super::Work;
use crate::Unit;
use crate::plan::{Action, Check, Evidence, Plan, Proof, Refusal, Rule, UnitPlan};
use crate::policy::Unclaimed;

impl Work<'_> {
    pub(super) fn finish(mut self) -> Plan {
        self.settle_enabling();
        let mut units = std::mem::take(&mut self.units);
        let by_path: HashMap<&str, usize> =
            self.plan.files.iter().enumerate().map(|(at, file)| (file.path.as_str(), at)).collect();
        let checks: Vec<Check> = std::mem::take(&mut self.checks).into_values().collect();
        let mut validators: HashMap<&Unit, &Check> = HashMap::new();
        for check in checks.iter().rev() {
            validators.extend(check.units.iter().map(|unit| (unit, check)));
        }
        for (name, unit) in &mut units {
            unit.validate = validators.get(name).map(|check| check.command.clone());
            self.finish_unit(unit, &by_path);
        }
        self.plan.checks = checks;
        self.plan.units = units.into_values().collect();
        // A check of a unit that needs nothing is about its files all the same.
        let acted: HashSet<&Unit> = self.plan.units.iter().map(|entry| &entry.unit).collect();
        for check in &mut self.plan.checks {
            check.units.retain(|unit| acted.contains(unit));
        }
        self.finish_system();
        self.plan
    }

    fn finish_unit(&self, unit: &mut UnitPlan, by_path: &HashMap<&str, usize>) {
        if matches!(unit.action, Action::Hold | Action::Refuse | Action::Stop) {
            return;
        }
        unit.proof = vec![Proof::Job, Proof::Active];
        if unit.because.iter().any(|evidence| evidence.rule == Rule::Held) {
            unit.proof.push(Proof::Inodes);
        }
        if unit.action == Action::Start {
            return;
        }
        unit.reads = self.files_to_be_read(unit, by_path);
        if !unit.reads.is_empty() {
            unit.proof.push(Proof::Read);
        }
        if unit.unit.kind() == "service" {
            unit.proof.push(Proof::Sockets);
        }
        unit.probes = self.policy.probes_of(&unit.unit).cloned().collect();
        if !unit.probes.is_empty() {
            unit.proof.push(Proof::Probe);
        }
        if unit.action == Action::Reload {
            let index = self.index.unit(&unit.unit);
            let reload_only =
                index.is_some_and(|at| self.index.units[at].rule.reload_only.is_some());
            unit.ceiling = (!reload_only).then_some(Action::Restart);
        }
    }

    /// The changed configuration that the unit must have read when it has taken it up: of what
    /// is known so exactly that a file not read means something.
    fn files_to_be_read(&self, unit: &UnitPlan, by_path: &HashMap<&str, usize>) -> Vec<String> {
        let Some(at) = self.index.unit(&unit.unit) else { return Vec::new() };
        let exact = |evidence: &&Evidence| {
            let change = by_path.get(evidence.path.as_str()).map(|at| self.changes[*at]);
            change.is_some_and(|change| self.must_read(at, change, evidence.rule))
        };
        let exact = unit.because.iter().filter(exact);
        exact.map(|evidence| evidence.path.clone()).collect()
    }

    fn finish_system(&mut self) {
        self.plan.system.tools.sort();
        // One tool may serve several inputs with one command.
        self.plan.system.tools.dedup();
        self.plan.system.user_managers.sort();
        self.plan.system.user_managers.dedup();
        self.watch_connectivity();
        if self.policy.defaults().unclaimed_config == Unclaimed::Refuse
            && !self.plan.unclaimed.is_empty()
        {
            let reason = "no unit is known to read this configuration".to_owned();
            let files = self.plan.unclaimed.clone();
            self.plan.refusals.push(Refusal { reason, files });
        }
        let notes = &mut self.plan.notes;
        if !self.facts.manager {
            notes.push("no service manager answers: units are left as they are".to_owned());
        }
        if self.facts.unread > 0 {
            notes.push(format!("{} lines about the system were not understood", self.facts.unread));
        }
    }
}
