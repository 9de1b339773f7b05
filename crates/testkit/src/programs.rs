//! Finding the programs that the same build made.

use std::env;
use std::path::PathBuf;

use crate::error::{ErrorKind, TestkitError, failed};

/// The program `name` of this build: beside the running test, benchmark or tool, whatever the target
/// directory is.
///
/// # Errors
///
/// It has not been built; the message says how.
pub fn find(name: &str) -> Result<PathBuf, TestkitError> {
    let own = env::current_exe().map_err(failed("find", "the running program"))?;
    // Tests are in `deps`, examples in `examples`, both in the directory that holds the programs.
    let found =
        own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let message = format!("the program {name} is not there: cargo build --release");
        TestkitError::new(ErrorKind::Host, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_built_is_named_with_the_remedy() {
        let error = find("no-such-program").expect_err("nobody builds it");
        assert!(error.to_string().contains("no-such-program is not there: cargo build"));
    }
}
