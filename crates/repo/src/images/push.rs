//! Pushing: from a bundle to the next version's bundle file, disk image and record.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use vireo_delta::{Bundle, Head, TrustedKeys};
use vireo_image::journal::Begun;
use vireo_model::{Digest, Grow, ImageName};
use vireo_store::VersionRecord;
use vireo_wire::api::{BuildStep, PushOptions, PushReply};
use vireo_wire::{limits, tree_text};

use super::entry;
use crate::builder::BundleFile;
use crate::error::{Detail, RepoError, io_error};
use crate::event::Event;
use crate::repository::Repository;

/// How long a push waits for the one before it on the same image.
const PUSH_WAIT: Duration = limits::BUILD_TIMEOUT;

impl Repository {
    /// Which of these frames of a bundle are to be sent.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn missing_frames(
        &self,
        bundle: Digest,
        frames: &[Digest],
    ) -> Result<Vec<Digest>, RepoError> {
        Ok(self.store.missing_frames(bundle, frames)?)
    }

    /// Keeps a frame of a bundle that is being pushed.
    ///
    /// # Errors
    ///
    /// `Refused` if `content` does not have the digest `frame`; `NoSpace`, `Io`.
    pub fn put_frame(
        &self,
        bundle: Digest,
        frame: Digest,
        content: &[u8],
    ) -> Result<(), RepoError> {
        Ok(self.store.put_frame(bundle, frame, content)?)
    }

    /// Pushes a bundle, given as its file's bytes: [`put_frame`](Self::put_frame) for what is
    /// missing, then [`push_head`](Self::push_head).
    ///
    /// # Errors
    ///
    /// As those two.
    pub fn push_bundle(&self, image: &ImageName, bundle: &[u8]) -> Result<PushReply, RepoError> {
        self.push_bundle_with(image, bundle, PushOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    ///
    /// As [`Repository::push_bundle`].
    pub fn push_bundle_with(
        &self,
        image: &ImageName,
        bundle: &[u8],
        options: PushOptions,
    ) -> Result<PushReply, RepoError> {
        let unusable = |source| bundle_error(image, source);
        let head = Head::read(bundle, &self.trusted(image)?).map_err(unusable)?;
        // Also checks that the bytes are all there.
        Bundle::open(bundle).map_err(unusable)?;
        let head_len = usize::try_from(head.head_len).unwrap_or(usize::MAX);
        let mut rest = &bundle[head_len..];
        let mut frames = HashMap::new();
        for frame in &head.frames {
            let (bytes, after) =
                rest.split_at(usize::try_from(frame.len).unwrap_or(usize::MAX).min(rest.len()));
            frames.insert(frame.digest, bytes);
            rest = after;
        }
        let wanted: Vec<Digest> = frames.keys().copied().collect();
        for digest in self.missing_frames(head.digest, &wanted)? {
            self.put_frame(head.digest, digest, frames[&digest])?;
        }
        self.push_head(image, &bundle[..head_len], options)
    }

    /// Makes a version of `image` from the bundle with this head, whose frames have arrived: puts
    /// the bundle together, builds the patched disk image, publishes.
    ///
    /// Waits while another version of the image is made. A crash at any point leaves the image on
    /// the version before, or on this one; repeated, it goes on or says `already`.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such image; `Untrusted`; `Conflict`, with
    /// [`RepoError::conflict`], if the bundle is for another version than the newest; `Incomplete` if
    /// frames are missing; `Refused` if the bundle is damaged or does not make what it names;
    /// `NoSpace`, `NoRoot`, `Busy`, `Io`.
    pub fn push_head(
        &self,
        image: &ImageName,
        head_bytes: &[u8],
        options: PushOptions,
    ) -> Result<PushReply, RepoError> {
        // Before waiting: what cannot be used is refused at once.
        if let Grow::To(len) = options.grow
            && len > limits::MAX_IMAGE_LEN
        {
            let most = limits::MAX_IMAGE_LEN;
            let what =
                format!("image {image} cannot grow to {len} bytes; the most is {most} (--grow)");
            return Err(Detail::Refused { what }.into());
        }
        self.store.versions(image)?;
        let trusted = self.trusted(image)?;
        let head =
            Head::read(head_bytes, &trusted).map_err(|source| bundle_error(image, source))?;
        let _lock = self.lock_image(image, PUSH_WAIT)?;
        let newest = self.newest(image)?;
        if newest.bundle == Some(head.digest) {
            let version = entry(&newest);
            return Ok(PushReply {
                image: image.clone(),
                version,
                already: true,
                steps: Vec::new(),
            });
        }
        if newest.tree != head.base {
            return Err(Detail::WrongBase {
                image: image.clone(),
                bundle_base: head.base,
                newest: newest.tree,
                number: newest.number,
            }
            .into());
        }
        self.store.assemble(head_bytes, &head)?;
        let _turn = self.disk_turn(&newest, &head)?;
        let (record, steps) = self.build(image, &newest, &head, (&trusted, options))?;
        let version = self.publish(image, &record)?;
        // What stays is swept at the next start.
        let _ = self.store.drop_incoming(head.digest);
        Ok(PushReply { image: image.clone(), version, already: false, steps })
    }

    /// Builds disk and listing of the version after `newest`, and its record; with the turn at the disk.
    fn build(
        &self,
        image: &ImageName,
        newest: &VersionRecord,
        head: &Head,
        (trusted, options): (&TrustedKeys, PushOptions),
    ) -> Result<(VersionRecord, Vec<BuildStep>), RepoError> {
        let map = self.store.map_bundle(head.digest)?;
        let unusable = |source| bundle_error(image, source);
        let bundle = Bundle::open(&map).map_err(unusable)?.verify(trusted).map_err(unusable)?;
        let mut tree = self.read_tree(newest.tree)?;
        bundle.change_set().apply_to(&mut tree);
        let found = tree.digest();
        if found != head.target {
            return Err(Detail::Target { image: image.clone(), claimed: head.target, found }.into());
        }
        let disk = self.store.disk_path(head.target);
        let mut steps = Vec::new();
        let root_partition = newest.root_partition;
        if !self.has_disk(head.target, root_partition, bundle.ignore())? {
            self.store.writes().remove(&disk).map_err(io_error("remove", &disk))?;
            let path = self.store.bundle_path(head.digest);
            let (grow, root) = (options.grow, root_partition.into());
            let bundle = BundleFile { bundle: &bundle, path: &path, trusted, grow, root };
            steps = self.builder.patch(&self.store.disk_path(newest.tree), &disk, &bundle)?;
        }
        self.store.put_tree(head.target, tree_text::encode(&tree).as_bytes())?;
        let record = VersionRecord {
            number: newest.number + 1,
            tree: head.target,
            base: Some(newest.tree),
            bundle: Some(head.digest),
            signer: Some(head.signer),
            created: self.now(),
            wire_bytes: head.file_len,
            image_bytes: fs::metadata(&disk).map_err(io_error("read", &disk))?.len(),
            ignore: bundle.ignore().patterns().to_vec(),
            root_partition,
        };
        Ok((record, steps))
    }

    /// Takes the turn at the disk image of the bundle's target, recorded before it is built and undone
    /// after a crash. Another image may be on its way to the same tree: then that one's is waited for.
    fn disk_turn(&self, newest: &VersionRecord, head: &Head) -> Result<Begun, RepoError> {
        if let Err(error) = self.recover() {
            // What cannot be undone now need not stop this build.
            let request = "undo what an interrupted build left".to_owned();
            self.tell(&Event::Failed { request, error: error.chain() });
        }
        self.take_disk(&self.store.disk_path(newest.tree), head.target)
    }
}

fn bundle_error(image: &ImageName, source: vireo_delta::DeltaError) -> RepoError {
    let image = image.clone();
    match source.kind() {
        vireo_delta::ErrorKind::Untrusted => Detail::Untrusted { image, source }.into(),
        _ => Detail::Bundle { image, source }.into(),
    }
}
