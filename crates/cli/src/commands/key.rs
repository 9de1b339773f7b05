use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vireo_delta::{PublicKey, SecretKey};

use crate::exit::{Failure, Report, json};

/// Make and show signing keys
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Generate(Generate),
}

/// Make a key pair that signs bundles
///
/// Writes `vireo.key`, which only its owner can read, and `vireo.pub`. The secret key never
/// leaves this machine; the public key goes to whoever is to trust the bundles.
#[derive(Debug, clap::Args)]
pub(crate) struct Generate {
    /// Directory for the two files
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

#[derive(Debug, Serialize)]
pub(crate) struct Generated {
    secret_file: PathBuf,
    public_file: PathBuf,
    public_key: PublicKey,
}

impl Command {
    pub(crate) fn run(&self) -> Result<Generated, Failure> {
        match self {
            Self::Generate(args) => generate(args),
        }
    }
}

fn generate(args: &Generate) -> Result<Generated, Failure> {
    fs::create_dir_all(&args.out)
        .map_err(|error| Failure::io("make the directory", &args.out, error))?;
    let secret_file = args.out.join("vireo.key");
    let public_file = args.out.join("vireo.pub");
    let key = SecretKey::generate()
        .map_err(|error| Failure::new("cannot make a key").caused_by(error))?;
    write_once(&secret_file, 0o600, &key.to_secret_text())?;
    write_once(&public_file, 0o644, &key.public().to_string())?;
    Ok(Generated { secret_file, public_file, public_key: key.public() })
}

/// A key is never overwritten: what it signed could not be vouched for any more.
fn write_once(path: &Path, mode: u32, text: &str) -> Result<(), Failure> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|error| {
            let failure = Failure::io("make", path, error);
            if path.exists() {
                failure.hint("a key is there already; choose another directory with --out")
            } else {
                failure
            }
        })?;
    writeln!(file, "{text}")
        .and_then(|()| file.sync_all())
        .map_err(|error| Failure::io("write", path, error))
}

impl Report for Generated {
    fn to_text(&self) -> String {
        format!(
            "secret key  {}  (keep it; it signs)\npublic key  {}  (give it to those who trust it)\n{}",
            self.secret_file.display(),
            self.public_file.display(),
            self.public_key
        )
    }

    fn to_json(&self) -> String {
        json("vireo.key/1", self)
    }
}
