//! Publishing from a volume, by whoever has the exclusive right to publish an image.

use std::path::Path;

use vireo_cloud::Launchable;
use vireo_model::{Digest, ImageName};

use crate::device::Device;
use crate::error::Ec2Error;
use crate::journal::{Disk, Held, Journal};
use crate::{Ec2, Written};

/// How a volume comes to hold a version: this host writes it.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The block device that the volume is attached as.
    pub device: &'a Path,
    /// The version's disk image.
    pub disk: &'a Path,
    /// Whether a device is taken that does not say which volume it is, as on instances of the Xen
    /// generation. One that says that it is something else never is.
    pub unidentified: bool,
}

/// The exclusive right to publish an image from this host.
#[derive(Debug)]
#[must_use = "dropping it lets others publish"]
pub struct Hold<'a> {
    ec2: &'a Ec2,
    image: ImageName,
    journal: Journal,
}

impl Ec2 {
    /// The exclusive right to publish `image` from this host, waited for. Ask what is newest once you have
    /// it: others may have published meanwhile.
    ///
    /// # Errors
    ///
    /// `Settings` if the image is not published, `Unavailable` if another has the right for an hour; `Damaged`,
    /// `Io`.
    pub fn hold(&self, image: &ImageName) -> Result<Hold<'_>, Ec2Error> {
        self.settings.image(image)?;
        Ok(Hold { ec2: self, image: image.clone(), journal: self.journal(image)? })
    }
}

impl Hold<'_> {
    /// Publishes a version from a volume in EC2, without the EBS direct interface. Nobody may write to
    /// the volume meanwhile. With `source`, this process is on the instance that the volume is attached
    /// to, and first makes it hold the version's disk image; without, it holds it already. The right ends
    /// with it.
    ///
    /// # Errors
    ///
    /// As [`Cloud::publish`](vireo_cloud::Cloud::publish), in this crate's words; `Refused` if there is a source and the version
    /// was published without, or if the device is not certainly the whole volume or too small for the
    /// disk; `Unavailable` if something uses it.
    pub fn publish_volume(
        mut self,
        version: u64,
        tree: Digest,
        volume: &str,
        source: Option<Source<'_>>,
    ) -> Result<Launchable, Ec2Error> {
        let (ec2, image) = (self.ec2, &self.image);
        let settings = ec2.settings.image(image)?;
        let written = if source.is_some() { Written::Here } else { Written::Elsewhere };
        let from_disk = source.is_some();
        let snapshot = async |_: &mut Journal| {
            let calls = &ec2.calls;
            let found = calls.snapshot_of_volume(image, version, tree, volume, from_disk).await?;
            let made = match found {
                Some(made) => made,
                None => {
                    // Held until EC2 has taken the volume's state.
                    let _device = match source {
                        Some(source) => {
                            let disk = Disk::open(source.disk)?;
                            let device = Device::open(&source, volume, !calls.dry)?;
                            Some(device.fill(calls, &disk).await?)
                        }
                        None => None,
                    };
                    calls.snapshot_volume(image, version, tree, volume, from_disk).await?
                }
            };
            Ok(Held::of_volume(made, version, tree))
        };
        ec2.block_on(async {
            let version = (image, version, tree);
            let published = ec2.publish_as(version, written, &mut self.journal, snapshot).await?;
            ec2.finish(image, settings, &mut self.journal, &published).await
        })
    }
}
