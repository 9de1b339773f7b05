//! How the allocator keeps memory.

/// Blocks from this length on are mapped alone, so that freeing them gives their memory back, in
/// bytes. The default of glibc to begin with (`mallopt(3)`, `M_MMAP_THRESHOLD`).
#[cfg(target_env = "gnu")]
const LARGE_LEN: libc::c_int = 128 << 10;

/// Has large blocks go back to the system whenever they are freed, from now on.
///
/// By itself glibc raises its threshold to the largest block that was freed (`mallopt(3)`), and
/// keeps such blocks in its arenas from then on: a process that once held a few frames of a bundle
/// would keep that memory to its end. For programs that are to stay small, at the start of `main`;
/// other C libraries have no such threshold, and nothing changes there.
pub fn give_large_blocks_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt(3) may be called at any time by any thread; it takes two numbers.
        #[expect(unsafe_code, reason = "the crate's only word to the allocator; see above")]
        let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_LEN) };
        // It refuses thresholds beyond half an arena alone; then memory stays in use, nothing else.
        debug_assert_eq!(set, 1, "the allocator takes its own default");
    }
}
