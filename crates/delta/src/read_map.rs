//! The read map's frame, the last bytes of the manifest: which units read which files, as text.
//!
//! Covered by the manifest's digest and so by the signature. Not here: what the text means
//! (`vireo-classify`).

use crate::error::{DeltaError, Detail, io_step};
use crate::format::{Header, limit, limits};
use crate::manifest::Packed;

/// zstd's level: the text is at most some megabytes, and repeats itself much.
const COMPRESSION_LEVEL: i32 = 19;

/// The frame of `map`.
pub(crate) fn pack(map: &[u8]) -> Result<Packed, DeltaError> {
    let plain_len = map.len() as u64;
    limit("length of the read map", plain_len, limits::MAX_READ_MAP_LEN)?;
    if map.is_empty() {
        return Err(Detail::Manifest { what: "the read map is empty".to_owned() }.into());
    }
    let bytes =
        zstd::bulk::compress(map, COMPRESSION_LEVEL).map_err(io_step("compress the read map"))?;
    Ok(Packed { bytes, plain_len })
}

/// The archive and the read map's frame, which `manifest` ends with; none if it is shorter.
pub(crate) fn split<'a>(header: &Header, manifest: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    manifest.split_at_checked(manifest.len().checked_sub(header.read_map_len as usize)?)
}

/// The read map in this frame, which is empty if there is none.
pub(crate) fn unpack(header: &Header, frame: &[u8]) -> Result<Option<Vec<u8>>, DeltaError> {
    if frame.is_empty() {
        return Ok(None);
    }
    let damaged = || Detail::Manifest { what: "the read map cannot be decompressed".to_owned() };
    // The header's limit bounds what is allocated here.
    let map = zstd::bulk::decompress(frame, header.read_map_plain_len as usize);
    let map = map.ok().filter(|map| map.len() == header.read_map_plain_len as usize);
    Ok(Some(map.ok_or_else(damaged)?))
}
