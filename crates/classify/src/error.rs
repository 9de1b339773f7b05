//! The one error: a policy or a read map that cannot be used.

/// Why a policy or a read map cannot be used. Branch on [`kind`](Self::kind), print the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ClassifyError(Detail);

/// What a caller can do about a [`ClassifyError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A pattern of the policy is no glob: correct it.
    BadPattern,
    /// A policy file cannot be used: correct the line that the message names.
    BadPolicy,
    /// A read map cannot be used: record it again.
    BadReadMap,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Detail {
    #[error("policy pattern {pattern:?} is not a glob: {why}")]
    Pattern { pattern: String, why: String },
    #[error("policy {file}, line {line}: {why}")]
    Policy { file: String, line: usize, why: String },
    #[error("the read map cannot be used: {why}")]
    ReadMap { why: String },
}

impl ClassifyError {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self.0 {
            Detail::Pattern { .. } => ErrorKind::BadPattern,
            Detail::Policy { .. } => ErrorKind::BadPolicy,
            Detail::ReadMap { .. } => ErrorKind::BadReadMap,
        }
    }

    pub(crate) fn policy(file: &str, line: usize, why: &str) -> Self {
        let why = why.trim_end().to_owned();
        Self(Detail::Policy { file: file.to_owned(), line, why })
    }

    pub(crate) fn read_map(why: &str) -> Self {
        Self(Detail::ReadMap { why: why.to_owned() })
    }

    /// What is wrong, without where.
    pub(crate) fn reason(&self) -> &str {
        match &self.0 {
            Detail::Pattern { why, .. } | Detail::Policy { why, .. } | Detail::ReadMap { why } => {
                why
            }
        }
    }

    pub(crate) fn pattern(pattern: &str, why: &globset::Error) -> Self {
        Self(Detail::Pattern { pattern: pattern.to_owned(), why: why.kind().to_string() })
    }
}
