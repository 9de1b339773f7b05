//! Ordered lists of glob patterns, of which the first match counts.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::policy::Pattern;
use crate::{ClassifyError, PolicyFile};

/// Patterns in order, compiled together.
#[derive(Clone, Debug)]
pub(crate) struct Globs(GlobSet);

impl Globs {
    /// Compiles `patterns`; `*` stays within a component, `**` crosses them.
    pub(crate) fn new<'p>(
        patterns: impl IntoIterator<Item = &'p str>,
    ) -> Result<Self, ClassifyError> {
        let mut builder = GlobSetBuilder::new();
        let mut last = "";
        for pattern in patterns {
            last = pattern;
            let glob =
                GlobBuilder::new(pattern).literal_separator(true).empty_alternates(true).build();
            builder.add(glob.map_err(|why| ClassifyError::pattern(pattern, &why))?);
        }
        Ok(Self(builder.build().map_err(|why| ClassifyError::pattern(last, &why))?))
    }

    /// Compiles patterns of policy files; an error names file and line.
    pub(crate) fn of_patterns(patterns: &[(&PolicyFile, &Pattern)]) -> Result<Self, ClassifyError> {
        for (file, pattern) in patterns {
            Self::new([pattern.text.as_str()]).map_err(|error| {
                let why = format!("{:?} is not a glob: {}", pattern.text, error.reason());
                ClassifyError::policy(file.name(), file.line(pattern.at), &why)
            })?;
        }
        Self::new(patterns.iter().map(|(_, pattern)| pattern.text.as_str()))
    }

    /// Whether there is no pattern at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Indices of all patterns that `text` matches, in order.
    pub(crate) fn all(&self, text: &[u8]) -> Vec<usize> {
        self.0.matches(Path::new(OsStr::from_bytes(text)))
    }

    /// Index of the first pattern that `text` matches.
    pub(crate) fn first(&self, text: &[u8]) -> Option<usize> {
        self.all(text).first().copied()
    }
}
