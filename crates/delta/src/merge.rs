//! Which files machines may have edited, so that an update has to be merged with the edit.

use vireo_model::ImagePath;

/// Longest text that is merged, in bytes: no configuration that people edit is longer, and every
/// merged text travels twice.
pub const MAX_MERGE_LEN: u64 = 256 << 10;

const CONFIGURATION: &[u8] = b"/etc/";

/// Whether the file `path` with this content is text that a machine may have edited: it lies below
/// `/etc`, is valid UTF-8 without NUL and not longer than [`MAX_MERGE_LEN`].
///
/// Of such files a bundle carries the target's text, and the base's if it had one, without
/// reference to the base's files: a machine whose file was edited can merge the three.
///
/// ```
/// use vireo_delta::merge::is_mergeable;
/// use vireo_model::ImagePath;
///
/// let conf = ImagePath::parse(b"/etc/nginx/nginx.conf")?;
/// assert!(is_mergeable(&conf, b"worker_processes 4;\n"));
/// assert!(!is_mergeable(&conf, b"\x7fELF\0"));
/// # Ok::<(), vireo_model::ImagePathError>(())
/// ```
#[must_use]
pub fn is_mergeable(path: &ImagePath, content: &[u8]) -> bool {
    may_be_mergeable(path, content.len() as u64)
        && !content.contains(&0)
        && std::str::from_utf8(content).is_ok()
}

/// What can be said before the content of `len` bytes is read.
#[must_use]
pub fn may_be_mergeable(path: &ImagePath, len: u64) -> bool {
    path.as_bytes().starts_with(CONFIGURATION) && len <= MAX_MERGE_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_text_below_etc_is_mergeable() {
        let path = |text: &str| ImagePath::parse(text.as_bytes()).expect("a valid path");
        let etc = path("/etc/hosts");
        assert!(is_mergeable(&etc, b""));
        assert!(is_mergeable(&etc, "127.0.0.1 h\u{f6}st\n".as_bytes()));
        assert!(!is_mergeable(&etc, b"caf\xe9"));
        assert!(!is_mergeable(&etc, b"a\0b"));
        assert!(is_mergeable(&etc, &vec![b'x'; MAX_MERGE_LEN as usize]));
        assert!(!is_mergeable(&etc, &vec![b'x'; MAX_MERGE_LEN as usize + 1]));
        for other in ["/etcetera/x", "/usr/etc/x", "/etc"] {
            assert!(!is_mergeable(&path(other), b"text"), "{other}");
        }
    }
}
