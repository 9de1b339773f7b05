use std::time::Duration;

use serde_json::json;
use vireo_agent::client::show_version;
use vireo_wire::api::Next;

use super::{Context, block_on};
use crate::exit::{Failure, Output};

/// Ask the repository whether there is a newer version; change nothing
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(super) fn run(_args: &Args, context: &Context) -> Result<Output, Failure> {
    let session = context.session()?;
    let next = block_on(async { Ok(session.next(Duration::ZERO).await?) })?;
    let text = match &next {
        Next::UpToDate { version } => format!("current  {} is the newest\n", show_version(version)),
        Next::Update { version, target, file_len, .. } => {
            format!(
                "update   version {version} (tree {}), {file_len} bytes to fetch\n",
                target.short()
            )
        }
    };
    let (update, version, tree, bytes) = match next {
        Next::UpToDate { version } => (false, version.number, version.tree, 0),
        Next::Update { version, target, file_len, .. } => (true, version, target, file_len),
    };
    let json = json!({
        "schema": "vireo.check/1", "update": update, "version": version, "tree": tree, "wire_bytes": bytes,
    });
    Output::new(text, &json)
}
