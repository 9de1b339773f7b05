//! Rare and difficult images: handled, or refused with the reason's name, and never touched.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use vireo_image::{Access, DiskImage, ErrorKind, RootPartition, unmounted};
use vireo_sys::loopdev::{LoopDevice, Window};

use crate::common::{Place, bundle, digest_of, edit, ext, mounted, open, patched, read, same, sh};

const CONTENT: &str = "mkdir -p etc usr/bin var/d; for n in $(seq 60); do echo $n > usr/bin/t$n; done
  seq 30000 > usr/large; truncate -s 2M usr/holes; echo end >> usr/holes; ln usr/bin/t1 usr/bin/t1-too
  ln -s t1 usr/bin/link; printf 'tiny' > etc/tiny; setfattr -n user.note -v yes etc/tiny
  long=$(printf 'x%.0s' $(seq 200)); ln -s $long usr/long; mkfifo var/pipe; mknod var/null c 1 3";
const CHANGE: &str =
    "echo next > usr/bin/t1; rm usr/bin/t2; seq 40000 > usr/large; mkdir -p srv; echo n > srv/new
  printf 'other' > etc/tiny; setfattr -n user.more -v x usr/bin/t3; chmod 4755 usr/bin/t4";

/// What becomes of an image.
enum Fate {
    /// Both readers show the same tree, and it is patched.
    Handled,
    /// As before where the kernel was built with this feature; else nothing is written, for its name.
    WithKernel(&'static str),
    /// The same, and our own reader refuses it by that name.
    MountOnly(&'static str),
    /// Refused before anything is mounted, with these words.
    Refused(ErrorKind, &'static str),
    /// Both read it, and neither writes it, for this reason.
    ReadOnly(&'static str),
}
use Fate::{Handled, MountOnly, ReadOnly, Refused, WithKernel};

/// How mke2fs makes it, what tune2fs or debugfs does with it then, and what becomes of it.
const CORPUS: &[(&str, &str, Fate)] = &[
    ("-t ext4 -I 128", "", Handled),
    ("-t ext4 -O ^extent,^64bit,^metadata_csum", "", Handled),
    ("-t ext4 -O ^64bit", "", Handled),
    ("-t ext4 -O bigalloc -C 16384", "", Handled),
    ("-t ext4 -O inline_data", "", Handled),
    ("-t ext4 -O meta_bg,^resize_inode -b 1024", "", Handled),
    ("-t ext2", "", Handled),
    ("-t ext2 -r 0", "", Handled),
    ("-t ext3", "", Handled),
    ("-t ext4 -O quota,project -E quotatype=usrquota:grpquota:prjquota", "", WithKernel("project")),
    ("-t ext4 -O verity", "", WithKernel("verity")),
    ("-t ext4 -O metadata_csum_seed", "", Handled),
    ("-t ext4 -O ^metadata_csum,uninit_bg", "", Handled),
    ("-t ext4 -O ^has_journal", "", Handled),
    ("-t ext4 -O ea_inode,large_dir", "", Handled),
    ("-t ext4 -O orphan_file,sparse_super2", "", Handled),
    ("-t ext4 -O mmp", "", Handled),
    ("-t ext4 -O casefold", "", MountOnly("casefold")),
    ("-t ext4 -O encrypt", "", Refused(ErrorKind::Unsupported, "the feature encrypt")),
    ("-t ext4", "tune2fs -O read-only \"$1\"", ReadOnly("the feature read-only")),
    (
        "-t ext4 -O ^metadata_csum",
        "debugfs -w -R 'ssv feature_ro_compat 0x4003' \"$1\"",
        ReadOnly("the feature shared_blocks"),
    ),
    (
        "-t ext4 -O ^metadata_csum",
        "debugfs -w -R 'feature needs_recovery' \"$1\"",
        Refused(ErrorKind::Unclean, "e2fsck -p"),
    ),
    (
        "-t ext4 -O ^metadata_csum",
        "debugfs -w -R 'ssv state 0' \"$1\"",
        Refused(ErrorKind::Unclean, "e2fsck -p"),
    ),
    (
        "-t ext4 -O ^metadata_csum",
        "debugfs -w -R 'ssv state 3' \"$1\"",
        Refused(ErrorKind::Unclean, "e2fsck -p"),
    ),
    (
        "-t ext4 -O ^metadata_csum",
        "debugfs -w -R 'ssv feature_incompat 0x800002' \"$1\"",
        Refused(ErrorKind::Unsupported, "0x800000"),
    ),
    ("-t ext4", "truncate -s 20M \"$1\"", Refused(ErrorKind::Damaged, "cut short")),
    (
        "-t ext4",
        "dd if=/dev/zero of=\"$1\" bs=1k seek=1 count=1 conv=notrunc",
        Refused(ErrorKind::NotAnImage, "neither a file system"),
    ),
];

/// What `open` and `mount` say, by either way, or none.
fn by_mount(image: &Path, access: Access) -> Option<(ErrorKind, String)> {
    let outcome = DiskImage::open(image, RootPartition::Find).and_then(|disk| disk.mount(access));
    outcome.err().map(|error| (error.kind(), error.to_string()))
}

fn by_us(image: &Path) -> Option<(ErrorKind, String)> {
    let outcome = unmounted::open(image, RootPartition::Find, unmounted::Unfinished::Refuse);
    outcome.err().map(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        (error.kind(), format!("{error}: {cause}"))
    })
}

fn is_patched(place: &Place, own: bool) -> anyhow::Result<()> {
    let (base, out) = (place.path("base.img"), place.path("out.img"));
    let target = place.copy("base.img", "target.img")?;
    edit(&target, &[(0, 0, "/")], CHANGE)?;
    let expected = mounted(&target)?;
    if own {
        same(&mounted(&base)?, &read(&base)?).context("the base")?;
        same(&expected, &read(&target)?).context("the target")?;
    }
    patched(&base, &out, &base, &target)?;
    same(&expected, &mounted(&out)?).context("the result")?;
    if own {
        same(&expected, &read(&out)?).context("the result by our own reader")?;
    }
    sh("e2fsck -fn \"$1\"", &[&place.arg("out.img")]).map(drop)
}

fn meets(place: &Place, fate: &Fate) -> anyhow::Result<()> {
    let base = place.path("base.img");
    let before = digest_of(&base)?;
    match fate {
        Handled => is_patched(place, true)?,
        WithKernel(name) | MountOnly(name) => {
            let own = matches!(fate, WithKernel(_));
            if !own {
                let (kind, text) = by_us(&base).context("our reader reads it: it is WithKernel")?;
                ensure!(kind == ErrorKind::Unsupported && text.contains(name), "{text}");
            }
            place.copy("base.img", "probe.img")?;
            if edit(&place.path("probe.img"), &[(0, 0, "/")], "true").is_ok() {
                is_patched(place, own)?;
            } else {
                let (kind, text) = by_mount(&base, Access::ReadWrite).context("it was mounted")?;
                ensure!(kind == ErrorKind::Unsupported && text.contains(name), "{kind:?}: {text}");
            }
        }
        Refused(kind, says) => {
            for found in [by_mount(&base, Access::ReadOnly), by_us(&base)] {
                let (found, text) = found.context("it was opened")?;
                ensure!(found == *kind && text.contains(says), "{found:?}: {text}");
            }
        }
        ReadOnly(says) => {
            same(&mounted(&base)?, &read(&base)?)?;
            let (kind, text) = by_mount(&base, Access::ReadWrite).context("it was mounted")?;
            ensure!(kind == ErrorKind::Unsupported && text.contains(says), "{kind:?}: {text}");
        }
    }
    ensure!(digest_of(&base)? == before, "the image was written");
    Ok(())
}

#[test]
fn root_rare_ext_file_systems_are_handled_or_refused_by_name() -> anyhow::Result<()> {
    let place = Place::new()?;
    let content = place.dir("content", CONTENT)?;
    for (options, then, fate) in CORPUS {
        let context = || format!("mke2fs {options}; {then}");
        ext(&place.path("base.img"), 32, options, &content).with_context(context)?;
        if !then.is_empty() {
            sh(&format!("{{ {then}; }} > /dev/null 2>&1"), &[&place.arg("base.img")])
                .with_context(context)?;
        }
        meets(&place, fate).with_context(context)?;
        for name in ["base.img", "target.img", "out.img", "probe.img"] {
            drop(fs::remove_file(place.path(name)));
        }
    }
    place.nothing_attached()
}

#[test]
fn root_a_directory_of_a_hundred_thousand_names_is_read_and_patched() -> anyhow::Result<()> {
    let place = Place::new()?;
    let content = place.dir("content", "mkdir d")?;
    ext(&place.path("base.img"), 96, "-t ext4 -N 110000 -O large_dir,dir_nlink", &content)?;
    // mke2fs(8) itself takes minutes for this.
    let fill = "cd d; seq -f 'name-%06.0f' 100000 | xargs touch -d @1700000000";
    edit(&place.path("base.img"), &[(0, 0, "/")], fill)?;
    let base = place.path("base.img");
    let target = place.copy("base.img", "target.img")?;
    edit(&target, &[(0, 0, "/")], "rm d/name-05*; echo x > d/name-000001; touch d/new-{1..200}")?;
    patched(&base, &place.path("out.img"), &base, &target)?;
    let expected = read(&target)?;
    ensure!(expected.len() > 90_000);
    same(&expected, &mounted(&place.path("out.img"))?)?;
    same(&expected, &read(&place.path("out.img"))?)
}

#[test]
fn root_a_full_file_system_and_a_full_host_are_told_apart() -> anyhow::Result<()> {
    let place = Place::new()?;
    let content = place.dir("content", "mkdir etc; echo a > etc/a")?;
    ext(&place.path("base.img"), 16, "-t ext4 -m 0", &content)?;
    place.copy("base.img", "target.img")?;
    edit(&place.path("target.img"), &[(0, 0, "/")], "head -c 3M /dev/urandom > etc/b")?;
    edit(
        &place.path("base.img"),
        &[(0, 0, "/")],
        "mkdir -p var/log; dd if=/dev/zero of=var/log/full bs=1M status=none || true",
    )?;
    let (bytes, keys) =
        bundle(&place.path("target.img"), &place.path("target.img")).or_else(|_| {
            // The bundle of what changed, by images that differ in it alone.
            place.copy("target.img", "plain.img")?;
            edit(&place.path("plain.img"), &[(0, 0, "/")], "rm etc/b")?;
            bundle(&place.path("plain.img"), &place.path("target.img"))
        })?;
    let update = open(&bytes, &keys)?;
    let base = place.path("base.img");
    let before = digest_of(&base)?;
    let error = vireo_image::patch(&base, &place.path("out.img"), &update).err().context("fits")?;
    ensure!(error.kind() == ErrorKind::NoSpace, "{error}: {:?}", error.kind());
    ensure!(error.to_string().contains("the update does not fit"), "{error}");

    // A host with too little space for the clone.
    let host = place.arg("host");
    sh("mkdir \"$1\"; mount -t tmpfs -o size=2M none \"$1\"", &[&host])?;
    let out = place.path("host/out.img");
    let outcome = vireo_image::patch(&base, &out, &update);
    let left = fs::read_dir(place.path("host"))?.count();
    sh("umount \"$1\"", &[&host])?;
    let error = outcome.err().context("fits")?;
    ensure!(
        error.kind() == ErrorKind::NoSpace && left == 0,
        "{error}: {:?}, {left} left",
        error.kind()
    );
    ensure!(error.to_string().contains("cannot clone the image to"), "{error}");
    ensure!(digest_of(&base)? == before);
    place.nothing_attached()
}

#[test]
fn root_an_image_that_is_in_use_is_left_alone() -> anyhow::Result<()> {
    let place = Place::new()?;
    let content = place.dir("content", CONTENT)?;
    ext(&place.path("base.img"), 32, "-t ext4", &content)?;
    place.copy("base.img", "target.img")?;
    edit(&place.path("target.img"), &[(0, 0, "/")], CHANGE)?;
    let (bytes, keys) = bundle(&place.path("base.img"), &place.path("target.img"))?;
    let update = open(&bytes, &keys)?;
    let base = place.path("base.img");
    let before = digest_of(&base)?;
    let refused = |replace: bool| -> anyhow::Result<()> {
        let options = vireo_image::PatchOptions { replace, ..Default::default() };
        let out = if replace { base.clone() } else { place.path("out.img") };
        let outcome = vireo_image::patch_with(&base, &out, &update, &options, &mut |_| ());
        let error = outcome.err().context("it was patched")?;
        ensure!(error.kind() == ErrorKind::Busy, "{error}: {:?}", error.kind());
        ensure!(error.to_string().contains("is in use"), "{error}");
        Ok(())
    };
    // Open for writing by another, as a virtual machine has it.
    let writer = File::options().write(true).open(&base)?;
    refused(false)?;
    refused(true)?;
    drop(writer);
    // Attached elsewhere, to be read alone: it may be copied, but not replaced.
    let file = File::open(&base)?;
    let device = LoopDevice::attach(&file, Window { offset: 0, len: 0, read_only: true })?;
    drop(file);
    refused(true)?;
    drop(device);
    let file = File::options().read(true).write(true).open(&base)?;
    let device = LoopDevice::attach(&file, Window { offset: 0, len: 0, read_only: false })?;
    drop(file);
    refused(false)?;
    drop(device);
    place.nothing_attached()?;
    ensure!(digest_of(&base)? == before);
    vireo_image::patch(&base, &place.path("out.img"), &update)?;
    Ok(())
}

#[test]
fn root_loops_of_links_are_links_and_loops_of_directories_are_damage() -> anyhow::Result<()> {
    let place = Place::new()?;
    let fill = "mkdir -p a/b etc; ln -s ../a a/b/up; ln -s self self; ln -s / root; ln -s /proc/self/fd etc/fd";
    let content = place.dir("content", fill)?;
    ext(&place.path("base.img"), 16, "-t ext4", &content)?;
    let base = place.path("base.img");
    same(&mounted(&base)?, &read(&base)?)?;
    place.copy("base.img", "target.img")?;
    edit(&place.path("target.img"), &[(0, 0, "/")], "ln -sfn ../b a/b/up; echo x > a/b/new")?;
    patched(&base, &place.path("out.img"), &base, &place.path("target.img"))?;

    sh("debugfs -w -R 'ln a a/b/again' \"$1\" 2>/dev/null", &[&place.arg("base.img")])?;
    let before = digest_of(&base)?;
    let error = read(&base).err().context("it was read")?;
    ensure!(format!("{error:#}").contains("a directory that stands elsewhere too"), "{error:#}");
    ensure!(digest_of(&base)? == before);
    Ok(())
}

/// Set for the process without rights: the image that it reads.
const AS_NOBODY: &str = "VIREO_TEST_AS_NOBODY";

#[test]
fn root_without_rights_the_error_says_so_and_reading_works() -> anyhow::Result<()> {
    if let Some(image) = std::env::var_os(AS_NOBODY) {
        let (kind, text) =
            by_mount(Path::new(&image), Access::ReadOnly).context("it was mounted")?;
        ensure!(kind == ErrorKind::NoRoot, "{kind:?}: {text}");
        println!("tree {}", read(Path::new(&image))?.digest());
        return Ok(());
    }
    let place = Place::new()?;
    let content = place.dir("content", CONTENT)?;
    ext(&place.path("base.img"), 32, "-t ext4", &content)?;
    // Where another user can find them.
    fs::copy(std::env::current_exe()?, place.path("tests"))?;
    let run = "chmod 755 \"$1\"; export VIREO_TEST_AS_NOBODY=$1/base.img
        setpriv --reuid=65534 --regid=65534 --clear-groups \"$1/tests\" --exact --nocapture \"$2\"";
    let name = "corpus::root_without_rights_the_error_says_so_and_reading_works";
    let said = sh(run, &[place.arg("").trim_end_matches('/'), name])?;
    let expected = format!("tree {}", mounted(&place.path("base.img"))?.digest());
    ensure!(said.contains(&expected), "{said}");
    place.nothing_attached()
}

#[test]
fn root_a_damaged_superblock_is_refused_wherever_it_is_damaged() -> anyhow::Result<()> {
    let place = Place::new()?;
    let content = place.dir("content", "mkdir etc")?;
    ext(&place.path("base.img"), 16, "-t ext4", &content)?;
    let mut tried = 0;
    // The numbers that everything is computed from; their checksum is wrong then.
    for at in [0x0, 0x4, 0x14, 0x18, 0x20, 0x28, 0x58, 0x60, 0xFE] {
        place.copy("base.img", "bad.img")?;
        let bad = place.path("bad.img");
        let file = File::options().read(true).write(true).open(&bad)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, 1024 + at)?;
        file.write_all_at(&[byte[0] ^ 0x55], 1024 + at)?;
        drop(file);
        let before = digest_of(&bad)?;
        for found in [by_mount(&bad, Access::ReadOnly), by_us(&bad)] {
            let (_, text) = found.with_context(|| format!("byte {at:#x}: it was opened"))?;
            ensure!(text.contains("bad.img"), "{text}");
            tried += 1;
        }
        ensure!(digest_of(&bad)? == before);
        fs::remove_file(bad)?;
    }
    ensure!(tried == 18);
    place.nothing_attached()
}
