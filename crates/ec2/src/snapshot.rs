//! Snapshots: looking for them, waiting for them, removing them.

use aws_sdk_ec2::types::{Filter, Snapshot, SnapshotState};

use crate::calls::Calls;
use crate::error::{Ec2Error, ErrorKind};
use crate::tags;

/// How many things a page of an answer is asked to have.
pub(crate) const PAGE: i32 = 200;

impl Calls {
    /// Our own snapshots that `filters` let through.
    pub(crate) async fn snapshots(&self, filters: &[Filter]) -> Result<Vec<Snapshot>, Ec2Error> {
        let mut found = Vec::new();
        let mut page = None;
        loop {
            let call = || {
                self.ec2
                    .describe_snapshots()
                    .owner_ids("self")
                    .set_filters(Some(filters.to_vec()))
                    .max_results(PAGE)
                    .set_next_token(page.clone())
                    .send()
            };
            let answer = self.ask("DescribeSnapshots", "our snapshots", call).await?;
            found.extend(answer.snapshots.unwrap_or_default());
            page = answer.next_token.filter(|token| !token.is_empty());
            if page.is_none() {
                return Ok(found);
            }
        }
    }

    /// The snapshot of that identity, if there is one. A filter, not a list of identities: with a list
    /// one that is gone is an error.
    pub(crate) async fn snapshot(&self, id: &str) -> Result<Option<Snapshot>, Ec2Error> {
        Ok(self.snapshots(&[tags::filter("snapshot-id", id)]).await?.pop())
    }

    /// Waits until a snapshot is complete. One that was just begun may not be seen for a while.
    pub(crate) async fn await_snapshot(&self, id: &str) -> Result<(), Ec2Error> {
        if self.dry {
            return Ok(());
        }
        let look = async || match self.snapshot(id).await? {
            Some(snapshot) => match snapshot.state() {
                Some(SnapshotState::Completed) => Ok(Some(())),
                Some(SnapshotState::Error) => {
                    let why = snapshot.state_message().unwrap_or("no reason given").to_owned();
                    let what = format!(
                        "snapshot {id} failed: {why}; run this again, which makes another one"
                    );
                    Err(Ec2Error::refused(what))
                }
                _ => Ok(None),
            },
            None => Ok(None),
        };
        self.until(&format!("the completion of snapshot {id}"), look).await
    }

    /// Removes a snapshot; one that is gone already is as good.
    pub(crate) async fn delete_snapshot(&self, id: &str) -> Result<(), Ec2Error> {
        let call = || self.ec2.delete_snapshot().snapshot_id(id).send();
        let instead =
            || aws_sdk_ec2::operation::delete_snapshot::DeleteSnapshotOutput::builder().build();
        match self.change("DeleteSnapshot", id.to_owned(), instead, call).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}
