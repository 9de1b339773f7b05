//! Bases that are damaged, or of machines that were not shut down cleanly.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use vireo_image::{
    Backend, BaseCheck, DetachedHost, ErrorKind, PatchOptions, PatchStep, RootPartition, check_base,
};
use vireo_testkit::oracle;

use crate::common::{MIB, Place, bundle, digest_of, edit, ext, mounted, open, patch_by, same, sh};
use crate::layouts::{CHANGE, FSTAB, PARTS, disk};

/// Where an ext2 of blocks of 1 KiB says how many directories its first group has, in bytes; only its
/// checker compares that.
const DIRECTORIES: u64 = 2048 + 0x10;

/// Says in the ext2 at `offset` MiB that there are as many directories as there are not.
fn miscount(image: &Path, offset: u64) -> anyhow::Result<()> {
    let file = File::options().write(true).open(image)?;
    Ok(file.write_all_at(&[7, 0], offset * MIB + DIRECTORIES)?)
}

/// Expects that a copy of `base` is patched only once it was repaired, and to the tree of `target`.
fn repaired(
    place: &Place,
    (base, target): (&str, &str),
    backend: Backend<'_>,
    (kind, says): (ErrorKind, &[&str]),
    update: (&[u8], &vireo_delta::TrustedKeys),
) -> anyhow::Result<()> {
    let update = open(update.0, update.1)?;
    let (base, out) = (place.path(base), place.path("out.img"));
    let before = digest_of(&base)?;
    let options = |base| PatchOptions { backend, base, ..PatchOptions::default() };
    let (refused, steps) = patch_by((&base, &out), &update, &options(BaseCheck::Refuse));
    let error = refused.err().context("it was patched as it is")?;
    let text = error.to_string();
    ensure!(error.kind() == kind, "{text}: {:?}", error.kind());
    for part in says.iter().chain(&["--repair"]) {
        ensure!(text.contains(part), "{text} does not say {part}");
    }
    ensure!(!text.contains(".partial"), "{text} names the copy");
    ensure!(!steps.contains(&PatchStep::Mount) && !steps.contains(&PatchStep::Stage), "{steps:?}");
    ensure!(!out.exists());

    let (done, steps) = patch_by((&base, &out), &update, &options(BaseCheck::Repair));
    ensure!(done?.tree == update.target());
    ensure!(steps[..2] == [PatchStep::Clone, PatchStep::CheckBase], "{steps:?}");
    same(&mounted(&place.path(target))?, &mounted(&out)?)?;
    ensure!(digest_of(&base)? == before, "the base was changed");
    std::fs::remove_file(out)?;
    place.nothing_attached()
}

#[test]
fn root_wrong_counts_in_any_file_system_are_found_first_and_repaired_if_asked() -> anyhow::Result<()>
{
    let place = Place::new()?;
    disk(&place, "base.img", "gpt", FSTAB)?;
    let target = place.copy("base.img", "target.img")?;
    edit(&target, PARTS, CHANGE)?;
    let (bytes, keys) = bundle(&place.path("base.img"), &target)?;
    let hurt = place.copy("base.img", "hurt.img")?;
    miscount(&hurt, 97)?;
    let says = ["hurt.img: e2fsck finds its partition 4 (GPT) damaged", "Directories count"];
    repaired(
        &place,
        ("hurt.img", "target.img"),
        Backend::Mount(&DetachedHost),
        (ErrorKind::Damaged, &says),
        (&bytes, &keys),
    )?;

    // Unasked it is found at the end.
    let update = open(&bytes, &keys)?;
    let options = PatchOptions { base: BaseCheck::Skip, ..PatchOptions::default() };
    let (done, steps) = patch_by((&hurt, &place.path("out.img")), &update, &options);
    let error = done.err().context("nobody looked")?;
    ensure!(error.kind() == ErrorKind::Damaged && !error.to_string().contains("--repair"));
    ensure!(steps.last() == Some(&PatchStep::Check), "{steps:?}");
    ensure!(!steps.contains(&PatchStep::CheckBase) && !place.path("out.img").exists());
    Ok(())
}

#[test]
fn root_debugfs_is_not_to_hide_what_the_base_had() -> anyhow::Result<()> {
    let place = Place::new()?;
    let content =
        place.dir("content", "mkdir -p etc usr/bin; echo base > etc/x; seq 999 > usr/f")?;
    ext(&place.path("base.img"), 24, "-t ext2 -b 1024", &content)?;
    place.copy("base.img", "target.img")?;
    edit(&place.path("target.img"), &[(0, 0, "/")], "echo next > etc/x; mkdir etc/d")?;
    let (bytes, keys) = bundle(&place.path("base.img"), &place.path("target.img"))?;
    miscount(&place.path("base.img"), 0)?;
    let says = ["base.img: e2fsck finds its whole image damaged", "Directories count"];
    let refused = (ErrorKind::Damaged, &says[..]);
    repaired(&place, ("base.img", "target.img"), Backend::Rootless, refused, (&bytes, &keys))
}

#[test]
fn root_a_journal_is_played_back_in_the_copy_if_asked() -> anyhow::Result<()> {
    let place = Place::new()?;
    disk(&place, "base.img", "gpt", FSTAB)?;
    let base = place.path("base.img");
    // What a power cut would leave, of three file systems; the image itself goes on to a clean end.
    let torn = "echo late > etc/late; echo late > boot/late; echo late > var/late
        sync -f .; sync -f boot; sync -f var; cp --sparse=always \"$1\" \"${1%base.img}torn.img\"";
    edit(&base, PARTS, torn)?;
    let target = place.copy("base.img", "target.img")?;
    edit(&target, PARTS, CHANGE)?;
    let (bytes, keys) = bundle(&base, &target)?;
    let says = ["torn.img: its partition 3 (GPT) has an unfinished journal"];
    let names = ("torn.img", "target.img");
    let refused = (ErrorKind::Unclean, &says[..]);
    repaired(&place, names, Backend::Mount(&DetachedHost), refused, (&bytes, &keys))?;

    let content = place.dir("content", "mkdir etc; echo base > etc/x")?;
    ext(&place.path("one.img"), 24, "-t ext4", &content)?;
    let torn =
        "echo late > etc/y; sync -f .; cp --sparse=always \"$1\" \"${1%one.img}one-torn.img\"";
    edit(&place.path("one.img"), &[(0, 0, "/")], torn)?;
    let target = place.copy("one.img", "one-target.img")?;
    edit(&target, &[(0, 0, "/")], "echo next > etc/x")?;
    let (bytes, keys) = bundle(&place.path("one.img"), &target)?;
    let says = ["one-torn.img: its whole image has an unfinished journal"];
    let names = ("one-torn.img", "one-target.img");
    repaired(&place, names, Backend::Rootless, (ErrorKind::Unclean, &says), (&bytes, &keys))
}

#[test]
fn root_what_cannot_be_repaired_unasked_is_refused() -> anyhow::Result<()> {
    let place = Place::new()?;
    let content = place.dir("content", "mkdir etc; echo base > etc/x; echo other > etc/y")?;
    ext(&place.path("base.img"), 24, "-t ext2 -b 1024", &content)?;
    place.copy("base.img", "target.img")?;
    edit(&place.path("target.img"), &[(0, 0, "/")], "echo next > etc/x")?;
    let (bytes, keys) = bundle(&place.path("base.img"), &place.path("target.img"))?;
    // Two files that have one block.
    let blocks = "set -- \"$1\" \"$(debugfs -R 'bmap /etc/x 0' \"$1\" 2> /dev/null)\"
        debugfs -w -R \"set_inode_field /etc/y block[0] $2\" \"$1\" 2>&1";
    sh(blocks, &[&place.arg("base.img")])?;
    let (base, out) = (place.path("base.img"), place.path("out.img"));
    let before = digest_of(&base)?;
    let options = PatchOptions { base: BaseCheck::Repair, ..PatchOptions::default() };
    let (done, _) = patch_by((&base, &out), &open(&bytes, &keys)?, &options);
    let error = done.err().context("it was patched")?;
    let text = error.to_string();
    ensure!(error.kind() == ErrorKind::Damaged, "{text}");
    ensure!(text.contains("base.img: e2fsck cannot repair its whole image unasked"), "{text}");
    ensure!(text.contains("`e2fsck -f`") && !out.exists() && digest_of(&base)? == before, "{text}");
    Ok(())
}

#[test]
fn root_an_image_that_comes_from_outside_is_repaired_where_it_lies() -> anyhow::Result<()> {
    let place = Place::new()?;
    disk(&place, "base.img", "dos", FSTAB)?;
    let image = place.path("base.img");
    check_base(&image, RootPartition::Find, BaseCheck::Refuse)?;
    miscount(&image, 97)?;
    let before = digest_of(&image)?;
    let refused = check_base(&image, RootPartition::Find, BaseCheck::Refuse);
    let text = refused.err().context("nobody looked")?.to_string();
    ensure!(text.contains("partition 4 (MBR)") && text.contains("--repair"), "{text}");
    ensure!(digest_of(&image)? == before, "looking wrote");
    check_base(&image, RootPartition::Find, BaseCheck::Repair)?;
    for (offset, ..) in PARTS {
        oracle::check_file_system(&image, offset * MIB)?;
    }
    place.nothing_attached()
}
