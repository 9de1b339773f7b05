//! Processes that are not the machine's own, and such that end while it is looked at.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_tests::{World, agent, shell};

/// A library that a service maps.
const BASE: &str = r#"
mkdir -p "$1/opt/lib" "$1/etc/vireo/policy.d"
printf 'version = 1\n[defaults]\nsettle = "2s"\n' > "$1/etc/vireo/policy.d/50-site.toml"
cd "$1/usr/lib/x86_64-linux-gnu"; cp "$(readlink libz.so.1)" "$1/opt/lib/libown.so"; cd "$1/etc/systemd/system"
printf '[Service]\nEnvironment=LD_PRELOAD=/opt/lib/libown.so\nExecStart=/bin/sleep infinity\n' > own.service
ln -s ../own.service multi-user.target.wants/own.service
"#;

/// Another one that does the same.
const TARGET: &str = "echo more >> \"$1/opt/lib/libown.so\"";

/// Control groups as container managers name them, the slices that they use, and the part by which they
/// are told.
const FOREIGN: [[&str; 3]; 4] = [
    [
        "docker-4c01db0b339c5c8a2a5a4c5b6a6b6f9f7a2b8a1f4c01db0b339c5c8a2a5a4c5b.scope",
        "system.slice",
        "docker-4c01db0b339c5c8a2a5a4c5b6a6b6f9f7a2b8a1f4c01db0b339c5c8a2a5a4c5b.scope",
    ],
    [
        "libpod-9d1f0c1c2b3a49586776a5b4c3d2e1f00112233445566778899aabbccddeeff0.scope",
        "system.slice",
        "libpod-9d1f0c1c2b3a49586776a5b4c3d2e1f00112233445566778899aabbccddeeff0.scope",
    ],
    ["cri-containerd-77aa0c1c2b3a4958.scope", "kubepods-besteffort.slice", "kubepods.slice"],
    ["machine-web.scope", "machine.slice", "machine.slice"],
];

fn start([unit, slice, _]: [&str; 3]) -> String {
    format!(
        "systemd-run -q --scope --unit={unit} --slice={slice} \
         env LD_PRELOAD=/opt/lib/libown.so sleep 9999 > /dev/null 2>&1 &"
    )
}

/// Who maps a file of that name, whatever is at its path: process and control group.
const HOLDERS: &str = "for pid in $(grep -l libown.so /proc/[0-9]*/maps 2>/dev/null | cut -d/ -f3); do \
    echo $pid $(cat /proc/$pid/cgroup); done";

#[test]
fn live_processes_of_containers_are_reported_and_left_alone() -> anyhow::Result<()> {
    let world = World::edited(BASE, TARGET)?;
    let (guest, key) = (world.guest()?, world.public_key()?);
    world.put(&guest, "update.vireo")?;
    for foreign in FOREIGN {
        shell(&guest, &start(foreign))?;
    }
    let all = "until [ $(grep -l libown.so /proc/[0-9]*/maps 2>/dev/null | wc -l) = 5 ]; do sleep 0.1; done";
    shell(&guest, all)?;
    let holders = || -> anyhow::Result<BTreeSet<String>> {
        Ok(shell(&guest, HOLDERS)?.lines().map(str::to_owned).collect())
    };
    let before = holders()?;
    let own = before.iter().find(|line| line.ends_with("/own.service")).context("own.service")?;

    let waits = agent(&guest, &["apply", "/tmp/update.vireo", "--trust", &key])?.exits(3)?;
    let receipt = waits.json("receipt")?;
    let actions = receipt["actions"].as_array().context("actions")?;
    ensure!(actions.len() == 1 && actions[0]["subject"] == "own.service", "{actions:?}");
    let pending = receipt["pending"].as_array().context("what waits")?;
    let of_container =
        |it: &Value| it["reason"].as_str().is_some_and(|why| why.contains("container"));
    ensure!(pending.iter().all(of_container), "{pending:?}");
    let found: BTreeSet<&str> = pending.iter().filter_map(|it| it["subject"].as_str()).collect();
    ensure!(found == FOREIGN.iter().map(|[.., shown]| *shown).collect(), "{found:?}");
    let after = holders()?;
    let foreign = |all: &BTreeSet<String>| -> BTreeSet<String> {
        all.iter().filter(|line| !line.ends_with("/own.service")).cloned().collect()
    };
    ensure!(foreign(&before) == foreign(&after), "{before:?}\n{after:?}");
    ensure!(after.len() == 5 && !after.contains(own), "{own} was not restarted: {after:?}");

    // When they have ended, nothing waits any more.
    for [unit, ..] in FOREIGN {
        shell(&guest, &format!("systemctl stop {unit}"))?;
    }
    let status = agent(&guest, &["status"])?.ok()?.json("status")?;
    ensure!(status["last"]["pending"] == serde_json::json!([]), "{status}");
    drop(guest);
    world.finish()
}

/// Starts processes that map the library for some thousandths of a second, as many as there is time for.
const STORM: &str = "printf '#!/bin/sh\\nwhile :; do for n in 1 2 3 4 5 6; do LD_PRELOAD=/opt/lib/libown.so sleep 0.00$n & done; wait; done\\n' \
    > /run/storm; chmod 755 /run/storm; for n in 1 2 3; do systemd-run -q --unit=storm$n /run/storm; done";

/// How many processes there have been.
const PROCESSES: &str = "awk '/^processes/ {print $2}' /proc/stat";

/// How often the machine is looked at meanwhile.
const LOOKS: usize = 30;

#[test]
fn live_processes_that_end_while_they_are_looked_at_are_no_error() -> anyhow::Result<()> {
    let world = World::edited(BASE, TARGET)?;
    let (guest, key) = (world.guest()?, world.public_key()?);
    world.put(&guest, "update.vireo")?;
    shell(&guest, STORM)?;
    let before: u64 = shell(&guest, PROCESSES)?.trim().parse()?;
    let mut seen = BTreeSet::new();
    for _ in 0..LOOKS {
        let plan = agent(&guest, &["plan", "/tmp/update.vireo", "--trust", &key])?;
        let plan = plan.ok()?.json("plan")?;
        let units = plan["units"].as_array().context("units")?;
        let names: BTreeSet<&str> = units.iter().filter_map(|it| it["unit"].as_str()).collect();
        ensure!(names.contains("own.service"), "its service was lost: {plan}");
        let is_known = |name: &&str| *name == "own.service" || name.starts_with("storm");
        ensure!(names.iter().all(is_known), "{plan}");
        ensure!(plan["notes"].as_array().is_none_or(Vec::is_empty), "{plan}");
        seen.extend(names.into_iter().map(str::to_owned));
    }
    let ended = shell(&guest, PROCESSES)?.trim().parse::<u64>()? - before;
    println!("{ended} processes beside {LOOKS} looks; seen: {seen:?}");
    ensure!(ended > 1000, "too few processes: {ended}");
    // Else none was there while it was looked at, and the test says nothing.
    ensure!(seen.len() > 1, "no look met one of them");
    let receipt = agent(&guest, &["apply", "/tmp/update.vireo", "--trust", &key])?;
    let receipt = receipt.ok()?.json("receipt")?;
    ensure!(receipt["outcome"] == "done", "{receipt}");
    let stale =
        "grep -c 'libown.so (deleted)' /proc/$(systemctl show -p MainPID --value own)/maps || true";
    ensure!(shell(&guest, stale)?.trim() == "0", "{receipt}");
    shell(&guest, "systemctl stop storm1 storm2 storm3")?;
    drop(guest);
    world.finish()
}
