//! Numbers of variable length: seven bits a byte, the lowest first, as LEB128.

/// Longest encoding of 64 bits, in bytes.
const MAX_LEN: usize = 10;

/// Appends `value`.
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends `value` with its sign in the lowest bit, so that small numbers of either sign are short.
pub(crate) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Reads a number byte by byte from `next`, which is `None` at the end.
pub(crate) fn read(mut next: impl FnMut() -> Option<u8>) -> Option<u64> {
    let mut value = 0_u64;
    for index in 0..MAX_LEN {
        let byte = next()?;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if index == MAX_LEN - 1 && bits > 1 {
            return None;
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Takes the sign back out of the lowest bit.
pub(crate) fn signed(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_and_overlong_ones_are_refused() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            let mut rest = bytes.iter().copied();
            assert_eq!(read(|| rest.next()), Some(value));
            let mut cut = bytes[..bytes.len() - 1].iter().copied();
            assert_eq!(read(|| cut.next()), None);
        }
        for value in [0, 1, -1, 63, -64, i64::MAX, i64::MIN] {
            let mut bytes = Vec::new();
            put_signed(&mut bytes, value);
            let mut rest = bytes.into_iter();
            assert_eq!(read(|| rest.next()).map(signed), Some(value));
        }
        let mut long = [0xff; 11].into_iter();
        assert_eq!(read(|| long.next()), None);
    }
}
