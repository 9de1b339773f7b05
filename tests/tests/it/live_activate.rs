//! What an update does to services beyond its files: checked before, proven after, undone if a
//! service does not get well, undone if the machine could not be reached any more.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_testkit::{Guest, Nspawn};
use vireo_tests::{Ran, World, agent, shell, text_at};

use crate::live_update::wait_for_tree;

/// Two services of ours. `app` reads its configuration when it starts and at no other time, though
/// it can be told to reload; `answer` listens on a port.
const BASE: &str = r#"
mkdir -p "$1/opt/app" "$1/etc/vireo/policy.d"
printf 'version = 1\n[defaults]\nsettle = "2s"\n' > "$1/etc/vireo/policy.d/50-site.toml"
printf 'base\n' > "$1/etc/app.conf"
cat > "$1/opt/app/app" <<'E'
#!/bin/sh
cat "$1" > /run/app.state
while :; do sleep 1; done
E
cat > "$1/etc/systemd/system/app.service" <<'E'
[Service]
ExecStart=/opt/app/app /etc/app.conf
ExecReload=/bin/true
[Install]
WantedBy=multi-user.target
E
cat > "$1/opt/app/answer" <<'E'
#!/usr/bin/perl
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => 8099, Listen => 5, ReuseAddr => 1) or die;
while (my $client = $server->accept) { print $client "base\n"; close $client; }
E
cat > "$1/etc/systemd/system/answer.service" <<'E'
[Service]
ExecStart=/opt/app/answer
[Install]
WantedBy=multi-user.target
E
chmod 755 "$1/opt/app/app" "$1/opt/app/answer"
for unit in app answer; do ln -s ../$unit.service "$1/etc/systemd/system/multi-user.target.wants/$unit.service"; done
"#;

/// Main process of a unit.
const PID: &str = "systemctl show -p MainPID --value";

/// What nobody must see of a check: mounts, staged files, the agent's helper.
const LEFT: &str = "grep -c overlay /proc/mounts || true; ls -A /var/lib/vireo/check /.vireo | grep -v '^/' | grep -v '^$' || true; \
    ps -eo args | grep '[c]heck-view' || true";

/// A guest of a world whose target is the base changed by `target`, with the bundle in `/tmp`.
fn guest_with<'w>(world: &'w World) -> anyhow::Result<(Nspawn<'w>, String)> {
    let guest = world.guest()?;
    world.put(&guest, "update.vireo")?;
    shell(&guest, "systemctl is-active app answer nginx ssh")?;
    Ok((guest, world.public_key()?))
}

fn apply(guest: &dyn Guest, key: &str, more: &[&str]) -> anyhow::Result<Ran> {
    agent(guest, &[&["apply", "/tmp/update.vireo", "--trust", key], more].concat())
}

fn text(guest: &dyn Guest, script: &str) -> anyhow::Result<String> {
    Ok(shell(guest, script)?.trim().to_owned())
}

fn action<'a>(receipt: &'a Value, subject: &str, verb: &str) -> anyhow::Result<&'a Value> {
    let mut actions = receipt["actions"].as_array().context("actions")?.iter();
    let found = actions.find(|it| it["subject"] == subject && it["action"] == verb);
    found.with_context(|| format!("no {verb} of {subject} in {}", receipt["actions"]))
}

/// Waits until `script` succeeds in the guest.
fn becomes(guest: &dyn Guest, script: &str, within: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + within;
    while !guest.exec(&["sh", "-ec", script])?.success() {
        ensure!(Instant::now() < until, "not within {within:?}: {script}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

#[test]
fn live_a_configuration_that_its_program_refuses_changes_nothing() -> anyhow::Result<()> {
    let target = "echo 'no_such_directive on;' > \"$1/etc/nginx/conf.d/release.conf\"; \
        echo 'sudo make me' > \"$1/var/www/html/new.html\"";
    let world = World::edited(BASE, target)?;
    let (guest, key) = guest_with(&world)?;
    let state = format!(
        "{PID} nginx; cat /etc/nginx/conf.d/release.conf; ls /var/www/html; \
        ls -la --time-style=full-iso /run/nginx.pid"
    );
    let before = shell(&guest, &state)?;
    let plan =
        agent(&guest, &["plan", "/tmp/update.vireo", "--trust", &key])?.ok()?.json("plan")?;
    ensure!(plan["checks"][0]["command"][0] == "/usr/sbin/nginx", "{plan}");

    let refused = apply(&guest, &key, &[])?.exits(5)?;
    refused.says(&[
        "nginx -t -q says",
        "unknown directive",
        "no_such_directive",
        "nothing was changed",
    ])?;
    ensure!(shell(&guest, &state)? == before, "something was changed");
    let left = text(&guest, LEFT)?;
    ensure!(left == "0", "a check left something: {left}");
    ensure!(guest.http_get("/")?.status == 200);

    // A configuration that was wrong before is not the update's fault.
    let broken =
        world.edit(world.base(), "echo 'x y;' > \"$1/etc/nginx/conf.d/a.conf\"", "broken.img")?;
    shell(&guest, "echo 'x y;' > /etc/nginx/conf.d/a.conf")?;
    for file in ["release", "added"] {
        let script = format!("echo 'add_header X-Two 2;' > \"$1/etc/nginx/conf.d/{file}.conf\"");
        let both = world.edit(&broken, &script, &format!("{file}.img"))?;
        world.capture(&broken, &both, "update.vireo")?;
        world.put(&guest, "update.vireo")?;
        // nginx does not reload what is wrong: so it ends where it began.
        let undone = apply(&guest, &key, &[])?.exits(4)?;
        undone.says(&["it fails without the update, too"])?;
    }
    drop(guest);
    world.finish()
}

#[test]
fn live_a_good_configuration_is_checked_applied_and_in_effect() -> anyhow::Result<()> {
    let target = "sed -i 's/X-Release 1/X-Release 2/' \"$1/etc/nginx/conf.d/release.conf\"; \
        echo target > \"$1/etc/app.conf\"";
    let world = World::edited(BASE, target)?;
    let (guest, key) = guest_with(&world)?;
    let before = text(&guest, &format!("{PID} nginx; {PID} app"))?;
    let receipt = apply(&guest, &key, &[])?.ok()?.json("receipt")?;
    let check = &receipt["checks"][0];
    ensure!(check["result"] == "passed" && check["command"][1] == "-t", "{check}");
    ensure!(action(&receipt, "nginx.service", "reload")?["result"] == "done", "{receipt}");
    ensure!(guest.http_get("/")?.header("x-release") == Some("2"));
    // `app` says that it has reloaded and has not; that shows, and a restart follows.
    let reload = action(&receipt, "app.service", "reload")?;
    ensure!(reload["result"] == "escalated", "{reload}");
    ensure!(text_at(reload, "/detail")?.contains("it has not read /etc/app.conf"), "{reload}");
    ensure!(action(&receipt, "app.service", "restart")?["result"] == "done", "{receipt}");
    ensure!(text(&guest, "cat /run/app.state")? == "target");
    let after = text(&guest, &format!("{PID} nginx; {PID} app"))?;
    let pids = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (before, after) = (pids(&before), pids(&after));
    ensure!(before[0] == after[0] && before[1] != after[1], "{before:?} {after:?}");
    drop(guest);
    world.finish()
}

#[test]
fn live_an_update_after_which_a_service_ends_is_undone() -> anyhow::Result<()> {
    // It starts well and ends a second later, as a program does that finds a mistake late.
    let target = "printf '#!/bin/sh\\nsleep 1\\nexit 3\\n' > \"$1/opt/app/app\"; \
        echo two > \"$1/var/www/html/two.html\"";
    let world = World::edited(BASE, target)?;
    let (guest, key) = guest_with(&world)?;
    let files = "stat -c '%i %n' /opt/app/app; cat /opt/app/app; ls /var/www/html";
    let before = shell(&guest, files)?;
    let undone = apply(&guest, &key, &[])?.exits(4)?;
    let receipt = undone.json("receipt")?;
    ensure!(receipt["outcome"] == "undone", "{receipt}");
    let because = text_at(&receipt, "/undone_because/0")?;
    ensure!(because.starts_with("app.service: "), "{because}");
    ensure!(shell(&guest, files)? == before, "the base's files are not back, inode and all");
    ensure!(text(&guest, "systemctl is-active app")? == "active");
    ensure!(text(&guest, "systemctl is-system-running || true")? == "running");
    let status = agent(&guest, &["status"])?.ok()?.json("status")?;
    ensure!(status["last"]["outcome"] == "undone" && status["under_way"] == false, "{status}");
    ensure!(guest.http_get("/two.html")?.status == 404);
    drop(guest);
    world.finish()
}

#[test]
fn live_a_service_that_is_started_again_and_again_has_its_update_undone() -> anyhow::Result<()> {
    // Whenever one looks, it is active or about to be.
    let base = format!(
        "{BASE}\nmkdir -p \"$1/etc/systemd/system/app.service.d\"; \
         printf '[Unit]\\nStartLimitIntervalSec=0\\n[Service]\\nRestart=always\\nRestartSec=200ms\\n' \
         > \"$1/etc/systemd/system/app.service.d/again.conf\""
    );
    let target = "printf '#!/bin/sh\nsleep 0.4\nexit 3\n' > \"$1/opt/app/app\"";
    let world = World::edited(&base, target)?;
    let (guest, key) = guest_with(&world)?;
    let receipt = apply(&guest, &key, &[])?.exits(4)?.json("receipt")?;
    let because = text_at(&receipt, "/undone_because/0")?;
    ensure!(because.starts_with("app.service: "), "{because}");
    let pid = text(&guest, &format!("{PID} app"))?;
    thread::sleep(Duration::from_secs(1));
    ensure!(text(&guest, &format!("{PID} app"))? == pid, "it still ends and starts");
    drop(guest);
    world.finish()
}

#[test]
fn live_a_service_that_listens_no_more_has_its_update_undone() -> anyhow::Result<()> {
    let target = "printf '#!/bin/sh\\nwhile :; do sleep 1; done\\n' > \"$1/opt/app/answer\"";
    let world = World::edited(BASE, target)?;
    let (guest, key) = guest_with(&world)?;
    // Runs, and is active as before: only its port shows.
    let receipt = apply(&guest, &key, &[])?.exits(4)?.json("receipt")?;
    let because = text_at(&receipt, "/undone_because/0")?;
    ensure!(
        because.contains("answer.service: it does not listen on tcp 0.0.0.0:8099"),
        "{because}"
    );
    let ask =
        "perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(q(127.0.0.1:8099))->getline'";
    becomes(&guest, &format!("[ \"$({ask})\" = base ]"), Duration::from_secs(5))?;
    drop(guest);
    world.finish()
}

#[test]
fn live_what_could_cut_the_machine_off_is_undone_unless_confirmed() -> anyhow::Result<()> {
    let target = "echo 'MaxAuthTries 3' >> \"$1/etc/ssh/sshd_config\"";
    let base = format!(
        "{BASE}\nprintf '[[connectivity]]\\npath = \"/etc/ssh/**\"\\nunit = \"ssh.service\"\\n\
         confirm = \"remote\"\\ntimeout = \"6s\"\\n' >> \"$1/etc/vireo/policy.d/50-site.toml\""
    );
    let world = World::edited(&base, target)?;
    let (guest, key) = guest_with(&world)?;
    let tries = "sshd -T | grep '^maxauthtries '";
    ensure!(text(&guest, tries)? == "maxauthtries 6");
    let waits = apply(&guest, &key, &[])?.exits(3)?;
    let receipt = waits.json("receipt")?;
    ensure!(receipt["outcome"] == "pending", "{receipt}");
    waits.says(&["vireo-agent confirm "])?;
    ensure!(receipt["checks"][0]["result"] == "passed", "{receipt}");
    ensure!(text(&guest, tries)? == "maxauthtries 3");
    // Nobody says a word.
    becomes(
        &guest,
        "[ \"$(sshd -T | grep ^maxauthtries)\" = 'maxauthtries 6' ]",
        Duration::from_secs(25),
    )?;
    becomes(
        &guest,
        "vireo-agent status --json | grep -q '\"outcome\":\"undone\"'",
        Duration::from_secs(15),
    )?;
    ensure!(text(&guest, "systemctl is-active ssh")? == "active");
    becomes(&guest, "[ ! -e /var/lib/vireo/guard.json ]", Duration::from_secs(5))?;

    // Confirmed, it stays.
    let receipt = apply(&guest, &key, &[])?.exits(3)?.json("receipt")?;
    let pending = receipt["pending"].as_array().context("pending")?;
    let reasons = pending.iter().filter_map(|it| it["reason"].as_str());
    let mut nonces = reasons.filter_map(|reason| reason.split("vireo-agent confirm ").nth(1));
    let nonce = nonces.next().context("a number to confirm")?;
    agent(&guest, &["confirm", "0123"])?.exits(1)?;
    agent(&guest, &["confirm", nonce])?.ok()?;
    thread::sleep(Duration::from_secs(8));
    ensure!(text(&guest, tries)? == "maxauthtries 3");
    ensure!(text(&guest, "systemctl list-timers --all --no-legend 'vireo-*'")?.is_empty());
    drop(guest);
    world.finish()
}

#[test]
fn live_an_agent_that_reaches_its_repository_confirms_by_itself() -> anyhow::Result<()> {
    let target = "echo 'MaxAuthTries 3' >> \"$1/etc/ssh/sshd_config\"";
    let world = World::edited(BASE, target)?;
    let server = world.serve()?;
    let guest = world.guest()?;
    world.enrol(&server, &guest)?;
    shell(&guest, "systemctl start vireo-agent")?;
    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?;
    let version = world.version(&server)?;
    wait_for_tree(&guest, &version)?;
    becomes(&guest, "[ ! -e /var/lib/vireo/guard.json ]", Duration::from_secs(15))?;
    let status = agent(&guest, &["status"])?.ok()?.json("status")?;
    ensure!(status["last"]["outcome"] == "done", "{status}");
    ensure!(status["last"]["plan"]["system"]["dead_man"]["confirm"] == "remote", "{status}");
    ensure!(text(&guest, "systemctl list-timers --all --no-legend 'vireo-*'")?.is_empty());
    drop((guest, server));
    world.finish()
}

#[test]
fn live_a_mistake_in_the_policy_is_named_before_anything_happens() -> anyhow::Result<()> {
    let target = "echo target > \"$1/etc/app.conf\"; echo '# more' >> \"$1/opt/app/answer\"";
    let world = World::edited(BASE, target)?;
    let (guest, key) = guest_with(&world)?;
    shell(
        &guest,
        "mkdir -p /run/vireo/policy.d; printf 'version = 1\\n\\n[[unit]]\\nunti = \"a\"\\n' > /run/vireo/policy.d/60.toml",
    )?;
    for command in ["plan", "apply"] {
        let failed = agent(&guest, &[command, "/tmp/update.vireo", "--trust", &key])?.exits(1)?;
        failed.says(&["/run/vireo/policy.d/60.toml, line 4", "unknown field `unti`"])?;
    }
    ensure!(text(&guest, "cat /etc/app.conf; cat /run/app.state")? == "base\nbase");

    // A right one counts: the unit is held, and a stopped or masked unit stays as it is.
    let hold = "printf 'version = 1\\n[[unit]]\\nunit = \"app.service\"\\nhold = \"not today\"\\n' \
        > /run/vireo/policy.d/60.toml; systemctl stop answer; systemctl -q mask answer --runtime";
    shell(&guest, hold)?;
    let receipt = apply(&guest, &key, &[])?.exits(3)?.json("receipt")?;
    ensure!(receipt["pending"][0]["reason"] == "not today", "{receipt}");
    ensure!(text(&guest, "cat /etc/app.conf; cat /run/app.state")? == "target\nbase");
    ensure!(text(&guest, "systemctl is-active answer || true")? == "inactive");

    // What waits is what is seen: until somebody restarts it.
    let status = || agent(&guest, &["status"])?.ok()?.json("status");
    ensure!(status()?["last"]["pending"][0]["subject"] == "app.service", "{}", status()?);
    shell(&guest, "systemctl restart app")?;
    let status = status()?;
    ensure!(status["last"]["pending"] == serde_json::json!([]), "{status}");
    ensure!(status["last"]["outcome"] == "done", "{status}");
    drop(guest);
    world.finish()
}

#[test]
fn live_an_update_brings_its_policy_and_the_site_has_the_last_word() -> anyhow::Result<()> {
    let target = "echo target > \"$1/etc/app.conf\"; mkdir -p \"$1/usr/lib/vireo/policy.d\"; \
        printf 'version = 1\\n[[unit]]\\nunit = \"app.service\"\\nhold = \"by the version\"\\n' \
        > \"$1/usr/lib/vireo/policy.d/10-app.toml\"";
    let world = World::edited(BASE, target)?;
    let (guest, key) = guest_with(&world)?;
    let receipt = apply(&guest, &key, &[])?.exits(3)?.json("receipt")?;
    ensure!(receipt["pending"][0]["reason"] == "by the version", "{receipt}");
    ensure!(text(&guest, "cat /etc/app.conf; cat /run/app.state")? == "target\nbase");

    agent(&guest, &["undo"])?;
    ensure!(text(&guest, "cat /etc/app.conf; ls /usr/lib/vireo 2>/dev/null || true")? == "base");
    let site = "mkdir -p /run/vireo/policy.d; echo 'version = 1' > /run/vireo/policy.d/10-app.toml";
    shell(&guest, site)?;
    apply(&guest, &key, &[])?.ok()?;
    ensure!(text(&guest, "cat /run/app.state")? == "target");
    drop(guest);
    world.finish()
}

#[test]
fn live_a_bus_that_is_down_and_a_unit_that_hangs_do_not_stop_an_update() -> anyhow::Result<()> {
    let base = format!(
        "{BASE}\nprintf '#!/bin/sh\\ntrap \"\" TERM\\nwhile :; do sleep 1; done\\n' > \"$1/opt/app/answer\"\n\
         sed -i 's/^ExecStart/TimeoutStopSec=3s\\nExecStart/' \"$1/etc/systemd/system/answer.service\""
    );
    let target = "echo target > \"$1/etc/app.conf\"; echo '# more' >> \"$1/opt/app/answer\"";
    let world = World::edited(&base, target)?;
    let (guest, key) = guest_with(&world)?;
    let pid = text(&guest, &format!("{PID} answer"))?;
    shell(&guest, "systemctl stop dbus.socket dbus.service || true; ! systemctl is-active dbus")?;
    let receipt = apply(&guest, &key, &[])?.ok()?.json("receipt")?;
    // It ignores being told to end, until it is not asked any more.
    ensure!(action(&receipt, "answer.service", "restart")?["result"] == "done", "{receipt}");
    ensure!(text(&guest, &format!("{PID} answer"))? != pid);
    ensure!(text(&guest, "cat /run/app.state")? == "target");
    drop(guest);
    world.finish()
}

#[test]
fn live_a_start_limit_neither_ends_a_service_nor_is_a_failed_one_started() -> anyhow::Result<()> {
    let base = format!(
        "{BASE}\nsed -i 's/^.Service.$/[Unit]\\nStartLimitBurst=2\\nStartLimitIntervalSec=1h\\n[Service]/' \
         \"$1/etc/systemd/system/answer.service\"\n\
         printf '#!/bin/sh\\nexit 1\\n' > \"$1/opt/app/fails\"; chmod 755 \"$1/opt/app/fails\"\n\
         printf '[Unit]\\nStartLimitBurst=2\\nStartLimitIntervalSec=1h\\n[Service]\\nExecStart=/opt/app/fails\\n\
         Restart=always\\nRestartSec=100ms\\n' > \"$1/etc/systemd/system/fails.service\""
    );
    let target = "for file in answer fails; do echo '# more' >> \"$1/opt/app/$file\"; done";
    let world = World::edited(&base, target)?;
    let (guest, key) = guest_with(&world)?;
    // The second start of two within the hour, and a unit that is beyond its limit.
    shell(&guest, "systemctl restart answer; systemctl start fails || true")?;
    becomes(
        &guest,
        "[ \"$(systemctl show -p Result --value fails)\" = start-limit-hit ] || \
         [ \"$(systemctl is-active fails)\" = failed ]",
        Duration::from_secs(10),
    )?;
    let pid = text(&guest, &format!("{PID} answer"))?;
    let receipt = apply(&guest, &key, &[])?.ok()?.json("receipt")?;
    ensure!(action(&receipt, "answer.service", "restart")?["result"] == "done", "{receipt}");
    ensure!(text(&guest, &format!("{PID} answer"))? != pid);
    ensure!(text(&guest, "systemctl is-active answer")? == "active");
    ensure!(action(&receipt, "fails.service", "restart").is_err(), "{receipt}");
    ensure!(text(&guest, "systemctl is-active fails || true")? == "failed", "it was left alone");
    drop(guest);
    world.finish()
}

#[test]
fn live_without_a_service_manager_the_files_are_there_and_what_waits_is_said() -> anyhow::Result<()>
{
    let target = "echo target > \"$1/etc/app.conf\"; echo '# more' >> \"$1/opt/app/answer\"";
    let world = World::edited(BASE, target)?;
    let (guest, key) = guest_with(&world)?;
    let pid = text(&guest, &format!("{PID} answer"))?;
    // As the machine looks with another init: nobody is where systemd answers.
    let apply = format!(
        "unshare --mount sh -c 'mount -t tmpfs none /run; \
         exec vireo-agent apply /tmp/update.vireo --trust {key} --json'"
    );
    let ran = Ran::in_guest(guest.exec(&["sh", "-c", &apply])?, "without a manager".to_owned());
    let receipt = ran.exits(3)?.json("receipt")?;
    ensure!(receipt["outcome"] == "pending", "{receipt}");
    let notes = receipt["plan"]["notes"].to_string();
    ensure!(notes.contains("no service manager answers"), "{receipt}");
    let waits = text_at(&receipt, "/pending/0/reason")?;
    ensure!(waits.contains("/etc/app.conf") && waits.contains("/opt/app/answer"), "{receipt}");
    ensure!(receipt["actions"].as_array().is_some_and(Vec::is_empty), "{receipt}");
    ensure!(text(&guest, "cat /etc/app.conf; tail -n 1 /opt/app/answer")? == "target\n# more");
    ensure!(text(&guest, &format!("{PID} answer"))? == pid, "nobody restarted it");
    drop(guest);
    world.finish()
}

#[test]
fn live_after_an_undo_by_hand_the_next_update_goes_its_way() -> anyhow::Result<()> {
    let target = "echo 'MaxAuthTries 3' >> \"$1/etc/ssh/sshd_config\"";
    let world = World::edited(BASE, target)?;
    let (guest, key) = guest_with(&world)?;
    // It waits to be confirmed, and somebody takes it back before that.
    apply(&guest, &key, &[])?.exits(3)?;
    let undone = agent(&guest, &["undo"])?.ok()?.json("receipt")?;
    ensure!(undone["outcome"] == "done", "{undone}");
    ensure!(text(&guest, "ls /var/lib/vireo/guard.json 2>&1 || true")?.contains("No such"));
    ensure!(text(&guest, "systemctl list-timers --all --no-legend 'vireo-*'")?.is_empty());
    ensure!(text(&guest, "sshd -T | grep '^maxauthtries '")? == "maxauthtries 6");
    // The same update has a promise of its own, and one that needs none has none.
    let again = apply(&guest, &key, &[])?.exits(3)?;
    again.says(&["vireo-agent confirm "])?;
    agent(&guest, &["undo"])?.ok()?;
    let page = world.edit(world.base(), "echo page > \"$1/var/www/html/page.html\"", "page.img")?;
    world.capture(world.base(), &page, "update.vireo")?;
    world.put(&guest, "update.vireo")?;
    let receipt = apply(&guest, &key, &[])?.ok()?.json("receipt")?;
    ensure!(receipt["outcome"] == "done", "{receipt}");
    ensure!(guest.http_get("/page.html")?.status == 200);
    drop(guest);
    world.finish()
}

#[test]
fn live_an_update_that_brings_a_policy_with_a_mistake_is_refused() -> anyhow::Result<()> {
    let target = "printf 'version = 1\\n[[unit]]\\nunti = \"a\"\\n' > \"$1/etc/vireo/policy.d/60-more.toml\"; \
        echo target > \"$1/etc/app.conf\"";
    let world = World::edited(BASE, target)?;
    let (guest, key) = guest_with(&world)?;
    let refused = apply(&guest, &key, &[])?.exits(5)?;
    refused.says(&["/etc/vireo/policy.d/60-more.toml", "unknown field `unti`"])?;
    ensure!(text(&guest, "cat /etc/app.conf; ls /etc/vireo/policy.d")? == "base\n50-site.toml");
    drop(guest);
    world.finish()
}
