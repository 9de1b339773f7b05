//! Machine images: finding ours, registering one like another, deprecating.

use std::time::{Duration, SystemTime};

use aws_sdk_ec2::operation::create_tags::CreateTagsOutput;
use aws_sdk_ec2::operation::disable_image_deprecation::DisableImageDeprecationOutput;
use aws_sdk_ec2::operation::enable_image_deprecation::EnableImageDeprecationOutput;
use aws_sdk_ec2::operation::register_image::RegisterImageOutput;
use aws_sdk_ec2::types::{
    BlockDeviceMapping, BootModeValues, DeviceType, EbsBlockDevice, Filter, Image, ImageState, Tag,
};
use aws_smithy_types::DateTime;
use vireo_cloud::Launchable;
use vireo_model::{Digest, ImageName};

use crate::calls::Calls;
use crate::error::{Ec2Error, ErrorKind};
use crate::journal::Held;
use crate::snapshot::PAGE;
use crate::tags;

/// From now to the time of a deprecation: EC2 rounds to minutes and refuses the past.
const DEPRECATE_IN: Duration = Duration::from_secs(300);

/// What a dry run calls a machine image that is not there.
const PLANNED: &str = "ami-(new)";

/// One of our machine images.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) id: String,
    pub(crate) version: u64,
    pub(crate) tree: Digest,
    pub(crate) snapshots: Vec<String>,
    /// Highest of all: what new machines start from. None: it was registered, and not more.
    pub(crate) sequence: Option<u64>,
    pub(crate) deprecated: bool,
}

/// What machine images of ours have in common with the one they are made like.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    image: Image,
    uefi_data: Option<String>,
}

impl Published {
    /// None for what is not ours, or not for launching: its tags say too little, or it failed.
    fn of(image: &Image) -> Option<Self> {
        let tags = image.tags();
        let usable =
            matches!(image.state(), Some(ImageState::Available | ImageState::Pending) | None);
        let mappings = image.block_device_mappings().iter();
        let mapped = mappings.filter_map(|mapping| mapping.ebs()?.snapshot_id().map(str::to_owned));
        let tagged = tags::value(tags, tags::SNAPSHOT).map(str::to_owned);
        usable.then_some(())?;
        Some(Self {
            id: image.image_id()?.to_owned(),
            version: tags::parsed(tags, tags::VERSION)?,
            tree: tags::parsed(tags, tags::TREE)?,
            snapshots: mapped.chain(tagged).collect(),
            sequence: tags::parsed(tags, tags::SEQUENCE),
            deprecated: image.deprecation_time().is_some_and(|time| !time.is_empty()),
        })
    }

    pub(crate) fn launchable(&self, image: &ImageName) -> Launchable {
        let Self { version, tree, id, .. } = self;
        Launchable { image: image.clone(), version: *version, tree: *tree, address: id.clone() }
    }
}

/// Which of ours new machines start from.
pub(crate) fn current(published: &[Published]) -> Option<&Published> {
    published.iter().filter(|ami| ami.sequence.is_some()).max_by_key(|ami| ami.sequence)
}

/// Those that are due to be deprecated: all but the `keep` that were current last.
fn outdated(published: &[Published], keep: usize) -> Vec<&Published> {
    let mut launched: Vec<&Published> =
        published.iter().filter(|ami| ami.sequence.is_some()).collect();
    launched.sort_by_key(|ami| std::cmp::Reverse(ami.sequence));
    launched.into_iter().skip(keep).filter(|ami| !ami.deprecated).collect()
}

/// The name of a version's machine image: names are unique, so a second registration of the same is
/// refused instead of made.
fn name(image: &ImageName, version: u64, tree: Digest) -> String {
    format!("vireo/{image}/{version}/{}", &tree.to_string()[..16])
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
        Ok(Self { image, uefi_data: None })
    }

    /// The devices: those of the model, with our snapshot as the root.
    fn devices(&self, held: &Held) -> Vec<BlockDeviceMapping> {
        let root_name = self.image.root_device_name();
        let root = root_mapping(&self.image).and_then(BlockDeviceMapping::ebs).cloned();
        let like_gib = root.as_ref().and_then(EbsBlockDevice::volume_size).unwrap_or(0);
        let gib = like_gib.max(held.volume_gib.cast_signed());
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
    async fn images(&self, filters: Vec<Filter>, own: bool) -> Result<Vec<Image>, Ec2Error> {
        let owners = own.then(|| vec!["self".to_owned()]);
        let mut found = Vec::new();
        let mut page = None;
        loop {
            let call = || {
                self.ec2
                    .describe_images()
                    .set_owners(owners.clone())
                    .set_filters(Some(filters.clone()))
                    .include_deprecated(true)
                    .max_results(PAGE)
                    .set_next_token(page.clone())
                    .send()
            };
            let answer = self.ask("DescribeImages", "machine images", call).await?;
            found.extend(answer.images.unwrap_or_default());
            page = answer.next_token.filter(|token| !token.is_empty());
            if page.is_none() {
                return Ok(found);
            }
        }
    }

    /// Our machine images of `image`.
    pub(crate) async fn published(&self, image: &ImageName) -> Result<Vec<Published>, Ec2Error> {
        let images = self.images(vec![tags::filter_image(image)], true).await?;
        Ok(images.iter().filter_map(Published::of).collect())
    }

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
            ask.attribute(aws_sdk_ec2::types::ImageAttributeName::UefiData).send()
        };
        match self.ask("DescribeImageAttribute", id, call).await {
            Ok(answer) => Ok(answer.uefi_data.and_then(|data| data.value)),
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Refused) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Registers a version's machine image, or finds it; it has its tags then, and can be launched.
    pub(crate) async fn register(
        &self,
        image: &ImageName,
        held: &Held,
        like: &Attributes,
    ) -> Result<Published, Ec2Error> {
        let (version, tree) = (held.version, held.tree);
        let name = name(image, version, tree);
        let registered = self.register_image(&name, held, like).await;
        let id = match registered {
            Err(error) if error.code() == Some("InvalidAMIName.Duplicate") => {
                self.named(&name).await?
            }
            outcome => outcome?,
        };
        // Not as part of the registration: that can have been before a crash.
        let mut own: Vec<Tag> = tags::of_version(image, version, tree)
            .into_iter()
            .map(|(key, value)| tags::tag(key, value))
            .collect();
        own.push(tags::tag(tags::SNAPSHOT, &held.snapshot));
        own.push(tags::tag("Name", format!("{image}@{version}")));
        self.tag(&[id.clone(), held.snapshot.clone()], own).await?;
        self.await_available(&id).await?;
        Ok(Published {
            id,
            version,
            tree,
            snapshots: vec![held.snapshot.clone()],
            sequence: None,
            deprecated: false,
        })
    }

    async fn register_image(
        &self,
        name: &str,
        held: &Held,
        like: &Attributes,
    ) -> Result<String, Ec2Error> {
        let Attributes { image, uefi_data } = like;
        let devices = like.devices(held);
        let virtualization = image.virtualization_type().map(|kind| kind.as_str().to_owned());
        let call = || {
            self.ec2
                .register_image()
                .name(name)
                .description("published by Vireo")
                .set_architecture(image.architecture.clone())
                .set_boot_mode(image.boot_mode.clone())
                .set_tpm_support(image.tpm_support.clone())
                .set_imds_support(image.imds_support.clone())
                .set_uefi_data(uefi_data.clone())
                .set_virtualization_type(virtualization.clone())
                .set_ena_support(image.ena_support)
                .set_sriov_net_support(image.sriov_net_support.clone())
                .set_root_device_name(image.root_device_name.clone())
                .set_block_device_mappings(Some(devices.clone()))
                .send()
        };
        let instead = || RegisterImageOutput::builder().image_id(PLANNED).build();
        let what =
            format!("{name} from {}, like {}", held.snapshot, image.image_id().unwrap_or("?"));
        let answer = self.change("RegisterImage", what, instead, call).await?;
        answer.image_id.ok_or_else(|| Ec2Error::refused("RegisterImage gave no identity"))
    }

    async fn named(&self, name: &str) -> Result<String, Ec2Error> {
        let found = self.images(vec![tags::filter("name", name)], true).await?.pop();
        found.and_then(|image| image.image_id).ok_or_else(|| {
            Ec2Error::refused(format!(
                "the name {name} is taken, but by no machine image that is seen; try again"
            ))
        })
    }

    async fn await_available(&self, id: &str) -> Result<(), Ec2Error> {
        if self.dry {
            return Ok(());
        }
        let look = async || {
            let found = self.images(vec![tags::filter("image-id", id)], true).await?.pop();
            let Some(image) = found else { return Ok(None) };
            match image.state() {
                Some(ImageState::Available) => Ok(Some(())),
                Some(ImageState::Failed | ImageState::Error | ImageState::Invalid) => {
                    let why = image.state_reason().and_then(|reason| reason.message());
                    Err(Ec2Error::refused(format!(
                        "machine image {id} failed: {}",
                        why.unwrap_or("no reason given")
                    )))
                }
                _ => Ok(None),
            }
        };
        self.until(&format!("machine image {id}"), look).await
    }

    pub(crate) async fn tag(&self, ids: &[String], tags: Vec<Tag>) -> Result<(), Ec2Error> {
        let pairs: Vec<String> = tags
            .iter()
            .map(|tag| format!("{}={}", tag.key().unwrap_or(""), tag.value().unwrap_or("")))
            .collect();
        let what = format!("{}: {}", ids.join(", "), pairs.join(" "));
        let call = || {
            let tags = Some(tags.clone());
            self.ec2.create_tags().set_resources(Some(ids.to_vec())).set_tags(tags).send()
        };
        self.change("CreateTags", what, || CreateTagsOutput::builder().build(), call)
            .await
            .map(drop)
    }

    /// Makes `ami` the one that new machines start from, as far as tags go: one call, so that there is
    /// one at every time. Gives it as it is then.
    pub(crate) async fn make_current(
        &self,
        image: &ImageName,
        ami: &Published,
    ) -> Result<Vec<Published>, Ec2Error> {
        let mut published = self.published(image).await?;
        if current(&published).is_some_and(|current| current.id == ami.id) {
            return Ok(published);
        }
        let highest = published.iter().filter_map(|ami| ami.sequence).max().unwrap_or(0);
        let sequence = highest + 1;
        self.tag(
            std::slice::from_ref(&ami.id),
            vec![tags::tag(tags::SEQUENCE, sequence.to_string())],
        )
        .await?;
        if !self.dry {
            let look = async || {
                let published = self.published(image).await?;
                Ok(current(&published).is_some_and(|current| current.id == ami.id).then_some(()))
            };
            self.until(&format!("the tag of machine image {}", ami.id), look).await?;
        }
        published.retain(|other| other.id != ami.id);
        published.push(Published { sequence: Some(sequence), ..ami.clone() });
        Ok(published)
    }

    /// Deprecates all but the `keep` that were current last; a deprecated one that is current again is
    /// no longer.
    pub(crate) async fn deprecate(
        &self,
        published: &[Published],
        keep: usize,
        now: SystemTime,
    ) -> Result<(), Ec2Error> {
        for ami in outdated(published, keep) {
            let call = || {
                let at = DateTime::from(now + DEPRECATE_IN);
                self.ec2.enable_image_deprecation().image_id(&ami.id).deprecate_at(at).send()
            };
            let instead = || EnableImageDeprecationOutput::builder().build();
            self.change("EnableImageDeprecation", ami.id.clone(), instead, call).await?;
        }
        if let Some(ami) = current(published).filter(|ami| ami.deprecated) {
            let call = || self.ec2.disable_image_deprecation().image_id(&ami.id).send();
            let instead = || DisableImageDeprecationOutput::builder().build();
            self.change("DisableImageDeprecation", ami.id.clone(), instead, call).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{
        ArchitectureValues, ImdsSupportValues, ProductCode, TpmSupportValues, VolumeType,
    };

    use super::*;

    fn published(id: &str, sequence: u64, deprecated: bool) -> Published {
        Published {
            id: id.to_owned(),
            version: 1,
            tree: Digest::of(b""),
            snapshots: Vec::new(),
            sequence: (sequence > 0).then_some(sequence),
            deprecated,
        }
    }

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
        assert_eq!(like.devices(&held(20))[0].ebs().and_then(|ebs| ebs.volume_size()), Some(20));
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

    #[test]
    fn the_current_one_has_the_highest_number_and_the_last_ones_are_kept() {
        let all = [
            published("a", 1, false),
            published("b", 4, false),
            published("c", 0, false),
            published("d", 3, false),
            published("e", 2, true),
        ];
        assert_eq!(current(&all).map(|ami| ami.id.as_str()), Some("b"));
        let ids = |keep| outdated(&all, keep).iter().map(|ami| ami.id.as_str()).collect::<Vec<_>>();
        assert_eq!(ids(1), ["d", "a"], "what is deprecated or was never current is left alone");
        assert_eq!(ids(4), [] as [&str; 0]);
    }

    #[test]
    fn names_are_short_enough_for_ec2() {
        let image: ImageName = "a".repeat(ImageName::MAX_LEN).parse().expect("a name");
        let name = name(&image, u64::MAX, Digest::of(b""));
        assert!(name.len() <= 128, "{} characters", name.len());
    }
}
