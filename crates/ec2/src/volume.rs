//! The other way to a snapshot, for accounts that may not use the EBS direct interface: EC2 copies a
//! volume that an instance has patched. Its snapshots are incremental too, as long as the volume stays.

use aws_sdk_ec2::operation::create_snapshot::CreateSnapshotOutput;
use aws_sdk_ec2::types::{ResourceType, TagSpecification};
use vireo_model::{Digest, ImageName};

use crate::calls::Calls;
use crate::error::Ec2Error;
use crate::tags;

impl Calls {
    /// The snapshot with a version's tags that was made of the volume, once it is complete: its identity
    /// and the volume's size in GiB. If this program is to write the volume, one that was made of it as it
    /// was is refused: it can hold anything.
    pub(crate) async fn snapshot_of_volume(
        &self,
        image: &ImageName,
        version: u64,
        tree: Digest,
        volume: &str,
        from_disk: bool,
    ) -> Result<Option<(String, u32)>, Ec2Error> {
        let filters = [
            tags::filter_image(image),
            tags::filter(format!("tag:{}", tags::VERSION), version.to_string()),
            tags::filter(format!("tag:{}", tags::TREE), tree.to_string()),
            tags::filter("volume-id", volume),
            tags::filter_usable(),
        ];
        let Some(snapshot) = self.snapshots(&filters).await?.pop() else { return Ok(None) };
        let id = snapshot.snapshot_id.clone().unwrap_or_default();
        if from_disk && !tags::is_from_disk(snapshot.tags()) {
            return Err(Ec2Error::refused(format!(
                "snapshot {id} of {image}@{version} was made of {volume} as it was, without --device; if that \
                 was not meant, remove it (`aws ec2 delete-snapshot --snapshot-id {id}`) and run this again"
            )));
        }
        self.await_snapshot(&id).await?;
        Ok(Some((id, snapshot.volume_size.unwrap_or(0).cast_unsigned())))
    }

    /// Has EC2 copy a volume, which nobody writes to meanwhile, into a snapshot with a version's tags;
    /// gives its identity and the volume's size in GiB.
    pub(crate) async fn snapshot_volume(
        &self,
        image: &ImageName,
        version: u64,
        tree: Digest,
        volume: &str,
        from_disk: bool,
    ) -> Result<(String, u32), Ec2Error> {
        let own = tags::of_content(image, version, tree, from_disk);
        let own = own.into_iter().map(|(key, value)| tags::tag(key, value)).collect();
        let own =
            TagSpecification::builder().resource_type(ResourceType::Snapshot).set_tags(Some(own));
        let own = own.build();
        let call = || {
            let create = self.ec2.create_snapshot().volume_id(volume);
            create.description(format!("{image}@{version}")).tag_specifications(own.clone()).send()
        };
        let instead = || CreateSnapshotOutput::builder().snapshot_id("snap-(new)").build();
        let what = format!("{image}@{version} of {volume}");
        let answer = self.change("CreateSnapshot", what, instead, call).await?;
        let id = answer
            .snapshot_id
            .ok_or_else(|| Ec2Error::refused("CreateSnapshot gave no identity"))?;
        self.await_snapshot(&id).await?;
        Ok((id, answer.volume_size.unwrap_or(0).cast_unsigned()))
    }
}
