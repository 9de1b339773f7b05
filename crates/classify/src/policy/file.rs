//! The policy file: its TOML form, read strictly. A key that nobody knows, a word that is none
//! of those expected and a pattern that is no glob are errors that name file and line, because
//! a policy that is not what its author thinks it is restarts what must not be restarted.
//!
//! The form is described in `docs/format/policy.md`.

use std::fmt;
use std::time::Duration;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::Layer;
use super::entries::Content;
use crate::ClassifyError;

/// The one version of the form there is.
const VERSION: u32 = 1;

/// Longest policy file read, in bytes: the rule pack has some 30 kB.
pub const MAX_POLICY_LEN: usize = 1 << 20;

/// One policy file, read but not yet put together with others to a [`Policy`](crate::Policy).
#[derive(Clone, Debug)]
pub struct PolicyFile {
    pub(super) name: String,
    pub(super) content: Content,
    /// Whose it is; known when policies are put together.
    pub(super) layer: Layer,
    /// Where each line begins, to name lines in errors.
    pub(super) line_starts: Vec<usize>,
}

impl PolicyFile {
    /// Reads the policy file `name` with this content.
    ///
    /// # Errors
    ///
    /// It is too long, no TOML, has an unknown key or word, or another version. Patterns are
    /// looked at by [`Policy::from_layers`](crate::Policy::from_layers).
    pub fn parse(name: &str, text: &str) -> Result<Self, ClassifyError> {
        if text.len() > MAX_POLICY_LEN {
            let why = format!("it is longer than {MAX_POLICY_LEN} bytes");
            return Err(ClassifyError::policy(name, 1, &why));
        }
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts: Vec<usize> =
            std::iter::once(0).chain(newlines.map(|(at, _)| at + 1)).collect();
        let line = |at| line_of(&line_starts, at);
        let content: Content = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            ClassifyError::policy(name, line(at), error.message())
        })?;
        if *content.version.get_ref() != VERSION {
            let why = format!("version {} is not {VERSION}", content.version.get_ref());
            return Err(ClassifyError::policy(name, line(content.version.span().start), &why));
        }
        Ok(Self { name: name.to_owned(), content, layer: Layer::default(), line_starts })
    }

    /// The file's name, as given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn duration(&self, text: &Spanned<String>) -> Result<Duration, ClassifyError> {
        super::parse_duration(text.get_ref()).ok_or_else(|| {
            let why = format!("{:?} is no time such as \"5s\" or \"2min\"", text.get_ref());
            ClassifyError::policy(&self.name, self.line(text.span().start), &why)
        })
    }

    /// The line of the byte at `at`, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        line_of(&self.line_starts, at)
    }
}

fn line_of(starts: &[usize], at: usize) -> usize {
    starts.partition_point(|start| *start <= at)
}

/// One pattern or a list of them, each with its place in the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patterns(Vec<Pattern>);

/// A pattern and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    pub(crate) text: String,
    pub(crate) at: usize,
}

impl Patterns {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.0.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Listed>::deserialize(deserializer)?;
        let start = spanned.span().start;
        Ok(Self(match spanned.into_inner() {
            Listed::One(text) => vec![Pattern { text, at: start }],
            Listed::Many(patterns) => patterns,
        }))
    }
}

enum Listed {
    One(String),
    Many(Vec<Pattern>),
}

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListedVisitor)
    }
}

struct ListedVisitor;

impl<'de> Visitor<'de> for ListedVisitor {
    type Value = Listed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a pattern or a list of patterns")
    }

    fn visit_str<E>(self, text: &str) -> Result<Listed, E> {
        Ok(Listed::One(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Listed, A::Error> {
        let mut patterns = Vec::new();
        while let Some(text) = list.next_element::<Spanned<String>>()? {
            let at = text.span().start;
            patterns.push(Pattern { text: text.into_inner(), at });
        }
        Ok(Listed::Many(patterns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Policy};

    /// The message of reading `text`, or of putting it to use.
    #[track_caller]
    fn error(text: &str) -> String {
        let file = PolicyFile::parse("50-site.toml", text);
        let policy = file.and_then(|file| Policy::from_layers(&[], &[file]));
        let error = policy.expect_err("not a valid policy");
        assert_eq!(error.kind(), ErrorKind::BadPolicy);
        error.to_string()
    }

    #[test]
    fn what_is_wrong_is_named_with_file_line_and_key() {
        let unknown =
            error("version = 1\n\n[[drift]]\npath = \"/etc/**\"\non = \"take\"\nwhen = 1\n");
        assert!(
            unknown.starts_with("policy 50-site.toml, line 6: unknown field `when`"),
            "{unknown}"
        );
        let word = error("version = 1\n[[drift]]\npath = \"/etc/**\"\non = \"perhaps\"\n");
        assert!(
            word.starts_with("policy 50-site.toml, line 4: unknown variant `perhaps`"),
            "{word}"
        );
        let syntax = error("version = 1\n[[drift\n");
        assert!(syntax.starts_with("policy 50-site.toml, line 2: "), "{syntax}");
        assert_eq!(error("version = 7\n"), "policy 50-site.toml, line 1: version 7 is not 1");
        let nobody = error("version = 1\n\n[[unit]]\nhold = \"a\"\n");
        assert_eq!(nobody, "policy 50-site.toml, line 3: [[unit]] needs `unit` or `program`");
        let empty =
            error("version = 1\n[[probe]]\nunit = \"a\"\non-failure = \"fail\"\nrun = []\n");
        assert_eq!(empty, "policy 50-site.toml, line 5: a command without a program");
        let missing = error("[[drift]]\npath = \"/a\"\non = \"take\"\n");
        assert!(missing.contains("missing field `version`"), "{missing}");
        let long = error(&"#".repeat(MAX_POLICY_LEN + 1));
        assert!(long.contains("longer than"), "{long}");
    }

    #[test]
    fn a_pattern_that_is_no_glob_is_named_with_its_line() {
        let one = error("version = 1\n[[drift]]\npath = \"/a[\"\non = \"take\"\n");
        assert!(one.starts_with("policy 50-site.toml, line 3: \"/a[\" is not a glob: "), "{one}");
        let listed =
            error("version = 1\n[[drift]]\npath = [\n \"/a\",\n \"/{b\",\n]\non = \"take\"\n");
        assert!(
            listed.starts_with("policy 50-site.toml, line 5: \"/{b\" is not a glob"),
            "{listed}"
        );
    }
}
