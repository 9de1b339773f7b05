//! The fixture's base made its target, with the kernel, rsync and e2fsck as judges.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use vireo_capture::capture;
use vireo_delta::{Bundle, SecretKey, TrustedKeys};
use vireo_image::{Access, DiskImage, RootPartition, patch, read_tree};
use vireo_model::{Digest, Ignore};
use vireo_testkit::image::Table;
use vireo_testkit::oracle;
use vireo_tests::{Ext4, Scene, Snapshot, permissive, vireo};

/// Blocks that a file takes, in bytes.
fn allocated(path: &Path) -> anyhow::Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

/// Captures and patches through the libraries and has the result judged.
fn patched_equals_target(table: Option<Table>) -> anyhow::Result<()> {
    let scene = Scene::with(table)?;
    let before = Snapshot::of(scene.dir())?;
    let mount = |image: &Path| DiskImage::open(image, RootPartition::Find)?.mount(Access::ReadOnly);
    let key = SecretKey::generate()?;
    let file = scene.path("library.vireo");
    let (base, target) = (mount(&scene.base())?, mount(&scene.target())?);
    let captured = capture(base.root(), target.root(), &permissive(), &key, &file)?;
    base.finish()?;
    target.finish()?;
    ensure!(
        captured.added > 0
            && captured.modified > 0
            && captured.removed > 0
            && captured.metadata > 0
    );
    ensure!(captured.wire_len < captured.content_len, "{captured:?}: no delta was found");

    let bytes = vireo_sys::map_sealed(&File::open(&file)?)?;
    let bundle = Bundle::open(&bytes)?.verify(&TrustedKeys::from_iter([key.public()]))?;
    let out = scene.path("patched.img");
    let patched = patch(&scene.base(), &out, &bundle)?;
    ensure!(patched.tree == bundle.target() && patched.tree == captured.target);
    ensure!(read_tree(&out, &Ignore::default())?.digest() == bundle.target());
    scene.is_target(&out)?;

    let (base, out_len) = (allocated(&scene.base())?, fs::metadata(&out)?.len());
    ensure!(out_len == fs::metadata(scene.base())?.len(), "the image has another length");
    // The clone keeps the image's holes: it grows by about what was written to it.
    let grown = allocated(&out)?.saturating_sub(base);
    ensure!(grown < 8 << 20, "the patched image takes {grown} bytes more than its base");
    fs::remove_file(&out)?;
    fs::remove_file(&file)?;
    before.unchanged()?;
    scene.nothing_attached()
}

#[test]
fn root_a_patched_image_equals_the_target() -> anyhow::Result<()> {
    patched_equals_target(None)
}

#[test]
fn root_a_patched_image_with_a_gpt_equals_the_target() -> anyhow::Result<()> {
    patched_equals_target(Some(Table::Gpt))
}

#[test]
fn root_a_patched_image_with_an_mbr_equals_the_target() -> anyhow::Result<()> {
    patched_equals_target(Some(Table::Mbr))
}

#[test]
fn root_a_sparse_file_in_a_patched_image_keeps_its_holes() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    vireo(scene.apply("update.vireo", "base.img", &["-o", &scene.arg("out.img")]))?.ok()?;
    let of = |image: &str| -> anyhow::Result<(u64, u64)> {
        let mounted = Ext4::open(&scene.path(image))?;
        let file = mounted.path().join("data/sparse");
        Ok((fs::metadata(&file)?.len(), allocated(&file)?))
    };
    // Holes are made of blocks of 4 KiB, whatever the blocks of the target.
    let (target, patched) = (of("target.img")?, of("out.img")?);
    ensure!(
        patched.0 == target.0 && patched.1 <= 4 * target.1,
        "{patched:?} instead of {target:?}"
    );
    Ok(())
}

#[test]
fn root_the_command_line_captures_shows_applies_and_compares() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let digest = |image: &str| -> anyhow::Result<String> {
        let text = vireo(["digest", &scene.arg(image)])?.ok()?;
        Ok(text.output().stdout.trim().to_owned())
    };
    let (base, target) = (digest("base.img")?, digest("target.img")?);
    ensure!(base.parse::<Digest>().is_ok() && base != target, "{base} and {target}");
    let json = vireo(["digest", &scene.arg("base.img"), "--json"])?.ok()?.json("digest")?;
    ensure!(json["digest"] == base.as_str(), "{json}");

    let shown =
        vireo(["show", &scene.arg("update.vireo"), "--files", "--json"])?.ok()?.json("show")?;
    ensure!(shown["base"] == base.as_str() && shown["target"] == target.as_str(), "{shown}");
    let files = shown["files"].as_array().context("a list of files")?;
    let line = |path: &str| files.iter().find(|line| line["path"] == path);
    let conf = line("/etc/server.conf").context("the changed configuration is listed")?;
    ensure!(conf["change"] == "modified" && conf["class"] == "config", "{conf}");
    ensure!(line("/gone/deep/file").is_some_and(|line| line["change"] == "removed"));
    ensure!(line("/made/deep/file").is_some_and(|line| line["change"] == "added"));
    ensure!(line("/bin/net").is_some_and(|line| line["change"] == "metadata"));
    ensure!(line("/data/zero").is_some_and(|line| line["change"] == "metadata"));

    vireo(["diff", &scene.arg("base.img"), &scene.arg("target.img")])?
        .exits(1)?
        .says(&["modified  /etc/server.conf", "removed   /gone/deep/file"])?;

    // Into a copy: the base stays, the copy is the target.
    let applied =
        vireo(scene.apply("update.vireo", "base.img", &["-o", &scene.arg("out.img"), "--json"]))?;
    let applied = applied.ok()?.json("apply")?;
    ensure!(applied["target"] == target.as_str(), "{applied}");
    scene.base_is_whole()?;
    scene.is_target(&scene.path("out.img"))?;
    vireo(["diff", &scene.arg("out.img"), &scene.arg("target.img")])?
        .ok()?
        .says(&["no difference"])?;

    // In place, and again: nothing to do is no error.
    vireo(scene.apply("update.vireo", "base.img", &[]))?
        .ok()?
        .says(&["is the target now", &target])?;
    scene.is_target(&scene.base())?;
    ensure!(digest("base.img")? == target);
    vireo(scene.apply("update.vireo", "base.img", &[]))?.ok()?.says(&["was the target already"])?;
    scene.is_target(&scene.base())?;
    scene.nothing_attached()
}

#[test]
fn root_a_directory_becomes_the_target() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let disk = Ext4::new(64 << 20)?;
    let work = disk.path().join("work");
    disk.unpack(&scene.base(), 0, "work")?;
    disk.unpack(&scene.target(), 0, "target")?;
    let apply = || {
        let mut args = scene.apply("update.vireo", "base.img", &[]);
        args[3] = work.display().to_string();
        vireo(args)
    };
    apply()?.ok()?.says(&["is the target now"])?;
    disk.no_difference("work", "target")?;
    apply()?.ok()?.says(&["was the target already"])?;
    disk.no_difference("work", "target")
}

#[test]
fn root_the_judges_see_what_differs() -> anyhow::Result<()> {
    // A judge that never finds anything proves nothing.
    let scene = Scene::new()?;
    let found = oracle::differences((&scene.base(), 0), (&scene.target(), 0))?;
    for path in
        ["etc/server.conf", "etc/secret", "bin/net", "nodes/null", "links/soft", "data/sparse"]
    {
        ensure!(found.contains(path), "rsync does not see {path} in\n{found}");
    }
    let disk = Ext4::new(64 << 20)?;
    disk.unpack(&scene.base(), 0, "base")?;
    disk.unpack(&scene.target(), 0, "target")?;
    ensure!(disk.no_difference("base", "target").is_err());
    disk.no_difference("target", "target")
}
