//! Fixed-width fields in byte slices.
//!
//! A field that lies beyond the end of its slice reads as zero, which is what the format says
//! about fields that an older file system does not have. Where the length matters the caller
//! checks it first; nothing here panics.

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    at.checked_add(N)
        .and_then(|end| bytes.get(at..end))
        .and_then(|field| field.try_into().ok())
        .unwrap_or([0; N])
}

pub(crate) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// The little-endian number of 16 bits at `at`; 0 beyond the end of `bytes`.
#[must_use]
pub fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

/// The little-endian number of 32 bits at `at`; 0 beyond the end of `bytes`.
#[must_use]
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

/// The little-endian number of 64 bits at `at`; 0 beyond the end of `bytes`.
#[must_use]
pub fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// A number whose halves stand apart, as ext4 grew.
pub(crate) fn split64(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// As [`split64`], of 16-bit halves.
pub(crate) fn split32(low: u16, high: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

pub(crate) fn copy<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    array(bytes, at)
}

/// The part from `at`, `len` bytes long; empty if it does not lie within.
pub(crate) fn part(bytes: &[u8], at: usize, len: usize) -> &[u8] {
    at.checked_add(len).and_then(|end| bytes.get(at..end)).unwrap_or(&[])
}

/// A `usize` from what the format keeps in 64 bits; only for values that were checked to be
/// small. On machines where it does not fit it saturates and the following check refuses it.
pub(crate) fn to_usize(value: impl TryInto<usize>) -> usize {
    value.try_into().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_their_order_and_absent_ones_are_zero() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(le16(&bytes, 1), 0x0302);
        assert_eq!(be32(&bytes, 0), 0x0102_0304);
        assert_eq!(le64(&bytes, 0), 0x0807_0605_0403_0201);
        assert_eq!(le32(&bytes, 5), 0, "half of it lies beyond the end");
        assert_eq!(le16(&bytes, usize::MAX), 0);
        assert_eq!(split64(1, 2), 0x2_0000_0001);
        assert_eq!(part(&bytes, 6, 2), [7, 8]);
        assert_eq!(part(&bytes, 6, 3), [0; 0]);
    }
}
