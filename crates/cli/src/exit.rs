//! From errors to exit codes, messages and advice; from reports to text and JSON.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use vireo_capture::CaptureError;
use vireo_delta::DeltaError;
use vireo_image::ImageError;
use vireo_record::RecordError;
use vireo_repo::RepoError;
use vireo_tree::TreeError;
use vireo_wire::WireError;

/// The command failed.
pub(crate) const FAILED: u8 = 1;
/// Something else has to end first: a lock, another update, a server.
const WAITS: u8 = 3;
/// Refused for a reason that trying again does not change.
const REFUSED: u8 = 5;

/// What helps where an output does not fit.
const MAKE_ROOM: &str = "make room and try again";

/// What a command found out or did. The text is for people, the JSON is a contract.
pub(crate) trait Report {
    /// The text form, without a final newline.
    fn to_text(&self) -> String;
    /// The JSON form with its `schema`.
    fn to_json(&self) -> String;
    /// 0, unless what was found is itself a "no".
    fn exit_code(&self) -> ExitCode {
        ExitCode::SUCCESS
    }
}

/// Writes the result to standard output. A reader that has gone (`| head`) is no error.
pub(crate) fn print(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// A value with its schema name, as one JSON text.
pub(crate) fn json<T: serde::Serialize>(schema: &str, value: &T) -> String {
    #[derive(serde::Serialize)]
    struct WithSchema<'a, T> {
        schema: &'a str,
        #[serde(flatten)]
        value: &'a T,
    }
    serde_json::to_string_pretty(&WithSchema { schema, value })
        .unwrap_or_else(|error| format!("{{\"schema\":\"vireo.error/1\",\"error\":\"{error}\"}}"))
}

/// An error with the exit code and the advice that go with it.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
    source: Option<Box<dyn Error>>,
    hint: Option<&'static str>,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: FAILED, message: message.into(), source: None, hint: None }
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self { code: REFUSED, ..Self::new(message) }
    }

    /// `cannot STEP PATH`.
    pub(crate) fn io(step: &str, path: &Path, source: io::Error) -> Self {
        Self::new(format!("cannot {step} {}", path.display())).caused_by(source)
    }

    /// `cannot make PATH`, of an output.
    pub(crate) fn make(path: &Path, source: io::Error) -> Self {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let hint = matches!(source.kind(), StorageFull | QuotaExceeded).then_some(MAKE_ROOM);
        Self { hint, ..Self::io("make", path, source) }
    }

    /// The same of a bundle that is made of others.
    pub(crate) fn derived(path: &Path, source: DeltaError) -> Self {
        let message = format!("cannot make {}", path.display());
        let no_space = source.is_no_space();
        let failure = Self::bundle(path, source);
        let hint = if no_space { Some(MAKE_ROOM) } else { failure.hint };
        Self { message, hint, ..failure }
    }

    pub(crate) fn bundle(path: &Path, source: DeltaError) -> Self {
        use vireo_delta::ErrorKind;
        let (code, hint) = match source.kind() {
            ErrorKind::Corrupt => {
                (REFUSED, "the file was cut or changed on its way: fetch or capture it again")
            }
            ErrorKind::Unsupported => (REFUSED, "upgrade vireo on this machine"),
            ErrorKind::WrongBase => {
                (REFUSED, "use the image or directory that the bundle was captured from")
            }
            ErrorKind::Untrusted => {
                (REFUSED, "name the signer's public key with --trust, if you do trust it")
            }
            ErrorKind::Limit => (REFUSED, "capture a smaller change"),
            ErrorKind::NotPermitted => {
                (REFUSED, "look at the change; --permit takes setuid, devices and mass")
            }
            _ => (FAILED, "see the cause"),
        };
        let message = format!("cannot use the bundle {}", path.display());
        Self { code, hint: Some(hint), ..Self::new(message).caused_by(source) }
    }

    pub(crate) fn hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }

    pub(crate) fn caused_by(self, source: impl Into<Box<dyn Error>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    fn of(code: u8, hint: Option<&'static str>, error: impl Error + 'static) -> Self {
        let message = error.to_string();
        // The error itself is the message; its causes follow.
        let source = flatten(&error);
        Self { code, message, source, hint }
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Prints it on standard error, or as JSON on standard output, and gives the exit code.
    pub(crate) fn report(self, json: bool) -> ExitCode {
        let mut text = self.message.clone();
        let mut cause = self.source.as_deref();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        if json {
            let value = serde_json::json!({ "schema": "vireo.error/1", "error": text, "hint": self.hint, "exit": self.code });
            print(&value.to_string());
        } else {
            eprintln!("error: {text}");
            if let Some(hint) = self.hint {
                eprintln!("hint: {hint}");
            }
        }
        self.into()
    }
}

/// The causes of `error` as one value that owns its text.
fn flatten(error: &dyn Error) -> Option<Box<dyn Error>> {
    let cause = error.source()?;
    Some(Box::new(Cause { text: cause.to_string(), below: flatten(cause) }))
}

#[derive(Debug)]
struct Cause {
    text: String,
    below: Option<Box<dyn Error>>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.below.as_deref()
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        use vireo_image::ErrorKind;
        let (code, hint) = match error.kind() {
            ErrorKind::NoRoot => {
                (FAILED, Some("run it as root, who may mount; or get the right to what is named"))
            }
            ErrorKind::Busy => (WAITS, None),
            ErrorKind::NoSpace => (FAILED, Some("make room and try again; nothing was changed")),
            ErrorKind::WrongBase | ErrorKind::Mismatch => {
                (REFUSED, Some("the image is not the bundle's base; nothing was changed"))
            }
            ErrorKind::NotAnImage
            | ErrorKind::UnknownPartition
            | ErrorKind::Unclean
            | ErrorKind::Unsupported
            | ErrorKind::Damaged
            | ErrorKind::Forbidden => (REFUSED, None),
            _ => (FAILED, None),
        };
        Self::of(code, hint, error)
    }
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        use vireo_tree::ErrorKind;
        let (code, hint) = match error.kind() {
            ErrorKind::Drift => (
                REFUSED,
                Some("bring these paths back to the base, or capture again; nothing was changed"),
            ),
            ErrorKind::Busy => (WAITS, None),
            ErrorKind::Unsupported | ErrorKind::Corrupt | ErrorKind::Forbidden => (REFUSED, None),
            ErrorKind::NoSpace => (FAILED, Some("make room and try again; nothing was changed")),
            ErrorKind::Permission => (
                FAILED,
                Some(
                    "run it as root, on a disk file system that can be written (no /proc or /sys)",
                ),
            ),
            _ => (FAILED, None),
        };
        Self::of(code, hint, error)
    }
}

impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Self {
        use vireo_capture::ErrorKind;
        let (code, hint) = match error.kind() {
            ErrorKind::Busy => (WAITS, None),
            ErrorKind::NoSpace => (FAILED, Some(MAKE_ROOM)),
            _ => (FAILED, None),
        };
        Self::of(code, hint, error)
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        use vireo_record::ErrorKind;
        let hint = match error.kind() {
            ErrorKind::Permission => Some("run it as root, outside of containers"),
            ErrorKind::Unsupported => {
                Some("record on a machine with Linux 5.9 or later whose root is ext4 or xfs")
            }
            _ => None,
        };
        Self::of(FAILED, hint, error)
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        use vireo_wire::ErrorKind;
        let (code, hint) = match error.kind() {
            ErrorKind::Unreachable => {
                (WAITS, Some("is the repository running there? `vireo-repo serve`"))
            }
            ErrorKind::Unauthorised => {
                (REFUSED, Some("give the administrator's token with --token @FILE"))
            }
            ErrorKind::Busy => (WAITS, None),
            ErrorKind::Conflict | ErrorKind::Refused => (REFUSED, None),
            _ => (FAILED, None),
        };
        Self::of(code, hint, error)
    }
}

impl From<RepoError> for Failure {
    fn from(error: RepoError) -> Self {
        use vireo_repo::ErrorKind;
        let code = match error.kind() {
            ErrorKind::Busy => WAITS,
            ErrorKind::Refused | ErrorKind::Untrusted | ErrorKind::Conflict => REFUSED,
            _ => FAILED,
        };
        Self::of(code, None, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Write};
    use vireo_delta::{BundleWriter, Permits, SecretKey, Statement};
    use vireo_model::{ChangeSet, Digest, Ignore};

    /// A disk without room.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bundle_that_does_not_fit_names_the_output_and_asks_for_room() {
        let tree = Digest::of(b"a tree");
        let statement = Statement {
            changes: &ChangeSet { base: tree, target: tree, changes: Vec::new() },
            ignore: &Ignore::nothing(),
            permits: Permits::NONE,
            base_paths: 0,
        };
        let key = SecretKey::generate().expect("random bytes");
        let writer = BundleWriter::new(Cursor::new(Vec::new()));
        let error = writer.finish(&statement, &key, Full).expect_err("no room");
        let out = Path::new("/out.vireo");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        for failure in [Failure::derived(out, error), Failure::make(out, full())] {
            assert_eq!(failure.message, "cannot make /out.vireo");
            assert_eq!((failure.code(), failure.hint), (FAILED, Some(MAKE_ROOM)));
        }
    }
}
