//! Printing: text for people, one JSON document for programs.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;

use crate::exit::Failure;

/// What a command found out. The text is for people, the JSON is a contract.
pub(crate) trait Report: Display + Serialize {
    /// Name of the JSON form, `vireo.<name>/1`.
    const SCHEMA: &'static str;
}

#[derive(Serialize)]
struct Document<'a, R> {
    schema: &'static str,
    #[serde(flatten)]
    report: &'a R,
}

/// Prints `report` to the standard output.
pub(crate) fn print<R: Report>(report: &R, json: bool) -> Result<(), Failure> {
    let text = if json { to_json(report)? } else { report.to_string() };
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    match written {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome
            .map_err(|error| Failure::io("write to", Path::new("the standard output"), &error)),
    }
}

fn to_json<R: Report>(report: &R) -> Result<String, Failure> {
    let document = Document { schema: R::SCHEMA, report };
    serde_json::to_string(&document).map_err(|error| {
        Failure::io("write JSON to", Path::new("the standard output"), &io::Error::other(error))
    })
}
