use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::json;
use vireo_agent::client::show_position;

use super::Context;
use crate::exit::{Failure, Output};

/// List the updates that can be undone, newest first
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(super) fn run(_args: &Args, context: &Context) -> Result<Output, Failure> {
    let list = context.agent().history()?;
    let mut text = String::new();
    let mut entries = Vec::new();
    for past in &list {
        let target = context.state.version_of(past.target)?;
        let time = Timestamp::from_second(past.time).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<5} {time:.0}  {} changes to {}, {} KiB kept",
            past.number,
            past.changes,
            show_position(&target),
            past.kept_len >> 10
        );
        entries.push(json!({
            "transaction": past.number,
            "base": past.base,
            "target": past.target,
            "version": target.number,
            "changes": past.changes,
            "time": time.to_string(),
            "kept_bytes": past.kept_len,
        }));
    }
    if list.is_empty() {
        text.push_str("no update can be undone\n");
    }
    Output::new(text, &json!({"schema": "vireo.history/1", "transactions": entries}))
}
