//! From changes to a script for debugfs and the files that it reads.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use vireo_delta::{BaseRead as _, Bundle, Piece, Verified};
use vireo_model::{Change, ChangeSet, Digest, ImagePath, Node, NodeKind, Tree};

use super::base::ReaderBase;
use super::staging::Staging;
use crate::ImageError;
use crate::layout::Volume;
use crate::partition::Partition;
use crate::script::{self, Links, Script};

/// Buffer for copying a file out of the image, in bytes.
const BUFFER_LEN: usize = 256 << 10;

/// From changes to a script and staged files.
pub(super) struct Writer<'a> {
    pub(super) bundle: &'a Bundle<'a, Verified<'a>>,
    pub(super) base: &'a ReaderBase<'a>,
    pub(super) target: &'a Tree,
    pub(super) staging: &'a Staging,
    /// The parts of the tree that debugfs does not write.
    pub(super) fats: &'a [&'a Volume],
}

impl Writer<'_> {
    pub(super) fn script(
        &self,
        image: &Path,
        partition: &Partition,
        changes: &ChangeSet,
    ) -> Result<Script, ImageError> {
        let wide = script::has_wide_inodes(image, partition)?;
        let mut script = Script::new(wide);
        let mut links = Links::default();
        let own = changes.changes.iter().filter(|change| !self.is_plain(&change.path));
        let changes = &ChangeSet { changes: own.cloned().collect(), ..*changes };
        let placed = placed(changes);
        // Children before their directories.
        for change in changes.changes.iter().rev() {
            let Some(before) = &change.before else { continue };
            if change.after.is_none() || placed.contains_key(&change.path) {
                script.remove(&change.path, before)?;
                if let NodeKind::HardLink { leader } = &before.kind {
                    links.removed(leader);
                }
            }
        }
        for change in &changes.changes {
            let Some(after) = &change.after else { continue };
            if let NodeKind::HardLink { .. } = after.kind {
                continue;
            }
            if placed.contains_key(&change.path) {
                self.place(&mut script, &change.path, after)?;
            } else {
                self.metadata(&mut script, &change.path, change.before.as_ref(), after)?;
            }
        }
        for (path, node) in &placed {
            if let NodeKind::HardLink { leader } = &node.kind {
                script.link(leader, path)?;
                links.added(leader);
            }
        }
        for (leader, count) in links.uncounted() {
            let links = if placed.contains_key(leader) {
                1 + count.added
            } else {
                // `rm` has counted the removed names already.
                let had = self.base.links(leader).map_err(self.unreadable(leader))?;
                had.saturating_sub(count.removed).saturating_add(count.added)
            };
            script.set(leader, "links_count", &links.to_string())?;
        }
        for (path, time) in self.bundle.dir_times() {
            if self.target.get(path).is_some_and(Node::is_dir) && !self.is_plain(path) {
                script.time(path, *time)?;
            }
        }
        Ok(script)
    }

    fn is_plain(&self, path: &ImagePath) -> bool {
        self.fats.iter().any(|fat| path.is_within(&fat.at))
    }

    /// Writes the contents that files on FAT get to files.
    pub(super) fn stage_plain(
        &self,
        changes: &ChangeSet,
    ) -> Result<BTreeMap<ImagePath, PathBuf>, ImageError> {
        let mut staged = BTreeMap::new();
        for change in changes.changes.iter().filter(|change| self.is_plain(&change.path)) {
            if let Some((len, content)) = change.after.as_ref().and_then(Node::content) {
                let name = format!("p{}", staged.len());
                let file = self.stage(&name, &change.path, len, content)?;
                staged.insert(change.path.clone(), file);
            }
        }
        Ok(staged)
    }

    fn place(&self, script: &mut Script, path: &ImagePath, node: &Node) -> Result<(), ImageError> {
        match &node.kind {
            NodeKind::File { len, content } => {
                let name = format!("f{}", script.next_number());
                let staged = self.stage(&name, path, *len, *content)?;
                script.file(path, &staged)?;
            }
            NodeKind::Dir => script.dir(path)?,
            NodeKind::Symlink { target } => script.symlink(path, target)?,
            NodeKind::Device { kind, major, minor } => {
                script.device(path, *kind, *major, *minor)?;
            }
            NodeKind::Fifo => script.fifo(path)?,
            NodeKind::Socket => script.socket(path, node.mode)?,
            NodeKind::HardLink { .. } => {}
        }
        self.metadata(script, path, None, node)
    }

    /// Sets all that is not as it is in `before`.
    fn metadata(
        &self,
        script: &mut Script,
        path: &ImagePath,
        before: Option<&Node>,
        after: &Node,
    ) -> Result<(), ImageError> {
        script.owner_and_mode(path, after)?;
        if !after.is_dir() {
            script.time(path, after.mtime)?;
        }
        let none = BTreeMap::new();
        let had = before.map_or(&none, |node| &node.xattrs);
        for name in had.keys().filter(|name| !after.xattrs.contains_key(*name)) {
            script.remove_xattr(path, name)?;
        }
        for (name, value) in
            after.xattrs.iter().filter(|(name, value)| had.get(*name) != Some(value))
        {
            let staged = self.staging.path(&format!("x{}", script.next_number()));
            fs::write(&staged, value).map_err(|error| ImageError::io("write", &staged, error))?;
            script.set_xattr(path, name, &staged)?;
        }
        Ok(())
    }

    /// Writes the content that `path` gets to a file; compared with its digest on the way.
    fn stage(
        &self,
        name: &str,
        path: &ImagePath,
        len: u64,
        digest: Digest,
    ) -> Result<PathBuf, ImageError> {
        let staged = self.staging.path(name);
        let failed = |error: io::Error| ImageError::io("write", &staged, error);
        let file = File::create_new(&staged).map_err(failed)?;
        // What is not written is a hole.
        file.set_len(len).map_err(failed)?;
        let content = self.bundle.content(path).or_else(|| self.bundle.content_of(path, digest));
        let Some(content) = content else {
            return self.copy_from_base(&file, digest, path).map(|()| staged.clone());
        };
        let mut at = 0;
        let decoded = content.decode(self.base, &mut |piece| {
            match piece {
                Piece::Data(bytes) => {
                    file.write_all_at(bytes, at)?;
                    at += bytes.len() as u64;
                }
                Piece::Zeros(len) => at += len,
            }
            Ok(())
        });
        decoded.map_err(|error| ImageError::delta(path, error))?;
        Ok(staged)
    }

    /// The base has the content under some name, so the bundle need not.
    fn copy_from_base(
        &self,
        file: &File,
        digest: Digest,
        path: &ImagePath,
    ) -> Result<(), ImageError> {
        let unreadable = self.unreadable(path);
        let has = |(_, node): &(&ImagePath, &Node)| {
            node.content().is_some_and(|(_, found)| found == digest)
        };
        let (source, node) = self.base.before.tree.iter().find(has).ok_or_else(|| {
            unreadable(io::Error::other("neither the bundle nor the image has its content"))
        })?;
        let (len, _) = node.content().unwrap_or((0, digest));
        let mut buffer = vec![0; BUFFER_LEN];
        let mut at = 0;
        while at < len {
            let part = usize::try_from(len - at).unwrap_or(BUFFER_LEN).min(BUFFER_LEN);
            self.base.read_at(source, at, &mut buffer[..part]).map_err(&unreadable)?;
            file.write_all_at(&buffer[..part], at).map_err(&unreadable)?;
            at += part as u64;
        }
        Ok(())
    }

    fn unreadable(&self, path: &ImagePath) -> impl Fn(io::Error) -> ImageError {
        let path = PathBuf::from(path.to_string());
        move |error| ImageError::io("read or stage", &path, error)
    }
}

/// The paths that get another inode, with what stands there then.
fn placed(changes: &ChangeSet) -> BTreeMap<ImagePath, &Node> {
    let mut placed: BTreeMap<ImagePath, &Node> = BTreeMap::new();
    // In path order, so that a leader is decided before its further names.
    for Change { path, before, after } in &changes.changes {
        let Some(after) = after else { continue };
        let stays = match (before.as_ref().map(|node| &node.kind), &after.kind) {
            (Some(was), NodeKind::HardLink { leader }) => {
                *was == after.kind && !placed.contains_key(leader)
            }
            (Some(was), is) => was == is,
            (None, _) => false,
        };
        if !stays {
            placed.insert(path.clone(), after);
        }
    }
    placed
}
