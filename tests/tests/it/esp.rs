//! Updates of which a part lies on the EFI system partition: they are carried like others, or without that part on
//! request; what no `/etc/fstab` mounts is no part of the tree, and refused.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::ensure;
use vireo_testkit::{Run, oracle};
use vireo_tests::{Scene, capture_args, vireo};

/// Where the partitions begin, and how long the first one is, in bytes.
const ESP_AT: u64 = 1 << 20;
const ROOT_AT: u64 = 5 << 20;

/// Makes the disk `$1`: an EFI system partition with the files of the directory `$2`, then the file system `$3`, whose
/// `/etc/fstab` mounts it if there is `$4`.
const DISK: &str = "set -euo pipefail
  mkfs.vfat -C -F 12 -i E5900001 \"$1.esp\" 4096 > /dev/null; mcopy -s -i \"$1.esp\" \"$2\"/* ::/
  cp \"$3\" \"$1.root\"
  if [ -n \"${4:-}\" ]; then
    echo 'UUID=E590-0001 /boot/efi vfat umask=0077 0 1' > \"$1.fstab\"
    printf 'mkdir boot\\nmkdir boot/efi\\ncd etc\\nrm fstab\\nwrite %s fstab\\nsif fstab mtime 1700000000\\n' \"$1.fstab\" > \"$1.script\"
    debugfs -w -f \"$1.script\" \"$1.root\" > /dev/null 2>&1; e2fsck -fy \"$1.root\" > /dev/null || [ $? = 1 ]
  fi
  truncate -s 40M \"$1\"; sfdisk -q --no-reread --no-tell-kernel \"$1\" <<< 'label: gpt
start=1MiB, size=4MiB, type=uefi
size=32MiB, type=linux-root-x86-64'
  put() { dd if=\"$2\" of=\"$1\" bs=1M seek=\"$3\" conv=notrunc,sparse status=none; }
  put \"$1\" \"$1.esp\" 1; put \"$1\" \"$1.root\" 5; rm -f \"$1\".*";

fn disk(scene: &Scene, name: &str, esp: &str, root: &str, mounted: &str) -> anyhow::Result<()> {
    let args = [name, esp, root].map(|name| scene.arg(name));
    Run::script("disk", DISK).args(args).arg(mounted).text()?;
    Ok(())
}

fn esp_of(disk: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(ROOT_AT - ESP_AT)?];
    File::open(disk)?.read_exact_at(&mut bytes, ESP_AT)?;
    Ok(bytes)
}

/// Expects that the system partition of `disk` is sound and holds what the directory `files` has, with the seed of
/// the machine whose disk was patched.
fn holds(scene: &Scene, disk: &str, files: &str) -> anyhow::Result<()> {
    let check = "set -euo pipefail; dd if=\"$1\" of=\"$1.esp\" bs=1M skip=1 count=4 status=none; mkdir \"$1.files\"
      fsck.fat -n \"$1.esp\"; mcopy -s -i \"$1.esp\" ::/ \"$1.files/\"
      test \"$(cat \"$1.files/loader/random-seed\")\" = seed
      diff -r -x random-seed \"$1.files\" \"$2\"; rm -r \"$1.esp\" \"$1.files\"";
    Run::script("check", check).args([scene.arg(disk), scene.arg(files)]).text()?;
    Ok(())
}

/// What a disk that systemd-boot starts has there, and what its next kernel's package makes of it.
const FILES: &str = "cd \"$1\"; mkdir -p esp/loader/entries esp/debian/6.1.0-1 next
  echo 'linux /debian/6.1.0-1/linux' > esp/loader/entries/6.1.0-1.conf; echo kernel > esp/debian/6.1.0-1/linux
  echo seed > esp/loader/random-seed; cp -r esp/. next; echo another > next/loader/random-seed; mkdir next/debian/6.1.0-2
  echo 'linux /debian/6.1.0-2/linux' > next/loader/entries/6.1.0-2.conf; echo kernel > next/debian/6.1.0-2/linux
  rm -r next/debian/6.1.0-1 next/loader/entries/6.1.0-1.conf";

/// The command line that captures what `next.disk` has and `base.disk` has not.
fn capture(scene: &Scene, more: &[&str]) -> Vec<String> {
    let key = scene.key().display().to_string();
    let [base, next, out] = ["base.disk", "next.disk", "disk.vireo"].map(|name| scene.arg(name));
    let mut args = capture_args(&base, &next, &key, &out);
    args.extend(more.iter().map(|word| (*word).to_owned()));
    args
}

#[test]
fn root_an_update_of_the_system_partition_travels_or_is_left_out_on_request() -> anyhow::Result<()>
{
    let scene = Scene::new()?;
    Run::script("files", FILES).arg(scene.dir()).text()?;
    disk(&scene, "base.disk", "esp", "base.img", "mounted")?;
    disk(&scene, "next.disk", "next", "target.img", "mounted")?;
    let named = [
        "removed   /boot/efi/debian/6.1.0-1/linux",
        "added     /boot/efi/debian/6.1.0-2/linux",
        "added     /boot/efi/loader/entries/6.1.0-2.conf",
    ];
    for how in [&[][..], &["--unmounted"]] {
        let images = [scene.arg("base.disk"), scene.arg("next.disk")];
        let args = ["diff".to_owned()].into_iter().chain(images);
        let ran = vireo(args.chain(how.iter().map(|word| (*word).to_owned())))?.exits(1)?;
        ran.says(&named)?;
        ensure!(!ran.output().stdout.contains("random-seed"), "{}", ran.output().stdout);
        ensure!(!ran.output().stderr.contains("vfat"), "{}", ran.output().stderr);
    }

    vireo(capture(&scene, &[]))?.ok()?;
    let (out, next) = (scene.path("out.disk"), scene.path("next.disk"));
    vireo(scene.apply("disk.vireo", "base.disk", &["-o", &scene.arg("out.disk")]))?.ok()?;
    let differences = oracle::differences((&out, ROOT_AT), (&next, ROOT_AT))?;
    ensure!(differences.is_empty(), "the kernel finds:\n{differences}");
    holds(&scene, "out.disk", "next")?;
    vireo(["diff", &scene.arg("out.disk"), &scene.arg("next.disk")])?.ok()?;

    // The rest of it is an update like others, and the partition stays as it is.
    std::fs::remove_file(scene.path("disk.vireo"))?;
    vireo(capture(&scene, &["--without-esp"]))?.ok()?;
    vireo(scene.apply("disk.vireo", "base.disk", &["-o", &scene.arg("rest.disk")]))?.ok()?;
    let rest = scene.path("rest.disk");
    let differences = oracle::differences((&rest, ROOT_AT), (&next, ROOT_AT))?;
    ensure!(differences.is_empty(), "the kernel finds:\n{differences}");
    ensure!(esp_of(&rest)? == esp_of(&scene.path("base.disk"))?, "the ESP was changed");
    scene.nothing_attached()
}

#[test]
fn root_a_system_partition_that_nothing_mounts_is_no_part_of_the_tree_and_refused()
-> anyhow::Result<()> {
    let scene = Scene::new()?;
    Run::script("files", FILES).arg(scene.dir()).text()?;
    disk(&scene, "base.disk", "esp", "base.img", "")?;
    disk(&scene, "next.disk", "next", "target.img", "")?;
    let named = ["debian/6.1.0-2/linux (added)", "loader/entries/6.1.0-2.conf (added)"];
    let says = [named[0], named[1], "next.disk", "/etc/fstab", "--without-esp"];
    scene.refuses(&capture(&scene, &[]), 5, &says)?;
    let ran = vireo(["diff", &scene.arg("base.disk"), &scene.arg("next.disk")])?.exits(1)?;
    ran.says(&named)?;
    ensure!(!ran.output().stderr.contains("random-seed"), "{}", ran.output().stderr);

    vireo(capture(&scene, &["--without-esp"]))?.ok()?;
    let out = scene.path("out.disk");
    let apply = scene.apply("disk.vireo", "base.disk", &["-o", &scene.arg("out.disk")]);
    vireo(apply)?.ok()?;
    let (patched, next) = ((out.as_path(), ROOT_AT), (&*scene.path("next.disk"), ROOT_AT));
    let differences = oracle::differences(patched, next)?;
    ensure!(differences.is_empty(), "the kernel finds:\n{differences}");
    ensure!(esp_of(&out)? == esp_of(&scene.path("base.disk"))?, "the ESP was changed");

    // The same content is no difference, however it came there.
    Run::script("copy", "mv \"$1/esp\" \"$1/other\"").arg(scene.dir()).text()?;
    disk(&scene, "same.disk", "other", "target.img", "")?;
    let ran = vireo(["diff", &scene.arg("out.disk"), &scene.arg("same.disk")])?.ok()?;
    ensure!(!ran.output().stderr.contains("vfat"), "{}", ran.output().stderr);
    scene.nothing_attached()
}
