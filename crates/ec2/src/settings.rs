//! What the adapter is told: where to publish, like which machine image, for which launch template.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vireo_model::ImageName;

use crate::error::Ec2Error;

/// Blocks that are on their way at the same time, unless told otherwise. Each takes two blocks of
/// memory; a snapshot takes a thousand a second.
const DEFAULT_PARALLEL: usize = 32;

/// Most blocks on their way at the same time: 256 MiB of memory.
const MAX_PARALLEL: usize = 256;

/// Largest volume, in GiB: the limit of the EBS direct interface.
pub(crate) const MAX_VOLUME_GIB: u32 = 65_536;

/// How long EC2 gets to complete a snapshot or to make an image available, in minutes.
const DEFAULT_WAIT_MINUTES: u64 = 120;

/// Longest wait that can be set, in minutes: a week.
const MAX_WAIT_MINUTES: u64 = 7 * 24 * 60;

/// Where and how images are published. Credentials are no part of it: they come from the SDK's own chain
/// (environment, profile, web identity, container, instance).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// The region; without it the one of the SDK's chain.
    #[serde(default)]
    pub region: Option<String>,
    /// The profile of the SDK's configuration files.
    #[serde(default)]
    pub profile: Option<String>,
    /// Another address of EC2: a VPC endpoint, or a server for tests.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Another address of the EBS direct interface; without it `endpoint` is used for both.
    #[serde(default)]
    pub ebs_endpoint: Option<String>,
    /// Blocks that are on their way at the same time.
    #[serde(default = "parallel")]
    pub parallel: usize,
    /// How long to wait for a snapshot or an image, in minutes.
    #[serde(default = "wait_minutes")]
    pub wait_minutes: u64,
    /// The images that are published; others are not.
    #[serde(default)]
    pub images: BTreeMap<ImageName, ImageSettings>,
}

/// How one image is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImageSettings {
    /// The machine image whose attributes ours get (architecture, boot mode, devices, and so on): the
    /// one that the image was made from.
    pub like: String,
    /// The launch template, by name or identity, that gets a version for each of ours.
    #[serde(default)]
    pub launch_template: Option<String>,
    /// Whether that version becomes the template's default.
    #[serde(default = "yes")]
    pub make_default: bool,
    /// How many of our machine images stay as they are; those before them are deprecated. All stay,
    /// if it is not set.
    #[serde(default)]
    pub keep: Option<usize>,
    /// Encrypt the snapshots, which makes the first one as large as the disk.
    #[serde(default)]
    pub encrypted: bool,
    /// The key for it; without it the account's own.
    #[serde(default)]
    pub kms_key: Option<String>,
    /// Size of the root volume in GiB; without it that of the image or of `like`, whichever is larger.
    #[serde(default)]
    pub volume_gib: Option<u32>,
}

fn parallel() -> usize {
    DEFAULT_PARALLEL
}

fn wait_minutes() -> u64 {
    DEFAULT_WAIT_MINUTES
}

fn yes() -> bool {
    true
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            region: None,
            profile: None,
            endpoint: None,
            ebs_endpoint: None,
            parallel: parallel(),
            wait_minutes: wait_minutes(),
            images: BTreeMap::new(),
        }
    }
}

impl ImageSettings {
    /// Published like this machine image, and nothing else.
    #[must_use]
    pub fn like(ami: impl Into<String>) -> Self {
        Self {
            like: ami.into(),
            launch_template: None,
            make_default: true,
            keep: None,
            encrypted: false,
            kms_key: None,
            volume_gib: None,
        }
    }
}

impl Settings {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    ///
    /// `Settings`, with the key.
    pub fn check(&self) -> Result<(), Ec2Error> {
        if !(1..=MAX_PARALLEL).contains(&self.parallel) {
            let what = format!("`parallel` is {}; give 1 to {MAX_PARALLEL}", self.parallel);
            return Err(Ec2Error::settings(what));
        }
        if !(1..=MAX_WAIT_MINUTES).contains(&self.wait_minutes) {
            let what =
                format!("`wait-minutes` is {}; give 1 to {MAX_WAIT_MINUTES}", self.wait_minutes);
            return Err(Ec2Error::settings(what));
        }
        for (image, settings) in &self.images {
            settings.check(image)?;
        }
        Ok(())
    }

    pub(crate) fn image(&self, image: &ImageName) -> Result<&ImageSettings, Ec2Error> {
        self.images.get(image).ok_or_else(|| {
            Ec2Error::settings(format!(
                "image {image} is not published to EC2; add [images.{image}] with `like = \"ami-...\"` to the settings"
            ))
        })
    }
}

impl ImageSettings {
    fn check(&self, image: &ImageName) -> Result<(), Ec2Error> {
        let refuse = |what: &str| Err(Ec2Error::settings(format!("images.{image}: {what}")));
        if !self.like.starts_with("ami-") {
            return refuse("`like` is no machine image's identity (`ami-...`)");
        }
        if self.keep == Some(0) {
            return refuse("`keep` is 0; the current machine image always stays, give 1 or more");
        }
        if self.kms_key.is_some() && !self.encrypted {
            return refuse("`kms-key` is given without `encrypted = true`");
        }
        if self.volume_gib.is_some_and(|gib| !(1..=MAX_VOLUME_GIB).contains(&gib)) {
            return refuse(&format!("`volume-gib` is not 1 to {MAX_VOLUME_GIB}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[track_caller]
    fn check(change: impl FnOnce(&mut Settings, &mut ImageSettings), names: &str) {
        let mut settings = Settings::default();
        let mut image = ImageSettings::like("ami-1");
        change(&mut settings, &mut image);
        settings.images.insert("web".parse().expect("a name"), image);
        let error = settings.check().expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Settings);
        assert!(error.to_string().contains(names), "{error}");
    }

    #[test]
    fn settings_that_cannot_be_meant_are_refused_by_their_key() {
        check(|settings, _| settings.parallel = 0, "`parallel`");
        check(|settings, _| settings.wait_minutes = 0, "`wait-minutes`");
        check(|settings, _| settings.wait_minutes = u64::MAX, "`wait-minutes`");
        check(|_, image| image.like = "snap-1".into(), "`like`");
        check(|_, image| image.keep = Some(0), "`keep`");
        check(|_, image| image.kms_key = Some("arn:k".into()), "`kms-key`");
        check(|_, image| image.volume_gib = Some(0), "`volume-gib`");
        check(|_, image| image.volume_gib = Some(MAX_VOLUME_GIB + 1), "`volume-gib`");
    }

    #[test]
    fn one_key_is_enough_and_unknown_keys_are_errors() {
        let read = |json: &str| serde_json::from_str::<Settings>(json);
        let settings = read(r#"{"images":{"web":{"like":"ami-1"}}}"#).expect("settings");
        settings.check().expect("they can be meant");
        let web: ImageName = "web".parse().expect("a name");
        assert_eq!(settings.images[&web], ImageSettings::like("ami-1"));
        assert!(read(r#"{"images":{"web":{"like":"ami-1","keeep":1}}}"#).is_err());
    }

    #[test]
    fn an_image_without_settings_is_named_with_what_to_add() {
        let name = "db".parse().expect("a name");
        let error = Settings::default().image(&name).expect_err("not there").to_string();
        assert!(error.contains("[images.db]"), "{error}");
    }
}
