//! The patched image is a machine: a real kernel boots it.

use anyhow::ensure;
use vireo_testkit::{Guest as _, Uml, oracle, update, web};
use vireo_tests::{Fleet, IMAGE, vireo};

#[test]
fn vm_a_machine_launched_from_the_patched_image_is_current() -> anyhow::Result<()> {
    let fleet = Fleet::new()?;
    fleet.push()?;
    let disk = fleet.arg("exported.img");
    fleet.vireo(&["image", "export", IMAGE, "-o", &disk])?.ok()?;
    // Not rsync, as for the fixtures: logs and caches of the real update belong to no version.
    vireo(["diff", &disk, &fleet.arg("target.img")])?.ok()?;
    let mut machine = Uml::new(fleet.lab(), &fleet.path("exported.img"))?;
    machine.start()?;
    let page = machine.http_get(web::ADDED_PAGE)?;
    ensure!(page.status == 200 && page.text().contains(web::ADDED_TEXT), "{}: {}", page.status, page.text());
    let page = machine.http_get(web::CHANGED_PAGE)?;
    ensure!(page.header(update::RELEASE_HEADER) == Some("2"), "the configuration is not in effect");
    machine.poweroff()?;
    drop(machine);
    oracle::check_file_system(&fleet.path("exported.img"), 0)?;
    fleet.finish()
}
