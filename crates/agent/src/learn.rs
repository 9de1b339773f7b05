//! Learning on the machine itself which unit reads which file, where an administrator asks for it.
//!
//! A version may bring a read map that `vireo record` made where the update was. What only this machine has
//! (a service of its own, an include somebody added) is not in it. [`learn`] watches for a while, keeps what
//! services read while they started, and every later plan counts it beside the version's map. What they were not
//! seen to read is not kept: that may change with any update.
//!
//! Nobody's access is delayed, no unit is touched: what does not start meanwhile is not learned. So it is best
//! begun early in the boot (`vireo-agent-learn.service`).

use std::collections::BTreeMap;

use serde::Serialize;
use vireo_classify::Plan;
use vireo_model::Ignore;
use vireo_record::{Options, Recorder, START_PROPERTIES, parse_starts};

use crate::error::{AgentError, ErrorKind};
use crate::services::{ServiceError, has_systemd};
use crate::state::StateDir;
use crate::systemctl;

/// The agent's own units.
const OWN_UNITS: [&str; 3] =
    [Plan::AGENT_UNIT, "vireo-agent-learn.service", "vireo-agent-recover.service"];

/// What came of learning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Learned {
    /// Services that are known to read something.
    pub units: usize,
    /// Services that were seen to read something this time.
    pub new_units: usize,
    /// Files and directories that services are known to read.
    pub paths: usize,
    /// Files and directories that were opened meanwhile, by whomever.
    pub events: u64,
    /// Those of units.
    pub attributed: u64,
    /// Events of processes that had ended before it could be seen whose they were.
    pub ended: u64,
    /// Events that were lost.
    pub lost: u64,
    /// Mounted disk file systems that could not be watched, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub not_watched: BTreeMap<String, String>,
}

/// Watches, calls `wait`, and when that returns adds to what `state` keeps which files services read that
/// started meanwhile.
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
    let recorder = Recorder::start(&Options { ignore, at_once: true }).map_err(failed)?;
    recorder.watch_all().map_err(failed)?;
    wait();
    let starts = parse_starts(&systemctl::show(&START_PROPERTIES).map_err(no_manager)?);
    let recorded = recorder.finish().map_err(failed)?;
    let seen = recorded.map(&starts).reads_of(|unit| {
        // The agent reads what it updates, which says nothing about what it needs.
        unit.kind() == "service" && !OWN_UNITS.contains(&unit.as_str())
    });
    let all = state.learn(&seen)?;
    let counts = recorded.counts();
    Ok(Learned {
        units: all.readers().len(),
        new_units: seen.readers().len(),
        paths: all.len(),
        events: counts.events,
        attributed: counts.attributed,
        ended: counts.ended,
        lost: counts.lost,
        not_watched: recorded.not_watched(),
    })
}
