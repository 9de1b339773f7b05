//! The tags by which Vireo's things are known at EC2.

use aws_sdk_ec2::types::{Filter, Tag};
use vireo_model::{Digest, ImageName};

/// The image's name.
pub(crate) const IMAGE: &str = "vireo:image";
/// The version's number.
pub(crate) const VERSION: &str = "vireo:version";
/// Digest of the version's tree.
pub(crate) const TREE: &str = "vireo:tree";
/// On a machine image: the snapshot of its root device.
pub(crate) const SNAPSHOT: &str = "vireo:snapshot";
/// On snapshots and machine images: [`DISK`] if this program wrote the version's disk image. Without it
/// somebody else wrote the volume, and answers for what it holds.
pub(crate) const WRITTEN: &str = "vireo:written";
/// The value of [`WRITTEN`].
pub(crate) const DISK: &str = "disk";
/// On a snapshot that was begun through the EBS direct interface: the token that it was begun with, by
/// which it is found if its identity was not learnt.
pub(crate) const TOKEN: &str = "vireo:token";
/// On a machine image: the one with the highest number is what new machines start from.
pub(crate) const SEQUENCE: &str = "vireo:sequence";

/// What says of which version a thing is.
pub(crate) fn of_version(
    image: &ImageName,
    version: u64,
    tree: Digest,
) -> [(&'static str, String); 3] {
    [(IMAGE, image.to_string()), (VERSION, version.to_string()), (TREE, tree.to_string())]
}

/// The same, and whether this program wrote it.
pub(crate) fn of_content(
    image: &ImageName,
    version: u64,
    tree: Digest,
    from_disk: bool,
) -> Vec<(&'static str, String)> {
    let written = from_disk.then(|| (WRITTEN, DISK.to_owned()));
    of_version(image, version, tree).into_iter().chain(written).collect()
}

/// Whether the tags say that this program wrote it.
pub(crate) fn is_from_disk(tags: &[Tag]) -> bool {
    value(tags, WRITTEN) == Some(DISK)
}

pub(crate) fn tag(key: &str, value: impl Into<String>) -> Tag {
    Tag::builder().key(key).value(value).build()
}

pub(crate) fn filter(name: impl Into<String>, value: impl Into<String>) -> Filter {
    Filter::builder().name(name).values(value).build()
}

/// Snapshots that are complete, or will be; not those that failed.
pub(crate) fn filter_usable() -> Filter {
    Filter::builder().name("status").values("pending").values("completed").build()
}

/// Things of `image`.
pub(crate) fn filter_image(image: &ImageName) -> Filter {
    filter(format!("tag:{IMAGE}"), image.as_str())
}

/// The value of a tag.
pub(crate) fn value<'t>(tags: &'t [Tag], key: &str) -> Option<&'t str> {
    tags.iter().find(|tag| tag.key() == Some(key)).and_then(Tag::value)
}

/// The value of a tag, as a number or a digest.
pub(crate) fn parsed<T: std::str::FromStr>(tags: &[Tag], key: &str) -> Option<T> {
    value(tags, key)?.parse().ok()
}
