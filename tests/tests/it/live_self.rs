//! Updates that replace the agent itself, or what everything else stands on.

use anyhow::{Context as _, ensure};
use vireo_testkit::{Exit, Guest as _};
use vireo_tests::{World, agent, shell, vireo};

use crate::live_update::{STALE, wait_for_tree};

/// Another program that does the same, a unit that says it is another, and a page. Bytes behind an
/// ELF file are not loaded.
const TARGET: &str = "printf 'release two' >> \"$1/usr/bin/vireo-agent\"; \
    sed -i 's/^Description=.*/Description=The second agent/' \
        \"$1/usr/lib/systemd/system/vireo-agent.service\"; \
    echo two > \"$1/var/www/html/two.html\"";

/// Which inode the agent's service runs, and which is at its path.
const INODES: &str = "pid=$(systemctl show -p MainPID --value vireo-agent); \
    stat -L -c %i /proc/$pid/exe; stat -c %i /usr/bin/vireo-agent; echo $pid";

#[test]
fn live_an_agent_that_replaces_itself_finishes_and_follows_on() -> anyhow::Result<()> {
    let world = World::edited("true", TARGET)?;
    let server = world.serve()?;
    let mut guest = world.guest()?;
    world.enrol(&server, &guest)?;
    shell(&guest, "systemctl start vireo-agent")?;
    let before = shell(&guest, INODES)?;

    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?;
    let version = world.version(&server)?;
    let receipt = wait_for_tree(&guest, &version)?;
    let actions = receipt["actions"].as_array().context("actions")?;
    let own = actions.iter().find(|action| action["subject"] == "vireo-agent.service");
    let own = own.with_context(|| format!("nothing was done to the agent: {receipt}"))?;
    ensure!(own["action"] == "restart" && own["result"] == "later", "{own}");

    // It restarts itself when everything is written down.
    let wait = "for i in $(seq 100); do new=$(systemctl show -p MainPID --value vireo-agent); \
        [ \"$new\" != 0 ] && [ \"$new\" != \"$1\" ] && exit 0; sleep 0.1; done; exit 1";
    let pid = before.lines().nth(2).context("a process")?;
    ensure!(guest.exec(&["sh", "-c", wait, "wait", pid])?.success(), "it was not restarted");
    let after = shell(&guest, INODES)?;
    let mut lines = after.lines();
    let (runs, stands) = (lines.next(), lines.next());
    ensure!(runs == stands && runs.is_some(), "the service runs another program: {after}");
    ensure!(before.lines().next() != runs, "the program was not replaced");
    let unit = shell(&guest, "systemctl show -p Description --value vireo-agent")?;
    ensure!(unit.trim() == "The second agent", "systemd has the unit of the base: {unit}");
    ensure!(guest.http_get("/two.html")?.status == 200);
    let left = shell(&guest, "ls /var/lib/vireo; ls /.vireo")?;
    ensure!(!left.contains("activation") && !left.contains("-done"), "not over: {left}");
    agent(&guest, &["verify"])?.ok()?.says(&[&version])?;

    // The new one takes the next version as the old one did, and the way back leads to the old one.
    let third =
        world.edit(world.target(), "echo 3 > \"$1/var/www/html/three.html\"", "third.img")?;
    world.capture(world.target(), &third, "third.vireo")?;
    world.ask(&server, &["push", &world.arg("third.vireo"), "web"])?.ok()?;
    wait_for_tree(&guest, &world.version(&server)?)?;
    ensure!(guest.http_get("/three.html")?.status == 200);
    let undone = agent(&guest, &["undo", "1"])?;
    ensure!(matches!(undone.output().code, 0 | 3), "{}", undone.output().tail());
    let back = shell(&guest, INODES)?;
    ensure!(back.lines().nth(1) == before.lines().nth(1), "{back} instead of {before}");
    ensure!(guest.poweroff()? == Exit::Off);
    drop((guest, server));
    let (disk, base) = (world.arg("guest.img"), world.base().display().to_string());
    vireo(["diff", &disk, &base])?.ok()?.says(&["no difference"])?;
    world.finish()
}

/// The C library, the loader, and the service manager with its library, each as another file.
const FOUNDATION: &str = "for file in lib/x86_64-linux-gnu/libc.so.6 \
        lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 lib/systemd/systemd; do \
        printf 'release two' >> \"$1/usr/$file\"; done; \
    for file in \"$1\"/usr/lib/x86_64-linux-gnu/systemd/libsystemd-*.so; do \
        printf 'release two' >> \"$file\"; done; \
    echo two > \"$1/var/www/html/two.html\"";

#[test]
fn live_the_c_library_the_loader_and_systemd_are_replaced_under_everything() -> anyhow::Result<()> {
    let world = World::edited("true", FOUNDATION)?;
    let server = world.serve()?;
    let mut guest = world.guest()?;
    world.enrol(&server, &guest)?;
    shell(&guest, "systemctl start vireo-agent")?;
    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?;
    let version = world.version(&server)?;
    let receipt = wait_for_tree(&guest, &version)?;

    // Who still runs on the library of the base is named, and nobody else.
    let stale = shell(&guest, STALE)?;
    let pending = receipt["pending"].as_array().context("pending")?;
    for unit in stale.lines().filter(|unit| !unit.is_empty()) {
        let is_named = pending.iter().any(|pending| pending["subject"] == unit);
        ensure!(is_named, "{unit} runs what was replaced and is not named: {receipt}");
    }
    let actions = receipt["actions"].as_array().context("actions")?;
    let done = |subject: &str| actions.iter().any(|action| action["subject"] == subject);
    ensure!(done("nginx.service") && done("system"), "{receipt}");
    let failed = shell(&guest, "systemctl --failed --no-legend --plain")?;
    ensure!(failed.trim().is_empty(), "units failed: {failed}\n{receipt}");
    ensure!(guest.http_get("/two.html")?.status == 200);
    agent(&guest, &["verify"])?.ok()?.says(&[&version])?;
    ensure!(guest.poweroff()? == Exit::Off);
    drop((guest, server));
    let (disk, target) = (world.arg("guest.img"), world.target().display().to_string());
    vireo(["diff", &disk, &target])?.ok()?.says(&["no difference"])?;
    world.finish()
}
