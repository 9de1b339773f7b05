//! Publishes a raw disk image to EC2, with credentials from the SDK's chain:
//!
//! ```text
//! publish SETTINGS.json STATE-DIR IMAGE VERSION DISK [EARLIER-VERSION EARLIER-DISK]
//! ```
//!
//! The version's tree is named by its number here; a repository knows the tree's own digest.

use std::env;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use vireo_cloud::{Cloud as _, Earlier, Publication};
use vireo_ec2::Ec2;
use vireo_model::{Digest, ImageName};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let (settings, dir, image, version, disk, earlier) = match args {
        [settings, dir, image, version, disk, earlier @ ..] => {
            (settings, dir, image, version, disk, earlier)
        }
        _ => return Err("give SETTINGS.json STATE-DIR IMAGE VERSION DISK".into()),
    };
    let image: ImageName = image.parse()?;
    let earlier = match earlier {
        [version, disk] => vec![Earlier {
            version: version.parse()?,
            tree: Digest::of(version.as_bytes()),
            disk: disk.into(),
        }],
        _ => Vec::new(),
    };
    let settings = serde_json::from_slice(&fs::read(settings)?)?;
    let ec2 =
        Ec2::connect(settings, Path::new(dir))?.with_observer(Arc::new(|call| eprintln!("{call}")));
    let launchable = ec2.publish(&Publication {
        image: &image,
        version: version.parse()?,
        tree: Digest::of(version.as_bytes()),
        disk: Path::new(disk),
        earlier: &earlier,
    })?;
    println!("{}", launchable.address);
    Ok(())
}
