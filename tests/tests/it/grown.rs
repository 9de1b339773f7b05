//! Updates that do not fit: images that grow, by `vireo apply` and in a repository, and those that cannot.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use vireo_testkit::{Run, fixture};
use vireo_tests::{Ext4, Scene, Snapshot, vireo};

use crate::repository::Site;

/// Uses up the space of a file system but for this many KiB.
const FILL: &str = "free=$(stat -f -c '%a * %S / 1024' \"$1\"); head -c \"$(((free - $2) * 1024))\" /dev/urandom > \"$1/filler\"
  touch -d @9 \"$1/filler\" \"$1\"";

/// What the update brings and cannot be made smaller.
const LARGE: &str = "head -c 12M /dev/urandom > \"$1/large\"; touch -d @9 \"$1/large\" \"$1\"";

/// Makes the scene's images such that its bundle `update.vireo` brings 12 MiB and its base has 2 MiB.
fn crowd(scene: &Scene) -> anyhow::Result<()> {
    fixture::edit(&scene.base(), 0, FILL, &["2048"])?;
    let target = scene.target();
    fs::remove_file(&target)?;
    Run::new("cp")
        .args(["--sparse=always", &scene.arg("base.img"), &scene.arg("target.img")])
        .text()?;
    Run::new("truncate").args(["-s", "64M"]).arg(&target).text()?;
    Run::new("e2fsck").args(["-fp"]).arg(&target).output()?;
    Run::new("resize2fs").args(["-f"]).arg(&target).text()?;
    fixture::edit(&target, 0, LARGE, &[])?;
    fs::remove_file(scene.bundle())?;
    scene.capture(&scene.base(), &target, &scene.bundle())
}

fn len(path: &Path) -> anyhow::Result<u64> {
    Ok(fs::metadata(path)?.len())
}

#[test]
fn root_an_image_grows_for_an_update_that_does_not_fit() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    crowd(&scene)?;
    let out = scene.arg("out.img");
    let apply = |more: &[&str]| {
        scene.apply("update.vireo", "base.img", &[&["-o", out.as_str()][..], more].concat())
    };
    let says = ["does not fit into", "base.img", "--grow auto", "make room"];
    scene.refuses(&apply(&[]), 1, &says)?;
    // Shorter than it is, and longer, but not by enough.
    scene.refuses(&apply(&["--grow", "16M"]), 1, &["base.img", "33554432 bytes"])?;
    scene.refuses(&apply(&["--grow", "34M"]), 1, &["does not fit", "35651584 bytes", "--grow"])?;
    vireo(apply(&["--grow", "lots"]))?.exits(2)?.says(&["neither auto nor a size"])?;
    vireo(apply(&["--grow", "auto", "--rootless"]))?.exits(2)?;
    let dir = scene.path("a-directory");
    fs::create_dir(&dir)?;
    let to_dir = scene.apply("update.vireo", "a-directory", &["--grow", "auto"]);
    vireo(to_dir)?.fails(5, &["is a directory; --grow is for images"])?;
    ensure!(fs::read_dir(&dir)?.count() == 0, "it was written to");
    fs::remove_dir(dir)?;

    vireo(apply(&["--grow", "auto"]))?.ok()?;
    scene.is_target(&scene.path("out.img"))?;
    ensure!(len(&scene.path("out.img"))? > len(&scene.base())?);
    fs::remove_file(&out)?;
    vireo(apply(&["--grow", "80M"]))?.ok()?;
    ensure!(len(&scene.path("out.img"))? == 80 << 20);
    scene.is_target(&scene.path("out.img"))?;

    // qcow2, in place.
    let qcow2 = scene.arg("small.qcow2");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", &scene.arg("base.img"), &qcow2];
    Run::new("qemu-img").args(convert).text()?;
    scene.refuses(
        &scene.apply("update.vireo", "small.qcow2", &[]),
        1,
        &["small.qcow2", "--grow auto"],
    )?;
    vireo(scene.apply("update.vireo", "small.qcow2", &["--grow", "auto"]))?.ok()?;
    vireo(["diff", &qcow2, &scene.arg("target.img")])?.ok()?.says(&["no difference"])?;
    Run::new("qemu-img").args(["check", "-q", &qcow2]).text()?;
    scene.nothing_attached()
}

#[test]
fn root_a_push_lets_the_repositorys_image_grow_only_when_it_is_asked_to() -> anyhow::Result<()> {
    let site = Site::new()?;
    let scene = &site.scene;
    crowd(scene)?;
    let bundle = scene.arg("update.vireo");
    // Confined, in the server's own process, and in this one.
    let check = |name: &str,
                 ask: &dyn Fn(&[&str]) -> anyhow::Result<vireo_tests::Ran>|
     -> anyhow::Result<()> {
        ask(&["image", "create", name, &scene.arg("base.img")])?.ok()?;
        let before = Snapshot::of(&scene.path("repo/disks"))?;
        ask(&["push", &bundle, name])?.fails(1, &["does not fit", "--grow auto"])?;
        ask(&["push", &bundle, name, "--grow", "33M"])?
            .fails(1, &["does not fit", "34603008 bytes"])?;
        ask(&["push", &bundle, name, "--grow", "x"])?.exits(2)?;
        before.unchanged()?;
        ask(&["log", name])?.ok()?.says(&[&format!("{name}@1")])?;
        ask(&["push", &bundle, name, "--grow", "auto"])?.ok()?.says(&[&format!("{name}@2")])?;
        ask(&["image", "verify", name])?.ok()?;
        let out = scene.arg("out.img");
        ask(&["image", "export", name, "-o", &out])?.ok()?;
        ensure!(len(out.as_ref())? > len(&scene.base())?);
        scene.is_target(out.as_ref())?;
        fs::remove_file(out)?;
        // The next image with these trees is to be built too.
        for disk in fs::read_dir(scene.path("repo/disks"))? {
            fs::remove_file(disk?.path())?;
        }
        site.is_tidy()?;
        scene.nothing_attached()
    };
    let server = site.serve()?;
    check("confined", &|args| site.ask(&server, args))?;
    drop(server);
    let server = site.serve_alone()?;
    check("alone", &|args| site.ask(&server, args))?;
    drop(server);
    let local = scene.arg("repo");
    check("local", &|args| vireo(args.iter().copied().chain(["--repo", &local])))
}

#[test]
fn root_a_full_host_is_not_taken_for_a_small_image() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    crowd(&scene)?;
    // Room for the clone, and for little of what is written to it.
    let host = Ext4::new(56 << 20)?;
    fixture_fill(&host, 32 << 10)?;
    let out = host.path().join("out.img").display().to_string();
    for how in [&["--grow", "auto"][..], &["--grow", "80M"]] {
        let args =
            scene.apply("update.vireo", "base.img", &[&["-o", out.as_str()][..], how].concat());
        let ran = vireo(args)?;
        ran.fails(1, &["out.img", "host", "make room"])?;
        let left = host.script("ls -A", &[])?;
        ensure!(left == "filler\nlost+found\n", "left behind: {left}");
    }
    scene.nothing_attached()
}

/// Fills a mounted file system but for this many KiB.
fn fixture_fill(host: &Ext4, free: u64) -> anyhow::Result<()> {
    let fill =
        "free=$(stat -f -c '%f * %S / 1024' .); fallocate -l \"$(((free - $4) * 1024))\" filler";
    host.script(fill, &[&free.to_string()])?;
    Ok(())
}
