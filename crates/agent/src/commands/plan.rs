use std::path::PathBuf;

use vireo_classify::Plan;

use super::{Context, block_on, trusted};
use crate::exit::{Failure, Output};

/// Show what an update would change, reload and restart; change nothing
///
/// Does all that `apply` does up to the commit. Without BUNDLE, the next one is fetched from the
/// repository.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bundle to plan for
    bundle: Option<PathBuf>,
    /// Accept bundles signed by this key, given as text or as a file, and by no other
    #[arg(long, value_name = "KEY", requires = "bundle")]
    trust: Vec<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Output, Failure> {
    let plan = match &args.bundle {
        Some(bundle) => Some(context.agent().plan(bundle, &trusted(&args.trust, context)?)?),
        None => {
            let session = context.session()?;
            block_on(async { Ok(session.plan().await?) })?
        }
    };
    Output::of(&plan.unwrap_or_else(Plan::empty))
}
