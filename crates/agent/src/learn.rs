//! Learning on the machine itself which unit reads which file, where an administrator asks for it.
//!
//! A version may bring a read map that `vireo record` made where the update was. What only this machine
//! has (a unit of its own, an include somebody added) is not in it. [`learn`] watches for a while, keeps what units
//! read while they started, and every later plan counts it beside the version's map. Nobody's access is
//! delayed, no unit is touched: what does not start meanwhile is not learned. So it is best begun early in the boot
//! (`vireo-agent-learn.service`).

use serde::Serialize;
use vireo_model::Ignore;
use vireo_record::{Options, Recorder, START_PROPERTIES, parse_starts};

use crate::error::{AgentError, ErrorKind};
use crate::services::{ServiceError, has_systemd};
use crate::state::StateDir;
use crate::systemctl;

/// What came of learning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Learned {
    /// Units whose start was seen, now or earlier.
    pub units: usize,
    /// Files and directories that they read.
    pub paths: usize,
    /// Units whose start was seen this time.
    pub new_units: usize,
    /// Files and directories that were opened meanwhile, by whomever.
    pub events: u64,
    /// Those of units.
    pub attributed: u64,
    /// Events of processes that had ended before it could be seen whose they were.
    pub ended: u64,
    /// Events that were lost.
    pub lost: u64,
}

/// Watches, calls `wait`, and when that returns adds to what `state` keeps which
/// files units read that started meanwhile.
///
/// Nothing is kept before `wait` returns: a crash leaves what was learned earlier.
///
/// # Errors
///
/// `Failed` without root, without a service manager, or where the kernel cannot report what is opened; as
/// [`StateDir::learn`].
pub fn learn(state: &StateDir, wait: impl FnOnce()) -> Result<Learned, AgentError> {
    let no_manager = |error: ServiceError| {
        let message = "cannot ask the service manager when units started";
        AgentError::new(ErrorKind::Failed, message).caused_by(error)
    };
    let failed = |error| {
        let message = "cannot learn what units read";
        AgentError::new(ErrorKind::Failed, message).caused_by(error)
    };
    // Before minutes are spent: what is damaged, and no manager. Nothing that takes long: in the early boot
    // others wait until the watch is on.
    state.learned()?;
    if !has_systemd() {
        return Err(no_manager(ServiceError::new("systemctl show", "systemd does not run here")));
    }
    let ignore = match state.enrolment()? {
        Some(enrolment) => enrolment.ignore_list()?,
        None => Ignore::default(),
    };
    let recorder = Recorder::start(&Options { ignore }).map_err(failed)?;
    recorder.watch_all().map_err(failed)?;
    wait();
    let starts = parse_starts(&systemctl::show(&START_PROPERTIES).map_err(no_manager)?);
    let recorded = recorder.finish().map_err(failed)?;
    let seen = recorded.map(&starts);
    let all = state.learn(&seen)?;
    let counts = recorded.counts();
    Ok(Learned {
        units: all.units().count(),
        paths: all.len(),
        new_units: seen.units().count(),
        events: counts.events,
        attributed: counts.attributed,
        ended: counts.ended,
        lost: counts.lost,
    })
}
