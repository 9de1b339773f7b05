//! Writing the target's nodes beside the tree.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use rustix::fs::FileType;
use vireo_delta::{BaseRead, Bundle, ContentSource, Piece, Verified};
use vireo_model::{Change, ImagePath, Node, NodeKind};

use super::check::{Action, Checked};
use super::journal::Journal;
use crate::dir::Dir;
use crate::{ErrorKind, Root, TreeError};

/// Holes are made of aligned blocks of this many zeros.
const HOLE_LEN: usize = 4096;

/// Open files of the base kept for the next read.
const OPEN_FILES: usize = 16;

/// Writes everything that renames will put in place, with its metadata, and links what it will
/// replace. Each file's content is compared with its digest.
pub(super) fn write(
    root: &Root,
    journal: &Journal,
    bundle: &Bundle<'_, Verified<'_>>,
    checked: &Checked,
) -> Result<(), TreeError> {
    journal.write_head(root, bundle.head_bytes())?;
    let stage = Stage {
        root,
        staged: journal.staged(root)?,
        base: LiveBase { root, files: Mutex::default() },
        bundle,
    };
    let list = &bundle.change_set().changes;
    let to_stage: Vec<(usize, &Change)> = list
        .iter()
        .enumerate()
        .filter(|(number, change)| {
            !checked.skipped.contains(number) && Action::of(change) == Action::Replace
        })
        .collect();
    let is_link = |change: &Change| {
        matches!(change.after, Some(Node { kind: NodeKind::HardLink { .. }, .. }))
    };
    let (links, nodes): (Vec<_>, Vec<_>) =
        to_stage.into_iter().partition(|(_, change)| is_link(change));
    nodes.par_iter().try_for_each(|(number, change)| stage.node(*number, change))?;
    // Their first names are staged now, or stay as they are.
    for (number, change) in links {
        stage.link(number, change, list)?;
    }
    pin_base(root, journal, list, checked)
}

/// Links every file that goes into the stage, so that its inode number is not used again and
/// other tools keep seeing "(deleted)" files.
fn pin_base(
    root: &Root,
    journal: &Journal,
    list: &[Change],
    checked: &Checked,
) -> Result<(), TreeError> {
    let base = journal.base(root)?;
    for replaced in &checked.replaced {
        let path = &replaced.path;
        let Ok(number) = list.binary_search_by(|change| change.path.cmp(path)) else {
            continue;
        };
        let (dir, name) = root.require("keep", path)?;
        dir.link_to(name, &base, number.to_string().as_bytes())
            .map_err(root.failed("keep", path))?;
    }
    Ok(())
}

struct Stage<'a> {
    root: &'a Root,
    staged: Dir,
    base: LiveBase<'a>,
    bundle: &'a Bundle<'a, Verified<'a>>,
}

impl Stage<'_> {
    fn node(&self, number: usize, change: &Change) -> Result<(), TreeError> {
        let Some(node) = &change.after else {
            return Ok(());
        };
        let path = &change.path;
        let name = number.to_string().into_bytes();
        let failed = self.root.failed("stage", path);
        let made = match &node.kind {
            NodeKind::File { content, .. } => {
                let Some(source) = self.bundle.content_of(path, *content) else {
                    let message = format!("the bundle has no content for {path}");
                    return Err(TreeError::new(ErrorKind::Corrupt, message));
                };
                return self.file(&name, path, node, &source);
            }
            NodeKind::Symlink { target } => self.staged.make_symlink(&name, target),
            NodeKind::Device { kind, major, minor } => {
                self.staged.make_device(&name, *kind, *major, *minor)
            }
            NodeKind::Fifo => self.staged.make_special(&name, FileType::Fifo, 0),
            NodeKind::Socket => self.staged.make_special(&name, FileType::Socket, 0),
            NodeKind::Dir | NodeKind::HardLink { .. } => return Ok(()),
        };
        made.map_err(&failed)?;
        self.staged.set_metadata(&name, node).map_err(&failed)
    }

    fn file(
        &self,
        name: &[u8],
        path: &ImagePath,
        node: &Node,
        source: &ContentSource<'_>,
    ) -> Result<(), TreeError> {
        let failed = self.root.failed("stage", path);
        let file = self.staged.create(name).map_err(&failed)?;
        let mut writer = FileWriter { file: &file, at: 0, sparse: source.is_sparse() };
        source
            .decode(&self.base, &mut |piece| writer.piece(piece))
            .map_err(|error| TreeError::delta(self.root.label(), error))?;
        writer.finish().map_err(self.root.failed("stage", path))?;
        self.staged.set_metadata(name, node).map_err(&failed)
    }

    fn link(&self, number: usize, change: &Change, list: &[Change]) -> Result<(), TreeError> {
        let Some(Node { kind: NodeKind::HardLink { leader }, .. }) = &change.after else {
            return Ok(());
        };
        let name = number.to_string().into_bytes();
        let path = &change.path;
        let failed = self.root.failed("stage the hard link", path);
        if let Ok(at) = list.binary_search_by(|other| other.path.cmp(leader)) {
            let leader_name = at.to_string().into_bytes();
            if self.staged.try_stat(&leader_name).map_err(&failed)?.is_some() {
                return self.staged.link_to(&leader_name, &self.staged, &name).map_err(&failed);
            }
        }
        let (dir, leader_name) = self.root.require("link to", leader)?;
        dir.link_to(leader_name, &self.staged, &name).map_err(&failed)
    }
}

/// Writes a file from its start, leaving holes for zeros where the target has holes.
struct FileWriter<'a> {
    file: &'a File,
    at: u64,
    sparse: bool,
}

impl FileWriter<'_> {
    fn piece(&mut self, piece: Piece<'_>) -> io::Result<()> {
        match piece {
            Piece::Data(bytes) if self.sparse => self.blocks(bytes),
            Piece::Data(bytes) => self.bytes(bytes),
            Piece::Zeros(len) if self.sparse => {
                self.at += len;
                Ok(())
            }
            Piece::Zeros(len) => self.zeros(len),
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn blocks(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let to_boundary = HOLE_LEN - (self.at % HOLE_LEN as u64) as usize;
            let (block, rest) = bytes.split_at(to_boundary.min(bytes.len()));
            if block.iter().all(|byte| *byte == 0) {
                self.at += block.len() as u64;
            } else {
                self.bytes(block)?;
            }
            bytes = rest;
        }
        Ok(())
    }

    fn zeros(&mut self, len: u64) -> io::Result<()> {
        let zeros = [0; 64 << 10];
        let mut left = len;
        while left > 0 {
            let step = left.min(zeros.len() as u64) as usize;
            self.bytes(&zeros[..step])?;
            left -= step as u64;
        }
        Ok(())
    }

    /// A hole at the end needs the length set.
    fn finish(self) -> io::Result<()> {
        if self.sparse { self.file.set_len(self.at) } else { Ok(()) }
    }
}

/// The tree itself as the base that contents are decoded from.
struct LiveBase<'a> {
    root: &'a Root,
    files: Mutex<VecDeque<(ImagePath, Arc<File>)>>,
}

impl LiveBase<'_> {
    fn file(&self, path: &ImagePath) -> io::Result<Arc<File>> {
        let files = || self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = files().iter().find(|(open, _)| open == path) {
            return Ok(file.clone());
        }
        let (dir, name) = self.root.locate(path)?;
        let file = Arc::new(dir.open(name)?);
        let mut files = files();
        if files.len() == OPEN_FILES {
            files.pop_front();
        }
        files.push_back((path.clone(), file.clone()));
        Ok(file)
    }
}

impl BaseRead for LiveBase<'_> {
    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file(path)?.read_exact_at(buffer, offset)
    }
}
