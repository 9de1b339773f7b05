//! What our machine images take over from the one that they are made like, and which ones they cannot be
//! made like.

use aws_sdk_ec2::types::{
    BlockDeviceMapping, BootModeValues, DeviceType, EbsBlockDevice, Image, ImageAttributeName,
};

use crate::calls::Calls;
use crate::error::{Ec2Error, ErrorKind};
use crate::journal::Held;
use crate::tags;

/// What machine images of ours have in common with the one they are made like.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    pub(crate) image: Image,
    pub(crate) uefi_data: Option<String>,
    /// Size of the root volume in GiB that the settings ask for.
    pub(crate) volume_gib: Option<u32>,
}

impl Attributes {
    /// Refuses what a machine image of ours cannot be made like, before anything is uploaded.
    fn new(image: Image, encrypted: bool) -> Result<Self, Ec2Error> {
        let id = image.image_id().unwrap_or("the machine image").to_owned();
        if image.root_device_type() == Some(&DeviceType::InstanceStore) {
            return Err(Ec2Error::refused(format!(
                "{id} starts from instance store; name one in `like` whose root device is on EBS"
            )));
        }
        let root = root_mapping(&image).and_then(BlockDeviceMapping::ebs);
        if root.and_then(EbsBlockDevice::encrypted) == Some(true) && !encrypted {
            return Err(Ec2Error::refused(format!(
                "the root device of {id} is encrypted; add `encrypted = true` to the image's settings (and `kms-key`), or name an unencrypted one in `like`"
            )));
        }
        let billed = image.usage_operation().is_some_and(|usage| usage != "RunInstances");
        if billed || !image.product_codes().is_empty() {
            return Err(Ec2Error::refused(format!(
                "{id} carries product codes or billing that registering cannot carry over; publish such images from an instance's volume (CreateImage)"
            )));
        }
        if image.architecture().is_none() || image.root_device_name().is_none() {
            return Err(Ec2Error::refused(format!("{id} has no architecture or no root device")));
        }
        Ok(Self { image, uefi_data: None, volume_gib: None })
    }

    /// The devices: those of the model, with our snapshot as the root.
    pub(crate) fn devices(&self, held: &Held) -> Vec<BlockDeviceMapping> {
        let root_name = self.image.root_device_name();
        let root = root_mapping(&self.image).and_then(BlockDeviceMapping::ebs).cloned();
        let like_gib = root.as_ref().and_then(EbsBlockDevice::volume_size).unwrap_or(0);
        let asked_gib = self.volume_gib.map_or(like_gib, u32::cast_signed);
        // No volume is smaller than its snapshot.
        let gib = asked_gib.max(held.volume_gib.cast_signed());
        let mut ebs = EbsBlockDevice::builder()
            .snapshot_id(&held.snapshot)
            .volume_size(gib)
            .delete_on_termination(true);
        if let Some(root) = root {
            ebs = ebs
                .set_delete_on_termination(root.delete_on_termination.or(Some(true)))
                .set_volume_type(root.volume_type)
                .set_iops(root.iops)
                .set_throughput(root.throughput);
        }
        let ours = BlockDeviceMapping::builder()
            .set_device_name(root_name.map(str::to_owned))
            .ebs(ebs.build())
            .build();
        let others = self.image.block_device_mappings().iter();
        let others = others.filter(|other| other.device_name() != root_name);
        std::iter::once(ours).chain(others.cloned().map(without_encryption)).collect()
    }
}

/// A device that starts from a snapshot is encrypted as the snapshot is, and must not be told so.
fn without_encryption(mut mapping: BlockDeviceMapping) -> BlockDeviceMapping {
    if let Some(ebs) = &mut mapping.ebs
        && ebs.snapshot_id.is_some()
    {
        (ebs.encrypted, ebs.kms_key_id) = (None, None);
    }
    mapping
}

fn root_mapping(image: &Image) -> Option<&BlockDeviceMapping> {
    let mut mappings = image.block_device_mappings().iter();
    mappings.find(|mapping| mapping.device_name() == image.root_device_name())
}

impl Calls {
    /// What ours are made like.
    pub(crate) async fn attributes(
        &self,
        id: &str,
        encrypted: bool,
    ) -> Result<Attributes, Ec2Error> {
        let found = self.images(vec![tags::filter("image-id", id)], false).await?.pop();
        let image = found.ok_or_else(|| {
            let what = format!(
                "there is no machine image {id} at {}, or it is not shared with this account; correct `like` or the region",
                self.place
            );
            Ec2Error::plain(ErrorKind::NotFound, what)
        })?;
        let is_uefi =
            matches!(image.boot_mode(), Some(BootModeValues::Uefi | BootModeValues::UefiPreferred));
        let own = Attributes::new(image, encrypted)?;
        Ok(Attributes { uefi_data: if is_uefi { self.uefi_data(id).await? } else { None }, ..own })
    }

    /// The variables of UEFI, which hold the keys of secure boot. Only an image's owner may read them.
    async fn uefi_data(&self, id: &str) -> Result<Option<String>, Ec2Error> {
        let call = || {
            let ask = self.ec2.describe_image_attribute().image_id(id);
            ask.attribute(ImageAttributeName::UefiData).send()
        };
        match self.ask("DescribeImageAttribute", id, call).await {
            Ok(answer) => Ok(answer.uefi_data.and_then(|data| data.value)),
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Refused) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{
        ArchitectureValues, ImdsSupportValues, ProductCode, TpmSupportValues, VolumeType,
    };
    use vireo_model::Digest;

    use super::*;

    fn model() -> aws_sdk_ec2::types::builders::ImageBuilder {
        let root = EbsBlockDevice::builder()
            .snapshot_id("snap-like")
            .volume_size(8)
            .volume_type(VolumeType::Gp3)
            .throughput(250)
            .delete_on_termination(true);
        let root = BlockDeviceMapping::builder().device_name("/dev/xvda").ebs(root.build());
        let swap = BlockDeviceMapping::builder().device_name("/dev/sdb").virtual_name("ephemeral0");
        Image::builder()
            .image_id("ami-like")
            .architecture(ArchitectureValues::Arm64)
            .boot_mode(BootModeValues::Uefi)
            .tpm_support(TpmSupportValues::V20)
            .imds_support(ImdsSupportValues::V20)
            .ena_support(true)
            .root_device_type(DeviceType::Ebs)
            .root_device_name("/dev/xvda")
            .block_device_mappings(root.build())
            .block_device_mappings(swap.build())
    }

    fn held(volume_gib: u32) -> Held {
        let disk = tempfile::NamedTempFile::new().expect("a temporary file");
        Held {
            snapshot: "snap-new".to_owned(),
            version: 1,
            tree: Digest::of(b""),
            disk: crate::journal::Disk::open(disk.path()).expect("there").stamp,
            volume_gib,
            registered: false,
        }
    }

    #[test]
    fn devices_are_the_models_with_our_snapshot_as_the_root() {
        let like = Attributes::new(model().build(), false).expect("usable");
        let devices = like.devices(&held(2));
        let root = devices[0].ebs().expect("a volume");
        assert_eq!(devices[0].device_name(), Some("/dev/xvda"));
        assert_eq!((root.snapshot_id(), root.volume_size()), (Some("snap-new"), Some(8)));
        assert_eq!((root.throughput(), root.encrypted()), (Some(250), None));
        assert_eq!(devices[1].virtual_name(), Some("ephemeral0"));
    }

    #[test]
    fn the_root_volume_has_the_size_that_is_asked_for_and_holds_the_snapshot() {
        let like = Attributes::new(model().build(), false).expect("usable");
        let size = |volume_gib, held_gib| {
            let like = Attributes { volume_gib, ..like.clone() };
            like.devices(&held(held_gib))[0].ebs().and_then(|ebs| ebs.volume_size())
        };
        assert_eq!(size(None, 2), Some(8), "the model's");
        assert_eq!(size(None, 20), Some(20), "the snapshot's");
        assert_eq!(size(Some(20), 2), Some(20), "larger than the model's");
        assert_eq!(size(Some(4), 2), Some(4), "smaller than the model's");
        assert_eq!(size(Some(4), 6), Some(6), "never smaller than the snapshot's");
    }

    #[track_caller]
    fn check_refused(image: Image, names: &str) {
        let error = Attributes::new(image, false).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(names), "{error}");
    }

    #[test]
    fn what_ours_cannot_be_made_like_is_refused_with_the_remedy() {
        check_refused(
            model().root_device_type(DeviceType::InstanceStore).build(),
            "instance store",
        );
        let encrypted = EbsBlockDevice::builder().encrypted(true).build();
        let root = BlockDeviceMapping::builder().device_name("/dev/xvda").ebs(encrypted).build();
        let image = model().set_block_device_mappings(Some(vec![root])).build();
        check_refused(image.clone(), "`encrypted = true`");
        Attributes::new(image, true).expect("the settings say that ours are encrypted too");
        check_refused(model().usage_operation("RunInstances:0010").build(), "billing");
        check_refused(
            model().product_codes(ProductCode::builder().build()).build(),
            "product codes",
        );
    }
}
