//! A machine that lost its power in the middle of an update, started again on a kernel of its own.

use anyhow::{Context as _, ensure};
use vireo_testkit::{Exit, Guest, Uml, fixture, oracle, programs, update, web};
use vireo_tests::{World, shell, vireo};

/// Applies the bundle `$3` trusting `$4` to the mounted image `$1` by the agent `$2`, which is killed
/// before its tenth rename: the first is the commit mark, so that the files are of both versions. The
/// mark has to be there, and nothing else may have killed it.
const INTERRUPT: &str = "code=0; strace -f -qq -o /dev/null -e trace=renameat \
        -e inject=renameat:signal=SIGKILL:when=10 \"$2\" --root \"$1\" apply \"$3\" --trust \"$4\" || code=$?
    [ $code = 137 ] || { echo \"exit code $code\" >&2; exit 1; }
    ls -d \"$1\"/.vireo/*-committed";

/// What systemd knows of a unit, one property a line.
fn property(guest: &dyn Guest, unit: &str, name: &str) -> anyhow::Result<String> {
    let show = format!("systemctl show -p {name} --value {unit}");
    Ok(shell(guest, &show)?.trim().to_owned())
}

/// Microseconds since the machine's start.
fn time(guest: &dyn Guest, unit: &str, name: &str) -> anyhow::Result<u64> {
    let text = property(guest, unit, name)?;
    let time: u64 = text.parse().with_context(|| format!("{unit} {name}: {text}"))?;
    ensure!(time > 0, "{unit} has no {name}");
    Ok(time)
}

#[test]
fn vm_recover_completes_an_interrupted_update_before_any_service_starts() -> anyhow::Result<()> {
    let world = World::new()?;
    let disk = world.edit(world.base(), "true", "interrupted.img")?;
    let (agent, bundle, key) =
        (programs::find("vireo-agent")?, world.arg("update.vireo"), world.public_key()?);
    let agent = agent.to_str().context("a program whose name is text")?;
    fixture::edit(&disk, 0, INTERRUPT, &[agent, &bundle, &key])?;
    // Neither one nor the other.
    for image in [world.base(), world.target()] {
        let other = image.display().to_string();
        let diff = vireo(["diff", &disk.display().to_string(), &other])?;
        ensure!(diff.output().code != 0, "the disk is {other}");
    }

    let mut machine = Uml::new(world.lab(), &disk)?;
    machine.start()?;
    let unit = "vireo-agent-recover.service";
    let log = shell(&machine, &format!("journalctl --no-pager -b -u {unit}"))?;
    ensure!(property(&machine, unit, "ActiveState")? == "active", "{log}");
    ensure!(property(&machine, unit, "Result")? == "success", "{log}");
    ensure!(log.contains("the files are complete"), "{log}");
    let done = time(&machine, unit, "ExecMainExitTimestampMonotonic")?;
    for service in ["nginx.service", "ssh.service", "systemd-tmpfiles-setup.service"] {
        let started = time(&machine, service, "ExecMainStartTimestampMonotonic")?;
        ensure!(done <= started, "{service} started at {started}, recovery ended at {done}");
    }
    let page = machine.http_get(web::ADDED_PAGE)?;
    ensure!(page.status == 200 && page.text().contains(web::ADDED_TEXT), "{page:?}");
    let page = machine.http_get(web::CHANGED_PAGE)?;
    ensure!(page.header(update::RELEASE_HEADER) == Some("2"), "{page:?}");
    let state = shell(&machine, "systemctl is-system-running --wait || systemctl --failed")?;
    ensure!(state.trim() == "running", "{state}");
    // What was owed to services is settled by the boot: nothing is restarted, the receipt says so.
    let recovered = shell(&machine, "vireo-agent recover --json && ls /.vireo /var/lib/vireo")?;
    ensure!(!recovered.contains("activation.json") && !recovered.contains("-done"), "{recovered}");
    ensure!(recovered.contains("\"resumed\":true"), "{recovered}");
    ensure!(recovered.contains("\"actions\":[]"), "{recovered}");
    ensure!(machine.poweroff()? == Exit::Off);
    drop(machine);
    oracle::check_file_system(&disk, 0)?;
    let (disk, target) = (disk.display().to_string(), world.target().display().to_string());
    vireo(["diff", &disk, &target])?.ok()?.says(&["no difference"])?;
    world.finish()
}

/// Applies the bundle `$3` trusting `$4` to the mounted image `$1` by the agent `$2`, and leaves what
/// a power cut leaves when the update has just been found ill.
const CONDEMN: &str = "\"$2\" --root \"$1\" apply \"$3\" --trust \"$4\"
    echo '{\"transaction\": 1, \"boot\": \"before\", \"because\": [\"nginx.service: failed\"], \
        \"revive\": [\"nginx.service\"], \"actions\": [], \"checks\": []}' \
        > \"$1/var/lib/vireo/condemned.json\"";

#[test]
fn vm_recover_undoes_what_was_condemned_before_any_service_starts() -> anyhow::Result<()> {
    let world = World::new()?;
    let disk = world.edit(world.base(), "true", "condemned.img")?;
    let (agent, bundle, key) =
        (programs::find("vireo-agent")?, world.arg("update.vireo"), world.public_key()?);
    let agent = agent.to_str().context("a program whose name is text")?;
    fixture::edit(&disk, 0, CONDEMN, &[agent, &bundle, &key])?;
    let (disk_name, base) = (disk.display().to_string(), world.base().display().to_string());
    ensure!(vireo(["diff", &disk_name, &base])?.output().code != 0, "nothing was applied");

    let mut machine = Uml::new(world.lab(), &disk)?;
    machine.start()?;
    let unit = "vireo-agent-recover.service";
    let log = shell(&machine, &format!("journalctl --no-pager -b -u {unit}"))?;
    ensure!(property(&machine, unit, "Result")? == "success", "{log}");
    let done = time(&machine, unit, "ExecMainExitTimestampMonotonic")?;
    let started = time(&machine, "nginx.service", "ExecMainStartTimestampMonotonic")?;
    ensure!(done <= started, "nginx started at {started}, the undo ended at {done}: {log}");
    ensure!(machine.http_get(web::ADDED_PAGE)?.status == 404, "the page is still there: {log}");
    let left = shell(&machine, "ls /var/lib/vireo; cat /var/lib/vireo/receipt.json")?;
    ensure!(!left.contains("condemned.json") && left.contains("nginx.service: failed"), "{left}");
    ensure!(machine.poweroff()? == Exit::Off);
    drop(machine);
    vireo(["diff", &disk_name, &base])?.ok()?.says(&["no difference"])?;
    world.finish()
}

#[test]
fn vm_recover_costs_nothing_when_no_update_was_interrupted() -> anyhow::Result<()> {
    let world = World::new()?;
    let disk = world.edit(world.base(), "true", "whole.img")?;
    let mut machine = Uml::new(world.lab(), &disk)?;
    machine.start()?;
    let unit = "vireo-agent-recover.service";
    ensure!(property(&machine, unit, "UnitFileState")? == "enabled");
    ensure!(property(&machine, unit, "ConditionResult")? == "no", "it ran for nothing");
    ensure!(property(&machine, unit, "ExecMainStartTimestampMonotonic")? == "0", "it ran");
    ensure!(machine.poweroff()? == Exit::Off);
    drop(machine);
    world.finish()
}
