//! The text of `systemctl show`: one block of `Key=value` lines per unit, blocks apart by an
//! empty line.

use std::collections::{BTreeMap, BTreeSet};

use vireo_model::ImagePath;

use crate::{ActiveState, Unit, UnitFacts};

/// The properties that [`parse_show`] reads.
pub const SHOW_PROPERTIES: &[&str] = &[
    "Id",
    "Names",
    "LoadState",
    "ActiveState",
    "SubState",
    "CanReload",
    "Type",
    "RefuseManualStop",
    "FragmentPath",
    "DropInPaths",
    "SourcePath",
    "MainPID",
    "NRestarts",
    "Triggers",
    "TriggeredBy",
    "UnitFileState",
    "Requires",
    "Requisite",
    "BindsTo",
    "PartOf",
    "StopPropagatedFrom",
    "User",
    "KillMode",
    "RefuseManualStart",
    "StartLimitBurst",
    "StartLimitIntervalUSec",
];

/// The properties that name units which one is stopped and restarted along with.
const BINDING: [&str; 5] = ["Requires", "Requisite", "BindsTo", "PartOf", "StopPropagatedFrom"];

/// Reads units out of `systemctl show --property=...` for [`SHOW_PROPERTIES`]; gives them and
/// how many lines were not understood. Units that are not loaded are left out, but for masked
/// ones. Programs and declared paths stay empty: they are in the unit files.
#[must_use]
pub fn parse_show(text: &[u8]) -> (BTreeMap<Unit, UnitFacts>, usize) {
    let mut units = BTreeMap::new();
    let mut unread = 0;
    let mut block: BTreeMap<String, String> = BTreeMap::new();
    for line in String::from_utf8_lossy(text).lines().chain([""]) {
        if line.is_empty() {
            if let Some(unit) = unit_of(&std::mem::take(&mut block)) {
                units.insert(unit.name.clone(), unit);
            }
        } else if let Some((key, value)) = line.split_once('=') {
            block.insert(key.to_owned(), value.to_owned());
        } else {
            unread += 1;
        }
    }
    (units, unread)
}

fn unit_of(block: &BTreeMap<String, String>) -> Option<UnitFacts> {
    let text = |key: &str| block.get(key).map_or("", String::as_str);
    let words = |key: &str| text(key).split(' ').filter(|word| !word.is_empty());
    let name = Unit::new(Some(text("Id")).filter(|id| !id.is_empty())?);
    if matches!(text("LoadState"), "not-found" | "error") {
        return None;
    }
    let aliases: BTreeSet<Unit> = words("Names").map(Unit::new).filter(|n| *n != name).collect();
    let files = words("FragmentPath").chain(words("DropInPaths"));
    Some(UnitFacts {
        aliases,
        active: ActiveState::from_name(text("ActiveState")),
        sub: text("SubState").to_owned(),
        service_type: text("Type").to_owned(),
        can_reload: text("CanReload") == "yes",
        refuse_manual_stop: text("RefuseManualStop") == "yes",
        main_pid: text("MainPID").parse().unwrap_or(0),
        restarts: text("NRestarts").parse().unwrap_or(0),
        files: files.filter_map(|path| ImagePath::parse(path.as_bytes()).ok()).collect(),
        source: ImagePath::parse(text("SourcePath").as_bytes()).ok(),
        masked: text("LoadState") == "masked",
        triggers: words("Triggers").map(Unit::new).collect(),
        triggered_by: words("TriggeredBy").map(Unit::new).collect(),
        file_state: text("UnitFileState").to_owned(),
        bound_to: BINDING.iter().flat_map(|key| words(key)).map(Unit::new).collect(),
        user: text("User").to_owned(),
        kill_mode: text("KillMode").to_owned(),
        refuse_manual_start: text("RefuseManualStart") == "yes",
        start_limit_burst: text("StartLimitBurst").parse().unwrap_or(0),
        start_limit_interval: text("StartLimitIntervalUSec").to_owned(),
        ..UnitFacts::running(name.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As systemd 252 prints it.
    const SHOWN: &str = "\
Type=forking
MainPID=214
NRestarts=0
Id=nginx.service
Names=nginx.service
LoadState=loaded
ActiveState=active
SubState=running
FragmentPath=/lib/systemd/system/nginx.service
DropInPaths=/etc/systemd/system/nginx.service.d/a.conf /run/systemd/system/nginx.service.d/b.conf
CanReload=yes
RefuseManualStop=no
Requires=sysinit.target system.slice
BindsTo=boss.service
PartOf=

Id=ssh.service
Names=sshd.service ssh.service
LoadState=loaded
ActiveState=inactive
SubState=dead

Id=gone.service
LoadState=not-found

Id=off.service
LoadState=masked
ActiveState=inactive

Id=echo.socket
LoadState=loaded
ActiveState=active
Triggers=echo.service
";

    #[test]
    fn each_block_is_a_unit() {
        let (units, unread) = parse_show(SHOWN.as_bytes());
        assert_eq!(unread, 0);
        let names: Vec<&str> = units.keys().map(Unit::as_str).collect();
        assert_eq!(names, ["echo.socket", "nginx.service", "off.service", "ssh.service"]);
        assert!(units[&Unit::new("off.service")].masked);
        assert_eq!(units[&Unit::new("echo.socket")].triggers, [Unit::new("echo.service")]);
        let nginx = &units[&Unit::new("nginx.service")];
        assert!(nginx.can_reload && nginx.active.is_up());
        let bound: Vec<&str> = nginx.bound_to.iter().map(Unit::as_str).collect();
        assert_eq!(bound, ["boss.service", "sysinit.target", "system.slice"]);
        assert_eq!(
            (nginx.main_pid, nginx.service_type.as_str(), nginx.files.len()),
            (214, "forking", 3)
        );
        let ssh = &units[&Unit::new("ssh.service")];
        assert!(!ssh.active.is_up());
        assert_eq!(ssh.aliases, BTreeSet::from([Unit::new("sshd.service")]));
    }

    #[test]
    fn what_is_not_understood_is_counted() {
        let (units, unread) = parse_show(b"Failed to list units\n\nId=\n\n\xff\n");
        assert!(units.is_empty());
        assert_eq!(unread, 2);
    }
}
