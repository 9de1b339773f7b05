//! A machine with real systemd follows its image.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_testkit::{Guest, update, web};
use vireo_tests::{Fleet, IMAGE, agent_json, run};

/// Units that nothing in the update touches, and that must not notice it.
const UNTOUCHED: &[&str] = &["dbus.service", "systemd-logind.service"];

/// Prints the units of processes that still map a file of `/usr` that was replaced.
const STALE_UNITS: &str = r#"for maps in /proc/[0-9]*/maps; do
  if grep -q ' /usr/.* (deleted)$' "$maps" 2>/dev/null; then sed -n 's#^0::.*/##p' "${maps%maps}cgroup"; fi
done | sort -u"#;

fn main_pid(guest: &dyn Guest, unit: &str) -> anyhow::Result<String> {
    let shown = run(guest, &["systemctl", "show", "-P", "MainPID", unit])?.stdout;
    Ok(shown.trim().to_owned())
}

fn serves_the_update(guest: &dyn Guest) -> anyhow::Result<()> {
    let page = guest.http_get(web::ADDED_PAGE)?;
    ensure!(page.status == 200 && page.text().contains(web::ADDED_TEXT), "{}: {}", page.status, page.text());
    let page = guest.http_get(web::CHANGED_PAGE)?;
    ensure!(page.header(update::RELEASE_HEADER) == Some("2"), "the configuration is not in effect");
    Ok(())
}

fn is_at(guest: &dyn Guest, tree: &str) -> anyhow::Result<()> {
    let verified = agent_json(guest, &["verify"])?;
    ensure!(verified["found"] == tree, "the guest is not {tree}: {verified}");
    Ok(())
}

/// What the receipt says was done to `unit`.
fn done_to<'a>(receipt: &'a Value, unit: &str) -> Option<&'a str> {
    let units = receipt["plan"]["units"].as_array()?;
    units.iter().find(|entry| entry["unit"] == unit)?["action"].as_str()
}

#[test]
fn live_a_pushed_update_reaches_the_guest_and_only_what_needs_it_is_restarted() -> anyhow::Result<()> {
    let fleet = Fleet::new()?;
    let mut guest = fleet.launch()?;
    run(&guest, &["systemctl", "start", "vireo-agent"])?;
    let pids: Vec<String> = UNTOUCHED.iter().map(|unit| main_pid(&guest, unit)).collect::<Result<_, _>>()?;
    let nginx = main_pid(&guest, "nginx.service")?;

    let tree = fleet.push()?;
    let receipt = fleet.wait_applied(&guest, &tree)?;

    serves_the_update(&guest)?;
    is_at(&guest, &tree)?;
    ensure!(done_to(&receipt, "nginx.service") == Some("restart"), "{receipt}");
    ensure!(main_pid(&guest, "nginx.service")? != nginx, "nginx still has its first process");
    for (unit, pid) in UNTOUCHED.iter().zip(&pids) {
        ensure!(main_pid(&guest, unit)? == *pid, "{unit} was restarted");
    }
    let pending = receipt["pending"].to_string();
    for unit in run(&guest, &["sh", "-c", STALE_UNITS])?.stdout.lines() {
        ensure!(pending.contains(unit), "{unit} maps a replaced file and is not among {pending}");
    }
    let failed = run(&guest, &["systemctl", "list-units", "--state=failed", "--plain", "--no-legend"])?.stdout;
    ensure!(failed.trim().is_empty(), "failed units: {failed}");

    let verified = fleet.vireo(&["image", "verify", IMAGE, "--json"])?.ok()?.json("verify")?;
    ensure!(verified["found"] == tree.as_str(), "the image is not the version: {verified}");
    guest.poweroff()?;
    drop(guest);
    fleet.finish()
}

#[test]
fn live_a_local_edit_or_a_damaged_bundle_is_refused_and_nothing_changes() -> anyhow::Result<()> {
    let fleet = Fleet::new()?;
    let mut guest = fleet.launch()?;
    let tree = fleet.push()?;

    let page = format!("/{}{}", web::ROOT, web::CHANGED_PAGE);
    run(&guest, &["cp", "-a", &page, "/var/tmp/kept"])?;
    run(&guest, &["sh", "-c", "echo mine > \"$0\"", &page])?;
    let refused = guest.exec(&["vireo-agent", "apply"])?;
    ensure!(refused.code == 5, "exit code {}\n{}", refused.code, refused.tail());
    ensure!(refused.stderr.contains(&page), "the path is not named: {}", refused.stderr);
    ensure!(run(&guest, &["cat", &page])?.stdout == "mine\n", "the local edit was lost");
    let verified = agent_json(&guest, &["verify"])?;
    ensure!(verified["differing"].to_string().contains(&page), "{verified}");
    ensure!(guest.http_get(web::ADDED_PAGE)?.status == 404, "a refused update was applied in part");
    run(&guest, &["cp", "-a", "/var/tmp/kept", &page])?;

    let mut bytes = fs::read(fleet.path("update.vireo"))?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(fleet.path("damaged.vireo"), &bytes)?;
    fs::write(fleet.path("cut.vireo"), &bytes[..middle])?;
    let key = fleet.public_key()?;
    for name in ["damaged.vireo", "cut.vireo"] {
        let file = fleet.send(&guest, name)?;
        let refused = guest.exec(&["vireo-agent", "apply", &file, "--trust", &key])?;
        ensure!(refused.code == 5 && refused.stderr.contains(&file), "{}: {}", refused.code, refused.tail());
    }
    let good = fleet.send(&guest, "update.vireo")?;
    let stranger = format!("vireo-key-v1:{}", "5a".repeat(32));
    let refused = guest.exec(&["vireo-agent", "apply", &good, "--trust", &stranger])?;
    ensure!(refused.code == 5, "a stranger's bundle: exit code {}\n{}", refused.code, refused.tail());

    let applied = guest.exec(&["vireo-agent", "apply"])?;
    ensure!([0, 3].contains(&applied.code), "exit code {}\n{}", applied.code, applied.tail());
    is_at(&guest, &tree)?;
    serves_the_update(&guest)?;
    guest.power_cut()?;
    drop(guest);
    fleet.finish()
}

#[test]
fn live_an_agent_killed_at_any_moment_leaves_a_machine_that_the_next_start_completes() -> anyhow::Result<()> {
    const DELAYS_MS: [u64; 10] = [10, 40, 70, 100, 130, 160, 200, 250, 320, 420];
    let fleet = Fleet::new()?;
    let mut guest = fleet.launch()?;
    fleet.capture("target.img", "base.img", "back.vireo")?;
    let key = fleet.public_key()?;
    let files = [fleet.send(&guest, "update.vireo")?, fleet.send(&guest, "back.vireo")?];
    let mut killed = 0;
    for (round, delay) in DELAYS_MS.iter().enumerate() {
        let file = &files[round % 2];
        let script = format!(
            "vireo-agent apply {file} --trust {key} & agent=$!; sleep {}; kill -9 $agent; wait $agent",
            Duration::from_millis(*delay).as_secs_f64()
        );
        killed += i32::from(guest.exec(&["sh", "-c", &script])?.code == 137);
        let again = guest.exec(&["vireo-agent", "apply", file, "--trust", &key])?;
        ensure!([0, 3].contains(&again.code), "after {delay} ms: exit code {}\n{}", again.code, again.tail());
        let shown = fleet.lab().dir().join(["update.vireo", "back.vireo"][round % 2]);
        let target = vireo_tests::vireo(["show", &shown.display().to_string(), "--json"])?.ok()?;
        let target = target.json("show")?["target"].as_str().context("no target")?.to_owned();
        is_at(&guest, &target).with_context(|| format!("killed after {delay} ms"))?;
        ensure!(guest.http_get("/")?.status == 200, "nginx is gone after {delay} ms");
    }
    ensure!(killed >= 3, "only {killed} of {} agents were killed before their end", DELAYS_MS.len());
    guest.power_cut()?;
    drop(guest);
    fleet.finish()
}
