//! What a command ends with: its output or its failure, and the exit code of either.
//!
//! 0 done or nothing to do, 1 failed, 2 usage (by clap), 3 waits, 4 undone,
//! 5 refused.

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

use serde::Serialize;
use vireo_agent::client::chain;
use vireo_agent::{AgentError, ErrorKind};

/// It failed.
pub(crate) const FAILED: u8 = 1;
/// It is done as far as it goes; something waits.
pub(crate) const WAITS: u8 = 3;
/// It was undone: the files are the base's again.
pub(crate) const UNDONE: u8 = 4;
/// It was refused, nothing was changed.
const REFUSED: u8 = 5;

/// What a command found or did, in both forms.
#[derive(Debug)]
pub(crate) struct Output {
    text: String,
    json: serde_json::Value,
    code: u8,
}

impl Output {
    /// A report that is its own text and its own JSON.
    pub(crate) fn of<R: Display + Serialize>(report: &R) -> Result<Self, Failure> {
        Self::new(report.to_string(), report)
    }

    pub(crate) fn new(text: String, json: &impl Serialize) -> Result<Self, Failure> {
        let json = serde_json::to_value(json).map_err(|error| Failure {
            code: FAILED,
            message: format!("cannot write the answer as JSON: {error}"),
        })?;
        Ok(Self { text, json, code: 0 })
    }

    /// Nothing to print: everything has been said.
    pub(crate) fn silent() -> Result<Self, Failure> {
        Ok(Self { text: String::new(), json: serde_json::Value::Null, code: 0 })
    }

    pub(crate) fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The same with `code`, unless something else is to be said by it.
    pub(crate) fn or_code(self, code: u8) -> Self {
        if self.code == 0 { self.with_code(code) } else { self }
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    pub(crate) fn print(&self, json: bool) -> ExitCode {
        let text = match (&self.json, json) {
            (serde_json::Value::Null, _) | (_, false) => self.text.clone(),
            (value, true) => format!("{value}\n"),
        };
        // A reader that has gone away wants no more; there is nobody to tell.
        let _ = std::io::stdout().write_all(text.as_bytes());
        ExitCode::from(self.code)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: FAILED, message: message.into() }
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn print(&self, json: bool) -> ExitCode {
        if json {
            let error = serde_json::json!({"schema": "vireo.error/1", "error": self.message, "code": self.code});
            let _ = writeln!(std::io::stdout(), "{error}");
        }
        let _ = writeln!(std::io::stderr(), "error: {}", self.message);
        ExitCode::from(self.code)
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        let code = match error.kind() {
            ErrorKind::Refused => REFUSED,
            ErrorKind::Busy | ErrorKind::Unreachable => WAITS,
            _ => FAILED,
        };
        Self { code, message: chain(&error) }
    }
}
