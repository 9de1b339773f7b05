//! `vireo-repo token`

use std::fmt;

use serde::Serialize;
use vireo_model::ImageName;

use super::Data;
use crate::exit::Failure;
use crate::report::Report;

/// Make tokens
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Create(CreateArgs),
}

/// Make a token that enrols machines, and print it once
///
/// Any number of machines can be enrolled with it; each gets a credential of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    data: Data,
    /// Enrols machines of this image alone; without it, of any
    #[arg(long, value_name = "NAME")]
    image: Option<ImageName>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Created {
    token: String,
    image: Option<ImageName>,
}

impl Report for Created {
    const SCHEMA: &'static str = "vireo.token/1";
}

pub(crate) fn run(command: &Command) -> Result<Created, Failure> {
    let Command::Create(args) = command;
    let token = args.data.open()?.create_enroll_token(args.image.as_ref())?;
    Ok(Created { token: token.to_string(), image: args.image.clone() })
}

impl fmt::Display for Created {
    /// The token alone, so that it can be piped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.token)
    }
}
