//! Images: creating, pushing, building, publishing, reading back.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vireo_cloud::{Earlier, Publication};
use vireo_delta::{Bundle, Head, TrustedKeys};
use vireo_image::journal::Work;
use vireo_model::{ChangeSet, Digest, Ignore, ImageName, Tree};
use vireo_store::{ImageLock, VersionRecord};
use vireo_sys::{copy, durable};
use vireo_wire::api::{
    BuildStep, CreateImage, ImageLog, ImageSummary, PushOptions, PushReply, VerifyReply,
    VersionEntry,
};
use vireo_wire::{disk, limits, tree_text};

use crate::builder::BundleFile;
use crate::error::{Detail, RepoError, io_error};
use crate::event::Event;
use crate::repository::Repository;

/// How long a push waits for the one before it on the same image.
const PUSH_WAIT: Duration = limits::BUILD_TIMEOUT;

/// Time until a slow cloud that failed is tried again without a push.
const LAUNCH_RETRY: Duration = Duration::from_secs(600);

impl Repository {
    /// All images with their newest versions.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`.
    pub fn images(&self) -> Result<Vec<ImageSummary>, RepoError> {
        let mut images = Vec::new();
        for name in self.store.images()? {
            let newest = entry(&self.newest(&name)?);
            images.push(ImageSummary { name, newest });
        }
        Ok(images)
    }

    /// An image's versions, ignore list and trusted keys.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such image; `Io`, `Corrupt`.
    pub fn log(&self, image: &ImageName) -> Result<ImageLog, RepoError> {
        let versions = self.store.versions(image)?;
        Ok(ImageLog {
            name: image.clone(),
            ignore: versions.last().map(|newest| newest.ignore.clone()).unwrap_or_default(),
            trusted: self.store.trusted(image)?.iter().collect(),
            versions: versions.iter().map(entry).collect(),
        })
    }

    /// The listing of a version's tree (`vireo_wire::tree_text`).
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such version; `Io`, `Corrupt`.
    pub fn tree_listing(&self, image: &ImageName, version: u64) -> Result<Vec<u8>, RepoError> {
        let version = self.store.version(image, version)?;
        Ok(self.store.tree(version.tree)?)
    }

    /// Where the disk image of a version is, and its length in bytes. Not to be written to.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such version; `Io`, `Corrupt`.
    pub fn disk(&self, image: &ImageName, version: u64) -> Result<(PathBuf, u64), RepoError> {
        let version = self.store.version(image, version)?;
        Ok((self.store.disk_path(version.tree), version.image_bytes))
    }

    /// Copies the disk image of a version to the file `to`, with its holes; gives back its length.
    /// `to` is as it was before, or complete.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such version; `NoSpace`, `Io`, `Corrupt`.
    pub fn export(&self, image: &ImageName, version: u64, to: &Path) -> Result<u64, RepoError> {
        let (disk, len) = self.disk(image, version)?;
        let part = durable::sibling(to, ".part");
        let from = File::open(&disk).map_err(io_error("open", &disk))?;
        let out = File::create(&part).map_err(io_error("create", &part))?;
        copy::clone(&from, &out).map_err(io_error("write", &part))?;
        out.sync_all().map_err(io_error("sync", &part))?;
        durable::rename(&part, to).map_err(io_error("finish", to))?;
        Ok(len)
    }

    /// Reads the stored disk image of a version again and compares its tree with the version's.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such version; `NoRoot`, `Io`, `Corrupt`.
    pub fn verify(&self, image: &ImageName, version: u64) -> Result<VerifyReply, RepoError> {
        let version = self.store.version(image, version)?;
        let ignore = Ignore::new(version.ignore.iter().cloned())
            .map_err(|source| Detail::Ignore { source })?;
        let disk = self.store.disk_path(version.tree);
        let _begun = self.begin_reading(&disk)?;
        let found = self.builder.read_tree(&disk, &ignore)?;
        let digest = found.digest();
        let mut differing = Vec::new();
        if digest != version.tree {
            let changes = ChangeSet::between(&self.read_tree(version.tree)?, &found).changes;
            differing = changes
                .iter()
                .take(VerifyReply::MAX_DIFFERING)
                .map(|change| change.path.to_string())
                .collect();
        }
        Ok(VerifyReply { number: version.number, expected: version.tree, found: digest, differing })
    }

    /// Creates an image from the raw disk image in the file `disk`, which is copied.
    ///
    /// # Errors
    ///
    /// As [`Repository::create_image_from`].
    pub fn create_image(
        &self,
        image: &ImageName,
        disk: &Path,
        options: &CreateImage,
    ) -> Result<VersionEntry, RepoError> {
        let from = File::open(disk).map_err(io_error("open", disk))?;
        self.create(image, options, &mut |out| copy::clone(&from, out).map(|_| 0))
    }

    /// Creates an image from the zstd stream of a raw disk image.
    ///
    /// A crash leaves no image, and perhaps an unfinished file for the next sweep.
    ///
    /// # Errors
    ///
    /// `Conflict` if there is such an image, `Busy` if it is being made, `Refused` if the stream or
    /// what is in it cannot be used; `NoSpace`, `NoRoot`, `Io`.
    pub fn create_image_from(
        &self,
        image: &ImageName,
        stream: impl Read,
        options: &CreateImage,
    ) -> Result<VersionEntry, RepoError> {
        let mut stream = Counted { stream, len: 0 };
        self.create(image, options, &mut |out| {
            disk::unpack(&mut stream, out, limits::MAX_IMAGE_LEN)?;
            Ok(stream.len)
        })
    }

    /// `fill` writes the disk image and says how many bytes it took to transfer it.
    fn create(
        &self,
        image: &ImageName,
        options: &CreateImage,
        fill: &mut dyn FnMut(&File) -> io::Result<u64>,
    ) -> Result<VersionEntry, RepoError> {
        let ignore =
            Ignore::with_site(&options.ignore).map_err(|source| Detail::Ignore { source })?;
        let _lock = self.lock_image(image, Duration::ZERO)?;
        if self.store.versions(image).is_ok() {
            return Err(Detail::ImageExists { image: image.clone() }.into());
        }
        let upload = self.store.upload_path(image);
        let outcome = self.create_locked(image, options, &ignore, &upload, fill);
        if outcome.is_err() {
            // The error is on its way already; what stays is swept at the next start.
            let _ = self.store.writes().remove(&upload);
        }
        outcome
    }

    fn create_locked(
        &self,
        image: &ImageName,
        options: &CreateImage,
        ignore: &Ignore,
        upload: &Path,
        fill: &mut dyn FnMut(&File) -> io::Result<u64>,
    ) -> Result<VersionEntry, RepoError> {
        let work = Work { partial: Some(upload.to_owned()), ..Work::read(upload) };
        let _begun = self.begin(&work, upload, Duration::ZERO)?;
        let file = File::create(upload).map_err(io_error("create", upload))?;
        let wire_bytes = fill(&file).map_err(|source| Detail::Upload { source })?;
        let image_bytes = file.metadata().map_err(io_error("read", upload))?.len();
        let tree = self.builder.read_tree(upload, ignore)?;
        file.sync_all().map_err(io_error("sync", upload))?;
        let digest = tree.digest();
        let disk = self.store.disk_path(digest);
        // Another image may have the same tree; which of two such disks is kept does not matter.
        self.store.writes().rename(upload, &disk).map_err(io_error("finish", &disk))?;
        self.store.put_tree(digest, tree_text::encode(&tree).as_bytes())?;
        for key in &options.trusted {
            self.trust(*key, Some(image))?;
        }
        let version = VersionRecord {
            number: 1,
            tree: digest,
            base: None,
            bundle: None,
            signer: None,
            created: self.now(),
            wire_bytes,
            image_bytes,
            ignore: ignore.patterns().to_vec(),
        };
        self.publish(image, &version)
    }

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
        let (record, steps) = self.build(image, &newest, &head, (&trusted, options))?;
        let version = self.publish(image, &record)?;
        // What stays is swept at the next start.
        let _ = self.store.drop_incoming(head.digest);
        Ok(PushReply { image: image.clone(), version, already: false, steps })
    }

    /// Builds disk and listing of the version after `newest`, and its record.
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
        // A disk that has its name is whole: an earlier version's, or of a push that was cut after.
        if !disk.exists() {
            let path = self.store.bundle_path(head.digest);
            let grow = options.grow;
            let bundle = BundleFile { bundle: &bundle, path: &path, trusted, grow };
            steps = self.build_disk(newest.tree, &disk, &bundle)?;
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
        };
        Ok((record, steps))
    }

    /// Builds the disk image `disk`, recorded before and undone after a crash. Another image may be on
    /// its way to the same tree: then that one's disk is waited for and taken.
    fn build_disk(
        &self,
        base: Digest,
        disk: &Path,
        bundle: &BundleFile<'_>,
    ) -> Result<Vec<BuildStep>, RepoError> {
        let base = self.store.disk_path(base);
        if let Err(error) = self.recover() {
            // What cannot be undone now need not stop this build.
            let request = "undo what an interrupted build left".to_owned();
            self.tell(&Event::Failed { request, error: error.chain() });
        }
        let _begun = self.begin(&Work::build(&base, disk), disk, PUSH_WAIT)?;
        if disk.exists() {
            return Ok(Vec::new());
        }
        self.builder.patch(&base, disk, bundle)
    }

    fn publish(
        &self,
        image: &ImageName,
        record: &VersionRecord,
    ) -> Result<VersionEntry, RepoError> {
        self.store.publish(image, record)?;
        self.tell(&Event::Published {
            image: image.clone(),
            version: record.number,
            tree: record.tree,
            wire_bytes: record.wire_bytes,
        });
        if self.cloud.as_ref().is_some_and(|cloud| cloud.is_slow()) {
            self.launch_due.tell();
        } else {
            // The version stands; the cloud is brought up to date at the next start or push.
            self.launch_and_tell(image);
        }
        Ok(entry(record))
    }

    /// Keeps the cloud up to date, for a thread of its own: at once, after every push, and again
    /// every ten minutes while something fails. What happens is told to the observer. Comes back at
    /// once without a cloud, and only once everything was tried with one that is quick: pushes
    /// themselves then wait for it.
    ///
    /// A process that ends meanwhile leaves work for the next start, and nothing to clean up.
    pub fn keep_launched(&self) {
        let Some(cloud) = &self.cloud else { return };
        loop {
            let images = match self.store.images() {
                Ok(images) => images,
                Err(error) => {
                    let request = "publish to the cloud".to_owned();
                    self.tell(&Event::Failed { request, error: RepoError::from(error).chain() });
                    Vec::new()
                }
            };
            // All are tried, whatever happens to the first.
            let failures = images.iter().filter(|image| !self.launch_and_tell(image)).count();
            if !cloud.is_slow() {
                return;
            }
            self.launch_due.wait((failures > 0).then_some(LAUNCH_RETRY));
        }
    }

    fn launch_and_tell(&self, image: &ImageName) -> bool {
        let outcome = self.launch_current(image);
        if let Err(error) = &outcome {
            let request = format!("publish {image} to the cloud");
            self.tell(&Event::Failed { request, error: error.chain() });
        }
        outcome.is_ok()
    }

    /// Brings the cloud up to date: new machines of every image start from its newest version.
    /// Does nothing without a cloud.
    ///
    /// # Errors
    ///
    /// The first image's that failed: `NoSpace`, `Io`; the others were tried.
    pub fn launch_all_current(&self) -> Result<(), RepoError> {
        let mut outcome = Ok(());
        for image in self.store.images()? {
            let launched = self.launch_current(&image);
            outcome = outcome.and(launched);
        }
        outcome
    }

    fn launch_current(&self, image: &ImageName) -> Result<(), RepoError> {
        let Some(cloud) = self.cloud.as_ref().filter(|cloud| cloud.takes(image)) else {
            return Ok(());
        };
        let newest = self.newest(image)?;
        let failed = |source| Detail::Cloud { image: image.clone(), source };
        let current = cloud.current(image).map_err(failed)?;
        if current
            .is_some_and(|current| current.version == newest.number && current.tree == newest.tree)
        {
            return Ok(());
        }
        let disk = self.store.disk_path(newest.tree);
        let launchable = cloud
            .publish(&Publication {
                image,
                version: newest.number,
                tree: newest.tree,
                disk: &disk,
                earlier: &self.earlier(image, newest.number)?,
            })
            .map_err(failed)?;
        self.tell(&Event::Launchable {
            image: image.clone(),
            version: newest.number,
            address: launchable.address,
        });
        Ok(())
    }

    /// The versions before `number` whose disks are here, latest first.
    fn earlier(&self, image: &ImageName, number: u64) -> Result<Vec<Earlier>, RepoError> {
        let versions = self.store.versions(image)?;
        let before = versions.iter().rev().filter(|version| version.number < number);
        let earlier = before.map(|version| Earlier {
            version: version.number,
            tree: version.tree,
            disk: self.store.disk_path(version.tree),
        });
        Ok(earlier.filter(|earlier| earlier.disk.exists()).collect())
    }

    fn lock_image(&self, image: &ImageName, wait: Duration) -> Result<ImageLock, RepoError> {
        self.store.lock_image(image, wait).map_err(|error| {
            if error.kind() == vireo_store::ErrorKind::Busy {
                return Detail::ImageBusy { image: image.clone() }.into();
            }
            error.into()
        })
    }

    fn trusted(&self, image: &ImageName) -> Result<TrustedKeys, RepoError> {
        Ok(self.store.trusted(image)?)
    }

    fn read_tree(&self, tree: Digest) -> Result<Tree, RepoError> {
        let listing = self.store.tree(tree)?;
        tree_text::parse(&listing).map_err(|source| Detail::Listing { tree, source }.into())
    }

    pub(crate) fn newest(&self, image: &ImageName) -> Result<VersionRecord, RepoError> {
        let versions = self.versions(image)?;
        versions
            .last()
            .cloned()
            .ok_or_else(|| RepoError::internal(format!("image {image} has no version")))
    }

    pub(crate) fn versions(&self, image: &ImageName) -> Result<Arc<Vec<VersionRecord>>, RepoError> {
        Ok(self.store.versions(image)?)
    }
}

fn bundle_error(image: &ImageName, source: vireo_delta::DeltaError) -> RepoError {
    let image = image.clone();
    match source.kind() {
        vireo_delta::ErrorKind::Untrusted => Detail::Untrusted { image, source }.into(),
        _ => Detail::Bundle { image, source }.into(),
    }
}

/// A record as it travels.
fn entry(record: &VersionRecord) -> VersionEntry {
    VersionEntry {
        number: record.number,
        tree: record.tree,
        bundle: record.bundle,
        signer: record.signer,
        created: record.created,
        wire_bytes: record.wire_bytes,
        image_bytes: record.image_bytes,
    }
}

/// Counts what is read.
struct Counted<R> {
    stream: R,
    len: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.stream.read(out)?;
        self.len += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use vireo_delta::SecretKey;
    use vireo_store::testing::StopAfter;
    use vireo_store::{Durable, Writes};

    use super::*;
    use crate::testing::{FakeImages, bundle, tree};

    type Files<'a> = &'a [(&'a str, &'a [u8])];

    const BASE: Files<'static> = &[("/a", b"1"), ("/b", b"2")];
    const TARGET: Files<'static> = &[("/a", b"one"), ("/c", b"3")];

    fn web() -> ImageName {
        "web".parse().expect("a name")
    }

    fn open(root: &Path, writes: Arc<dyn Writes>) -> Repository {
        let builder = Box::new(FakeImages::writing_by(Arc::clone(&writes)));
        let clock = Arc::new(|| Timestamp::UNIX_EPOCH);
        Repository::open_with(root, builder, clock, writes).expect("it is a repository")
    }

    fn made(dir: &Path) -> (PathBuf, PathBuf) {
        let root = dir.join("repo");
        Repository::init(&root, &[], Timestamp::UNIX_EPOCH).expect("made");
        let disk = dir.join("base.img");
        fs::write(&disk, FakeImages::disk(&tree(BASE))).expect("writable");
        (root, disk)
    }

    /// After a crash and a restart: the newest version is whole, whatever it is.
    fn check_whole(root: &Path, what: &str) -> Repository {
        let repository = open(root, Arc::new(Durable));
        assert!(!repository.sweep().expect("sweepable").busy, "{what}");
        assert_eq!(repository.fsck().expect("readable").findings, [], "{what}");
        for image in repository.images().expect("readable") {
            let newest = image.newest.number;
            let verified = repository.verify(&image.name, newest).expect("readable");
            assert!(verified.matches(), "{what}: version {newest}");
        }
        let leftovers = repository.sweep().expect("sweepable").removed;
        assert_eq!(leftovers, Vec::<PathBuf>::new(), "{what}: one sweep is enough");
        repository
    }

    #[test]
    fn a_push_stopped_at_any_write_leaves_the_base_or_the_target() {
        let key = SecretKey::generate().expect("there is a random source");
        let update = bundle(BASE, TARGET, &key);
        let [base, target] = [tree(BASE).digest(), tree(TARGET).digest()];
        for allowed in 0.. {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let (root, disk) = made(dir.path());
            let options = CreateImage { trusted: vec![key.public()], ..CreateImage::default() };
            open(&root, Arc::new(Durable)).create_image(&web(), &disk, &options).expect("created");

            let outcome =
                open(&root, Arc::new(StopAfter::new(allowed))).push_bundle(&web(), &update);

            let what = format!("after {allowed} writes");
            let repository = check_whole(&root, &what);
            let newest = repository.newest(&web()).expect("there").tree;
            match &outcome {
                Ok(_) => assert_eq!(newest, target, "{what}"),
                Err(_) => assert!(newest == base || newest == target, "{what}"),
            }
            let again = repository.push_bundle(&web(), &update).expect("it can be repeated");
            assert_eq!(again.already, newest == target, "{what}");
            check_whole(&root, &what);
            if outcome.is_ok() {
                assert!(allowed > 8, "only {allowed} writes were visited");
                return;
            }
        }
    }

    #[test]
    fn a_creation_stopped_at_any_write_leaves_the_image_or_none() {
        for allowed in 0.. {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let (root, disk) = made(dir.path());
            let options = CreateImage::default();
            let stopped = open(&root, Arc::new(StopAfter::new(allowed)));
            let outcome = stopped.create_image(&web(), &disk, &options);
            let repository = check_whole(&root, &format!("after {allowed} writes"));
            let there = repository.images().expect("readable").len();
            assert_eq!(there, usize::from(outcome.is_ok()), "after {allowed} writes");
            if outcome.is_ok() {
                return;
            }
            repository.create_image(&web(), &disk, &options).expect("it can be repeated");
        }
    }

    #[test]
    fn a_tree_may_come_back() {
        let key = SecretKey::generate().expect("there is a random source");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (root, disk) = made(dir.path());
        let repository = open(&root, Arc::new(Durable));
        repository.create_image(&web(), &disk, &CreateImage::default()).expect("created");
        repository.trust(key.public(), None).expect("trusted");
        let (there, back) = (bundle(BASE, TARGET, &key), bundle(TARGET, BASE, &key));
        for (number, update) in (2..).zip([&there, &back, &there]) {
            let reply = repository.push_bundle(&web(), update).expect("pushed");
            assert_eq!((reply.version.number, reply.already), (number, false));
        }
        assert_eq!(repository.fsck().expect("readable").findings, []);
    }

    #[test]
    fn damage_is_found_and_named() {
        let key = SecretKey::generate().expect("there is a random source");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (root, disk) = made(dir.path());
        let repository = open(&root, Arc::new(Durable));
        let options = CreateImage { trusted: vec![key.public()], ..CreateImage::default() };
        repository.create_image(&web(), &disk, &options).expect("created");
        let reply = repository.push_bundle(&web(), &bundle(BASE, TARGET, &key)).expect("pushed");
        let stored = reply.version.bundle.expect("it has one");
        let victims = [
            repository.store.bundle_path(stored),
            root.join("trees").join(reply.version.tree.to_string()),
            root.join("images/web/versions/2.json"),
            repository.store.disk_path(reply.version.tree),
        ];
        for victim in victims {
            let whole = fs::read(&victim).expect("readable");
            fs::write(&victim, &whole[..whole.len() - 3]).expect("writable");
            let report = open(&root, Arc::new(Durable)).fsck().expect("readable");
            let named = report.findings.iter().any(|finding| finding.path == victim);
            assert!(named, "{victim:?}: {report:?}");
            fs::write(&victim, whole).expect("writable");
        }
        assert_eq!(repository.fsck().expect("readable").findings, []);
    }
}
