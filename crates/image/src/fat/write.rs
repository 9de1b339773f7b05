//! Changes to a FAT file system, without a mount: the host's kernel need not know FAT, and never sees a foreign one.
//!
//! Names, tables and directories are written by the crate `fatfs`; nothing of what it says is believed: whoever
//! writes reads the result back with our own reader and has fsck.fat(8) look over it. There is no order of writes
//! that a crash could stop: what is written to is a copy that nobody knows yet.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use fatfs::{FileSystem, FsOptions};
use vireo_model::{
    Change, ChangeSet, Digest, ImagePath, Node, Tree, clash, first_not_plain, plain_dir, plain_file,
};

use super::ENTRY_LEN;
use super::names::DELETED;
use crate::bytes::Bytes;
use crate::layout::Volume;
use crate::partition::Partition;
use crate::unmounted::open_fat;
use crate::{ErrorKind, ImageError};

/// Bytes of a file that are copied at a time.
const BUFFER_LEN: usize = 256 << 10;
/// Bytes that are kept in memory around what was read last: the table is read entry by entry.
const PAGE_LEN: usize = 16 << 10;

/// Makes the FAT file system that `volume` of `image` is hold `wanted`, whose paths begin at its root; whether anything
/// had to be changed for it. `open` gives what a file is to contain. The result is read back.
pub(crate) fn change_fat(
    image: &Path,
    volume: &Volume,
    wanted: &Tree,
    open: &dyn Fn(&ImagePath) -> Result<File, ImageError>,
) -> Result<bool, ImageError> {
    let read = || -> Result<Tree, ImageError> {
        let fat = open_fat(&Bytes::open(image)?, image, volume)?;
        let files = fat.digests().and_then(|digests| {
            let items = fat.items()?;
            let node = |(path, digest): (ImagePath, Option<Digest>)| {
                let len = items.get(&path).map_or(0, |item| item.len);
                (path, digest.map_or_else(plain_dir, |digest| plain_file(len, digest)))
            };
            Ok(digests.into_iter().map(node).chain([(ImagePath::root(), plain_dir())]).collect())
        });
        files.map_err(|error| ImageError::fat(image, &volume.partition, error))
    };
    let changes = ChangeSet::between(&read()?, wanted);
    if changes.is_empty() {
        return Ok(false);
    }
    refuse_unholdable(image, &ImagePath::root(), &changes, wanted)?;
    if !open_fat(&Bytes::open(image)?, image, volume)?.is_regular() {
        let message = format!(
            "{}: the vfat in its {} has more or fewer clusters than its kind may have, and is not written to; make \
             it anew (`mkfs.vfat` with fewer or more sectors per cluster, `-s`); nothing was changed",
            image.display(),
            volume.partition.describe()
        );
        return Err(ImageError::new(ErrorKind::Unsupported, message));
    }
    write(image, &volume.partition, &changes.changes, open)?;
    mend_dirs(image, volume, &changes.changes)?;
    if read()? == *wanted {
        return Ok(true);
    }
    let message = format!(
        "{}: its {} is not what was written to it: its vfat is damaged (`fsck.vfat`); nothing was changed",
        image.display(),
        volume.describe()
    );
    Err(ImageError::new(ErrorKind::Damaged, message))
}

/// Fails if `changes` put something onto the FAT file system at `at` that this cannot hold, or if two paths of
/// `tree` are one there.
pub(crate) fn refuse_unholdable(
    image: &Path,
    at: &ImagePath,
    changes: &ChangeSet,
    tree: &Tree,
) -> Result<(), ImageError> {
    let what = match (first_not_plain(changes, at), clash(tree, at)) {
        (Some((path, why)), _) => format!("{path} {why}"),
        (_, Some((one, other))) => {
            format!(
                "{other} differs from {one} in large and small letters alone, which is nothing to vfat"
            )
        }
        (None, None) => return Ok(()),
    };
    let message = format!("{}: {what}; nothing was changed", image.display());
    Err(ImageError::new(ErrorKind::Unsupported, message))
}

/// Makes `changes`, which are in order, to the file system in `partition`.
fn write(
    image: &Path,
    partition: &Partition,
    changes: &[Change],
    open: &dyn Fn(&ImagePath) -> Result<File, ImageError>,
) -> Result<(), ImageError> {
    let failed = |error| failed(image, partition, error);
    let file = File::options().read(true).write(true).open(image);
    let file = file.map_err(|error| ImageError::io("open", image, error))?;
    let window = Window::new(file, partition.offset, partition.len);
    let fs = FileSystem::new(window, FsOptions::new()).map_err(failed)?;
    {
        let root = fs.root_dir();
        // What a directory holds goes before it.
        for Change { path, .. } in changes.iter().rev().filter(|change| is_removed(change)) {
            root.remove(name_of(path)?).map_err(failed)?;
        }
        for Change { path, after, .. } in changes {
            match after {
                Some(node) if node.is_dir() => {
                    drop(root.create_dir(name_of(path)?).map_err(failed)?);
                }
                Some(_) => {
                    // One that is there keeps its entry and gets other content.
                    let mut to = root.create_file(name_of(path)?).map_err(failed)?;
                    to.truncate().map_err(failed)?;
                    copy(&open(path)?, &mut to).map_err(failed)?;
                    to.flush().map_err(failed)?;
                }
                None => {}
            }
        }
    }
    fs.unmount().map_err(failed)
}

/// Gives the directories that `changes` made the first two entries that they have to have: the crate writes long names
/// before `.` and `..`, which no other program does, and names the root of FAT32, which stands for itself as 0.
fn mend_dirs(image: &Path, volume: &Volume, changes: &[Change]) -> Result<(), ImageError> {
    let broken = |error| ImageError::fat(image, &volume.partition, error);
    let failed = |error| failed(image, &volume.partition, error);
    let fat = open_fat(&Bytes::open(image)?, image, volume)?;
    let items = fat.items().map_err(broken)?;
    let file = File::options().read(true).write(true).open(image);
    let file = file.map_err(|error| ImageError::io("open", image, error))?;
    let is_made = |change: &&Change| {
        let is_dir = |node: &Option<Node>| node.as_ref().is_some_and(Node::is_dir);
        is_dir(&change.after) && !is_dir(&change.before)
    };
    for Change { path, .. } in changes.iter().filter(is_made) {
        let Some(item) = items.get(path) else { continue };
        let at = fat.place_of(item.cluster).map_err(broken)?;
        let mut head = [0; 4 * ENTRY_LEN];
        file.read_exact_at(&mut head, at).map_err(failed)?;
        let is_at = |number: usize, name: &[u8]| head[number * ENTRY_LEN..].starts_with(name);
        if is_at(1, b".          ") && is_at(3, b"..         ") {
            head.copy_within(ENTRY_LEN..2 * ENTRY_LEN, 0);
            head.copy_within(3 * ENTRY_LEN.., ENTRY_LEN);
            (head[2 * ENTRY_LEN], head[3 * ENTRY_LEN]) = (DELETED, DELETED);
        }
        if path.parent().is_some_and(|parent| parent.is_root()) {
            for half in [20, 26] {
                head[ENTRY_LEN + half..][..2].fill(0);
            }
        }
        file.write_all_at(&head, at).map_err(failed)?;
    }
    Ok(())
}

/// Whether what was there goes: for good, or because something of another kind comes.
fn is_removed(change: &Change) -> bool {
    let is_dir = |node: &Option<Node>| node.as_ref().map(Node::is_dir);
    change.before.is_some() && is_dir(&change.before) != is_dir(&change.after)
}

fn name_of(path: &ImagePath) -> Result<&str, ImageError> {
    std::str::from_utf8(path.relative()).map_err(|_| {
        let message = format!("{path} has a name that vfat cannot hold; nothing was changed");
        ImageError::new(ErrorKind::Unsupported, message)
    })
}

fn copy(from: &File, to: &mut impl Write) -> io::Result<()> {
    let (mut buffer, mut at) = (vec![0; BUFFER_LEN], 0);
    loop {
        let len = from.read_at(&mut buffer, at)?;
        if len == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..len])?;
        at += len as u64;
    }
}

fn failed(image: &Path, partition: &Partition, error: io::Error) -> ImageError {
    // What the crate says of a full file system, and of a full root directory of FAT12 and FAT16.
    let is_full =
        error.to_string().contains("No space left") || error.kind() == io::ErrorKind::WriteZero;
    if !is_full || error.raw_os_error().is_some() {
        let step = format!("write to the vfat in the {} of", partition.describe());
        return ImageError::io(&step, image, error);
    }
    ImageError::full_part(format!(
        "{}: the update does not fit into the vfat in its {}; remove what is not needed there, such as \
         older kernels, by an update of its own, or make the partition larger; nothing was changed",
        image.display(),
        partition.describe()
    ))
}

/// The bytes of a partition as a device.
struct Window {
    file: File,
    offset: u64,
    len: u64,
    at: u64,
    /// What was read last: where it begins, and its bytes.
    page: (u64, Vec<u8>),
}

impl Window {
    fn new(file: File, offset: u64, len: u64) -> Self {
        Self { file, offset, len, at: 0, page: (0, Vec::new()) }
    }

    fn left(&self) -> usize {
        usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX)
    }

    /// Where in the page what comes next stands, if it is there.
    fn in_page(&self) -> Option<usize> {
        let at = usize::try_from(self.at.checked_sub(self.page.0)?).ok()?;
        (at < self.page.1.len()).then_some(at)
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.left() == 0 {
            return Ok(0);
        }
        if self.in_page().is_none() {
            let start = self.at - self.at % PAGE_LEN as u64;
            let len = usize::try_from(self.len - start).unwrap_or(PAGE_LEN).min(PAGE_LEN);
            let mut page = vec![0; len];
            self.file.read_exact_at(&mut page, self.offset + start)?;
            self.page = (start, page);
        }
        let Some(at) = self.in_page() else { return Ok(0) };
        let len = buffer.len().min(self.page.1.len() - at);
        buffer[..len].copy_from_slice(&self.page.1[at..at + len]);
        self.at += len as u64;
        Ok(len)
    }
}

impl Write for Window {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.left());
        self.file.write_all_at(&bytes[..len], self.offset + self.at)?;
        if let Some(at) = self.in_page() {
            let here = len.min(self.page.1.len() - at);
            self.page.1[at..at + here].copy_from_slice(&bytes[..here]);
        }
        // What begins before the page may reach into it.
        if self.at < self.page.0 && self.at + len as u64 > self.page.0 {
            self.page.1.clear();
        }
        self.at += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window {
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
