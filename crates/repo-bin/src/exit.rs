//! Exit codes: what a script can branch on. They are never reused.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use vireo_repo::{ErrorKind, RepoError};

/// Something failed.
pub(crate) const FAILED: u8 = 1;
/// The command line names something that is not there or is no such thing.
const USAGE: u8 = 2;
/// Something else has to end first.
const WAITS: u8 = 3;
/// What was asked for is not done, for a reason that stays.
const REFUSED: u8 = 5;

/// An error on its way out, with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// A file or stream of this command could not be used.
    pub(crate) fn io(step: &str, path: &Path, error: &io::Error) -> Self {
        Self { code: FAILED, message: format!("cannot {step} {}: {error}", path.display()) }
    }

    /// An argument does not mean what it should.
    pub(crate) fn usage(message: String) -> Self {
        Self { code: USAGE, message }
    }

    /// What was asked for is not done, for a reason that stays.
    pub(crate) fn refused(message: String) -> Self {
        Self { code: REFUSED, message }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        self.code.into()
    }
}

impl From<RepoError> for Failure {
    fn from(error: RepoError) -> Self {
        let code = match error.kind() {
            ErrorKind::Busy => WAITS,
            ErrorKind::Conflict
            | ErrorKind::Refused
            | ErrorKind::Untrusted
            | ErrorKind::Unsupported => REFUSED,
            _ => FAILED,
        };
        Self { code, message: error.chain() }
    }
}

#[cfg(feature = "ec2")]
impl From<vireo_cloud::CloudError> for Failure {
    fn from(error: vireo_cloud::CloudError) -> Self {
        let code = match error.kind() {
            vireo_cloud::ErrorKind::Unavailable => WAITS,
            vireo_cloud::ErrorKind::Denied | vireo_cloud::ErrorKind::Refused => REFUSED,
            _ => FAILED,
        };
        Self { code, message: with_cause(&error) }
    }
}

/// The error, and what the system said if that is why. What a service said is in the message already.
#[cfg(feature = "ec2")]
fn with_cause(error: &vireo_cloud::CloudError) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(system) = inner.downcast_ref::<io::Error>() {
            let (message, system) = (error.to_string(), system.to_string());
            return if message.contains(&system) {
                message
            } else {
                format!("{message}: {system}")
            };
        }
        cause = inner.source();
    }
    error.to_string()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
