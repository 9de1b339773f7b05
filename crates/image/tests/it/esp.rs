//! EFI system partitions as dosfstools and mtools make them, compared.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::common::{MIB, Place, bundle, digest_of, ext, mounted, open, read, same, sh};
use anyhow::{Context as _, ensure};
use vireo_image::{Backend, ErrorKind, PatchOptions, esp_changes, patch_with};
use vireo_model::Grow;

/// Short and long names, not all of them ASCII, empty files, directories of more than one cluster and in each other.
const FILES: &str = "mkdir -p EFI/BOOT EFI/Linux loader/entries many a/b/c/d; cd EFI
  head -c 70000 /dev/zero > BOOT/BOOTX64.EFI; seq 40000 > 'Linux/A rather long name - größe.efi'; cd ..
  for n in $(seq 300); do echo $n > many/file-number-$n.conf; done
  : > empty; echo deep > a/b/c/d/lower.txt; echo UPPER > UPPER.TXT; echo 'timeout 0' > loader/loader.conf";

/// Makes the file system `$1` of `$2` KiB with the options `$3` and the files of the directory `$4`, which are put
/// in in pieces here and there, and with `$5` in the reverse order.
const MAKE: &str = "export LC_ALL=C.UTF-8; mkfs.vfat -C $3 \"$1\" \"$2\" > /dev/null; cd \"$4\"
  seq 2000 > ../hole; mcopy -i \"$1\" ../hole ::/hole; mcopy -i \"$1\" ../hole ::/keeps; mdel -i \"$1\" ::/hole
  ls | sort $5 | while read -r name; do mcopy -s -i \"$1\" \"$name\" ::/; done; mdel -i \"$1\" ::/keeps";

/// Changes the file system `$1`: one file of each kind of change, and what machines write themselves.
const CHANGE: &str = "cd \"$2\"; echo next > next; echo seed > seed; export LC_ALL=C.UTF-8
  mcopy -i \"$1\" next ::/loader/entries/next.conf; mcopy -o -i \"$1\" next ::/EFI/BOOT/BOOTX64.EFI
  mdel -i \"$1\" ::/empty; mmd -i \"$1\" ::/made; mcopy -i \"$1\" seed ::/loader/random-seed; mcopy -i \"$1\" seed ::/NvVars";

fn shown(base: &Path, target: &Path) -> anyhow::Result<Vec<String>> {
    Ok(esp_changes(base, target, &[])?.iter().map(ToString::to_string).collect())
}

#[test]
fn root_system_partitions_differ_in_what_they_hold_not_in_how() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.dir("files", FILES)?;
    let files = place.arg("files");
    for (name, len, options, order) in [
        ("12.img", "2000", "-F 12 -s 1", ""),
        ("16.img", "16384", "-F 16", "-r"),
        ("32.img", "65536", "-F 32 -s 1", ""),
        ("large.img", "65536", "-F 16 -s 4 -S 2048", "-r"),
    ] {
        sh(MAKE, &[&place.arg(name), len, options, &files, order])?;
    }
    let first = place.path("12.img");
    for name in ["16.img", "32.img", "large.img"] {
        let found = shown(&first, &place.path(name))?;
        ensure!(found.is_empty(), "{name}: {found:?}");
        sh(CHANGE, &[&place.arg(name), &place.arg("")])?;
        let found = shown(&first, &place.path(name))?;
        let expected = [
            "EFI/BOOT/BOOTX64.EFI (modified)",
            "empty (removed)",
            "loader/entries/next.conf (added)",
            "made (added)",
        ];
        ensure!(found == expected, "{name}: {found:?}");
    }
    Ok(())
}

#[test]
fn root_a_damaged_system_partition_is_named_with_the_remedy() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.dir("files", "echo 1 > file")?;
    sh(MAKE, &[&place.arg("esp.img"), "16384", "-F 16", &place.arg("files"), ""])?;
    // The first sector says that it is longer than the file.
    sh(
        "printf '\\377\\377' | dd of=\"$1\" bs=1 seek=19 conv=notrunc status=none",
        &[&place.arg("esp.img")],
    )?;
    let image = place.path("esp.img");
    let Err(error) = esp_changes(&image, &image, &[]) else { anyhow::bail!("it was read") };
    ensure!(error.kind() == ErrorKind::Damaged, "{error}");
    for part in ["esp.img", "longer than its partition", "fsck.vfat"] {
        ensure!(error.to_string().contains(part), "{error}");
    }
    Ok(())
}

/// Makes the disk `$1`: an EFI system partition of `$2` MiB, made with the options `$3`, with the files of the directory
/// `$4`, then a root of 24 MiB with those of `$5`.
const DISK: &str = "export LC_ALL=C.UTF-8; mkfs.vfat -C $3 -i E5900001 \"$1.esp\" $(($2 * 1024)) > /dev/null
  (cd \"$4\"; for name in *; do mcopy -s -i \"$1.esp\" \"$name\" ::/; done)
  mkdir -p \"$5/boot/efi\" \"$5/etc\"; echo 'UUID=E590-0001 /boot/efi vfat umask=0077 0 1' > \"$5/etc/fstab\"
  truncate -s 24M \"$1.root\"; mke2fs -q -F -t ext4 -U 11111111-2222-3333-4444-555555555555 -d \"$5\" \"$1.root\"
  truncate -s $(($2 + 26))M \"$1\"; sfdisk -q --no-reread --no-tell-kernel \"$1\" <<< \"label: gpt
start=1MiB, size=${2}MiB, type=uefi
size=24MiB, type=linux-root-x86-64\"
  dd if=\"$1.esp\" of=\"$1\" bs=1M seek=1 conv=notrunc,sparse status=none
  dd if=\"$1.root\" of=\"$1\" bs=1M seek=$((1 + $2)) conv=notrunc,sparse status=none; rm \"$1.esp\" \"$1.root\"";

/// What `fsck.fat` says of the EFI system partition of `$1`, of `$2` MiB, and its files in the new directory `$3`.
const OPEN: &str = "export LC_ALL=C.UTF-8; mkdir \"$3\"; dd if=\"$1\" of=\"$3.esp\" bs=1M skip=1 count=$2 status=none
  fsck.fat -n \"$3.esp\" > \"$3.fsck\" || { cat \"$3.fsck\" >&2; exit 1; }
  mcopy -s -i \"$3.esp\" ::/ \"$3/\"; rm \"$3.esp\"";

/// The next state of [`FILES`]: every kind of change, with names that take each other's places.
const NEXT: &str = "rm empty many/file-number-7.conf; rm -r a; mkdir -p a; seq 90000 > 'EFI/Linux/A second rather long name.efi'
  head -c 200000 /dev/urandom > EFI/BOOT/BOOTX64.EFI; : > EFI/BOOT/GRUBX64.EFI; mv UPPER.TXT Upper.txt
  rm -r loader; echo file > loader; rm many/file-number-1.conf; mkdir many/file-number-1.conf; echo x > many/file-number-1.conf/x
  mkdir -p deep/er/est; for n in $(seq 200); do echo $n > deep/er/est/long-file-name-$n; done; rm -f machine";

fn esp_disk(place: &Place, name: &str, mib: u64, options: &str, dir: &str) -> anyhow::Result<()> {
    let root = place.arg(&format!("{name}.tree"));
    sh("mkdir \"$1\"; echo \"$2\" > \"$1/state\"", &[&root, dir])?;
    sh(DISK, &[&place.arg(name), &mib.to_string(), options, &place.arg(dir), &root]).map(drop)
}

fn by<'a>(backend: Backend<'a>) -> PatchOptions<'a> {
    PatchOptions { backend, ..PatchOptions::default() }
}

#[test]
fn root_what_a_system_partition_holds_travels_with_the_tree() -> anyhow::Result<()> {
    let place = Place::new()?;
    // No name outside of ASCII: those are read, and never written.
    let files = FILES.replace("größe", "size");
    place.dir("files", &files)?;
    place.dir("next", &format!("{files}; cd \"$1\"; {NEXT}"))?;
    for (name, mib, options) in
        [("12", 4, "-F 12 -s 2"), ("16", 16, "-F 16"), ("32", 40, "-F 32 -s 1")]
    {
        let disk = |what: &str| format!("{what}-{name}.img");
        esp_disk(&place, &disk("base"), mib, options, "files")?;
        esp_disk(&place, &disk("next"), mib, options, "next")?;
        let (base, next) = (place.path(&disk("base")), place.path(&disk("next")));
        same(&mounted(&base)?, &read(&base)?)?;
        same(&mounted(&next)?, &read(&next)?)?;
        // The machine's own stays its own.
        let seed = "echo seed > \"$2\"; mcopy -i \"$1@@1M\" \"$2\" ::/NvVars";
        sh(seed, &[&place.arg(&disk("base")), &place.arg("seed")])?;
        let (bytes, keys) = bundle(&base, &next)?;
        let bundle = open(&bytes, &keys)?;
        for (how, backend) in [("mount", Backend::Auto), ("rootless", Backend::Rootless)] {
            let out = disk(how);
            patch_with(&base, &place.path(&out), &bundle, &by(backend), &mut |_| ())?;
            same(&read(&next)?, &read(&place.path(&out))?)?;
            same(&read(&next)?, &mounted(&place.path(&out))?)?;
            let dir = format!("{out}.files");
            sh(OPEN, &[&place.arg(&out), &mib.to_string(), &place.arg(&dir)])?;
            let diff = "rm \"$1/NvVars\"; diff -r \"$1\" \"$2\"";
            sh(diff, &[&place.arg(&dir), &place.arg("next")])?;
            std::fs::remove_file(place.path(&out))?;
        }
    }
    place.nothing_attached()
}

#[test]
fn root_what_does_not_fit_on_a_system_partition_leaves_no_image() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.dir("files", "echo 1 > file")?;
    place.dir("next", "head -c 6000000 /dev/urandom > file")?;
    esp_disk(&place, "base.img", 4, "-F 12", "files")?;
    esp_disk(&place, "next.img", 16, "-F 16", "next")?;
    let (base, next, out) = (place.path("base.img"), place.path("next.img"), place.path("out.img"));
    let (bytes, keys) = bundle(&base, &next)?;
    let bundle = open(&bytes, &keys)?;
    let before = digest_of(&base)?;
    let ways =
        [(Backend::Auto, Grow::No), (Backend::Auto, Grow::Auto), (Backend::Rootless, Grow::No)];
    for (backend, grow) in ways {
        let options = PatchOptions { grow, ..by(backend) };
        let result = patch_with(&base, &out, &bundle, &options, &mut |_| ());
        let Err(error) = result else { anyhow::bail!("it fits") };
        ensure!(error.kind() == ErrorKind::NoSpace, "{error}: {:?}", error.kind());
        ensure!(error.to_string().contains("does not fit into the vfat"), "{error}");
        ensure!(!out.exists() && digest_of(&base)? == before);
    }
    place.nothing_attached()
}

#[test]
fn root_what_fat_cannot_hold_is_refused_by_path() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.dir("files", "echo 1 > file")?;
    esp_disk(&place, "base.img", 4, "-F 12", "files")?;
    let base = place.path("base.img");
    for (what, path, script) in [
        ("link", "/boot/efi/link", "ln -s file link"),
        ("special", "/boot/efi/pipe", "mkfifo pipe"),
        ("name", "/boot/efi/a:b", "echo 1 > a:b"),
        ("letters", "/boot/efi/file", "echo 1 > FILE; chmod 700 FILE; touch -d @0 FILE"),
        ("mode", "/boot/efi/other", "echo 1 > other; chmod 755 other"),
    ] {
        // The same tree in one file system, that can hold it.
        let tree = place.arg(what);
        sh("rm -rf \"$2\"; cp -a \"$1\" \"$2\"; mkdir -p -m 700 \"$2/boot/efi\"; chmod 700 \"$2/boot/efi\"; cd \"$2/boot/efi\"
            echo 1 > file; chmod 700 file; touch -d @0 file", &[&place.arg("base.img.tree"), &tree])?;
        sh("cd \"$1/boot/efi\"; eval \"$2\"; chown -R 0:0 .", &[&tree, script])?;
        let next = place.path(&format!("{what}.img"));
        ext(&next, 24, "-t ext4", &place.path(what))?;
        let (bytes, keys) = bundle(&base, &next)?;
        let bundle = open(&bytes, &keys)?;
        for backend in [Backend::Auto, Backend::Rootless] {
            let out = place.path("out.img");
            let result = patch_with(&base, &out, &bundle, &by(backend), &mut |_| ());
            let Err(error) = result else { anyhow::bail!("{what}: it was put there") };
            ensure!(error.kind() == ErrorKind::Unsupported, "{what}: {error}: {:?}", error.kind());
            ensure!(error.to_string().contains(path), "{what}: {error}");
            ensure!(!out.exists());
        }
    }
    place.nothing_attached()
}

#[test]
fn root_a_damaged_system_partition_of_the_tree_is_named_with_the_remedy() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.dir("files", "seq 5000 > file")?;
    esp_disk(&place, "esp.img", 16, "-F 16", "files")?;
    let image = place.path("esp.img");
    // The table's entries of the file's clusters: each follows itself.
    let script = "mshowfat -i \"$1@@1M\" ::/file | sed 's/.*<\\([0-9]*\\).*/\\1/'";
    let first: u16 = sh(script, &[&place.arg("esp.img")])?.trim().parse()?;
    let reserved = std::fs::read(&image)?[MIB as usize + 14..][..2].to_vec();
    let table = MIB + u64::from(u16::from_le_bytes([reserved[0], reserved[1]])) * 512;
    let file = std::fs::File::options().write(true).open(&image)?;
    file.write_all_at(&1u16.to_le_bytes(), table + u64::from(first) * 2)?;
    let by_us = read(&image).err().context("it was read")?;
    let by_mount = mounted(&image).err().context("it was mounted")?;
    for error in [by_us, by_mount] {
        for part in ["esp.img", "the vfat in its partition 1 (GPT) is damaged", "fsck.vfat"] {
            ensure!(error.to_string().contains(part), "{error}");
        }
    }
    place.nothing_attached()
}
