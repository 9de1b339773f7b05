//! Updates that need more space than the image has.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use vireo_image::{BaseCheck, ErrorKind, ImageError, PatchOptions, PatchStep, Patched, patch_with};
use vireo_model::Grow;

use crate::common::{
    MIB, Place, bundle, digest_of, divide, edit, ext, mounted, open, patch_by, put, read, same, sh,
};

const CONTENT: &str = "mkdir -p etc usr; for n in $(seq 20); do seq 20000 > usr/f$n; done";
/// What the update brings, and how little of it fits: 12 MiB that cannot be made smaller.
const CHANGE: &str = "head -c 12M /dev/urandom > usr/large; echo next > usr/f1";

/// A disk of 20 MiB, and one of 64 MiB with the same tree and the update.
fn scene(label: &str) -> anyhow::Result<(Place, Vec<u8>, vireo_delta::TrustedKeys)> {
    let place = Place::new()?;
    let content = place.dir("content", CONTENT)?;
    for (name, len) in [("small.img", 12), ("wide.img", 48)] {
        ext(&place.path(name), len, "-t ext4 -b 4096 -O ^has_journal", &content)?;
    }
    place.copy("wide.img", "next.img")?;
    edit(&place.path("next.img"), &[(0, 0, "/")], CHANGE)?;
    let (bytes, keys) = bundle(&place.path("wide.img"), &place.path("next.img"))?;
    let base = place.path("base.img");
    match label {
        "whole" => fs::rename(place.path("small.img"), &base)?,
        _ => {
            // As cloud images have it: the root last, with a number below the others.
            let (boot, root) = if label == "gpt" { ("14 : ", "1 : ") } else { ("2 : ", "1 : ") };
            let script = format!(
                "label: {label}\\n{boot}start=1MiB, size=2MiB\\n{root}start=4MiB, size=12MiB\\n"
            );
            divide(&base, 17, &script)?;
            put(&place.path("small.img"), &base, 4)?;
        }
    }
    Ok((place, bytes, keys))
}

fn patch(
    place: &Place,
    bytes: &[u8],
    keys: &vireo_delta::TrustedKeys,
    grow: Grow,
) -> anyhow::Result<Result<Patched, ImageError>> {
    let bundle = open(bytes, keys)?;
    let options = PatchOptions { grow, ..PatchOptions::default() };
    let out = place.path("out.img");
    Ok(patch_with(&place.path("base.img"), &out, &bundle, &options, &mut |_| ()))
}

#[test]
fn root_an_image_grows_by_what_an_update_needs_however_it_is_laid_out() -> anyhow::Result<()> {
    for label in ["whole", "gpt", "dos"] {
        let (place, bytes, keys) = scene(label)?;
        let base = place.path("base.img");
        let before = digest_of(&base)?;
        let parts = |image: &Path| sh("sfdisk -d \"$1\"", &[&image.display().to_string()]);

        let error = patch(&place, &bytes, &keys, Grow::No)?.err().context("it does not fit")?;
        ensure!(error.kind() == ErrorKind::NoSpace, "{error}: {:?}", error.kind());
        ensure!(error.to_string().contains("--grow auto"), "{error}");

        patch(&place, &bytes, &keys, Grow::Auto)?.with_context(|| label.to_owned())?;
        let out = place.path("out.img");
        same(&mounted(&place.path("next.img"))?, &mounted(&out)?)?;
        same(&mounted(&out)?, &read(&out)?)?;
        let (was, is) = (fs::metadata(&base)?.len(), fs::metadata(&out)?.len());
        ensure!(is > was && is < was + 80 * MIB && is % MIB == 0, "{was} to {is}");
        if label == "gpt" {
            // Both copies of the table agree, and every partition kept its number and identity.
            let found = sh("sgdisk -v \"$1\"", &[&place.arg("out.img")])?;
            ensure!(found.contains("No problems found"), "{found}");
            // `NAME1 : ..., uuid=U`: the number and the identity.
            let ids = |image: &Path| -> anyhow::Result<Vec<String>> {
                let (text, name) = (parts(image)?, image.display().to_string());
                let lines = text.lines().filter_map(|line| line.strip_prefix(&name));
                let id = |line: &str| {
                    let number = line.split(" :").next().unwrap_or_default();
                    let uuid = line.split("uuid=").nth(1);
                    uuid.map(|uuid| format!("{number} {uuid}"))
                };
                lines.map(|line| id(line).context(text.clone())).collect()
            };
            let (before, after) = (ids(&base)?, ids(&out)?);
            ensure!(before.len() == 2 && before == after, "{before:?}\n{after:?}");
        }
        ensure!(digest_of(&base)? == before, "the base was changed");

        fs::remove_file(&out)?;
        patch(&place, &bytes, &keys, Grow::To(70 * MIB))??;
        ensure!(fs::metadata(&out)?.len() == 70 * MIB);
        fs::remove_file(&out)?;
        let error =
            patch(&place, &bytes, &keys, Grow::To(was + MIB))?.err().context("too little")?;
        ensure!(error.kind() == ErrorKind::NoSpace, "{error}: {:?}", error.kind());
        ensure!(!out.exists() && digest_of(&base)? == before);
        place.nothing_attached()?;
    }
    Ok(())
}

#[test]
fn root_an_image_grows_for_inodes_too() -> anyhow::Result<()> {
    let place = Place::new()?;
    let content = place.dir("content", "mkdir etc; echo base > etc/x")?;
    // Few inodes, as file systems for large files have: 2000 files would never fit by their length.
    ext(&place.path("base.img"), 24, "-t ext4 -b 4096 -N 64", &content)?;
    ext(&place.path("wide.img"), 48, "-t ext4 -b 4096 -N 4096", &content)?;
    place.copy("wide.img", "next.img")?;
    edit(
        &place.path("next.img"),
        &[(0, 0, "/")],
        "mkdir d; for n in $(seq 2000); do echo $n > d/$n; done",
    )?;
    let (bytes, keys) = bundle(&place.path("wide.img"), &place.path("next.img"))?;
    patch(&place, &bytes, &keys, Grow::Auto)??;
    same(&mounted(&place.path("next.img"))?, &mounted(&place.path("out.img"))?)?;
    place.nothing_attached()
}

#[test]
fn root_an_image_does_not_grow_for_a_file_system_that_is_not_its_root() -> anyhow::Result<()> {
    let place = Place::new()?;
    let root = place.dir(
        "root",
        "mkdir etc boot; printf 'LABEL=boot /boot ext4 defaults 0 2\\n' > etc/fstab",
    )?;
    let boot = place.dir("boot", "echo kernel > vmlinuz")?;
    ext(&place.path("root.ext4"), 24, "-t ext4 -L root", &root)?;
    for (name, len) in [("base.img", 8), ("wide.img", 40)] {
        ext(&place.path("boot.ext4"), len, "-t ext4 -b 4096 -L boot", &boot)?;
        let script = "label: gpt\\nstart=1MiB, size=40MiB\\nstart=41MiB, size=24MiB\\n";
        divide(&place.path(name), 70, script)?;
        put(&place.path("boot.ext4"), &place.path(name), 1)?;
        put(&place.path("root.ext4"), &place.path(name), 41)?;
        fs::remove_file(place.path("boot.ext4"))?;
    }
    place.copy("wide.img", "next.img")?;
    let parts = [(41, 24, "/"), (1, 40, "/boot")];
    edit(&place.path("next.img"), &parts, "head -c 12M /dev/urandom > boot/vmlinuz")?;
    let (bytes, keys) = bundle(&place.path("wide.img"), &place.path("next.img"))?;
    for grow in [Grow::No, Grow::Auto, Grow::To(400 * MIB)] {
        let update = open(&bytes, &keys)?;
        let options = PatchOptions { grow, ..PatchOptions::default() };
        let mut clones = 0;
        let mut count = |step| clones += usize::from(step == PatchStep::Clone);
        let out = place.path("out.img");
        let outcome = patch_with(&place.path("base.img"), &out, &update, &options, &mut count);
        let error = outcome.err().context("it does not fit")?;
        ensure!(error.kind() == ErrorKind::NoSpace, "{error}: {:?}", error.kind());
        ensure!(error.to_string().contains("the file system at /boot is too full"), "{error}");
        ensure!(clones == 1, "{clones} tries with {grow:?}");
    }
    place.nothing_attached()
}

#[test]
fn root_a_root_that_others_stand_behind_is_not_grown() -> anyhow::Result<()> {
    // Behind it: a partition, one of a table that knows logical ones, an extended one, and that empty.
    for (script, says) in [
        ("label: gpt\\nstart=1MiB, size=12MiB\\nstart=14MiB, size=4MiB\\n", "is not the last one"),
        (
            "label: dos\\nstart=1MiB, size=12MiB\\nstart=14MiB, size=4MiB, type=82\\n",
            "is not the last one",
        ),
        (
            "label: dos\\nstart=1MiB, size=12MiB\\nstart=14MiB, size=5MiB, type=5\\nstart=15MiB, size=2MiB\\n",
            "is not the last one",
        ),
        (
            "label: dos\\nstart=1MiB, size=12MiB\\nstart=14MiB, size=5MiB, type=5\\n",
            "has another one behind it",
        ),
    ] {
        let (place, bytes, keys) = scene("whole")?;
        let base = place.path("base.img");
        fs::rename(&base, place.path("small.img"))?;
        divide(&base, 20, script)?;
        put(&place.path("small.img"), &base, 1)?;
        let before = digest_of(&base)?;
        for grow in [Grow::Auto, Grow::To(80 * MIB)] {
            let error = patch(&place, &bytes, &keys, grow)?.err().context("grown")?;
            ensure!(error.kind() == ErrorKind::Unsupported, "{error}: {:?}", error.kind());
            ensure!(error.to_string().contains(says), "{script}: {error}");
            ensure!(error.to_string().contains("by hand"), "{script}: {error}");
        }
        ensure!(!place.path("out.img").exists() && digest_of(&base)? == before);
        place.nothing_attached()?;
    }
    Ok(())
}

#[test]
fn root_an_image_of_any_length_grows_wherever_the_copy_of_its_table_is() -> anyhow::Result<()> {
    // As `qemu-img resize` leaves it: longer, with the copy of the table where the end was. And of a
    // length that nothing is aligned to.
    for len in [40 * MIB, 17 * MIB + 700 * 1024, 17 * MIB + 512] {
        let (place, bytes, keys) = scene("gpt")?;
        let base = place.path("base.img");
        fs::File::options().write(true).open(&base)?.set_len(len)?;
        let before = digest_of(&base)?;
        for grow in [Grow::Auto, Grow::To(90 * MIB + 1)] {
            patch(&place, &bytes, &keys, grow)?.with_context(|| format!("{len} bytes"))?;
            let out = place.path("out.img");
            same(&mounted(&place.path("next.img"))?, &mounted(&out)?)?;
            let found = sh("sgdisk -v \"$1\"", &[&place.arg("out.img")])?;
            ensure!(found.contains("No problems found"), "{found}");
            fs::remove_file(out)?;
        }
        // By so little that it does not help: refused, not cut.
        if len < 20 * MIB {
            let error = patch(&place, &bytes, &keys, Grow::To(len + 1))?.err().context("grown")?;
            ensure!(error.kind() == ErrorKind::NoSpace, "{len}: {error}: {:?}", error.kind());
        }
        ensure!(digest_of(&base)? == before && !place.path("out.img").exists());
        place.nothing_attached()?;
    }
    Ok(())
}

#[test]
fn root_a_base_that_is_repaired_grows_as_well() -> anyhow::Result<()> {
    let (place, bytes, keys) = scene("gpt")?;
    let base = place.path("base.img");
    // As of a machine that was not shut down cleanly.
    sh(
        "debugfs -w -R 'set_super_value state 0' \"$1?offset=$2\" 2>&1",
        &[&place.arg("base.img"), &(4 * MIB).to_string()],
    )?;
    let before = digest_of(&base)?;
    let refused = patch(&place, &bytes, &keys, Grow::Auto)?.err().context("it was patched")?;
    ensure!(refused.kind() == ErrorKind::Unclean, "{refused}");
    let update = open(&bytes, &keys)?;
    let options =
        PatchOptions { grow: Grow::Auto, base: BaseCheck::Repair, ..PatchOptions::default() };
    let (done, steps) = patch_by((&base, &place.path("out.img")), &update, &options);
    done.with_context(|| format!("{steps:?}"))?;
    let checks = steps.iter().filter(|step| **step == PatchStep::CheckBase).count();
    ensure!(checks == 2, "each clone is repaired: {steps:?}");
    same(&mounted(&place.path("next.img"))?, &mounted(&place.path("out.img"))?)?;
    ensure!(digest_of(&base)? == before, "the base was changed");
    place.nothing_attached()
}
