//! The delta of two byte strings, for programs that need neither trees nor signatures.
//! `docs/format/delta.md` is the normative text.

use std::io::{self, BufRead, BufReader, Read, Write as _};

use vireo_model::Digest;

use crate::encode::Effort;
use crate::error::{DeltaError, Detail, io_step};
use crate::file::{self, Delta, MAX_CONTROL_LEN, Script, varint};
use crate::format::limits::MAX_PATCHED_LEN;
use crate::pair;

/// First bytes of every delta; like PNG's, damaged by text-mode and 7-bit transfers.
const MAGIC: [u8; 8] = *b"\x89VID\r\n\x1a\n";
const VERSION: u32 = 1;

/// Control, patch, diff, extra, refs.
const PARTS: usize = 5;

/// Bytes that the check covers before it, and all of the head.
const CHECKED_LEN: usize = 112;
const HEAD_LEN: usize = CHECKED_LEN + Digest::LEN;
const _: () = assert!(MAGIC.len() + 4 + PARTS * 4 + 2 * 8 + 2 * Digest::LEN == CHECKED_LEN);

/// How far back zstd may refer, as a power of two: decoding holds that much of each of four streams.
const WINDOW_LOG: u32 = 23;

/// The delta that makes `target` of `base`. Same inputs, same bytes.
///
/// If the base is of no use, or one of both is longer than 64 MiB, the target is compressed alone. Gzip
/// files are not looked into; [`BundleWriter::encode_pairs`](crate::BundleWriter::encode_pairs) does.
///
/// Memory: some ten times both lengths; see [`Pair::fits`](crate::Pair::fits).
///
/// ```
/// use vireo_delta::{Effort, ErrorKind, diff, patch};
///
/// let base = b"listen 80;\nroot /srv/www;\n".repeat(100);
/// let mut target = base.clone();
/// target[7..9].copy_from_slice(b"81");
///
/// let delta = diff(&base, &target, Effort::Default)?;
/// assert!(delta.len() < base.len() / 4);
/// assert_eq!(patch(&base, &delta)?, target);
///
/// let error = patch(b"another base", &delta).expect_err("it is not the base");
/// assert_eq!(error.kind(), ErrorKind::WrongBase);
/// # Ok::<(), vireo_delta::DeltaError>(())
/// ```
///
/// # Errors
///
/// `Limit` if the target is longer than [`MAX_PATCHED_LEN`].
pub fn diff(base: &[u8], target: &[u8], effort: Effort) -> Result<Vec<u8>, DeltaError> {
    check_len(target.len() as u64)?;
    let delta = pair::helpful(base, target, effort).unwrap_or_else(|| file::whole(target));
    let Delta { control, patch, diff, extra, refs } = &delta;
    let (mut lens, mut streams) = (Vec::new(), Vec::new());
    for plain in [control, patch, diff, extra, refs] {
        let frame = compress(plain, effort.level()).map_err(io_step("compress a delta"))?;
        // A gigabyte that cannot be compressed is little more than that.
        lens.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        streams.extend_from_slice(&frame);
    }
    let mut bytes = Vec::with_capacity(HEAD_LEN + streams.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&lens);
    for side in [base, target] {
        bytes.extend_from_slice(&(side.len() as u64).to_le_bytes());
    }
    for side in [base, target] {
        bytes.extend_from_slice(Digest::of(side).as_bytes());
    }
    let check = check_of(&bytes, &streams);
    bytes.extend_from_slice(check.as_bytes());
    bytes.extend_from_slice(&streams);
    Ok(bytes)
}

/// What `delta` makes of `base`: exactly the bytes that [`diff`] got as the target.
///
/// Memory: the target, and up to 150 MB, as crafted deltas take (some 40 MB for those that [`diff`] makes). Who has less asks [`patched_len`] first.
///
/// # Errors
///
/// `Corrupt` if `delta` is damaged or none, `Unsupported` if a newer Vireo wrote it, `WrongBase` if it was
/// made from another base, `Limit` if the target is longer than [`MAX_PATCHED_LEN`].
pub fn patch(base: &[u8], delta: &[u8]) -> Result<Vec<u8>, DeltaError> {
    let head = Head::read(delta)?;
    if head.base_len != base.len() as u64 || head.base != Digest::of(base) {
        return Err(Detail::OtherBase { expected: head.base }.into());
    }
    let target = head.decode(base).ok_or_else(|| damaged("its streams do not fit each other"))?;
    if Digest::of(&target) != head.target {
        return Err(damaged("what it makes is not its target"));
    }
    Ok(target)
}

/// The length of what `delta` makes, in bytes.
///
/// # Errors
///
/// As [`patch`], base apart.
pub fn patched_len(delta: &[u8]) -> Result<u64, DeltaError> {
    Head::read(delta).map(|head| head.target_len)
}

fn check_len(target_len: u64) -> Result<(), DeltaError> {
    if target_len > MAX_PATCHED_LEN {
        return Err(Detail::TargetLen { found: target_len, most: MAX_PATCHED_LEN }.into());
    }
    Ok(())
}

fn damaged(what: &'static str) -> DeltaError {
    Detail::Delta { what }.into()
}

fn check_of(head: &[u8], streams: &[u8]) -> Digest {
    let mut hasher = vireo_model::Hasher::new();
    hasher.update(head);
    hasher.update(streams);
    hasher.finish()
}

/// A zstd frame; nothing of nothing.
fn compress(plain: &[u8], level: i32) -> io::Result<Vec<u8>> {
    if plain.is_empty() {
        return Ok(Vec::new());
    }
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level)?;
    if plain.len() > 1 << WINDOW_LOG {
        encoder.window_log(WINDOW_LOG)?;
    }
    encoder.set_pledged_src_size(Some(plain.len() as u64))?;
    encoder.write_all(plain)?;
    encoder.finish()
}

/// A delta, taken apart and checked, but for what its streams hold.
struct Head<'a> {
    base_len: u64,
    target_len: u64,
    base: Digest,
    target: Digest,
    streams: [&'a [u8]; PARTS],
}

impl<'a> Head<'a> {
    fn read(delta: &'a [u8]) -> Result<Self, DeltaError> {
        if !delta.starts_with(&MAGIC) {
            return Err(damaged("its first bytes are not a delta's magic number"));
        }
        let (head, streams) =
            delta.split_at_checked(HEAD_LEN).ok_or_else(|| damaged("it ends inside its head"))?;
        let mut fields = &head[MAGIC.len()..];
        let found = u32::from_le_bytes(field(&mut fields)?);
        if found != VERSION {
            return Err(Detail::DeltaVersion { found, known: VERSION }.into());
        }
        if check_of(&head[..CHECKED_LEN], streams).as_bytes()[..] != head[CHECKED_LEN..] {
            return Err(damaged("it has a wrong checksum"));
        }
        let (mut parts, mut rest) = ([&[][..]; PARTS], streams);
        for part in &mut parts {
            let len = u32::from_le_bytes(field(&mut fields)?) as usize;
            let split = rest.split_at_checked(len);
            (*part, rest) = split.ok_or_else(|| damaged("it is shorter than it says"))?;
        }
        if !rest.is_empty() {
            return Err(damaged("it is longer than it says"));
        }
        let base_len = u64::from_le_bytes(field(&mut fields)?);
        let target_len = u64::from_le_bytes(field(&mut fields)?);
        check_len(target_len)?;
        let base = Digest::from_bytes(field(&mut fields)?);
        let target = Digest::from_bytes(field(&mut fields)?);
        Ok(Self { base_len, target_len, base, target, streams: parts })
    }

    /// What the streams make of `base`.
    fn decode(&self, base: &[u8]) -> Option<Vec<u8>> {
        let [control, patch, diff, extra, refs] = self.streams;
        let mut script = Vec::new();
        stream(control)?.take(MAX_CONTROL_LEN + 1).read_to_end(&mut script).ok()?;
        if script.len() as u64 > MAX_CONTROL_LEN {
            return None;
        }
        let script = Script::read(&script, self.target_len)?;
        let mut parties = Parties {
            base,
            patch: stream(patch)?,
            diff: stream(diff)?,
            extra: stream(extra)?,
            refs: stream(refs)?,
        };
        let mut target = Vec::new();
        file::decode(&script, &mut parties, &mut |bytes| {
            target.extend_from_slice(bytes);
            Some(())
        })?;
        Some(target)
    }
}

/// The next `N` bytes of the head.
fn field<const N: usize>(fields: &mut &[u8]) -> Result<[u8; N], DeltaError> {
    let (field, rest) =
        fields.split_first_chunk().ok_or_else(|| damaged("it ends inside its head"))?;
    *fields = rest;
    Ok(*field)
}

/// A stream that is decompressed as it is read: what a few bytes may become is never held.
type Stream<'a> = BufReader<Box<dyn Read + 'a>>;

fn stream(frame: &[u8]) -> Option<Stream<'_>> {
    if frame.is_empty() {
        return Some(BufReader::new(Box::new(io::empty())));
    }
    let mut decoder = zstd::stream::read::Decoder::with_buffer(frame).ok()?;
    decoder.window_log_max(WINDOW_LOG).ok()?;
    Some(BufReader::new(Box::new(decoder)))
}

/// Those who have a part in a delta.
struct Parties<'a> {
    base: &'a [u8],
    patch: Stream<'a>,
    diff: Stream<'a>,
    extra: Stream<'a>,
    refs: Stream<'a>,
}

/// Hands the next `len` bytes to `sink`, in pieces.
fn pieces(
    stream: &mut Stream<'_>,
    len: u64,
    sink: &mut dyn FnMut(&[u8]) -> Option<()>,
) -> Option<()> {
    let mut left = len;
    while left > 0 {
        let bytes = stream.fill_buf().ok().filter(|bytes| !bytes.is_empty())?;
        let step = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        sink(&bytes[..step])?;
        stream.consume(step);
        left -= step as u64;
    }
    Some(())
}

fn number(stream: &mut Stream<'_>) -> Option<u64> {
    varint::read(|| {
        let byte = *stream.fill_buf().ok()?.first()?;
        stream.consume(1);
        Some(byte)
    })
}

impl file::Streams for Parties<'_> {
    fn patch(&mut self) -> Option<u64> {
        number(&mut self.patch)
    }

    fn refs(&mut self) -> Option<u64> {
        number(&mut self.refs)
    }

    fn diff(&mut self, bytes: &mut [u8]) -> Option<()> {
        let (len, mut rest) = (bytes.len() as u64, bytes.iter_mut());
        pieces(&mut self.diff, len, &mut |more| {
            more.iter().zip(&mut rest).for_each(|(more, byte)| *byte = byte.wrapping_add(*more));
            Some(())
        })
    }

    fn extra(&mut self, len: u64, sink: &mut dyn FnMut(&[u8]) -> Option<()>) -> Option<()> {
        pieces(&mut self.extra, len, sink)
    }

    fn base(&mut self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        buffer.copy_from_slice(self.base.get(start..start.checked_add(buffer.len())?)?);
        Some(())
    }
}
