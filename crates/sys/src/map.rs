//! Memory maps of sealed files.

use std::fs::File;
use std::io;
use std::ops::Deref;

/// A file's bytes, mapped copy-on-write; reads as `&[u8]`, starts at a page boundary.
#[derive(Debug)]
pub struct Mapped(Option<memmap2::Mmap>);

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Maps the whole of `file`; an empty file maps to no bytes.
///
/// For sealed files only, those written once and never again, as all bundles are. If another
/// process truncates `file` in place, reading the lost pages raises `SIGBUS`.
///
/// # Errors
///
/// As `mmap(2)`: the file is not mappable (a pipe, a directory) or address space is short.
pub fn map_sealed(file: &File) -> io::Result<Mapped> {
    if file.metadata()?.len() == 0 {
        return Ok(Mapped(None));
    }
    // SAFETY: the bytes must not change while borrowed. MAP_PRIVATE does not promise that:
    // mmap(2) leaves open whether later writes to the file show. It rests on the caller's file
    // being sealed: complete before it got its name, never written since. Vireo writes bundles
    // to a temporary name and renames them; nothing of ours writes in place.
    #[expect(unsafe_code, reason = "no safe mmap exists; this crate is the fence")]
    let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(file)? };
    Ok(Mapped(Some(map)))
}
