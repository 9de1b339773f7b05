//! A plan in the order in which it is carried out.

use serde::{Deserialize, Serialize};

use crate::plan::{Action, DeadMan, ManagerAction, Plan, ToolRun};
use crate::{Check, Unit, UserManager};

/// One step of carrying out a plan. Units of one step are queued together, so that the service
/// manager can order them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Step {
    /// A check of the new configuration, on the files as they will be.
    Check(Check),
    /// A promise to undo the update, to be armed before anything is changed.
    Arm(DeadMan),
    /// Units end that the update removes: now, while their own commands for it are there.
    Stop(Vec<Unit>),
    /// The files take their places.
    Commit,
    /// A tool runs.
    Tool(ToolRun),
    /// The service manager executes itself anew.
    ManagerReexec,
    /// The service manager reads its unit files again.
    ManagerReload,
    /// A user's own service manager does one of these.
    UserManager(UserManager),
    /// Units that were removed leave no failed state behind.
    ResetFailed(Vec<Unit>),
    /// Units read their configuration again.
    Reload(Vec<Unit>),
    /// Units are restarted: sockets after the services that they start, in one transaction, for
    /// a socket does not restart while its service runs.
    Restart(Vec<Unit>),
    /// New units start.
    Start(Vec<Unit>),
    /// The agent itself is restarted: nothing comes after it.
    Myself(Unit),
}

impl Plan {
    /// The unit that carries plans out.
    pub const AGENT_UNIT: &str = "vireo-agent.service";

    /// Everything to be done, in order. Units that are held and a reboot that waits are nothing
    /// to be done. Of a refused plan nothing is.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        if self.is_refused() {
            return Vec::new();
        }
        let mut steps: Vec<Step> = self.checks.iter().cloned().map(Step::Check).collect();
        steps.extend(self.system.dead_man.clone().map(Step::Arm));
        let units = |action| -> Vec<Unit> {
            let own = Unit::new(Self::AGENT_UNIT);
            let units = self.units.iter().filter(|unit| unit.action == action);
            units.map(|unit| unit.unit.clone()).filter(|unit| *unit != own).collect()
        };
        let batch = |step: fn(Vec<Unit>) -> Step, units: Vec<Unit>| {
            (!units.is_empty()).then(|| step(units))
        };
        let removed = units(Action::Stop);
        let mut restarted = units(Action::Restart);
        restarted.sort_by_key(|unit| unit.kind() == "socket");
        steps.extend(batch(Step::Stop, removed.clone()));
        steps.push(Step::Commit);
        steps.extend(self.system.tools.iter().cloned().map(Step::Tool));
        steps.extend(match self.system.manager {
            ManagerAction::None => None,
            ManagerAction::Reload => Some(Step::ManagerReload),
            ManagerAction::Reexec => Some(Step::ManagerReexec),
        });
        steps.extend(self.system.user_managers.iter().cloned().map(Step::UserManager));
        steps.extend(batch(Step::ResetFailed, removed));
        steps.extend(batch(Step::Reload, units(Action::Reload)));
        steps.extend(batch(Step::Restart, restarted));
        steps.extend(batch(Step::Start, units(Action::Start)));
        let own = self.units.iter().find(|unit| {
            unit.unit.as_str() == Self::AGENT_UNIT
                && matches!(unit.action, Action::Reload | Action::Restart)
        });
        steps.extend(own.map(|unit| Step::Myself(unit.unit.clone())));
        steps
    }
}
