//! The bytes of a disk, whatever the format of the file that holds them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use vireo_ext4::Source;
pub(crate) use vireo_ext4::{le16, le32, le64};

use crate::qcow2::Qcow2;
use crate::{ErrorKind, ImageError};

/// First bytes of a qcow2 file (QEMU, `docs/interop/qcow2.rst`).
pub(crate) const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

/// First bytes of other formats of disk images, which are refused by name.
const OTHER_MAGICS: &[(&[u8], &str)] = &[
    (b"KDMV", "VMDK"),
    (b"# Disk DescriptorFile", "VMDK"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
    (b"<<< ", "VDI"),
];

/// How a file holds a disk. The file's name says it, never its content alone: a machine can write
/// anything to its raw disk, also the header of another format that names the host's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// The disk's bytes as they are, with holes.
    Raw,
    /// QEMU's format: the name ends in `.qcow2`.
    Qcow2,
}

impl Format {
    /// What the name of the file `path` says.
    #[must_use]
    pub fn of_name(path: &Path) -> Self {
        let is_qcow2 = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("qcow2"));
        if is_qcow2 { Self::Qcow2 } else { Self::Raw }
    }
}

/// The bytes of a disk, read at any position by any thread.
#[derive(Clone, Debug)]
pub(crate) struct Bytes(Arc<Inner>);

#[derive(Debug)]
enum Inner {
    Raw(File),
    Qcow2(Box<Qcow2>),
}

impl Bytes {
    /// Opens the disk image `path`, of which name and content have to say the same format.
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let failed = |error| ImageError::io("open", path, error);
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            let message =
                format!("{} is not a regular file, so it is no disk image", path.display());
            return Err(ImageError::new(ErrorKind::NotAnImage, message));
        }
        let mut head = [0; 32];
        let len = read_head(&file, &mut head).map_err(failed)?;
        let head = &head[..len];
        let inner = match (Format::of_name(path), head.starts_with(QCOW2_MAGIC)) {
            (Format::Qcow2, true) => Inner::Qcow2(Box::new(Qcow2::open(path, file)?)),
            (Format::Raw, false) => {
                refuse_other(path, head)?;
                Inner::Raw(file)
            }
            (named, _) => return Err(misnamed(path, named)),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Length of the disk in bytes.
    pub(crate) fn len(&self) -> io::Result<u64> {
        self.byte_len()
    }

    /// The qcow2 image that they stand in, if they do.
    pub(crate) fn qcow2(&self) -> Option<&Qcow2> {
        match &*self.0 {
            Inner::Raw(_) => None,
            Inner::Qcow2(qcow2) => Some(qcow2),
        }
    }
}

impl Source for Bytes {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &*self.0 {
            Inner::Raw(file) => Source::read_exact_at(file, buffer, offset),
            Inner::Qcow2(qcow2) => qcow2.read_exact_at(buffer, offset),
        }
    }

    fn byte_len(&self) -> io::Result<u64> {
        match &*self.0 {
            Inner::Raw(file) => file.byte_len(),
            Inner::Qcow2(qcow2) => Ok(qcow2.len()),
        }
    }
}

/// As many of a file's first bytes as there are.
fn read_head(mut file: &File, head: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < head.len() {
        match file.read(&mut head[len..])? {
            0 => break,
            read => len += read,
        }
    }
    file.rewind()?;
    Ok(len)
}

fn refuse_other(path: &Path, head: &[u8]) -> Result<(), ImageError> {
    let Some((_, name)) = OTHER_MAGICS.iter().find(|(magic, _)| head.starts_with(magic)) else {
        return Ok(());
    };
    let message = format!(
        "{} is a {name} image; convert it first (`qemu-img convert -O raw`)",
        path.display()
    );
    Err(ImageError::new(ErrorKind::NotAnImage, message))
}

fn misnamed(path: &Path, named: Format) -> ImageError {
    let path = path.display();
    let message = match named {
        Format::Qcow2 => format!(
            "{path} is named as a qcow2 image, but does not begin like one; if it is a raw image, \
             rename it to end in .img"
        ),
        Format::Raw => format!(
            "{path} begins like a qcow2 image, but is not named as one; the content alone proves \
             nothing: if it comes from a source you trust, rename it to end in .qcow2, or convert it \
             (`qemu-img convert -f qcow2 -O raw`)"
        ),
    };
    ImageError::new(ErrorKind::NotAnImage, message)
}

/// [`Bytes`] as a device for the crate `gpt`, which wants to be able to write: it is told no.
#[derive(Debug)]
pub(crate) struct Device {
    bytes: Bytes,
    len: u64,
    at: u64,
}

impl Device {
    pub(crate) fn new(bytes: &Bytes) -> io::Result<Self> {
        Ok(Self { bytes: bytes.clone(), len: bytes.len()?, at: 0 })
    }
}

impl Read for Device {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        self.bytes.read_exact_at(&mut buffer[..len], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Device {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl Write for Device {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
