//! One module per command: its arguments, whose comments are the help text, and what it does.

#[cfg(feature = "ec2")]
pub(crate) mod ec2;
pub(crate) mod fsck;
pub(crate) mod init;
pub(crate) mod serve;
pub(crate) mod token;
pub(crate) mod trust;
pub(crate) mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use vireo_repo::{HostImages, ImageBuilder, Repository};

use crate::exit::Failure;

/// The repository's directory, which most commands need.
#[derive(Debug, clap::Args)]
pub(crate) struct Data {
    /// Directory of the repository
    #[arg(long = "data", value_name = "DIR", env = "VIREO_DATA")]
    dir: PathBuf,
}

impl Data {
    pub(crate) fn open(&self) -> Result<Repository, Failure> {
        open(&self.dir, Box::new(HostImages))
    }

    pub(crate) fn open_with(&self, builder: Box<dyn ImageBuilder>) -> Result<Repository, Failure> {
        open(&self.dir, builder)
    }
}

fn open(dir: &Path, builder: Box<dyn ImageBuilder>) -> Result<Repository, Failure> {
    Ok(Repository::open(dir, builder, Arc::new(Timestamp::now))?)
}
