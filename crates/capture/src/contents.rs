//! Encoding what the target has and the base has not.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};

use vireo_delta::merge::{is_mergeable, may_be_mergeable};
use vireo_delta::{BundleWriter, Effort, Pair, Side};
use vireo_model::{Change, ChangeKind, ChangeSet, Digest, Hasher, ImagePath, Node};

use crate::CaptureError;
use crate::ancestors::Ancestors;
use crate::snapshot::Snapshot;

/// Encodes the base's and the target's text of every file that a machine may have edited, next to
/// each other and whole, so that the edit can be merged whatever the machine's file has become.
pub(crate) fn encode_mergeable(
    base: &Snapshot<'_>,
    target: &Snapshot<'_>,
    changes: &ChangeSet,
    writer: &mut BundleWriter<File>,
) -> Result<(), CaptureError> {
    let content = |node: &Option<Node>| node.as_ref().and_then(Node::content);
    for change in &changes.changes {
        let (before, after) = (content(&change.before), content(&change.after));
        if before == after {
            continue;
        }
        for (side, content) in [(base, before), (target, after)] {
            let Some((len, digest)) = content else { continue };
            if !may_be_mergeable(&change.path, len) {
                continue;
            }
            let place = || side.files.place(&change.path);
            let text = side.content(&change.path);
            let text = text.map_err(|error| CaptureError::read(&place(), error))?;
            if is_mergeable(&change.path, &text) {
                writer
                    .encode_whole(digest, len, &text[..])
                    .map_err(|error| CaptureError::delta("read", &place(), error))?;
            }
        }
    }
    Ok(())
}

/// Encodes every content that the target needs and the base has not at that path. Returns their
/// length.
pub(crate) fn encode(
    base: &Snapshot<'_>,
    target: &Snapshot<'_>,
    changes: &ChangeSet,
    effort: Effort,
    writer: &mut BundleWriter<File>,
) -> Result<u64, CaptureError> {
    let in_base = in_base(base, changes);
    let ancestors = Ancestors::new(&base.tree, &changes.changes);
    let mut seen = HashMap::new();
    let (mut pairs, mut large) = (Vec::new(), Vec::new());
    let mut content_len = 0;
    for change in &changes.changes {
        let Some((len, digest)) = new_content(change) else { continue };
        content_len += len;
        if writer.has(digest) || seen.insert(digest, &change.path).is_some() {
            continue;
        }
        let sparse = target.sparse.contains(&change.path);
        if let Some(source) = in_base.get(&digest) {
            writer
                .reuse(digest, len, sparse, source)
                .map_err(|error| CaptureError::delta("read", &base.files.place(source), error))?;
            continue;
        }
        let pair = Pair { digest, len, sparse, ancestor: ancestors.of(&change.path) };
        if pair.fits() { pairs.push(pair) } else { large.push((pair, &change.path)) }
    }
    // Reading all of the base that changes, for files that nothing by their name is like, takes longer
    // than it is worth to who is in a hurry.
    let is_thorough = effort != Effort::Fast;
    if !large.is_empty() || (is_thorough && pairs.iter().any(|pair| pair.ancestor.is_none())) {
        index(base, changes, writer)?;
    }
    let read = |pair: &Pair, side: Side| match (side, &pair.ancestor) {
        (Side::Base, Some((path, _))) => base.content(path),
        _ => target.content(seen[&pair.digest]),
    };
    writer
        .encode_pairs(&pairs, read)
        .map_err(|error| CaptureError::delta("read", target.files.label(), error))?;
    for (pair, path) in large {
        let place = || target.files.place(path);
        let file = target.files.open(path).map_err(|error| CaptureError::read(&place(), error))?;
        writer
            .encode(pair.digest, pair.len, pair.sparse, file)
            .map_err(|error| CaptureError::delta("read", &place(), error))?;
    }
    Ok(content_len)
}

/// Where the base has contents that the target needs: of each the first path.
fn in_base<'a>(base: &'a Snapshot<'_>, changes: &ChangeSet) -> HashMap<Digest, &'a ImagePath> {
    let new = changes.changes.iter().filter_map(new_content);
    let wanted: HashSet<Digest> = new.map(|(_, digest)| digest).collect();
    let mut found = HashMap::new();
    for (path, node) in base.tree.iter() {
        if let Some((_, digest)) = node.content().filter(|(_, digest)| wanted.contains(digest)) {
            found.entry(digest).or_insert(path);
        }
    }
    found
}

/// The content of the target that the base has not at that path.
fn new_content(change: &Change) -> Option<(u64, Digest)> {
    let (len, digest) = change.after.as_ref()?.content()?;
    let had = change.before.as_ref().and_then(Node::content).map(|(_, digest)| digest);
    (had != Some(digest)).then_some((len, digest))
}

/// Makes the chunks of every base file that changes or goes available: a file that was moved,
/// renamed and edited finds its own.
fn index(
    base: &Snapshot<'_>,
    changes: &ChangeSet,
    writer: &mut BundleWriter<File>,
) -> Result<(), CaptureError> {
    for change in &changes.changes {
        let content = change.before.as_ref().and_then(Node::content);
        if let Some((len, digest)) = content
            && matches!(change.kind(), ChangeKind::Modified | ChangeKind::Removed)
        {
            let place = || base.files.place(&change.path);
            let file = base.files.open(&change.path);
            let file = file.map_err(|error| CaptureError::read(&place(), error))?;
            // A byte more than expected shows that the file grew.
            let mut file =
                Hashed { inner: file.take(len.saturating_add(1)), hasher: Hasher::new() };
            writer
                .index_base(&change.path, &mut file)
                .map_err(|error| CaptureError::delta("read", &place(), error))?;
            if file.hasher.finish() != digest {
                return Err(CaptureError::busy(base.changed(&change.path)));
            }
        }
    }
    Ok(())
}

/// What is read, with its digest.
struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..len).unwrap_or_default());
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::{Path, PathBuf};

    use vireo_delta::SecretKey;
    use vireo_model::{NodeKind, Tree};

    use super::*;
    use crate::snapshot::Files;
    use crate::{CaptureOptions, ErrorKind};

    /// A tree in memory that was read, and what its files have become since.
    struct Stub {
        label: PathBuf,
        files: BTreeMap<ImagePath, Vec<u8>>,
    }

    impl Files for Stub {
        fn label(&self) -> &Path {
            &self.label
        }

        fn open(&self, path: &ImagePath) -> io::Result<Box<dyn Read + '_>> {
            Ok(Box::new(&self.files[path][..]))
        }

        fn read_at(&self, _: &ImagePath, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn check_settled(&self) -> Result<(), CaptureError> {
            Ok(())
        }
    }

    fn path(name: &str) -> ImagePath {
        ImagePath::parse(name.as_bytes()).expect("a valid path")
    }

    /// Files with what they were when the tree was read, and what they are now.
    fn snapshot(label: &str, files: &[(&str, &[u8], &[u8])]) -> Snapshot<'static> {
        let node = |content: &[u8]| {
            let kind = NodeKind::File { len: content.len() as u64, content: Digest::of(content) };
            Node::new(kind, 0o644)
        };
        let mut tree: Tree =
            files.iter().map(|(name, before, _)| (path(name), node(before))).collect();
        tree.insert(ImagePath::root(), Node::new(NodeKind::Dir, 0o755));
        let now = files.iter().map(|(name, _, now)| (path(name), now.to_vec()));
        Snapshot {
            tree,
            sparse: BTreeSet::new(),
            dir_times: BTreeMap::new(),
            hashed: 0,
            plain: Vec::new(),
            files: Box::new(Stub { label: label.into(), files: now.collect() }),
        }
    }

    #[test]
    fn a_base_that_changes_after_its_tree_was_read_is_an_error_with_the_path() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let out = dir.path().join("out.vireo");
        let key = SecretKey::generate().expect("random bytes");
        let (text, later) = ([b'x'; 5000], [b'y'; 5000]);
        let [edited, moved] = [[&text[..], b"more"].concat(), [b"new", &text[..]].concat()];
        let capture = |now: &[u8], target: &str, content: &[u8]| {
            let base = snapshot("/base", &[("/f", &text, now), ("/other", b"same", b"same")]);
            let target =
                snapshot("/target", &[(target, content, content), ("/other", b"same", b"same")]);
            crate::write(&base, &target, &CaptureOptions::default(), &key, &out)
        };
        // As the ancestor of what has its name, and for its chunks; grown, too.
        let grown = [&text[..], b"tail"].concat();
        for now in [&later[..], &grown] {
            for (target, content) in [("/f", &edited), ("/quite-another", &moved)] {
                let error = capture(now, target, content).expect_err("the base changed");
                assert_eq!(error.kind(), ErrorKind::Busy, "{target}");
                let mut text = error.to_string();
                if let Some(cause) = std::error::Error::source(&error) {
                    text += &cause.to_string();
                    text += &cause.source().map(ToString::to_string).unwrap_or_default();
                }
                assert!(text.contains("/base/f changed"), "{text}");
                let left = std::fs::read_dir(dir.path()).expect("readable").count();
                assert_eq!(left, 0, "nothing is written");
            }
        }
        capture(&text, "/f", &edited).expect("it is as it was");
    }
}
