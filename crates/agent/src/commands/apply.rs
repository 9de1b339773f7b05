use std::path::{Path, PathBuf};

use serde_json::json;
use vireo_agent::Receipt;
use vireo_agent::receipt::Outcome;

use super::{Context, WaitArgs, block_on, trusted};
use crate::exit::{FAILED, Failure, Output, WAITS};

/// Apply an update and activate it
///
/// Without BUNDLE, everything up to the newest version is fetched from the repository. Exits
/// with 3 if something waits to take effect, with 5 if the update is refused.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bundle to apply
    bundle: Option<PathBuf>,
    /// Accept bundles signed by this key, given as text or as a file, and by no other
    #[arg(long, value_name = "KEY", requires = "bundle")]
    trust: Vec<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Output, Failure> {
    // Whoever asks for it by hand wants what was undone back.
    context.state.set_hold(None)?;
    if let Some(bundle) = &args.bundle {
        return apply_file(bundle, args, context);
    }
    let session = context.patient_session(args.wait.get())?;
    let receipts = block_on(async { Ok(session.update().await?) })?;
    let Some(last) = receipts.last() else {
        let json = json!({"schema": Receipt::SCHEMA, "outcome": Outcome::Unchanged});
        return Output::new("unchanged this is the newest version\n".to_owned(), &json);
    };
    Ok(Output::of(last)?.with_code(code_of(receipts.iter().map(|receipt| receipt.outcome))))
}

fn apply_file(bundle: &Path, args: &Args, context: &Context) -> Result<Output, Failure> {
    let agent = context.patient_agent(args.wait.get());
    let applied = agent.apply(bundle, &trusted(&args.trust, context)?, None, &*context.tell())?;
    if applied.restart_self {
        agent.restart_self()?;
    }
    let code = code_of([applied.receipt.outcome].into_iter());
    Ok(Output::of(&applied.receipt)?.with_code(code))
}

/// The worst of several outcomes, as an exit code.
pub(super) fn code_of(mut outcomes: impl Iterator<Item = Outcome> + Clone) -> u8 {
    if outcomes.clone().any(|outcome| outcome == Outcome::Failed) {
        FAILED
    } else if outcomes.any(|outcome| outcome == Outcome::Pending) {
        WAITS
    } else {
        0
    }
}
