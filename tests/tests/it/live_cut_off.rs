//! An update that cuts a machine off from its repository, and one that could have and does not.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;
use vireo_testkit::{Guest, HOST_ADDRESS};
use vireo_tests::{Server, World, agent, shell};

use crate::live_update::wait_for_tree;

/// A service that is a firewall of one rule, by a file of those that could cut the machine off.
fn base() -> String {
    format!(
        r#"
mkdir -p "$1/opt/wall" "$1/etc/vireo/policy.d"
cat > "$1/etc/vireo/policy.d/50-site.toml" <<'E'
version = 1
[defaults]
settle = "1s"
[[connectivity]]
path = "/etc/wall.conf"
unit = "wall.service"
confirm = "remote"
timeout = "12s"
E
echo open > "$1/etc/wall.conf"
cat > "$1/opt/wall/wall" <<'E'
#!/bin/sh
read rule < /etc/wall.conf
ip route del blackhole {HOST_ADDRESS}/32 2>/dev/null
if [ "$rule" = closed ]; then ip route add blackhole {HOST_ADDRESS}/32; fi
echo "$rule" > /run/wall
exec sleep infinity
E
chmod 755 "$1/opt/wall/wall"
printf '[Service]\nExecStart=/opt/wall/wall /etc/wall.conf\n' > "$1/etc/systemd/system/wall.service"
ln -s ../wall.service "$1/etc/systemd/system/multi-user.target.wants/wall.service"
"#
    )
}

/// Longest for an update to be there, and for it to be taken back.
const DEADLINE: Duration = Duration::from_secs(60);

fn wall(guest: &dyn Guest) -> anyhow::Result<String> {
    Ok(shell(guest, "cat /run/wall")?.trim().to_owned())
}

/// Whether the guest reaches its repository, by another program than the agent.
fn reaches(guest: &dyn Guest, server: &Server) -> anyhow::Result<bool> {
    let ask = ["curl", "-sk", "-o", "/dev/null", "--max-time", "2", server.url()];
    // Certificates of clients are asked for after the connection: any answer is one.
    let failed_to_connect = [6, 7, 28];
    Ok(!failed_to_connect.contains(&guest.exec(&ask)?.code))
}

fn status(guest: &dyn Guest) -> anyhow::Result<Value> {
    agent(guest, &["status"])?.ok()?.json("status")
}

fn wait(what: &str, mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
fn live_an_update_that_cuts_the_machine_off_is_undone_and_the_link_is_back() -> anyhow::Result<()> {
    let world = World::edited(&base(), "echo open again > \"$1/etc/wall.conf\"")?;
    let server = world.serve()?;
    let guest = world.guest()?;
    world.enrol(&server, &guest)?;
    shell(&guest, "systemctl start vireo-agent")?;
    ensure!(reaches(&guest, &server)? && wall(&guest)? == "open");

    // A good one of that kind is confirmed over the link that it left, and stays.
    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?;
    let good = world.version(&server)?;
    let last = wait_for_tree(&guest, &good)?;
    ensure!(last["plan"]["system"]["dead_man"]["confirm"] == "remote", "{last}");
    let confirmed = "[ ! -e /var/lib/vireo/guard.json ] && echo yes || true";
    wait("confirmation", || Ok(shell(&guest, confirmed)?.trim() == "yes"))?;
    ensure!(status(&guest)?["last"]["outcome"] == "done", "{}", status(&guest)?);

    // One that closes the wall: seen to be cut off, and to be back without anybody's help.
    let closed = world.edit(world.target(), "echo closed > \"$1/etc/wall.conf\"", "closed.img")?;
    world.capture(world.target(), &closed, "closed.vireo")?;
    world.ask(&server, &["push", &world.arg("closed.vireo"), "web"])?.ok()?;
    let bad = world.version(&server)?;
    wait("the wall is closed", || Ok(wall(&guest)? == "closed"))?;
    ensure!(!reaches(&guest, &server)?, "the link was not cut");
    let cut = Instant::now();
    wait("the link is back", || reaches(&guest, &server))?;
    println!("cut off for {:.1?}", cut.elapsed());
    wait("the undo is over", || Ok(status(&guest)?["last"]["outcome"] == "undone"))?;
    let after = status(&guest)?;
    ensure!(after["tree"] == good.as_str() && bad != good, "{after}");
    let because = after["last"]["undone_because"].to_string();
    ensure!(because.contains("confirm"), "{because}");
    ensure!(wall(&guest)? == "open again");
    ensure!(shell(&guest, "cat /etc/wall.conf")?.trim() == "open again");
    shell(&guest, "systemctl is-active vireo-agent wall")?;

    // It is not tried again, and no timer of the promise is left.
    thread::sleep(Duration::from_secs(4));
    ensure!(wall(&guest)? == "open again" && reaches(&guest, &server)?);
    let timers = shell(&guest, "systemctl list-timers --all --no-legend 'vireo-*'")?;
    ensure!(timers.is_empty(), "{timers}");
    let verified = agent(&guest, &["verify"])?.ok()?.json("verify")?;
    ensure!(verified["found"] == good.as_str(), "{verified}");
    drop((guest, server));
    world.finish()
}
