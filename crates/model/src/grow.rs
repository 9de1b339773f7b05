//! Whether a disk image may become longer.

use serde::{Deserialize, Serialize};

/// How much an image may grow for an update that needs more space than its root file system has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grow {
    /// Not at all: the update is refused.
    #[default]
    No,
    /// By what the update needs.
    Auto,
    /// To this length of the image in bytes.
    To(u64),
}
