//! Bundles made of bundles, over real images: what they make, the kernel finds to be the same.

use anyhow::ensure;
use vireo_testkit::image::clone_image;
use vireo_testkit::{fixture, oracle};
use vireo_tests::{Scene, vireo};

/// Arguments of `vireo bundle COMMAND` over the scene's base image.
fn derive(scene: &Scene, command: &str, bundles: &[&str], out: &str) -> Vec<String> {
    let mut args = vec!["bundle".to_owned(), command.to_owned()];
    args.extend(bundles.iter().map(|name| scene.arg(name)));
    let key = scene.key().display().to_string();
    let base = scene.base().display().to_string();
    let named = ["--base", &base, "--key", &key, "-o", &scene.arg(out), "--no-cache"];
    args.extend(named.iter().map(|word| (*word).to_owned()));
    for permit in ["setuid", "devices", "mass"] {
        args.extend(["--permit".to_owned(), permit.to_owned()]);
    }
    args
}

#[test]
fn root_a_reversed_bundle_makes_the_base_of_the_target() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    vireo(derive(&scene, "reverse", &["update.vireo"], "back.vireo"))?.ok()?;
    let out = scene.path("out.img");
    vireo(scene.apply("back.vireo", "target.img", &["-o", &scene.arg("out.img")]))?.ok()?;
    let differences = oracle::differences((&out, scene.offset), (&scene.base(), scene.offset))?;
    ensure!(differences.is_empty(), "the kernel finds:\n{differences}");
    oracle::check_file_system(&out, scene.offset)?;
    scene.nothing_attached()
}

#[test]
fn root_a_composed_bundle_makes_of_the_base_what_both_make() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let third = scene.path("third.img");
    clone_image(&scene.target(), &third)?;
    let edit = "echo 3 > \"$1/etc/server.conf\"; rm \"$1/data/zero\"; mv \"$1/data/big.txt\" \"$1/big\"; \
                echo more >> \"$1/data/moves.txt\"; mkdir \"$1/third\"; ln \"$1/links/a\" \"$1/third/a\"";
    fixture::edit(&third, 0, edit, &[])?;
    scene.capture(&scene.target(), &third, &scene.path("second.vireo"))?;
    let both = ["update.vireo", "second.vireo"];
    vireo(derive(&scene, "compose", &both, "both.vireo"))?.ok()?;
    let out = scene.path("out.img");
    vireo(scene.apply("both.vireo", "base.img", &["-o", &scene.arg("out.img")]))?.ok()?;
    let differences = oracle::differences((&out, scene.offset), (&third, scene.offset))?;
    ensure!(differences.is_empty(), "the kernel finds:\n{differences}");
    scene.nothing_attached()
}

#[test]
fn root_bundles_are_derived_over_their_base_alone() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let mut args = derive(&scene, "reverse", &["update.vireo"], "back.vireo");
    let at = args.iter().position(|word| word == "--base").unwrap_or(0) + 1;
    args[at] = scene.arg("target.img");
    scene.refuses(&args, 5, &["target.img has tree", "the bundle starts from"])?;
    let twice = derive(&scene, "compose", &["update.vireo", "update.vireo"], "both.vireo");
    scene.refuses(&twice, 5, &["the second bundle starts from"])
}
