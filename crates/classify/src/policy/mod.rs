//! What an administrator lets happen: which units are held, which files belong to which units.

use vireo_model::ImagePath;

mod drift;
mod file;

pub use drift::{DriftRule, OnConflict, OnDrift};
pub(crate) use file::Pattern;
pub use file::{MAX_POLICY_LEN, PolicyFile};

use crate::class::canonical;
use crate::glob::Globs;
use crate::{Class, ClassifyError, Tool, Unit, rules};
use drift::DriftRules;
use file::Content;

/// The rule pack's files: what is known about Linux systems in general.
const RULE_PACK: &[(&str, &str)] = &[("drift.toml", include_str!("../rulepack/drift.toml"))];

/// What makes a unit read a changed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing need be done.
    Nothing,
    /// A reload if the unit can, else a restart.
    Reload,
    /// A restart; a reload would not read the file.
    Restart,
}

/// Which units read the files at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRule {
    /// Glob on the path.
    pub paths: String,
    /// Globs on the units' names.
    pub units: Vec<String>,
    /// What makes them read it.
    pub effect: Effect,
}

/// The rules that plans are made by. The default is the [rule pack](rules).
#[derive(Clone, Debug)]
pub struct Policy {
    held: (Globs, Vec<String>),
    reexecs: Globs,
    config: Globs,
    config_rules: Vec<(String, Globs, Effect)>,
    shared: (Globs, Vec<String>),
    tools: (Globs, Vec<Tool>),
    drift: DriftRules,
}

/// Policy files, those that count first at the front.
pub(crate) struct Layers<'a>(Vec<&'a PolicyFile>);

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
    /// The policy that `site`'s files, then `bundle`'s, then the [rule pack](rules) make: the
    /// first entry that covers a file counts. Of the files of one list a later one counts
    /// before an earlier one, so give them in the order of their names.
    ///
    /// # Errors
    ///
    /// A pattern is no glob.
    pub fn from_layers(bundle: &[PolicyFile], site: &[PolicyFile]) -> Result<Self, ClassifyError> {
        let pack = RULE_PACK
            .iter()
            .map(|(name, text)| PolicyFile::parse(name, text))
            .collect::<Result<Vec<_>, _>>()?;
        let files = site.iter().rev().chain(bundle.iter().rev()).chain(&pack);
        let layers = Layers(files.collect());
        let drift = DriftRules::compile(&layers)?;
        Ok(Self { drift, ..Self::with_site(&[], &[])? })
    }

    /// What becomes of a file of `class` at `path` that was edited locally.
    #[must_use]
    pub fn drift_rule(&self, path: &ImagePath, class: Class) -> DriftRule {
        self.drift.rule(path, class)
    }

    /// The rule pack with `site`'s own rules before it, and further units to hold (pattern and
    /// reason).
    ///
    /// # Errors
    ///
    /// The first pattern that is no glob.
    pub fn with_site(
        site: &[ConfigRule],
        hold: &[(String, String)],
    ) -> Result<Self, ClassifyError> {
        let pack = rules::CONFIG_RULES.iter().map(|(paths, units, effect)| ConfigRule {
            paths: (*paths).to_owned(),
            units: units.iter().map(|unit| (*unit).to_owned()).collect(),
            effect: *effect,
        });
        let config: Vec<ConfigRule> = site.iter().cloned().chain(pack).collect();
        let pack =
            rules::HELD_UNITS.iter().map(|(unit, why)| ((*unit).to_owned(), (*why).to_owned()));
        let held: Vec<(String, String)> = hold.iter().cloned().chain(pack).collect();
        Ok(Self {
            held: (
                Globs::new(held.iter().map(|(pattern, _)| pattern.as_str()))?,
                held.iter().map(|(_, why)| why.clone()).collect(),
            ),
            reexecs: Globs::new(rules::RELOAD_REEXECS.iter().copied())?,
            config: Globs::new(config.iter().map(|rule| rule.paths.as_str()))?,
            config_rules: config
                .into_iter()
                .map(|rule| {
                    let units = Globs::new(rule.units.iter().map(String::as_str))?;
                    Ok((rule.paths, units, rule.effect))
                })
                .collect::<Result<_, ClassifyError>>()?,
            shared: (
                Globs::new(rules::SHARED_CONFIG.iter().copied())?,
                rules::SHARED_CONFIG.iter().map(|pattern| (*pattern).to_owned()).collect(),
            ),
            tools: (
                Globs::new(rules::TOOLS.iter().map(|(pattern, _)| *pattern))?,
                rules::TOOLS.iter().map(|(_, tool)| *tool).collect(),
            ),
            drift: DriftRules::compile(&Layers(Vec::new()))?,
        })
    }

    /// Why `unit` is never acted upon, if so.
    #[must_use]
    pub fn hold_reason(&self, unit: &Unit) -> Option<&str> {
        let index = self.held.0.first(unit.as_str().as_bytes())?;
        Some(&self.held.1[index])
    }

    /// Whether a reload of `unit` executes its program anew.
    #[must_use]
    pub fn reload_reexecs(&self, unit: &Unit) -> bool {
        self.reexecs.first(unit.as_str().as_bytes()).is_some()
    }

    /// The first rule for a configuration file at `path`.
    pub(crate) fn config_rule(&self, path: &ImagePath) -> Option<RuleMatch<'_>> {
        let index = self.config.first(&canonical(path))?;
        let (pattern, units, effect) = &self.config_rules[index];
        Some(RuleMatch { pattern, units, effect: *effect })
    }

    /// The pattern that says `path` is configuration which most units share.
    pub(crate) fn shared_config(&self, path: &ImagePath) -> Option<&str> {
        let index = self.shared.0.first(&canonical(path))?;
        Some(&self.shared.1[index])
    }

    /// The tool that the manager input at `path` is for.
    pub(crate) fn tool(&self, path: &ImagePath) -> Option<Tool> {
        let index = self.tools.0.first(&canonical(path))?;
        Some(self.tools.1[index])
    }
}

impl Default for Policy {
    /// The rule pack alone.
    fn default() -> Self {
        Self::from_layers(&[], &[]).expect("the rule pack's patterns are globs, a test sees to it")
    }
}

/// A rule that covers a path.
pub(crate) struct RuleMatch<'a> {
    pub(crate) pattern: &'a str,
    units: &'a Globs,
    pub(crate) effect: Effect,
}

impl RuleMatch<'_> {
    pub(crate) fn names(&self, unit: &Unit) -> bool {
        self.units.first(unit.as_str().as_bytes()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    #[test]
    fn the_rule_pack_holds_what_must_not_restart() {
        let policy = Policy::default();
        for held in [
            "dbus.service",
            "systemd-logind.service",
            "getty@tty1.service",
            "container-getty@1.service",
            "user@1000.service",
            "docker.service",
            "NetworkManager.service",
            "systemd-networkd.service",
            "gdm.service",
        ] {
            assert!(policy.hold_reason(&Unit::new(held)).is_some(), "{held}");
        }
        for free in ["nginx.service", "ssh.service", "cron.service", "dbus-org.example.service"] {
            assert_eq!(policy.hold_reason(&Unit::new(free)), None, "{free}");
        }
    }

    #[test]
    fn a_sites_rule_comes_before_the_pack() {
        let site = ConfigRule {
            paths: "/etc/nginx/shared/**".to_owned(),
            units: vec!["proxy@*.service".to_owned()],
            effect: Effect::Restart,
        };
        let hold = ("postgresql@*.service".to_owned(), "asks for a window".to_owned());
        let policy = Policy::with_site(&[site], &[hold]).expect("valid patterns");
        let rule = policy.config_rule(&path("/etc/nginx/shared/a")).expect("the site's rule");
        assert!(rule.names(&Unit::new("proxy@a.service")) && rule.effect == Effect::Restart);
        let rule = policy.config_rule(&path("/etc/nginx/nginx.conf")).expect("the pack's rule");
        assert!(rule.names(&Unit::new("nginx.service")));
        let reason = policy.hold_reason(&Unit::new("postgresql@15-main.service"));
        assert_eq!(reason, Some("asks for a window"));
    }

    #[test]
    fn a_pattern_that_is_no_glob_is_named() {
        let hold = ("a[".to_owned(), String::new());
        let error = Policy::with_site(&[], &[hold]).expect_err("no glob");
        assert_eq!(error.kind(), ErrorKind::BadPattern);
        assert!(error.to_string().starts_with("policy pattern \"a[\" is not a glob: "), "{error}");
    }
}
