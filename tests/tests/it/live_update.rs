//! An update on its whole way: captured, pushed, fetched by the agent in a running guest, applied
//! and activated.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use vireo_model::{Ignore, ImagePath};
use vireo_testkit::{Exit, Guest, oracle, update, web};
use vireo_tests::{World, agent, shell, text_at, vireo};

/// Longest for the agent to fetch and apply an update.
const APPLY_DEADLINE: Duration = Duration::from_secs(60);

/// Time between two looks.
const POLL: Duration = Duration::from_millis(100);

/// Every active service's main process.
const SERVICES: &str = "for unit in $(systemctl list-units --type=service --state=running \
    --no-legend --plain | cut -d' ' -f1); do \
    echo $unit $(systemctl show -p MainPID --value $unit); done";

/// The mapped files of nginx's processes that are not what is at their path any more.
const HELD: &str = "for pid in $(cat /sys/fs/cgroup/system.slice/nginx.service/cgroup.procs); do \
    grep -e ' /usr/.*(deleted)$' -e ' /\\.vireo' /proc/$pid/maps || true; done";

/// The units of all processes that map a file of `/usr` which was replaced.
pub(crate) const STALE: &str = "for maps in /proc/[0-9]*/maps; do \
    if grep -q ' /usr/.*(deleted)$' $maps 2>/dev/null; then \
    sed -n 's#^0::.*/##p' ${maps%maps}cgroup; fi; done | sort -u";

/// Main process numbers by unit.
fn services(guest: &dyn Guest) -> anyhow::Result<BTreeMap<String, String>> {
    let text = shell(guest, SERVICES)?;
    let parse = |line: &str| line.split_once(' ').map(|(unit, pid)| (unit.into(), pid.into()));
    Ok(text.lines().filter_map(parse).collect())
}

/// Waits until the agent says that the machine is on `tree`; gives its last receipt.
pub(crate) fn wait_for_tree(guest: &dyn Guest, tree: &str) -> anyhow::Result<Value> {
    let started = Instant::now();
    loop {
        let status = agent(guest, &["status"])?.ok()?.json("status")?;
        if status["tree"] == tree
            && status["under_way"] == false
            && status["last"]["target"] == tree
        {
            return Ok(status["last"].clone());
        }
        if started.elapsed() > APPLY_DEADLINE {
            let log = shell(guest, "journalctl --no-pager -n 40 -u vireo-agent")?;
            bail!("not on {tree} after {APPLY_DEADLINE:?}: {status}\n{log}");
        }
        thread::sleep(POLL);
    }
}

/// Expects that the guest serves what the target does and that nginx runs nothing of the base.
pub(crate) fn serves_target(guest: &dyn Guest) -> anyhow::Result<()> {
    let page = guest.http_get(web::ADDED_PAGE)?;
    ensure!(page.status == 200 && page.text().contains(web::ADDED_TEXT), "{page:?}");
    let page = guest.http_get(web::CHANGED_PAGE)?;
    let release = page.header(update::RELEASE_HEADER);
    ensure!(release == Some("2") && page.text().contains("Release 2"), "{page:?}");
    let held = shell(guest, HELD)?;
    ensure!(held.is_empty(), "nginx still holds files of the base:\n{held}");
    Ok(())
}

/// Expects that the guest serves what the base does.
pub(crate) fn serves_base(guest: &dyn Guest) -> anyhow::Result<()> {
    let page = guest.http_get(web::ADDED_PAGE)?;
    ensure!(page.status == 404, "the new page is there already: {page:?}");
    let page = guest.http_get(web::CHANGED_PAGE)?;
    let release = page.header(update::RELEASE_HEADER);
    ensure!(release == Some("1") && page.text().contains("Release 1"), "{page:?}");
    Ok(())
}

/// The entry about `path` in a list of objects.
fn about<'a>(list: &'a Value, key: &str, name: &str) -> anyhow::Result<&'a Value> {
    let mut entries = list.as_array().context("a list")?.iter();
    entries.find(|entry| entry[key] == name).with_context(|| format!("{name} is not in {list}"))
}

/// Expects a receipt that says what was done to nginx and why, and what class the files are of.
fn receipt_explains(receipt: &Value) -> anyhow::Result<()> {
    let outcome = text_at(receipt, "/outcome")?;
    ensure!(outcome == "done" || outcome == "pending", "{receipt}");
    let plan = &receipt["plan"];
    let nginx = about(&plan["units"], "unit", "nginx.service")?;
    ensure!(nginx["action"] == "restart", "a mapped library was replaced: {nginx}");
    let because = nginx["because"].as_array().context("reasons")?;
    let by_library = |reason: &&Value| {
        reason["class"] == "library" && reason["path"].as_str().is_some_and(|p| p.contains(".so"))
    };
    let reason =
        because.iter().find(by_library).with_context(|| format!("no library in {nginx}"))?;
    ensure!(reason["rule"].is_string() && reason["source"].is_string(), "{reason}");
    let done = about(&receipt["actions"], "subject", "nginx.service")?;
    ensure!(done["result"] == "done", "{done}");
    for (path, class, change) in [
        ("/etc/nginx/conf.d/release.conf", "config", "modified"),
        ("/var/www/html/news/release-2.html", "content", "added"),
        ("/var/www/html/pages/page-017.html", "content", "removed"),
    ] {
        let file = about(&plan["files"], "path", path)?;
        ensure!(file["class"] == class && file["change"] == change, "{file}");
    }
    Ok(())
}

/// An earlier agent may have kept a report that no server takes.
#[test]
fn live_a_report_that_is_refused_does_not_keep_a_machine_from_its_next_update() -> anyhow::Result<()>
{
    let world = World::new()?;
    let server = world.serve()?;
    let guest = world.guest()?;
    world.enrol(&server, &guest)?;
    let status = agent(&guest, &["status"])?.ok()?.json("status")?;
    let tree = text_at(&status, "/tree")?;
    let report = "/var/lib/vireo/unreported.json";
    shell(
        &guest,
        &format!(
            r#"(printf '{{"tree":"{tree}","outcome":"done","receipt":"'; \
            head -c 3000000 /dev/zero | tr '\0' x; printf '"}}') > {report}"#
        ),
    )?;
    shell(&guest, "systemctl start vireo-agent")?;
    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?;
    wait_for_tree(&guest, &world.version(&server)?)?;
    let log = shell(&guest, "journalctl --no-pager -u vireo-agent")?;
    ensure!(log.contains("the last update is not reported"), "{log}");
    drop((guest, server));
    world.finish()
}

#[test]
fn live_an_update_reaches_a_running_guest_and_is_proven() -> anyhow::Result<()> {
    let world = World::new()?;
    let server = world.serve()?;
    let mut guest = world.guest()?;
    serves_base(&guest)?;
    world.enrol(&server, &guest)?;
    shell(&guest, "systemctl start vireo-agent")?;
    let before = services(&guest)?;
    ensure!(
        before.contains_key("nginx.service") && before.contains_key("ssh.service"),
        "{before:?}"
    );

    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?;
    let version = world.version(&server)?;
    let receipt = wait_for_tree(&guest, &version)?;
    serves_target(&guest)?;
    receipt_explains(&receipt)?;

    // What needed nothing was left alone.
    let after = services(&guest)?;
    let acted = |unit: &str| about(&receipt["actions"], "subject", unit).is_ok();
    let kept = before.iter().filter(|(unit, _)| !acted(unit));
    let mut alone = 0;
    for (unit, pid) in kept {
        ensure!(after.get(unit) == Some(pid), "{unit} was {pid} and is {:?}", after.get(unit));
        alone += 1;
    }
    ensure!(alone >= 3, "almost everything was acted upon: {}", receipt["actions"]);
    ensure!(after["nginx.service"] != before["nginx.service"], "nginx was not restarted");
    // What still runs code of the base is known to wait.
    for unit in shell(&guest, STALE)?.lines() {
        let waits = about(&receipt["pending"], "subject", unit);
        waits.with_context(|| format!("{unit} maps a replaced file"))?;
    }
    let failed = shell(&guest, "systemctl list-units --state=failed --plain --no-legend")?;
    ensure!(failed.is_empty(), "failed units: {failed}");

    // The guest, the version and the repository's image are one tree, each read anew.
    let verified = agent(&guest, &["verify"])?.ok()?.json("verify")?;
    ensure!(verified["found"] == version.as_str(), "{verified}");
    world.ask(&server, &["image", "verify", "web"])?.ok()?.says(&[&version])?;
    let exported = world.arg("exported.img");
    world.ask(&server, &["image", "export", "web", "-o", &exported])?.ok()?;
    is_target_but_for_the_machines_own(&world, exported.as_ref())?;

    // Nothing more to do is no error, and a receipt is at the repository's.
    let again = agent(&guest, &["apply"])?.ok()?.json("receipt")?;
    ensure!(again["outcome"] == "unchanged", "{again}");
    ensure!(guest.poweroff()? == Exit::Off);
    drop(guest);
    let disk = world.path("guest.img");
    vireo(["digest".as_ref(), disk.as_os_str()])?.ok()?.says(&[&version])?;
    is_target_but_for_the_machines_own(&world, &disk)?;
    drop(server);
    world.finish()
}

/// Expects that `disk` differs from the target's only in what is a machine's own.
fn is_target_but_for_the_machines_own(world: &World, disk: &Path) -> anyhow::Result<()> {
    let ignore = Ignore::default();
    for line in oracle::differences((disk, 0), (world.target(), 0))?.lines() {
        // Eleven letters of what differs, or `*deleting  `; then the path.
        let path = line.get(12..).context("a line of rsync")?.trim_end_matches('/');
        let path = path.split(" -> ").next().unwrap_or(path);
        let path = ImagePath::parse(format!("/{path}").as_bytes())?;
        ensure!(ignore.covers(&path), "{} is not the target:\n{line}", disk.display());
    }
    Ok(())
}
