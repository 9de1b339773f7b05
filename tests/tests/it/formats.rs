//! qcow2 from one end to the other, as its users meet it: read, patched, put into a repository and taken
//! out of it; and files that only look like it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use vireo_testkit::Run;
use vireo_tests::{Scene, Snapshot, vireo};

use crate::repository::Site;

/// How qcow2 files are made (qemu-img(1)): as by default, in small and in the largest clusters,
/// compressed, of the former version.
const KINDS: &[(&str, &str)] = &[
    ("plain", "refcount_bits=16"),
    ("small", "cluster_size=512"),
    ("large", "cluster_size=2M"),
    ("narrow", "refcount_bits=1"),
    ("former", "compat=0.10"),
];

/// Makes the qcow2 file `to` of a raw image, both names in the scene.
fn convert(scene: &Scene, from: &str, to: &str, options: &str) -> anyhow::Result<()> {
    let run = Run::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2", "-o", options]);
    run.args([scene.arg(from), scene.arg(to)]).text().context("package qemu-utils")?;
    Ok(())
}

/// Expects that QEMU finds nothing wrong with the file, and in it what is in the target.
fn is_target(scene: &Scene, qcow2: &str) -> anyhow::Result<()> {
    Run::new("qemu-img").args(["check", "-q", &scene.arg(qcow2)]).text()?;
    let raw = scene.path("by-qemu.img");
    let run = Run::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw", &scene.arg(qcow2)]);
    run.arg(&raw).text()?;
    scene.is_target(&raw)?;
    Ok(fs::remove_file(raw)?)
}

/// Expects that nothing unfinished lies in `dir`.
fn is_tidy(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_left =
            [".partial", ".packed", ".part", ".vireo-raw"].iter().any(|it| name.contains(it));
        ensure!(!is_left, "{name} is left");
    }
    Ok(())
}

#[test]
fn root_a_qcow2_image_is_read_and_patched_however_it_is_stored() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let digest = |name: &str| -> anyhow::Result<String> {
        Ok(vireo(["digest", &scene.arg(name)])?.ok()?.output().stdout.clone())
    };
    let [base, target] = [digest("base.img")?, digest("target.img")?];
    for (name, options) in KINDS {
        let check = || -> anyhow::Result<()> {
            let file = format!("{name}.qcow2");
            convert(&scene, "base.img", &file, options)?;
            ensure!(digest(&file)? == base, "another tree");
            vireo(scene.apply("update.vireo", &file, &["-o", &scene.arg("out.img")]))?.ok()?;
            scene.is_target(&scene.path("out.img"))?;
            // In place it stays qcow2, and without a mount it is the same.
            for how in [&[][..], &["--rootless"]] {
                let copy = format!("copy-{name}.qcow2");
                fs::copy(scene.path(&file), scene.path(&copy))?;
                let ran = vireo(scene.apply("update.vireo", &copy, how))?;
                if !how.is_empty() && ran.output().code != 0 {
                    // Names with line ends cannot be told to debugfs.
                    ran.exits(5)?.says(&["line end", "nothing was changed"])?;
                    continue;
                }
                ran.ok()?.says(&["is the target now"])?;
                is_target(&scene, &copy)?;
                ensure!(digest(&copy)? == target);
            }
            fs::remove_file(scene.path("out.img"))?;
            Ok(())
        };
        check().with_context(|| format!("{name}: {options}"))?;
    }
    is_tidy(scene.dir())?;
    scene.nothing_attached()
}

#[test]
fn root_a_qcow2_image_goes_into_a_repository_and_comes_out_patched() -> anyhow::Result<()> {
    let site = Site::new()?;
    let scene = &site.scene;
    convert(scene, "base.img", "base.qcow2", "cluster_size=2M")?;
    let server = site.serve()?;
    let qcow2 = scene.arg("base.qcow2");
    site.ask(&server, &["image", "create", "web", &qcow2])?.ok()?.says(&["web@1"])?;
    site.push(&server, "update.vireo")?.ok()?.says(&["web@2"])?;
    for version in ["web@1", "web@2", "web"] {
        site.ask(&server, &["image", "verify", version])?.ok()?.says(&["as published"])?;
    }
    for (version, out) in [("web", "out.qcow2"), ("web@2", "two.qcow2"), ("web@1", "one.qcow2")] {
        let exported = site.ask(&server, &["image", "export", version, "-o", &scene.arg(out)])?;
        exported.ok()?.says(&[out, "MB"])?;
    }
    is_target(scene, "out.qcow2")?;
    is_target(scene, "two.qcow2")?;
    vireo(["diff", &scene.arg("one.qcow2"), &scene.arg("base.img")])?.ok()?;
    // What is there is kept, and said before anything is fetched.
    let again = ["image", "export", "web", "-o", &scene.arg("out.qcow2")];
    let before = Snapshot::of(scene.dir())?;
    site.ask(&server, &again)?.fails(1, &["out.qcow2", "exists already", "choose another name"])?;
    before.unchanged()?;
    drop(server);

    // The same with the repository as a directory of this host.
    let local = scene.arg("repo");
    vireo(["image", "create", "local", &qcow2, "--repo", &local])?.ok()?.says(&["local@1"])?;
    let out = scene.arg("local.qcow2");
    vireo(["image", "export", "local", "--repo", &local, "-o", &out])?.ok()?;
    vireo(["diff", &out, &scene.arg("base.img")])?.ok()?;
    vireo(["image", "verify", "local", "--repo", &local])?.ok()?;
    is_tidy(scene.dir())?;
    site.is_tidy()?;
    scene.nothing_attached()?;
    site.fsck()
}

/// What is wrong with a qcow2 file: its name here, what is written where, to which length it is cut (in
/// percent), the exit code and what has to be said.
type Bad = (&'static str, &'static [(u64, &'static [u8])], u64, &'static [&'static str]);

const BAD: &[Bad] = &[
    ("cut to a half", &[], 50, &["beyond the end of the file", "cut short", "qemu-img check"]),
    ("cut to its header", &[], 0, &["beyond the end of the file"]),
    ("a first table far away", &[(40, &[0x7F, 0xFF, 0, 0, 0, 0, 0, 0])], 100, &["its first table"]),
    ("a first table of nothing", &[(36, &[0; 4])], 100, &["has 0 of 1 entries"]),
    ("a disk longer than its tables", &[(24, &[0, 0, 1, 0])], 100, &["has 1 of"]),
    ("refcounts of an odd width", &[(96, &[0, 0, 0, 9])], 100, &["is damaged", "refcount"]),
    ("a header of four bytes", &[(100, &[0, 0, 0, 4])], 100, &["is damaged", "header too short"]),
    (
        "a header longer than a cluster",
        &[(100, &[1, 0, 0, 0])],
        100,
        &["is damaged", "header too big"],
    ),
    ("corrupt", &[(79, &[2])], 100, &["marked as corrupt", "qemu-img check"]),
    ("in use", &[(79, &[1])], 100, &["was not closed cleanly", "shut it down"]),
    ("a backing file", &[(15, &[80]), (19, &[8])], 100, &["has a backing file"]),
];

#[test]
fn root_a_qcow2_file_that_is_cut_or_odd_is_refused_and_nothing_is_made_of_it() -> anyhow::Result<()>
{
    let site = Site::new()?;
    let scene = &site.scene;
    let local = scene.arg("repo");
    for (what, writes, percent, says) in BAD {
        convert(scene, "base.img", "bad.qcow2", "refcount_bits=16")?;
        let path = scene.path("bad.qcow2");
        let file = File::options().read(true).write(true).open(&path)?;
        for (at, bytes) in *writes {
            file.write_all_at(bytes, *at)?;
        }
        file.set_len((file.metadata()?.len() * percent / 100).max(64 << 10))?;
        drop(file);
        let check = || -> anyhow::Result<()> {
            let says = [&["bad.qcow2"][..], says].concat();
            let bad = scene.arg("bad.qcow2");
            scene.refuses(&["digest".to_owned(), bad.clone()], 5, &says)?;
            scene.refuses(&scene.apply("update.vireo", "bad.qcow2", &[]), 5, &says)?;
            for how in ["--rootless", "--grow=auto"] {
                let args =
                    scene.apply("update.vireo", "bad.qcow2", &[how, "-o", &scene.arg("out.img")]);
                scene.refuses(&args, 5, &says)?;
            }
            vireo(["image", "create", "bad", &bad, "--repo", &local])?.fails(5, &says)?;
            vireo(["log", "bad", "--repo", &local])?.fails(1, &["no image bad"])?;
            is_tidy(scene.dir())?;
            site.is_tidy()
        };
        check().with_context(|| (*what).to_owned())?;
        fs::remove_file(path)?;
    }
    scene.nothing_attached()?;
    site.fsck()
}

#[test]
fn root_snapshots_inside_a_qcow2_file_are_not_lost_in_silence() -> anyhow::Result<()> {
    let site = Site::new()?;
    let scene = &site.scene;
    convert(scene, "base.img", "kept.qcow2", "refcount_bits=16")?;
    let file = scene.arg("kept.qcow2");
    Run::new("qemu-img").args(["snapshot", "-c", "before", &file]).text()?;
    vireo(["digest", &file])?.ok()?;
    let says = ["kept.qcow2", "keeps 1 snapshots inside", "qemu-img snapshot -d"];
    scene.refuses(&scene.apply("update.vireo", "kept.qcow2", &[]), 5, &says)?;
    let create = ["image", "create", "web", &file, "--repo", &scene.arg("repo")];
    vireo(create)?.fails(5, &says)?;
    Run::new("qemu-img").args(["snapshot", "-d", "before", &file]).text()?;
    vireo(scene.apply("update.vireo", "kept.qcow2", &[]))?.ok()?;
    is_target(scene, "kept.qcow2")
}
