//! The commands, one file each: `Args` whose comments are the help, and `run`.

use std::fs;
use std::path::Path;

use clap::Subcommand;
use vireo_delta::{DeltaError, PublicKey, SecretKey, TrustedKeys};

use crate::Context;
use crate::exit::{Failure, Report};

mod apply;
mod bundle;
mod capture;
mod diff;
mod digest;
mod grow;
mod image;
mod key;
mod log;
mod push;
mod record;
mod show;

type Outcome = Result<Box<dyn Report>, Failure>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(subcommand)]
    Key(key::Command),
    Capture(capture::Args),
    Show(show::Args),
    #[command(subcommand)]
    Bundle(bundle::Command),
    Apply(apply::Args),
    Digest(digest::Args),
    Diff(diff::Args),
    #[command(subcommand)]
    Image(image::Command),
    Push(push::Args),
    Record(record::Args),
    Log(log::Args),
}

impl Command {
    pub(crate) fn run(&self, context: &Context) -> Outcome {
        Ok(match self {
            Self::Key(command) => Box::new(command.run()?),
            Self::Capture(args) => Box::new(capture::run(args, context)?),
            Self::Show(args) => Box::new(show::run(args)?),
            Self::Bundle(command) => Box::new(command.run(context)?),
            Self::Apply(args) => Box::new(apply::run(args, context)?),
            Self::Digest(args) => Box::new(digest::run(args, context)?),
            Self::Diff(args) => Box::new(diff::run(args, context)?),
            Self::Image(command) => return command.run(context),
            Self::Push(args) => Box::new(push::run(args, context)?),
            Self::Record(args) => Box::new(record::run(args, context)?),
            Self::Log(args) => Box::new(log::run(args)?),
        })
    }
}

/// The key that signs, from its file.
fn secret_key(path: &Path) -> Result<SecretKey, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        let absent = error.kind() == std::io::ErrorKind::NotFound;
        let failure = Failure::io("read the key", path, error);
        if absent { failure.hint("make one with `vireo key generate`") } else { failure }
    })?;
    text.parse().map_err(|error: DeltaError| {
        Failure::refused(format!("cannot use the key {}", path.display()))
            .caused_by(error)
            .hint("make one with `vireo key generate`")
    })
}

/// Public keys given as text or in files, one a line.
fn public_keys(given: &[String]) -> Result<Vec<PublicKey>, Failure> {
    let mut keys = Vec::new();
    for text in given {
        if PublicKey::is_meant_by(text) {
            let unusable = |error: DeltaError| {
                Failure::refused(format!("cannot use the public key {text}")).caused_by(error)
            };
            keys.push(text.parse().map_err(unusable)?);
            continue;
        }
        let path = Path::new(text);
        let content = fs::read_to_string(path)
            .map_err(|error| Failure::io("read the public key", path, error))?;
        let listed: TrustedKeys = content.parse().map_err(|error: DeltaError| {
            let message = format!("cannot use the public key in {}", path.display());
            Failure::refused(message).caused_by(error)
        })?;
        keys.extend(listed.iter());
    }
    Ok(keys)
}

/// Bytes for people: `1.4 MB`; SI units, as download sizes are given.
fn bytes(len: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = len as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{len} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_shown_in_the_unit_a_person_would_pick() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_390_000), "1.4 MB");
        assert_eq!(bytes(4 << 30), "4.3 GB");
    }
}
