//! `vireo-repo worker`

use std::io;
use std::path::Path;

use crate::exit::Failure;

/// Does the one job that the server tells it. Confines itself before it looks at it.
pub(crate) fn run() -> Result<(), Failure> {
    vireo_repo::worker::work(io::stdin().lock(), io::stdout().lock())
        .map_err(|error| Failure::io("do the job of", Path::new("a worker"), &error))
}
