//! One target file and the base's file it probably came from.

use vireo_model::{Digest, ImagePath};

use crate::encode::Effort;
use crate::error::{DeltaError, Detail};
use crate::frames::Class;
use crate::{file, gzip};

/// A delta is not worth its script if it does not find at least this share of the target, in percent.
const LEAST_COPIED: u64 = 10;

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
    /// For a gzip file what makes it from its plain text.
    pub(crate) recipe: Option<Vec<u8>>,
    pub(crate) body: EncodedBody,
}

#[derive(Debug)]
pub(crate) enum EncodedBody {
    /// The bytes themselves: a delta would not help.
    Plain(Vec<u8>),
    Delta {
        delta: file::Delta,
        plain_len: u64,
        /// Length of the base's gzip file and of its plain text, if that is what was compared.
        packed: Option<(u64, u64)>,
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
    let may_unpack = gzip::is_packed(&target) && target.len() as u64 <= effort.packed_len();
    let unpacked = if may_unpack { gzip::unpack(&target) } else { None };
    let (target, recipe) = match unpacked {
        Some((plain, recipe)) => (plain, Some(recipe)),
        None => (target, None),
    };
    let mut packed = None;
    let base = base.map(|base| {
        // What a packed target is compared with is plain, too.
        let plain = recipe.as_ref().and_then(|_| gzip::inflate_all(&base));
        match plain {
            Some(plain) => {
                packed = Some((base.len() as u64, plain.len() as u64));
                plain
            }
            None => base,
        }
    });
    let class = Class::of(&target);
    let delta = base.and_then(|base| file::encode(&base, &target, effort.search()));
    let plain_len = target.len() as u64;
    let helps = |delta: &file::Delta| {
        plain_len - delta.extra.len() as u64 >= plain_len * LEAST_COPIED / 100
    };
    let body = match delta.filter(helps) {
        Some(delta) => EncodedBody::Delta { delta, plain_len, packed },
        None => EncodedBody::Plain(target),
    };
    Ok(Encoded { class, recipe, body })
}
