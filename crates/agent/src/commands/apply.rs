use std::path::{Path, PathBuf};

use serde_json::json;
use vireo_agent::receipt::Outcome;
use vireo_agent::{Agent, Receipt};
use vireo_classify::Confirm;

use super::{Context, WaitArgs, block_on, trusted};
use crate::exit::{FAILED, Failure, Output, UNDONE, WAITS};

/// Apply an update and activate it
///
/// Without BUNDLE, everything up to the newest version is fetched from the repository. Exits
/// with 3 if something waits to take effect or to be confirmed, with 4 if the update was undone
/// because something was ill after it, with 5 if it is refused.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bundle to apply
    bundle: Option<PathBuf>,
    /// Accept bundles signed by this key, given as text or as a file, and by no other
    #[arg(long, value_name = "KEY", requires = "bundle")]
    trust: Vec<String>,
    /// Do not undo the update by itself if it cuts this machine off: somebody sits beside it
    #[arg(long)]
    no_guard: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Output, Failure> {
    // Whoever asks for it by hand wants what was undone back.
    context.state.set_hold(None)?;
    if let Some(bundle) = &args.bundle {
        return apply_file(bundle, args, context);
    }
    let session = context.session_of(agent_for(args, context))?;
    let receipts = block_on(async { Ok(session.update().await?) })?;
    let Some(last) = receipts.last() else {
        let json = json!({"schema": Receipt::SCHEMA, "outcome": Outcome::Unchanged});
        return Output::new("unchanged this is the newest version\n".to_owned(), &json);
    };
    Ok(Output::of(last)?.with_code(code_of(receipts.iter().map(|receipt| receipt.outcome))))
}

fn apply_file(bundle: &Path, args: &Args, context: &Context) -> Result<Output, Failure> {
    let agent = agent_for(args, context);
    let applied = agent.apply(bundle, &trusted(&args.trust, context)?, None, &*context.tell())?;
    if applied.restart_self {
        agent.restart_self()?;
    }
    let mut receipt = applied.receipt;
    let waits = context.state.guard()?.is_some_and(|guard| guard.confirm == Confirm::Remote);
    if waits && context.state.enrolment()?.is_some() {
        // The repository is asked whether it can be reached; if not, the timer goes on.
        let session = context.session_of(agent)?;
        if block_on(async { Ok(session.confirm().await?) })? {
            receipt = context.state.last_receipt()?.unwrap_or(receipt);
        }
    }
    let code = code_of([receipt.outcome].into_iter());
    Ok(Output::of(&receipt)?.with_code(code))
}

fn agent_for(args: &Args, context: &Context) -> Agent {
    let agent = context.agent().with_package_wait(args.wait.get());
    if args.no_guard { agent.unguarded() } else { agent }
}

/// The worst of several outcomes, as an exit code.
pub(super) fn code_of(mut outcomes: impl Iterator<Item = Outcome> + Clone) -> u8 {
    if outcomes.clone().any(|outcome| outcome == Outcome::Failed) {
        FAILED
    } else if outcomes.clone().any(|outcome| outcome == Outcome::Undone) {
        UNDONE
    } else if outcomes.any(|outcome| outcome == Outcome::Pending) {
        WAITS
    } else {
        0
    }
}
