//! `kill -9` of the agent in the middle of an update.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use vireo_testkit::{Guest, Output};
use vireo_tests::{Ambush, Moment, World, agent, shell, vireo};

use crate::live_update::{serves_base, serves_target, wait_for_tree};

/// What `guest.exec` gives for a program that SIGKILL ended.
const KILLED: i32 = 128 + 9;

/// Longest for a process in the guest to be there.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Moments of an update by hand: while staging, at the commit, among the renames, after them.
const MOMENTS: &[(&str, u32)] = &[
    ("mkdirat", 3),
    ("linkat", 5),
    ("syncfs", 1),
    ("renameat", 1),
    ("renameat", 9),
    ("syncfs", 2),
    ("fsync", 6),
    ("unlinkat", 4),
];

/// The host's number of the guest's process that `is_it` finds by command line.
fn find_process(is_it: &dyn Fn(&[&[u8]]) -> bool) -> anyhow::Result<Option<u32>> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let inside = status
            .lines()
            .any(|line| line.starts_with("NSpid:") && line.split_whitespace().count() > 2);
        if inside && is_it(&words) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Waits for it.
fn wait_process(is_it: &dyn Fn(&[&[u8]]) -> bool) -> anyhow::Result<u32> {
    let started = Instant::now();
    while started.elapsed() < START_DEADLINE {
        if let Some(pid) = find_process(is_it)? {
            return Ok(pid);
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("no such process in the guest after {START_DEADLINE:?}")
}

/// Runs `vireo-agent apply BUNDLE` in the guest and kills it at `moment`.
fn apply_killed(
    guest: &(dyn Guest + Sync),
    moment: Moment,
    bundle: &str,
    key: &str,
) -> anyhow::Result<Output> {
    // A shell that waits for the ambush and becomes the agent.
    let script = "while [ ! -e /tmp/go ]; do sleep 0.02; done; rm /tmp/go; exec \"$@\"";
    let bundle = format!("/tmp/{bundle}");
    let argv = [
        "sh",
        "-c",
        script,
        "ambushed",
        "vireo-agent",
        "apply",
        &bundle,
        "--trust",
        key,
        "--no-guard",
    ];
    thread::scope(|scope| {
        let applying = scope.spawn(|| guest.exec(&argv));
        let pid = wait_process(&|words| {
            words.first() == Some(&&b"sh"[..]) && words.contains(&&b"ambushed"[..])
        })?;
        let ambush = moment.ambush(pid)?;
        shell(guest, "touch /tmp/go")?;
        let output = applying.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        drop(ambush);
        Ok(output)
    })
}

#[test]
fn live_an_agent_killed_while_applying_converges_when_run_again() -> anyhow::Result<()> {
    let world = World::new()?;
    world.capture(world.target(), world.base(), "back.vireo")?;
    let guest = world.guest()?;
    world.put(&guest, "update.vireo")?;
    world.put(&guest, "back.vireo")?;
    let key = world.public_key()?;
    let (mut killed, mut forward) = (0, true);
    // There and back again, so that one guest serves for all moments.
    for (call, nth) in MOMENTS {
        let moment = Moment { call, nth: *nth };
        let bundle = if forward { "update.vireo" } else { "back.vireo" };
        let check = || -> anyhow::Result<i32> {
            let code = apply_killed(&guest, moment, bundle, &key)?.code;
            ensure!(matches!(code, KILLED | 0 | 3), "exit code {code}");
            let again = agent(
                &guest,
                &["apply", &format!("/tmp/{bundle}"), "--trust", &key, "--no-guard"],
            )?;
            ensure!(matches!(again.output().code, 0 | 3), "{}", again.output().tail());
            if forward {
                serves_target(&guest)?
            } else {
                serves_base(&guest)?
            }
            let left =
                shell(&guest, "ls -A /.vireo; ls /var/lib/vireo/activation* 2>/dev/null || true")?;
            ensure!(
                !["-staged", "-committed", "-done", "activation"]
                    .iter()
                    .any(|it| left.contains(it)),
                "{left}"
            );
            Ok(code)
        };
        let code = check().with_context(|| format!("{moment:?} of {bundle}"))?;
        killed += usize::from(code == KILLED);
        forward = !forward;
    }
    ensure!(killed * 4 >= MOMENTS.len() * 3, "killed only {killed} times");
    let state = shell(&guest, "systemctl is-system-running --wait || systemctl --failed")?;
    ensure!(state.trim() == "running", "{state}");
    drop(guest);
    world.finish()
}

/// Lies in wait for the agent's service.
fn ambush_service(moment: Moment) -> anyhow::Result<Ambush> {
    let pid = wait_process(&|words| {
        words.first() == Some(&&b"/usr/bin/vireo-agent"[..]) && words.get(1) == Some(&&b"run"[..])
    })?;
    moment.ambush(pid)
}

#[test]
fn live_a_killed_agent_is_started_again_and_completes_the_update() -> anyhow::Result<()> {
    let world = World::new()?;
    world.capture(world.target(), world.base(), "back.vireo")?;
    let server = world.serve()?;
    let mut guest = world.guest()?;
    world.enrol(&server, &guest)?;
    shell(&guest, "systemctl start vireo-agent")?;

    // Before the commit, there; among the renames, back.
    for (bundle, moment) in [
        ("update.vireo", Moment { call: "linkat", nth: 3 }),
        ("back.vireo", Moment { call: "renameat", nth: 12 }),
    ] {
        let check = |guest: &dyn Guest| -> anyhow::Result<()> {
            let ambush = ambush_service(moment)?;
            world.ask(&server, &["push", &world.arg(bundle), "web"])?.ok()?;
            wait_for_tree(guest, &world.version(&server)?)?;
            drop(ambush);
            let restarts = shell(guest, "systemctl show -p NRestarts --value vireo-agent")?;
            ensure!(restarts.trim() != "0", "the agent was not killed");
            shell(guest, "systemctl reset-failed vireo-agent")?;
            if bundle == "update.vireo" {
                serves_target(guest)?
            } else {
                serves_base(guest)?
            }
            agent(guest, &["verify"])?.ok()?;
            Ok(())
        };
        check(&guest).with_context(|| format!("{moment:?} of {bundle}"))?;
    }
    guest.poweroff()?;
    drop((guest, server));
    let disk = world.arg("guest.img");
    let base = world.base().display().to_string();
    vireo(["diff", &disk, &base])?.ok()?.says(&["no difference"])?;
    world.finish()
}
