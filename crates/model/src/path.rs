//! Paths inside an image: bytes, absolute, normalised.

use std::fmt;

/// A file's place inside an image: absolute, normalised, bytes rather than UTF-8.
///
/// Holding one proves that joining it under a mount point cannot leave the mount point by
/// spelling: it starts with `/` and has no empty, `.` or `..` component and no NUL. Symbolic
/// links are another matter; writers open beneath a directory handle. The root directory is
/// [`ImagePath::root`].
///
/// Paths are ordered component by component, so that a directory comes right before what it
/// holds: `/a`, `/a/b`, `/a.b`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ImagePath(Box<[u8]>);

/// The rule that a text breaks, so that it is no [`ImagePath`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImagePathError {
    /// It does not start with `/`.
    #[error("the path does not start with /")]
    NotAbsolute,
    /// It is longer than [`ImagePath::MAX_LEN`].
    #[error("the path has {len} bytes, the most is {}", ImagePath::MAX_LEN)]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// One component is longer than [`ImagePath::MAX_NAME_LEN`].
    #[error("a component of the path has {len} bytes, the most is {}", ImagePath::MAX_NAME_LEN)]
    NameTooLong {
        /// The component's length in bytes.
        len: usize,
    },
    /// It contains a NUL byte.
    #[error("the path contains a NUL byte")]
    Nul,
    /// It has an empty, `.` or `..` component.
    #[error("the path has an empty, `.` or `..` component")]
    NotNormal,
}

impl ImagePath {
    /// Longest path accepted, in bytes: the kernel's `PATH_MAX` less its NUL.
    pub const MAX_LEN: usize = 4095;
    /// Longest component accepted, in bytes: the kernel's `NAME_MAX`.
    pub const MAX_NAME_LEN: usize = 255;

    /// The root directory, `/`.
    #[must_use]
    pub fn root() -> Self {
        Self(b"/".as_slice().into())
    }

    /// Parses `bytes`.
    ///
    /// # Errors
    ///
    /// Names the first rule that `bytes` breaks.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImagePathError> {
        let Some((b'/', rest)) = bytes.split_first() else {
            return Err(ImagePathError::NotAbsolute);
        };
        if bytes.len() > Self::MAX_LEN {
            return Err(ImagePathError::TooLong { len: bytes.len() });
        }
        if bytes.contains(&0) {
            return Err(ImagePathError::Nul);
        }
        let mut parts = rest.split(|b| *b == b'/').filter(|_| !rest.is_empty());
        parts.try_for_each(check_component)?;
        Ok(Self(bytes.into()))
    }

    /// This directory's child `name`.
    ///
    /// # Errors
    ///
    /// As [`ImagePath::parse`] for the joined path; `name` must be one component.
    pub fn join(&self, name: &[u8]) -> Result<Self, ImagePathError> {
        if name.contains(&b'/') {
            return Err(ImagePathError::NotNormal);
        }
        let dir = if self.is_root() { &[] } else { &*self.0 };
        let len = dir.len() + 1 + name.len();
        if len > Self::MAX_LEN {
            return Err(ImagePathError::TooLong { len });
        }
        if name.contains(&0) {
            return Err(ImagePathError::Nul);
        }
        // Of the directory all that is known.
        check_component(name)?;
        Ok(Self([dir, b"/", name].concat().into()))
    }

    /// Whether this is `/`.
    #[must_use]
    pub fn is_root(&self) -> bool {
        &*self.0 == b"/"
    }

    /// The directory that holds it; none for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let cut = self.0.iter().rposition(|b| *b == b'/').filter(|_| !self.is_root())?;
        Some(if cut == 0 { Self::root() } else { Self(self.0[..cut].into()) })
    }

    /// Whether `dir` is the directory that holds it.
    #[must_use]
    pub fn is_child_of(&self, dir: &Self) -> bool {
        let below = if dir.is_root() { self.0.get(1..) } else { self.0.strip_prefix(&*dir.0) };
        match below {
            Some(rest) if dir.is_root() => !rest.is_empty() && !rest.contains(&b'/'),
            Some([b'/', rest @ ..]) => !rest.contains(&b'/'),
            _ => false,
        }
    }

    /// The last component; empty for the root.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        let cut = self.0.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        &self.0[cut..]
    }

    /// The path as bytes, with its leading `/`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path below the root, without the leading `/`; `.` for the root itself. This is the
    /// form for `openat2` beneath a directory handle.
    #[must_use]
    pub fn relative(&self) -> &[u8] {
        if self.is_root() { b"." } else { &self.0[1..] }
    }

    /// The components below the root; none for the root.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0[1..].split(|b| *b == b'/').filter(|part| !part.is_empty())
    }

    /// Whether it is `other` or lies below it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        other.is_root()
            || self
                .0
                .strip_prefix(&*other.0)
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
    }
}

impl PartialOrd for ImagePath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ImagePath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // `/` sorts before every other byte, which is component order without splitting.
        let rank = |b: &u8| if *b == b'/' { 0 } else { u16::from(*b) + 1 };
        if self.is_root() || other.is_root() {
            return self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0));
        }
        let common = common_len(&self.0, &other.0);
        self.0.get(common).map(rank).cmp(&other.0.get(common).map(rank))
    }
}

fn check_component(part: &[u8]) -> Result<(), ImagePathError> {
    if matches!(part, b"" | b"." | b"..") {
        return Err(ImagePathError::NotNormal);
    }
    if part.len() > ImagePath::MAX_NAME_LEN {
        return Err(ImagePathError::NameTooLong { len: part.len() });
    }
    Ok(())
}

/// How many bytes `a` and `b` have in common at their start. Paths that are compared mostly have long
/// ones, so that eight are looked at together.
fn common_len(a: &[u8], b: &[u8]) -> usize {
    let (a_words, b_words) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    let start = 8 * a_words.iter().zip(b_words).take_while(|(a, b)| a == b).count();
    start + a[start..].iter().zip(&b[start..]).take_while(|(a, b)| a == b).count()
}

impl fmt::Display for ImagePath {
    /// Bytes that are not printable UTF-8 are escaped, so that a hostile name cannot drive a
    /// terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() {
                    write!(f, "{}", c.escape_default())?
                } else {
                    write!(f, "{c}")?
                }
            }
            chunk.invalid().iter().try_for_each(|b| write!(f, "\\x{b:02x}"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl serde::Serialize for ImagePath {
    /// Text, escaped as it is shown, for formats that people read; the bytes for all others.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> serde::Deserialize<'de> for ImagePath {
    /// From bytes, as [`ImagePath::parse`]; text is for reading only, its escapes do not come back.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = ImagePath;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a path")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<ImagePath, E> {
                ImagePath::parse(bytes).map_err(E::custom)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ImagePath, E> {
                self.visit_bytes(text.as_bytes())
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    #[test]
    fn paths_that_could_leave_the_tree_are_refused() {
        for (text, error) in [
            ("", ImagePathError::NotAbsolute),
            ("etc", ImagePathError::NotAbsolute),
            ("/../etc", ImagePathError::NotNormal),
            ("/a//b", ImagePathError::NotNormal),
            ("/a/./b", ImagePathError::NotNormal),
            ("/a/", ImagePathError::NotNormal),
            ("/a\0b", ImagePathError::Nul),
        ] {
            assert_eq!(ImagePath::parse(text.as_bytes()), Err(error), "{text:?}");
        }
        let long = format!("/{}", "a".repeat(256));
        assert_eq!(
            ImagePath::parse(long.as_bytes()),
            Err(ImagePathError::NameTooLong { len: 256 })
        );
        let long = "/a".repeat(2048);
        assert_eq!(ImagePath::parse(long.as_bytes()), Err(ImagePathError::TooLong { len: 4096 }));
    }

    #[test]
    fn a_directory_sorts_right_before_what_it_holds() {
        let mut paths =
            ["/a.b", "/b", "/a/c", "/", "/a", "/a/b/x", "/a-b", "/a/b"].map(path).to_vec();
        paths.sort();
        let texts: Vec<String> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["/", "/a", "/a/b", "/a/b/x", "/a/c", "/a-b", "/a.b", "/b"]);
    }

    #[test]
    fn parent_name_and_join_agree() {
        let file = path("/etc/nginx/nginx.conf");
        let parent = file.parent().expect("not the root");
        assert_eq!(parent, path("/etc/nginx"));
        assert_eq!(parent.join(file.name()), Ok(file));
        assert_eq!(path("/etc").parent(), Some(ImagePath::root()));
        assert_eq!(ImagePath::root().parent(), None);
        assert_eq!(ImagePath::root().join(b"a/b"), Err(ImagePathError::NotNormal));
    }

    #[test]
    fn within_means_at_or_below_not_merely_a_common_prefix() {
        assert!(path("/a/b").is_within(&path("/a")));
        assert!(path("/a").is_within(&path("/a")));
        assert!(!path("/ab").is_within(&path("/a")));
        assert!(path("/ab").is_within(&ImagePath::root()));
    }

    #[test]
    fn odd_bytes_are_shown_escaped() {
        let odd = ImagePath::parse(b"/a\x1b[31m\xffz").expect("bytes are fine in a path");
        assert_eq!(odd.to_string(), "/a\\u{1b}[31m\\xffz");
    }
}
