//! One file system of an image, by the reader of its kind.

use std::io;
use std::path::Path;

use vireo_ext4::{FileState, InodeKind, Reader};
use vireo_model::{Digest, Hasher, ImagePath, Timestamp};

use crate::bytes::Bytes;
use crate::fat::{self, Fat, FatError, Item};
use crate::layout::Volume;
use crate::{ErrorKind, ImageError};

/// A file system that is open for reading.
#[derive(Debug)]
pub(super) enum Part {
    Ext(Reader),
    Fat(Fat<Bytes>),
}

/// The bytes of one file.
#[derive(Debug)]
pub struct Content<'a>(Kind<'a>);

#[derive(Debug)]
enum Kind<'a> {
    Ext(vireo_ext4::Content<'a>),
    Fat(fat::Content<'a, Bytes>),
}

impl Content<'_> {
    /// Length in bytes.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        match &self.0 {
            Kind::Ext(content) => content.byte_len(),
            Kind::Fat(content) => content.byte_len(),
        }
    }

    /// Fills `buffer` from `offset` on, as far as there is content; returns how many bytes that
    /// were. Holes read as zeros.
    ///
    /// # Errors
    ///
    /// As reading the image.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Kind::Ext(content) => content.read_at(offset, buffer).map_err(io::Error::other),
            Kind::Fat(content) => content.read_at(offset, buffer),
        }
    }
}

/// The FAT file system that `volume` of `image` is.
pub(crate) fn open_fat(
    bytes: &Bytes,
    image: &Path,
    volume: &Volume,
) -> Result<Fat<Bytes>, ImageError> {
    let fat = Fat::open(bytes.clone(), volume.partition.offset, volume.partition.len);
    fat.map_err(|error| ImageError::fat(image, &volume.partition, error))
}

impl Part {
    pub(super) fn ext(&self) -> Option<&Reader> {
        match self {
            Self::Ext(reader) => Some(reader),
            Self::Fat(_) => None,
        }
    }

    /// What stands at `path`, which begins at its root.
    pub(super) fn kind_of(
        &self,
        image: &Path,
        volume: &Volume,
        path: &ImagePath,
    ) -> Result<Option<InodeKind>, ImageError> {
        match self {
            Self::Ext(reader) => {
                let inode = reader.find(path).map_err(|error| ImageError::ext4(image, error))?;
                Ok(inode.map(|inode| inode.kind))
            }
            Self::Fat(fat) => {
                let items = fat.items().map_err(failed(image, volume))?;
                let kind = |item: &Item| if item.is_dir { InodeKind::Dir } else { InodeKind::File };
                Ok(items.get(path).map(kind))
            }
        }
    }

    /// A digest that differs where anything of it does that belongs to a version.
    pub(super) fn state(&self, image: &Path, volume: &Volume) -> Result<Digest, ImageError> {
        match self {
            Self::Ext(reader) => {
                reader.inodes_digest().map_err(|error| ImageError::ext4(image, error))
            }
            Self::Fat(fat) => {
                let mut hasher = Hasher::new();
                for (path, digest) in fat.digests().map_err(failed(image, volume))? {
                    hasher.field(path.as_bytes());
                    hasher.field(digest.as_ref().map_or(&[], |digest| digest.as_bytes()));
                }
                Ok(hasher.finish())
            }
        }
    }

    pub(super) fn content(
        &self,
        image: &Path,
        volume: &Volume,
        state: &FileState,
    ) -> Result<Content<'_>, ImageError> {
        let kind = match self {
            Self::Ext(reader) => {
                let content = reader.inode(state.ino).and_then(|inode| reader.content(&inode));
                Kind::Ext(content.map_err(|error| ImageError::ext4(image, error))?)
            }
            Self::Fat(fat) => {
                let content = fat.content(state.ino, state.len);
                Kind::Fat(content.map_err(failed(image, volume))?)
            }
        };
        Ok(Content(kind))
    }
}

/// What a file on FAT is known by: there are no inodes.
pub(super) fn state_of(item: &Item, content: Digest) -> FileState {
    FileState {
        ino: item.cluster,
        generation: 0,
        len: item.len,
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        map: content,
        sparse: false,
    }
}

pub(super) fn failed<'a>(
    image: &'a Path,
    volume: &'a Volume,
) -> impl Fn(FatError) -> ImageError + 'a {
    |error| ImageError::fat(image, &volume.partition, error)
}

impl ImageError {
    /// The vfat in `partition` cannot be read.
    pub(crate) fn fat(
        image: &Path,
        partition: &crate::partition::Partition,
        error: FatError,
    ) -> Self {
        match error {
            FatError::Io(error) => Self::io("read the vfat in", image, error),
            FatError::Damaged(what) => {
                let message = format!(
                    "{}: the vfat in its {} is damaged: {what}; check it (`fsck.vfat`)",
                    image.display(),
                    partition.describe()
                );
                Self::new(ErrorKind::Damaged, message)
            }
        }
    }
}
