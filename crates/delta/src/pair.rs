//! One target file and the base's file it probably came from.

use vireo_model::{Digest, ImagePath};

use crate::encode::Effort;
use crate::error::{DeltaError, Detail};
use crate::frames::Class;
use crate::manifest::{Form, Inside};
use crate::{file, gzip, streams};

/// A delta is not worth its script if it does not find at least this share of the target, in percent.
const LEAST_COPIED: usize = 10;

/// Largest file that is encoded as a pair, in bytes: with its index it takes some 300 MB of memory.
/// Larger ones are compared block by block and cut into chunks.
const MAX_PAIR_LEN: u64 = 32 << 20;

const _: () = assert!(MAX_PAIR_LEN <= file::MAX_DELTA_LEN);

/// A file of the target and, if there is one, the file of the base that it is likely made of.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Digest of the target's content.
    pub digest: Digest,
    /// Its length in bytes.
    pub len: u64,
    /// Whether the file has holes where it stands.
    pub sparse: bool,
    /// The base's file, and its length in bytes.
    pub ancestor: Option<(ImagePath, u64)>,
}

/// Which file of a [`Pair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The base's.
    Base,
    /// The target's.
    Target,
}

impl Pair {
    /// Whether a delta can be made at all: both files are held in memory for it.
    #[must_use]
    pub fn fits(&self) -> bool {
        let base_len = self.ancestor.as_ref().map_or(0, |(_, len)| *len);
        self.len.max(base_len) <= MAX_PAIR_LEN
    }

    /// Bytes of memory that encoding takes, roughly: both files, both with their references marked,
    /// and the index of the base.
    pub(crate) fn memory_len(&self) -> u64 {
        let base_len = self.ancestor.as_ref().map_or(0, |(_, len)| *len);
        self.len * 4 + base_len * 8
    }
}

/// A target file, encoded apart from all others.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) class: Class,
    pub(crate) unpacked: Unpacked,
    pub(crate) body: EncodedBody,
}

impl Encoded {
    /// The target as it is, if nothing better was found for it.
    pub(crate) fn plain(&self) -> Option<&[u8]> {
        match (&self.unpacked, &self.body) {
            (Unpacked::Not, EncodedBody::Plain(target)) => Some(target),
            _ => None,
        }
    }
}

/// What a gzip file was taken apart into.
#[derive(Debug)]
pub(crate) enum Unpacked {
    /// It was not, or it is no gzip file.
    Not,
    /// Its tokens.
    Tokens,
    /// The tokens of all its streams, whatever is between them.
    Streams,
    /// Its plain text, of which the recipe makes it again.
    Plain { recipe: Vec<u8> },
}

#[derive(Debug)]
pub(crate) enum EncodedBody {
    /// The bytes themselves: a delta would not help.
    Plain(Vec<u8>),
    Delta {
        delta: file::Delta,
        plain_len: u64,
        /// What of the base's gzip file was compared, if that was not its bytes.
        inside: Option<Inside>,
    },
}

/// Encodes `target` against `base`.
pub(crate) fn encode(
    pair: &Pair,
    base: Option<Vec<u8>>,
    target: Vec<u8>,
    effort: Effort,
) -> Result<Encoded, DeltaError> {
    let found = Digest::of(&target);
    if found != pair.digest {
        return Err(Detail::Changed { expected: pair.digest, found }.into());
    }
    if streams::may_be_in(&target)
        && let Some(encoded) = unpacked(base.as_deref(), &target, effort)
    {
        return Ok(encoded);
    }
    let class = Class::of(&target);
    let delta = base.and_then(|base| helpful(&base, &target, effort));
    let plain_len = target.len() as u64;
    let body = match delta {
        Some(delta) => EncodedBody::Delta { delta, plain_len, inside: None },
        None => EncodedBody::Plain(target),
    };
    Ok(Encoded { class, unpacked: Unpacked::Not, body })
}

/// The delta, if it finds enough in the base.
pub(crate) fn helpful(base: &[u8], target: &[u8], effort: Effort) -> Option<file::Delta> {
    let len = target.len();
    let helps = |delta: &file::Delta| len - delta.extra.len() >= len * LEAST_COPIED / 100;
    file::encode(base, target, effort.search(Class::of(target))).filter(helps)
}

/// Encodes the packed file `target` by what is inside, if that pays.
///
/// By its tokens first, which cost next to nothing on both sides. A plain text makes a smaller delta
/// where much changed, but readers pay for it: see [`Effort::repacking_pays`].
fn unpacked(base: Option<&[u8]>, target: &[u8], effort: Effort) -> Option<Encoded> {
    let tokens = base.and_then(|base| {
        let one = by_text(Form::Tokens, base, target, effort);
        one.or_else(|| by_streams(base, target, effort))
    });
    let tokens_len = tokens.as_ref().map_or(target.len(), |(len, _)| *len);
    if !effort.repacking_pays(tokens_len, target.len()) {
        return tokens.map(|(_, encoded)| encoded);
    }
    let Some((plain_len, plain)) = by_plain(base, target, effort) else {
        return tokens.map(|(_, encoded)| encoded);
    };
    let saved = tokens_len.saturating_sub(plain_len);
    if effort.repacking_pays(saved, target.len()) {
        Some(plain)
    } else {
        tokens.map(|(_, encoded)| encoded)
    }
}

/// The delta of the tokens of all streams, if less of it travels than of the delta of the files: where
/// most of an archive stays as it is, that may be as short.
fn by_streams(base: &[u8], target: &[u8], effort: Effort) -> Option<(usize, Encoded)> {
    let (len, encoded) = by_text(Form::Streams, base, target, effort)?;
    // What a file adds is compressed already.
    let raw_len = |delta: file::Delta| travelling_len(&delta) + delta.extra.len() / 2;
    let raw_len = helpful(base, target, effort).map_or(target.len(), raw_len);
    (len < raw_len).then_some((len, encoded))
}

/// The delta of the texts of tokens that `form` says, and about how much of it travels; `None` if the
/// file itself is shorter.
fn by_text(form: Form, base: &[u8], target: &[u8], effort: Effort) -> Option<(usize, Encoded)> {
    let (read, write, unpacked): (Convert, Convert, _) = match form {
        Form::Plain => return None,
        Form::Tokens => (gzip::read_tokens, gzip::write_tokens, Unpacked::Tokens),
        Form::Streams => (streams::read, streams::write, Unpacked::Streams),
    };
    let (base_text, text) = (read(base)?, read(target)?);
    // Their codes may not be zlib's.
    if write(&text)? != target {
        return None;
    }
    let class = Class::of(&text);
    let delta = file::encode(&base_text, &text, effort.search(class))?;
    let len = travelling_len(&delta);
    if len >= target.len() {
        return None;
    }
    let packed_len = base.len() as u64;
    let inside = Some(Inside { form, packed_len, plain_len: base_text.len() as u64 });
    let body = EncodedBody::Delta { delta, plain_len: text.len() as u64, inside };
    Some((len, Encoded { class, unpacked, body }))
}

/// Makes a text of a file, or the file of its text.
type Convert = fn(&[u8]) -> Option<Vec<u8>>;

/// The same of the plain text.
fn by_plain(base: Option<&[u8]>, target: &[u8], effort: Effort) -> Option<(usize, Encoded)> {
    let (plain, recipe) = gzip::unpack(target)?;
    let class = Class::of(&plain);
    let base_plain = base.and_then(gzip::inflate_all);
    let inside = base.zip(base_plain.as_ref()).map(|(base, plain)| {
        let (packed_len, plain_len) = (base.len() as u64, plain.len() as u64);
        Inside { form: Form::Plain, packed_len, plain_len }
    });
    let delta = base_plain.as_deref().or(base).and_then(|base| helpful(base, &plain, effort));
    let plain_len = plain.len() as u64;
    let (len, body) = match delta {
        Some(delta) => (travelling_len(&delta), EncodedBody::Delta { delta, plain_len, inside }),
        None => (plain.len() * TEXT_PERCENT / 100, EncodedBody::Plain(plain)),
    };
    let len = len + recipe.len();
    Some((len, Encoded { class, unpacked: Unpacked::Plain { recipe }, body }))
}

/// About what is left of a text that is compressed among its like, in percent.
const TEXT_PERCENT: usize = 25;

/// About how much of a delta travels: what is added is text or tokens, what says where is mostly small
/// numbers.
fn travelling_len(delta: &file::Delta) -> usize {
    let rest = delta.control.len() + delta.patch.len() + delta.diff.len() + delta.refs.len();
    delta.extra.len() / 2 + rest * 2 / 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bundle, BundleWriter, MemBase, Permits, SecretKey, Statement, TrustedKeys};
    use std::io::Cursor;
    use vireo_model::{ChangeSet, Ignore, Node, NodeKind, Tree};

    /// What GNU gzip wrote, and the same with some bytes of text changed, as it would have written that.
    fn releases() -> (Vec<u8>, Vec<u8>) {
        let base = include_bytes!("../frozen/gnu-gzip-9n.gz").to_vec();
        let mut text = gzip::read_tokens(&base).expect("a gzip file");
        let letters = text.iter().enumerate().filter(|(_, byte)| byte.is_ascii_lowercase());
        let first = letters.map(|(at, _)| at).nth(40).expect("some text");
        text[first] = if text[first] == b'x' { b'y' } else { b'x' };
        let target = gzip::write_tokens(&text).expect("a text");
        (base, target)
    }

    /// Both as the second member of an archive, behind another one, with something at the end.
    fn archives() -> (Vec<u8>, Vec<u8>) {
        let (base, target) = releases();
        let other = include_bytes!("../frozen/gnu-gzip-9n.gz");
        let archive = |member: &[u8]| [&other[..], member, &[0; 100], b"end"].concat();
        (archive(&base), archive(&target))
    }

    fn pair(base: &[u8], target: &[u8]) -> Pair {
        let path = ImagePath::parse(b"/doc.gz").expect("a valid path");
        let (digest, len) = (Digest::of(target), target.len() as u64);
        Pair { digest, len, sparse: false, ancestor: Some((path, base.len() as u64)) }
    }

    #[test]
    fn an_edited_gzip_file_is_a_delta_of_tokens_whatever_the_effort() {
        let (base, target) = releases();
        for effort in [Effort::Fast, Effort::Default, Effort::Max] {
            let pair = pair(&base, &target);
            let encoded = encode(&pair, Some(base.clone()), target.clone(), effort);
            let encoded = encoded.expect("the right digest");
            assert!(matches!(encoded.unpacked, Unpacked::Tokens), "{effort:?}");
            let EncodedBody::Delta { delta, .. } = encoded.body else { panic!("no delta") };
            assert!(travelling_len(&delta) < target.len() / 4, "{} bytes", travelling_len(&delta));
        }
    }

    #[test]
    fn an_edited_archive_is_a_delta_of_the_tokens_of_all_its_streams() {
        let (base, target) = archives();
        for effort in [Effort::Fast, Effort::Default, Effort::Max] {
            let pair = pair(&base, &target);
            let encoded = encode(&pair, Some(base.clone()), target.clone(), effort);
            let encoded = encoded.expect("the right digest");
            assert!(matches!(encoded.unpacked, Unpacked::Streams), "{effort:?}");
            let EncodedBody::Delta { delta, .. } = encoded.body else { panic!("no delta") };
            assert!(travelling_len(&delta) < 200, "{} bytes", travelling_len(&delta));
        }
    }

    #[test]
    fn where_the_packed_bytes_make_a_smaller_delta_streams_are_left_as_they_are() {
        let (base, _) = archives();
        let target = [&base[..], b"more"].concat();
        let encoded = encode(&pair(&base, &target), Some(base), target, Effort::Default);
        let encoded = encoded.expect("the right digest");
        assert!(matches!(encoded.unpacked, Unpacked::Not));
        assert!(matches!(encoded.body, EncodedBody::Delta { .. }));
    }

    #[test]
    fn a_bundle_makes_packed_files_of_tokens_and_says_so_in_its_header() {
        use crate::feature::{STREAMS, TOKENS};
        for ((base, target), feature) in [(releases(), TOKENS), (archives(), STREAMS)] {
            let (path, file) = bundled(&base, &target);
            assert_eq!(u32::from(file[8]) & (TOKENS | STREAMS), feature);
            let trusted = TrustedKeys::from_iter([key().public()]);
            let bundle = Bundle::open(&file).and_then(|bundle| bundle.verify(&trusted));
            let bundle = bundle.expect("its own bytes");
            let content = bundle.content(&path).expect("there");
            let made = content.to_vec(&MemBase::from_iter([(path.clone(), base.clone())]));
            assert_eq!(made.expect("decoded"), target);
            // A base that is another file than it was is told from a damaged bundle.
            let mut other = base;
            let middle = other.len() / 2;
            other[middle] ^= 0x10;
            let error = content.to_vec(&MemBase::from_iter([(path.clone(), other)]));
            assert_eq!(error.expect_err("another base").kind(), crate::ErrorKind::WrongBase);
        }
    }

    fn key() -> SecretKey {
        format!("vireo-secret-key-v1:{}", "42".repeat(32)).parse().expect("a fixed key")
    }

    /// The bundle that turns one file into the other, and the file's path.
    fn bundled(base: &[u8], target: &[u8]) -> (ImagePath, Vec<u8>) {
        let pair = pair(base, target);
        let (path, _) = pair.ancestor.clone().expect("there");
        let tree = |content: &[u8]| -> Tree {
            let (len, content) = (content.len() as u64, Digest::of(content));
            [(path.clone(), Node::new(NodeKind::File { len, content }, 0o644))]
                .into_iter()
                .collect()
        };
        let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
        let read =
            |_: &Pair, side| Ok(if side == Side::Base { base.to_vec() } else { target.to_vec() });
        writer.encode_pairs(std::slice::from_ref(&pair), read).expect("memory");
        let changes = ChangeSet::between(&tree(base), &tree(target));
        let (ignore, permits) = (&Ignore::default(), Permits::NONE);
        let statement = Statement { changes: &changes, ignore, permits, base_paths: 1 };
        let mut file = Vec::new();
        writer.finish(&statement, &key(), &mut file).expect("memory");
        (path, file)
    }
}
