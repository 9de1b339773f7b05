use vireo_tree::apply::UndoOptions;

use super::apply::code_of;
use super::{Context, WaitArgs};
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
    #[command(flatten)]
    wait: WaitArgs,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Output, Failure> {
    let agent = context.patient_agent(args.wait.get());
    let options = UndoOptions { take: args.take };
    let undone = agent.undo(args.transaction, &options, &*context.tell())?;
    if undone.restart_self {
        agent.restart_self()?;
    }
    let code = code_of([undone.receipt.outcome].into_iter());
    Ok(Output::of(&undone.receipt)?.with_code(code))
}
