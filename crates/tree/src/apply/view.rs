//! Looking at what an update brings before it is there: to classify it and to check it.
//!
//! Not here: writing any of it into the tree.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::io::Errno;
use vireo_delta::{Bundle, Piece, Verified};
use vireo_model::{ImagePath, Node, NodeKind};

use super::check::{Draft, Source};
use super::journal::Journal;
use super::plan::{How, Step};
use super::stage::{LiveBase, Places, name_of};
use super::{Committed, Preview, Staged};
use crate::dir::Dir;
use crate::{Root, TreeError};

/// Everything that is staged, with the directories that hold its files.
#[derive(Debug)]
pub struct StagedView<'s> {
    root: &'s Root,
    parts: Vec<Dir>,
    entries: Vec<StagedEntry<'s>>,
}

impl StagedView<'_> {
    /// One entry a path, in path order.
    #[must_use]
    pub fn entries(&self) -> &[StagedEntry<'_>] {
        &self.entries
    }

    /// The directories of staged files, which [`StagedEntry::file`] counts.
    pub fn parts(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.parts.iter().map(|part| part.fd().as_fd())
    }

    /// The first `most` bytes of the regular file that will be at `path`; none if there will be
    /// none, or the one that is there stays.
    ///
    /// # Errors
    ///
    /// `Io` if it cannot be read.
    pub fn read(&self, path: &ImagePath, most: u64) -> Result<Option<Vec<u8>>, TreeError> {
        let Ok(at) = self.entries.binary_search_by(|entry| entry.path.cmp(path)) else {
            return Ok(None);
        };
        let Some((part, name)) = &self.entries[at].file else { return Ok(None) };
        let read = self.parts[*part].open(name).map_err(io::Error::from);
        let read = read.and_then(|file| read_some(file, most));
        read.map(Some).map_err(self.root.failed("read", path))
    }
}

/// What one path will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedEntry<'s> {
    /// The path.
    pub path: &'s ImagePath,
    /// What was found there.
    pub before: Option<&'s Node>,
    /// What will be there; none if it goes.
    pub after: Option<&'s Node>,
    /// The staged regular file: which of [`StagedView::parts`], from 0, and its name there. None for
    /// everything else, and where the file that is there stays.
    pub file: Option<(usize, Vec<u8>)>,
}

impl Staged<'_> {
    /// What is staged, path by path.
    ///
    /// # Errors
    ///
    /// `Io` if the stage cannot be opened.
    pub fn view(&self) -> Result<StagedView<'_>, TreeError> {
        let root = self.journal.root();
        let places = self.places()?;
        let (parts, mounts) = places.into_parts();
        let part_of = |path: &ImagePath| {
            root.mount_of(path).and_then(|at| mounts.iter().position(|mount| mount == at))
        };
        let entries = self.plan.steps.iter().enumerate().map(|(number, step)| StagedEntry {
            path: &step.path,
            before: step.before.as_ref(),
            after: step.after.as_ref(),
            // The root's own part is the first.
            file: is_staged_file(step)
                .then(|| (part_of(&step.path).map_or(0, |at| at + 1), name_of(number))),
        });
        let mut entries: Vec<StagedEntry<'_>> = entries.collect();
        entries.sort_by_key(|entry| entry.path);
        let parts = parts.into_iter().map(Dir::new).collect();
        Ok(StagedView { root, parts, entries })
    }

    fn places(&self) -> Result<Places, TreeError> {
        let journal: &Journal<'_> = &self.journal;
        Places::open(journal, self.txn, self.plan.id, &self.plan.mounts)
    }
}

impl Committed<'_> {
    /// The paths that were removed below the directory `below`, those above first.
    #[must_use]
    pub fn removed(&self, below: &ImagePath) -> Vec<ImagePath> {
        self.removals(below).into_iter().map(|(_, step)| step.path.clone()).collect()
    }

    fn removals(&self, below: &ImagePath) -> Vec<(usize, &Step)> {
        let steps = self.plan.steps.iter().enumerate();
        let mut removed: Vec<(usize, &Step)> = steps
            .filter(|(_, step)| step.how == How::Remove && step.path.is_within(below))
            .collect();
        removed.sort_by_key(|(_, step)| &step.path);
        removed
    }

    /// Gives what was removed below the directory `below` its names again, beside the target: what
    /// runs may need it until it ends. What is there already stays. [`remove_extra`] takes
    /// [these paths](Self::removed) away, and undoing the transaction makes them part of the tree again.
    ///
    /// # Errors
    ///
    /// `Io`, `NoSpace`: some may be there, all can be tried again.
    pub fn keep_removed(&self, below: &ImagePath) -> Result<(), TreeError> {
        let root = self.journal.root();
        let places = Places::open(&self.journal, self.txn, self.plan.id, &self.plan.mounts)?;
        for (number, step) in self.removals(below) {
            let (path, failed) = (&step.path, root.failed("keep", &step.path));
            let (dir, name) = root.require("keep", path)?;
            let made = match &step.before {
                Some(node) if step.was_dir() => {
                    dir.make_dir(name).and_then(|()| dir.set_metadata(name, node))
                }
                _ => places.base(root, path).link_to(&name_of(number), &dir, name),
            };
            match made {
                Err(Errno::EXIST) => {}
                other => other.map_err(failed)?,
            }
        }
        Ok(())
    }
}

/// Removes paths that [`Committed::keep_removed`] gave names again, as far as they are there; directories only
/// if they are empty then.
///
/// # Errors
///
/// `Io`: all can be tried again.
pub fn remove_extra(root: &Root, paths: &[ImagePath]) -> Result<(), TreeError> {
    let mut paths: Vec<&ImagePath> = paths.iter().collect();
    paths.sort();
    for path in paths.into_iter().rev() {
        let (dir, name) = match root.locate(path) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(root.failed("remove", path)(error)),
        };
        let removed = match dir.unlink(name) {
            Err(Errno::ISDIR | Errno::PERM) => dir.remove_dir(name),
            other => other,
        };
        match removed {
            // Somebody else has something in it.
            Ok(_) | Err(Errno::NOTEMPTY) => {}
            Err(error) => return Err(root.failed("remove", path)(error)),
        }
    }
    Ok(())
}

fn is_staged_file(step: &Step) -> bool {
    let kind = step.after.as_ref().map(|node| &node.kind);
    step.how == How::Place
        && matches!(kind, Some(NodeKind::File { .. } | NodeKind::HardLink { .. }))
}

fn read_some(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(most).read_to_end(&mut content)?;
    Ok(content)
}

/// Where the contents of a preview come from.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources(BTreeMap<ImagePath, Source>);

impl Sources {
    pub(super) fn of(drafts: &[Draft]) -> Self {
        let staged = drafts.iter().filter(|draft| draft.how == How::Place);
        Self(staged.map(|draft| (draft.path.clone(), draft.source.clone())).collect())
    }

    fn get(&self, path: &ImagePath) -> Option<&Source> {
        self.0.get(path)
    }
}

impl Preview {
    /// The first `most` bytes of the regular file that would be at `path`; none if there would
    /// be none, or the one that is there stays. `root` and `bundle` are those that were previewed.
    ///
    /// # Errors
    ///
    /// As [`stage`](super::stage), for a content that cannot be made.
    pub fn read(
        &self,
        root: &Root,
        bundle: &Bundle<'_, Verified<'_>>,
        path: &ImagePath,
        most: u64,
    ) -> Result<Option<Vec<u8>>, TreeError> {
        let mut path = path;
        // A hard link's first name may be staged, or stays as it is.
        if let Some(Source::Leader(leader)) = self.sources.get(path) {
            path = leader;
        }
        match self.sources.get(path) {
            Some(Source::Bytes(bytes)) => {
                let end = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
                Ok(Some(bytes[..end].to_vec()))
            }
            Some(Source::Bundle(digest)) => {
                let Some(source) = bundle.content_of(path, *digest) else { return Ok(None) };
                decode_some(root, source, most).map(Some)
            }
            Some(Source::Present(local) | Source::Copy(local)) => {
                let file = root.open_file(local)?;
                read_some(file, most).map(Some).map_err(root.failed("read", local))
            }
            Some(Source::Node | Source::Leader(_)) | None => Ok(None),
        }
    }
}

/// Decodes until there is enough.
fn decode_some(
    root: &Root,
    source: vireo_delta::ContentSource<'_>,
    most: u64,
) -> Result<Vec<u8>, TreeError> {
    let mut content: Vec<u8> = Vec::new();
    let mut enough = false;
    let decoded = source.decode(&LiveBase::new(root), &mut |piece| {
        let left = most.saturating_sub(content.len() as u64);
        match piece {
            Piece::Data(bytes) => {
                let end = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                content.extend_from_slice(&bytes[..end]);
            }
            Piece::Zeros(len) => {
                let len = usize::try_from(len.min(left)).unwrap_or(usize::MAX);
                content.resize(content.len() + len, 0);
            }
        }
        enough = content.len() as u64 >= most;
        // The rest is of no interest: an error of the receiver ends decoding.
        if enough { Err(io::Error::other("enough")) } else { Ok(()) }
    });
    match decoded {
        Err(error) if !enough => Err(TreeError::delta(root.label(), error)),
        _ => Ok(content),
    }
}
