//! Bundles that must be refused: damaged, of strangers, for another base.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, ensure};
use vireo_delta::{HEADER_LEN, Header};
use vireo_testkit::fixture;
use vireo_testkit::image::clone_image;
use vireo_tests::{Ext4, Scene, vireo};

/// What every message about a damaged bundle has: the step, the file, the remedy.
const DAMAGED: [&str; 3] = ["cannot use the bundle", "bad.vireo", "fetch or capture it again"];

/// Writes `bytes` as `bad.vireo` and expects that neither an image nor a directory takes it.
fn refused(scene: &Scene, bytes: &[u8], says: &[&str]) -> anyhow::Result<()> {
    fs::write(scene.path("bad.vireo"), bytes)?;
    for to in ["base.img", "dir"] {
        scene.refuses(&scene.apply("bad.vireo", to, &[]), 5, says)?;
    }
    Ok(())
}

/// A scene with a directory `dir`, which is a copy of the part of the base that any file system
/// can hold.
fn scene_with_directory() -> anyhow::Result<Scene> {
    let scene = Scene::new()?;
    let dir = scene.path("dir");
    fs::create_dir(&dir)?;
    let copy = "cp -a \"$1/etc\" \"$1/data\" \"$2/\"";
    fixture::edit(
        &scene.path("base.img"),
        0,
        copy,
        &[dir.to_str().context("a name that is text")?],
    )?;
    Ok(scene)
}

#[test]
fn root_a_truncated_bundle_is_refused() -> anyhow::Result<()> {
    let scene = scene_with_directory()?;
    let whole = fs::read(scene.bundle())?;
    let head = Header::decode(&whole)?.head_len() as usize;
    for len in [0, 4, 100, HEADER_LEN - 1] {
        refused(&scene, &whole[..len], &DAMAGED)
            .with_context(|| format!("{len} bytes, inside the header"))?;
    }
    for len in [HEADER_LEN, (HEADER_LEN + head) / 2, head, head + 1, whole.len() - 1] {
        refused(&scene, &whole[..len], &[&DAMAGED[..], &["ends at byte"]].concat())
            .with_context(|| format!("{len} bytes"))?;
    }
    let longer = [&whole[..], b"x"].concat();
    refused(&scene, &longer, &[&DAMAGED[..], &["after its end"]].concat())?;
    refused(&scene, b"#!/bin/sh\nexit 0\n", &["not a Vireo bundle", "bad.vireo"])
}

#[test]
fn root_a_flipped_bit_anywhere_is_refused() -> anyhow::Result<()> {
    let scene = scene_with_directory()?;
    let whole = fs::read(scene.bundle())?;
    let head = Header::decode(&whole)?.head_len() as usize;
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    };
    // One place in each field of the header, four in the manifest.
    let header = [9, 17, 25, 33, 65, 97, 129, 161, 200];
    let manifest = [1, 2, 3, 4].map(|fifth| HEADER_LEN + (head - HEADER_LEN) * fifth / 5);
    for at in header.into_iter().chain(manifest) {
        refused(&scene, &flipped(at), &DAMAGED[..2]).with_context(|| format!("byte {at}"))?;
    }
    for fourth in 0..5 {
        let at = head + (whole.len() - 1 - head) * fourth / 4;
        let says = [&DAMAGED[..], &["content"]].concat();
        refused(&scene, &flipped(at), &says).with_context(|| format!("byte {at}"))?;
        let show = ["show".to_owned(), scene.arg("bad.vireo")];
        scene.refuses(&show, 5, &DAMAGED).with_context(|| format!("byte {at}"))?;
    }
    Ok(())
}

#[test]
fn root_a_bundle_without_a_trusted_signature_is_refused() -> anyhow::Result<()> {
    let scene = scene_with_directory()?;
    let whole = fs::read(scene.bundle())?;
    let signature = HEADER_LEN - 64..HEADER_LEN;

    let mut unsigned = whole.clone();
    unsigned[signature.clone()].fill(0);
    refused(&scene, &unsigned, &["cannot use the bundle", "bad.vireo", "signature does not fit"])?;

    // Another bundle's signature by the same key.
    scene.capture(&scene.target(), &scene.base(), &scene.path("back.vireo"))?;
    let mut borrowed = whole;
    borrowed[signature.clone()].copy_from_slice(&fs::read(scene.path("back.vireo"))?[signature]);
    refused(&scene, &borrowed, &["bad.vireo", "signature does not fit"])?;

    // Well signed, by somebody else.
    vireo(["key", "generate", "--out", &scene.arg("others")])?.ok()?;
    let mut args = scene.apply("update.vireo", "base.img", &[]);
    args[5] = scene.arg("others/vireo.pub");
    scene.refuses(&args, 5, &["update.vireo", "not trusted here", "--trust"])?;
    args[5] = "vireo-key-v1:1234".to_owned();
    vireo(&args)?.fails(5, &["vireo-key-v1:1234", "64 hexadecimal digits"])?;
    // Nobody is trusted who is not named.
    vireo(&args[..4])?.exits(2)?.says(&["--trust"])?;
    Ok(())
}

/// Changes a copy of the base and expects that the bundle is refused there.
fn other_base(script: &str, says: &[&str]) -> anyhow::Result<()> {
    let scene = Scene::new()?;
    clone_image(&scene.base(), &scene.path("other.img"))?;
    fixture::edit(&scene.path("other.img"), 0, script, &[])?;
    scene.refuses(&scene.apply("update.vireo", "other.img", &[]), 5, says)?;
    let copy = ["-o", &scene.arg("out.img")];
    scene.refuses(&scene.apply("update.vireo", "other.img", &copy), 5, says)
}

#[test]
fn root_edits_of_what_the_bundle_changes_are_listed() -> anyhow::Result<()> {
    let edits =
        "echo mine > \"$1/etc/server.conf\"; rm \"$1/data/zero\"; chmod 700 \"$1/bin/tool\"";
    let says = ["other.img", "/etc/server.conf", "/data/zero", "nothing was changed", "base"];
    other_base(edits, &says)
}

#[test]
fn root_edits_beside_what_the_bundle_changes_are_refused_too() -> anyhow::Result<()> {
    let says = ["other.img", "paths that the bundle does not touch", "nothing was changed"];
    other_base("echo mine > \"$1/etc/local.conf\"", &says)
}

#[test]
fn root_the_target_of_another_update_is_no_base() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    // From the target to a third state, tried on the base.
    clone_image(&scene.target(), &scene.path("third.img"))?;
    fixture::edit(&scene.path("third.img"), 0, "echo 3 > \"$1/etc/server.conf\"", &[])?;
    scene.capture(&scene.target(), &scene.path("third.img"), &scene.path("second.vireo"))?;
    let args = scene.apply("second.vireo", "base.img", &[]);
    scene.refuses(&args, 5, &["base.img", "/etc/server.conf", "nothing was changed"])
}

#[test]
fn root_a_directory_that_is_not_the_base_is_left_alone() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    for (edit, path) in
        [("etc/server.conf", "/etc/server.conf"), ("etc/local.conf", "does not touch")]
    {
        let disk = Ext4::new(64 << 20)?;
        disk.unpack(&scene.base(), 0, "work")?;
        disk.unpack(&scene.base(), 0, "same")?;
        for copy in ["work", "same"] {
            fs::write(disk.path().join(copy).join(edit), "mine\n")?;
        }
        disk.script(
            "touch -r \"$4\" \"$5\" work/etc same/etc work same",
            &[&format!("work/{edit}"), &format!("same/{edit}")],
        )?;
        let mut args = scene.apply("update.vireo", "base.img", &[]);
        args[3] = disk.path().join("work").display().to_string();
        vireo(&args)?.fails(5, &[path, "nothing was changed"])?;
        // The root's own time has moved: /.vireo, which is no part of any version, was made in it.
        let root = Command::new("touch")
            .arg("-r")
            .args(["same", "work"].map(|name| disk.path().join(name)))
            .status()?;
        ensure!(root.success());
        disk.no_difference("work", "same")?;
        ensure!(
            fs::read_dir(disk.path().join("work/.vireo"))?.next().is_none(),
            "a stage was left"
        );
    }
    Ok(())
}

#[test]
fn root_messages_for_programs_say_the_same() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    fs::write(scene.path("bad.vireo"), b"\x89VIR\r\n")?;
    let ran = vireo(scene.apply("bad.vireo", "base.img", &["--json"]))?.exits(5)?;
    let error = ran.json("error")?;
    ensure!(error["exit"] == 5, "{error}");
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    ensure!(
        text("error").contains("bad.vireo") && text("hint").contains("capture it again"),
        "{error}"
    );
    Ok(())
}
