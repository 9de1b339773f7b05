//! Making an image from a disk image.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use vireo_image::journal::Work;
use vireo_model::{Ignore, ImageName};
use vireo_store::VersionRecord;
use vireo_sys::copy;
use vireo_wire::api::{CreateImage, VersionEntry};
use vireo_wire::{disk, limits, tree_text};

use crate::error::{Detail, RepoError, io_error};
use crate::repository::Repository;

impl Repository {
    /// Creates an image from the raw disk image in the file `disk`, which is copied. If another image has
    /// its tree, that one's disk image serves both.
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
        self.create(image, options, &mut |out| {
            check_len(&from, limits::MAX_IMAGE_LEN)?;
            copy::clone(&from, out).map(|_| 0)
        })
    }

    /// Creates an image from the zstd stream of a raw disk image.
    ///
    /// A crash leaves no image, and perhaps an unfinished file for the next sweep.
    ///
    /// # Errors
    ///
    /// `Conflict` if there is such an image, `Busy` if it is being made, `Refused` if the stream or
    /// what is in it cannot be used, such as a damaged file system that is not to be repaired;
    /// `NoSpace`, `NoRoot`, `Io`.
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
        let root = options.root_partition.into();
        self.builder.check(upload, root, options.repair)?;
        let tree = self.builder.read_tree(upload, root, ignore)?;
        file.sync_all().map_err(io_error("sync", upload))?;
        let digest = tree.digest();
        let disk = self.store.disk_path(digest);
        // Until the record is written: another image may be on its way to the same tree.
        let _turn = self.take_disk(upload, digest)?;
        if self.has_disk(digest, options.root_partition, ignore)? {
            self.store.writes().remove(upload).map_err(io_error("remove", upload))?;
        } else {
            self.store.writes().rename(upload, &disk).map_err(io_error("finish", &disk))?;
        }
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
            image_bytes: fs::metadata(&disk).map_err(io_error("read", &disk))?.len(),
            ignore: ignore.patterns().to_vec(),
            root_partition: options.root_partition,
        };
        self.publish(image, &version)
    }
}

/// The limit that a stream has.
fn check_len(disk: &File, most: u64) -> io::Result<()> {
    if disk.metadata()?.len() > most {
        let why = format!("the image has more than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(())
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
