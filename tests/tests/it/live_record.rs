//! Recording on a running guest which unit reads which file, and what a plan makes of it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use vireo_classify::{
    Action, ChangedFile, Facts, Phase, Plan, Planner, Policy, ReadMap, SHOW_PROPERTIES, Unit,
    parse_show,
};
use vireo_model::{ChangeKind, ImagePath};
use vireo_testkit::{Guest, programs};
use vireo_tests::{Ran, World, shell};

/// Longest for all services of the guest to be reloaded and restarted.
const RECORD_DEADLINE: Duration = Duration::from_secs(120);

/// nginx and sshd include files from where no rule expects them; three services of our own: a shell
/// script that sources another, a Perl program with a module, and one that loads a compiled module as
/// Python does, whose source is what an update changes.
pub(crate) const SERVICES: &str = r#"set -e; R=$1
mkdir -p "$R/srv/site" "$R/etc/site/conf.d" "$R/opt/ssh" "$R/opt/sh" "$R/opt/perl/lib" "$R/opt/py/__pycache__"
echo 'add_header X-Extra 1 always;' > "$R/srv/site/extra.conf"
echo 'add_header X-One 1 always;' > "$R/etc/site/conf.d/one.conf"
printf 'include /srv/site/extra.conf;\ninclude /etc/site/conf.d/*.conf;\n' > "$R/etc/nginx/conf.d/site.conf"
echo 'LogLevel VERBOSE' > "$R/opt/ssh/more"
echo 'Include /opt/ssh/more' > "$R/etc/ssh/sshd_config.d/more.conf"
printf '. /opt/sh/lib.sh\nwait_long\n' > "$R/opt/sh/worker.sh"
printf 'wait_long() { while :; do sleep 1000; done; }\n' > "$R/opt/sh/lib.sh"
echo unused > "$R/opt/sh/unused.sh"
printf 'use lib "/opt/perl/lib"; require Jobs; Jobs::run();\n' > "$R/opt/perl/app.pl"
printf 'package Jobs; sub run { sleep 1000 while 1 } 1;\n' > "$R/opt/perl/lib/Jobs.pm"
echo 'import time' > "$R/opt/py/jobs.py"
echo compiled > "$R/opt/py/__pycache__/jobs.cpython-311.pyc"
unit() { printf '[Service]\nExecStart=%s\n[Install]\nWantedBy=multi-user.target\n' "$2" > "$R/etc/systemd/system/$1.service"
  ln -s "/etc/systemd/system/$1.service" "$R/etc/systemd/system/multi-user.target.wants/$1.service"; }
unit sh-app '/bin/sh /opt/sh/worker.sh'
unit perl-app '/usr/bin/perl /opt/perl/app.pl'
unit py-app '/bin/sh -c "read line < /opt/py/__pycache__/jobs.cpython-311.pyc; exec sleep 1000"'
"#;

/// Asks for a page and one that is not there, twice each.
const PAGES: &str = "for n in 1 2; do curl -sf -o /dev/null http://127.0.0.1/; done";

pub(crate) fn path(text: &str) -> anyhow::Result<ImagePath> {
    Ok(ImagePath::parse(text.as_bytes())?)
}

/// Runs `vireo record ARGS` in the guest; gives what it reports.
fn record(guest: &dyn Guest, args: &[&str]) -> anyhow::Result<Ran> {
    let argv = [&["/tmp/vireo", "record", "--json"], args].concat();
    let output = guest.exec_with(&argv, &[], RECORD_DEADLINE)?;
    Ok(Ran::in_guest(output, argv.join(" ")))
}

fn put_vireo(world: &World, guest: &dyn Guest) -> anyhow::Result<()> {
    fs::copy(programs::find("vireo")?, world.path("vireo"))?;
    world.put(guest, "vireo")?;
    shell(guest, "chmod 755 /tmp/vireo").map(drop)
}

/// The plan for one change of the guest, with `reads` and without.
fn plan(facts: &Facts, reads: &ReadMap, file: &str, kind: ChangeKind) -> anyhow::Result<Plan> {
    let changes = [ChangedFile::new(path(file)?, kind)];
    Ok(Planner::new(&Policy::default()).with_reads(reads).plan(&changes, facts))
}

/// What the plan does to units, as text.
fn actions(plan: &Plan) -> Vec<(String, Action)> {
    let acting = plan.units.iter();
    acting.map(|unit| (unit.unit.to_string(), unit.action)).collect()
}

#[test]
fn live_a_recorded_map_leads_changed_and_new_files_to_the_right_units() -> anyhow::Result<()> {
    let world = World::edited(SERVICES, ":")?;
    let guest = world.guest()?;
    put_vireo(&world, &guest)?;
    let report =
        record(&guest, &["-o", "/tmp/reads.json", "--each-unit", "--", "sh", "-c", PAGES])?;
    let report = report.ok()?.json("record")?;
    ensure!(report["lost"] == 0 && report["failed"].is_null(), "{report}");
    let map = ReadMap::from_json(shell(&guest, "cat /tmp/reads.json")?.as_bytes())?;
    let shown = format!("systemctl show --property={} '*'", SHOW_PROPERTIES.join(","));
    let facts = Facts { manager: true, ..Facts::new() };
    let units = parse_show(shell(&guest, &shown)?.as_bytes()).0;
    let facts = units.into_values().fold(facts, Facts::with_unit);

    use ChangeKind::{Added, Modified};
    for (file, kind, unit, action) in [
        ("/srv/site/extra.conf", Modified, "nginx.service", Action::Reload),
        ("/etc/site/conf.d/one.conf", Modified, "nginx.service", Action::Reload),
        ("/etc/site/conf.d/two.conf", Added, "nginx.service", Action::Reload),
        ("/opt/ssh/more", Modified, "ssh.service", Action::Reload),
        ("/opt/sh/lib.sh", Modified, "sh-app.service", Action::Restart),
        ("/opt/perl/lib/Jobs.pm", Modified, "perl-app.service", Action::Restart),
        ("/opt/py/jobs.py", Modified, "py-app.service", Action::Restart),
    ] {
        let with = plan(&facts, &map, file, kind)?;
        ensure!(actions(&with) == [(unit.to_owned(), action)], "{file}: {with}");
        let without = plan(&facts, &ReadMap::new(), file, kind)?;
        ensure!(actions(&without).is_empty(), "{file} needs no map: {without}");
    }
    // What nobody read, and what is read anew for each request, needs nothing.
    for file in ["/opt/sh/unused.sh", "/var/www/html/index.html"] {
        let with = plan(&facts, &map, file, Modified)?;
        ensure!(actions(&with).is_empty(), "{file}: {with}");
    }
    let page = map.readers_of(&path("/var/www/html/index.html")?).context("it was asked for")?;
    let nginx = page.get(&Unit::new("nginx.service")).context("by nginx")?;
    ensure!(nginx.iter().eq([&Phase::Run]), "{nginx:?}");
    drop(guest);
    world.finish()
}

/// Processes that open a file of configuration and end at once, so that some have ended before it can
/// be seen whose they were.
const STORM: &str = "cp /opt/sh/unused.sh /etc/storm.conf; \
    printf 'while :; do (: < /etc/storm.conf) & (: < /etc/storm.conf) & (: < /etc/storm.conf) & wait; done' > /run/storm; \
    for n in 1 2 3; do systemd-run -q --unit=storm$n sh /run/storm; done";

#[test]
fn live_a_start_of_which_something_was_missed_is_not_said_to_be_all() -> anyhow::Result<()> {
    let world = World::edited(SERVICES, ":")?;
    let guest = world.guest()?;
    put_vireo(&world, &guest)?;
    let one = |more: &[&str]| -> anyhow::Result<(serde_json::Value, ReadMap)> {
        let args = [&["-o", "/tmp/reads.json", "--unit", "sh-app"], more].concat();
        let report = record(&guest, &args)?.ok()?.json("record")?;
        let map = ReadMap::from_json(shell(&guest, "cat /tmp/reads.json")?.as_bytes())?;
        Ok((report, map))
    };
    let unit = Unit::new("sh-app.service");
    let (report, map) = one(&[])?;
    ensure!(report["incomplete"].is_null() && map.was_watched(&unit, Phase::Start), "{report}");

    shell(&guest, STORM)?;
    let (report, map) = one(&[])?;
    shell(&guest, "systemctl stop storm1 storm2 storm3")?;
    println!("{report}");
    ensure!(report["ended"].as_u64() > Some(0), "nothing was missed: {report}");
    ensure!(report["incomplete"]["sh-app.service"].is_string(), "{report}");
    ensure!(!map.was_watched(&unit, Phase::Start), "{report}");
    // What was seen counts all the same.
    let readers = map.readers_of(&path("/opt/sh/lib.sh")?).context("it was read")?;
    ensure!(readers.contains_key(&unit), "{readers:?}");
    drop(guest);
    world.finish()
}

#[test]
fn live_what_starts_while_a_command_runs_is_recorded() -> anyhow::Result<()> {
    let world = World::edited(SERVICES, ":")?;
    let guest = world.guest()?;
    put_vireo(&world, &guest)?;
    let restart = ["--", "systemctl", "restart", "perl-app.service"];
    let args = [&["-o", "/tmp/reads.json"], &restart[..]].concat();
    record(&guest, &args)?.ok()?;
    let map = ReadMap::from_json(shell(&guest, "cat /tmp/reads.json")?.as_bytes())?;
    let perl = Unit::new("perl-app.service");
    ensure!(map.units().eq([&perl]), "{map:?}");
    let readers = map.readers_of(&path("/opt/perl/lib/Jobs.pm")?).context("it was read")?;
    ensure!(readers.keys().eq([&perl]), "{readers:?}");

    // More is added to it, and a command that fails writes nothing.
    record(&guest, &["-o", "/tmp/reads.json", "--add", "--unit", "sh-app"])?.ok()?;
    let text = shell(&guest, "cat /tmp/reads.json")?;
    let map = ReadMap::from_json(text.as_bytes())?;
    ensure!(map.units().count() == 2, "{map:?}");
    record(&guest, &["-o", "/tmp/reads.json", "--", "false"])?.exits(1)?;
    ensure!(shell(&guest, "cat /tmp/reads.json")? == text);
    let gone = record(&guest, &["-o", "/tmp/reads.json", "--unit", "gone"])?.exits(1)?;
    ensure!(gone.output().stdout.contains("gone.service does not run"), "{}", gone.output().tail());
    drop(guest);
    world.finish()
}
