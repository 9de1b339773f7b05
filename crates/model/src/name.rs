//! Names of images and of their versions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An image's name, `web`: a line of versions. Lower-case letters, digits, `-`, `_` and `.`,
/// starting with a letter or digit, so that it is one safe file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ImageName(String);

/// An image, or one version of it: `web`, `web@7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// The image.
    pub name: ImageName,
    /// The version's number; none means the newest.
    pub version: Option<u64>,
}

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has other characters than a name may have, or too many.
    #[error(
        "image name {text:?} is not 1 to {} lower-case letters, digits, `-`, `_` or `.`, with a letter or digit first",
        ImageName::MAX_LEN
    )]
    Name {
        /// The text.
        text: String,
    },
    /// What follows the `@` is not a version number.
    #[error("{text:?} has no version number after the @; write NAME or NAME@3")]
    Version {
        /// The text.
        text: String,
    },
}

impl ImageName {
    /// Longest name, in bytes.
    pub const MAX_LEN: usize = 64;

    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let good = text.len() <= Self::MAX_LEN
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|b| plain(b) || matches!(b, b'-' | b'_' | b'.'));
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Name { text: text.to_owned() })
        }
    }
}

impl TryFrom<String> for ImageName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageRef {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((name, version)) = text.split_once('@') else {
            return Ok(Self { name: text.parse()?, version: None });
        };
        let version = version.parse().map_err(|_| NameError::Version { text: text.to_owned() })?;
        Ok(Self { name: name.parse()?, version: Some(version) })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_safe_file_name_are_refused() {
        for text in ["", ".", "..", "a/b", "Web", "-x", "a b", &"a".repeat(65)] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
        }
        for text in ["web", "debian-12.1_x", "0"] {
            assert!(text.parse::<ImageName>().is_ok(), "{text:?}");
        }
    }

    #[test]
    fn a_reference_has_a_version_or_means_the_newest() {
        let show = |text: &str| text.parse::<ImageRef>().map(|r| r.to_string());
        assert_eq!(show("web@7").as_deref(), Ok("web@7"));
        assert_eq!(show("web").as_deref(), Ok("web"));
        assert!(show("web@").is_err() && show("web@x").is_err() && show("@1").is_err());
    }
}
