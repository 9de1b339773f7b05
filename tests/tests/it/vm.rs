//! The patched image on a kernel of its own.

use anyhow::ensure;
use vireo_testkit::{Exit, Guest as _, Uml, oracle, update, web};
use vireo_tests::{World, shell, vireo};

#[test]
fn vm_a_patched_image_boots_and_serves_the_new_page() -> anyhow::Result<()> {
    let world = World::new()?;
    let (base, out) = (world.base().display().to_string(), world.arg("patched.img"));
    let (bundle, key) = (world.arg("update.vireo"), world.public_key()?);
    vireo(["apply", &bundle, "--to", &base, "-o", &out, "--trust", &key])?.ok()?;

    let mut machine = Uml::new(world.lab(), out.as_ref())?;
    machine.start()?;
    let page = machine.http_get(web::ADDED_PAGE)?;
    ensure!(page.status == 200 && page.text().contains(web::ADDED_TEXT), "{page:?}");
    let page = machine.http_get(web::CHANGED_PAGE)?;
    ensure!(page.header(update::RELEASE_HEADER) == Some("2") && page.text().contains("Release 2"));
    let state = shell(&machine, "systemctl is-system-running --wait || systemctl --failed")?;
    ensure!(state.trim() == "running", "{state}");
    let complaints =
        shell(&machine, "dmesg | grep -i 'ext4.*\\(error\\|warning\\|recover\\)' || true")?;
    ensure!(complaints.is_empty(), "the kernel complains: {complaints}");
    ensure!(machine.poweroff()? == Exit::Off);
    drop(machine);
    oracle::check_file_system(out.as_ref(), 0)?;
    world.finish()
}
