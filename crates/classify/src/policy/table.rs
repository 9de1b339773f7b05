//! Entries that are found by glob patterns, in the order in which they count.

use super::file::{Pattern, Patterns, PolicyFile};
use crate::ClassifyError;
use crate::glob::Globs;

/// Entries by their patterns.
#[derive(Clone, Debug)]
pub(super) struct Table<T> {
    globs: Globs,
    /// For each pattern its text and its entry.
    patterns: Vec<(String, usize)>,
    entries: Vec<T>,
}

impl<T> Table<T> {
    /// Entries with the patterns that lead to them, first those that count first.
    pub(super) fn compile<'a>(
        entries: impl IntoIterator<Item = (&'a PolicyFile, &'a Patterns, T)>,
    ) -> Result<Self, ClassifyError> {
        let mut sources: Vec<(&PolicyFile, &Pattern)> = Vec::new();
        let (mut patterns, mut list) = (Vec::new(), Vec::new());
        for (file, entry_patterns, entry) in entries {
            for pattern in entry_patterns.iter() {
                sources.push((file, pattern));
                patterns.push((pattern.text.clone(), list.len()));
            }
            list.push(entry);
        }
        Ok(Self { globs: Globs::of_patterns(&sources)?, patterns, entries: list })
    }

    /// The entries that cover `text`, each once, with the pattern that does.
    pub(super) fn matching<'s>(
        &'s self,
        text: &[u8],
    ) -> impl Iterator<Item = (&'s str, &'s T)> + use<'s, T> {
        let mut last = usize::MAX;
        self.globs.all(text).into_iter().filter_map(move |index| {
            let (pattern, entry) = &self.patterns[index];
            let again = std::mem::replace(&mut last, *entry) == *entry;
            (!again).then(|| (pattern.as_str(), &self.entries[*entry]))
        })
    }

    pub(super) fn first<'s>(&'s self, text: &[u8]) -> Option<(&'s str, &'s T)> {
        self.matching(text).next()
    }

    /// All entries, whatever they cover.
    pub(super) fn all(&self) -> &[T] {
        &self.entries
    }
}

/// Globs of an entry of their own, for its other lists.
pub(super) fn globs(file: &PolicyFile, patterns: &Patterns) -> Result<Globs, ClassifyError> {
    Globs::of_patterns(&patterns.iter().map(|pattern| (file, pattern)).collect::<Vec<_>>())
}
