use std::fmt::Write as _;

use serde_json::json;
use vireo_agent::client::show_position;
use vireo_agent::receipt::Outcome;

use super::Context;
use crate::exit::{Failure, Output};

/// Show what this machine follows, the version it is on, and what its last update did
///
/// What waits is looked for anew: what was restarted since, or came with a boot, waits no more. Asks
/// nobody else and changes nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(super) fn run(_args: &Args, context: &Context) -> Result<Output, Failure> {
    let state = &context.state;
    let (enrolment, position) = (state.enrolment()?, state.position()?);
    let (mut receipt, under_way) = (state.last_receipt()?, state.obligation()?.is_some());
    if let Some(receipt) = &mut receipt {
        receipt.pending = context.agent().still_pending()?;
        if receipt.outcome == Outcome::Pending && receipt.pending.is_empty() {
            receipt.outcome = Outcome::Done;
        }
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match &enrolment {
        Some(it) => writeln!(text, "instance  {} of image {} at {}", it.instance, it.image, it.url),
        None => writeln!(text, "instance  not enrolled"),
    };
    let on = position.as_ref().map_or("unknown".to_owned(), show_position);
    let _ = writeln!(text, "version   {on}");
    if under_way {
        let _ = writeln!(
            text,
            "update    one is under way or was interrupted; the next start completes it"
        );
    }
    match &receipt {
        Some(receipt) => {
            let _ = write!(text, "last      {receipt}");
        }
        None => text.push_str("last      no update yet\n"),
    }
    let json = json!({
        "schema": "vireo.status/1",
        "instance": enrolment.as_ref().map(|it| &it.instance),
        "image": enrolment.as_ref().map(|it| &it.image),
        "url": enrolment.as_ref().map(|it| &it.url),
        "version": position.and_then(|position| position.number),
        "tree": position.map(|position| position.tree),
        "under_way": under_way,
        "last": receipt,
    });
    Output::new(text, &json)
}
