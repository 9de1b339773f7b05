//! The way back: an update that was undone in a running guest.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_testkit::{Exit, Guest};
use vireo_tests::{World, agent, shell, text_at, vireo};

use crate::live_update::{serves_base, serves_target, wait_for_tree};

/// Time in which an agent that is not held back has long brought a version: an update is fetched
/// and applied within two seconds.
const LONG_ENOUGH: Duration = Duration::from_secs(6);

/// Inode numbers of what versions have.
const INODES: &str = "find /usr /etc /var/www -xdev -type f -printf '%i %p\\n'";

/// What nginx's processes map.
const MAPPED: &str = "for pid in $(cat /sys/fs/cgroup/system.slice/nginx.service/cgroup.procs); do \
    cat /proc/$pid/maps; done";

fn inodes(guest: &dyn Guest) -> anyhow::Result<BTreeMap<String, String>> {
    let text = shell(guest, INODES)?;
    let pair = |line: &str| line.split_once(' ').map(|(ino, path)| (path.into(), ino.into()));
    Ok(text.lines().filter_map(pair).collect())
}

/// Asks the kernel which inodes nginx maps: those of `inodes`, whatever is at the paths now.
fn nginx_maps(guest: &dyn Guest, inodes: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let mut looked_at = 0;
    for line in shell(guest, MAPPED)?.lines() {
        // Range, rights, offset, device, inode, path (proc_pid_maps(5)).
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, _, ino, path, ..] = words[..] else { continue };
        if path.starts_with("/usr/") {
            ensure!(inodes.get(path).map(String::as_str) == Some(ino), "nginx maps {line}");
            looked_at += 1;
        }
        ensure!(!path.starts_with("/.vireo"), "nginx maps {line}");
    }
    ensure!(looked_at > 20, "only {looked_at} mappings of files");
    Ok(())
}

/// What a receipt says was modified.
fn modified(receipt: &Value) -> anyhow::Result<Vec<String>> {
    let files = receipt["plan"]["files"].as_array().context("files")?;
    let modified = files.iter().filter(|file| file["change"] == "modified");
    modified.map(|file| text_at(file, "/path")).collect()
}

/// `vireo-agent ARGS`, which is to do something to the end; gives its receipt.
fn done(guest: &dyn Guest, args: &[&str]) -> anyhow::Result<Value> {
    let ran = agent(guest, args)?;
    ensure!(matches!(ran.output().code, 0 | 3), "{args:?}: {}", ran.output().tail());
    ran.json("receipt")
}

fn history(guest: &dyn Guest) -> anyhow::Result<Vec<Value>> {
    let json = agent(guest, &["history"])?.ok()?.json("history")?;
    json["transactions"].as_array().cloned().context("transactions")
}

#[test]
fn live_an_undone_update_stays_undone_until_it_is_asked_for() -> anyhow::Result<()> {
    let world = World::new()?;
    let server = world.serve()?;
    let mut guest = world.guest()?;
    world.enrol(&server, &guest)?;
    agent(&guest, &["undo"])?.exits(5)?.says(&["no update that could be undone"])?;
    let (before, base) = (inodes(&guest)?, world.version(&server)?);
    shell(&guest, "systemctl start vireo-agent")?;
    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?;
    let target = world.version(&server)?;
    let receipt = wait_for_tree(&guest, &target)?;
    serves_target(&guest)?;
    let replaced = modified(&receipt)?;
    ensure!(replaced.iter().any(|path| path.contains(".so")), "no library: {replaced:?}");
    let updated = inodes(&guest)?;
    for path in replaced.iter().filter(|path| before.contains_key(*path)) {
        ensure!(before.get(path) != updated.get(path), "{path} was not replaced");
    }
    nginx_maps(&guest, &updated)?;

    let list = history(&guest)?;
    let [entry] = &list[..] else { anyhow::bail!("not one transaction: {list:?}") };
    ensure!(entry["base"] == *base && entry["target"] == *target, "{entry}");
    ensure!(entry["version"] == 2 && entry["kept_bytes"].as_u64() > Some(0), "{entry}");

    let undone = done(&guest, &["undo"])?;
    ensure!(undone["undone"] == serde_json::json!([entry["transaction"]]), "{undone}");
    ensure!(undone["target"] == *base && undone["base"] == *target, "{undone}");
    is_base(&guest, &base, &before)?;
    ensure!(history(&guest)?.is_empty(), "an undone update can be undone");

    // An agent that starts anew asks the repository at once, and leaves the version alone.
    shell(&guest, "systemctl restart vireo-agent")?;
    thread::sleep(LONG_ENOUGH);
    is_base(&guest, &base, &before)?;
    let state = shell(&guest, "systemctl is-active vireo-agent")?;
    ensure!(state.trim() == "active", "the agent is {state}");

    // Asked for, it comes back, and stays.
    shell(&guest, "systemctl stop vireo-agent")?;
    done(&guest, &["apply"])?;
    wait_for_tree(&guest, &target)?;
    serves_target(&guest)?;
    agent(&guest, &["verify"])?.ok()?.says(&[&target])?;
    shell(&guest, "systemctl start vireo-agent")?;

    // A newer version is none that was undone.
    done(&guest, &["undo"])?;
    let third =
        world.edit(world.target(), "echo 3 > \"$1/var/www/html/third.html\"", "third.img")?;
    world.capture(world.target(), &third, "third.vireo")?;
    world.ask(&server, &["push", &world.arg("third.vireo"), "web"])?.ok()?;
    shell(&guest, "systemctl restart vireo-agent")?;
    wait_for_tree(&guest, &world.version(&server)?)?;
    ensure!(guest.http_get("/third.html")?.status == 200);
    ensure!(guest.poweroff()? == Exit::Off);
    drop((guest, server));
    world.finish()
}

/// Expects the base in every respect: what is served, every inode, what nginx runs, every byte.
fn is_base(
    guest: &dyn Guest,
    base: &str,
    inodes_before: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    serves_base(guest)?;
    let now = inodes(guest)?;
    let differs = |path: &&String| now.get(*path) != inodes_before.get(*path);
    let paths: Vec<_> = now.keys().chain(inodes_before.keys()).filter(differs).collect();
    ensure!(paths.is_empty(), "other inodes than before: {paths:?}");
    nginx_maps(guest, inodes_before)?;
    let status = agent(guest, &["status"])?.ok()?.json("status")?;
    ensure!(status["tree"] == base && status["version"] == 1, "{status}");
    let verified = agent(guest, &["verify"])?.ok()?.json("verify")?;
    ensure!(verified["found"] == base, "{verified}");
    Ok(())
}

#[test]
fn live_two_updates_are_undone_in_one_step_and_edits_since_are_kept() -> anyhow::Result<()> {
    let conf = "/etc/nginx/conf.d/release.conf";
    let world = World::new()?;
    let edit = "echo third > \"$1/var/www/html/third.html\"; \
                echo 'add_header X-Release 3 always;' > \"$1/etc/nginx/conf.d/release.conf\"";
    let third = world.edit(world.target(), edit, "third.img")?;
    world.capture(world.target(), &third, "third.vireo")?;
    let mut guest = world.guest()?;
    let (before, key) = (inodes(&guest)?, world.public_key()?);
    for bundle in ["update.vireo", "third.vireo"] {
        world.put(&guest, bundle)?;
        done(&guest, &["apply", &format!("/tmp/{bundle}"), "--trust", &key, "--no-guard"])?;
    }
    ensure!(guest.http_get("/third.html")?.status == 200);
    ensure!(history(&guest)?.len() == 2);

    // What was edited since stands in the way, until it may be set aside.
    shell(&guest, &format!("echo '# mine' >> {conf}"))?;
    agent(&guest, &["undo", "1"])?.exits(5)?.says(&[conf])?;
    agent(&guest, &["undo", "7"])?.exits(5)?.says(&["no transaction 7", "history"])?;
    ensure!(guest.http_get("/third.html")?.status == 200, "something was undone");
    let undone = done(&guest, &["undo", "1", "--take"])?;
    ensure!(undone["undone"] == serde_json::json!([1, 2]), "{undone}");
    serves_base(&guest)?;
    let aside = shell(&guest, &format!("cat {conf}.vireo-local; rm {conf}.vireo-local"))?;
    ensure!(aside.contains("X-Release 3") && aside.contains("# mine"), "{aside}");
    ensure!(inodes(&guest)? == before, "other inodes than before");
    nginx_maps(&guest, &before)?;

    let left = shell(&guest, "find /.vireo -mindepth 1")?;
    ensure!(left.is_empty(), "kept for nothing: {left}");
    ensure!(guest.poweroff()? == Exit::Off);
    drop(guest);
    let (disk, base) = (world.arg("guest.img"), world.base().display().to_string());
    vireo(["diff", &disk, &base])?.ok()?.says(&["no difference"])?;
    world.finish()
}
