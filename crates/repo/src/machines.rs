//! Machines that run in the cloud, and the agents on them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use vireo_cloud::Machine;
use vireo_wire::api::InstanceEntry;

use crate::error::RepoError;
use crate::repository::Repository;

/// An agent that was seen within this time is at work: it asks every few minutes, and an update can take
/// a while.
pub const AGENT_RECENT: Duration = Duration::from_secs(30 * 60);

/// A machine of the cloud, and its agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FleetMachine {
    /// As the cloud knows it.
    #[serde(flatten)]
    pub machine: Machine,
    /// The instance that enrolled from it and was seen last; `None` if no agent said that it is on it.
    pub agent: Option<InstanceEntry>,
}

impl Repository {
    /// Machines that a cloud says run, each with its agent.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`.
    pub fn with_agents(&self, machines: Vec<Machine>) -> Result<Vec<FleetMachine>, RepoError> {
        Ok(join(machines, self.instances()?))
    }

    /// The instance whose agent is at work on the cloud's machine `cloud_id`: it was seen within
    /// [`AGENT_RECENT`].
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`.
    pub fn agent_at_work(&self, cloud_id: &str) -> Result<Option<InstanceEntry>, RepoError> {
        let now = self.now();
        let agent = by_cloud_id(self.instances()?).remove(cloud_id);
        Ok(agent.filter(|agent| now.duration_since(agent.last_seen).unsigned_abs() < AGENT_RECENT))
    }
}

/// Who enrolled from which machine. One that enrolled again has several instances: the one that was seen
/// last counts.
fn by_cloud_id(instances: Vec<InstanceEntry>) -> BTreeMap<String, InstanceEntry> {
    let mut found = BTreeMap::<String, InstanceEntry>::new();
    for instance in instances {
        let Some(cloud_id) = instance.cloud_id.clone() else { continue };
        let is_later =
            found.get(&cloud_id).is_none_or(|other| other.last_seen < instance.last_seen);
        if is_later {
            found.insert(cloud_id, instance);
        }
    }
    found
}

fn join(machines: Vec<Machine>, instances: Vec<InstanceEntry>) -> Vec<FleetMachine> {
    let mut agents = by_cloud_id(instances);
    let with_agent = |machine: Machine| {
        let agent = agents.remove(&machine.name);
        FleetMachine { machine, agent }
    };
    machines.into_iter().map(with_agent).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use jiff::Timestamp;
    use vireo_model::ImageName;
    use vireo_store::Durable;
    use vireo_wire::api::{CreateImage, EnrollRequest};

    use super::*;
    use crate::ErrorKind;
    use crate::testing::{FakeImages, tree};

    const FILES: &[(&str, &[u8])] = &[("/a", b"1")];

    fn web() -> ImageName {
        "web".parse().expect("a name")
    }

    fn machine(name: &str) -> Machine {
        Machine { name: name.to_owned(), image: web(), version: Some(1), address: None }
    }

    /// A repository whose clock shows the seconds in `seconds`, with the image `web`.
    fn repository(dir: &Path, seconds: &Arc<AtomicI64>) -> Repository {
        let root = dir.join("repo");
        Repository::init(&root, &[], Timestamp::UNIX_EPOCH).expect("made");
        let disk = dir.join("base.img");
        std::fs::write(&disk, FakeImages::disk(&tree(FILES))).expect("writable");
        let hand = Arc::clone(seconds);
        let clock = Arc::new(move || {
            Timestamp::from_second(hand.load(Ordering::Relaxed)).expect("in range")
        });
        let images = Box::new(FakeImages::writing_by(Arc::new(Durable)));
        let repository = Repository::open(&root, images, clock).expect("it is a repository");
        repository.create_image(&web(), &disk, &CreateImage::default()).expect("created");
        repository
    }

    fn enroll(
        repository: &Repository,
        name: &str,
        cloud_id: Option<&str>,
    ) -> Result<(), RepoError> {
        let tree = tree(FILES).digest();
        let cloud_id = cloud_id.map(str::to_owned);
        let request = EnrollRequest { name: name.to_owned(), image: web(), tree, cloud_id };
        repository.enroll(&request).map(drop)
    }

    #[test]
    fn a_machine_has_the_agent_that_enrolled_from_it_last() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let seconds = Arc::<AtomicI64>::default();
        let repository = repository(dir.path(), &seconds);
        enroll(&repository, "before", Some("i-2b")).expect("enrolled");
        seconds.store(100, Ordering::Relaxed);
        enroll(&repository, "again", Some("i-2b")).expect("enrolled");
        enroll(&repository, "elsewhere", Some("i-3c")).expect("enrolled");
        enroll(&repository, "old", None).expect("enrolled");
        let running = vec![machine("i-1a"), machine("i-2b")];
        let machines = repository.with_agents(running).expect("readable");
        let agents: Vec<_> = machines
            .iter()
            .map(|found| (&*found.machine.name, found.agent.as_ref().map(|agent| &*agent.name)))
            .collect();
        assert_eq!(agents, [("i-1a", None), ("i-2b", Some("again"))]);
        assert_eq!(machines[1].agent.as_ref().and_then(|agent| agent.version), Some(1));
    }

    #[test]
    fn an_agent_that_was_not_seen_for_long_is_not_at_work() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let seconds = Arc::<AtomicI64>::default();
        let repository = repository(dir.path(), &seconds);
        enroll(&repository, "web-1", Some("i-1a")).expect("enrolled");
        let recent = i64::try_from(AGENT_RECENT.as_secs()).expect("small");
        let at_work = |now, cloud_id: &str| {
            seconds.store(now, Ordering::Relaxed);
            repository.agent_at_work(cloud_id).expect("readable").is_some()
        };
        assert!(at_work(recent - 1, "i-1a"));
        assert!(!at_work(recent, "i-1a"));
        assert!(!at_work(0, "i-2b"));
    }

    #[test]
    fn what_cannot_be_a_machines_identity_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let repository = repository(dir.path(), &Arc::default());
        for cloud_id in ["", "i 1", "i-\n", "ä", &"i".repeat(65)] {
            let error = enroll(&repository, "web-1", Some(cloud_id)).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Refused, "{cloud_id}");
        }
        assert!(repository.instances().expect("readable").is_empty());
    }
}
