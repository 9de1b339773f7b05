//! The bundle as its readers see it.

use vireo_model::{ChangeSet, Digest, Ignore, ImagePath, Timestamp};

use crate::content::ContentSource;
use crate::error::{DeltaError, Detail};
use crate::format::{HEADER_LEN, Header, feature};
use crate::frames::{Frame, Frames};
use crate::manifest::{self, Manifest, new_content};
use crate::{Permits, PublicKey, TrustedKeys, read_map};

/// A bundle as it came: header checked, signature and content not.
#[derive(Debug)]
pub struct Unverified(());

/// A bundle that a trusted signer made, with its manifest read and checked.
#[derive(Debug)]
pub struct Verified<'a> {
    manifest: Manifest,
    frames: Frames<'a>,
    read_map: Option<Vec<u8>>,
}

/// What a bundle's bytes are in, if it can give memory back: a memory map, or a closure that knows
/// one.
pub trait Release: Sync {
    /// These bytes of the bundle were read and are not needed soon. They stay readable.
    fn release(&self, bytes: &[u8]);
}

impl<F: Fn(&[u8]) + Sync> Release for F {
    fn release(&self, bytes: &[u8]) {
        self(bytes);
    }
}

/// Who is told, if anybody is.
#[derive(Clone, Copy)]
pub(crate) struct Holder<'a>(pub(crate) Option<&'a dyn Release>);

impl Holder<'_> {
    pub(crate) fn release(self, bytes: &[u8]) {
        if let Some(holder) = self.0 {
            holder.release(bytes);
        }
    }
}

impl std::fmt::Debug for Holder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Holder").field(&self.0.is_some()).finish()
    }
}

/// A bundle over its file's bytes (a memory map, mostly), in state `S`.
///
/// [`open`](Self::open) gives a `Bundle<Unverified>`, which can be looked at and forwarded;
/// [`verify`](Bundle::verify) turns it into a `Bundle<Verified>`, which alone can be read and
/// applied. There is no way back and no other way in.
#[derive(Debug)]
pub struct Bundle<'a, S> {
    bytes: &'a [u8],
    holder: Holder<'a>,
    header: Header,
    state: S,
}

impl<S> Bundle<'_, S> {
    /// Digest of the tree it applies to.
    #[must_use]
    pub fn base(&self) -> Digest {
        self.header.base
    }

    /// Digest of the tree it makes.
    #[must_use]
    pub fn target(&self) -> Digest {
        self.header.target
    }

    /// Who signed it.
    #[must_use]
    pub fn signer(&self) -> PublicKey {
        self.header.signer
    }

    /// The bundle's name: the digest of its header, which covers the manifest, which covers the
    /// frames.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes[..HEADER_LEN.min(self.bytes.len())])
    }

    /// Length of the whole bundle in bytes: what travels.
    #[must_use]
    pub fn wire_len(&self) -> u64 {
        self.header.file_len()
    }

    /// The bytes before the content: header and manifest, as [`Head::read`] reads them.
    #[must_use]
    pub fn head_bytes(&self) -> &[u8] {
        let len = usize::try_from(self.header.head_len()).unwrap_or(usize::MAX);
        self.bytes.get(..len).unwrap_or(self.bytes)
    }
}

impl<'a> Bundle<'a, Unverified> {
    /// Reads the header of the bundle that is `bytes`, and looks at the length of the rest.
    ///
    /// # Errors
    ///
    /// `Corrupt` for what is no bundle, damaged, cut short or too long; `Unsupported`; `Limit`.
    pub fn open(bytes: &'a [u8]) -> Result<Self, DeltaError> {
        let header = Header::decode(bytes)?;
        let (found, claimed) = (bytes.len() as u64, header.file_len());
        if found < claimed {
            let part = if found < header.head_len() { "manifest" } else { "content" };
            return Err(Detail::Truncated { len: found, part }.into());
        }
        if found > claimed {
            return Err(Detail::Excess { excess: found - claimed }.into());
        }
        Ok(Self { bytes, holder: Holder(None), header, state: Unverified(()) })
    }

    /// Tells `holder` about each frame that was read, so that a bundle of any length takes the
    /// memory of a few frames.
    #[must_use]
    pub fn held_by(self, holder: &'a dyn Release) -> Self {
        Self { holder: Holder(Some(holder)), ..self }
    }

    /// Checks that a trusted signer signed exactly this bundle and reads its manifest. Frames
    /// are checked one by one when they are used, or all by [`Bundle::check`].
    ///
    /// Cost: the manifest's length, not the content's.
    ///
    /// # Errors
    ///
    /// `Untrusted` if the signature does not fit or its signer is not in `trusted`; `Corrupt` or
    /// `Limit` for an invalid manifest.
    pub fn verify(self, trusted: &TrustedKeys) -> Result<Bundle<'a, Verified<'a>>, DeltaError> {
        let (manifest, read_map) = read_manifest(&self.header, self.bytes, trusted)?;
        let content = &self.bytes[self.header.head_len() as usize..];
        let has_dictionaries = self.header.incompat & feature::DICTIONARIES != 0;
        let frames = Frames::new(&manifest.frames, content, self.holder, has_dictionaries)
            .ok_or(Detail::Truncated { len: self.bytes.len() as u64, part: "content" })?;
        let Self { bytes, holder, header, .. } = self;
        Ok(Bundle { bytes, holder, header, state: Verified { manifest, frames, read_map } })
    }
}

impl<'a> Bundle<'a, Verified<'a>> {
    /// What it changes.
    #[must_use]
    pub fn change_set(&self) -> &ChangeSet {
        &self.state.manifest.changes
    }

    /// Times of modification that directories have in the target; no part of its digest.
    #[must_use]
    pub fn dir_times(&self) -> &[(ImagePath, Timestamp)] {
        &self.state.manifest.dir_times
    }

    /// The paths that belong to no version, as they were when both digests were taken.
    #[must_use]
    pub fn ignore(&self) -> &Ignore {
        &self.state.manifest.ignore
    }

    /// What its signer explicitly allows. Whoever applies it compares this with
    /// [`permits_needed`](crate::permits_needed).
    #[must_use]
    pub fn permits(&self) -> Permits {
        self.state.manifest.permits
    }

    /// Number of paths in the base tree, by its signer's word.
    #[must_use]
    pub fn base_paths(&self) -> u64 {
        self.state.manifest.base_paths
    }

    /// The read map: which unit was seen to read which file where the bundle was made; none if
    /// nobody watched. The text of `docs/format/read-map.md`, which this crate does not look into.
    #[must_use]
    pub fn read_map(&self) -> Option<&[u8]> {
        self.state.read_map.as_deref()
    }

    /// The content that the file `path` gets; `None` if the bundle gives it none: it does not
    /// change, is no regular file, or has the right content in the base already.
    #[must_use]
    pub fn content(&self, path: &ImagePath) -> Option<ContentSource<'_>> {
        let changes = &self.change_set().changes;
        let at = changes.binary_search_by(|change| change.path.cmp(path)).ok()?;
        let change = &changes[at];
        let digest = new_content(change)?;
        self.content_of(&change.path, digest)
    }

    /// The content with this digest, if the bundle has it; `path` is for messages. Unlike
    /// [`content`](Self::content) it also answers for a file whose content the base had.
    #[must_use]
    pub fn content_of<'b>(
        &'b self,
        path: &'b ImagePath,
        digest: Digest,
    ) -> Option<ContentSource<'b>> {
        let Verified { manifest, frames, .. } = &self.state;
        let content = manifest.contents.get(&digest)?;
        Some(ContentSource { path, digest, content, sources: &manifest.sources, frames })
    }

    /// The base's file that the new content of `path` mostly comes from.
    pub(crate) fn origin(&self, path: &ImagePath) -> Option<&ImagePath> {
        let source = self.content(path)?.content.origin()?;
        Some(&self.state.manifest.sources.get(source as usize)?.path)
    }

    /// Gives back the memory of the frames that are kept decoded for whoever reads on: for those
    /// who keep the bundle and have read all that they want. Reading decodes them again.
    pub fn forget_frames(&self) {
        self.state.frames.forget();
    }

    /// Compares every frame with its digest: whether the file is whole.
    ///
    /// # Errors
    ///
    /// `Corrupt`, with the number of the first damaged frame.
    pub fn check(&self) -> Result<(), DeltaError> {
        self.state.frames.check().map_err(|number| {
            Detail::Manifest { what: format!("frame {number} of the content has a wrong digest") }
                .into()
        })
    }
}

/// What the head of a bundle, its header and manifest without the content, says about it. A
/// bundle file is the head followed by its frames, in order, and nothing else.
#[derive(Clone, Debug)]
pub struct Head {
    /// The bundle's name, as [`Bundle::digest`].
    pub digest: Digest,
    /// Digest of the tree it applies to.
    pub base: Digest,
    /// Digest of the tree it makes.
    pub target: Digest,
    /// Who signed it.
    pub signer: PublicKey,
    /// Length of the head in bytes.
    pub head_len: u64,
    /// Length of the whole bundle in bytes.
    pub file_len: u64,
    /// The frames, in the order of the file.
    pub frames: Vec<FrameInfo>,
    /// What it changes.
    pub changes: ChangeSet,
    /// The paths that belong to no version.
    pub ignore: Ignore,
    /// Times of modification that directories have in the target.
    pub dir_times: Vec<(ImagePath, Timestamp)>,
    permits: Permits,
    base_paths: u64,
}

/// One frame of a bundle's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameInfo {
    /// Digest of the frame as it travels.
    pub digest: Digest,
    /// Its length in bytes, at most [`MAX_FRAME_LEN`](crate::limits::MAX_FRAME_LEN).
    pub len: u64,
}

impl Head {
    /// Reads and verifies a head; bytes behind it are not looked at.
    ///
    /// # Errors
    ///
    /// As [`Bundle::open`] and [`Bundle::verify`].
    pub fn read(bytes: &[u8], trusted: &TrustedKeys) -> Result<Self, DeltaError> {
        let header = Header::decode(bytes)?;
        let (manifest, _) = read_manifest(&header, bytes, trusted)?;
        let info = |frame: &Frame| FrameInfo { digest: frame.digest, len: u64::from(frame.len) };
        Ok(Self {
            digest: Digest::of(&bytes[..HEADER_LEN]),
            base: header.base,
            target: header.target,
            signer: header.signer,
            head_len: header.head_len(),
            file_len: header.file_len(),
            frames: manifest.frames.iter().map(info).collect(),
            changes: manifest.changes,
            ignore: manifest.ignore,
            dir_times: manifest.dir_times,
            permits: manifest.permits,
            base_paths: manifest.base_paths,
        })
    }

    /// What its signer explicitly allows, as [`Bundle::permits`].
    #[must_use]
    pub fn permits(&self) -> Permits {
        self.permits
    }

    /// Number of paths in the base tree, as [`Bundle::base_paths`].
    #[must_use]
    pub fn base_paths(&self) -> u64 {
        self.base_paths
    }

    /// The length of the head that starts with these bytes, of which at least
    /// [`HEADER_LEN`] are there.
    ///
    /// # Errors
    ///
    /// As [`Bundle::open`], lengths apart.
    pub fn peek_len(first_bytes: &[u8]) -> Result<u64, DeltaError> {
        Ok(Header::decode(first_bytes)?.head_len())
    }
}

/// The manifest and the read map in `bytes`, once a trusted signature was found to cover it.
fn read_manifest(
    header: &Header,
    bytes: &[u8],
    trusted: &TrustedKeys,
) -> Result<(Manifest, Option<Vec<u8>>), DeltaError> {
    header.verify(bytes)?;
    if !trusted.contains(header.signer) {
        return Err(Detail::Signer { signer: header.signer }.into());
    }
    let truncated = Detail::Truncated { len: bytes.len() as u64, part: "manifest" };
    let head_len = usize::try_from(header.head_len()).unwrap_or(usize::MAX);
    let manifest = bytes.get(HEADER_LEN..head_len).ok_or(truncated)?;
    if Digest::of(manifest) != header.manifest_digest {
        return Err(Detail::Checksum { part: "manifest" }.into());
    }
    let (archive, map) = read_map::split(header, manifest)
        .ok_or(Detail::Truncated { len: bytes.len() as u64, part: "manifest" })?;
    Ok((manifest::decode(header, archive)?, read_map::unpack(header, map)?))
}
