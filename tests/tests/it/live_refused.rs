//! What an agent must not apply, and what it says instead.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, ensure};
use vireo_testkit::Guest;
use vireo_tests::{Server, World, agent, shell};

use crate::live_update::{serves_base, serves_target};

/// A guest that is enrolled, whose agent does not run by itself, and a version that it lacks.
fn pushed(world: &World) -> anyhow::Result<(Server, vireo_testkit::Nspawn<'_>)> {
    let server = world.serve()?;
    let guest = world.guest()?;
    world.enrol(&server, &guest)?;
    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?;
    Ok((server, guest))
}

/// What must stay: the tree, nginx's process, what it serves; nothing staged is left.
fn state(guest: &dyn Guest) -> anyhow::Result<String> {
    serves_base(guest)?;
    let tree = agent(guest, &["--root", "/", "status"])?.ok()?.json("status")?["tree"].clone();
    let pid =
        shell(guest, "systemctl show -p MainPID --value nginx; ls -A /.vireo 2>/dev/null || true")?;
    Ok(format!("{tree} {pid}"))
}

#[test]
fn live_a_damaged_bundle_from_the_repository_is_refused() -> anyhow::Result<()> {
    let world = World::new()?;
    let (server, guest) = pushed(&world)?;
    let before = state(&guest)?;
    // Somebody changed a byte in the repository's copy.
    let bundles = fs::read_dir(world.path("repo/bundles"))?;
    let bundle = bundles.last().context("a bundle")??.path();
    let file = File::options().read(true).write(true).open(&bundle)?;
    let at = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[!byte[0]], at)?;
    agent(&guest, &["apply"])?.exits(5)?.says(&["is damaged", "vireo-repo fsck"])?;
    ensure!(state(&guest)? == before, "something was changed");

    // Mended, it is fetched anew.
    file.write_all_at(&byte, at)?;
    let applied = agent(&guest, &["apply"])?;
    ensure!(matches!(applied.output().code, 0 | 3), "{}", applied.output().tail());
    serves_target(&guest)?;

    // A stranger's bundle is refused whoever hands it in; and an absent repository is said to be so.
    vireo_tests::vireo(["key", "generate", "--out", &world.arg("others")])?.ok()?;
    let stranger = fs::read_to_string(world.path("others/vireo.pub"))?;
    let content = fs::read(world.path("update.vireo"))?;
    let put = guest.exec_with(
        &["sh", "-c", "cat > /tmp/update.vireo"],
        &content,
        std::time::Duration::from_secs(20),
    )?;
    ensure!(put.success());
    let refused = agent(&guest, &["plan", "/tmp/update.vireo", "--trust", stranger.trim()])?;
    refused.exits(5)?.says(&["/tmp/update.vireo", "not trusted"])?;
    drop(server);
    agent(&guest, &["check"])?.exits(3)?.says(&["https://10.77.0.1:8443"])?;
    drop(guest);
    world.finish()
}
