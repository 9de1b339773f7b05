//! EFI system partitions as dosfstools and mtools make them, compared.

use std::path::Path;

use crate::common::{Place, sh};
use anyhow::ensure;
use vireo_image::{ErrorKind, esp_changes};

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
    Ok(esp_changes(base, target)?.iter().map(ToString::to_string).collect())
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
    let Err(error) = esp_changes(&image, &image) else { anyhow::bail!("it was read") };
    ensure!(error.kind() == ErrorKind::Damaged, "{error}");
    for part in ["esp.img", "longer than its partition", "fsck.vfat"] {
        ensure!(error.to_string().contains(part), "{error}");
    }
    Ok(())
}
