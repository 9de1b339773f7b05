//! The delta of two byte strings: as it is, and with a check that is right.

use std::ops::Range;

use vireo_delta::{DeltaError, Effort, diff, patch, patched_len};
use vireo_model::Digest;

/// Where the check stands: docs/format/delta.md.
const CHECK: Range<usize> = 112..144;

/// Longest target that is made, in bytes; the limit of the format takes seconds.
const MADE_LEN_MAX: u64 = 4 << 20;

/// The base that deltas are of.
fn base() -> Vec<u8> {
    (0..500).map(|number| format!("line {number} of the base\n")).collect::<String>().into_bytes()
}

/// `input` as a delta.
pub fn run(input: &[u8]) {
    let base = base();
    read(&base, input);
    if input.len() >= CHECK.end {
        let check = Digest::of(&[&input[..CHECK.start], &input[CHECK.end..]].concat());
        read(&base, &[&input[..CHECK.start], check.as_bytes(), &input[CHECK.end..]].concat());
    }
}

/// A delta, for a seed.
///
/// # Errors
///
/// As making it.
pub fn seed() -> Result<Vec<u8>, DeltaError> {
    let base = base();
    let mut target = base.clone();
    target.splice(3000..3010, *b"something else");
    target.drain(7000..7100);
    diff(&base, &target, Effort::Default)
}

fn read(base: &[u8], delta: &[u8]) {
    let Ok(len) = patched_len(delta) else { return };
    if len <= MADE_LEN_MAX
        && let Ok(made) = patch(base, delta)
    {
        assert_eq!(made.len() as u64, len);
    }
}
