//! Waiting for something to become true.

use std::time::{Duration, Instant};

use crate::error::{ErrorKind, TestkitError};

/// Time between two looks.
const POLL: Duration = Duration::from_millis(20);

/// Asks `probe` until it gives something, at most for `deadline`; `what` completes "waited for".
///
/// # Errors
///
/// The first error of `probe`, or that the deadline passed.
pub(crate) fn until<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>, TestkitError>,
) -> Result<T, TestkitError> {
    let started = Instant::now();
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if started.elapsed() >= deadline {
            let message = format!("waited {deadline:?} for {what}, in vain");
            return Err(TestkitError::new(ErrorKind::Deadline, message));
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_comes_ends_at_the_deadline() {
        let never = until("nothing", Duration::from_millis(1), || Ok(None::<()>));
        assert_eq!(never.expect_err("never true").kind(), ErrorKind::Deadline);
    }

    #[test]
    fn what_comes_late_is_found() {
        let mut left = 3;
        let found = until("zero", Duration::from_secs(5), || {
            left -= 1;
            Ok((left == 0).then_some("there"))
        });
        assert_eq!(found.ok(), Some("there"));
    }
}
