//! The tables of a policy file as they are written. What they mean is in `docs/format/policy.md`.

use serde::Deserialize;
use toml::Spanned;

use super::drift::{OnConflict, OnDrift};
use super::file::Patterns;
use super::{Confirm, OnDisable, OnFailure, Op, StartEnabled, Unclaimed};
use crate::plan::ProbeFailure;
use crate::{Class, Tool};

/// A whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Content {
    pub(super) version: Spanned<u32>,
    #[serde(default)]
    pub(super) defaults: DefaultsEntry,
    #[serde(default)]
    pub(super) class: Vec<ClassEntry>,
    #[serde(default)]
    pub(super) file: Vec<FileEntry>,
    #[serde(default)]
    pub(super) unit: Vec<Spanned<UnitEntry>>,
    #[serde(default)]
    pub(super) tool: Vec<ToolEntry>,
    #[serde(default)]
    pub(super) validate: Vec<ValidateEntry>,
    #[serde(default)]
    pub(super) probe: Vec<ProbeEntry>,
    #[serde(default)]
    pub(super) connectivity: Vec<ConnectivityEntry>,
    #[serde(default)]
    pub(super) unit_keys: Vec<UnitKeysEntry>,
    #[serde(default)]
    pub(super) drift: Vec<DriftEntry>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DefaultsEntry {
    pub(super) settle: Option<Spanned<String>>,
    pub(super) start_enabled: Option<StartEnabled>,
    pub(super) on_disable: Option<OnDisable>,
    pub(super) unclaimed_config: Option<Unclaimed>,
    pub(super) on_health_failure: Option<OnFailure>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ClassEntry {
    pub(super) path: Patterns,
    pub(super) class: Class,
    pub(super) by: ClassBy,
}

/// Whether a path alone decides, or only where the content does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ClassBy {
    Place,
    Name,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct FileEntry {
    pub(super) path: Patterns,
    pub(super) units: Option<Patterns>,
    pub(super) op: Option<Op>,
    /// Settings in the file that only a restart takes up.
    #[serde(default)]
    pub(super) restart_keys: Patterns,
    #[serde(default)]
    pub(super) shared: bool,
    pub(super) note: Option<String>,
}

/// A command line: words, for no shell; at least the program.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub(super) struct Command(pub(super) Vec<String>);

impl TryFrom<Vec<String>> for Command {
    type Error = &'static str;

    fn try_from(words: Vec<String>) -> Result<Self, Self::Error> {
        match words.first() {
            Some(program) if !program.is_empty() => Ok(Self(words)),
            _ => Err("a command without a program"),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct UnitEntry {
    #[serde(default)]
    pub(super) unit: Patterns,
    #[serde(default)]
    pub(super) program: Patterns,
    pub(super) hold: Option<Hold>,
    pub(super) max: Option<Ceiling>,
    pub(super) reason: Option<String>,
    pub(super) reload_reexecs: Option<bool>,
    pub(super) reload_rereads_code: Option<bool>,
    #[serde(default)]
    pub(super) unless_argument: Patterns,
}

/// Why a unit is held, or `false`: it is not, whatever weaker entries say.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Hold {
    Because(String),
    Is(bool),
}

/// The greatest action that a unit gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ceiling {
    Reload,
    Restart,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ToolEntry {
    pub(super) stage: Tool,
    pub(super) path: Patterns,
    pub(super) run: Command,
    pub(super) run_keys: Option<Command>,
    #[serde(default)]
    pub(super) key: String,
    #[serde(default)]
    pub(super) unless: Patterns,
    pub(super) needs: Option<String>,
    #[serde(default)]
    pub(super) removed: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ValidateEntry {
    pub(super) path: Patterns,
    #[serde(default)]
    pub(super) unit: Patterns,
    pub(super) run: Command,
    pub(super) needs: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ProbeEntry {
    pub(super) unit: Patterns,
    pub(super) run: Command,
    pub(super) user: Option<String>,
    pub(super) expect: Option<String>,
    pub(super) on_failure: ProbeFailure,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ConnectivityEntry {
    #[serde(default)]
    pub(super) path: Patterns,
    #[serde(default)]
    pub(super) unit: Patterns,
    pub(super) confirm: Confirm,
    pub(super) timeout: Spanned<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct UnitKeysEntry {
    pub(super) key: Patterns,
    pub(super) needs: KeyNeeds,
}

/// What a change of a key of a unit file needs beside the manager reading the file again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KeyNeeds {
    Nothing,
    Restart,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DriftEntry {
    pub(super) path: Patterns,
    /// None: whatever the class.
    #[serde(default)]
    pub(super) class: Vec<Class>,
    pub(super) on: OnDrift,
    pub(super) conflict: Option<OnConflict>,
}
