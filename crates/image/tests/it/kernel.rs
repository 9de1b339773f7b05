//! File systems that only the kernel reads: xfs and btrfs.

use std::path::Path;

use anyhow::{Context as _, ensure};
use vireo_image::{
    Access, DiskImage, ErrorKind, FileSystemKind, RootPartition, Volume, fsck_all, unmounted,
};

use crate::common::{Part, Place, divide, edit, ext, mounted, patched, put, same, sh, tree_of};

const CONTENT: &str = "mkdir -p etc usr/bin var/lib home
  for n in $(seq 9); do echo tool $n > usr/bin/t$n; done; ln usr/bin/t1 usr/bin/t1-too
  ln -s t1 usr/bin/link; setfattr -n user.note -v yes usr/bin/t3; setfacl -m u:7:rw usr/bin/t4
  mkfifo var/pipe; mknod var/null c 1 3; truncate -s 1M var/holes; chmod 4755 usr/bin/t5";
const CHANGE: &str = "echo next > usr/bin/t2; rm usr/bin/t6; mkdir -p srv/www; echo page > srv/www/index
  setfattr -n user.more -v x usr/bin/t3; ln usr/bin/t7 usr/bin/t7-too; echo two > usr/bin/t1; rm var/pipe";

/// Whether this kernel mounts it. Where it does not, the tests are about what is said then.
fn kernel_has(kind: &str) -> anyhow::Result<bool> {
    let list = std::fs::read_to_string("/proc/filesystems")?;
    Ok(list.lines().any(|line| line.split_whitespace().last() == Some(kind)))
}

/// Makes a file system of this kind with the fixture's content; subvolumes for btrfs.
fn make(place: &Place, name: &str, kind: &str, with: &str) -> anyhow::Result<()> {
    let image = place.arg(name);
    match kind {
        // Small ones are meant for tests alone, and made only if it is called one.
        "xfs" => {
            let script = "truncate -s 300M \"$1\"; mkfs.xfs -q \"$1\"";
            sh(script, &[&image]).context("package xfsprogs")?;
        }
        _ => {
            let script = "truncate -s 160M \"$1\"; mkfs.btrfs -q \"$1\"";
            sh(script, &[&image]).context("package btrfs-progs")?;
        }
    }
    if kernel_has(kind)? {
        edit(&place.path(name), &[(0, 0, "/")], with)?;
    }
    Ok(())
}

/// Expects the error of a kernel without the driver.
fn needs_a_driver(image: &Path, kind: &str) -> anyhow::Result<()> {
    let error = mounted(image).err().context("mounted without a driver")?.to_string();
    ensure!(error.contains(&format!("this kernel cannot mount {kind}")), "{error}");
    ensure!(error.contains(&format!("modprobe {kind}")), "{error}");
    Ok(())
}

fn is_patched(place: &Place, kind: &str, part: Part) -> anyhow::Result<()> {
    let base = place.path("base.img");
    let without = unmounted::open(&base, RootPartition::Find, unmounted::Unfinished::Refuse);
    let error = without.err().context("no reader of ours")?;
    ensure!(error.kind() == ErrorKind::Unsupported, "{error}");
    ensure!(
        error.to_string().contains(&format!("is {kind}, which is read by mounting")),
        "{error}"
    );
    if !kernel_has(kind)? {
        return needs_a_driver(&base, kind);
    }
    place.copy("base.img", "target.img")?;
    let (target, out) = (place.path("target.img"), place.path("out.img"));
    edit(&target, &[part], CHANGE)?;
    let before = mounted(&base)?;
    patched(&base, &out, &base, &target)?;
    same(&mounted(&target)?, &mounted(&out)?)?;
    same(&before, &mounted(&base)?)?;
    let seen = "find . -path ./.vireo -prune -o -print0 | sort -z | xargs -0 getfattr -hd 2>/dev/null; \
        find . -type f -exec md5sum {} + | sort";
    ensure!(edit(&target, &[part], seen)? == edit(&out, &[part], seen)?);
    place.nothing_attached()
}

#[test]
fn root_an_xfs_is_read_and_patched_through_the_kernel() -> anyhow::Result<()> {
    let place = Place::new()?;
    make(&place, "base.img", "xfs", CONTENT)?;
    let found = DiskImage::open(&place.path("base.img"), RootPartition::Find)?;
    ensure!(found.kind() == FileSystemKind::Xfs);
    is_patched(&place, "xfs", (0, 0, "/"))
}

#[test]
fn root_a_btrfs_is_read_and_patched_through_the_kernel() -> anyhow::Result<()> {
    let place = Place::new()?;
    make(&place, "base.img", "btrfs", CONTENT)?;
    is_patched(&place, "btrfs", (0, 0, "/"))
}

#[test]
fn root_subvolumes_of_a_btrfs_are_put_where_its_list_says() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.dir(
        "plain",
        &format!("{CONTENT}; echo user > home/file; cp -a home /tmp/none 2>/dev/null || true"),
    )?;
    let fstab = "LABEL=disk / btrfs subvol=@ 0 0\nLABEL=disk /home btrfs subvol=/@home 0 0\n";
    let with = format!(
        "btrfs -q filesystem label . disk; btrfs -q subvolume create @; btrfs -q subvolume create @home
         (cd @; {CONTENT}; printf '{fstab}' > etc/fstab); echo user > @home/file"
    );
    make(&place, "base.img", "btrfs", &with)?;
    let base = place.path("base.img");
    if !kernel_has("btrfs")? {
        return needs_a_driver(&base, "btrfs");
    }
    let disk = DiskImage::open(&base, RootPartition::Find)?.mount(Access::ReadOnly)?;
    let places: Vec<String> = disk.volumes().iter().map(Volume::describe).collect();
    ensure!(places == ["/ (whole image)", "/home (whole image)"], "{places:?}");
    fsck_all(&base, disk.volumes())?;
    disk.finish()?;
    let names = |image: &Path| -> anyhow::Result<Vec<String>> {
        Ok(mounted(image)?.iter().map(|(path, _)| path.to_string()).collect())
    };
    let found = names(&base)?;
    ensure!(found.contains(&"/home/file".to_owned()) && !found.contains(&"/@home".to_owned()));

    let target = place.copy("base.img", "target.img")?;
    edit(
        &target,
        &[(0, 0, "/")],
        "echo next > @home/file; echo new > @home/new; echo next > @/usr/bin/t1",
    )?;
    patched(&base, &place.path("out.img"), &base, &target)?;
    same(&mounted(&target)?, &mounted(&place.path("out.img"))?)?;
    place.nothing_attached()
}

#[test]
fn root_kinds_are_mixed_in_one_tree() -> anyhow::Result<()> {
    let place = Place::new()?;
    let disk = place.path("disk.img");
    divide(
        &disk,
        400,
        "label: gpt\\nstart=1MiB, size=32MiB, type=linux-root-x86-64\\nstart=40MiB, size=310MiB, type=linux\\n",
    )?;
    let fstab = "PARTUUID=%s /var xfs defaults 0 2\\n";
    let id = sh("sfdisk --part-uuid \"$1\" 2", &[&place.arg("disk.img")])?;
    let fill =
        format!("mkdir etc var usr; printf '{fstab}' {} > etc/fstab; echo x > usr/x", id.trim());
    let root = place.dir("root", &fill)?;
    ext(&place.path("root.img"), 32, "-t ext4", &root)?;
    put(&place.path("root.img"), &disk, 1)?;
    make(&place, "var.img", "xfs", "mkdir lib; echo state > lib/state")?;
    put(&place.path("var.img"), &disk, 40)?;

    let without = unmounted::open(&disk, RootPartition::Find, unmounted::Unfinished::Refuse);
    let error = without.err().context("it has an xfs")?.to_string();
    ensure!(
        error.contains("/var (partition 2 (GPT)) is xfs") && error.contains("run it as root"),
        "{error}"
    );
    if !kernel_has("xfs")? {
        return needs_a_driver(&disk, "xfs");
    }
    let found: Vec<String> = mounted(&disk)?.iter().map(|(path, _)| path.to_string()).collect();
    let expected =
        ["/", "/etc", "/etc/fstab", "/usr", "/usr/x", "/var", "/var/lib", "/var/lib/state"];
    ensure!(found == expected, "{found:?}");
    ensure!(tree_of(&root)?.len() == 6);
    place.nothing_attached()
}

#[test]
fn root_an_unfinished_log_is_not_played_back_in_an_image() -> anyhow::Result<()> {
    let place = Place::new()?;
    for kind in ["xfs", "btrfs"] {
        let name = format!("{kind}.img");
        make(&place, &name, kind, CONTENT)?;
        if !kernel_has(kind)? {
            needs_a_driver(&place.path(&name), kind)?;
            continue;
        }
        // A copy of a machine's disk while it runs.
        let dirty = format!("{kind}-dirty.img");
        let copy = format!(
            "echo more > etc/more; echo log > etc/log; sync -f etc; python3 -c \"
import os; f = os.open('etc/log', os.O_RDWR); os.write(f, b'x' * 100); os.fsync(f)\"; \
             cp --sparse=always '{}' '{}'",
            place.arg(&name),
            place.arg(&dirty)
        );
        edit(&place.path(&name), &[(0, 0, "/")], &copy)?;
        let image = place.path(&dirty);
        let before = crate::common::digest_of(&image)?;
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let outcome =
                DiskImage::open(&image, RootPartition::Find).and_then(|disk| disk.mount(access));
            let error = outcome.err().with_context(|| format!("{kind} was mounted"))?;
            ensure!(error.kind() == ErrorKind::Unclean, "{error}: {:?}", error.kind());
            ensure!(error.to_string().contains("unfinished log"), "{error}");
        }
        ensure!(crate::common::digest_of(&image)? == before, "the image was written");
    }
    place.nothing_attached()
}

#[test]
fn root_of_two_file_systems_that_the_kernel_alone_reads_the_root_is_found_by_its_list()
-> anyhow::Result<()> {
    let place = Place::new()?;
    for (kind, root) in [("xfs", ""), ("btrfs", "@/")] {
        if !kernel_has(kind)? {
            continue;
        }
        let len = if kind == "xfs" { 300 } else { 160 };
        let [data, sys, image] = ["data", "sys", "disk"].map(|name| format!("{name}-{kind}"));
        let subvolume = "btrfs -q subvolume create @ > /dev/null; mkdir @/etc";
        let list = if root.is_empty() { "mkdir etc" } else { subvolume };
        make(&place, &data, kind, "echo data > file")?;
        make(&place, &sys, kind, &format!("{list}; echo /dev/vda2 / {kind} > {root}etc/fstab"))?;
        let disk = place.path(&image);
        let script = format!(
            "label: gpt\\nstart=1MiB, size={len}MiB, type=linux\\nsize={len}MiB, type=linux\\n"
        );
        divide(&disk, 2 * len + 3, &script)?;
        put(&place.path(&data), &disk, 1)?;
        put(&place.path(&sys), &disk, 1 + len)?;
        let found = DiskImage::open(&disk, RootPartition::Find)?;
        ensure!(found.partition().number == 2, "{kind}");
        // Without it nothing tells them apart.
        edit(&disk, &[(1 + len, len, "/")], &format!("rm {root}etc/fstab"))?;
        let error = DiskImage::open(&disk, RootPartition::Find).err().context("nothing tells")?;
        ensure!(error.to_string().contains("--root-partition"), "{kind}: {error}");
        place.nothing_attached()?;
    }
    Ok(())
}
