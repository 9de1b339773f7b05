//! What becomes of a file that was edited locally when an update changes it too.

use serde::{Deserialize, Serialize};
use vireo_model::ImagePath;

use super::Layers;
use super::entries::DriftEntry;
use super::table::Table;
use crate::class::canonical;
use crate::{Class, ClassifyError};

/// What becomes of a changed file that differs from the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftRule {
    /// What is tried first.
    pub on: OnDrift,
    /// What is done with a merge that has conflicts; without effect unless `on` is
    /// [`OnDrift::Merge`].
    pub conflict: OnConflict,
}

/// What is done with a file that was edited locally and that an update changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDrift {
    /// Both sets of edits go into the file, by a three-way merge of its lines.
    Merge,
    /// The update is refused, with the list of such files.
    Refuse,
    /// The update's file takes its place; the local one is kept beside it as `NAME.vireo-local`.
    Take,
}

/// What is done when local edits and the update's touch the same lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// The local file stays; the update's is put beside it as `NAME.vireo-new`.
    Keep,
    /// The update's file takes its place; the local one is kept beside it as `NAME.vireo-local`.
    Take,
    /// The update is refused.
    Refuse,
}

impl DriftRule {
    /// The rule where no other applies: no local edit is lost, no update is made half.
    pub const REFUSE: Self = Self { on: OnDrift::Refuse, conflict: OnConflict::Refuse };
}

/// The `[[drift]]` entries of all layers: the classes that each is limited to, and its rule.
#[derive(Clone, Debug)]
pub(super) struct DriftRules(Table<(Vec<Class>, DriftRule)>);

impl DriftRules {
    pub(super) fn compile(layers: &Layers<'_>) -> Result<Self, ClassifyError> {
        let entries = layers
            .entries(|content| &content.drift)
            .map(|(file, entry)| (file, &entry.path, (entry.class.clone(), rule_of_entry(entry))));
        Table::compile(entries).map(Self)
    }

    /// The first rule for a file of `class` at `path`.
    pub(super) fn rule(&self, path: &ImagePath, class: Class) -> DriftRule {
        let place = canonical(path);
        let mut rules = self.0.matching(&place).map(|(_, rule)| rule);
        let first = rules.find(|(classes, _)| classes.is_empty() || classes.contains(&class));
        first.map_or(DriftRule::REFUSE, |(_, rule)| *rule)
    }
}

fn rule_of_entry(entry: &DriftEntry) -> DriftRule {
    let conflict = match entry.on {
        OnDrift::Merge => OnConflict::Keep,
        OnDrift::Refuse => OnConflict::Refuse,
        OnDrift::Take => OnConflict::Take,
    };
    DriftRule { on: entry.on, conflict: entry.conflict.unwrap_or(conflict) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Policy, PolicyFile};

    fn rule(policy: &Policy, path: &str, class: Class) -> (OnDrift, OnConflict) {
        let path = ImagePath::parse(path.as_bytes()).expect("a valid path");
        let DriftRule { on, conflict } = policy.drift_rule(&path, class);
        (on, conflict)
    }

    #[test]
    fn text_configuration_is_merged_and_anything_else_refuses_the_update() {
        let policy = Policy::default();
        let merged = (OnDrift::Merge, OnConflict::Keep);
        let refused = (OnDrift::Refuse, OnConflict::Refuse);
        assert_eq!(rule(&policy, "/etc/ssh/sshd_config", Class::Config), merged);
        assert_eq!(rule(&policy, "/etc/ssl/private/a.key", Class::Certificate), refused);
        assert_eq!(rule(&policy, "/usr/local/etc/a.conf", Class::Config), refused);
        assert_eq!(rule(&policy, "/usr/bin/a", Class::Binary), refused);
    }

    #[test]
    fn a_sites_rule_comes_before_the_default_and_the_first_in_a_file_counts() {
        let text = r#"
            version = 1
            [[drift]]
            path = ["/etc/nginx/**", "/etc/motd"]
            class = ["config", "documentation"]
            on = "take"
            [[drift]]
            path = "/etc/**"
            on = "merge"
            conflict = "refuse"
        "#;
        let site = PolicyFile::parse("50-site.toml", text).expect("a valid policy");
        let policy = Policy::from_layers(&[], &[site]).expect("a valid policy");
        let taken = (OnDrift::Take, OnConflict::Take);
        assert_eq!(rule(&policy, "/etc/nginx/nginx.conf", Class::Config), taken);
        assert_eq!(rule(&policy, "/etc/motd", Class::Documentation), taken);
        let strict = (OnDrift::Merge, OnConflict::Refuse);
        assert_eq!(rule(&policy, "/etc/nginx/a.pem", Class::Certificate), strict);
        assert_eq!(rule(&policy, "/etc/hosts", Class::NameService), strict);
    }
}
