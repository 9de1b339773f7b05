//! Bundles made of bundles: two in a row become one, and one becomes the way back.
//!
//! Both need the base's files, as applying does, and of those only the ones that the bundles touch:
//! what a bundle takes away stands nowhere else. The result is a bundle like any other, encoded anew
//! and signed by whoever derives it: for its readers there is nothing to know about where it came from.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read, Seek, Write};

use vireo_model::{
    Change, ChangeSet, Digest, Hasher, Ignore, ImagePath, Node, NodeKind, Timestamp,
};

use crate::bundle::{Bundle, Verified};
use crate::content::BaseRead;
use crate::encode::{BundleWriter, Effort, FilePart, Finished, Statement};
use crate::error::{DeltaError, Detail, io_step};
use crate::manifest::new_content;
use crate::merge::{is_mergeable, may_be_mergeable};
use crate::pair::{Pair, Side};
use crate::view::TargetView;
use crate::{Permits, SecretKey, permits_needed};

/// How a bundle is derived.
#[derive(Clone, Copy, Debug, Default)]
pub struct Derive {
    /// How hard to try to make it small.
    pub effort: Effort,
    /// What it may do beyond what the bundles may that it is made of: going back needs other
    /// permits than going forth, and two small changes can make a large one.
    pub permits: Permits,
}

/// Makes of `first`, from version 1 to 2, and `second`, from 2 to 3, the one from 1 to 3, and writes
/// it to `out`. `base` has the files of version 1; those that neither bundle touches are not read.
///
/// The result's changes are those of comparing version 1 with version 3: what the second bundle takes
/// back does not travel. It has the second bundle's read map, or else the first's.
///
/// Memory: as writing a bundle, and some decoded files.
///
/// # Errors
///
/// `WrongBase` if `second` does not start where `first` ends, or `base` is not version 1; `Io` if a file of `base`
/// is not what it should be, as far as the bundles or [`BaseRead::digest_of`] tell;
/// `NotPermitted` if the change as a whole needs more than `options` and both bundles permit;
/// otherwise as decoding from both and as [`BundleWriter::finish`].
///
/// # Example
///
/// ```
/// # use std::io::Cursor;
/// # use vireo_delta::{Bundle, BundleWriter, Derive, MemBase, Permits, SecretKey, Statement,
/// #     TrustedKeys, compose};
/// # use vireo_model::{ChangeSet, Digest, Ignore, ImagePath, Node, NodeKind, Tree};
/// # let path = ImagePath::parse(b"/motd")?;
/// # let key = SecretKey::generate()?;
/// # let bundle = |base: &[u8], target: &[u8]| -> Result<Vec<u8>, Box<dyn std::error::Error>> {
/// #     let tree = |text: &[u8]| -> Tree {
/// #         let kind = NodeKind::File { len: text.len() as u64, content: Digest::of(text) };
/// #         [(path.clone(), Node::new(kind, 0o644))].into_iter().collect()
/// #     };
/// #     let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
/// #     writer.encode(Digest::of(target), target.len() as u64, false, target)?;
/// #     let changes = ChangeSet::between(&tree(base), &tree(target));
/// #     let statement = Statement { changes: &changes, ignore: &Ignore::default(),
/// #         permits: Permits::NONE, base_paths: 1 };
/// #     let mut file = Vec::new();
/// #     writer.finish(&statement, &key, &mut file)?;
/// #     Ok(file)
/// # };
/// # let (first, second) = (bundle(b"one", b"two")?, bundle(b"two", b"three")?);
/// # let trusted = TrustedKeys::from_iter([key.public()]);
/// let first = Bundle::open(&first)?.verify(&trusted)?;
/// let second = Bundle::open(&second)?.verify(&trusted)?;
/// let base = MemBase::from_iter([(path.clone(), b"one".to_vec())]);
///
/// let mut out = Vec::new();
/// let spool = Cursor::new(Vec::new());
/// compose(&first, &second, &base, &Derive::default(), &key, spool, &mut out)?;
///
/// let composed = Bundle::open(&out)?.verify(&trusted)?;
/// assert_eq!((composed.base(), composed.target()), (first.base(), second.target()));
/// let content = composed.content(&path).ok_or("it changes")?;
/// assert_eq!(content.to_vec(&base)?, b"three");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compose<S: Read + Write + Seek>(
    first: &Bundle<'_, Verified<'_>>,
    second: &Bundle<'_, Verified<'_>>,
    base: &dyn BaseRead,
    options: &Derive,
    key: &SecretKey,
    spool: S,
    out: impl Write,
) -> Result<Finished, DeltaError> {
    if first.target() != second.base() {
        let (target, base) = (first.target(), second.base());
        return Err(Detail::Chain { target, base }.into());
    }
    if first.ignore() != second.ignore() {
        return Err(Detail::Ignores.into());
    }
    let middle = TargetView::new(first, base);
    let target = TargetView::new(second, &middle);
    let changes = merge(first.change_set(), second.change_set())?;
    let permits = first.permits() | second.permits() | options.permits;
    let origins = |path: &ImagePath| {
        let found = second.origin(path).or_else(|| first.origin(path));
        // Where the middle has it from, if it changed there.
        let earlier = found.and_then(|origin| first.origin(origin));
        [earlier, found]
    };
    let is_sparse = |path: &ImagePath| {
        let content = second.content(path).or_else(|| first.content(path));
        content.is_some_and(|content| content.is_sparse())
    };
    let work = Work {
        dir_times: later_times(first, second, &changes),
        ignore: first.ignore(),
        permits: permitted(&changes, first.base_paths(), permits)?,
        base_paths: first.base_paths(),
        changes,
        from: base,
        to: &target,
        origins: &origins,
        is_sparse: &is_sparse,
        read_map: second.read_map().or(first.read_map()),
    };
    work.write(options.effort, key, spool, out)
}

/// Makes the bundle that takes `bundle` back, and writes it to `out`: from its target to its base.
/// `base` has the files of `bundle`'s base; those that it does not touch are not read.
///
/// `dir_times` are the times of the base's directories, as far as they are known: a bundle has only
/// those of its target, and no version's digest depends on them.
///
/// # Errors
///
/// `WrongBase` if `base` is not the bundle's; `NotPermitted` if going back needs more than `options`
/// and the bundle permit; otherwise as decoding and as [`BundleWriter::finish`].
pub fn reverse<S: Read + Write + Seek>(
    bundle: &Bundle<'_, Verified<'_>>,
    base: &dyn BaseRead,
    dir_times: &BTreeMap<ImagePath, Timestamp>,
    options: &Derive,
    key: &SecretKey,
    spool: S,
    out: impl Write,
) -> Result<Finished, DeltaError> {
    let target = TargetView::new(bundle, base);
    let forth = bundle.change_set();
    let back = |Change { path, before, after }: &Change| Change {
        path: path.clone(),
        before: after.clone(),
        after: before.clone(),
    };
    let changes = ChangeSet {
        base: forth.target,
        target: forth.base,
        changes: forth.changes.iter().map(back).collect(),
    };
    // What was made of a file is what the file can be made of.
    let mut made: HashMap<&ImagePath, &ImagePath> = HashMap::new();
    for change in &forth.changes {
        if let Some(origin) = bundle.origin(&change.path) {
            made.entry(origin).or_insert(&change.path);
        }
    }
    let origins = |path: &ImagePath| [made.get(path).copied(), None];
    let is_sparse =
        |path: &ImagePath| bundle.content(path).is_some_and(|content| content.is_sparse());
    let base_paths = target_paths(bundle.base_paths(), forth);
    let work = Work {
        dir_times: touched_times(dir_times, &changes),
        ignore: bundle.ignore(),
        permits: permitted(&changes, base_paths, bundle.permits() | options.permits)?,
        base_paths,
        changes,
        from: &target,
        to: base,
        origins: &origins,
        is_sparse: &is_sparse,
        read_map: bundle.read_map(),
    };
    work.write(options.effort, key, spool, out)
}

/// The changes from the base of `first` to the target of `second`.
fn merge(first: &ChangeSet, second: &ChangeSet) -> Result<ChangeSet, DeltaError> {
    let mut merged: BTreeMap<&ImagePath, (Option<&Node>, Option<&Node>)> = BTreeMap::new();
    for change in &first.changes {
        merged.insert(&change.path, (change.before.as_ref(), change.after.as_ref()));
    }
    for change in &second.changes {
        let (before, after) = (change.before.as_ref(), change.after.as_ref());
        let (_, end) = merged.entry(&change.path).or_insert((before, before));
        if *end != before {
            let path = &change.path;
            let what = format!("{path} is not what the bundle before it makes of it");
            return Err(Detail::Manifest { what }.into());
        }
        *end = after;
    }
    let differs = |path: &ImagePath| merged.get(path).is_some_and(|(a, b)| a != b);
    let stays = |path: &ImagePath, after: Option<&Node>| match after.map(|node| &node.kind) {
        // Whoever replaces the first name has to link the others anew.
        Some(NodeKind::HardLink { leader }) => differs(path) || differs(leader),
        _ => differs(path),
    };
    let changes = merged.iter().filter(|(path, (_, after))| stays(path, *after));
    let change = |(path, (before, after)): (&&ImagePath, &(Option<&Node>, Option<&Node>))| Change {
        path: (*path).clone(),
        before: before.cloned(),
        after: after.cloned(),
    };
    Ok(ChangeSet {
        base: first.base,
        target: second.target,
        changes: changes.map(change).collect(),
    })
}

/// What `changes` need, if it is within `permits`.
fn permitted(
    changes: &ChangeSet,
    base_paths: u64,
    permits: Permits,
) -> Result<Permits, DeltaError> {
    let needed = permits_needed(changes, base_paths);
    let missing = needed.without(permits);
    if missing.is_empty() { Ok(needed) } else { Err(Detail::Permits { missing }.into()) }
}

/// Number of paths in the target.
fn target_paths(base_paths: u64, changes: &ChangeSet) -> u64 {
    let count = |test: fn(&Change) -> bool| {
        changes.changes.iter().filter(|change| test(change)).count() as u64
    };
    let (added, removed) =
        (count(|change| change.before.is_none()), count(|change| change.after.is_none()));
    base_paths.saturating_add(added).saturating_sub(removed)
}

type Times = Vec<(ImagePath, Timestamp)>;

/// The times of the second bundle's directories, and those of the first's that it leaves alone.
fn later_times(
    first: &Bundle<'_, Verified<'_>>,
    second: &Bundle<'_, Verified<'_>>,
    changes: &ChangeSet,
) -> Times {
    if changes.is_empty() {
        return Vec::new();
    }
    let is_dir = |path: &ImagePath| {
        let list = &second.change_set().changes;
        let found = list.binary_search_by(|change| change.path.cmp(path));
        found.is_err() || found.is_ok_and(|at| list[at].after.as_ref().is_some_and(Node::is_dir))
    };
    let mut times: BTreeMap<&ImagePath, Timestamp> =
        first.dir_times().iter().map(|(path, time)| (path, *time)).collect();
    times.retain(|path, _| is_dir(path));
    times.extend(second.dir_times().iter().map(|(path, time)| (path, *time)));
    times.into_iter().map(|(path, time)| (path.clone(), time)).collect()
}

/// The times of the directories that patching moves.
fn touched_times(known: &BTreeMap<ImagePath, Timestamp>, changes: &ChangeSet) -> Times {
    let mut touched: HashSet<ImagePath> = HashSet::new();
    for change in &changes.changes {
        touched.extend(change.path.parent());
        touched.insert(change.path.clone());
    }
    touched.insert(ImagePath::root());
    let known = known.iter().filter(|(path, _)| touched.contains(path));
    known.map(|(path, time)| (path.clone(), *time)).collect()
}

/// A bundle to be written, with the files of both its ends.
struct Work<'a> {
    changes: ChangeSet,
    ignore: &'a Ignore,
    permits: Permits,
    base_paths: u64,
    dir_times: Times,
    from: &'a dyn BaseRead,
    to: &'a dyn BaseRead,
    /// Files of the base that the target's file was likely made of.
    origins: &'a (dyn Fn(&ImagePath) -> [Option<&'a ImagePath>; 2] + Sync),
    is_sparse: &'a (dyn Fn(&ImagePath) -> bool + Sync),
    read_map: Option<&'a [u8]>,
}

impl Work<'_> {
    fn write<S: Read + Write + Seek>(
        self,
        effort: Effort,
        key: &SecretKey,
        spool: S,
        out: impl Write,
    ) -> Result<Finished, DeltaError> {
        let mut writer = BundleWriter::new(spool).with_effort(effort);
        for (path, time) in &self.dir_times {
            writer.set_dir_time(path.clone(), *time);
        }
        if let Some(map) = self.read_map {
            writer.set_read_map(map)?;
        }
        self.encode_mergeable(&mut writer)?;
        self.encode(&mut writer)?;
        let statement = Statement {
            changes: &self.changes,
            ignore: self.ignore,
            permits: self.permits,
            base_paths: self.base_paths,
        };
        writer.finish(&statement, key, out)
    }

    /// Both texts of what a machine may have edited, whole, as capturing does.
    fn encode_mergeable<S: Read + Write + Seek>(
        &self,
        writer: &mut BundleWriter<S>,
    ) -> Result<(), DeltaError> {
        let content = |node: &Option<Node>| node.as_ref().and_then(Node::content);
        for change in &self.changes.changes {
            let (before, after) = (content(&change.before), content(&change.after));
            if before == after {
                continue;
            }
            for (files, side) in [(self.from, before), (self.to, after)] {
                let Some((len, digest)) = side else { continue };
                if !may_be_mergeable(&change.path, len) {
                    continue;
                }
                let text = read(files, &change.path, len)?;
                if is_mergeable(&change.path, &text) {
                    writer.encode_whole(digest, len, &text[..])?;
                }
            }
        }
        Ok(())
    }

    fn encode<S: Read + Write + Seek>(
        &self,
        writer: &mut BundleWriter<S>,
    ) -> Result<(), DeltaError> {
        let mut in_base: HashMap<Digest, &ImagePath> = HashMap::new();
        for change in &self.changes.changes {
            if let Some((_, digest)) = change.before.as_ref().and_then(Node::content) {
                in_base.entry(digest).or_insert(&change.path);
            }
        }
        let mut paths: HashMap<Digest, &ImagePath> = HashMap::new();
        let (mut pairs, mut large) = (Vec::new(), Vec::new());
        for change in &self.changes.changes {
            let Some(digest) = new_content(change) else { continue };
            let Some((len, _)) = change.after.as_ref().and_then(Node::content) else { continue };
            if writer.has(digest) || paths.insert(digest, &change.path).is_some() {
                continue;
            }
            let sparse = (self.is_sparse)(&change.path);
            if let Some(source) = in_base.get(&digest) {
                writer.reuse(digest, len, sparse, source)?;
                continue;
            }
            let pair = Pair { digest, len, sparse, ancestor: self.ancestor(change) };
            if pair.fits() { pairs.push(pair) } else { large.push((pair, &change.path)) }
        }
        let mut all = pairs.iter().chain(large.iter().map(|(pair, _)| pair));
        if all.any(|pair| pair.ancestor.is_none()) {
            self.index(writer)?;
        }
        writer.encode_pairs(&pairs, |pair, side| match (side, &pair.ancestor) {
            (Side::Base, Some((path, len))) => self.read_from(path, *len),
            _ => read_file(self.to, paths[&pair.digest], pair.len),
        })?;
        for (pair, path) in large {
            let found = writer.encode_large(&pair, |side, offset, buffer| {
                match (side, &pair.ancestor) {
                    (Side::Base, Some((from, _))) => self.from.read_at(from, offset, buffer),
                    _ => self.to.read_at(path, offset, buffer),
                }
            })?;
            if let (Some(found), Some((from, _))) = (found, &pair.ancestor) {
                self.check_from(from, found).map_err(io_step(READ_FROM))?;
            }
        }
        Ok(())
    }

    /// The base's file, found to be what it should be.
    fn read_from(&self, path: &ImagePath, len: u64) -> io::Result<Vec<u8>> {
        let bytes = read_file(self.from, path, len)?;
        self.check_from(path, Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// Fails if the base's file `path` has another digest than it should have: it changed since it was read.
    fn check_from(&self, path: &ImagePath, found: Digest) -> io::Result<()> {
        let changes = &self.changes.changes;
        let change = changes.binary_search_by(|change| change.path.cmp(path)).ok();
        let before = change.and_then(|at| changes[at].before.as_ref()?.content());
        let expected = before.map(|(_, digest)| digest).or_else(|| self.from.digest_of(path));
        if expected.is_none_or(|expected| expected == found) {
            return Ok(());
        }
        let what =
            format!("{path} changed while bundles were made over it: try again when it is quiet");
        Err(io::Error::new(io::ErrorKind::ResourceBusy, what))
    }

    /// The base's file that `change` is likely made of, with its length.
    fn ancestor(&self, change: &Change) -> Option<(ImagePath, u64)> {
        if let Some((len, _)) = change.before.as_ref().and_then(Node::content) {
            return Some((change.path.clone(), len));
        }
        let origins = (self.origins)(&change.path).into_iter().flatten();
        let mut known =
            origins.filter_map(|path| Some((path.clone(), self.from.len_of(path).ok()?)));
        known.next()
    }

    /// Makes the chunks of what changes or goes available.
    fn index<S: Read + Write + Seek>(
        &self,
        writer: &mut BundleWriter<S>,
    ) -> Result<(), DeltaError> {
        for change in &self.changes.changes {
            let before = change.before.as_ref().and_then(Node::content);
            let after = change.after.as_ref().and_then(Node::content);
            if let Some((len, _)) = before
                && before != after
            {
                let mut hasher = Hasher::new();
                let read_at = |offset, buffer: &mut [u8]| {
                    self.from.read_at(&change.path, offset, buffer)?;
                    hasher.update(buffer);
                    Ok(())
                };
                writer.index_base(&change.path, FilePart::new(read_at, 0..len))?;
                self.check_from(&change.path, hasher.finish()).map_err(io_step(READ_FROM))?;
            }
        }
        Ok(())
    }
}

/// The step that reads what deltas are made from.
const READ_FROM: &str = "read a file of the base";

fn read_file(files: &dyn BaseRead, path: &ImagePath, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?];
    files.read_at(path, 0, &mut bytes)?;
    Ok(bytes)
}

fn read(files: &dyn BaseRead, path: &ImagePath, len: u64) -> Result<Vec<u8>, DeltaError> {
    read_file(files, path, len).map_err(io_step("read a file that changes"))
}
