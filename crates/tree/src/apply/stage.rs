//! Writing the target's nodes beside the tree.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use rustix::fs::FileType;
use vireo_delta::{BaseRead, Bundle, Piece, Verified};
use vireo_model::{Digest, Hasher, ImagePath, Node, NodeKind};

use super::check::{Draft, Source};
use super::journal::{Journal, Txn};
use super::plan::{How, Step};
use crate::dir::Dir;
use crate::fault::{Op, hit};
use crate::{ErrorKind, Root, TreeError};

/// Holes are made of aligned blocks of this many zeros.
const HOLE_LEN: usize = 4096;

/// How much of a file is copied at a time, in bytes.
pub(super) const COPY_LEN: usize = 256 << 10;

/// Open files of the base kept for the next read.
const OPEN_FILES: usize = 16;

/// The directories that a transaction's files are staged in, one pair a file system; what is for FAT is in the root's.
pub(super) struct Places {
    root: Place,
    mounts: BTreeMap<ImagePath, Place>,
}

struct Place {
    staged: Dir,
    base: Dir,
}

impl Places {
    pub(super) fn open(
        journal: &Journal<'_>,
        txn: Txn,
        id: u64,
        mounts: &[ImagePath],
    ) -> Result<Self, TreeError> {
        // One that is not mounted has no part, and is missed.
        let mounts = mounts.iter().filter(|at| !journal.root().is_on_fat(at));
        let place = |mount: Option<&ImagePath>| -> Result<Place, TreeError> {
            Ok(Place {
                staged: journal.staged(txn, id, mount)?,
                base: journal.base(txn, id, mount)?,
            })
        };
        let mounts = mounts.map(|at| Ok((at.clone(), place(Some(at))?)));
        Ok(Self { root: place(None)?, mounts: mounts.collect::<Result<_, TreeError>>()? })
    }

    /// Where what `path` gets is staged.
    pub(super) fn staged(&self, root: &Root, path: &ImagePath) -> &Dir {
        &self.of(root, path).staged
    }

    /// Where what `path` has is kept.
    pub(super) fn base(&self, root: &Root, path: &ImagePath) -> &Dir {
        &self.of(root, path).base
    }

    /// The directories of staged files, the root's own first, and where the others belong.
    pub(super) fn into_parts(self) -> (Vec<OwnedFd>, Vec<ImagePath>) {
        let (mounts, places): (Vec<_>, Vec<_>) = self.mounts.into_iter().unzip();
        let places = std::iter::once(self.root).chain(places);
        (places.map(|place| place.staged.into_fd()).collect(), mounts)
    }

    fn of(&self, root: &Root, path: &ImagePath) -> &Place {
        root.mount_of(path).and_then(|at| self.mounts.get(at)).unwrap_or(&self.root)
    }
}

/// The name of what belongs to the step with this number.
pub(super) fn name_of(number: usize) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// Writes everything that renames will put in place, with its metadata, and links what they will
/// replace. Each file's content is compared with its digest. The answer has one step per draft.
pub(super) fn write(
    root: &Root,
    places: &Places,
    bundle: &Bundle<'_, Verified<'_>>,
    drafts: &[Draft],
) -> Result<Vec<Step>, TreeError> {
    let stage = Stage { root, places, base: LiveBase::new(root), bundle };
    let (links, nodes): (Vec<_>, Vec<_>) = drafts
        .iter()
        .enumerate()
        .filter(|(_, draft)| draft.how == How::Place)
        .partition(|(_, draft)| matches!(draft.source, Source::Leader(_)));
    nodes.par_iter().try_for_each(|(number, draft)| stage.node(*number, draft))?;
    // Their first names are staged now, or stay as they are.
    let numbers: BTreeMap<&ImagePath, usize> =
        nodes.iter().map(|(number, draft)| (&draft.path, *number)).collect();
    for (number, draft) in links {
        stage.link(number, draft, &numbers)?;
    }
    drafts.iter().enumerate().map(|(number, draft)| step(root, places, number, draft)).collect()
}

/// The draft as a step, with what it replaces kept by a link: so its inode number is not used
/// again, undo finds it, and other tools keep seeing "(deleted)" files.
pub(super) fn step(
    root: &Root,
    places: &Places,
    number: usize,
    draft: &Draft,
) -> Result<Step, TreeError> {
    let Draft { path, before, after, how, stamp, .. } = draft.clone();
    let name = name_of(number);
    let staged = match how {
        How::Place => {
            let stat = places.staged(root, &path).stat(&name);
            Some(stat.map_err(root.failed("stage", &path))?.st_ino)
        }
        How::Metadata | How::Remove => None,
    };
    let found = stamp.map(|stamp| stamp.ino);
    let step = Step { path, before, after, how, found, staged };
    if step.keeps() && root.is_on_fat(&step.path) {
        super::fat::keep(root, places, number, &step)?;
    } else if step.keeps() {
        let path = &step.path;
        let (dir, own_name) = root.require("keep", path)?;
        dir.link_to(own_name, places.base(root, path), &name).map_err(root.failed("keep", path))?;
    }
    Ok(step)
}

/// Makes a node that has no content of its own.
pub(super) fn make(dir: &Dir, name: &[u8], node: &Node) -> Result<(), rustix::io::Errno> {
    match &node.kind {
        NodeKind::Dir => dir.make_dir(name)?,
        NodeKind::Symlink { target } => dir.make_symlink(name, target)?,
        NodeKind::Device { kind, major, minor } => dir.make_device(name, *kind, *major, *minor)?,
        NodeKind::Fifo => dir.make_special(name, FileType::Fifo, 0)?,
        NodeKind::Socket => dir.make_special(name, FileType::Socket, 0)?,
        NodeKind::File { .. } | NodeKind::HardLink { .. } => return Ok(()),
    }
    dir.set_metadata(name, node)
}

struct Stage<'a> {
    root: &'a Root,
    places: &'a Places,
    base: LiveBase<'a>,
    bundle: &'a Bundle<'a, Verified<'a>>,
}

impl Stage<'_> {
    fn node(&self, number: usize, draft: &Draft) -> Result<(), TreeError> {
        let Some(node) = &draft.after else {
            return Ok(());
        };
        let path = &draft.path;
        let name = name_of(number);
        let staged = self.places.staged(self.root, path);
        let failed = self.root.failed("stage", path);
        match &draft.source {
            Source::Node => make(staged, &name, node).map_err(failed),
            Source::Bundle(digest) => self.file(&name, path, node, *digest),
            Source::Bytes(bytes) => {
                let file = staged.create(&name).map_err(&failed)?;
                let mut writer = FileWriter { file: &file, at: 0, sparse: false };
                writer.bytes(bytes).map_err(self.root.failed("stage", path))?;
                staged.set_file_metadata(&file, &name, node).map_err(&failed)
            }
            Source::Present(local) => {
                let (dir, local_name) = self.root.require("keep", local)?;
                dir.link_to(local_name, staged, &name).map_err(failed)
            }
            Source::Copy(local) => self.copy(&name, local, node),
            Source::Leader(_) => Ok(()),
        }
    }

    /// A file of its own with the content that `local` has.
    fn copy(&self, name: &[u8], local: &ImagePath, node: &Node) -> Result<(), TreeError> {
        let failed = self.root.failed("stage", local);
        let staged = self.places.staged(self.root, local);
        let mut from = self.root.open_file(local)?;
        let file = staged.create(name).map_err(&failed)?;
        let mut writer = FileWriter { file: &file, at: 0, sparse: true };
        let (mut hasher, mut buffer) = (Hasher::new(), vec![0; COPY_LEN]);
        loop {
            let len = from.read(&mut buffer).map_err(self.root.failed("read", local))?;
            if len == 0 {
                break;
            }
            hasher.update(&buffer[..len]);
            writer.blocks(&buffer[..len]).map_err(self.root.failed("stage", local))?;
        }
        writer.finish().map_err(self.root.failed("stage", local))?;
        if node.content().is_none_or(|(_, content)| hasher.finish() != content) {
            return Err(super::check::changed_meanwhile(self.root, local));
        }
        staged.set_file_metadata(&file, name, node).map_err(&failed)
    }

    fn file(
        &self,
        name: &[u8],
        path: &ImagePath,
        node: &Node,
        digest: Digest,
    ) -> Result<(), TreeError> {
        let Some(source) = self.bundle.content_of(path, digest) else {
            let message = format!("the bundle has no content for {path}");
            return Err(TreeError::new(ErrorKind::Corrupt, message));
        };
        let failed = self.root.failed("stage", path);
        let staged = self.places.staged(self.root, path);
        let file = staged.create(name).map_err(&failed)?;
        let mut writer = FileWriter { file: &file, at: 0, sparse: source.is_sparse() };
        source
            .decode(&self.base, &mut |piece| writer.piece(piece))
            .map_err(|error| TreeError::delta(self.root.label(), error))?;
        writer.finish().map_err(self.root.failed("stage", path))?;
        staged.set_file_metadata(&file, name, node).map_err(&failed)
    }

    fn link(
        &self,
        number: usize,
        draft: &Draft,
        numbers: &BTreeMap<&ImagePath, usize>,
    ) -> Result<(), TreeError> {
        let Source::Leader(leader) = &draft.source else {
            return Ok(());
        };
        let path = &draft.path;
        let staged = self.places.staged(self.root, path);
        let failed = self.root.failed("stage the hard link", path);
        if let Some(at) = numbers.get(leader) {
            let from = self.places.staged(self.root, leader);
            return from.link_to(&name_of(*at), staged, &name_of(number)).map_err(failed);
        }
        let (dir, leader_name) = self.root.require("link to", leader)?;
        dir.link_to(leader_name, staged, &name_of(number)).map_err(failed)
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
        hit(Op::Write)?;
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
pub(super) struct LiveBase<'a> {
    root: &'a Root,
    files: Mutex<VecDeque<(ImagePath, Arc<File>)>>,
}

impl<'a> LiveBase<'a> {
    pub(super) fn new(root: &'a Root) -> Self {
        Self { root, files: Mutex::default() }
    }

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
