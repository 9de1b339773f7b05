//! The tree that a bundle makes, read without making it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vireo_model::{Digest, ImagePath, Node};

use crate::bundle::{Bundle, Verified};
use crate::content::{BaseRead, ContentSource};

/// Most bytes of decoded files that are kept: those that are read block by block.
const CACHED_LEN: usize = 128 << 20;

/// The files of a bundle's target, decoded from those of its base as they are read: itself something
/// that contents can be decoded from.
///
/// Deltas and packed files are decoded whole and compared with their digests. Of the others only the
/// pieces are decoded that are read: frames are compared with their digests, but bytes of the base are
/// compared with none. Who has to know that they are right decodes the whole
/// ([`ContentSource::decode`](crate::ContentSource::decode)).
///
/// ```
/// # use std::io::Cursor;
/// # use vireo_delta::{BaseRead, Bundle, BundleWriter, MemBase, Permits, SecretKey, Statement,
/// #     TargetView, TrustedKeys};
/// # use vireo_model::{ChangeSet, Digest, Ignore, ImagePath, Node, NodeKind, Tree};
/// # let path = ImagePath::parse(b"/motd")?;
/// # let node = |text: &[u8]| {
/// #     let kind = NodeKind::File { len: text.len() as u64, content: Digest::of(text) };
/// #     Node::new(kind, 0o644)
/// # };
/// # let (hello, bye) = (b"hello".to_vec(), b"goodbye".to_vec());
/// # let base: Tree = [(path.clone(), node(&hello))].into_iter().collect();
/// # let target: Tree = [(path.clone(), node(&bye))].into_iter().collect();
/// # let key = SecretKey::generate()?;
/// # let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
/// # writer.encode(Digest::of(&bye), bye.len() as u64, false, &bye[..])?;
/// # let changes = ChangeSet::between(&base, &target);
/// # let statement = Statement { changes: &changes, ignore: &Ignore::default(),
/// #     permits: Permits::NONE, base_paths: 1 };
/// # let mut file = Vec::new();
/// # writer.finish(&statement, &key, &mut file)?;
/// # let bundle = Bundle::open(&file)?.verify(&TrustedKeys::from_iter([key.public()]))?;
/// // `bundle` changes /motd from "hello" to "goodbye".
/// let base = MemBase::from_iter([(path.clone(), hello)]);
/// let target = TargetView::new(&bundle, &base);
/// let mut word = [0; 3];
/// target.read_at(&path, 4, &mut word)?;
/// assert_eq!(&word, b"bye");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TargetView<'a> {
    bundle: &'a Bundle<'a, Verified<'a>>,
    base: &'a dyn BaseRead,
    decoded: Mutex<Decoded>,
    /// The file that was read last, and where its segments end if it has some.
    sought: Mutex<Option<(ImagePath, Ends)>>,
}

type Ends = Option<Arc<Vec<u64>>>;

#[derive(Debug, Default)]
struct Decoded {
    files: VecDeque<(ImagePath, Arc<Vec<u8>>)>,
    len: usize,
}

impl fmt::Debug for TargetView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetView").field("bundle", self.bundle).finish_non_exhaustive()
    }
}

impl<'a> TargetView<'a> {
    /// What `bundle` makes of `base`.
    #[must_use]
    pub fn new(bundle: &'a Bundle<'a, Verified<'a>>, base: &'a dyn BaseRead) -> Self {
        Self { bundle, base, decoded: Mutex::default(), sought: Mutex::default() }
    }

    /// The file at `path` if the bundle changes what it holds, `None` if it is the base's.
    fn changed(&self, path: &ImagePath) -> io::Result<Option<&Node>> {
        let changes = &self.bundle.change_set().changes;
        let Ok(at) = changes.binary_search_by(|change| change.path.cmp(path)) else {
            return Ok(None);
        };
        let after = changes[at].after.as_ref().filter(|node| node.content().is_some());
        let after = after.ok_or(io::ErrorKind::NotFound)?;
        Ok(self.bundle.content(path).is_some().then_some(after))
    }

    /// Where the segments of `content`, which is `path`'s, end: counted once while one file is read.
    fn ends(&self, path: &ImagePath, content: &ContentSource<'_>) -> Ends {
        let lock = || self.sought.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ends)) = lock().as_ref().filter(|(known, _)| known == path) {
            return ends.clone();
        }
        let ends = content.ends().map(Arc::new);
        *lock() = Some((path.clone(), ends.clone()));
        ends
    }

    fn decoded(&self, path: &ImagePath) -> io::Result<Arc<Vec<u8>>> {
        let lock = || self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = lock().files.iter().find(|(known, _)| known == path) {
            return Ok(bytes.clone());
        }
        let content = self.bundle.content(path).ok_or(io::ErrorKind::NotFound)?;
        let bytes = Arc::new(content.to_vec(self.base).map_err(io::Error::other)?);
        let mut decoded = lock();
        decoded.len += bytes.len();
        decoded.files.push_back((path.clone(), bytes.clone()));
        while decoded.len > CACHED_LEN
            && decoded.files.len() > 1
            && let Some((_, dropped)) = decoded.files.pop_front()
        {
            decoded.len -= dropped.len();
        }
        Ok(bytes)
    }
}

impl BaseRead for TargetView<'_> {
    fn read_at(&self, path: &ImagePath, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.changed(path)?.is_none() {
            return self.base.read_at(path, offset, buffer);
        }
        let content = self.bundle.content(path).ok_or(io::ErrorKind::NotFound)?;
        if let Some(ends) = self.ends(path, &content) {
            let outcome = content.read_at(&ends, self.base, offset, buffer);
            return outcome.map_err(io::Error::other);
        }
        // Deltas and gzip files are made from their start; they are at most 64 MiB long.
        let bytes = self.decoded(path)?;
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len_of(&self, path: &ImagePath) -> io::Result<u64> {
        match self.changed(path)?.and_then(Node::content) {
            Some((len, _)) => Ok(len),
            None => self.base.len_of(path),
        }
    }

    fn digest_of(&self, path: &ImagePath) -> Option<Digest> {
        match self.changed(path).ok()?.and_then(Node::content) {
            Some((_, digest)) => Some(digest),
            None => self.base.digest_of(path),
        }
    }
}
