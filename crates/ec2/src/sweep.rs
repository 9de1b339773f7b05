//! Finding and removing what nobody uses: snapshots that no machine image starts from.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::types::Snapshot;
use vireo_model::ImageName;

use crate::Ec2;
use crate::error::Ec2Error;
use crate::tags;

impl Ec2 {
    /// Removes the snapshots of `image` that Vireo made, that no machine image of ours starts from, and
    /// that are older than `age`: what crashes on hosts leave that are gone. What this host has begun and
    /// will go on with is spared; younger ones may be another host's at work. Gives their identities.
    ///
    /// # Errors
    ///
    /// Those of the calls; what was removed before is removed.
    pub fn sweep(&self, image: &ImageName, age: Duration) -> Result<Vec<String>, Ec2Error> {
        let mut journal = self.journal(image)?;
        // Nothing is older than time itself.
        let Some(oldest) = SystemTime::now().checked_sub(age) else { return Ok(Vec::new()) };
        self.block_on(async {
            let published = self.calls.published(image).await?;
            let mut used: BTreeSet<&str> =
                published.iter().flat_map(|ami| ami.snapshots.iter().map(String::as_str)).collect();
            let newest = published.iter().map(|ami| ami.version).max().unwrap_or(0);
            let own = journal.spared(newest);
            used.extend(own.iter().map(String::as_str));
            let mut removed = Vec::new();
            for snapshot in self.calls.snapshots(&[tags::filter_image(image)]).await? {
                let Some(id) = snapshot.snapshot_id() else { continue };
                if used.contains(id) || !is_before(&snapshot, oldest) {
                    continue;
                }
                self.calls.delete_snapshot(id).await?;
                journal.forget(id)?;
                removed.push(id.to_owned());
            }
            Ok(removed)
        })
    }
}

fn is_before(snapshot: &Snapshot, oldest: SystemTime) -> bool {
    let started = snapshot.start_time().and_then(|time| SystemTime::try_from(*time).ok());
    started.is_some_and(|started| started <= oldest)
}
