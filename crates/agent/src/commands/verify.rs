use super::{Context, block_on};
use crate::exit::{FAILED, Failure, Output};

/// Compare this machine's files with its version, every one of them
///
/// Exits with 0 if they are equal, with 1 if not: then every differing path is listed with how
/// it differs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(super) fn run(_args: &Args, context: &Context) -> Result<Output, Failure> {
    let session = context.session()?;
    let report = block_on(async { Ok(session.verify().await?) })?;
    let code = if report.is_equal() { 0 } else { FAILED };
    Ok(Output::of(&report)?.with_code(code))
}
