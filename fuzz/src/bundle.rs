//! The bundle reader: header, manifest, every content decoded against a base in memory.

use ed25519_dalek::{Signer as _, SigningKey};
use vireo_delta::{Bundle, Head, MemBase, Piece, PublicKey, TrustedKeys, permits_needed};
use vireo_model::{Digest, ImagePath};

/// Longest content that is decoded, in bytes. Zeros of any length cost a manifest nothing but take
/// time to hash; that is bounded by the limit of the format and by the room for staging.
const DECODED_LEN_MAX: u64 = 4 << 20;

/// The fixed secret that signs.
const SECRET: [u8; 32] = [7; 32];

/// Length of the fixed head: docs/format/bundle.md.
const HEADER_LEN: usize = 256;

/// The digests of the trees that signed inputs claim to lead from and to.
const ENDS: [&[u8]; 2] = [b"base", b"target"];

/// The only signer that targets trust.
///
/// # Panics
///
/// Never: it is a fixed key.
#[must_use]
pub fn trusted() -> TrustedKeys {
    let public = SigningKey::from_bytes(&SECRET).verifying_key().to_bytes();
    let digits: String = public.iter().map(|byte| format!("{byte:02x}")).collect();
    let key: PublicKey = format!("vireo-key-v1:{digits}").parse().expect("a fixed key");
    TrustedKeys::from_iter([key])
}

/// The text of the secret, as the crate reads it.
#[must_use]
pub fn secret_text() -> String {
    format!("vireo-secret-key-v1:{}", "07".repeat(32))
}

/// The base that contents are decoded against.
#[must_use]
pub fn base() -> MemBase {
    crate::sandbox::BASE
        .iter()
        .filter_map(|(path, text)| {
            Some((ImagePath::parse(path.as_bytes()).ok()?, text().into_bytes()))
        })
        .collect()
}

/// `input` as it is.
pub fn raw(input: &[u8]) {
    read(input);
}

/// `input` as manifest and frames of a bundle whose digests and signature are right.
pub fn signed(input: &[u8]) {
    if let Some(file) = sign(input) {
        read(&file);
    }
}

/// A signed bundle of `input`: the length of the manifest before compression (u32), that manifest,
/// the frames.
#[must_use]
pub fn sign(input: &[u8]) -> Option<Vec<u8>> {
    let (len, rest) = input.split_first_chunk::<4>()?;
    let len = (u32::from_le_bytes(*len) as usize).min(rest.len());
    let (manifest, frames) = rest.split_at(len);
    let file = seal(manifest, frames);
    let head = match Head::read(&file, &trusted()) {
        Ok(head) => head,
        Err(_) => return Some(file),
    };
    // Frames were mutated; their digests in the manifest follow.
    let (mut manifest, mut at) = (manifest.to_vec(), 0);
    for frame in &head.frames {
        let bytes = frames.get(at..at + usize::try_from(frame.len).ok()?)?;
        at += bytes.len();
        let (claimed, found) = (*frame.digest.as_bytes(), Digest::of(bytes));
        let place = manifest.windows(claimed.len()).position(|window| *window == claimed)?;
        manifest[place..place + claimed.len()].copy_from_slice(found.as_bytes());
    }
    Some(seal(&manifest, frames))
}

/// What manifests are compressed with.
const DICTIONARY: &[u8] = include_bytes!("../../crates/delta/dictionary/manifest.bin");

/// A bundle taken apart again, for a seed.
#[must_use]
pub fn unseal(file: &[u8]) -> Option<Vec<u8>> {
    let number = |at: usize| -> Option<usize> {
        let bytes: [u8; 8] = file.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let end = HEADER_LEN.checked_add(number(16)?)?;
    let mut decompressor = zstd::bulk::Decompressor::with_dictionary(DICTIONARY).ok()?;
    let plain = decompressor.decompress(file.get(HEADER_LEN..end)?, number(160)?).ok()?;
    let len = u32::try_from(plain.len()).ok()?;
    Some([&len.to_le_bytes(), plain.as_slice(), file.get(end..)?].concat())
}

/// Compresses `plain`, a manifest, and puts the fixed head before it and `frames`:
/// docs/format/bundle.md.
fn seal(plain: &[u8], frames: &[u8]) -> Vec<u8> {
    let manifest = zstd::bulk::compress(plain, 1).unwrap_or_default();
    let key = SigningKey::from_bytes(&SECRET);
    let mut head = Vec::with_capacity(HEADER_LEN + manifest.len() + frames.len());
    head.extend_from_slice(b"\x89VIR\r\n\x1a\n");
    // All that manifests and frames may have: tokens, dictionaries, models, streams.
    head.extend_from_slice(&[122, 0, 0, 0, 0, 0, 0, 0]);
    head.extend_from_slice(&(manifest.len() as u64).to_le_bytes());
    head.extend_from_slice(&(frames.len() as u64).to_le_bytes());
    for text in ENDS {
        head.extend_from_slice(Digest::of(text).as_bytes());
    }
    head.extend_from_slice(Digest::of(&manifest).as_bytes());
    head.extend_from_slice(key.verifying_key().as_bytes());
    head.extend_from_slice(&(plain.len() as u64).to_le_bytes());
    head.extend_from_slice(&[0; 16]);
    let check = Digest::of(&head);
    head.extend_from_slice(&check.as_bytes()[..8]);
    let message = [b"vireo bundle header v1\0", &head[..]].concat();
    head.extend_from_slice(&key.sign(&message).to_bytes());
    head.extend_from_slice(&manifest);
    head.extend_from_slice(frames);
    head
}

/// Reads all there is to read.
fn read(file: &[u8]) {
    let trusted = trusted();
    let head = Head::read(file, &trusted);
    let Ok(bundle) = Bundle::open(file) else { return };
    assert_eq!(bundle.wire_len(), file.len() as u64);
    let Ok(bundle) = bundle.verify(&trusted) else { return };
    let head = head.expect("what the whole bundle says its head says");
    assert_eq!(head.digest, bundle.digest());
    assert_eq!(head.changes, *bundle.change_set());
    let _ = bundle.check();
    let _ = permits_needed(bundle.change_set(), bundle.base_paths());
    let base = base();
    for change in &bundle.change_set().changes {
        assert!(!bundle.ignore().matches(&change.path), "a change of what belongs to no version");
        let Some(source) = bundle.content(&change.path) else { continue };
        if source.content_len() > DECODED_LEN_MAX {
            continue;
        }
        let mut len = 0;
        let decoded = source.decode(&base, &mut |piece| {
            len += match piece {
                Piece::Data(bytes) => bytes.len() as u64,
                Piece::Zeros(zeros) => zeros,
            };
            Ok(())
        });
        assert!(len <= source.content_len(), "more than it says");
        if decoded.is_ok() {
            assert_eq!(len, source.content_len(), "less than it says");
        }
    }
}
