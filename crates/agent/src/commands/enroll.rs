use std::path::Path;

use serde_json::json;
use vireo_agent::client::{EnrollOptions, enroll, show_position};
use vireo_agent::is_own_root;
use vireo_model::ImageName;
use vireo_wire::Token;

use super::{Context, block_on};
use crate::exit::{Failure, Output};

/// Where the kernel shows what the firmware calls the machine: on EC2 (Nitro) the instance's identity.
const ASSET_TAG: &str = "/sys/class/dmi/id/board_asset_tag";

/// How many digits identities of instances have, old and new ones.
const INSTANCE_DIGITS: [usize; 2] = [8, 17];

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
    /// What the cloud calls this machine [default: on EC2 its instance's identity]
    #[arg(long, value_name = "ID")]
    cloud_id: Option<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Output, Failure> {
    let options = EnrollOptions {
        url: args.url.clone(),
        token: read_token(&args.token)?,
        image: args.image.clone(),
        name: args.name.clone().map_or_else(host_name, Ok)?,
        cloud_id: args.cloud_id.clone(),
        found_cloud_id: cloud_id(&context.root, Path::new(ASSET_TAG)),
    };
    let tell = context.tell();
    let (enrolment, position) =
        block_on(async { Ok(enroll(&context.root, &context.state, &options, &tell).await?) })?;
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

/// What the firmware says of the machine whose root is `root`: of no other than this one. Elsewhere than on
/// EC2 that is something else, or nothing.
fn cloud_id(root: &Path, asset_tag: &Path) -> Option<String> {
    if !is_own_root(root) {
        return None;
    }
    instance_id(&std::fs::read_to_string(asset_tag).ok()?)
}

/// The identity of an instance of EC2, if the text is one.
fn instance_id(text: &str) -> Option<String> {
    let text = text.trim();
    let digits = text.strip_prefix("i-")?;
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let good = INSTANCE_DIGITS.contains(&digits.len()) && digits.bytes().all(is_hex);
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_root_has_not_the_identity_of_this_machine() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tag = dir.path().join("board_asset_tag");
        std::fs::write(&tag, "i-0abc1234\n").expect("written");
        assert_eq!(cloud_id(Path::new("/"), &tag).as_deref(), Some("i-0abc1234"));
        assert_eq!(cloud_id(dir.path(), &tag), None);
    }

    #[test]
    fn only_what_looks_like_an_instance_of_ec2_is_taken_from_the_firmware() {
        for id in ["i-0abc1234", "i-0123456789abcdef0"] {
            assert_eq!(instance_id(&format!("{id}\n")), Some(id.to_owned()));
        }
        for text in ["", "i-", "Not Specified", "i-0ABC1234", "i-0abc123", "x-0abc1234"] {
            assert_eq!(instance_id(text), None, "{text}");
        }
    }
}
