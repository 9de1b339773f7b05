//! Units that go down along with one that an update restarts, without failing.

use anyhow::ensure;
use vireo_tests::{World, agent, shell, text_at};

/// `boss` says in a file that it is ready. Two services go down and up with it, one of them only where
/// that file is; a third runs beside them.
const BASE: &str = r#"
mkdir -p "$1/opt/boss" "$1/etc/vireo/policy.d"
printf 'version = 1\n[defaults]\nsettle = "2s"\n' > "$1/etc/vireo/policy.d/50-site.toml"
printf '#!/bin/sh\ntouch /run/boss.ready\nwhile :; do sleep 1; done\n' > "$1/opt/boss/boss"; chmod 755 "$1/opt/boss/boss"
cd "$1/etc/systemd/system"
cat > boss.service <<'E'
[Service]
ExecStart=/opt/boss/boss
ExecStartPost=/bin/sleep 0.5
ExecStopPost=/bin/rm -f /run/boss.ready
E
bound() { printf '[Unit]\n%s=boss.service\nAfter=boss.service\n%s\n[Service]\nExecStart=/bin/sleep infinity\n' "$2" "$3" > "$1.service"; }
bound picky PartOf 'ConditionPathExists=/run/boss.ready'
bound loyal BindsTo ''
printf '[Service]\nExecStart=/bin/sleep infinity\n' > beside.service
for unit in boss picky loyal beside; do ln -s "../$unit.service" "multi-user.target.wants/$unit.service"; done
"#;

/// What they all do, in words.
const UNITS: &str = "systemctl is-active boss picky loyal beside | paste -s -d' '";

/// What that is while all is well.
const WELL: &str = "active active active active";

/// Main processes, of all but `boss`.
const PIDS: &str =
    "for unit in picky loyal beside; do systemctl show -p MainPID --value $unit; done";

#[test]
fn live_an_update_after_which_a_bound_unit_stays_down_is_undone() -> anyhow::Result<()> {
    // The new program does not say that it is ready: nothing fails, one service less runs.
    let target = "sed -i '/touch/d' \"$1/opt/boss/boss\"";
    let world = World::edited(BASE, target)?;
    let (guest, key) = (world.guest()?, world.public_key()?);
    world.put(&guest, "update.vireo")?;
    ensure!(shell(&guest, UNITS)?.trim() == WELL);
    let undone = agent(&guest, &["apply", "/tmp/update.vireo", "--trust", &key])?.exits(4)?;
    let receipt = undone.json("receipt")?;
    let because = text_at(&receipt, "/undone_because/0")?;
    let wanted = "picky.service: it went down along with boss.service and was not started again";
    ensure!(because == wanted && receipt["undone_because"][1].is_null(), "{receipt}");
    ensure!(shell(&guest, "cat /opt/boss/boss")?.contains("touch"), "the base is not back");
    ensure!(shell(&guest, UNITS)?.trim() == WELL, "{receipt}");

    // Where the policy keeps an update in spite of that, it is said.
    let keep = "mkdir -p /run/vireo/policy.d; printf 'version = 1\\n[defaults]\\non-health-failure = \"keep\"\\n' \
        > /run/vireo/policy.d/60.toml";
    shell(&guest, keep)?;
    let kept = agent(&guest, &["apply", "/tmp/update.vireo", "--trust", &key])?.exits(1)?;
    let receipt = kept.json("receipt")?;
    ensure!(receipt["outcome"] == "failed", "{receipt}");
    ensure!(receipt["failed_units"] == serde_json::json!(["picky.service"]), "{receipt}");
    drop(guest);
    world.finish()
}

#[test]
fn live_bound_units_that_come_back_with_theirs_are_well() -> anyhow::Result<()> {
    let world = World::edited(BASE, "echo '# more' >> \"$1/opt/boss/boss\"")?;
    let (guest, key) = (world.guest()?, world.public_key()?);
    world.put(&guest, "update.vireo")?;
    let pids = || -> anyhow::Result<Vec<String>> {
        Ok(shell(&guest, PIDS)?.lines().map(str::to_owned).collect())
    };
    let before = pids()?;
    let receipt =
        agent(&guest, &["apply", "/tmp/update.vireo", "--trust", &key])?.ok()?.json("receipt")?;
    ensure!(receipt["outcome"] == "done", "{receipt}");
    ensure!(shell(&guest, UNITS)?.trim() == WELL, "{receipt}");
    let after = pids()?;
    ensure!(before[0] != after[0] && before[1] != after[1], "both went with it: {before:?}");
    ensure!(before[2] == after[2], "nothing binds it: {before:?} {after:?}");
    drop(guest);
    world.finish()
}
