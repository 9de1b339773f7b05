//! A repository, over HTTPS or in a directory of this host, behind one face.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vireo_model::ImageName;
use vireo_repo::{HostImages, Repository};
use vireo_wire::api::{CreateImage, ImageLog, PushOptions, PushReply, VerifyReply, VersionEntry};
use vireo_wire::{Client, Progress, Token};

use crate::exit::Failure;

/// Which repository, and with what right.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RepoArgs {
    /// The repository: its address (https://HOST:PORT), or its directory on this host
    #[arg(long, value_name = "URL|DIR", env = "VIREO_REPO")]
    repo: String,
    /// The administrator's token for an address, or @FILE with it
    #[arg(long, value_name = "TOKEN|@FILE", env = "VIREO_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// An open repository.
pub(crate) enum Repo {
    Remote { client: Box<Client>, runtime: tokio::runtime::Runtime },
    Local(Box<Repository>),
}

/// Told while bytes move.
pub(crate) type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

impl RepoArgs {
    pub(crate) fn open(&self) -> Result<Repo, Failure> {
        if !self.repo.contains("://") {
            let clock = Arc::new(jiff::Timestamp::now);
            let repository = Repository::open(Path::new(&self.repo), Box::new(HostImages), clock)?;
            return Ok(Repo::Local(Box::new(repository)));
        }
        let token = self.token()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new("cannot start the network runtime").caused_by(error))?;
        let client = Box::new(runtime.block_on(Client::connect(&self.repo, &token))?);
        Ok(Repo::Remote { client, runtime })
    }

    fn token(&self) -> Result<Token, Failure> {
        let Some(text) = &self.token else {
            return Err(Failure::refused(format!("{} asks for a token", self.repo))
                .hint("give it with --token @FILE; `vireo-repo init` stored it as admin-token in its directory"));
        };
        let text = match text.strip_prefix('@') {
            Some(file) => {
                let path = PathBuf::from(file);
                fs::read_to_string(&path)
                    .map_err(|error| Failure::io("read the token in", &path, error))?
            }
            None => text.clone(),
        };
        text.trim()
            .parse()
            .map_err(|error| Failure::refused("cannot use the token").caused_by(error))
    }
}

impl Repo {
    pub(crate) fn create_image(
        &self,
        name: &ImageName,
        disk: &Path,
        options: &CreateImage,
        progress: OnProgress<'_>,
    ) -> Result<VersionEntry, Failure> {
        Ok(match self {
            Self::Local(repository) => repository.create_image(name, disk, options)?,
            Self::Remote { client, runtime } => {
                runtime.block_on(client.create_image(name, disk, options, progress))?
            }
        })
    }

    pub(crate) fn push(
        &self,
        name: &ImageName,
        bundle: &[u8],
        options: PushOptions,
        progress: OnProgress<'_>,
    ) -> Result<PushReply, Failure> {
        Ok(match self {
            Self::Local(repository) => repository.push_bundle_with(name, bundle, options)?,
            Self::Remote { client, runtime } => {
                runtime.block_on(client.push_bundle_with(name, bundle, options, progress))?
            }
        })
    }

    pub(crate) fn log(&self, name: &ImageName) -> Result<ImageLog, Failure> {
        Ok(match self {
            Self::Local(repository) => repository.log(name)?,
            Self::Remote { client, runtime } => runtime.block_on(client.log(name))?,
        })
    }

    /// Copies the disk image of a version to `to`; gives back its length.
    pub(crate) fn export(
        &self,
        name: &ImageName,
        version: u64,
        to: &Path,
        progress: OnProgress<'_>,
    ) -> Result<u64, Failure> {
        Ok(match self {
            Self::Local(repository) => repository.export(name, version, to)?,
            Self::Remote { client, runtime } => {
                runtime.block_on(client.export_image(name, version, to, progress))?
            }
        })
    }

    pub(crate) fn verify(&self, name: &ImageName, version: u64) -> Result<VerifyReply, Failure> {
        Ok(match self {
            Self::Local(repository) => repository.verify(name, version)?,
            Self::Remote { client, runtime } => {
                runtime.block_on(client.verify_image(name, version))?
            }
        })
    }

    /// The version's number, the newest if none is named.
    pub(crate) fn version(&self, name: &ImageName, version: Option<u64>) -> Result<u64, Failure> {
        if let Some(version) = version {
            return Ok(version);
        }
        let log = self.log(name)?;
        let newest = log.newest().map(|version| version.number);
        newest.ok_or_else(|| Failure::new(format!("image {name} has no version")))
    }
}
