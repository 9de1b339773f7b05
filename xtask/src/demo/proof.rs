//! A claim of the demonstration and whether it held.

use std::fmt;

use serde::Serialize;

/// One claim, what was found, and whether that bears it out.
#[derive(Debug, Serialize)]
pub(crate) struct Proof {
    pub(crate) claim: &'static str,
    pub(crate) held: bool,
    /// What was found, as evidence.
    pub(crate) found: String,
}

impl Proof {
    /// `claim` held if `held`, as `found` shows.
    pub(crate) fn new(claim: &'static str, held: bool, found: impl Into<String>) -> Self {
        Self { claim, held, found: found.into() }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.held { "held  " } else { "FAILED" };
        write!(f, "{mark} {}: {}", self.claim, self.found)
    }
}
