//! A tree as the base that bundles are derived over.

use std::collections::BTreeMap;
use std::io;

use vireo_delta::BaseRead;
use vireo_model::{Digest, Ignore, ImagePath, Node, Timestamp};

use crate::cache::DigestCache;
use crate::snapshot::{self, Snapshot};
use crate::{CaptureError, Source, image};

/// A directory's or an image's tree, read once: its digest, and its files to decode from.
pub struct Base<'a>(Snapshot<'a>);

impl std::fmt::Debug for Base<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Base").field(&self.0.files.label()).finish()
    }
}

impl<'a> Base<'a> {
    /// Reads the tree; of an image, with a `cache`, not the files that this knows.
    ///
    /// # Errors
    ///
    /// `Read` for what cannot be read, `Busy` for what changes meanwhile.
    pub fn read(
        source: Source<'a>,
        ignore: &Ignore,
        cache: Option<&DigestCache>,
    ) -> Result<Self, CaptureError> {
        Ok(Self(match source {
            Source::Root(root) => snapshot::of_root(root, ignore)?,
            Source::Image(image) => image::of_image(image, ignore, cache)?,
        }))
    }

    /// The tree's digest: compare it with what the bundle starts from.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.tree.digest()
    }

    /// Fails if an image that it is in was written since: ask it when all is read.
    ///
    /// # Errors
    ///
    /// `Busy`, with the image.
    pub fn check_settled(&self) -> Result<(), CaptureError> {
        self.0.files.check_settled()
    }

    /// Times of modification of its directories.
    #[must_use]
    pub fn dir_times(&self) -> &BTreeMap<ImagePath, Timestamp> {
        &self.0.dir_times
    }
}

impl BaseRead for Base<'_> {
    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.files.read_at(path, offset, buffer)
    }

    fn len_of(&self, path: &ImagePath) -> io::Result<u64> {
        let content = self.0.tree.get(path).and_then(Node::content);
        content.map(|(len, _)| len).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn digest_of(&self, path: &ImagePath) -> Option<Digest> {
        self.0.tree.get(path).and_then(Node::content).map(|(_, digest)| digest)
    }
}
