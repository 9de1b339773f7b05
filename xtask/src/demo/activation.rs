//! Reading the agent's receipt: what was reloaded, restarted, left alone, and why.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::proof::Proof;
use super::report::{Activation, Pending, Unit};

/// Reasons that are named per unit; the rest is counted.
const REASONS: usize = 3;

/// The part of a receipt (`vireo.receipt/1`) that the report shows.
pub(crate) fn from_receipt(receipt: &Value) -> Activation {
    let plan = &receipt["plan"];
    let units = list(&plan["units"]).map(|unit| Unit {
        unit: text(&unit["unit"]),
        action: text(&unit["action"]),
        result: result_of(receipt, &text(&unit["unit"])),
        because: because(unit),
    });
    let pending = list(&receipt["pending"]).map(|pending| Pending {
        subject: text(&pending["subject"]),
        needs: text(&pending["needs"]),
        reason: text(&pending["reason"]),
    });
    Activation {
        outcome: text(&receipt["outcome"]),
        pending: pending.collect(),
        manager: text(&plan["system"]["manager"]),
        reboot: text(&plan["system"]["reboot"]),
        units: units.collect(),
        nothing_needed: nothing_needed(plan),
    }
}

impl Activation {
    /// That the update is in effect as far as it may be without somebody's consent.
    pub(crate) fn proof(&self) -> Proof {
        let held = matches!(self.outcome.as_str(), "done" | "pending");
        let done = self.units.iter().filter(|unit| unit.result != "-").count();
        let found = format!(
            "{}: {done} units acted upon, {} things wait",
            self.outcome,
            self.pending.len()
        );
        Proof::new("the guest's services have taken it up", held, found)
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What came of the action on `unit`; a dash if none was taken.
fn result_of(receipt: &Value, unit: &str) -> String {
    let action = list(&receipt["actions"]).find(|action| action["subject"] == unit);
    action.map_or_else(|| "-".to_owned(), |action| text(&action["result"]))
}

/// The first files behind a unit's action, with the rule; or why it is held.
fn because(unit: &Value) -> String {
    let files: BTreeSet<String> = list(&unit["because"])
        .map(|evidence| format!("{} ({})", text(&evidence["path"]), text(&evidence["rule"])))
        .collect();
    let more = files.len().saturating_sub(REASONS);
    let mut shown = files.into_iter().take(REASONS).collect::<Vec<_>>().join(", ");
    if more > 0 {
        shown.push_str(&format!(" and {more} more"));
    }
    match unit["reason"].as_str() {
        Some(reason) => format!("{reason}; {shown}"),
        None => shown,
    }
}

/// How many changed files of each class are behind no action.
fn nothing_needed(plan: &Value) -> Vec<(String, u64)> {
    let system = &plan["system"]["because"];
    let reasons = list(&plan["units"]).flat_map(|unit| list(&unit["because"])).chain(list(system));
    let named: BTreeSet<&str> = reasons.filter_map(|reason| reason["path"].as_str()).collect();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for file in list(&plan["files"]) {
        if !file["path"].as_str().is_some_and(|path| named.contains(path)) {
            *counts.entry(text(&file["class"])).or_default() += 1;
        }
    }
    counts.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_read_into_what_people_ask() {
        let receipt = serde_json::json!({
            "plan": {
                "system": { "manager": "reload", "reboot": "none", "because": [] },
                "units": [{ "unit": "nginx.service", "action": "reload", "because": [
                    { "path": "/etc/nginx/nginx.conf", "rule": "rule-pack" },
                ] }],
                "files": [
                    { "path": "/etc/nginx/nginx.conf", "class": "config" },
                    { "path": "/var/www/a", "class": "content" },
                    { "path": "/var/www/b", "class": "content" },
                ],
            },
            "actions": [{ "subject": "nginx.service", "result": "done" }],
            "pending": [{ "subject": "dbus.service", "needs": "restart", "reason": "never" }],
            "outcome": "pending",
        });
        let activation = from_receipt(&receipt);
        let unit = &activation.units[0];
        assert_eq!((unit.action.as_str(), unit.result.as_str()), ("reload", "done"));
        assert_eq!(unit.because, "/etc/nginx/nginx.conf (rule-pack)");
        assert_eq!((activation.outcome.as_str(), activation.pending.len()), ("pending", 1));
        assert_eq!(activation.nothing_needed, [("content".to_owned(), 2)]);
    }
}
