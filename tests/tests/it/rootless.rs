//! Images patched by a user who may not mount: the same trees as the mount makes.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use vireo_testkit::image::{Table, clone_image, partitioned};
use vireo_testkit::{Run, fixture, programs};
use vireo_tests::{Ran, Random, Scene, Snapshot, mutate_tree, require_host, vireo, write_tree};

/// The user `nobody` of every distribution.
const NOBODY: u32 = 65_534;

/// Pairs of random trees.
const CASES: u64 = 6;

/// `vireo ARGS` by a user without rights.
fn nobody(args: &[String]) -> anyhow::Result<Ran> {
    let uid = NOBODY.to_string();
    let run = Run::new("setpriv").args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
    let label = format!("nobody: vireo {}", args.join(" "));
    Ran::of(run.arg(programs::find("vireo")?).args(args), label)
}

/// A directory `name` of the scene that belongs to that user, with the scene's base in it.
fn own_dir(scene: &Scene, name: &str) -> anyhow::Result<PathBuf> {
    let dir = scene.path(name);
    fs::create_dir(&dir)?;
    let own = dir.join("own.img");
    clone_image(&scene.base(), &own)?;
    for path in [&dir, &own] {
        chown(path, Some(NOBODY), Some(NOBODY))?;
    }
    for (path, mode) in [(scene.dir(), 0o755), (&scene.path("keys"), 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(dir)
}

/// A scene whose bundle has no names that cannot be told to debugfs.
fn sayable() -> anyhow::Result<Scene> {
    let scene = Scene::new()?;
    for image in [scene.base(), scene.target()] {
        fixture::edit(&image, 0, NO_LINE_ENDS, &[])?;
    }
    scene.capture(&scene.base(), &scene.target(), &scene.path("plain.vireo"))?;
    Ok(scene)
}

/// Names with line ends cannot be told to debugfs.
const NO_LINE_ENDS: &str = r#"find "$1" -depth -name '*
*' -exec rm -rf {} \;"#;

/// `image`, with `table` around it if there is to be one, in place.
fn wrap(image: &Path, table: Option<Table>) -> anyhow::Result<()> {
    if let Some(table) = table {
        let plain = image.with_extension("plain");
        fs::rename(image, &plain)?;
        partitioned(&plain, table, image)?;
        fs::remove_file(plain)?;
    }
    Ok(())
}

/// Expects that a user without rights makes of `base.img` with the scene's bundle what root makes.
fn nobody_makes_the_same(scene: &Scene, bundle: &str) -> anyhow::Result<()> {
    let dir = own_dir(scene, "nobody")?;
    let out = dir.join("out.img");
    let args = scene.apply(bundle, "nobody/own.img", &["-o", &scene.arg("nobody/out.img")]);
    nobody(&args)?.ok()?;
    let left = fs::read_dir(&dir)?.count();
    ensure!(left == 2, "{left} files instead of the image and the patched one");

    vireo(scene.apply(bundle, "base.img", &["-o", &scene.arg("mounted.img")]))?.ok()?;
    let forced = scene.apply(bundle, "base.img", &["--rootless", "-o", &scene.arg("forced.img")]);
    vireo(forced)?.ok()?;
    for image in ["mounted.img", "forced.img"] {
        let both = ["diff", &scene.arg(image), &scene.arg("nobody/out.img")];
        vireo(both)?.ok()?.says(&["no difference"])?;
    }
    scene.is_target(&out)?;
    for path in [dir, scene.path("mounted.img"), scene.path("forced.img")] {
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    scene.nothing_attached()
}

fn every_kind_of_node(table: Option<Table>) -> anyhow::Result<()> {
    let scene = Scene::new()?;
    for image in [scene.base(), scene.target()] {
        fixture::edit(&image, 0, NO_LINE_ENDS, &[])?;
        wrap(&image, table)?;
    }
    let scene = scene.at(table);
    scene.capture(&scene.base(), &scene.target(), &scene.path("plain.vireo"))?;
    nobody_makes_the_same(&scene, "plain.vireo")
}

#[test]
fn root_nobody_makes_every_kind_of_node() -> anyhow::Result<()> {
    every_kind_of_node(None)
}

#[test]
fn root_nobody_patches_a_partition_of_a_gpt() -> anyhow::Result<()> {
    every_kind_of_node(Some(Table::Gpt))
}

#[test]
fn root_nobody_patches_a_partition_of_an_mbr() -> anyhow::Result<()> {
    every_kind_of_node(Some(Table::Mbr))
}

#[test]
fn root_random_trees_become_the_same_without_root() -> anyhow::Result<()> {
    require_host()?;
    for seed in 0..CASES {
        let scene = Scene::new()?;
        let mut random = Random::new(seed);
        let (base, target) = (scene.base(), scene.target());
        fs::remove_file(&base)?;
        fs::remove_file(&target)?;
        fixture::empty_image(&base, 32 << 20)?;
        let disk = vireo_tests::Ext4::open(&base)?;
        write_tree(&disk.path(), &mut random)?;
        drop(disk);
        vireo_tests::wait_until_free(&base)?;
        fixture::edit(&base, 0, NO_LINE_ENDS, &[])?;
        clone_image(&base, &target)?;
        let disk = vireo_tests::Ext4::open(&target)?;
        mutate_tree(&disk.path(), &mut random)?;
        drop(disk);
        vireo_tests::wait_until_free(&target)?;
        fixture::edit(&target, 0, NO_LINE_ENDS, &[])?;
        scene.capture(&base, &target, &scene.path("random.vireo"))?;
        nobody_makes_the_same(&scene, "random.vireo").with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

#[test]
fn root_nobody_patches_a_read_only_image_and_it_stays_read_only() -> anyhow::Result<()> {
    let scene = sayable()?;
    let dir = own_dir(&scene, "nobody")?;
    let own = dir.join("own.img");
    for mode in [0o444, 0o640] {
        fs::set_permissions(&own, fs::Permissions::from_mode(mode))?;
        let out = scene.arg("nobody/out.img");
        nobody(&scene.apply("plain.vireo", "nobody/own.img", &["-o", &out]))?.ok()?;
        scene.is_target(out.as_ref())?;
        ensure!(fs::metadata(&out)?.mode() & 0o7777 == mode, "other rights than the base's");
        fs::remove_file(out)?;
    }
    fs::set_permissions(&own, fs::Permissions::from_mode(0o400))?;
    nobody(&scene.apply("plain.vireo", "nobody/own.img", &[]))?.ok()?;
    scene.is_target(&own)?;
    let stat = fs::metadata(&own)?;
    ensure!((stat.mode() & 0o7777, stat.uid()) == (0o400, NOBODY));
    ensure!(fs::read_dir(&dir)?.count() == 1, "something is left");
    Ok(())
}

#[test]
fn root_nobody_is_told_which_file_or_directory_belongs_to_another() -> anyhow::Result<()> {
    let scene = sayable()?;
    own_dir(&scene, "nobody")?;
    let refused = |to: &str, out: &str, says: &[&str]| -> anyhow::Result<()> {
        let before = Snapshot::of(scene.dir())?;
        nobody(&scene.apply("plain.vireo", to, &["-o", &scene.arg(out)]))?.fails(1, says)?;
        before.unchanged()
    };
    let right = "get the right to what is named";
    // A directory of root's.
    refused(
        "nobody/own.img",
        "out.img",
        &["cannot make", "out.img.claim.partial", "Permission denied", right],
    )?;
    // An image that only root reads.
    fs::set_permissions(scene.base(), fs::Permissions::from_mode(0o600))?;
    refused(
        "base.img",
        "nobody/out.img",
        &["cannot open", "base.img", "Permission denied", right],
    )?;
    // What another is making, or left half made; nobody writes to what is root's.
    let claim = scene.path("nobody/out.img.claim.partial");
    fs::write(&claim, "")?;
    refused("nobody/own.img", "nobody/out.img", &["cannot make", "out.img.claim.partial", right])?;
    fs::remove_file(claim)?;
    fs::write(scene.path("nobody/out.img.partial"), "root's")?;
    let out = scene.arg("nobody/out.img");
    nobody(&scene.apply("plain.vireo", "nobody/own.img", &["-o", &out]))?.ok()?;
    scene.is_target(out.as_ref())?;
    fs::remove_file(&out)?;
    // To make it larger takes a mount: said before anything is made, not left out in silence.
    let before = Snapshot::of(scene.dir())?;
    let grow = scene.apply("plain.vireo", "nobody/own.img", &["--grow", "auto", "-o", &out]);
    nobody(&grow)?.fails(1, &["own.img cannot be made larger", "as root", "--grow"])?;
    before.unchanged()?;
    fs::create_dir(scene.path("nobody/out.img.files.partial"))?;
    fs::write(scene.path("nobody/out.img.files.partial/f1"), "root's")?;
    refused("nobody/own.img", "nobody/out.img", &["cannot make", "out.img.files.partial", right])
}

#[test]
fn root_names_that_debugfs_could_take_for_something_else_are_names() -> anyhow::Result<()> {
    let scene = sayable()?;
    let edit = r#"cd "$1"; mkdir -- '-d' '"' "quote'd" '#' ' '; echo 1 > './-f'; echo 2 > '"/"a"'; echo 3 > "quote'd/\\"
      echo 4 > '#/#!rm'; echo 5 > ' / '; ln -s -- '-f' '<2>'; ln -- './-f' '-l'; touch -h -d @5 -- * '#'/* '"'/* ' '/* "quote'd"/*; touch -d @5 ."#;
    fixture::edit(&scene.target(), 0, edit, &[])?;
    scene.capture(&scene.base(), &scene.target(), &scene.path("odd.vireo"))?;
    nobody_makes_the_same(&scene, "odd.vireo")?;
    // And back again: they go, too.
    scene.capture(&scene.target(), &scene.base(), &scene.path("back.vireo"))?;
    let back =
        scene.apply("back.vireo", "target.img", &["--rootless", "-o", &scene.arg("back.img")]);
    vireo(back)?.ok()?;
    vireo(["diff", &scene.arg("back.img"), &scene.arg("base.img")])?.ok()?;
    // A place that cannot be told to it is refused before anything is written.
    let place = scene.path("line\nend");
    fs::create_dir(&place)?;
    let out = place.join("out.img").display().to_string();
    let args = scene.apply("odd.vireo", "base.img", &["--rootless", "-o", &out]);
    scene.refuses(&args, 5, &["has a line end", "as root", "nothing was changed"])
}
