//! One target file and the base's file it probably came from.

use vireo_model::{Digest, ImagePath};

use crate::encode::Effort;
use crate::error::{DeltaError, Detail};
use crate::frames::Class;
use crate::manifest::{Form, Inside};
use crate::{file, gzip};

/// A delta is not worth its script if it does not find at least this share of the target, in percent.
const LEAST_COPIED: usize = 10;

/// Largest file that is encoded as a pair, in bytes: with its index it takes some 300 MB of memory.
/// Larger ones are cut into chunks.
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

/// What a gzip file was taken apart into.
#[derive(Debug)]
pub(crate) enum Unpacked {
    /// It was not, or it is no gzip file.
    Not,
    /// Its tokens.
    Tokens,
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
    if gzip::is_packed(&target)
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
fn helpful(base: &[u8], target: &[u8], effort: Effort) -> Option<file::Delta> {
    let len = target.len();
    let helps = |delta: &file::Delta| len - delta.extra.len() >= len * LEAST_COPIED / 100;
    file::encode(base, target, effort.search(Class::of(target))).filter(helps)
}

/// Encodes the gzip file `target` by what is inside, if that pays.
///
/// By its tokens first, which cost next to nothing on both sides. A plain text makes a smaller delta
/// where much changed, but readers pay for it: see [`Effort::repacking_pays`].
fn unpacked(base: Option<&[u8]>, target: &[u8], effort: Effort) -> Option<Encoded> {
    let tokens = base.and_then(|base| by_tokens(base, target, effort));
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

/// The delta of the tokens, and about how much of it travels; `None` if the file itself is shorter.
fn by_tokens(base: &[u8], target: &[u8], effort: Effort) -> Option<(usize, Encoded)> {
    let base_text = gzip::read_tokens(base)?;
    let text = gzip::read_tokens(target)?;
    // Their codes may not be zlib's.
    if gzip::write_tokens(&text)? != target {
        return None;
    }
    let class = Class::of(&text);
    let delta = file::encode(&base_text, &text, effort.search(class))?;
    let len = travelling_len(&delta);
    if len >= target.len() {
        return None;
    }
    let (form, packed_len) = (Form::Tokens, base.len() as u64);
    let inside = Some(Inside { form, packed_len, plain_len: base_text.len() as u64 });
    let body = EncodedBody::Delta { delta, plain_len: text.len() as u64, inside };
    Some((len, Encoded { class, unpacked: Unpacked::Tokens, body }))
}

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
