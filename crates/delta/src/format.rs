//! The bundle's fixed head and all limits. `docs/format/bundle.md` is the normative text.

use vireo_model::Digest;

use crate::PublicKey;
use crate::error::{DeltaError, Detail};
use crate::keys::SIGNATURE_LEN;

/// First bytes of every bundle; like PNG's, damaged by text-mode and 7-bit transfers.
pub const MAGIC: [u8; 8] = *b"\x89VIR\r\n\x1a\n";

/// Length of the fixed head, in bytes. A multiple of 16, so that the manifest behind it is
/// aligned for rkyv in any page-aligned map.
pub const HEADER_LEN: usize = 256;

/// Bits of the header's `incompat` word: what a reader must know. The split into `compat` and
/// `incompat` follows ext4's superblock.
pub mod feature {
    /// The manifest is a zstd frame around an rkyv 0.8 archive of columns, the content is streams in
    /// zstd frames. (Bit 0 was the layout of unreleased bundles without deltas.)
    pub const LAYOUT_2: u32 = 1 << 1;
    /// A read map follows the manifest's archive, in a frame of its own.
    pub const READ_MAP: u32 = 1 << 2;
    /// Gzip files may be made from the text of their tokens.
    pub const TOKENS: u32 = 1 << 3;
    /// Manifest and literal text are compressed with the format's dictionaries.
    pub const DICTIONARIES: u32 = 1 << 4;
    /// Frames of text may be compressed by a model of it (PPMd).
    pub const MODELS: u32 = 1 << 5;
    /// Files with deflate streams in places may be made from the text of all these streams.
    pub const STREAMS: u32 = 1 << 6;
    /// All that this build can read.
    pub const INCOMPAT_KNOWN: u32 = LAYOUT_2 | READ_MAP | TOKENS | DICTIONARIES | MODELS | STREAMS;
}

/// What a reader accepts; checked before anything is allocated.
pub mod limits {
    /// Largest manifest, in bytes.
    pub const MAX_MANIFEST_LEN: u64 = 64 << 20;
    /// Largest manifest before compression, in bytes; what a reader allocates for it.
    pub const MAX_MANIFEST_PLAIN_LEN: u64 = 256 << 20;
    /// Longest read map, in bytes: what a reader allocates for it. 40 services had 0.5 MB.
    pub const MAX_READ_MAP_LEN: u64 = 8 << 20;
    /// Most bytes that one byte of a compressed manifest may become; real ones become three to ten.
    /// Without it a bundle of some kilobytes could make its readers allocate all of
    /// [`MAX_MANIFEST_PLAIN_LEN`].
    pub const MAX_MANIFEST_RATIO: u64 = 1024;
    /// Manifests up to this length before compression may have any ratio, in bytes.
    pub const ANY_RATIO_LEN: u64 = 1 << 20;
    /// Most memory that a manifest may take once it is read, in bytes, counted item by item before
    /// it is allocated: two million changed files with names of ordinary length.
    pub const MAX_MANIFEST_MEMORY_LEN: u64 = 1 << 30;
    /// Most bytes of all paths together; they are stored by what they do not share.
    pub const MAX_PATHS_LEN: u64 = 256 << 20;
    /// Largest content section, in bytes on the wire.
    pub const MAX_CONTENT_LEN: u64 = 1 << 38;
    /// Most changed paths.
    pub const MAX_CHANGES: usize = 2_000_000;
    /// Most segments of all files together.
    pub const MAX_SEGMENTS: usize = 16_000_000;
    /// Largest single file, in bytes; a hostile length cannot fill a disk by holes alone.
    pub const MAX_FILE_LEN: u64 = 1 << 42;
    /// Most bytes of all contents together, in bytes. All are hashed, and copies from the base or
    /// from one frame cost nothing on the wire: five minutes of one core.
    pub const MAX_DECODED_LEN: u64 = 1 << 40;
    /// Most zeros of all contents together that are written as their number, in bytes. Holes are
    /// hashed like anything else, by their length alone: twenty seconds of one core.
    pub const MAX_ZEROS_LEN: u64 = 64 << 30;
    /// Most plain text of all gzip files together, of the base and of the target, in bytes. It is
    /// inflated and deflated at some 50 MB/s: five minutes of one core. Looking for the streams of a
    /// base's file counts eight bytes for each of its own.
    pub const MAX_REPACKED_LEN: u64 = 16 << 30;
    /// Most work of decompressing frames, in bytes: those of every frame that has to be decompressed,
    /// in the order of the changes, by a reader that keeps the last ones, and something for each time
    /// that a content goes to another frame. Content may jump between frames for every byte, and
    /// each jump may cost a frame: five minutes of one core.
    pub const MAX_UNPACKED_LEN: u64 = 256 << 30;
    /// Largest frame before compression, in bytes. Decoding holds a few of them in memory.
    pub const MAX_FRAME_PLAIN_LEN: u64 = 1 << 20;
    /// Largest frame on the wire, in bytes.
    pub const MAX_FRAME_LEN: u64 = 2 << 20;
    /// Largest extended attribute value (`XATTR_SIZE_MAX` of Linux), in bytes.
    pub const MAX_XATTR_LEN: usize = 64 << 10;
    /// Most bytes of one node's attribute names, each with a NUL (`XATTR_LIST_MAX` of Linux).
    pub const MAX_XATTR_NAMES_LEN: u64 = 64 << 10;
    /// Longest target of [`diff`](crate::diff()), in bytes: what [`patch`](crate::patch) may allocate.
    pub const MAX_PATCHED_LEN: u64 = 1 << 30;
    /// Longest symbolic link target (`PATH_MAX` less its NUL), in bytes.
    pub const MAX_LINK_LEN: usize = 4095;
}

const SIGNED_LEN: usize = HEADER_LEN - SIGNATURE_LEN;
const CHECKED_LEN: usize = SIGNED_LEN - 8;
const SIGNING_DOMAIN: &[u8] = b"vireo bundle header v1\0";

/// Fixed head of a bundle, little-endian, no padding:
///
/// | offset | bytes | field           |                                            |
/// |-------:|------:|-----------------|--------------------------------------------|
/// |      0 |     8 | magic           | [`MAGIC`]                                  |
/// |      8 |     4 | incompat        | feature bits a reader must know            |
/// |     12 |     4 | compat          | feature bits a reader may ignore           |
/// |     16 |     8 | manifest_len    | bytes, at most [`limits::MAX_MANIFEST_LEN`] |
/// |     24 |     8 | content_len     | bytes, at most [`limits::MAX_CONTENT_LEN`] |
/// |     32 |    32 | base            | digest of the base tree                    |
/// |     64 |    32 | target          | digest of the target tree                  |
/// |     96 |    32 | manifest_digest | BLAKE3 of the manifest's bytes             |
/// |    128 |    32 | signer          | Ed25519 public key                         |
/// |    160 |     8 | manifest_plain_len | bytes before compression, at most [`limits::MAX_MANIFEST_PLAIN_LEN`] |
/// |    168 |     4 | read_map_len    | bytes of the read map's frame at the manifest's end, or 0 |
/// |    172 |     4 | read_map_plain_len | bytes before compression, at most [`limits::MAX_READ_MAP_LEN`] |
/// |    176 |     8 | reserved        | zero                                       |
/// |    184 |     8 | check           | first 8 bytes of BLAKE3 of bytes 0..184    |
/// |    192 |    64 | signature       | Ed25519 over the domain text and 0..192    |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Feature bits a reader must know.
    pub incompat: u32,
    /// Feature bits a reader may ignore.
    pub compat: u32,
    /// Length of the manifest behind the header, in bytes.
    pub manifest_len: u64,
    /// Length of the frames behind the manifest, in bytes.
    pub content_len: u64,
    /// Digest of the base tree.
    pub base: Digest,
    /// Digest of the target tree.
    pub target: Digest,
    /// Digest of the manifest's bytes; the manifest names the digest of every frame, so the
    /// signature covers the whole file.
    pub manifest_digest: Digest,
    /// Who signed.
    pub signer: PublicKey,
    /// Length of the manifest before compression, in bytes; the read map apart.
    pub manifest_plain_len: u64,
    /// Length of the read map's frame, the last bytes of the manifest; 0 if there is none.
    pub read_map_len: u32,
    /// Length of the read map before compression, in bytes.
    pub read_map_plain_len: u32,
}

const _: () = assert!(8 + 4 + 4 + 8 + 8 + 4 * Digest::LEN + 24 == CHECKED_LEN);
const _: () = assert!(CHECKED_LEN + 8 + SIGNATURE_LEN == HEADER_LEN);
const _: () = assert!(HEADER_LEN.is_multiple_of(16));

impl Header {
    /// The header's bytes, signed by `sign`, which gets the message to be signed.
    pub(crate) fn encode(
        &self,
        sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE_LEN],
    ) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC);
        put(&self.incompat.to_le_bytes());
        put(&self.compat.to_le_bytes());
        put(&self.manifest_len.to_le_bytes());
        put(&self.content_len.to_le_bytes());
        put(self.base.as_bytes());
        put(self.target.as_bytes());
        put(self.manifest_digest.as_bytes());
        put(self.signer.as_bytes());
        put(&self.manifest_plain_len.to_le_bytes());
        put(&self.read_map_len.to_le_bytes());
        put(&self.read_map_plain_len.to_le_bytes());
        let check = Digest::of(&bytes[..CHECKED_LEN]);
        bytes[CHECKED_LEN..SIGNED_LEN].copy_from_slice(&check.as_bytes()[..8]);
        let signature = sign(&signed_message(&bytes));
        bytes[SIGNED_LEN..].copy_from_slice(&signature);
        bytes
    }

    /// Reads a header; whose signature it carries is checked by [`Header::verify`].
    ///
    /// # Errors
    ///
    /// `Corrupt` for what is no header or a damaged one, `Unsupported` for unknown `incompat`
    /// bits, `Limit` for lengths beyond the limits.
    pub fn decode(file: &[u8]) -> Result<Self, DeltaError> {
        if !MAGIC.starts_with(&file[..file.len().min(MAGIC.len())]) {
            return Err(Detail::Magic.into());
        }
        let Some(bytes) = file.first_chunk::<HEADER_LEN>() else {
            return Err(Detail::Truncated { len: file.len() as u64, part: "header" }.into());
        };
        if Digest::of(&bytes[..CHECKED_LEN]).as_bytes()[..8] != bytes[CHECKED_LEN..SIGNED_LEN] {
            return Err(Detail::Checksum { part: "header" }.into());
        }
        let header = Self {
            incompat: u32::from_le_bytes(array(bytes, 8)),
            compat: u32::from_le_bytes(array(bytes, 12)),
            manifest_len: u64::from_le_bytes(array(bytes, 16)),
            content_len: u64::from_le_bytes(array(bytes, 24)),
            base: Digest::from_bytes(array(bytes, 32)),
            target: Digest::from_bytes(array(bytes, 64)),
            manifest_digest: Digest::from_bytes(array(bytes, 96)),
            signer: PublicKey::from_bytes(array(bytes, 128)),
            manifest_plain_len: u64::from_le_bytes(array(bytes, 160)),
            read_map_len: u32::from_le_bytes(array(bytes, 168)),
            read_map_plain_len: u32::from_le_bytes(array(bytes, 172)),
        };
        let missing = header.incompat & !feature::INCOMPAT_KNOWN;
        if missing != 0 {
            return Err(Detail::Features { missing }.into());
        }
        limit("manifest length", header.manifest_len, limits::MAX_MANIFEST_LEN)?;
        let plain_len = header.manifest_plain_len;
        limit("manifest's plain length", plain_len, header.most_plain_len())?;
        limit("content length", header.content_len, limits::MAX_CONTENT_LEN)?;
        let plain_len = u64::from(header.read_map_plain_len);
        limit("length of the read map", plain_len, limits::MAX_READ_MAP_LEN)?;
        header.check_read_map()?;
        Ok(header)
    }

    /// Whether the lengths of the read map agree with the feature's bit and the manifest's length.
    fn check_read_map(&self) -> Result<(), DeltaError> {
        let (len, plain_len) = (self.read_map_len, self.read_map_plain_len);
        let agree = if self.incompat & feature::READ_MAP == 0 {
            len == 0 && plain_len == 0
        } else {
            len > 0 && plain_len > 0 && u64::from(len) <= self.manifest_len
        };
        let what = "the header contradicts itself about the read map".to_owned();
        if agree { Ok(()) } else { Err(Detail::Manifest { what }.into()) }
    }

    /// Checks the signature in `file`, which starts with this header.
    pub(crate) fn verify(&self, file: &[u8]) -> Result<(), DeltaError> {
        let signer = self.signer;
        let Some(bytes) = file.first_chunk::<HEADER_LEN>() else {
            return Err(Detail::Truncated { len: file.len() as u64, part: "header" }.into());
        };
        if !signer.verifies(&signed_message(bytes), &array(bytes, SIGNED_LEN)) {
            return Err(Detail::Signature { signer }.into());
        }
        Ok(())
    }

    /// The longest manifest that one of this compressed length may become.
    pub(crate) fn most_plain_len(&self) -> u64 {
        let by_ratio = self.manifest_len.saturating_mul(limits::MAX_MANIFEST_RATIO);
        by_ratio.clamp(limits::ANY_RATIO_LEN, limits::MAX_MANIFEST_PLAIN_LEN)
    }

    /// Length of header and manifest together, in bytes.
    #[must_use]
    pub fn head_len(&self) -> u64 {
        HEADER_LEN as u64 + self.manifest_len
    }

    /// Length of the whole bundle, in bytes.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.head_len() + self.content_len
    }
}

/// `Ok` if `found` is within `most`.
pub(crate) fn limit(what: &'static str, found: u64, most: u64) -> Result<(), DeltaError> {
    if found > most { Err(Detail::Limit { what, found, most }.into()) } else { Ok(()) }
}

fn signed_message(bytes: &[u8; HEADER_LEN]) -> Vec<u8> {
    [SIGNING_DOMAIN, &bytes[..SIGNED_LEN]].concat()
}

/// `N` bytes of `bytes` from `at`; callers pass offsets of the table above.
fn array<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, SecretKey};

    fn key() -> SecretKey {
        let text = format!("vireo-secret-key-v1:{}", "07".repeat(32));
        text.parse().expect("a fixed key")
    }

    fn sample() -> Header {
        Header {
            incompat: feature::LAYOUT_2,
            compat: 0,
            manifest_len: 80,
            content_len: 1000,
            base: Digest::of(b"base"),
            target: Digest::of(b"target"),
            manifest_digest: Digest::of(b"manifest"),
            signer: key().public(),
            manifest_plain_len: 160,
            read_map_len: 0,
            read_map_plain_len: 0,
        }
    }

    #[test]
    fn a_header_reads_back_what_it_wrote() {
        let bytes = sample().encode(|message| key().sign(message));
        let header = Header::decode(&bytes).expect("its own bytes");
        assert_eq!(header, sample());
        header.verify(&bytes).expect("signed");
    }

    #[test]
    fn the_headers_bytes_are_frozen() {
        let bytes = sample().encode(|message| key().sign(message));
        assert_eq!(&bytes[..8], b"\x89VIR\r\n\x1a\n");
        assert_eq!(
            bytes[8..32],
            [2, 0, 0, 0, 0, 0, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 232, 3, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            Digest::of(&bytes).to_string(),
            include_str!("../frozen/header-digest.txt").trim_end()
        );
    }

    #[test]
    fn every_single_bit_flip_is_caught() {
        let bytes = sample().encode(|message| key().sign(message));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let outcome = Header::decode(&flipped).and_then(|header| header.verify(&flipped));
            assert!(outcome.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn unknown_features_are_unsupported_and_large_lengths_refused() {
        let encode = |header: Header| header.encode(|message| key().sign(message));
        let newer = encode(Header { incompat: 2 | 1 << 30, ..sample() });
        let error = Header::decode(&newer).expect_err("unknown bit");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let optional = encode(Header { compat: 1 << 30, ..sample() });
        Header::decode(&optional).expect("compat bits are ignored");
        let huge = encode(Header { manifest_len: limits::MAX_MANIFEST_LEN + 1, ..sample() });
        assert_eq!(Header::decode(&huge).expect_err("too long").kind(), ErrorKind::Limit);
    }

    #[test]
    fn a_header_that_contradicts_itself_about_the_read_map_is_refused() {
        let incompat = feature::LAYOUT_2 | feature::READ_MAP;
        for (incompat, read_map_len, read_map_plain_len, kind) in [
            (feature::LAYOUT_2, 1, 0, ErrorKind::Corrupt),
            (feature::LAYOUT_2, 0, 1, ErrorKind::Corrupt),
            (incompat, 0, 9, ErrorKind::Corrupt),
            (incompat, 9, 0, ErrorKind::Corrupt),
            (incompat, 81, 9, ErrorKind::Corrupt),
            (incompat, 9, limits::MAX_READ_MAP_LEN as u32 + 1, ErrorKind::Limit),
        ] {
            let header = Header { incompat, read_map_len, read_map_plain_len, ..sample() };
            let bytes = header.encode(|message| key().sign(message));
            assert_eq!(Header::decode(&bytes).expect_err("refused").kind(), kind, "{header:?}");
        }
        let good = Header { incompat, read_map_len: 80, read_map_plain_len: 9, ..sample() };
        let bytes = good.encode(|message| key().sign(message));
        assert_eq!(Header::decode(&bytes).expect("its own bytes"), good);
    }

    #[test]
    fn a_small_manifest_cannot_become_a_large_one() {
        let decode = |manifest_len, manifest_plain_len| {
            let header = Header { manifest_len, manifest_plain_len, ..sample() };
            Header::decode(&header.encode(|message| key().sign(message)))
        };
        decode(80, limits::ANY_RATIO_LEN).expect("little, whatever the ratio");
        decode(16 << 10, 16 << 20).expect("the ratio's limit");
        decode(1 << 20, limits::MAX_MANIFEST_PLAIN_LEN).expect("the limit");
        for (manifest_len, plain_len) in [
            (80, limits::ANY_RATIO_LEN + 1),
            (16 << 10, (16 << 20) + 1),
            (1 << 20, limits::MAX_MANIFEST_PLAIN_LEN + 1),
        ] {
            let error = decode(manifest_len, plain_len).expect_err("beyond the limit");
            assert_eq!(error.kind(), ErrorKind::Limit);
        }
    }

    #[test]
    fn what_is_no_bundle_says_so_and_a_short_one_says_where_it_ends() {
        let error = Header::decode(b"#!/bin/sh").expect_err("no bundle");
        assert_eq!(
            error.to_string(),
            "not a Vireo bundle: the first bytes are not the bundle's magic number"
        );
        let bytes = sample().encode(|message| key().sign(message));
        let error = Header::decode(&bytes[..100]).expect_err("short");
        assert_eq!(error.to_string(), "the bundle ends at byte 100, inside its header");
    }
}
