//! qcow2: read in place, patched by way of a raw disk, never led to other files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use vireo_image::{DiskImage, ErrorKind, PatchOptions, RootPartition, clone_image, patch_with};
use vireo_model::Ignore;

use crate::common::{Place, bundle, digest_of, edit, ext, mounted, open, read, same, sh};

const CONTENT: &str =
    "mkdir -p etc usr/bin; for n in $(seq 40); do seq $n $((n * 300)) > usr/bin/t$n; done
  truncate -s 3M usr/holes; echo x >> usr/holes";
const CHANGE: &str = "echo next > usr/bin/t1; rm usr/bin/t2; seq 5000 > usr/new";

/// `qemu-img` with these words (package qemu-utils).
fn qemu_img(words: &str, args: &[&str]) -> anyhow::Result<String> {
    sh(&format!("qemu-img {words}"), args).context("package qemu-utils")
}

fn scene() -> anyhow::Result<Place> {
    let place = Place::new()?;
    let content = place.dir("content", CONTENT)?;
    ext(&place.path("base.img"), 48, "-t ext4", &content)?;
    place.copy("base.img", "target.img")?;
    edit(&place.path("target.img"), &[(0, 0, "/")], CHANGE)?;
    Ok(place)
}

fn convert(place: &Place, from: &str, to: &str, options: &str) -> anyhow::Result<()> {
    let words = format!("convert -O qcow2 {options} \"$1\" \"$2\"");
    qemu_img(&words, &[&place.arg(from), &place.arg(to)]).map(drop)
}

#[test]
fn root_a_qcow2_image_has_the_tree_of_its_raw_disk_however_it_is_stored() -> anyhow::Result<()> {
    let place = scene()?;
    let tree = mounted(&place.path("base.img"))?;
    for (name, options) in [
        ("plain.qcow2", ""),
        ("small.qcow2", "-o cluster_size=4k,compat=0.10"),
        ("packed.QCOW2", "-c"),
        ("full.qcow2", "-o preallocation=metadata,lazy_refcounts=on"),
        ("large.qcow2", "-o cluster_size=2M"),
        ("tight.qcow2", "-c -o cluster_size=2M"),
    ] {
        convert(&place, "base.img", name, options)?;
        same(&tree, &read(&place.path(name))?).context(name)?;
        // Without a mount even as root, and without a raw copy.
        same(&tree, &mounted(&place.path(name))?)?;
    }
    place.nothing_attached()
}

#[test]
fn root_a_qcow2_image_is_patched_and_stays_one() -> anyhow::Result<()> {
    let place = scene()?;
    convert(&place, "base.img", "base.qcow2", "-c")?;
    let (bytes, keys) = bundle(&place.path("base.img"), &place.path("target.img"))?;
    let update = open(&bytes, &keys)?;
    let patch = |out: &Path, replace| {
        let options = PatchOptions { replace, ..PatchOptions::default() };
        patch_with(&place.path("base.qcow2"), out, &update, &options, &mut |_| ())
    };
    let before = digest_of(&place.path("base.qcow2"))?;
    patch(&place.path("out.qcow2"), false)?;
    patch(&place.path("out.img"), false)?;
    ensure!(digest_of(&place.path("base.qcow2"))? == before, "the base was changed");
    let check = qemu_img("check \"$1\" 2>&1", &[&place.arg("out.qcow2")])?;
    ensure!(check.contains("No errors"), "{check}");
    let target = mounted(&place.path("target.img"))?;
    // QEMU's own reading of what was written.
    qemu_img(
        "convert -f qcow2 -O raw \"$1\" \"$2\"",
        &[&place.arg("out.qcow2"), &place.arg("again.img")],
    )?;
    for name in ["out.qcow2", "out.img", "again.img"] {
        same(&target, &mounted(&place.path(name))?).context(name)?;
    }
    ensure!(fs::metadata(place.path("out.qcow2"))?.len() < 16 << 20, "holes were filled");

    patch(&place.path("base.qcow2"), true)?;
    same(&target, &read(&place.path("base.qcow2"))?)?;
    let left = fs::read_dir(place.path(""))?.filter_map(Result::ok);
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    ensure!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
    place.nothing_attached()
}

#[test]
fn root_what_a_qcow2_image_refers_to_is_never_opened() -> anyhow::Result<()> {
    let place = scene()?;
    let make = |words: &str| qemu_img(words, &[&place.arg("x.qcow2"), &place.arg("base.img")]);
    let refused = |kind: ErrorKind, says: &str| -> anyhow::Result<()> {
        let path = place.path("x.qcow2");
        let before = digest_of(&path)?;
        for outcome in [
            vireo_image::read_tree(&path, &Ignore::default()).map(drop),
            DiskImage::open(&path, RootPartition::Find).map(drop),
            clone_image(&path, &place.path("copy.img")).map(drop),
        ] {
            let error = outcome.err().context("it was opened")?;
            ensure!(error.kind() == kind, "{error}: {:?}", error.kind());
            ensure!(error.to_string().contains(says), "{error} does not say {says}");
        }
        ensure!(digest_of(&path)? == before && !place.path("copy.img").exists());
        fs::remove_file(path)?;
        Ok(())
    };
    make("create -q -f qcow2 -b \"$2\" -F raw \"$1\"")?;
    refused(ErrorKind::Unsupported, "has a backing file")?;
    make("create -q -f qcow2 -o data_file=\"$1.data\" \"$1\" 48M; ls \"$2\" > /dev/null")?;
    refused(ErrorKind::Unsupported, "keeps its data in another file")?;
    make(
        "create -q --object secret,id=s,data=abc -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 \"$1\" 8M",
    )?;
    refused(ErrorKind::Unsupported, "is encrypted")?;
    make("create -q -f qcow2 -o compression_type=zstd \"$1\" 48M")?;
    refused(ErrorKind::Unsupported, "the feature zstd")?;
    make("create -q -f qcow2 -o extended_l2=on,cluster_size=64k \"$1\" 48M")?;
    refused(ErrorKind::Unsupported, "the feature extended_l2")?;
    make("create -q -f qcow2 -o cluster_size=2M \"$1\" 20T")?;
    refused(ErrorKind::Unsupported, "the most is")?;
    fs::copy(place.path("base.img"), place.path("x.qcow2"))?;
    refused(ErrorKind::NotAnImage, "does not begin like one")
}

#[test]
fn root_a_raw_disk_that_begins_like_qcow2_is_not_taken_for_it() -> anyhow::Result<()> {
    let place = scene()?;
    // As the machine itself could write it to its disk.
    let image = place.path("base.img");
    let file = File::options().write(true).open(&image)?;
    file.write_all_at(b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\x70\0\0\0\x0b", 0)?;
    file.write_all_at(b"/etc/shadow", 0x70)?;
    let before = digest_of(&image)?;
    let error = vireo_image::read_tree(&image, &Ignore::default()).err().context("it was read")?;
    ensure!(error.kind() == ErrorKind::NotAnImage);
    ensure!(error.to_string().contains("rename it to end in .qcow2"), "{error}");
    ensure!(digest_of(&image)? == before);
    Ok(())
}

#[test]
fn root_snapshots_and_bitmaps_inside_are_not_lost_by_a_patch() -> anyhow::Result<()> {
    let place = scene()?;
    convert(&place, "base.img", "backup.qcow2", "")?;
    qemu_img("bitmap --add \"$1\" daily", &[&place.arg("backup.qcow2")])?;
    same(&mounted(&place.path("base.img"))?, &read(&place.path("backup.qcow2"))?)?;
    let error = clone_image(&place.path("backup.qcow2"), &place.path("out.qcow2"));
    let error = error.err().context("it was copied without its bitmap")?;
    ensure!(error.kind() == ErrorKind::Unsupported, "{error}");
    ensure!(error.to_string().contains("bitmap --remove"), "{error}");
    qemu_img("bitmap --remove \"$1\" daily", &[&place.arg("backup.qcow2")])?;
    clone_image(&place.path("backup.qcow2"), &place.path("out.qcow2"))?;
    fs::remove_file(place.path("out.qcow2"))?;

    convert(&place, "base.img", "base.qcow2", "")?;
    qemu_img("snapshot -c one \"$1\"", &[&place.arg("base.qcow2")])?;
    same(&mounted(&place.path("base.img"))?, &read(&place.path("base.qcow2"))?)?;
    let error = clone_image(&place.path("base.qcow2"), &place.path("out.qcow2"));
    let error = error.err().context("it was copied without")?;
    ensure!(
        error.kind() == ErrorKind::Unsupported && error.to_string().contains("snapshot -d"),
        "{error}"
    );
    Ok(())
}
