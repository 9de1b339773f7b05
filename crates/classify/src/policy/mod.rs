//! What an administrator lets happen: which units are held, which files belong to which units,
//! which commands check and prove a change. All of it is data in [policy files](PolicyFile).

mod drift;
mod entries;
mod file;
mod files;
mod runs;
mod table;
mod units;

use std::sync::LazyLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vireo_model::ImagePath;

pub use drift::{DriftRule, OnConflict, OnDrift};
pub(crate) use file::Pattern;
pub use file::{MAX_POLICY_LEN, PolicyFile};
pub(crate) use files::FileRule;
pub use files::Op;
pub(crate) use runs::{CheckRule, ToolRule};
pub use units::UnitRule;

use crate::class::canonical;
use crate::plan::Probe;
use crate::{Class, ClassifyError, Unit, UnitFacts};
use drift::DriftRules;
use entries::{ClassBy, Content, KeyNeeds};
use files::FileRules;
use runs::Runs;
use table::Table;
use units::UnitRules;

/// The rule pack: what is known about Linux systems in general, as policy files with their
/// names.
pub const RULE_PACK: &[(&str, &str)] = &[
    ("classes.toml", include_str!("../rulepack/classes.toml")),
    ("files.toml", include_str!("../rulepack/files.toml")),
    ("units.toml", include_str!("../rulepack/units.toml")),
    ("tools.toml", include_str!("../rulepack/tools.toml")),
    ("checks.toml", include_str!("../rulepack/checks.toml")),
    ("system.toml", include_str!("../rulepack/system.toml")),
    ("drift.toml", include_str!("../rulepack/drift.toml")),
];

/// Longest time that a policy can ask for: an update must end.
const MAX_SECONDS: u64 = 3600;

/// The rules that plans are made by. The default is the [`RULE_PACK`].
///
/// ```
/// use vireo_classify::{Policy, PolicyFile, Unit};
///
/// let text = r#"
///     version = 1
///     [[unit]]
///     unit = "postgresql@*.service"
///     max = "reload"
///     reason = "restart it in its window"
/// "#;
/// let site = PolicyFile::parse("/etc/vireo/policy.d/50-site.toml", text)?;
/// let policy = Policy::from_layers(&[], &[site])?;
/// let rule = policy.unit_rule(&Unit::new("postgresql@15-main.service"));
/// assert_eq!(rule.reload_only.as_deref(), Some("restart it in its window"));
///
/// let error = PolicyFile::parse("50-site.toml", "version = 1\n[[unit]]\nname = 1\n");
/// assert!(error.unwrap_err().to_string().starts_with("policy 50-site.toml, line 3: unknown field"));
/// # Ok::<(), vireo_classify::ClassifyError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    defaults: Defaults,
    place: Table<Class>,
    name: Table<Class>,
    files: FileRules,
    units: UnitRules,
    runs: Runs,
    connectivity: [Table<DeadManRule>; 2],
    unit_keys: Table<KeyNeeds>,
    drift: DriftRules,
}

/// What holds where no entry says otherwise: the `[defaults]` of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defaults {
    /// How long a unit may take until it counts as well.
    pub settle: Duration,
    /// Which units that an update enables are started.
    pub start_enabled: StartEnabled,
    /// What becomes of running units that an update disables or masks.
    pub on_disable: OnDisable,
    /// What becomes of configuration that no unit is known to read.
    pub unclaimed_config: Unclaimed,
    /// What becomes of an update whose units do not get well.
    pub on_health_failure: OnFailure,
}

/// Which units that an update enables are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartEnabled {
    /// None.
    Never,
    /// Those that the update brings.
    New,
    /// Those that were there, too.
    Always,
}

/// What becomes of running units that an update disables or masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDisable {
    /// They run on.
    Keep,
    /// They are stopped.
    Stop,
}

/// What becomes of configuration that no unit is known to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unclaimed {
    /// The plan lists it.
    Report,
    /// The update is refused.
    Refuse,
}

/// What becomes of an update whose units do not get well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It is undone.
    Undo,
    /// It stays, and the failure is reported.
    Keep,
}

/// Who has to confirm that a machine can still be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confirm {
    /// Nobody.
    None,
    /// Whoever can log in, by `vireo-agent confirm`; no repository is asked.
    Local,
    /// The repository, over a new connection.
    Remote,
}

/// Whose entry it is, in the order of precedence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    /// The machine's own policy.
    Site,
    /// Came with the update, signed by the administrator.
    Bundle,
    /// The rule pack.
    #[default]
    Pack,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadManRule {
    pub(crate) confirm: Confirm,
    pub(crate) timeout: Duration,
}

/// Policy files, those that count first at the front.
struct Layers<'a>(Vec<&'a PolicyFile>);

impl<'a> Layers<'a> {
    /// The entries of one table in the order in which they count, each with its file.
    fn entries<T: 'a>(
        &self,
        table: impl Fn(&'a Content) -> &'a Vec<T>,
    ) -> impl Iterator<Item = (&'a PolicyFile, &'a T)> {
        self.0.iter().flat_map(move |file| table(&file.content).iter().map(|entry| (*file, entry)))
    }
}

impl Policy {
    /// The policy that `site`'s files, then `bundle`'s, then the [`RULE_PACK`] make: the first
    /// entry that covers a file counts. Of the files of one list a later one counts before an
    /// earlier one, so give them in the order of their names.
    ///
    /// # Errors
    ///
    /// A pattern is no glob, or a time no time.
    pub fn from_layers(bundle: &[PolicyFile], site: &[PolicyFile]) -> Result<Self, ClassifyError> {
        let pack = RULE_PACK
            .iter()
            .map(|(name, text)| PolicyFile::parse(name, text))
            .collect::<Result<Vec<_>, _>>()?;
        let of_layer = |files: &[PolicyFile], layer| -> Vec<PolicyFile> {
            files.iter().rev().map(|file| PolicyFile { layer, ..file.clone() }).collect()
        };
        let (site, bundle) = (of_layer(site, Layer::Site), of_layer(bundle, Layer::Bundle));
        Self::compile(&Layers(site.iter().chain(&bundle).chain(&pack).collect()))
    }

    fn compile(layers: &Layers<'_>) -> Result<Self, ClassifyError> {
        let classes = |by| {
            let entries = layers.entries(|content| &content.class);
            Table::compile(
                entries.filter(|(_, e)| e.by == by).map(|(file, e)| (file, &e.path, e.class)),
            )
        };
        let dead_men = layers
            .entries(|content| &content.connectivity)
            .map(|(file, entry)| {
                let timeout = file.duration(&entry.timeout)?;
                Ok((file, entry, DeadManRule { confirm: entry.confirm, timeout }))
            })
            .collect::<Result<Vec<_>, ClassifyError>>()?;
        let keys = layers.entries(|content| &content.unit_keys);
        Ok(Self {
            defaults: Defaults::of_layers(layers)?,
            place: classes(ClassBy::Place)?,
            name: classes(ClassBy::Name)?,
            files: FileRules::compile(layers)?,
            units: UnitRules::compile(layers)?,
            runs: Runs::compile(layers)?,
            connectivity: [
                Table::compile(dead_men.iter().map(|(file, e, rule)| (*file, &e.path, *rule)))?,
                Table::compile(dead_men.iter().map(|(file, e, rule)| (*file, &e.unit, *rule)))?,
            ],
            unit_keys: Table::compile(keys.map(|(file, e)| (file, &e.key, e.needs)))?,
            drift: DriftRules::compile(layers)?,
        })
    }

    /// What holds where no entry says otherwise.
    #[must_use]
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// What becomes of a file of `class` at `path` that was edited locally.
    #[must_use]
    pub fn drift_rule(&self, path: &ImagePath, class: Class) -> DriftRule {
        self.drift.rule(path, class)
    }

    /// What may be done to a unit of this name.
    #[must_use]
    pub fn unit_rule(&self, unit: &Unit) -> UnitRule {
        self.units.of_name(unit)
    }

    /// Why `unit` is never acted upon, if so.
    #[must_use]
    pub fn hold_reason(&self, unit: &Unit) -> Option<String> {
        self.unit_rule(unit).hold
    }

    /// Whether a reload of `unit` executes its program anew.
    #[must_use]
    pub fn reload_reexecs(&self, unit: &Unit) -> bool {
        self.unit_rule(unit).reload_reexecs
    }

    /// The paths whose existence decides over tools and checkers: look which of them are there
    /// and put those into [`Host::present`](crate::Host::present). A last component may have `*`
    /// in it; then anything that matches will do.
    #[must_use]
    pub fn paths_wanted(&self) -> Vec<String> {
        let tools = self.runs.tools.all().iter().filter_map(|rule| rule.needs.clone());
        let checks = self.runs.checks.all().iter().map(|rule| rule.needs.clone());
        let mut wanted: Vec<String> = tools.chain(checks).collect();
        wanted.sort();
        wanted.dedup();
        wanted
    }

    /// Classes by place, then by name; the look at the content comes between the two.
    pub(crate) fn class_by_place(&self, place: &[u8]) -> Option<Class> {
        self.place.first(place).map(|(_, class)| *class)
    }

    pub(crate) fn class_by_name(&self, place: &[u8]) -> Option<Class> {
        self.name.first(place).map(|(_, class)| *class)
    }

    pub(crate) fn unit_rule_of(&self, unit: &UnitFacts) -> UnitRule {
        self.units.of_unit(unit)
    }

    /// The first rule for the file at `path`.
    pub(crate) fn file_rule(&self, path: &ImagePath) -> Option<FileRule<'_>> {
        self.files.first(path)
    }

    /// Whether what a change of the file at `path` needs depends on which settings change.
    pub(crate) fn restart_keys_matter(&self, path: &ImagePath) -> bool {
        self.file_rule(path).is_some_and(|rule| rule.has_restart_keys())
    }

    pub(crate) fn tools_for(&self, path: &ImagePath) -> impl Iterator<Item = &ToolRule> {
        self.runs.tools_for(path)
    }

    pub(crate) fn checks_for(&self, path: &ImagePath) -> impl Iterator<Item = &CheckRule> {
        self.runs.checks_for(path)
    }

    pub(crate) fn probes_of(&self, unit: &Unit) -> impl Iterator<Item = &Probe> {
        self.runs.probes_of(unit)
    }

    pub(crate) fn dead_man_for_path(&self, path: &ImagePath) -> Option<DeadManRule> {
        self.connectivity[0].first(&canonical(path)).map(|(_, rule)| *rule)
    }

    pub(crate) fn dead_man_for_unit(&self, unit: &Unit) -> Option<DeadManRule> {
        self.connectivity[1].first(unit.as_str().as_bytes()).map(|(_, rule)| *rule)
    }

    /// Whether a change of a unit file's `key` (`Service.ExecStart`) needs no restart.
    pub(crate) fn is_idle_key(&self, key: &str) -> bool {
        self.unit_keys.first(key.as_bytes()).is_some_and(|(_, needs)| *needs == KeyNeeds::Nothing)
    }
}

impl Default for Policy {
    /// The rule pack alone.
    fn default() -> Self {
        pack().clone()
    }
}

/// The rule pack, put together once.
pub(crate) fn pack() -> &'static Policy {
    static PACK: LazyLock<Policy> = LazyLock::new(|| {
        Policy::from_layers(&[], &[]).expect("the rule pack is a policy, a test sees to it")
    });
    &PACK
}

impl Defaults {
    fn of_layers(layers: &Layers<'_>) -> Result<Self, ClassifyError> {
        // The last word is the pack's, which has all of them; these stand only without it.
        let mut defaults = Self {
            settle: Duration::from_secs(5),
            start_enabled: StartEnabled::New,
            on_disable: OnDisable::Keep,
            unclaimed_config: Unclaimed::Report,
            on_health_failure: OnFailure::Undo,
        };
        for file in layers.0.iter().rev() {
            let entry = &file.content.defaults;
            if let Some(settle) = &entry.settle {
                defaults.settle = file.duration(settle)?;
            }
            defaults.start_enabled = entry.start_enabled.unwrap_or(defaults.start_enabled);
            defaults.on_disable = entry.on_disable.unwrap_or(defaults.on_disable);
            defaults.unclaimed_config = entry.unclaimed_config.unwrap_or(defaults.unclaimed_config);
            defaults.on_health_failure =
                entry.on_health_failure.unwrap_or(defaults.on_health_failure);
        }
        Ok(defaults)
    }
}

/// `5s`, `2min`; none if it is neither or longer than [`MAX_SECONDS`].
fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let scale = match unit.trim() {
        "s" => 1,
        "min" => 60,
        _ => return None,
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(scale)?;
    (seconds <= MAX_SECONDS).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
