//! A second chance for files of which the base's file that their name led to has next to nothing.
//!
//! Copies that were edited while what they were copied from stays, files that swapped their names, names
//! that are alike by accident: without it they would travel whole.

use std::io::{self, Read, Seek, Write};

use rayon::prelude::*;
use vireo_model::ImagePath;

use super::{BundleWriter, with_ancestor};
use crate::error::{DeltaError, io_step};
use crate::pair::{self, Encoded, EncodedBody, Pair, Side};

/// For shorter files nothing of the base is read, in bytes: they travel in a few thousand.
const LEAST_SOUGHT_LEN: u64 = 16 << 10;

/// Bytes of the base that are read for each byte of a file to find an ancestor for it, at most, and to make it of that.
pub(super) const SOUGHT_TIMES: u64 = 8;

/// Bytes of the base that are read for all of them, at most: about half a second of work.
const MAX_SOUGHT_LEN: u64 = 256 << 20;

impl<S: Read + Write + Seek> BundleWriter<S> {
    /// Looks for another ancestor of those that were encoded as they are.
    pub(super) fn second_chance(
        &mut self,
        encoded: &mut [(Pair, Encoded)],
        read: &(impl Fn(&Pair, Side) -> io::Result<Vec<u8>> + Sync),
        likely: &impl Fn(&Pair) -> Vec<(ImagePath, u64)>,
    ) -> Result<(), DeltaError> {
        let known = self.sought_len;
        for (pair, encoded) in encoded.iter() {
            if pair.len >= LEAST_SOUGHT_LEN && encoded.plain().is_some() {
                self.index_likely(pair, read, likely)?;
            }
        }
        let is_new = self.sought_len > known;
        let (indexed, effort) = (&self.indexed, self.effort);
        encoded.par_iter_mut().try_for_each(|(pair, encoded)| {
            let Some(target) = encoded.plain() else { return Ok(()) };
            // Who had none by name was looked for in all that is known by now.
            if indexed.is_empty() || (pair.ancestor.is_none() && !is_new) {
                return Ok(());
            }
            let nameless = Pair { ancestor: None, ..pair.clone() };
            let other = with_ancestor(&nameless, indexed, target);
            if other.ancestor.is_none() || other.ancestor == pair.ancestor {
                return Ok(());
            }
            let base = read(&other, Side::Base).map_err(io_step("read a file of the base"))?;
            let again = pair::encode(&other, Some(base), target.to_vec(), effort)?;
            if matches!(again.body, EncodedBody::Delta { .. }) {
                (*pair, *encoded) = (other, again);
            }
            Ok(())
        })
    }

    fn index_likely(
        &mut self,
        pair: &Pair,
        read: &impl Fn(&Pair, Side) -> io::Result<Vec<u8>>,
        likely: &impl Fn(&Pair) -> Vec<(ImagePath, u64)>,
    ) -> Result<(), DeltaError> {
        let left = MAX_SOUGHT_LEN - self.sought_len;
        let mut room = left.min(pair.len * SOUGHT_TIMES);
        // Without room nobody has to think about who is likely.
        if room < pair.len {
            return Ok(());
        }
        for (path, len) in likely(pair) {
            let other = Pair { ancestor: Some((path.clone(), len)), ..pair.clone() };
            let source = self.source(&path, None)?;
            let is_tried = other.ancestor == pair.ancestor || self.indexed.has(source);
            if is_tried || len > room || !other.fits() {
                continue;
            }
            let bytes = read(&other, Side::Base).map_err(io_step("read a file of the base"))?;
            self.indexed.add(source, &path, &bytes[..])?;
            self.sought_len += len;
            room -= len;
        }
        Ok(())
    }
}
