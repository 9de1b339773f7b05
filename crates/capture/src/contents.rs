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
        let pair = Pair { digest, len, sparse, ancestor: ancestors.of(&change.path, len) };
        if pair.fits() { pairs.push(pair) } else { large.push((pair, &change.path)) }
    }
    // Reading all of the base that changes, for files that nothing by their name is like, takes longer
    // than it is worth to who is in a hurry.
    let is_thorough = effort != Effort::Fast;
    if large.iter().any(|(pair, _)| pair.ancestor.is_none())
        || (is_thorough && pairs.iter().any(|pair| pair.ancestor.is_none()))
    {
        index(base, changes, writer)?;
    }
    let read = |pair: &Pair, side: Side| match (side, &pair.ancestor) {
        (Side::Base, Some((path, _))) => base.content(path),
        _ => target.content(seen[&pair.digest]),
    };
    let likely = |pair: &Pair| {
        let found = is_thorough.then(|| ancestors.likely(seen[&pair.digest], pair.len));
        found.unwrap_or_default()
    };
    writer
        .encode_pairs_among(&pairs, read, likely)
        .map_err(|error| CaptureError::delta("read", target.files.label(), error))?;
    for (mut pair, path) in large {
        let known = pair.ancestor.take();
        let guess = || ancestors.closest(path, pair.len).filter(|_| is_thorough);
        pair.ancestor = known.or_else(guess);
        let read_at = |side, offset, buffer: &mut [u8]| match (side, &pair.ancestor) {
            (Side::Base, Some((from, _))) => base.files.read_at(from, offset, buffer),
            _ => target.files.read_at(path, offset, buffer),
        };
        let found = writer
            .encode_large(&pair, read_at)
            .map_err(|error| CaptureError::delta("read", &target.files.place(path), error))?;
        let digest = |from| base.tree.get(from).and_then(Node::content).map(|(_, digest)| digest);
        if let Some((from, _)) = pair.ancestor.as_ref().filter(|_| found.is_some())
            && found != digest(from)
        {
            return Err(CaptureError::busy(base.changed(from)));
        }
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
    use std::error::Error as _;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use vireo_delta::{Permits, SecretKey};
    use vireo_model::{NodeKind, Tree};

    use super::*;
    use crate::snapshot::Files;
    use crate::{CaptureOptions, ErrorKind};

    /// A tree in memory that was read, and what its files have become since. How many bytes are read of them is
    /// counted.
    struct Stub {
        label: PathBuf,
        files: BTreeMap<ImagePath, Vec<u8>>,
        read: Arc<AtomicU64>,
    }

    impl Stub {
        fn count(&self, len: usize) {
            self.read.fetch_add(len as u64, Ordering::Relaxed);
        }
    }

    impl Files for Stub {
        fn label(&self) -> &Path {
            &self.label
        }

        fn open(&self, path: &ImagePath) -> io::Result<Box<dyn Read + '_>> {
            self.count(self.files[path].len());
            Ok(Box::new(&self.files[path][..]))
        }

        fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.count(buffer.len());
            buffer.copy_from_slice(&self.files[path][offset as usize..][..buffer.len()]);
            Ok(())
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
        counted(label, files).0
    }

    /// The same, with how many bytes are read of them.
    fn counted(label: &str, files: &[(&str, &[u8], &[u8])]) -> (Snapshot<'static>, Arc<AtomicU64>) {
        let node = |content: &[u8]| {
            let kind = NodeKind::File { len: content.len() as u64, content: Digest::of(content) };
            Node::new(kind, 0o644)
        };
        let mut tree: Tree =
            files.iter().map(|(name, before, _)| (path(name), node(before))).collect();
        tree.insert(ImagePath::root(), Node::new(NodeKind::Dir, 0o755));
        let now = files.iter().map(|(name, _, now)| (path(name), now.to_vec())).collect();
        let read = Arc::new(AtomicU64::new(0));
        let stub = Stub { label: label.into(), files: now, read: read.clone() };
        let snapshot = Snapshot {
            tree,
            sparse: BTreeSet::new(),
            dir_times: BTreeMap::new(),
            hashed: 0,
            plain: Vec::new(),
            files: Box::new(stub),
        };
        (snapshot, read)
    }

    #[test]
    fn a_base_that_changes_after_its_tree_was_read_is_an_error_with_the_path() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let out = dir.path().join("out.vireo");
        let key = SecretKey::generate().expect("random bytes");
        let options = CaptureOptions { permits: Permits::MASS, ..CaptureOptions::default() };
        let capture = |before: &[u8], now: &[u8], target: &str, content: &[u8]| {
            let base = snapshot("/base", &[("/f", before, now), ("/other", b"same", b"same")]);
            let target =
                snapshot("/target", &[(target, content, content), ("/other", b"same", b"same")]);
            crate::write(&base, &target, &options, &key, &out)
        };
        let refused = |before: &[u8], now: &[u8], target: &str, content: &[u8]| {
            let error = capture(before, now, target, content).expect_err("the base changed");
            assert_eq!(error.kind(), ErrorKind::Busy, "{target}");
            let mut text = error.to_string();
            if let Some(cause) = error.source() {
                text += &cause.to_string();
                text += &cause.source().map(ToString::to_string).unwrap_or_default();
            }
            assert!(text.contains("/base/f changed"), "{text}");
            let left = std::fs::read_dir(dir.path()).expect("readable").count();
            assert_eq!(left, 0, "nothing is written");
        };
        let (text, later) = ([b'x'; 5000], [b'y'; 5000]);
        let [edited_end, moved] = [[&text[..], b"more"].concat(), [b"new", &text[..]].concat()];
        // As the ancestor of what has its name, and for its chunks; grown, too.
        let grown = [&text[..], b"tail"].concat();
        for now in [&later[..], &grown] {
            for (target, content) in [("/f", &edited_end), ("/quite-another", &moved)] {
                refused(&text, now, target, content);
            }
        }
        // Too large for a pair: compared in place, or looked for by its length; changed where the target has the
        // same, and behind its end.
        let large = noise(1, 33 << 20);
        let target = edited(&large[..32 << 20]);
        for at in [5 << 20, large.len() - 1] {
            let mut now = large.clone();
            now[at] ^= 1;
            for name in ["/f", "/quite-another"] {
                refused(&large, &now, name, &[&target[..], b"more"].concat());
            }
        }
        capture(&text, &text, "/f", &edited_end).expect("it is as it was");
    }

    type List<'a> = &'a [(&'a str, Vec<u8>)];

    /// How many bytes of the base are read to encode the target.
    fn base_read(base: List<'_>, target: List<'_>) -> u64 {
        let settled = |list: List<'_>| {
            let files: Vec<_> =
                list.iter().map(|(name, bytes)| (*name, &bytes[..], &bytes[..])).collect();
            counted("/memory", &files)
        };
        let ((base, read), (target, _)) = (settled(base), settled(target));
        let changes = ChangeSet::between(&base.tree, &target.tree);
        let mut writer = BundleWriter::new(tempfile::tempfile().expect("a temporary file"));
        encode(&base, &target, &changes, Effort::Default, &mut writer).expect("encoded");
        read.load(Ordering::Relaxed)
    }

    fn noise(seed: u8, len: usize) -> Vec<u8> {
        let piece = |at: usize| *Digest::of(&[&[seed][..], &at.to_le_bytes()].concat()).as_bytes();
        (0..len / Digest::LEN).flat_map(piece).collect()
    }

    fn edited(bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[100] ^= 1;
        bytes
    }

    #[test]
    fn an_ordinary_update_reads_of_the_base_what_changes_and_that_once() {
        let (program, page) = (noise(1, 200_000), b"a line of text\n".repeat(300));
        let base = [
            ("/bin/x-1.0", noise(4, 100_000)),
            ("/bin/y", program.clone()),
            ("/bin/z", noise(2, 200_000)),
            ("/page", page.clone()),
        ];
        let target = [
            ("/bin/x-1.1", edited(&base[0].1)),
            ("/bin/y", edited(&program)),
            ("/bin/z", noise(2, 200_000)),
            // Written anew, but too short to be worth a search.
            ("/page", noise(3, 4000)),
        ];
        let changed = 100_000 + program.len() + page.len();
        assert_eq!(base_read(&base, &target), changed as u64);
    }

    #[test]
    fn what_is_new_costs_a_few_times_its_length_at_most() {
        let files: Vec<(String, Vec<u8>)> = (0..20)
            .map(|n| (format!("/d/f{n}x"), noise(n, 100_000 - 32 * usize::from(n))))
            .collect();
        let base: Vec<(&str, Vec<u8>)> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        let target = [&base[..], &[("/d/new", noise(100, 100_000))]].concat();
        let read = base_read(&base, &target);
        assert!(read > 0, "nothing was looked for");
        assert!(read <= 4 * 100_000, "{read} bytes");
    }
}
