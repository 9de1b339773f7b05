//! Names of units and what the name alone says.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A systemd unit's name, `postgresql@15-main.service`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Unit(String);

impl Unit {
    /// The unit with this name; any text will do, the service manager knows which exist.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The type: what follows the last dot, `service`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.0.rsplit_once('.').map_or("", |(_, kind)| kind)
    }

    /// The name without its type: `postgresql@15-main`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.0.rsplit_once('.').map_or(self.0.as_str(), |(id, _)| id)
    }

    /// What stands before `@`, or the name without its type: `postgresql`.
    #[must_use]
    pub fn stem(&self) -> &str {
        self.id().split_once('@').map_or(self.id(), |(stem, _)| stem)
    }

    /// The instance of a template, `15-main`; none if it is no instance.
    #[must_use]
    pub fn instance(&self) -> Option<&str> {
        self.id().split_once('@').map(|(_, instance)| instance).filter(|i| !i.is_empty())
    }

    /// Whether this unit is `other` or an instance of the template `other` (`postgresql@.service`).
    #[must_use]
    pub fn is_or_instantiates(&self, other: &str) -> bool {
        self.0 == other
            || other.split_once("@.").is_some_and(|(stem, kind)| {
                self.instance().is_some() && self.stem() == stem && self.kind() == kind
            })
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Unit {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_stem_instance_and_kind() {
        let unit = Unit::new("postgresql@15-main.service");
        assert_eq!(
            (unit.stem(), unit.instance(), unit.kind()),
            ("postgresql", Some("15-main"), "service")
        );
        let unit = Unit::new("ssh.service");
        assert_eq!((unit.stem(), unit.instance(), unit.kind()), ("ssh", None, "service"));
    }

    #[test]
    fn an_instance_belongs_to_its_template_alone() {
        let unit = Unit::new("postgresql@15-main.service");
        assert!(unit.is_or_instantiates("postgresql@.service"));
        assert!(unit.is_or_instantiates("postgresql@15-main.service"));
        assert!(!unit.is_or_instantiates("postgresql.service"));
        assert!(!unit.is_or_instantiates("postgresql@.socket"));
        assert!(!Unit::new("postgresql.service").is_or_instantiates("postgresql@.service"));
    }
}
