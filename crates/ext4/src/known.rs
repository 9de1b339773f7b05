//! [`Known`] as bytes, for those who keep it.
//!
//! ```text
//! 8    magic
//! 69   identity: UUID, hash seed, three times (seconds, nanoseconds), flag
//! 8    number of files
//! 105  each: inode, generation, length, two times, digests of the map and the content, flag
//! 32   BLAKE3 of all before
//! ```
//!
//! Numbers are little-endian. It is a cache's form, not one for exchange: another version of it
//! counts as absent.

use vireo_model::{Digest, Timestamp};

use crate::compare::Known;
use crate::reader::Identity;
use crate::walk::FileState;

const MAGIC: &[u8; 8] = b"VIREOKN1";

/// Length of what is written of one file.
const FILE_LEN: usize = 4 + 4 + 8 + 12 + 12 + Digest::LEN + Digest::LEN + 1;

impl Known {
    /// Its bytes, for a cache.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (identity, files) = self.parts();
        let mut out = Vec::with_capacity(files.len().saturating_mul(FILE_LEN).saturating_add(256));
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&identity.uuid);
        out.extend_from_slice(&identity.hash_seed);
        for time in [identity.made, identity.mounted, identity.written] {
            put_time(&mut out, time);
        }
        out.push(u8::from(identity.replayed));
        out.extend_from_slice(&u64::try_from(files.len()).unwrap_or(0).to_le_bytes());
        for (state, digest) in files {
            out.extend_from_slice(&state.ino.to_le_bytes());
            out.extend_from_slice(&state.generation.to_le_bytes());
            out.extend_from_slice(&state.len.to_le_bytes());
            put_time(&mut out, state.mtime);
            put_time(&mut out, state.ctime);
            out.extend_from_slice(state.map.as_bytes());
            out.extend_from_slice(digest.as_bytes());
            out.push(u8::from(state.sparse));
        }
        let check = Digest::of(&out);
        out.extend_from_slice(check.as_bytes());
        out
    }

    /// What [`Known::to_bytes`] wrote; `None` if it is anything else, or damaged.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(Digest::LEN)?)?;
        if Digest::of(body).as_bytes().as_slice() != check {
            return None;
        }
        let mut rest = body;
        if take::<8>(&mut rest)? != *MAGIC {
            return None;
        }
        let identity = Identity {
            uuid: take(&mut rest)?,
            hash_seed: take(&mut rest)?,
            made: take_time(&mut rest)?,
            mounted: take_time(&mut rest)?,
            written: take_time(&mut rest)?,
            replayed: take_flag(&mut rest)?,
        };
        let count = usize::try_from(u64::from_le_bytes(take(&mut rest)?)).ok()?;
        if count.checked_mul(FILE_LEN)? != rest.len() {
            return None;
        }
        let files = (0..count).map(|_| take_file(&mut rest)).collect::<Option<_>>()?;
        Some(Self::of_parts(identity, files))
    }
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    out.extend_from_slice(&time.secs.to_le_bytes());
    out.extend_from_slice(&time.nanos.to_le_bytes());
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, behind) = rest.split_first_chunk::<N>()?;
    *rest = behind;
    Some(*first)
}

fn take_time(rest: &mut &[u8]) -> Option<Timestamp> {
    let secs = i64::from_le_bytes(take(rest)?);
    Some(Timestamp { secs, nanos: u32::from_le_bytes(take(rest)?) })
}

fn take_flag(rest: &mut &[u8]) -> Option<bool> {
    match take::<1>(rest)? {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

fn take_file(rest: &mut &[u8]) -> Option<(FileState, Digest)> {
    let ino = u32::from_le_bytes(take(rest)?);
    let generation = u32::from_le_bytes(take(rest)?);
    let len = u64::from_le_bytes(take(rest)?);
    let (mtime, ctime) = (take_time(rest)?, take_time(rest)?);
    let map = Digest::from_bytes(take(rest)?);
    let digest = Digest::from_bytes(take(rest)?);
    let sparse = take_flag(rest)?;
    Some((FileState { ino, generation, len, mtime, ctime, map, sparse }, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Known {
        let time = |secs| Timestamp { secs, nanos: 7 };
        let identity = Identity {
            uuid: [1; 16],
            hash_seed: [2; 16],
            made: time(3),
            mounted: time(4),
            written: time(-5),
            replayed: false,
        };
        let file = |ino: u32| {
            let state = FileState {
                ino,
                generation: 9,
                len: 10,
                mtime: time(11),
                ctime: time(12),
                map: Digest::of(&ino.to_le_bytes()),
                sparse: ino.is_multiple_of(2),
            };
            (state, Digest::of(b"content"))
        };
        Known::of_parts(identity, (12..40).map(file).collect())
    }

    #[test]
    fn what_is_known_reads_back() {
        let (known, read) = (sample(), Known::from_bytes(&sample().to_bytes()).expect("its own"));
        assert_eq!(known.parts(), read.parts());
    }

    #[test]
    fn damaged_bytes_are_not_read() {
        let bytes = sample().to_bytes();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Known::from_bytes(&damaged).is_none(), "byte {at}");
            assert!(Known::from_bytes(&bytes[..at]).is_none(), "cut at {at}");
        }
        let mut longer = bytes[..bytes.len() - Digest::LEN].to_vec();
        longer.push(0);
        longer.extend_from_slice(Digest::of(&longer).as_bytes());
        assert!(Known::from_bytes(&longer).is_none());
    }
}
