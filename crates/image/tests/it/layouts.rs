//! Images of several file systems: one tree, as the running machine has it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{
    MIB, Part, Place, digest_of, divide, edit, ext, mounted, patched, put, read, same, sh, tree_of,
};
use anyhow::{Context as _, ensure};
use vireo_image::{Access, DiskImage, ErrorKind, RootPartition, unmounted};
use vireo_testkit::oracle;

/// `/boot`, the root and `/var` in partitions 2, 3 and 4, by GPT or MBR.
const ROOT: Part = (33, 64, "/");
pub(crate) const PARTS: &[Part] = &[ROOT, (9, 24, "/boot"), (97, 24, "/var")];
const LEN: u64 = 124;

const CONTENT: &str = "mkdir -p etc usr/bin boot/grub boot/efi var/lib/app proc; chmod 700 boot/efi
  for n in $(seq 5); do echo tool $n > usr/bin/t$n; echo kernel $n > boot/k$n; echo state $n > var/lib/app/s$n; done
  ln boot/k1 boot/k1-too; ln -s k1 boot/latest; ln -s ../boot/k1 etc/kernel; ln var/lib/app/s1 var/lib/s1-too
  setfattr -n user.note -v yes boot/k2 2>/dev/null || true; chmod 4755 usr/bin/t2";
pub(crate) const CHANGE: &str = "echo next > usr/bin/t1; echo next kernel > boot/k2; echo n > boot/new; rm boot/k3
  mkdir -p var/lib/app/more; echo next > var/lib/app/more/x; rm var/lib/app/s2; ln boot/k4 boot/k4-too
  ln -sfn k4 boot/latest; chmod 700 var/lib/app";

/// An EFI system partition with nothing on it, with the serial number ABCD-1234.
fn put_fat(place: &Place, disk: &Path, offset: u64) -> anyhow::Result<()> {
    let file = place.path("esp.img");
    sh("mkfs.vfat -C -F 12 -i ABCD1234 \"$1\" 8192", &[&place.arg("esp.img")])?;
    put(&file, disk, offset)?;
    Ok(std::fs::remove_file(file)?)
}

/// A disk with four partitions; `fstab` is the root's list of them.
pub(crate) fn disk(place: &Place, name: &str, label: &str, fstab: &str) -> anyhow::Result<()> {
    let types = match label {
        "gpt" => ["uefi", "linux", "linux-root-x86-64", "linux"],
        _ => ["ef", "83", "83", "83"],
    };
    let sizes = [(1, 8), (9, 24), (33, 64), (97, 24)];
    let mut script = format!("label: {label}\\nlabel-id: 0x11223344\\n");
    if label == "gpt" {
        script = format!("label: {label}\\n");
    }
    for ((start, size), kind) in sizes.iter().zip(types) {
        let name = if label == "gpt" { format!(", name=part{start}") } else { String::new() };
        script.push_str(&format!("start={start}MiB, size={size}MiB, type={kind}{name}\\n"));
    }
    let disk = place.path(name);
    divide(&disk, LEN, &script)?;
    put_fat(place, &disk, 1)?;
    if !place.path("tree").exists() {
        place.dir("tree", CONTENT)?;
    }
    std::fs::write(place.path("tree/etc/fstab"), fstab)?;
    sh("touch -d @1700000000 \"$1/etc/fstab\" \"$1/etc\"", &[&place.arg("tree")])?;
    // Each file system has its part of the tree; the root has bare mount points.
    let split = "rm -rf \"$2\"; cp -a \"$1\" \"$2\"; cd \"$2\"; mv boot ../p.boot; mv var ../p.var; \
        mkdir boot var; touch -d @1700000000 boot var .";
    sh(&format!("rm -rf \"${{2%root}}\"*; {split}"), &[&place.arg("tree"), &place.arg("p.root")])?;
    for (part, (offset, len, options)) in [
        ("p.boot", (9, 24, "-t ext4 -L boot -b 1024")),
        ("p.root", (33, 64, "-t ext4 -U 11111111-2222-3333-4444-555555555555")),
        ("p.var", (97, 24, "-t ext2 -L state")),
    ] {
        let file = place.path("fs.img");
        ext(&file, len, options, &place.path(part))?;
        put(&file, &disk, offset)?;
        std::fs::remove_file(file)?;
    }
    Ok(())
}

pub(crate) const FSTAB: &str = "# a comment\n\
    UUID=11111111-2222-3333-4444-555555555555 / ext4 errors=remount-ro 0 1\n\
    LABEL=boot /boot ext4 defaults 0 2\n\
    UUID=ABCD-1234 /boot/efi vfat umask=0077 0 1\n\
    /dev/vda4 /var ext2 defaults 0 2\n\
    UUID=99999999-0000-0000-0000-000000000000 /srv ext4 nofail 0 2\n\
    tmpfs /tmp tmpfs nosuid 0 0\nhost:/x /net nfs defaults 0 0\n/swapfile none swap sw 0 0\n";

#[test]
fn root_a_disk_of_four_partitions_is_one_tree_and_is_patched_as_one() -> anyhow::Result<()> {
    let place = Place::new()?;
    for label in ["gpt", "dos"] {
        let name = |what: &str| format!("{label}-{what}.img");
        disk(&place, &name("base"), label, FSTAB)?;
        let base = place.path(&name("base"));
        let whole = tree_of(&place.path("tree"))?;
        same(&whole, &mounted(&base)?).context("through mounts")?;
        same(&whole, &read(&base)?).context("by our own reader")?;

        let target = place.copy(&name("base"), &name("target"))?;
        edit(&target, PARTS, CHANGE)?;
        same(&mounted(&target)?, &read(&target)?)?;
        let out = place.path(&name("out"));
        patched(&base, &out, &base, &target)?;
        same(&mounted(&target)?, &mounted(&out)?)?;
        same(&mounted(&target)?, &read(&out)?)?;
        judged(&target, &out)?;
        ensure!(read(&base)?.digest() == whole.digest(), "the base was changed");
    }
    place.nothing_attached()
}

/// Expects that none of Vireo's code tells the trees in two disks apart, and that the second one's file
/// systems are whole: mount(8) and find, rsync, e2fsck.
fn judged(target: &Path, out: &Path) -> anyhow::Result<()> {
    let list = "find . -name lost+found -prune -o -name .vireo -prune -o -not -type d \
        -printf '%p %y %m %n %U %G %s %T@ %l\\n' -o -printf '%p %y %m %U %G\\n' | sort; \
        find . -type f -exec md5sum {} + | sort";
    let (wanted, found) = (edit(target, PARTS, list)?, edit(out, PARTS, list)?);
    ensure!(wanted.contains("./boot/latest l 777") && wanted.contains(" k4\n"), "{wanted}");
    ensure!(wanted == found, "{wanted}\nis not\n{found}");
    // The oracle leaves the journal alone, which is no option of an ext2: the last one.
    for (offset, ..) in &PARTS[..2] {
        let differences = oracle::differences((target, offset * MIB), (out, offset * MIB))?;
        ensure!(differences.is_empty(), "at {offset} MiB: {differences}");
    }
    for (offset, ..) in PARTS {
        oracle::check_file_system(out, offset * MIB)?;
    }
    Ok(())
}

#[test]
fn root_what_belongs_to_no_version_is_left_out_and_named() -> anyhow::Result<()> {
    let place = Place::new()?;
    disk(&place, "disk.img", "gpt", FSTAB)?;
    let image = place.path("disk.img");
    let seen = DiskImage::open(&image, RootPartition::Find)?.mount(Access::ReadOnly)?;
    let shown: Vec<String> =
        seen.left_out().iter().map(|left| format!("{}: {}", left.at, left.why)).collect();
    ensure!(shown.len() == 1, "{shown:?}");
    ensure!(shown[0].starts_with("/srv: UUID=99999999-"), "{shown:?}");
    let places: Vec<String> = seen.volumes().iter().map(|volume| volume.describe()).collect();
    ensure!(
        places
            == [
                "/ (partition 3 (GPT))",
                "/boot (partition 2 (GPT))",
                "/boot/efi (partition 1 (GPT))",
                "/var (partition 4 (GPT))"
            ]
    );
    let left_out = seen.left_out().to_vec();
    seen.finish()?;
    let disk = unmounted::open(&image, RootPartition::Find, unmounted::Unfinished::Refuse)?;
    ensure!(disk.left_out() == left_out);
    place.nothing_attached()
}

/// Expects that neither way reads the image, for this reason, and that it stays as it is.
fn refused(image: &Path, kind: ErrorKind, says: &[&str]) -> anyhow::Result<()> {
    let before = digest_of(image)?;
    let by_mount = DiskImage::open(image, RootPartition::Find)
        .and_then(|disk| disk.mount(Access::ReadOnly))
        .err()
        .context("it was mounted")?;
    let by_us = unmounted::open(image, RootPartition::Find, unmounted::Unfinished::Refuse);
    let by_us = by_us.err().context("it was read")?;
    for error in [by_mount, by_us] {
        let text = error.to_string();
        ensure!(error.kind() == kind, "{text}: {:?}", error.kind());
        for part in says.iter().chain(&["disk.img"]) {
            ensure!(text.contains(part), "{text} does not say {part}");
        }
    }
    ensure!(digest_of(image)? == before, "the image was written");
    Ok(())
}

#[test]
fn root_a_list_of_file_systems_that_leads_astray_is_refused() -> anyhow::Result<()> {
    use ErrorKind::Unsupported;
    let place = Place::new()?;
    let image = place.path("disk.img");
    let again = |fstab: &str| {
        drop(std::fs::remove_file(&image));
        disk(&place, "disk.img", "gpt", fstab)
    };
    again("LABEL=boot /boot ext4\nPARTLABEL=part9 /var ext4\n")?;
    refused(&image, Unsupported, &["/boot", "/var", "the same bytes"])?;
    again("LABEL=boot /gone/deep ext4\n")?;
    refused(&image, Unsupported, &["/gone/deep", "no directory", "make the directory"])?;
    again("LABEL=boot /etc/kernel ext4\n")?;
    refused(&image, Unsupported, &["/etc/kernel", "a symbolic link"])?;
    again("LABEL=boot /etc/kernel/../boot ext4\nLABEL=state / ext4\n")?;
    same(&read(&image)?, &mounted(&image)?)?;
    again(&format!("{}\n", "#".repeat(70_000)))?;
    refused(&image, Unsupported, &["/etc/fstab", "65536 bytes"])?;

    // A link to the host's own list, and a directory that is one.
    for script in ["ln -sfn /etc/fstab etc/fstab", "mv etc etc2; ln -s /etc etc"] {
        again("")?;
        edit(&image, &[ROOT], script)?;
        refused(&image, Unsupported, &["/etc/fstab", "symbolic link", "make it a file"])?;
    }
    place.nothing_attached()
}

#[test]
fn root_the_root_is_found_by_its_type_its_own_list_or_its_name() -> anyhow::Result<()> {
    let place = Place::new()?;
    disk(&place, "disk.img", "gpt", FSTAB)?;
    let image = place.path("disk.img");
    let found = || -> anyhow::Result<u32> {
        Ok(DiskImage::open(&image, RootPartition::Find)?.partition().number)
    };
    ensure!(found()? == 3, "by the type");
    sh(
        "sfdisk -q --no-reread --no-tell-kernel --part-type \"$1\" 3 linux",
        &[&place.arg("disk.img")],
    )?;
    ensure!(found()? == 3, "by its list");
    edit(&image, &[ROOT], "echo LABEL=boot /boot ext4 > etc/fstab")?;
    let error = found().err().context("nothing tells")?.to_string();
    ensure!(error.contains("--root-partition") && error.contains("1 (8 MiB, vfat)"), "{error}");
    sh(
        "sfdisk -q --no-reread --no-tell-kernel --part-label \"$1\" 3 root",
        &[&place.arg("disk.img")],
    )?;
    ensure!(found()? == 3, "by its name");
    let chosen = DiskImage::open(&image, RootPartition::Number(4))?;
    ensure!(chosen.partition().number == 4, "by the option");
    Ok(())
}

#[test]
fn root_damage_in_any_of_the_file_systems_refuses_the_patch() -> anyhow::Result<()> {
    let place = Place::new()?;
    disk(&place, "base.img", "gpt", FSTAB)?;
    let (base, target) = (place.path("base.img"), place.copy("base.img", "target.img")?);
    edit(&target, PARTS, CHANGE)?;
    // How many directories the first group of /var has, which only its checker compares.
    let count = 97 * MIB + 2048 + 0x10;
    for image in [&base, &target] {
        File::options().write(true).open(image)?.write_all_at(&[7, 0], count)?;
    }
    let before = digest_of(&base)?;
    let error = patched(&base, &place.path("out.img"), &base, &target).err().context("patched")?;
    let text = format!("{error:#}");
    ensure!(text.contains("e2fsck finds its partition 4 (GPT) damaged"), "{text}");
    ensure!(digest_of(&base)? == before && !place.path("out.img").exists());
    let left: Vec<_> = std::fs::read_dir(place.path(""))?.collect::<Result<_, _>>()?;
    ensure!(!left.iter().any(|entry| entry.path().to_string_lossy().ends_with(".partial")));
    place.nothing_attached()
}

/// Set for the process that is to be killed: the image that it mounts.
const HOLD: &str = "VIREO_TEST_HOLD";

#[test]
fn root_a_killed_process_leaves_no_mount_and_no_device() -> anyhow::Result<()> {
    if let Some(image) = std::env::var_os(HOLD) {
        let image = DiskImage::open(Path::new(&image), RootPartition::Find)?;
        let _held = image.mount(Access::ReadWrite)?;
        println!("holding");
        std::thread::sleep(std::time::Duration::from_secs(60));
        anyhow::bail!("nobody killed it");
    }
    let place = Place::new()?;
    disk(&place, "disk.img", "gpt", FSTAB)?;
    let name = "layouts::root_a_killed_process_leaves_no_mount_and_no_device";
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", name, "--nocapture"]).env(HOLD, place.path("disk.img"));
    let mut holder = command.stdout(Stdio::piped()).spawn()?;
    let output = holder.stdout.take().context("it has an output")?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    let is_holding = lines.any(|line| line.is_ok_and(|line| line.contains("holding")));
    let attached = sh("losetup -l -n -O BACK-FILE | grep -cF \"$1\"", &[&place.arg("disk.img")])?;
    holder.kill()?;
    holder.wait()?;
    ensure!(is_holding && attached.trim() == "3", "{attached} devices");
    place.nothing_attached()?;
    // It was written by nobody: clean, and the same tree.
    same(&tree_of(&place.path("tree"))?, &read_after_crash(&place)?)
}

/// A killed process's mounts were unmounted by the kernel, as cleanly as by hand.
fn read_after_crash(place: &Place) -> anyhow::Result<vireo_model::Tree> {
    mounted(&place.path("disk.img"))
}
