use serde_json::json;
use vireo_tree::apply::Direction;

use super::{Context, end};
use crate::exit::{Failure, Output};

/// Finish an update that was interrupted
///
/// Runs by itself at every boot, before services start, and whenever the agent starts. Exits with 3
/// if something waits to take effect or to be confirmed, with 4 if the update was undone because
/// something was ill after it, with 5, with the paths, if somebody else changed what was left to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Take back what was changed, instead of completing it
    #[arg(long)]
    back: bool,
    /// Only bring the files to one state; services are left to the next start of the agent
    #[arg(long)]
    files: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Output, Failure> {
    let agent = context.agent();
    let direction = if args.back { Direction::Back } else { Direction::Forward };
    if args.files || args.back {
        let found = agent.recover_files(direction)?;
        let text = if found { "the files are complete\n" } else { "nothing was interrupted\n" };
        return Output::new(text.to_owned(), &json!({"schema": "vireo.recover/1", "found": found}));
    }
    match agent.recover(&*context.tell())? {
        Some(applied) => end(applied, &agent, context),
        None => Output::new(
            "nothing was interrupted\n".to_owned(),
            &json!({"schema": "vireo.recover/1", "found": false}),
        ),
    }
}
