//! Updates of which a part lies on the EFI system partition: they are refused, or captured without it on request.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::ensure;
use vireo_testkit::{Run, oracle};
use vireo_tests::{Scene, capture_args, vireo};

/// Where the partitions begin, and how long the first one is, in bytes.
const ESP_AT: u64 = 1 << 20;
const ROOT_AT: u64 = 5 << 20;

/// Makes the disk `$1`: an EFI system partition with the files of the directory `$2`, then the file system `$3`.
const DISK: &str = "set -euo pipefail
  mkfs.vfat -C -F 12 \"$1.esp\" 4096 > /dev/null; mcopy -s -i \"$1.esp\" \"$2\"/* ::/
  truncate -s 40M \"$1\"; sfdisk -q --no-reread --no-tell-kernel \"$1\" <<< 'label: gpt
start=1MiB, size=4MiB, type=uefi
size=32MiB, type=linux-root-x86-64'
  put() { dd if=\"$2\" of=\"$1\" bs=1M seek=\"$3\" conv=notrunc,sparse status=none; }
  put \"$1\" \"$1.esp\" 1; put \"$1\" \"$3\" 5; rm \"$1.esp\"";

fn disk(scene: &Scene, name: &str, esp: &str, root: &str) -> anyhow::Result<()> {
    let args = [name, esp, root].map(|name| scene.arg(name));
    Run::script("disk", DISK).args(args).text()?;
    Ok(())
}

fn esp_of(disk: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(ROOT_AT - ESP_AT)?];
    File::open(disk)?.read_exact_at(&mut bytes, ESP_AT)?;
    Ok(bytes)
}

/// What a disk that systemd-boot starts has there, and what its next kernel's package makes of it.
const FILES: &str = "cd \"$1\"; mkdir -p esp/loader/entries esp/debian/6.1.0-1 next
  echo 'linux /debian/6.1.0-1/linux' > esp/loader/entries/6.1.0-1.conf; echo kernel > esp/debian/6.1.0-1/linux
  echo seed > esp/loader/random-seed; cp -r esp/. next; echo another > next/loader/random-seed; mkdir next/debian/6.1.0-2
  echo 'linux /debian/6.1.0-2/linux' > next/loader/entries/6.1.0-2.conf; echo kernel > next/debian/6.1.0-2/linux";

#[test]
fn root_an_update_of_the_system_partition_is_refused_or_left_there_on_request() -> anyhow::Result<()>
{
    let scene = Scene::new()?;
    Run::script("files", FILES).arg(scene.dir()).text()?;
    disk(&scene, "base.disk", "esp", "base.img")?;
    disk(&scene, "next.disk", "next", "target.img")?;
    let capture = |more: &[&str]| {
        let key = scene.key().display().to_string();
        let [base, next, out] =
            ["base.disk", "next.disk", "disk.vireo"].map(|name| scene.arg(name));
        let mut args = capture_args(&base, &next, &key, &out);
        args.extend(more.iter().map(|word| (*word).to_owned()));
        args
    };
    let named = ["debian/6.1.0-2/linux (added)", "loader/entries/6.1.0-2.conf (added)"];
    scene.refuses(&capture(&[]), 5, &[named[0], named[1], "next.disk", "--without-esp"])?;
    let ran = vireo(["diff", &scene.arg("base.disk"), &scene.arg("next.disk")])?.exits(1)?;
    ran.says(&named)?;
    ensure!(!ran.output().stderr.contains("random-seed"), "{}", ran.output().stderr);

    // The rest of it is an update like others, and the partition stays as it is.
    vireo(capture(&["--without-esp"]))?.ok()?;
    let out = scene.path("out.disk");
    let apply = scene.apply("disk.vireo", "base.disk", &["-o", &scene.arg("out.disk")]);
    vireo(apply)?.ok()?;
    let (patched, next) = ((out.as_path(), ROOT_AT), (&*scene.path("next.disk"), ROOT_AT));
    let differences = oracle::differences(patched, next)?;
    ensure!(differences.is_empty(), "the kernel finds:\n{differences}");
    ensure!(esp_of(&out)? == esp_of(&scene.path("base.disk"))?, "the ESP was changed");

    // The same content is no difference, however it came there.
    Run::script("copy", "mv \"$1/esp\" \"$1/other\"").arg(scene.dir()).text()?;
    disk(&scene, "same.disk", "other", "target.img")?;
    let ran = vireo(["diff", &scene.arg("out.disk"), &scene.arg("same.disk")])?.ok()?;
    ensure!(!ran.output().stderr.contains("vfat"), "{}", ran.output().stderr);
    scene.nothing_attached()
}
