//! Machine images: finding ours, registering, making one current, deprecating.

use std::time::{Duration, SystemTime};

use aws_sdk_ec2::operation::create_tags::CreateTagsOutput;
use aws_sdk_ec2::operation::disable_image_deprecation::DisableImageDeprecationOutput;
use aws_sdk_ec2::operation::enable_image_deprecation::EnableImageDeprecationOutput;
use aws_sdk_ec2::operation::register_image::RegisterImageOutput;
use aws_sdk_ec2::types::{Filter, Image, ImageState, Snapshot, Tag};
use aws_smithy_types::DateTime;
use vireo_cloud::Launchable;
use vireo_model::{Digest, ImageName};

use crate::attributes::Attributes;
use crate::calls::Calls;
use crate::error::Ec2Error;
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
    /// Whether this program wrote what it holds.
    pub(crate) from_disk: bool,
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
            from_disk: tags::is_from_disk(tags),
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

impl Calls {
    pub(crate) async fn images(
        &self,
        filters: Vec<Filter>,
        own: bool,
    ) -> Result<Vec<Image>, Ec2Error> {
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

    /// Registers a version's machine image, or finds it; it has its tags then, and can be launched.
    pub(crate) async fn register(
        &self,
        image: &ImageName,
        held: &Held,
        from_disk: bool,
        like: &Attributes,
    ) -> Result<Published, Ec2Error> {
        let (version, tree) = (held.version, held.tree);
        let name = name(image, version, tree);
        let registered = self.register_image(&name, held, like).await;
        let id = match registered {
            Err(error) if error.code() == Some("InvalidAMIName.Duplicate") => {
                self.named(&name, &held.snapshot, from_disk).await?
            }
            outcome => outcome?,
        };
        // Not as part of the registration: that can have been before a crash.
        let mut own: Vec<Tag> = tags::of_content(image, version, tree, from_disk)
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
            from_disk,
        })
    }

    async fn register_image(
        &self,
        name: &str,
        held: &Held,
        like: &Attributes,
    ) -> Result<String, Ec2Error> {
        let Attributes { image, uefi_data, .. } = like;
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

    /// The machine image that has the name, from whichever snapshot a run before a crash made it; but not
    /// from one of a volume as it was, if this program was to write it.
    async fn named(&self, name: &str, own: &str, from_disk: bool) -> Result<String, Ec2Error> {
        let found = self.images(vec![tags::filter("name", name)], true).await?.pop();
        let Some((id, image)) = found.and_then(|image| Some((image.image_id.clone()?, image)))
        else {
            return Err(Ec2Error::refused(format!(
                "the name {name} is taken, but by no machine image that is seen; try again"
            )));
        };
        let mappings = image.block_device_mappings().iter();
        let used = mappings.filter_map(|mapping| mapping.ebs()?.snapshot_id());
        for other in used.filter(|other| from_disk && *other != own) {
            let is_as_it_was = |snapshot: Snapshot| {
                let tags = snapshot.tags();
                tags::value(tags, tags::IMAGE).is_some() && !tags::is_from_disk(tags)
            };
            if self.snapshot(other).await?.is_some_and(is_as_it_was) {
                return Err(Ec2Error::refused(format!(
                    "the name {name} is taken by {id}, which was made from {other}, of a volume as it was; \
                     remove both (`aws ec2 deregister-image --image-id {id}`) and run this again"
                )));
            }
        }
        Ok(id)
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
    use super::*;

    fn published(id: &str, sequence: u64, deprecated: bool) -> Published {
        Published {
            id: id.to_owned(),
            version: 1,
            tree: Digest::of(b""),
            snapshots: Vec::new(),
            sequence: (sequence > 0).then_some(sequence),
            deprecated,
            from_disk: true,
        }
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
