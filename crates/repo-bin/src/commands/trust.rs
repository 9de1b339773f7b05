//! `vireo-repo trust`

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;
use vireo_delta::PublicKey;
use vireo_model::ImageName;

use super::Data;
use crate::exit::Failure;
use crate::report::Report;

/// Accept bundles that a key signed
///
/// A server that runs uses it from its next push on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    data: Data,
    /// Public key, `vireo-key-v1:...`, or @FILE that has it
    #[arg(value_name = "PUBKEY")]
    key: String,
    /// For this image alone; without it, for all
    #[arg(long, value_name = "NAME")]
    image: Option<ImageName>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Trusted {
    key: PublicKey,
    image: Option<ImageName>,
}

impl Report for Trusted {
    const SCHEMA: &'static str = "vireo.trust/1";
}

pub(crate) fn run(args: &Args) -> Result<Trusted, Failure> {
    let key = parse_key(&args.key)?;
    args.data.open()?.trust(key, args.image.as_ref())?;
    Ok(Trusted { key, image: args.image.clone() })
}

fn parse_key(text: &str) -> Result<PublicKey, Failure> {
    let text = match text.strip_prefix('@') {
        Some(path) => fs::read_to_string(path)
            .map_err(|error| Failure::io("read the key in", Path::new(path), &error))?,
        None => text.to_owned(),
    };
    text.trim().parse().map_err(|error| {
        Failure::usage(format!(
            "{error}; `vireo key generate` makes one, give its public half or @FILE"
        ))
    })
}

impl fmt::Display for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.image {
            Some(image) => write!(f, "bundles for {image} are accepted from {}", self.key),
            None => write!(f, "bundles for all images are accepted from {}", self.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_text_or_in_a_file() {
        let text = format!("vireo-key-v1:{}", "11".repeat(32));
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("key.pub");
        fs::write(&path, format!("{text}\n")).expect("writable");
        for given in [text.clone(), format!("@{}", path.display())] {
            assert_eq!(parse_key(&given).expect("a key").to_string(), text);
        }
        for given in ["x", "@/nonexistent/key"] {
            assert!(parse_key(given).is_err(), "{given}");
        }
    }
}
