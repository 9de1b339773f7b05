//! Whose a process is, remembered for a short time.
//!
//! A process may move on: the service manager starts it in its own control group and puts it into
//! the unit's, a login moves into its session. So what is remembered is looked up again after
//! [`TRUST_DURATION`], and whenever a program is executed. It still counts for a process that has
//! ended meanwhile.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use vireo_classify::{Owner, Unit, owner_of};

/// Most processes remembered at a time; beyond that all are looked up anew.
pub const MAX_PROCESSES: usize = 20_000;

/// For how long an answer is not doubted.
const TRUST_DURATION: Duration = Duration::from_millis(100);

/// For how long an answer counts for a process that has ended: its number is not given away again
/// so soon, as numbers are given in turn.
const ENDED_DURATION: Duration = Duration::from_secs(2);

/// Longest cgroup file read, in bytes; a path of it has at most 4,096.
const MAX_CGROUP_LEN: usize = 8 << 10;

/// To whom what a process opens is attributed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// A unit of the system.
    Unit(Unit),
    /// The service manager, a user, a container: left out.
    Other,
    /// Nobody knows: the process has ended.
    Ended,
}

#[derive(Debug)]
struct Known {
    reader: Reader,
    /// Whether it stays that reader's until it executes something; what the manager has just started
    /// does not.
    settled: bool,
    at: Duration,
}

/// The processes that opened something of late.
#[derive(Debug)]
pub(crate) struct Processes {
    proc: OwnedFd,
    known: HashMap<u32, Known>,
    buffer: Vec<u8>,
}

impl Processes {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
        Ok(Self { proc, known: HashMap::new(), buffer: vec![0; MAX_CGROUP_LEN] })
    }

    /// Who `pid` belongs to at the time `now`; `executed` if it has just executed a program.
    pub(crate) fn reader(&mut self, pid: u32, executed: bool, now: Duration) -> Reader {
        if let Some(known) = self.known.get(&pid) {
            let age = now.saturating_sub(known.at);
            if known.settled && !executed && age < TRUST_DURATION {
                return known.reader.clone();
            }
        }
        match self.look(pid) {
            Some(owner) => self.remember(pid, owner, now),
            None => self.ended(pid, now),
        }
    }

    fn remember(&mut self, pid: u32, owner: Owner, now: Duration) -> Reader {
        let settled = owner != Owner::Manager && owner != Owner::Unit(Unit::new("init.scope"));
        let reader = match owner {
            Owner::Unit(unit) if settled => Reader::Unit(unit),
            _ => Reader::Other,
        };
        if self.known.len() >= MAX_PROCESSES {
            self.known.clear();
        }
        self.known.insert(pid, Known { reader: reader.clone(), settled, at: now });
        reader
    }

    fn ended(&self, pid: u32, now: Duration) -> Reader {
        let known = self
            .known
            .get(&pid)
            .filter(|known| known.settled && now.saturating_sub(known.at) < ENDED_DURATION);
        known.map_or(Reader::Ended, |known| known.reader.clone())
    }

    /// The owner of a process that is there. The text may be anything: it is parsed as bytes.
    fn look(&mut self, pid: u32) -> Option<Owner> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.proc, format!("{pid}/cgroup"), flags, Mode::empty()).ok()?;
        let len = rustix::io::read(&file, &mut self.buffer[..]).ok()?;
        Some(owner_of(pid, &self.buffer[..len]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_ended_process_is_remembered_for_a_while() {
        let mut processes = Processes::new().expect("/proc is there");
        let gone = u32::MAX;
        assert_eq!(processes.reader(gone, false, at(0)), Reader::Ended);
        let unit = Unit::new("a.service");
        processes.remember(gone, Owner::Unit(unit.clone()), at(0));
        assert_eq!(processes.reader(gone, false, at(50)), Reader::Unit(unit.clone()));
        assert_eq!(processes.reader(gone, true, at(500)), Reader::Unit(unit));
        assert_eq!(processes.reader(gone, false, at(2500)), Reader::Ended);
    }

    #[test]
    fn what_still_has_the_managers_group_is_looked_up_each_time() {
        let mut processes = Processes::new().expect("/proc is there");
        let gone = u32::MAX;
        let manager = Owner::Unit(Unit::new("init.scope"));
        assert_eq!(processes.remember(gone, manager, at(0)), Reader::Other);
        assert_eq!(processes.reader(gone, false, at(1)), Reader::Ended, "not from memory");
    }
}
