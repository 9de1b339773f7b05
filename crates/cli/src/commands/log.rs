use serde::Serialize;
use vireo_model::ImageName;
use vireo_wire::api::ImageLog;

use super::bytes;
use crate::exit::{Failure, Report, json};
use crate::repository::RepoArgs;

/// List the versions of an image, the newest first
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image's name
    #[arg(value_name = "NAME")]
    name: ImageName,
    #[command(flatten)]
    repo: RepoArgs,
}

#[derive(Debug, Serialize)]
pub(crate) struct Logged(ImageLog);

pub(crate) fn run(args: &Args) -> Result<Logged, Failure> {
    Ok(Logged(args.repo.open()?.log(&args.name)?))
}

impl Report for Logged {
    fn to_text(&self) -> String {
        let ImageLog { name, versions, .. } = &self.0;
        let lines: Vec<String> = versions
            .iter()
            .rev()
            .map(|version| {
                let by = version
                    .signer
                    .map_or("base".to_owned(), |signer| format!("signed by {signer}"));
                let created = version.created.strftime("%Y-%m-%d %H:%M:%SZ");
                format!(
                    "{name}@{}  {}  {created}  {}  {by}",
                    version.number,
                    version.tree.short(),
                    bytes(version.wire_bytes)
                )
            })
            .collect();
        lines.join("\n")
    }

    fn to_json(&self) -> String {
        json("vireo.log/1", self)
    }
}
