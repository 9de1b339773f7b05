//! The cases, by what they change.

mod code;
mod config;
mod manager;
mod nothing;
mod scripts;

use super::case::Case;

/// All cases, in the order in which they are tried within their kinds.
#[must_use]
pub fn cases() -> Vec<Case> {
    let lists =
        [config::cases(), scripts::cases(), manager::cases(), nothing::cases(), code::cases()];
    lists.into_iter().flatten().collect()
}
