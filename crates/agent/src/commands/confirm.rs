use serde_json::json;

use super::Context;
use crate::exit::{FAILED, Failure, Output};

/// Keep an update that waits to be confirmed: this machine can be reached
///
/// An update that could cut the machine off is undone by itself unless it is confirmed in time.
/// Confirm it from a new login, which shows that there can be one. Exits with 1 if no update waits
/// for NONCE.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The number that the update's receipt and `vireo-agent status` say
    nonce: String,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Output, Failure> {
    let confirmed = context.agent().confirm(&args.nonce)?;
    let (text, code) = if confirmed {
        ("confirmed: the update stays\n", 0)
    } else {
        ("no update waits for this number: it was confirmed, undone, or another one\n", FAILED)
    };
    let json = json!({"schema": "vireo.confirm/1", "confirmed": confirmed});
    Ok(Output::new(text.to_owned(), &json)?.with_code(code))
}
