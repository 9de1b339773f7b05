//! Local edits on a running guest, and a package manager at work beside an update.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_testkit::{Guest, Nspawn};
use vireo_tests::{Ran, Server, World, agent, shell};

const SITE: &str = "/etc/nginx/conf.d/site.conf";
const OTHER: &str = "/etc/nginx/conf.d/other.conf";
const TOOL: &str = "/usr/local/bin/tool";

/// Two configurations of nginx, of which the headers show which one is loaded, and a program.
const BASE: &str = "printf 'add_header X-First base always;\\n#\\n#\\n#\\n#\\nadd_header X-Last base always;\\n' \
        > \"$1/etc/nginx/conf.d/site.conf\"; \
    echo 'add_header X-Other base always;' > \"$1/etc/nginx/conf.d/other.conf\"; \
    cp \"$1/usr/bin/true\" \"$1/usr/local/bin/tool\"";
const NEW_SITE: &str = "sed -i 's/X-Last base/X-Last target/' \"$1/etc/nginx/conf.d/site.conf\"";
const NEW_OTHER: &str =
    "sed -i 's/X-Other base/X-Other target/' \"$1/etc/nginx/conf.d/other.conf\"";
const NEW_TOOL: &str = "cp \"$1/usr/bin/false\" \"$1/usr/local/bin/tool\"; \
    sed -i 's/X-Last base/X-Last target/' \"$1/etc/nginx/conf.d/site.conf\"";

/// Every name that belongs to a version, with inode, times to the nanosecond, mode and length.
const LISTING: &str = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp \
    -o -path /var/tmp -o -path /var/log -o -path /var/lib/vireo \\) -prune -o \
    -printf '%p %i %C@ %T@ %m %s %n\\n' | sort";

/// nginx's processes: a reload replaces the workers.
const NGINX: &str = "cat /sys/fs/cgroup/system.slice/nginx.service/cgroup.procs";

/// Holds dpkg's lock as dpkg does, with a record lock (fcntl(2)), until it is stopped.
const HOLD: &str = "use Fcntl; open(F, '+>>', '/var/lib/dpkg/lock') or die;
my $whole = pack('s s x4 l! l! i', F_WRLCK, 0, 0, 0, 0);
fcntl(F, F_SETLK, $whole) or die; open(H, '>', '/run/held') or die; close(H); sleep 1000;";

/// A guest that is enrolled, whose agent does not run by itself, and a version that it lacks.
fn pushed(world: &World) -> anyhow::Result<(Server, Nspawn<'_>)> {
    let server = world.serve()?;
    let guest = world.guest()?;
    world.enrol(&server, &guest)?;
    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?;
    Ok((server, guest))
}

/// Edits a file as an administrator does, and has nginx load it.
fn edit(guest: &dyn Guest, path: &str, expression: &str) -> anyhow::Result<()> {
    let reload = "nginx -t -q && systemctl reload nginx && sleep 0.5";
    shell(guest, &format!("sed -i '{expression}' {path} && {reload}")).map(drop)
}

/// Waits until nginx answers with that header: a reload is over before its old workers are gone.
fn becomes(guest: &dyn Guest, name: &str, value: &str) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(5);
    while header(guest, name)? != value {
        ensure!(Instant::now() < until, "{name} does not become {value}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn header(guest: &dyn Guest, name: &str) -> anyhow::Result<String> {
    let page = guest.http_get("/")?;
    Ok(page.header(name).with_context(|| format!("no {name}: {page:?}"))?.to_owned())
}

fn applied(ran: Ran) -> anyhow::Result<Value> {
    ensure!(matches!(ran.output().code, 0 | 3), "{}", ran.output().tail());
    ran.json("receipt")
}

/// The one local edit that a plan is about.
fn drift(plan: &Value) -> anyhow::Result<[String; 3]> {
    let list = plan["drift"].as_array().with_context(|| format!("no drift in {plan}"))?;
    ensure!(list.len() == 1, "{list:?}");
    Ok(["path", "how", "beside"].map(|key| list[0][key].as_str().unwrap_or_default().to_owned()))
}

/// The paths that differ from the version, with their causes.
fn causes(guest: &dyn Guest) -> anyhow::Result<Vec<[String; 2]>> {
    let report = agent(guest, &["verify"])?.exits(1)?.json("verify")?;
    let list = report["differing"].as_array().context("a list")?;
    let text = |value: &Value, key| value[key].as_str().unwrap_or_default().to_owned();
    Ok(list.iter().map(|it| [text(it, "path"), text(it, "cause")]).collect())
}

#[test]
fn live_an_edit_of_another_line_is_merged_and_both_are_served() -> anyhow::Result<()> {
    let world = World::edited(BASE, NEW_SITE)?;
    let (server, guest) = pushed(&world)?;
    edit(&guest, SITE, "s/X-First base/X-First mine/")?;
    becomes(&guest, "x-first", "mine")?;
    becomes(&guest, "x-last", "base")?;
    ensure!(causes(&guest)? == [[SITE, "edit"]].map(|it| it.map(str::to_owned)));

    // A plan says what will come of it, and touches nothing: not a time, not an inode.
    let before = shell(&guest, LISTING)?;
    ensure!(before.lines().count() > 5000, "a short listing: {}", before.lines().count());
    let plan = agent(&guest, &["plan"])?.ok()?.json("plan")?;
    ensure!(drift(&plan)? == [SITE, "merged", ""], "{plan}");
    ensure!(shell(&guest, LISTING)? == before, "planning changed something");

    let receipt = applied(agent(&guest, &["apply"])?)?;
    ensure!(drift(&receipt["plan"])? == [SITE, "merged", ""], "{receipt}");
    becomes(&guest, "x-last", "target")?;
    becomes(&guest, "x-first", "mine")?;
    ensure!(causes(&guest)? == [[SITE, "edit-merged"]].map(|it| it.map(str::to_owned)));

    // The way back leads to the edit, not past it.
    applied(agent(&guest, &["undo"])?)?;
    becomes(&guest, "x-first", "mine")?;
    becomes(&guest, "x-last", "base")?;
    drop((guest, server));
    world.finish()
}

#[test]
fn live_an_edit_of_the_same_line_is_kept_and_the_updates_put_beside() -> anyhow::Result<()> {
    let world = World::edited(BASE, NEW_OTHER)?;
    let (server, guest) = pushed(&world)?;
    edit(&guest, OTHER, "s/X-Other base/X-Other mine/")?;
    let beside = format!("{OTHER}.vireo-new");
    let state = format!("stat -c '%i %y %a' {OTHER}; cat {OTHER}; {NGINX}");
    let before = shell(&guest, &state)?;

    let plan = agent(&guest, &["plan"])?.ok()?.json("plan")?;
    ensure!(drift(&plan)? == [OTHER, "kept", &beside], "{plan}");
    let receipt = applied(agent(&guest, &["apply"])?)?;
    ensure!(receipt["actions"].as_array().is_some_and(Vec::is_empty), "{receipt}");
    ensure!(shell(&guest, &state)? == before, "nginx or its configuration was touched");
    ensure!(header(&guest, "x-other")? == "mine");
    ensure!(shell(&guest, &format!("cat {beside}"))? == "add_header X-Other target always;\n");
    let expected = [[OTHER, "edit-kept"], [&beside, "copy"]].map(|it| it.map(str::to_owned));
    ensure!(causes(&guest)? == expected, "{:?}", causes(&guest)?);

    applied(agent(&guest, &["undo"])?)?;
    ensure!(shell(&guest, &state)? == before, "undoing touched the edit");
    ensure!(shell(&guest, &format!("ls {beside} 2>/dev/null || true"))?.is_empty());
    drop((guest, server));
    world.finish()
}

#[test]
fn live_a_changed_program_refuses_the_update_and_nothing_is_changed() -> anyhow::Result<()> {
    let world = World::edited(BASE, NEW_TOOL)?;
    let (server, guest) = pushed(&world)?;
    shell(&guest, &format!("printf x >> {TOOL}"))?;
    // The state directory is no part of the version; what makes it moves the root's own times.
    shell(&guest, "mkdir -m 700 -p /.vireo")?;
    let before = shell(&guest, LISTING)?;
    for command in ["plan", "apply"] {
        let refused = agent(&guest, &[command])?.exits(5)?;
        refused.says(&[TOOL, "differs from the bundle's base"])?;
        ensure!(shell(&guest, LISTING)? == before, "{command} changed something");
    }
    ensure!(header(&guest, "x-last")? == "base", "the rest of the update came");
    ensure!(causes(&guest)? == [[TOOL, "changed"]].map(|it| it.map(str::to_owned)));

    // Put back, the same update goes through.
    shell(&guest, &format!("cp /usr/bin/true {TOOL}.part; touch -r {TOOL} {TOOL}.part"))?;
    shell(&guest, &format!("mv {TOOL}.part {TOOL}"))?;
    applied(agent(&guest, &["apply"])?)?;
    becomes(&guest, "x-last", "target")?;
    agent(&guest, &["verify"])?.ok()?;
    drop((guest, server));
    world.finish()
}

/// Puts a rule for locally edited files into the machine's own policy.
fn rule(guest: &dyn Guest, rules: &str) -> anyhow::Result<()> {
    let dir = "/run/vireo/policy.d";
    shell(guest, &format!("mkdir -p {dir}; printf 'version = 1\\n{rules}' > {dir}/drift.toml"))?;
    Ok(())
}

#[test]
fn live_the_policy_says_what_becomes_of_local_edits() -> anyhow::Result<()> {
    let world = World::edited(BASE, &format!("{NEW_OTHER}; {NEW_TOOL}"))?;
    let (server, guest) = pushed(&world)?;
    edit(&guest, OTHER, "s/X-Other base/X-Other mine/")?;
    shell(&guest, &format!("printf x >> {TOOL}; mkdir -m 700 -p /.vireo"))?;
    let state = format!("stat -c '%i %s %a' {OTHER} {TOOL}; cat {OTHER}");
    let edited = shell(&guest, &state)?;

    // Refused: for the conflict alone, as the program may be taken.
    let take = format!("[[drift]]\\npath = \"{TOOL}\"\\non = \"take\"\\n");
    let of_config = |conflict: &str| {
        let path = "/etc/nginx/**";
        format!(
            "[[drift]]\\npath = \"{path}\"\\non = \"merge\"\\nconflict = \"{conflict}\"\\n{take}"
        )
    };
    rule(&guest, &of_config("refuse"))?;
    let before = shell(&guest, LISTING)?;
    agent(&guest, &["apply"])?.exits(5)?.says(&[OTHER, "differs from the bundle's base"])?;
    ensure!(shell(&guest, LISTING)? == before, "a refused update changed something");

    // Taken: the target is in effect, the edits are beside it.
    rule(&guest, &of_config("take"))?;
    applied(agent(&guest, &["apply"])?)?;
    becomes(&guest, "x-other", "target")?;
    ensure!(shell(&guest, &format!("cmp {TOOL} /usr/bin/false && echo same"))?.trim() == "same");
    let kept = shell(&guest, &format!("cat {OTHER}.vireo-local; tail -c 1 {TOOL}.vireo-local"))?;
    ensure!(kept == "add_header X-Other mine always;\nx", "{kept}");

    // The way back leads to the edits, to their very inodes.
    applied(agent(&guest, &["undo"])?)?;
    ensure!(shell(&guest, &state)? == edited, "{}", shell(&guest, &state)?);
    ensure!(
        shell(&guest, "ls /etc/nginx/conf.d /usr/local/bin")?.matches("vireo-local").count() == 0
    );
    becomes(&guest, "x-other", "mine")?;
    drop((guest, server));
    world.finish()
}

#[test]
fn live_a_package_manager_at_work_is_waited_for_or_keeps_the_update_out() -> anyhow::Result<()> {
    let world = World::edited(BASE, NEW_SITE)?;
    let guest = world.guest()?;
    world.put(&guest, "update.vireo")?;
    let (key, bundle) = (world.public_key()?, "/tmp/update.vireo");
    let hold = ["sh", "-c", "cat > /tmp/hold.pl; systemd-run -q --unit=holder perl /tmp/hold.pl"];
    let held = guest.exec_with(&hold, HOLD.as_bytes(), Duration::from_secs(20))?;
    ensure!(held.success(), "{}", held.tail());
    shell(&guest, "for i in $(seq 50); do [ -e /run/held ] && exit 0; sleep 0.1; done; exit 1")?;
    shell(&guest, "mkdir -m 700 -p /.vireo")?;

    let before = shell(&guest, LISTING)?;
    let busy = agent(&guest, &["apply", bundle, "--trust", &key])?.exits(3)?;
    busy.says(&["package manager is at work", "lib/dpkg/lock", "--wait"])?;
    let late = Instant::now();
    let busy = agent(&guest, &["apply", bundle, "--trust", &key, "--wait", "2"])?.exits(3)?;
    ensure!(late.elapsed() >= Duration::from_secs(2), "it did not wait");
    busy.says(&["package manager is at work"])?;
    ensure!(shell(&guest, LISTING)? == before, "something was changed");
    // Looking is allowed.
    agent(&guest, &["plan", bundle, "--trust", &key])?.ok()?;

    thread::scope(|scope| {
        let waiting =
            scope.spawn(|| agent(&guest, &["apply", bundle, "--trust", &key, "--wait", "40"]));
        thread::sleep(Duration::from_secs(2));
        ensure!(!waiting.is_finished() && header(&guest, "x-last")? == "base", "it did not wait");
        shell(&guest, "systemctl stop holder")?;
        applied(waiting.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??).map(drop)
    })?;
    becomes(&guest, "x-last", "target")?;
    // And dpkg's lock is free again.
    agent(&guest, &["undo"])?.ok()?;
    drop(guest);
    world.finish()
}
