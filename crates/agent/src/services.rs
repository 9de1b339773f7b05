//! The service manager, as far as activation needs it: a port and the choice of its adapter.
//!
//! Implementations are held to [`testing::check_services`](crate::testing::check_services).

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use vireo_classify::{ManagerAction, Probe, Unit};

use crate::systemctl::Systemctl;
use crate::systemd::Systemd;

/// How long one batch of jobs may take; systemd's own default for one start is 90 s.
pub(crate) const JOB_DEADLINE: Duration = Duration::from_secs(180);

/// How long the manager may take to read its unit files again or to execute itself anew.
pub(crate) const MANAGER_DEADLINE: Duration = Duration::from_secs(120);

/// How long one tool may run.
pub(crate) const TOOL_DEADLINE: Duration = Duration::from_secs(120);

/// How long one question to a service may take.
pub(crate) const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// The service manager. Real ones: systemd over D-Bus, and `systemctl` where there is no bus.
///
/// Calls return when the work is done, not when it is queued.
///
/// [`Job::Start`] alone starts a unit that does not run, and is asked for only for units that an
/// update adds enabled, that ran before and went down by the update, or that were stopped for it.
pub trait Services: Debug + Send + Sync {
    /// Has the manager read its unit files again.
    ///
    /// # Errors
    ///
    /// It could not be reached, refused, or did not answer in time.
    fn daemon_reload(&self) -> Result<(), ServiceError>;

    /// Has the manager execute itself anew, keeping all units as they are.
    ///
    /// # Errors
    ///
    /// As [`Services::daemon_reload`].
    fn daemon_reexec(&self) -> Result<(), ServiceError>;

    /// Does `job` to `units`, to reload, restart or stop to those of them that run; all jobs are
    /// queued before the first is waited for, so that the manager can order them. One outcome per
    /// unit, in the order of `units`; a failure does not stop the rest. A unit that does not run and
    /// is not to start counts as done.
    fn run(&self, job: Job, units: &[Unit]) -> Vec<Result<(), ServiceError>>;

    /// Queues a restart of `unit` and does not wait: for the agent's own unit, which ends by it.
    ///
    /// # Errors
    ///
    /// The job could not be queued.
    fn restart_later(&self, unit: &Unit) -> Result<(), ServiceError>;

    /// Runs a tool of the service manager, such as `systemd-tmpfiles --create x.conf`.
    ///
    /// # Errors
    ///
    /// It could not be started, failed, or did not end in time.
    fn run_tool(&self, command: &[String]) -> Result<(), ServiceError>;

    /// Has the manager forget that units failed, and how often they were started.
    ///
    /// # Errors
    ///
    /// As [`Services::daemon_reload`]. A unit that is gone is no error.
    fn reset_failed(&self, units: &[Unit]) -> Result<(), ServiceError>;

    /// Has a user's own manager, which runs as the unit `manager`, do `action`; does not wait.
    ///
    /// # Errors
    ///
    /// It could not be told.
    fn tell_user_manager(&self, manager: &Unit, action: ManagerAction) -> Result<(), ServiceError>;

    /// Asks `probe`'s question; gives what it printed, without blanks around it.
    ///
    /// # Errors
    ///
    /// It could not be asked, failed, or did not end in time.
    fn probe(&self, probe: &Probe) -> Result<String, ServiceError>;

    /// Has the manager run `command` once, `delay` from now, as the unit `name`, whatever becomes
    /// of this process.
    ///
    /// # Errors
    ///
    /// As [`Services::daemon_reload`].
    fn set_timer(
        &self,
        name: &str,
        delay: Duration,
        command: &[String],
    ) -> Result<(), ServiceError>;

    /// Takes back [`Services::set_timer`]. Nothing is done if the timer has gone.
    ///
    /// # Errors
    ///
    /// As [`Services::daemon_reload`].
    fn clear_timer(&self, name: &str) -> Result<(), ServiceError>;
}

impl<S: Services + ?Sized> Services for &S {
    fn daemon_reload(&self) -> Result<(), ServiceError> {
        (**self).daemon_reload()
    }

    fn daemon_reexec(&self) -> Result<(), ServiceError> {
        (**self).daemon_reexec()
    }

    fn run(&self, job: Job, units: &[Unit]) -> Vec<Result<(), ServiceError>> {
        (**self).run(job, units)
    }

    fn restart_later(&self, unit: &Unit) -> Result<(), ServiceError> {
        (**self).restart_later(unit)
    }

    fn run_tool(&self, command: &[String]) -> Result<(), ServiceError> {
        (**self).run_tool(command)
    }

    fn reset_failed(&self, units: &[Unit]) -> Result<(), ServiceError> {
        (**self).reset_failed(units)
    }

    fn tell_user_manager(&self, manager: &Unit, action: ManagerAction) -> Result<(), ServiceError> {
        (**self).tell_user_manager(manager, action)
    }

    fn probe(&self, probe: &Probe) -> Result<String, ServiceError> {
        (**self).probe(probe)
    }

    fn set_timer(
        &self,
        name: &str,
        delay: Duration,
        command: &[String],
    ) -> Result<(), ServiceError> {
        (**self).set_timer(name, delay, command)
    }

    fn clear_timer(&self, name: &str) -> Result<(), ServiceError> {
        (**self).clear_timer(name)
    }
}

/// What can be done to units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    /// They read their configuration again; those that cannot are restarted.
    Reload,
    /// Their processes are replaced.
    Restart,
    /// They start, whether or not they ran; see [`Services`] for which.
    Start,
    /// They end: units that the update removes, and sockets with their services, which start again
    /// at once.
    Stop,
}

impl Job {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Reload, Self::Restart, Self::Start, Self::Stop];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Restart => "restart",
            Self::Start => "start",
            Self::Stop => "stop",
        }
    }
}

/// Why the service manager did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct ServiceError {
    what: String,
    why: String,
}

impl ServiceError {
    /// `what` (`reload nginx.service`) failed because of `why`.
    #[must_use]
    pub fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }
}

/// Whether systemd runs this machine (sd_booted(3)).
pub(crate) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The service manager of the running system: over its bus if that answers, else by `systemctl`,
/// else none.
#[must_use]
pub fn system_services() -> Box<dyn Services> {
    if !has_systemd() {
        return Box::new(NoServices);
    }
    services_over_bus().unwrap_or_else(|_| services_by_command())
}

/// systemd over the system bus, whatever else there is.
///
/// # Errors
///
/// It does not answer there.
pub fn services_over_bus() -> Result<Box<dyn Services>, ServiceError> {
    Ok(Box::new(Systemd::connect()?))
}

/// systemd by its command, whatever else there is.
#[must_use]
pub fn services_by_command() -> Box<dyn Services> {
    Box::new(Systemctl)
}

/// No service manager: everything fails and says so.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoServices;

impl NoServices {
    fn error(what: &str) -> ServiceError {
        ServiceError::new(what, "no service manager runs here")
    }
}

impl Services for NoServices {
    fn daemon_reload(&self) -> Result<(), ServiceError> {
        Err(Self::error("daemon-reload"))
    }

    fn daemon_reexec(&self) -> Result<(), ServiceError> {
        Err(Self::error("daemon-reexec"))
    }

    fn run(&self, job: Job, units: &[Unit]) -> Vec<Result<(), ServiceError>> {
        units.iter().map(|unit| Err(Self::error(&format!("{} {unit}", job.as_str())))).collect()
    }

    fn restart_later(&self, unit: &Unit) -> Result<(), ServiceError> {
        Err(Self::error(&format!("restart {unit}")))
    }

    fn run_tool(&self, command: &[String]) -> Result<(), ServiceError> {
        Err(Self::error(&command.join(" ")))
    }

    fn reset_failed(&self, _units: &[Unit]) -> Result<(), ServiceError> {
        Err(Self::error("reset-failed"))
    }

    fn tell_user_manager(
        &self,
        manager: &Unit,
        _action: ManagerAction,
    ) -> Result<(), ServiceError> {
        Err(Self::error(manager.as_str()))
    }

    fn probe(&self, probe: &Probe) -> Result<String, ServiceError> {
        Err(Self::error(&probe.command.join(" ")))
    }

    fn set_timer(
        &self,
        name: &str,
        _delay: Duration,
        _command: &[String],
    ) -> Result<(), ServiceError> {
        Err(Self::error(name))
    }

    fn clear_timer(&self, _name: &str) -> Result<(), ServiceError> {
        Ok(())
    }
}
