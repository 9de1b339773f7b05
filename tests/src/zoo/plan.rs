//! What the agent's receipt says it planned and did, in the words in which cases say what they
//! need: `reload nginx.service`, `daemon-reload`, `run newaliases`, `hold dbus.service`, `reboot`.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// The operations of a receipt's plan and what followed, each once.
///
/// What was done beyond the plan, because a lighter operation could not be proven, is among them;
/// what was planned and failed is not.
pub(super) fn operations(receipt: &Value) -> BTreeSet<String> {
    let mut found = planned(&receipt["plan"]);
    for action in list(&receipt["actions"]) {
        let (verb, subject) = (text(&action["action"]), text(&action["subject"]));
        let operation = match (verb, subject) {
            ("daemon-reload" | "daemon-reexec", "system") => verb.to_owned(),
            ("daemon-reload" | "daemon-reexec", manager) => format!("{verb} in {manager}"),
            (command, "system") => format!("run {command}"),
            (verb, unit) => format!("{verb} {unit}"),
        };
        match text(&action["result"]) {
            "done" | "later" => drop(found.insert(operation)),
            // The restart that follows is there on its own.
            "escalated" => drop(found.remove(&operation)),
            result => {
                found.remove(&operation);
                found.insert(format!("{result}: {operation}"));
            }
        }
    }
    found
}

/// The operations of a plan.
fn planned(plan: &Value) -> BTreeSet<String> {
    let system = &plan["system"];
    let units = list(&plan["units"]).map(|unit| {
        let (action, name) = (text(&unit["action"]), text(&unit["unit"]));
        format!("{action} {name}")
    });
    let tools = list(&system["tools"]).map(|tool| {
        let words: Vec<&str> = list(&tool["command"]).map(text).collect();
        format!("run {}", words.join(" "))
    });
    let managers = list(&system["user_managers"]).map(|manager| {
        format!("daemon-{} in {}", text(&manager["action"]), text(&manager["unit"]))
    });
    let mut found: BTreeSet<String> = units.chain(tools).chain(managers).collect();
    match text(&system["manager"]) {
        "reload" => drop(found.insert("daemon-reload".to_owned())),
        "reexec" => drop(found.insert("daemon-reexec".to_owned())),
        _ => {}
    }
    if text(&system["reboot"]) != "none" {
        found.insert("reboot".to_owned());
    }
    found
}

/// The changed paths that an operation is planned for.
pub(super) fn reasons<'a>(receipt: &'a Value, operation: &str) -> BTreeSet<&'a str> {
    let plan = &receipt["plan"];
    let unit = operation.rsplit(' ').next().unwrap_or_default();
    let entry = list(&plan["units"]).find(|entry| text(&entry["unit"]) == unit);
    let because = entry.map_or(&plan["system"]["because"], |entry| &entry["because"]);
    list(because).map(|evidence| text(&evidence["path"])).collect()
}

/// The receipt on an agent's output.
pub(super) fn parse(output: &str) -> anyhow::Result<Value> {
    let value: Value = serde_json::from_str(output)
        .with_context(|| format!("the agent printed no JSON but {output:?}"))?;
    ensure!(value["schema"] == "vireo.receipt/1", "no receipt: {value}");
    Ok(value)
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_done_counts_and_not_what_was_meant_to_be() {
        let receipt = json!({
            "plan": {
                "system": {"manager": "reload", "reboot": "full",
                    "tools": [{"tool": "derive", "command": ["newaliases"]}],
                    "because": [{"path": "/etc/aliases"}]},
                "units": [{"unit": "a.service", "action": "reload", "because": [{"path": "/etc/a"}]},
                    {"unit": "b.service", "action": "reload"}, {"unit": "c.service", "action": "hold"}],
            },
            "actions": [
                {"subject": "system", "action": "newaliases", "result": "done"},
                {"subject": "system", "action": "daemon-reload", "result": "done"},
                {"subject": "user@1.service", "action": "daemon-reload", "result": "done"},
                {"subject": "a.service", "action": "reload", "result": "escalated"},
                {"subject": "b.service", "action": "reload", "result": "failed"},
                {"subject": "a.service", "action": "restart", "result": "done"},
            ],
        });
        let found = operations(&receipt).into_iter().collect::<Vec<_>>().join(", ");
        let wanted = "daemon-reload, daemon-reload in user@1.service, failed: reload b.service, hold c.service, reboot, \
            restart a.service, run newaliases";
        assert_eq!(found, wanted);
        assert_eq!(reasons(&receipt, "restart a.service"), BTreeSet::from(["/etc/a"]));
        assert_eq!(reasons(&receipt, "daemon-reload"), BTreeSet::from(["/etc/aliases"]));
    }
}
