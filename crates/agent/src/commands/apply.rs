use std::path::{Path, PathBuf};

use serde_json::json;
use vireo_agent::client::Updated;
use vireo_agent::receipt::Outcome;
use vireo_agent::{Agent, Receipt};
use vireo_classify::Confirm;

use super::{Context, WaitArgs, block_on, end, report, trusted};
use crate::exit::{Failure, Output, WAITS};

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
    output(&block_on(async { Ok(session.update().await?) })?)
}

fn output(updated: &Updated) -> Result<Output, Failure> {
    if updated.receipts.is_empty() {
        let json = json!({"schema": Receipt::SCHEMA, "outcome": Outcome::Unchanged});
        return Output::new("unchanged this is the newest version\n".to_owned(), &json);
    }
    let output = report(&updated.receipts.iter().collect::<Vec<_>>())?;
    Ok(if updated.is_stale { output.or_code(WAITS) } else { output })
}

fn apply_file(bundle: &Path, args: &Args, context: &Context) -> Result<Output, Failure> {
    let agent = agent_for(args, context);
    let trusted = trusted(&args.trust, context)?;
    let mut applied = agent.apply(bundle, &trusted, None, &*context.tell())?;
    // A replaced agent has to show that the new one can do it.
    if !applied.restart_self {
        match confirmed(args, context) {
            Ok(Some(receipt)) => applied.receipt = receipt,
            Ok(None) => {}
            // What was done is said all the same.
            Err(failure) => (context.tell())(failure.message()),
        }
    }
    end(applied, &agent, context)
}

/// The receipt of an update that waited to be confirmed by the repository and is; if that cannot
/// be reached, the timer goes on.
fn confirmed(args: &Args, context: &Context) -> Result<Option<Receipt>, Failure> {
    let waits = context.state.guard()?.is_some_and(|guard| guard.confirm == Confirm::Remote);
    if !waits || context.state.enrolment()?.is_none() {
        return Ok(None);
    }
    let session = context.session_of(agent_for(args, context))?;
    let is_confirmed = block_on(async { Ok(session.confirm().await?) })?;
    if is_confirmed { Ok(context.state.last_receipt()?) } else { Ok(None) }
}

fn agent_for(args: &Args, context: &Context) -> Agent {
    let agent = context.agent().with_package_wait(args.wait.get());
    if args.no_guard { agent.unguarded() } else { agent }
}

#[cfg(test)]
mod tests {
    use vireo_model::Digest;

    use super::*;

    #[test]
    fn an_agent_that_could_not_be_restarted_waits_by_its_exit_code() {
        let done =
            Receipt { outcome: Outcome::Done, ..Receipt::unchanged(Digest::of(b""), Some(2)) };
        let code = |is_stale| {
            let updated = Updated { receipts: vec![done.clone()], is_stale };
            output(&updated).expect("a receipt").code()
        };
        assert_eq!((code(false), code(true)), (0, WAITS));
        let nothing = Updated::default();
        assert_eq!(output(&nothing).expect("an answer").code(), 0);
    }
}
