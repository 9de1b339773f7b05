//! What the files of the agent's directory say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vireo_classify::{FileId, Plan, Unit};
use vireo_delta::{PublicKey, TrustedKeys};
use vireo_model::{Digest, Ignore, ImageName};
use vireo_tree::apply::Settlement;
use vireo_wire::Secret;
use vireo_wire::api::InstanceId;

use crate::checks::CheckReport;
use crate::error::{AgentError, ErrorKind};
use crate::receipt::ActionReport;

/// Who this machine is, and to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// The repository's address.
    pub url: String,
    /// The repository's CA certificate, PEM.
    pub ca: String,
    /// This machine's identity.
    pub instance: InstanceId,
    /// This machine's credential.
    pub secret: Secret,
    /// The image that it follows.
    pub image: ImageName,
    /// Keys whose bundles it accepts.
    pub trusted: Vec<PublicKey>,
    /// Patterns of the ignore list, defaults included.
    pub ignore: Vec<String>,
}

impl Enrolment {
    /// The keys whose bundles it accepts.
    #[must_use]
    pub fn trusted_keys(&self) -> TrustedKeys {
        self.trusted.iter().copied().collect()
    }

    /// The ignore list.
    ///
    /// # Errors
    ///
    /// `State` if a pattern is no glob.
    pub fn ignore_list(&self) -> Result<Ignore, AgentError> {
        Ignore::new(self.ignore.iter().cloned()).map_err(|error| {
            AgentError::new(
                ErrorKind::State,
                "the enrolment's ignore list cannot be used; enrol again",
            )
            .caused_by(error)
        })
    }
}

/// The version that the machine is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Its number in the repository, if known: a bundle applied by hand has none.
    pub number: Option<u64>,
    /// Digest of its tree.
    pub tree: Digest,
}

/// A local edit that an update met, as `verify` explains it later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// Where, in printable form.
    pub path: String,
    /// What became of it.
    pub how: Settlement,
    /// Where the other version of the file was put.
    pub beside: Option<String>,
    /// Number of the transaction that met it.
    pub transaction: u64,
}

/// An update between the decision to commit it and its receipt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Obligation {
    /// The version it leads to.
    pub position: Position,
    /// What is to be done once the files are there.
    pub plan: Plan,
    /// The files that it replaces.
    pub replaced: Vec<FileId>,
    /// Which boot of the machine decided it; after another one every process is fresh.
    pub boot: String,
    /// The version that it takes back and that is not to come back by itself.
    #[serde(default)]
    pub hold: Option<Position>,
    /// The units that ran when it was decided.
    #[serde(default)]
    pub running: Vec<Unit>,
    /// What the checks before the commit said.
    #[serde(default)]
    pub checks: Vec<CheckReport>,
    /// What was done before the commit.
    #[serde(default)]
    pub actions: Vec<ActionReport>,
    /// Why an update is taken back by itself; nothing otherwise.
    #[serde(default)]
    pub undone_because: Vec<String>,
}

/// Files that updates of one boot replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Which boot.
    pub boot: String,
    /// By the number of the transaction.
    pub files: BTreeMap<u64, Vec<FileId>>,
}

/// Files that stay beside a version as long as a kernel runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The kernel's release.
    pub release: String,
    /// The paths, in printable form, by the number of the transaction that removed them.
    pub paths: BTreeMap<u64, Vec<String>>,
}

/// An update that is undone by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condemned {
    /// Its number.
    pub transaction: u64,
    /// The boot in which it was condemned; the next one starts what is to run by itself.
    pub boot: String,
    /// Why.
    pub because: Vec<String>,
    /// The units that are to run again.
    pub revive: Vec<Unit>,
    /// Those of them that were not well: they are started again whatever became of them.
    #[serde(default)]
    pub ill: Vec<Unit>,
    /// What was done for it.
    pub actions: Vec<ActionReport>,
    /// What the checks before it said.
    pub checks: Vec<CheckReport>,
}
