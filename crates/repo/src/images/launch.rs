//! Publishing: recording a version, and bringing the cloud up to it.

use std::time::Duration;

use vireo_cloud::{Cloud, Earlier, Publication};
use vireo_model::ImageName;
use vireo_store::VersionRecord;
use vireo_wire::api::VersionEntry;

use super::entry;
use crate::error::{Detail, RepoError};
use crate::event::Event;
use crate::repository::Repository;

/// Time until a slow cloud that failed is tried again without a push.
const LAUNCH_RETRY: Duration = Duration::from_secs(600);

impl Repository {
    pub(super) fn publish(
        &self,
        image: &ImageName,
        record: &VersionRecord,
    ) -> Result<VersionEntry, RepoError> {
        self.store.publish(image, record)?;
        self.tell(&Event::Published {
            image: image.clone(),
            version: record.number,
            tree: record.tree,
            wire_bytes: record.wire_bytes,
        });
        if self.cloud.as_ref().is_some_and(|cloud| cloud.is_slow()) {
            self.launch_due.tell();
        } else {
            // The version stands; the cloud is brought up to date at the next start or push.
            self.launch_and_tell(image);
        }
        Ok(entry(record))
    }

    /// Keeps the cloud up to date, for a thread of its own: at once, after every push, and again
    /// every ten minutes while something fails. What happens is told to the observer. Comes back at
    /// once without a cloud, and only once everything was tried with one that is quick: pushes
    /// themselves then wait for it.
    ///
    /// A process that ends meanwhile leaves work for the next start, and nothing to clean up.
    pub fn keep_launched(&self) {
        let Some(cloud) = &self.cloud else { return };
        loop {
            let images = match self.store.images() {
                Ok(images) => images,
                Err(error) => {
                    let request = "publish to the cloud".to_owned();
                    self.tell(&Event::Failed { request, error: RepoError::from(error).chain() });
                    Vec::new()
                }
            };
            // All are tried, whatever happens to the first.
            let failures = images.iter().filter(|image| !self.launch_and_tell(image)).count();
            if !cloud.is_slow() {
                return;
            }
            self.launch_due.wait((failures > 0).then_some(LAUNCH_RETRY));
        }
    }

    fn launch_and_tell(&self, image: &ImageName) -> bool {
        let outcome = self.launch_current(image);
        if let Err(error) = &outcome {
            let request = format!("publish {image} to the cloud");
            self.tell(&Event::Failed { request, error: error.chain() });
        }
        outcome.is_ok()
    }

    /// Brings the cloud up to date: new machines of every image start from its newest version, and what
    /// follows from that is done. Does nothing without a cloud.
    ///
    /// # Errors
    ///
    /// The first image's that failed: `NoSpace`, `Io`; the others were tried.
    pub fn launch_all_current(&self) -> Result<(), RepoError> {
        let mut outcome = Ok(());
        for image in self.store.images()? {
            let launched = self.launch_current(&image);
            outcome = outcome.and(launched);
        }
        outcome
    }

    fn launch_current(&self, image: &ImageName) -> Result<(), RepoError> {
        let Some(cloud) = self.cloud.as_ref().filter(|cloud| cloud.takes(image)) else {
            return Ok(());
        };
        loop {
            let newest = self.newest(image)?;
            self.launch(cloud.as_ref(), image, &newest)?;
            // A cloud can have been waited for while another process published a version, and the one that
            // was newest then be current now.
            if self.newest(image)?.number == newest.number {
                return Ok(());
            }
        }
    }

    fn launch(
        &self,
        cloud: &dyn Cloud,
        image: &ImageName,
        newest: &VersionRecord,
    ) -> Result<(), RepoError> {
        let failed = |source| Detail::Cloud { image: image.clone(), source };
        let current = cloud.current(image).map_err(failed)?;
        if current
            .is_some_and(|current| current.version == newest.number && current.tree == newest.tree)
        {
            // What follows from it may have failed when it became current.
            return Ok(cloud.settle(image).map_err(failed)?);
        }
        let disk = self.store.disk_path(newest.tree);
        let launchable = cloud
            .publish(&Publication {
                image,
                version: newest.number,
                tree: newest.tree,
                disk: &disk,
                earlier: &self.earlier(image, newest.number)?,
            })
            .map_err(failed)?;
        self.tell(&Event::Launchable {
            image: image.clone(),
            version: newest.number,
            address: launchable.address,
        });
        Ok(())
    }

    /// The versions before `number` whose disks are here, latest first.
    fn earlier(&self, image: &ImageName, number: u64) -> Result<Vec<Earlier>, RepoError> {
        let versions = self.store.versions(image)?;
        let before = versions.iter().rev().filter(|version| version.number < number);
        let earlier = before.map(|version| Earlier {
            version: version.number,
            tree: version.tree,
            disk: self.store.disk_path(version.tree),
        });
        Ok(earlier.filter(|earlier| earlier.disk.exists()).collect())
    }
}
