//! What an ELF file is, from its first bytes. Not here: symbols, sections, linking.
//!
//! Layout after the System V ABI, chapter 4 and 5, and `elf(5)`.

/// What an ELF file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfKind {
    /// A program: `ET_EXEC`, or `ET_DYN` that names an interpreter (position-independent).
    Program,
    /// `ET_DYN` without interpreter: a shared object, or a program that is both static and
    /// position-independent; the two differ by name and mode only.
    Shared,
    /// `ET_REL`: an object file; kernel modules are such.
    Object,
    /// A core dump or a type unknown here.
    Other,
}

const ET_REL: u16 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_INTERP: u32 = 3;
/// Most program headers looked at; real files have at most some twenty.
const MAX_PROGRAM_HEADERS: u16 = 128;

/// Reads the kind out of a file's first bytes; none if they are not ELF or end too early.
///
/// Program headers that lie beyond `head` are taken as absent.
#[must_use]
pub fn elf_kind(head: &[u8]) -> Option<ElfKind> {
    let reader = Reader::new(head)?;
    Some(match reader.u16(16)? {
        ET_REL => ElfKind::Object,
        ET_EXEC => ElfKind::Program,
        ET_DYN if reader.has_interpreter() => ElfKind::Program,
        ET_DYN => ElfKind::Shared,
        _ => ElfKind::Other,
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    wide: bool,
    little: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let ident = bytes.get(..16)?;
        let (class, order) = (ident[4], ident[5]);
        let known =
            ident.starts_with(b"\x7fELF") && matches!(class, 1 | 2) && matches!(order, 1 | 2);
        known.then_some(Self { bytes, wide: class == 2, little: order == 1 })
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes: [u8; N] = self.bytes.get(at..at.checked_add(N)?)?.try_into().ok()?;
        if !self.little {
            bytes.reverse();
        }
        Some(bytes)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn word(&self, at: usize) -> Option<u64> {
        if self.wide { self.array(at).map(u64::from_le_bytes) } else { self.u32(at).map(u64::from) }
    }

    fn has_interpreter(&self) -> bool {
        self.find_interpreter().is_some()
    }

    fn find_interpreter(&self) -> Option<()> {
        // e_phoff, e_phentsize and e_phnum of Elf64_Ehdr and Elf32_Ehdr.
        let (table, entry_len, count) = if self.wide { (32, 54, 56) } else { (28, 42, 44) };
        let table = usize::try_from(self.word(table)?).ok()?;
        let entry_len = usize::from(self.u16(entry_len)?);
        let count = self.u16(count)?.min(MAX_PROGRAM_HEADERS);
        (0..usize::from(count))
            .map_while(|index| table.checked_add(index.checked_mul(entry_len)?))
            .map_while(|at| self.u32(at))
            .any(|kind| kind == PT_INTERP)
            .then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 64-bit little-endian file of `kind` with program headers of these types.
    fn elf64(kind: u16, headers: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..18].copy_from_slice(&kind.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&(headers.len() as u16).to_le_bytes());
        for header in headers {
            bytes.extend_from_slice(&header.to_le_bytes());
            bytes.extend_from_slice(&[0; 52]);
        }
        bytes
    }

    #[test]
    fn an_interpreter_tells_a_program_from_a_library() {
        assert_eq!(elf_kind(&elf64(ET_EXEC, &[])), Some(ElfKind::Program));
        assert_eq!(elf_kind(&elf64(ET_DYN, &[6, 3, 1])), Some(ElfKind::Program));
        assert_eq!(elf_kind(&elf64(ET_DYN, &[1, 1, 2])), Some(ElfKind::Shared));
        assert_eq!(elf_kind(&elf64(ET_REL, &[])), Some(ElfKind::Object));
    }

    #[test]
    fn big_endian_and_32_bit_files_are_read_too() {
        let mut bytes = vec![0; 52];
        bytes[..6].copy_from_slice(b"\x7fELF\x01\x02");
        bytes[16..18].copy_from_slice(&ET_DYN.to_be_bytes());
        bytes[28..32].copy_from_slice(&52_u32.to_be_bytes());
        bytes[42..44].copy_from_slice(&32_u16.to_be_bytes());
        bytes[44..46].copy_from_slice(&1_u16.to_be_bytes());
        bytes.extend_from_slice(&PT_INTERP.to_be_bytes());
        assert_eq!(elf_kind(&bytes), Some(ElfKind::Program));
    }

    #[test]
    fn a_hostile_header_is_no_program_and_no_panic() {
        let mut bytes = elf64(ET_DYN, &[3]);
        bytes[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(elf_kind(&bytes), Some(ElfKind::Shared));
        let whole = elf64(ET_DYN, &[6, 3]);
        for len in 0..whole.len() {
            let kind = elf_kind(&whole[..len]);
            assert_eq!(kind.is_some(), len >= 18, "at {len}");
        }
        assert_eq!(elf_kind(b"#!/bin/sh\nexec something long enough"), None);
    }
}
