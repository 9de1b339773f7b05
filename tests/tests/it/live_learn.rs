//! An agent that learns on its own machine while that boots, and plans by it: the version brings no map.

use anyhow::{Context as _, ensure};
use vireo_classify::{Phase, ReadMap, Unit};
use vireo_testkit::Guest;
use vireo_tests::{World, agent, shell};

use crate::live_record::{SERVICES, path};

const UNIT: &str = include_str!("../../../crates/agent/vireo-agent-learn.service");

/// A file that nginx includes from where no rule expects it, and a module of a Perl service.
const CHANGES: &str = "echo 'add_header X-Extra 2 always;' > \"$1/srv/site/extra.conf\"; \
    echo '# more' >> \"$1/opt/perl/lib/Jobs.pm\"";

/// The units' main processes, a line each.
const PIDS: &str =
    "for unit in nginx perl-app sh-app; do systemctl show -p MainPID --value $unit; done";

/// The header that the file adds.
const HEADER: &str = "curl -sI http://127.0.0.1/ | tr -d '\\r' | sed -n 's/^X-Extra: //p'";

/// Has the services start while it is learned.
const AGAIN: &str =
    "vireo-agent learn --for 4 > /dev/null & sleep 1; systemctl restart nginx perl-app; wait $!";

/// How often they are started again at most.
const STARTS_MAX: usize = 4;

/// What of the changes leads to no unit yet.
fn unknown(map: &ReadMap) -> anyhow::Result<Vec<&'static str>> {
    let mut unknown = Vec::new();
    for (file, unit) in
        [("/srv/site/extra.conf", "nginx.service"), ("/opt/perl/lib/Jobs.pm", "perl-app.service")]
    {
        let phases = map.readers_of(&path(file)?).and_then(|by| by.get(&Unit::new(unit)));
        if !phases.is_some_and(|phases| phases.contains(&Phase::Start)) {
            unknown.push(file);
        }
    }
    Ok(unknown)
}

fn learned(guest: &dyn Guest) -> anyhow::Result<ReadMap> {
    Ok(ReadMap::from_json(shell(guest, "cat /var/lib/vireo/learned.json")?.as_bytes())?)
}

#[test]
fn live_what_was_learned_while_booting_leads_changes_to_their_units() -> anyhow::Result<()> {
    let units = "$1/etc/systemd/system";
    let install = format!(
        "{SERVICES}\nmkdir -p \"{units}/sysinit.target.wants\"\n\
         cat > \"{units}/vireo-agent-learn.service\" <<'END'\n{UNIT}END\n\
         ln -s ../vireo-agent-learn.service \"{units}/sysinit.target.wants/\"\n"
    );
    let world = World::edited(&install, CHANGES)?;
    let (guest, key) = (world.guest()?, world.public_key()?);
    world.put(&guest, "update.vireo")?;
    let plan = || -> anyhow::Result<Vec<String>> {
        let plan = agent(&guest, &["plan", "/tmp/update.vireo", "--trust", &key])?.ok()?;
        let plan = plan.json("plan")?;
        let units = plan["units"].as_array().context("a list")?.iter();
        Ok(units.map(|unit| unit["unit"].as_str().unwrap_or_default().to_owned()).collect())
    };
    ensure!(plan()?.is_empty(), "nothing is known before it ends: {:?}", plan()?);

    // It keeps what it saw when it is told to end, which is after all that is to start has started.
    shell(
        &guest,
        "systemctl is-system-running --wait || true; systemctl is-active nginx perl-app",
    )?;
    shell(&guest, "systemctl stop vireo-agent-learn.service")?;
    let said = shell(
        &guest,
        "journalctl --sync; journalctl --no-pager -o cat -u vireo-agent-learn.service",
    )?;
    let mut map = learned(&guest).with_context(|| said.clone())?;
    // Programs that end within milliseconds may not be seen on a busy machine: they are started again, as an
    // administrator would.
    for _ in 0..STARTS_MAX {
        if unknown(&map)?.is_empty() {
            break;
        }
        shell(&guest, AGAIN)?;
        map = learned(&guest)?;
    }
    ensure!(unknown(&map)?.is_empty(), "{:?} {said}", unknown(&map)?);
    ensure!(map.units().count() == 0, "that it did not read something may change: {map:?}");
    let strangers =
        |unit: &&Unit| unit.kind() != "service" || unit.as_str().starts_with("vireo-agent");
    ensure!(map.readers().iter().filter(|unit| strangers(unit)).count() == 0, "{map:?}");

    // More is added to it; what does not start meanwhile is not learned and not lost.
    let more = agent(&guest, &["learn", "--for", "1"])?.ok()?.json("learned")?;
    ensure!(more["new_units"] == 0 && more["units"] == map.readers().len(), "{more}");
    ensure!(learned(&guest)? == map, "nothing started");

    let before = shell(&guest, PIDS)?;
    let receipt =
        agent(&guest, &["apply", "/tmp/update.vireo", "--trust", &key])?.ok()?.json("receipt")?;
    ensure!(receipt["outcome"] == "done", "{receipt}");
    ensure!(shell(&guest, HEADER)?.trim() == "2", "nginx has it: {receipt}");
    let after = shell(&guest, PIDS)?;
    let (before, after): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    ensure!(before[1] != after[1], "the Perl service was restarted: {before:?} {after:?}");
    ensure!(before[2] == after[2], "nothing of its changed: {before:?} {after:?}");

    // Damage is named and has a remedy.
    shell(&guest, "echo nonsense > /var/lib/vireo/learned.json")?;
    agent(&guest, &["learn", "--for", "1"])?.exits(1)?.says(&["learned.json", "--forget"])?;
    agent(&guest, &["learn", "--forget"])?.ok()?;
    shell(&guest, "test ! -e /var/lib/vireo/learned.json")?;
    drop(guest);
    world.finish()
}
