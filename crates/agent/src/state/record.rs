//! The files of the agent's directory: their names, and what to do about one that is damaged.
//!
//! Enrolling writes only what says who this machine is and what it is on. The others have to be
//! removed by somebody who knows what is lost with them.

use std::path::Path;

use crate::error::{AgentError, ErrorKind};

/// A file of the agent's directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) name: &'static str,
    remedy: Remedy,
}

/// What mends a damaged record.
#[derive(Clone, Copy, Debug)]
enum Remedy {
    /// The agent writes it anew when this is done.
    Do(&'static str),
    /// Without the file the agent goes on, but this is lost.
    Remove(&'static str),
}

impl Record {
    /// It is damaged because of `why`, at `path`.
    pub(super) fn damaged(self, path: &Path, why: &str) -> AgentError {
        let path = path.display();
        let remedy = match self.remedy {
            Remedy::Do(what) => what.to_owned(),
            Remedy::Remove(lost) => format!("remove {path}; what is lost: {lost}"),
        };
        let message = format!("the agent's record {path} is damaged ({why}); {remedy}");
        AgentError::new(ErrorKind::State, message)
    }

    /// What is lost with it.
    pub(super) fn lost(self) -> &'static str {
        match self.remedy {
            Remedy::Do(_) => "what it said",
            Remedy::Remove(lost) => lost,
        }
    }
}

const fn mended(name: &'static str, by: &'static str) -> Record {
    Record { name, remedy: Remedy::Do(by) }
}

const fn removed(name: &'static str, lost: &'static str) -> Record {
    Record { name, remedy: Remedy::Remove(lost) }
}

pub(super) const ENROLMENT: Record = mended("enrolment.json", "enrol again");
pub(super) const VERSION: Record = mended("version.json", "enrol again");
pub(super) const LEARNED: Record =
    mended("learned.json", "forget what was learned with `vireo-agent learn --forget`");
pub(super) const KNOWN: Record =
    removed("known.json", "the numbers of versions that this machine was on");
pub(super) const ACTIVATION: Record = removed(
    "activation.json",
    "what an interrupted update has still to reload and restart; start the machine anew after it",
);
pub(super) const RECEIPT: Record = removed("receipt.json", "what the last update did");
pub(super) const UNREPORTED: Record =
    removed("unreported.json", "the report of the last update to the repository");
pub(super) const GUARD: Record = removed(
    "guard.json",
    "that the last update is undone unless it is confirmed; make sure that this machine can be reached",
);
pub(super) const CONDEMNED: Record = removed(
    "condemned.json",
    "that an update is being undone, and which units are to run again; look at `vireo-agent history`",
);
pub(super) const HOLD: Record =
    removed("hold.json", "that a version that was undone is not to come back by itself");
pub(super) const HELD: Record =
    removed("held.json", "who still holds files that updates of this boot replaced");
pub(super) const KEPT: Record = removed(
    "kept.json",
    "which removed modules stay for the running kernel; `vireo-agent verify` lists what is too much",
);
pub(super) const READS: Record =
    removed("reads.json", "who reads what, by the last version, until an update brings that anew");
pub(super) const EDITS: Record = removed("edits.json", "which local edits updates met");
