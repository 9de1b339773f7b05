//! The ext2/3/4 superblock, as far as it decides whether the kernel is let near the image.
//!
//! Offsets and bits from the kernel's `Documentation/filesystems/ext4/super.rst`.

use std::path::Path;

use crate::partition::Partition;
use crate::{ErrorKind, ImageError};

const LEN: usize = 1024;
const MAGIC: u16 = 0xEF53;

const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_64BIT: u32 = 0x80;

/// `incompat` bits that a kernel mount of today handles and that leave the tree readable as it
/// is, without keys; the others are refused by name.
const INCOMPAT_FINE: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x20000;

const INCOMPAT_NAMES: &[(u32, &str)] =
    &[(0x1, "compression"), (0x8, "journal_dev"), (0x1000, "dirdata"), (0x10000, "encrypt")];

/// `ro_compat` bits with which nothing may be written, by whatever kernel.
const RO_COMPAT_NAMES: &[(u32, &str)] = &[(0x1000, "read-only"), (0x4000, "shared_blocks")];

/// Features that a kernel can be built without, as `incompat` and as `ro_compat` bits.
const OPTIONAL: [&[(u32, &str)]; 2] = [
    &[(0x20000, "casefold (CONFIG_UNICODE)")],
    &[
        (0x100, "quota (CONFIG_QUOTA, CONFIG_QFMT_V2)"),
        (0x2000, "project (CONFIG_QUOTA, CONFIG_QFMT_V2)"),
        (0x8000, "verity (CONFIG_FS_VERITY)"),
    ],
];

/// What the superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Length of the file system in bytes.
    pub len: u64,
    /// The journal has not been replayed: the machine crashed or is running.
    pub needs_recovery: bool,
    /// It was unmounted cleanly and holds no known errors.
    pub clean: bool,
    incompat: u32,
    ro_compat: u32,
}

impl Superblock {
    /// What the bytes say that an ext file system has from byte 1024 on; `None` if they are none.
    pub(crate) fn from_bytes(bytes: &[u8; LEN]) -> Option<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let log_block_size = u32_at(0x18);
        if u16_at(0x38) != MAGIC || log_block_size > 6 {
            return None;
        }
        let incompat = if u32_at(0x4C) > 0 { u32_at(0x60) } else { 0 };
        let high = if incompat & INCOMPAT_64BIT != 0 { u64::from(u32_at(0x150)) << 32 } else { 0 };
        let blocks = high | u64::from(u32_at(0x4));
        let state = u16_at(0x3A);
        Some(Self {
            len: blocks.checked_mul(1024 << log_block_size)?,
            needs_recovery: incompat & INCOMPAT_RECOVER != 0,
            clean: state & STATE_CLEAN != 0 && state & STATE_ERRORS == 0,
            incompat,
            // Revision 0 has no features.
            ro_compat: if u32_at(0x4C) > 0 { u32_at(0x64) } else { 0 },
        })
    }

    /// The features for which a kernel may refuse it, none if there are no such ones.
    pub(crate) fn optional_features(&self) -> Option<String> {
        let names =
            [self.incompat, self.ro_compat].into_iter().zip(OPTIONAL).flat_map(|(bits, names)| {
                names.iter().filter(move |(bit, _)| bits & bit != 0).map(|(_, name)| *name)
            });
        let names = names.collect::<Vec<_>>().join(", ");
        (!names.is_empty()).then_some(names)
    }

    /// Whether it may be written at all.
    ///
    /// # Errors
    ///
    /// `Unsupported` with the feature's name.
    pub(crate) fn check_writable(&self, image: &Path) -> Result<(), ImageError> {
        let Some((_, name)) = RO_COMPAT_NAMES.iter().find(|(bit, _)| self.ro_compat & bit != 0)
        else {
            return Ok(());
        };
        let message = format!(
            "{}: its file system has the feature {name}, with which it is never written; take the \
             feature away first (tune2fs), or make the image anew",
            image.display()
        );
        Err(ImageError::new(ErrorKind::Unsupported, message))
    }

    /// Whether the kernel may mount it: complete, clean, without features that hide the tree.
    ///
    /// # Errors
    ///
    /// `Unclean`, `Unsupported` with the feature's name, `Damaged` if the file is shorter than
    /// the file system.
    pub fn check(&self, image: &Path, partition: &Partition) -> Result<(), ImageError> {
        self.check_usable(image, partition)?;
        if !self.needs_recovery && self.clean {
            return Ok(());
        }
        let why = if self.needs_recovery {
            "an unfinished journal"
        } else {
            "recorded errors or an unclean end"
        };
        let what = partition.describe();
        let message = format!(
            "{}: its {what} has {why}: its machine is running or was not shut down cleanly; \
             shut it down, have a copy repaired (`vireo apply --repair`, `vireo image create --repair`), or run \
             `e2fsck -p` on the {what}",
            image.display(),
        );
        Err(ImageError::new(ErrorKind::Unclean, message))
    }

    /// As [`check`](Self::check), but for how its machine ended.
    ///
    /// # Errors
    ///
    /// `Unsupported`, `Damaged`.
    pub(crate) fn check_usable(
        &self,
        image: &Path,
        partition: &Partition,
    ) -> Result<(), ImageError> {
        let image = image.display();
        if self.len > partition.len {
            let message = format!(
                "{image}: its file system has {} bytes, its {} only {}; the image is cut short; copy it again",
                self.len,
                partition.describe(),
                partition.len
            );
            return Err(ImageError::new(ErrorKind::Damaged, message));
        }
        let odd = self.incompat & !INCOMPAT_FINE;
        if odd != 0 {
            let name = INCOMPAT_NAMES.iter().find(|(bit, _)| odd & bit != 0).map(|(_, name)| *name);
            let name = name.map_or(format!("{odd:#x}"), str::to_owned);
            let message =
                format!("{image}: its file system uses the feature {name}, which is not supported");
            return Err(ImageError::new(ErrorKind::Unsupported, message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(change: impl Fn(&mut [u8; LEN])) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0x38..0x3A].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[0x4..0x8].copy_from_slice(&1000_u32.to_le_bytes());
        bytes[0x18] = 2;
        bytes[0x3A] = 1;
        bytes[0x4C] = 1;
        change(&mut bytes);
        bytes
    }

    fn check(change: impl Fn(&mut [u8; LEN])) -> Result<(), (ErrorKind, String)> {
        let superblock = Superblock::from_bytes(&bytes(change)).expect("the magic number is there");
        let partition = Partition::whole(4_096_000);
        superblock.check(Path::new("x.img"), &partition).map_err(|e| (e.kind(), e.to_string()))
    }

    #[test]
    fn only_a_whole_clean_and_plain_file_system_is_mounted() {
        assert_eq!(check(|_| ()), Ok(()));
        assert_eq!(check(|b| b[0x60] = 4).expect_err("journal").0, ErrorKind::Unclean);
        assert_eq!(check(|b| b[0x3A] = 0).expect_err("not clean").0, ErrorKind::Unclean);
        assert_eq!(check(|b| b[0x3A] = 3).expect_err("errors").0, ErrorKind::Unclean);
        assert_eq!(check(|b| b[0x5] = 4).expect_err("longer than the file").0, ErrorKind::Damaged);
        let (kind, message) = check(|b| b[0x62] = 1).expect_err("encrypted");
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(message.contains("encrypt"), "{message}");
    }

    #[test]
    fn what_has_no_magic_number_is_no_file_system() {
        assert_eq!(Superblock::from_bytes(&bytes(|b| b[0x38] = 0)), None);
        assert_eq!(Superblock::from_bytes(&bytes(|b| b[0x18] = 60)), None);
    }
}
