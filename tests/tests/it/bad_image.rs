//! Images, keys and places that `vireo` cannot work with, and what it says about them.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use vireo_sys::loopdev::{LoopDevice, Window};
use vireo_testkit::image::{Table, clone_image};
use vireo_testkit::{Run, fixture, programs};
use vireo_tests::{Ext4, Ran, Scene, Snapshot, capture_args, vireo, vireo_repo};

/// Expects that neither reading nor patching `image`, a name in the scene, is possible.
fn refused(scene: &Scene, image: &str, code: i32, says: &[&str]) -> anyhow::Result<()> {
    scene.refuses(&["digest".to_owned(), scene.arg(image)], code, says)?;
    scene.refuses(&scene.apply("update.vireo", image, &[]), code, says)?;
    scene.refuses(&scene.apply("update.vireo", image, &["-o", &scene.arg("out.img")]), code, says)
}

/// Arguments that capture the scene's change.
fn capture(scene: &Scene, key: &str, out: &str) -> Vec<String> {
    capture_args(&scene.arg("base.img"), &scene.arg("target.img"), key, out)
}

/// Divides `disk` as `script` says (sfdisk(8)).
fn divide(disk: &Path, script: &str) -> anyhow::Result<()> {
    Run::new("sfdisk")
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(disk)
        .input(script)
        .text()?;
    Ok(())
}

#[test]
fn root_what_is_no_disk_image_is_refused() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    File::create_new(scene.path("empty.img"))?.set_len(1 << 20)?;
    let convert = ["neither a file system that can be read", "qemu-img convert -O raw"];
    refused(&scene, "empty.img", 5, &[&["empty.img"], &convert[..]].concat())?;

    // The header of a qcow2 file: magic number, version 3.
    let qcow2 = File::create_new(scene.path("disk.qcow2"))?;
    qcow2.write_all_at(b"QFI\xfb\x00\x00\x00\x03", 0)?;
    qcow2.set_len(192 << 10)?;
    refused(&scene, "disk.qcow2", 5, &["disk.qcow2", "damaged header"])?;
    fs::rename(scene.path("disk.qcow2"), scene.path("disk.img"))?;
    refused(&scene, "disk.img", 5, &["disk.img", "rename it to end in .qcow2"])?;

    refused(&scene, "no-such.img", 1, &["cannot open", "no-such.img", "No such file"])
}

#[test]
fn root_a_disk_without_a_known_partition_is_refused() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let disk = scene.path("swap.img");
    File::create_new(&disk)?.set_len(16 << 20)?;
    divide(&disk, "label: gpt\nsize=8MiB, type=swap\n")?;
    refused(&scene, "swap.img", 5, &["swap.img", "root file system", "it has 1 (8 MiB)"])
}

#[test]
fn root_of_several_partitions_one_has_to_be_named() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let disk = scene.path("two.img");
    File::create_new(&disk)?.set_len(68 << 20)?;
    divide(
        &disk,
        "label: gpt\nstart=1MiB, size=32MiB, type=linux\nstart=34MiB, size=32MiB, type=linux\n",
    )?;
    for (image, seek) in [("target.img", "seek=1"), ("base.img", "seek=34")] {
        let run = Run::new("dd").args(["bs=1M", "conv=notrunc,sparse", "status=none", seek]);
        run.arg(format!("if={}", scene.arg(image))).arg(format!("of={}", disk.display())).text()?;
    }
    let says = ["two.img", "cannot tell which", "--root-partition", "1 (32 MiB), 2 (32 MiB)"];
    refused(&scene, "two.img", 5, &says)?;
    let named = |number| scene.apply("update.vireo", "two.img", &["--root-partition", number]);
    scene.refuses(&named("7"), 5, &["two.img", "no partition 7", "it has 1"])?;
    vireo(named("2"))?.ok()?.says(&["is the target now"])?;
    scene.nothing_attached()
}

#[test]
fn root_an_image_of_a_running_machine_is_refused() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    clone_image(&scene.base(), &scene.path("running.img"))?;
    let machine = Ext4::open(&scene.path("running.img"))?;
    fs::write(machine.path().join("state"), "written while running")?;
    machine.sync()?;
    clone_image(&scene.path("running.img"), &scene.path("copy.img"))?;
    drop(machine);
    scene.nothing_attached()?;
    refused(
        &scene,
        "copy.img",
        5,
        &["copy.img", "unfinished journal", "shut it down", "vireo apply --repair"],
    )?;
    // Repaired it has the file that the machine wrote, and so is not the bundle's base.
    let args = scene.apply("update.vireo", "copy.img", &["--repair"]);
    scene.refuses(&args, 5, &["copy.img", "in paths that the bundle does not touch"])?;
    let (copy, key, out) =
        (scene.arg("copy.img"), scene.arg("keys/vireo.key"), scene.arg("x.vireo"));
    for (base, target) in [(&scene.arg("base.img"), &copy), (&copy, &scene.arg("base.img"))] {
        let says = ["copy.img", "unfinished journal", "shut it down", "e2fsck -p"];
        scene.refuses(&capture_args(base, target, &key, &out), 5, &says)?;
    }
    Run::new("e2fsck").args(["-p", &copy]).output()?;
    let digest = vireo(["digest", &copy])?.ok()?.output().stdout.clone();
    vireo(capture_args(&scene.arg("base.img"), &copy, &key, &out))?.ok()?.says(&[digest.trim()])
}

#[test]
fn root_a_damaged_image_is_patched_and_taken_in_once_it_is_repaired() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    // How many directories a group has, which only the checker compares.
    let hurt = |name: &str| -> anyhow::Result<()> {
        clone_image(&scene.base(), &scene.path(name))?;
        for request in ["set_bg 0 used_dirs_count 7", "set_bg 0 checksum calc"] {
            Run::new("debugfs").args(["-w", "-R", request, &scene.arg(name)]).output()?;
        }
        Ok(())
    };
    hurt("hurt.img")?;
    let damaged = ["hurt.img", "e2fsck finds", "Directories count wrong", "(--repair)"];
    scene.refuses(&scene.apply("update.vireo", "hurt.img", &[]), 5, &damaged)?;
    vireo(scene.apply("update.vireo", "hurt.img", &["--repair"]))?.ok()?;
    scene.is_target(&scene.path("hurt.img"))?;

    let (repo, disk) = (scene.arg("repo"), scene.arg("other.img"));
    vireo_repo(["init", &repo])?.ok()?;
    hurt("other.img")?;
    let create = ["image", "create", "web", &disk, "--repo", &repo];
    vireo(create)?.fails(5, &damaged[1..])?;
    let before = fs::read(&disk)?;
    let number = ["--repair", "--root-partition", "1"];
    vireo(create.iter().chain(&number))?.ok()?;
    ensure!(fs::read(&disk)? == before, "the user's file was changed");
    vireo(["image", "verify", "web", "--repo", &repo])?.ok()?;
    Ok(())
}

/// A machine, not started, that has the image `disk` open to write to it.
fn machine_on(disk: &Path) -> anyhow::Result<Child> {
    let drive = format!("file={},format=raw,if=ide", disk.display());
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-S", "-display", "none", "-nodefaults", "-accel", "tcg", "-m", "64"])
        .args(["-monitor", "stdio", "-drive", &drive])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("package qemu-system-x86")?;
    let mut prompt = [0; 4];
    let said = machine.stdout.as_mut().map(|out| out.read_exact(&mut prompt));
    if said.is_some_and(|read| read.is_ok()) {
        return Ok(machine);
    }
    machine.kill()?;
    machine.wait()?;
    anyhow::bail!("qemu ended before it had a monitor")
}

#[test]
fn root_an_image_of_a_machine_of_qemu_is_in_use_even_where_there_are_no_leases()
-> anyhow::Result<()> {
    let scene = Scene::new()?;
    // Of somebody else: who may not take a lease on it is as one whose file system has none.
    chown(scene.base(), Some(64055), Some(108))?;
    let args = scene.apply("update.vireo", "base.img", &[]);
    let copy = scene.apply("update.vireo", "base.img", &["-o", &scene.arg("out.img")]);
    let without_leases = |args: &[String]| {
        let run = Run::new("setpriv").arg("--bounding-set=-lease");
        let run = run.arg(programs::find("vireo")?).args(args);
        Ran::of(run, format!("without leases: vireo {}", args.join(" ")))
    };
    let mut machine = machine_on(&scene.base())?;
    let says = ["base.img", "in use", "stop it and try again"];
    let refused = || -> anyhow::Result<()> {
        for args in [&args, &copy] {
            vireo(args)?.fails(3, &says)?;
            without_leases(args)?.fails(3, &says)?;
        }
        Ok(())
    };
    let outcome = refused();
    machine.kill()?;
    machine.wait()?;
    outcome?;
    without_leases(&copy)?.ok()?;
    scene.is_target(&scene.path("out.img"))
}

#[test]
fn root_a_truncated_image_is_refused() -> anyhow::Result<()> {
    let says = ["cut.img", "cut short", "copy it again"];
    for table in [None, Some(Table::Mbr)] {
        let scene = Scene::with(table)?;
        clone_image(&scene.base(), &scene.path("cut.img"))?;
        File::options().write(true).open(scene.path("cut.img"))?.set_len(20 << 20)?;
        refused(&scene, "cut.img", 5, &says).with_context(|| format!("{table:?}"))?;
    }
    // A GUID partition table has its second copy at the end, which is gone.
    let scene = Scene::with(Some(Table::Gpt))?;
    clone_image(&scene.base(), &scene.path("cut.img"))?;
    File::options().write(true).open(scene.path("cut.img"))?.set_len(20 << 20)?;
    refused(&scene, "cut.img", 5, &["cut.img"])
}

#[test]
fn root_an_image_in_use_is_not_replaced() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let args = scene.apply("update.vireo", "base.img", &[]);
    let copy = scene.apply("update.vireo", "base.img", &["-o", &scene.arg("out.img")]);
    let says = ["base.img", "in use", "stop it and try again"];
    {
        let _open = File::open(scene.base())?;
        let before = Snapshot::of(scene.dir())?;
        vireo(&args)?.fails(3, &says)?;
        before.unchanged()?;
    }
    {
        let file = File::options().read(true).write(true).open(scene.base())?;
        let window = Window { offset: 0, len: 0, read_only: false };
        let _device = LoopDevice::attach(&file, window)?;
        drop(file);
        let before = Snapshot::of(scene.dir())?;
        vireo(&args)?.fails(3, &says)?;
        // Who can write to it may be halfway through: not even a copy is made.
        vireo(&copy)?.fails(3, &says)?;
        before.unchanged()?;
    }
    scene.nothing_attached()?;
    // A reader does not disturb a copy.
    let _open = File::open(scene.base())?;
    vireo(&copy)?.ok()?;
    scene.is_target(&scene.path("out.img"))
}

#[test]
fn root_an_image_patched_in_place_keeps_its_owner_and_its_links() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    chown(scene.base(), Some(64055), Some(108))?;
    fs::set_permissions(scene.base(), fs::Permissions::from_mode(0o660))?;
    symlink("base.img", scene.path("link.img"))?;
    vireo(scene.apply("update.vireo", "link.img", &[]))?.ok()?;
    scene.is_target(&scene.base())?;
    ensure!(scene.path("link.img").is_symlink(), "the link was replaced");
    let stat = fs::metadata(scene.base())?;
    let found = (stat.uid(), stat.gid(), stat.mode() & 0o7777);
    ensure!(found == (64055, 108, 0o660), "{found:?}");
    Ok(())
}

#[test]
fn root_a_full_file_system_in_the_image_is_left_as_it_is() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let fill = "dd if=/dev/zero of=\"$1/filler\" bs=64k status=none || true";
    for image in ["base.img", "target.img"] {
        fixture::edit(&scene.path(image), 0, fill, &[])?;
    }
    // Both are as full, so that the bundle is right for it.
    let filler = "truncate -r \"$2\" \"$1/filler\"; touch -d @0 \"$1/filler\"";
    let smaller = scene.path("filler-len");
    let len = "cp --attributes-only \"$1/filler\" \"$2\"; truncate -r \"$1/filler\" \"$2\"";
    let smaller = smaller.to_str().context("a name that is text")?;
    fixture::edit(&scene.path("target.img"), 0, len, &[smaller])?;
    for image in ["base.img", "target.img"] {
        fixture::edit(&scene.path(image), 0, filler, &[smaller])?;
    }
    scene.capture(&scene.base(), &scene.target(), &scene.path("update.vireo"))?;
    let says = ["base.img", "bytes", "free", "make room and try again", "nothing was changed"];
    scene.refuses(&scene.apply("update.vireo", "base.img", &[]), 1, &says)?;
    scene.refuses(
        &scene.apply("update.vireo", "base.img", &["-o", &scene.arg("out.img")]),
        1,
        &says,
    )
}

#[test]
fn root_a_full_disk_of_the_host_leaves_no_output() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let small = Ext4::new(2 << 20)?;
    let out = small.path().join("out.img").display().to_string();
    let says = ["out.img", "No space left", "make room"];
    vireo(scene.apply("update.vireo", "base.img", &["-o", &out]))?.fails(1, &says)?;
    let out = small.path().join("out.vireo").display().to_string();
    // To the last block, what is reserved for root included: a bundle can be very small.
    // Block by block and at once, so that nothing is left that is only set aside.
    let fill = "dd if=/dev/zero of=filler bs=1k oflag=append,dsync conv=notrunc || true";
    small.script(fill, &[])?;
    vireo(capture(&scene, &scene.arg("keys/vireo.key"), &out))?
        .fails(1, &["out.vireo", "No space left", "make room"])?;
    let left = small.script("ls -A", &[])?;
    ensure!(left == "filler\nlost+found\n", "left behind: {left}");
    scene.base_is_whole()
}

#[test]
fn root_an_output_that_exists_is_kept() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    fs::write(scene.path("mine.img"), "mine")?;
    let args = scene.apply("update.vireo", "base.img", &["-o", &scene.arg("mine.img")]);
    scene.refuses(&args, 1, &["mine.img", "exists already", "choose another name"])?;
    let again = ["key".to_owned(), "generate".to_owned(), "--out".to_owned(), scene.arg("keys")];
    scene.refuses(&again, 1, &["vireo.key", "a key is there already", "--out"])
}

#[test]
fn root_a_key_that_cannot_be_used_is_named() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    fs::write(scene.path("text.key"), "a secret\n")?;
    let with = |key: &str| capture(&scene, &scene.arg(key), &scene.arg("x.vireo"));
    let make = "vireo key generate";
    scene.refuses(&with("no.key"), 1, &["read the key", "no.key", "No such file", make])?;
    scene.refuses(&with("text.key"), 5, &["text.key", make])?;
    // The public half does not sign.
    scene.refuses(&with("keys/vireo.pub"), 5, &["vireo.pub", make])
}

#[test]
fn root_who_is_not_root_reads_and_patches_images_and_gets_no_key() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    fs::set_permissions(scene.dir(), fs::Permissions::from_mode(0o777))?;
    fs::copy(programs::find("vireo")?, scene.path("vireo"))?;
    let nobody = |args: &[String]| {
        let run = Run::new("setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        Ran::of(
            run.arg(scene.path("vireo")).args(args),
            format!("nobody: vireo {}", args.join(" ")),
        )
    };
    let before = Snapshot::of(scene.dir())?;
    // An ext file system is patched without a mount.
    let copy = scene.apply("update.vireo", "base.img", &["-o", &scene.arg("out.img")]);
    nobody(&copy)?.ok()?;
    let tree = |name: &str| vireo(["digest".to_owned(), scene.arg(name)])?.ok();
    ensure!(tree("out.img")?.output().stdout == tree("target.img")?.output().stdout);
    fs::remove_file(scene.path("out.img"))?;
    // Reading an image needs no mount.
    let digest = ["digest".to_owned(), scene.arg("base.img")];
    let (by_nobody, by_root) = (nobody(&digest)?.ok()?, vireo(digest.clone())?.ok()?);
    ensure!(by_nobody.output().stdout == by_root.output().stdout);
    nobody(&capture(&scene, &scene.arg("keys/vireo.key"), &scene.arg("x.vireo")))?
        .fails(1, &["read the key", "vireo.key", "Permission denied"])?;
    before.unchanged()
}
