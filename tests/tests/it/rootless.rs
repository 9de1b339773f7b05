//! Images patched by a user who may not mount: the same trees as the mount makes.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use anyhow::{Context as _, ensure};
use vireo_testkit::image::{Table, clone_image, partitioned};
use vireo_testkit::{Run, fixture, programs};
use vireo_tests::{Random, Scene, mutate_tree, require_host, vireo, write_tree};

/// The user `nobody` of every distribution.
const NOBODY: u32 = 65_534;

/// Pairs of random trees.
const CASES: u64 = 6;

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
    let dir = scene.path("nobody");
    fs::create_dir(&dir)?;
    let [own, out] = ["nobody/own.img", "nobody/out.img"].map(|name| scene.path(name));
    clone_image(&scene.base(), &own)?;
    for path in [&dir, &own] {
        chown(path, Some(NOBODY), Some(NOBODY))?;
    }
    for (path, mode) in [(scene.dir(), 0o755), (&scene.path("keys"), 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let uid = NOBODY.to_string();
    let run = Run::new("setpriv").args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
    let run = run.arg(programs::find("vireo")?);
    let args = scene.apply(bundle, "nobody/own.img", &["-o", &scene.arg("nobody/out.img")]);
    run.args(args).text().context("nobody cannot patch")?;
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
