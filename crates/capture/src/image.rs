//! Images as sources: read from their bytes, without a mount and without rights.
//! What is trusted stands in the crate's documentation.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use vireo_image::unmounted::{
    self, Content, Disk, FileState, Identity, Known, RACY_SECS, Scan, ScanOptions, Unfinished,
};
use vireo_image::{FileSystemKind, ImageError, RootPartition, Volume};
use vireo_model::{Digest, Ignore, ImagePath};
use vireo_tree::{FileStat, Root};

use crate::CaptureError;
use crate::cache::{DigestCache, KnownTree};
use crate::snapshot::{self, Files, Snapshot};

/// A disk image that is read in place: without a mount, without rights, without writing.
#[derive(Debug)]
pub struct Image {
    disk: Disk,
}

impl Image {
    /// Opens the file systems of the image `path`. They must be unmounted cleanly.
    ///
    /// # Errors
    ///
    /// As [`unmounted::open`]: `Unsupported` where only the kernel can read it, by a mount.
    pub fn open(path: &Path, root: RootPartition) -> Result<Self, ImageError> {
        Ok(Self { disk: unmounted::open(path, root, Unfinished::Refuse)? })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    /// What its `/etc/fstab` mounts and its tree is without.
    #[must_use]
    pub fn left_out(&self) -> &[vireo_image::LeftOut] {
        self.disk.left_out()
    }

    /// Where each of its file systems is mounted and lies, the root first.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.disk.volumes()
    }

    /// Whether the file systems of both say that they are the same, in the same state.
    pub(crate) fn is_in_state_of(&self, other: &Self) -> bool {
        self.disk.identities().eq(other.disk.identities())
    }

    fn check_settled(&self) -> Result<(), CaptureError> {
        Ok(self.disk.check_settled()?)
    }
}

/// An image's files, by where the scan found them.
struct ImageFiles<'a> {
    image: &'a Image,
    files: BTreeMap<ImagePath, FileState>,
}

/// Both sides, and why their digests could not be remembered, if so.
pub(crate) struct Sides<'a> {
    pub(crate) base: Snapshot<'a>,
    pub(crate) target: Snapshot<'a>,
    pub(crate) forgotten: Option<io::Error>,
}

/// Reads two images. What the cache knows of the base is not read, nor what the base's metadata
/// shows to be unchanged in the target; with `paranoid` all is.
pub(crate) fn of_images<'a>(
    base: &'a Image,
    target: &'a Image,
    ignore: &Ignore,
    paranoid: bool,
    cache: Option<&DigestCache>,
) -> Result<Sides<'a>, CaptureError> {
    // A scan of what somebody writes meanwhile fails, so that nothing of it is remembered.
    let (before, after) = scan_both(base, target, ignore, cache, paranoid)?;
    // Of a state that both are in, the base's files count: where the target's differ, nothing shows it.
    let both = |cache: &DigestCache| {
        remember(cache, &before, &[]).and_then(|()| remember(cache, &after, &before.identities))
    };
    let forgotten = cache.and_then(|cache| both(cache).err());
    Ok(Sides { base: snapshot(base, before), target: snapshot(target, after), forgotten })
}

/// Remembers the digests of what was read, but for file systems in a state that `without` has.
fn remember(cache: &DigestCache, scan: &Scan, without: &[Identity]) -> io::Result<()> {
    // Nothing that is remembered was read, so nothing is new.
    if scan.hashed == scan.plain_files.len()
        && scan.identities.iter().all(|identity| cache.has(identity))
    {
        return Ok(());
    }
    let known = scan.known();
    let mut new = known.iter().filter(|known| !without.contains(known.identity()));
    new.try_for_each(|known| cache.put(known))
}

/// Reads an image, and a directory that may be the root of a machine launched from it: what the image's metadata
/// shows to be unchanged there is not read.
pub(crate) fn of_image_and_machine<'a>(
    base: &'a Image,
    target: &'a Root,
    ignore: &Ignore,
    cache: Option<&DigestCache>,
) -> Result<Sides<'a>, CaptureError> {
    let before = scan(base, ignore, &remembered(base, cache))?;
    base.check_settled()?;
    let forgotten = cache.and_then(|cache| remember(cache, &before, &[]).err());
    let seen = seen_in(&before, target);
    let target = snapshot::of_copy(target, ignore, &seen)?;
    Ok(Sides { base: snapshot(base, before), target, forgotten })
}

/// What the files of an image look like in `root`, as far as that has them on copies of the image's file systems
/// and equal metadata proves equal content: as between two images, but for where the blocks are, which a mounted
/// file system does not tell.
fn seen_in(scan: &Scan, root: &Root) -> vireo_tree::Scan {
    let systems: Vec<(ImagePath, Option<u64>)> = root.file_systems().collect();
    let holder = |path: &ImagePath| {
        // In path order the innermost comes last.
        systems.iter().rev().find(|(at, _)| path.is_within(at)).and_then(|(_, id)| *id)
    };
    let mut files = BTreeMap::new();
    for (identity, states) in scan.identities.iter().zip(&scan.files) {
        let id = Some(fsid(&identity.uuid)).filter(|_| !identity.replayed);
        let until = identity.written.secs.saturating_sub(RACY_SECS);
        let same = states
            .iter()
            .filter(|(path, state)| state.ctime.secs < until && id.is_some() && holder(path) == id);
        files.extend(same.map(|(path, state)| {
            let FileState { ino, len, mtime, ctime, sparse, .. } = *state;
            (path.clone(), FileStat { ino: u64::from(ino), len, mtime, ctime, sparse })
        }));
    }
    vireo_tree::Scan { tree: scan.tree.clone(), files, ..vireo_tree::Scan::default() }
}

/// The number that statfs(2) gives of an ext file system with this UUID.
fn fsid(uuid: &[u8; 16]) -> u64 {
    let whole = u128::from_le_bytes(*uuid);
    (whole as u64) ^ ((whole >> 64) as u64)
}

/// The tree of both, if the metadata shows that they have the same one, and it is remembered. Nothing else
/// of them is read then.
pub(crate) fn unchanged(
    base: &Image,
    target: &Image,
    ignore: &Ignore,
    cache: &DigestCache,
) -> Result<Option<KnownTree>, CaptureError> {
    let Some(identity) = base.disk.identities().next() else { return Ok(None) };
    let Some(tree) = cache.tree(&identity, ignore) else { return Ok(None) };
    if !target.disk.is_unchanged(&base.disk)? || base.disk.inodes_digest()? != tree.inodes {
        return Ok(None);
    }
    base.check_settled()?;
    target.check_settled()?;
    Ok(Some(tree))
}

/// Remembers the tree of an image, so that the next capture can tell by the inodes alone whether anything
/// changed.
pub(crate) fn remember_tree(
    image: &Image,
    (digest, paths): (Digest, u64),
    ignore: &Ignore,
    cache: &DigestCache,
) -> Result<(), CaptureError> {
    let mut identities = image.disk.identities();
    let Some(root) = identities.next() else { return Ok(()) };
    // The root's state says nothing about other file systems.
    if image.volumes().nth(1).is_none() && cache.tree(&root, ignore).is_some() {
        return Ok(());
    }
    let inodes = image.disk.inodes_digest()?;
    image.check_settled()?;
    // As with the digests of files: what cannot be remembered is no reason to fail.
    drop(cache.put_tree(&root, ignore, &KnownTree { inodes, digest, paths }));
    Ok(())
}

/// Reads one image; with a `cache` not what that knows.
pub(crate) fn of_image<'a>(
    image: &'a Image,
    ignore: &Ignore,
    cache: Option<&DigestCache>,
) -> Result<Snapshot<'a>, CaptureError> {
    Ok(snapshot(image, scan(image, ignore, &remembered(image, cache))?))
}

/// What the cache knows of the image's file systems, in this or an earlier state.
fn remembered(image: &Image, cache: Option<&DigestCache>) -> Vec<Known> {
    let get = |identity| cache.and_then(|cache| cache.get(&identity));
    image.disk.identities().filter_map(get).collect()
}

fn scan_both(
    base: &Image,
    target: &Image,
    ignore: &Ignore,
    cache: Option<&DigestCache>,
    paranoid: bool,
) -> Result<(Scan, Scan), CaptureError> {
    if paranoid {
        return Ok((scan(base, ignore, &[])?, scan(target, ignore, &[])?));
    }
    let known = remembered(base, cache);
    let is_known = |identity| known.iter().any(|known| *known.identity() == identity);
    if base.disk.identities().all(is_known) {
        // All of the base is known already, so that neither has to wait for the other.
        let (before, after) =
            rayon::join(|| scan(base, ignore, &known), || scan(target, ignore, &known));
        return Ok((before?, after?));
    }
    let before = scan(base, ignore, &known)?;
    let after = scan(target, ignore, &before.known())?;
    Ok((before, after))
}

fn scan(image: &Image, ignore: &Ignore, known: &[Known]) -> Result<Scan, CaptureError> {
    let options = ScanOptions { known, ..ScanOptions::default() };
    Ok(image.disk.scan(ignore, &options)?)
}

fn snapshot(image: &Image, scan: Scan) -> Snapshot<'_> {
    // No path is in two of them, and mostly there is one.
    let mut parts = scan.files.into_iter();
    let mut files = parts.next().unwrap_or_default();
    files.extend(parts.flatten());
    files.extend(scan.plain_files);
    let plain = image.volumes().filter(|volume| volume.kind == FileSystemKind::Vfat);
    let sparse = files.iter().filter(|(_, file)| file.sparse);
    Snapshot {
        sparse: sparse.map(|(path, _)| path.clone()).collect(),
        tree: scan.tree,
        dir_times: scan.dir_times,
        hashed: scan.hashed,
        plain: plain.map(|volume| volume.at.clone()).collect(),
        files: Box::new(ImageFiles { image, files }),
    }
}

impl ImageFiles<'_> {
    fn content(&self, path: &ImagePath) -> io::Result<Content<'_>> {
        let state = self.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        self.image.disk.content(path, state).map_err(io::Error::other)
    }
}

impl Files for ImageFiles<'_> {
    fn label(&self) -> &Path {
        self.image.path()
    }

    fn open(&self, path: &ImagePath) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(ContentReader { content: self.content(path)?, at: 0 }))
    }

    fn read(&self, path: &ImagePath, len: u64) -> io::Result<Vec<u8>> {
        let content = self.content(path)?;
        // In one piece, but for a file that grew.
        let len = content.byte_len().min(len.saturating_add(1));
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        content.read_at(0, &mut bytes).map_err(io::Error::other)?;
        Ok(bytes)
    }

    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let read = self.content(path)?.read_at(offset, buffer).map_err(io::Error::other)?;
        if read < buffer.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn check_settled(&self) -> Result<(), CaptureError> {
        self.image.check_settled()
    }
}

/// A file's content from its start.
struct ContentReader<'a> {
    content: Content<'a>,
    at: u64,
}

impl Read for ContentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.content.read_at(self.at, buffer).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}
