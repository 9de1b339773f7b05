//! The checksums of the format: CRC32C without the final inversion, and the CRC16 of old group
//! descriptors.

/// Goes on with the kernel's `crc32c` (`lib/crc32c.c`), which inverts neither what goes in nor
/// what comes out.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    // The crate's function inverts both; undo that.
    !::crc32c::crc32c_append(!seed, bytes)
}

/// The kernel's `crc16` (`lib/crc16.c`): polynomial 0x8005, reflected.
pub(crate) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    const POLYNOMIAL: u16 = 0xA001;
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ POLYNOMIAL }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_check_values_come_out() {
        // CRC-32/ISCSI of "123456789" is 0xE3069283 with both inversions; CRC-16/ARC is 0xBB3D.
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
        assert_eq!(crc16(0, b"123456789"), 0xBB3D);
    }

    #[test]
    fn a_checksum_can_go_on_where_it_stopped() {
        assert_eq!(crc32c(crc32c(!0, b"1234"), b"56789"), crc32c(!0, b"123456789"));
    }
}
