//! For tests of whoever uses a cloud: one in memory, and the contract as code.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use vireo_model::{Digest, ImageName};

use crate::{Cloud, CloudError, Launchable, Machine};

/// A cloud that only remembers.
#[derive(Debug, Default)]
pub struct FakeCloud {
    current: Mutex<BTreeMap<ImageName, Launchable>>,
    machines: Vec<Machine>,
}

impl FakeCloud {
    /// A cloud in which these machines run.
    #[must_use]
    pub fn running(machines: Vec<Machine>) -> Self {
        Self { machines, ..Self::default() }
    }
}

impl Cloud for FakeCloud {
    fn publish(
        &self,
        image: &ImageName,
        version: u64,
        tree: Digest,
        disk: &Path,
    ) -> Result<Launchable, CloudError> {
        fs::metadata(disk).map_err(crate::error::io_error("read", disk))?;
        let address = format!("fake:{image}@{version}");
        let launchable = Launchable { image: image.clone(), version, tree, address };
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.insert(image.clone(), launchable.clone());
        Ok(launchable)
    }

    fn current(&self, image: &ImageName) -> Result<Option<Launchable>, CloudError> {
        Ok(self.current.lock().unwrap_or_else(PoisonError::into_inner).get(image).cloned())
    }

    fn machines(&self, image: &ImageName) -> Result<Vec<Machine>, CloudError> {
        Ok(self.machines.iter().filter(|machine| machine.image == *image).cloned().collect())
    }
}

/// Holds `cloud`, empty at the start, to the contract of [`Cloud`]; `dir` is for disk images.
///
/// # Panics
///
/// If it does not keep it.
pub fn check_cloud(cloud: &dyn Cloud, dir: &Path) {
    let [web, db] = ["web", "db"].map(|name| name.parse::<ImageName>().expect("a name"));
    assert_eq!(cloud.current(&web).expect("it answers"), None, "nothing is published yet");
    assert_eq!(cloud.machines(&web).expect("it answers"), [], "nothing runs");

    let disk = dir.join("contract.img");
    fs::write(&disk, "disk").expect("the test's directory is writable");
    let [one, two] = [Digest::of(b"1"), Digest::of(b"2")];
    let first = cloud.publish(&web, 1, one, &disk).expect("published");
    assert_eq!((first.version, first.tree), (1, one));
    assert_eq!(cloud.current(&web).expect("it answers"), Some(first.clone()));
    assert_eq!(cloud.publish(&web, 1, one, &disk).expect("published"), first, "twice is once");

    let second = cloud.publish(&web, 2, two, &disk).expect("published");
    assert_ne!(first.address, second.address, "versions do not share a place");
    assert_eq!(cloud.current(&web).expect("it answers"), Some(second), "the last one counts");
    assert_eq!(cloud.current(&db).expect("it answers"), None, "images are apart");

    assert!(cloud.publish(&web, 3, one, &dir.join("absent.img")).is_err(), "no disk, no version");
    cloud.publish(&web, 1, one, &disk).expect("published");
    assert_eq!(cloud.current(&web).expect("it answers"), Some(first), "an earlier one comes back");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fake_keeps_the_contract() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        check_cloud(&FakeCloud::default(), dir.path());
    }
}
