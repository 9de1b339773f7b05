use serde_json::json;
use vireo_agent::client::{EnrollOptions, enroll, show_position};
use vireo_model::ImageName;
use vireo_wire::Token;

use super::{Context, block_on};
use crate::exit::{Failure, Output};

/// Make this machine an instance of an image in a repository
///
/// Reads all of its files once: they must be those of one of the image's versions.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The repository's address, https://HOST:PORT
    url: String,
    /// Enrolment token, as `vireo-repo token create` prints it, or @FILE
    #[arg(long, env = "VIREO_TOKEN", hide_env_values = true)]
    token: String,
    /// The image that this machine was launched from
    #[arg(long, value_name = "NAME")]
    image: ImageName,
    /// What this machine is called [default: its host name]
    #[arg(long)]
    name: Option<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Output, Failure> {
    let options = EnrollOptions {
        url: args.url.clone(),
        token: read_token(&args.token)?,
        image: args.image.clone(),
        name: args.name.clone().map_or_else(host_name, Ok)?,
    };
    let (enrolment, position) =
        block_on(async { Ok(enroll(&context.root, &context.state, &options).await?) })?;
    let text = format!(
        "enrolled  {} as {} of image {}, on {}\n",
        options.name,
        enrolment.instance,
        enrolment.image,
        show_position(&position)
    );
    let json = json!({
        "schema": "vireo.enrolment/1",
        "instance": enrolment.instance,
        "image": enrolment.image,
        "version": position.number,
        "tree": position.tree,
    });
    Output::new(text, &json)
}

fn read_token(given: &str) -> Result<Token, Failure> {
    let text = match given.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| Failure::new(format!("cannot read the token file {file}: {error}")))?,
        None => given.to_owned(),
    };
    text.trim().parse().map_err(|error| Failure::new(format!("cannot enrol: {error}")))
}

fn host_name() -> Result<String, Failure> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let name = name
        .map_err(|error| Failure::new(format!("cannot read the host name: {error}; say --name")))?;
    Ok(name.trim().to_owned())
}
