use std::time::Duration;

use serde_json::json;
use vireo_tree::apply::UndoOptions;

use super::{Context, WaitArgs, end};
use crate::exit::{Failure, Output};

/// Take an update back, and all after it
///
/// The files are those from before it, down to the inode, and services are reloaded and restarted
/// as they need it. `vireo-agent run` does not bring the version back before there is a newer one;
/// `vireo-agent apply` does. Exits with 3 if something waits to take effect, with 5 if it is
/// refused.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number of the oldest transaction to take back, by `vireo-agent history` [default: the newest]
    transaction: Option<u64>,
    /// Set files aside that were edited since, as NAME.vireo-local, instead of refusing
    #[arg(long)]
    take: bool,
    /// Only if the update that waits for this number was not confirmed: what its timer runs
    #[arg(long, value_name = "NONCE", hide = true, conflicts_with = "transaction")]
    unless_confirmed: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Output, Failure> {
    if let Some(nonce) = &args.unless_confirmed {
        return run_unconfirmed(nonce, context);
    }
    let agent = context.agent().with_package_wait(args.wait.get());
    let options = UndoOptions { take: args.take };
    let undone = agent.undo(args.transaction, &options, &*context.tell())?;
    end(undone, &agent, context)
}

/// How long a timer waits for the package manager before it gives up.
const PACKAGE_WAIT: Duration = Duration::from_secs(600);

fn run_unconfirmed(nonce: &str, context: &Context) -> Result<Output, Failure> {
    let agent = context.agent().with_package_wait(PACKAGE_WAIT);
    let Some(undone) = agent.undo_unconfirmed(nonce, &*context.tell())? else {
        let json = json!({"schema": "vireo.undo/1", "undone": false});
        return Output::new("no update waits for this number\n".to_owned(), &json);
    };
    end(undone, &agent, context)
}
