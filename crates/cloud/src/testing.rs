//! For tests of whoever uses a cloud: one in memory, and the contract as code.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use vireo_model::{Digest, ImageName};

use crate::{Cloud, CloudError, Earlier, Launchable, Machine, Publication};

/// A cloud that only remembers.
#[derive(Debug, Default)]
pub struct FakeCloud {
    current: Mutex<BTreeMap<ImageName, Launchable>>,
    settled: Mutex<Vec<ImageName>>,
    machines: Vec<Machine>,
}

impl FakeCloud {
    /// A cloud in which these machines run.
    #[must_use]
    pub fn running(machines: Vec<Machine>) -> Self {
        Self { machines, ..Self::default() }
    }

    /// The images that were settled, in order.
    #[must_use]
    pub fn settled(&self) -> Vec<ImageName> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Cloud for FakeCloud {
    fn publish(&self, publication: &Publication<'_>) -> Result<Launchable, CloudError> {
        let Publication { image, version, tree, disk, earlier: _ } = *publication;
        fs::metadata(disk).map_err(crate::error::io_error("read", disk))?;
        let address = format!("fake:{image}@{version}");
        let launchable = Launchable { image: image.clone(), version, tree, address };
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.insert(image.clone(), launchable.clone());
        Ok(launchable)
    }

    fn settle(&self, image: &ImageName) -> Result<(), CloudError> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).push(image.clone());
        Ok(())
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
    cloud.settle(&web).expect("nothing follows from nothing");

    let disks = [1, 2].map(|byte| {
        let disk = dir.join(format!("contract-{byte}.img"));
        fs::write(&disk, vec![byte; 700_000]).expect("the test's directory is writable");
        disk
    });
    let [one, two] = [Digest::of(b"1"), Digest::of(b"2")];
    let publish = |version, tree, disk: &Path, earlier: &[Earlier]| {
        cloud.publish(&Publication { image: &web, version, tree, disk, earlier })
    };
    let first = publish(1, one, &disks[0], &[]).expect("published");
    assert_eq!((first.version, first.tree), (1, one));
    assert_eq!(cloud.current(&web).expect("it answers"), Some(first.clone()));
    assert_eq!(publish(1, one, &disks[0], &[]).expect("published"), first, "twice is once");

    let earlier = [Earlier { version: 1, tree: one, disk: disks[0].clone() }];
    let second = publish(2, two, &disks[1], &earlier).expect("published");
    assert_ne!(first.address, second.address, "versions do not share a place");
    assert_eq!(cloud.current(&web).expect("it answers"), Some(second.clone()), "the last counts");
    cloud.settle(&web).expect("settled");
    assert_eq!(cloud.current(&web).expect("it answers"), Some(second), "settling changes nothing");
    assert_eq!(cloud.current(&db).expect("it answers"), None, "images are apart");

    let absent = dir.join("absent.img");
    assert!(publish(3, one, &absent, &earlier).is_err(), "no disk, no version");
    publish(1, one, &disks[0], &[]).expect("published");
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
