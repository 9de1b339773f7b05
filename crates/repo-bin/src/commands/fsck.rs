//! `vireo-repo fsck`

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;
use vireo_repo::FsckReport;

use super::Data;
use crate::exit::{FAILED, Failure};
use crate::report::Report;

/// Check the whole repository: hash every bundle, read every listing and record
///
/// Changes nothing; a server may run meanwhile. The content of disk images is checked by `vireo
/// image verify`. Exits with 1 if something is damaged.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    data: Data,
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Checked(FsckReport);

impl Report for Checked {
    const SCHEMA: &'static str = "vireo.fsck/1";
}

impl Checked {
    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.0.findings.is_empty() { ExitCode::SUCCESS } else { FAILED.into() }
    }
}

pub(crate) fn run(args: &Args) -> Result<Checked, Failure> {
    Ok(Checked(args.data.open()?.fsck()?))
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FsckReport { bundles, versions, trees, records, findings, unused } = &self.0;
        for finding in findings {
            writeln!(f, "damaged  {}: {}", finding.path.display(), finding.what)?;
        }
        for path in unused {
            writeln!(f, "unused   {}", path.display())?;
        }
        write!(
            f,
            "checked {bundles} bundles, {versions} versions, {trees} listings, {records} records: "
        )?;
        match findings.len() {
            0 => write!(f, "all are whole"),
            count => write!(f, "{count} damaged"),
        }
    }
}
