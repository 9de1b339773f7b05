//! A disk with its own boot loader, brought to a new kernel by a push.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use vireo_testkit::bootdisk::BootDisks;
use vireo_testkit::image::clone_image;
use vireo_testkit::{Booted, Cache, Lab, boot, fixture};
use vireo_tests::{World, require_host};

/// Expects that a machine ran this kernel, as GRUB was told to, mounted what its `/etc/fstab` says and served this
/// page.
fn ran(machine: &Booted, kernel: &str, page: &str) -> anyhow::Result<()> {
    ensure!(machine.kernel == kernel, "the kernel {} ran, not {kernel}", machine.kernel);
    ensure!(machine.page.contains(page), "it served {}, not {page}", machine.page);
    let started = format!("GRUB starts Linux {kernel}");
    ensure!(machine.console.contains(&started), "nothing says {started:?}\n{}", machine.console);
    ensure!(machine.mounts == ["/ ext4", "/boot ext4", "/boot/efi vfat"], "{:?}", machine.mounts);
    println!("{kernel}: {} took {:.1?}", machine.accelerator, machine.took);
    Ok(())
}

/// The bytes of the EFI system partition.
fn esp_of(disk: &Path) -> anyhow::Result<Vec<u8>> {
    let (offset, len) = BootDisks::ESP;
    let mut bytes = vec![0; usize::try_from(len)?];
    File::open(disk)?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

#[test]
fn vm_a_pushed_kernel_is_what_the_boot_loader_of_the_exported_disk_starts() -> anyhow::Result<()> {
    require_host()?;
    let BootDisks { base, target } = BootDisks::build(&Cache::open()?)?;
    ensure!(base.kernel != target.kernel, "both have {}", base.kernel);
    let world = World::between(&base.image, &target.image)?;
    let server = world.serve()?;
    ran(&boot(world.lab(), &base.image)?, &base.kernel, "Release 1")?;

    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?.says(&["web@2"])?;
    let exported = world.arg("exported.img");
    world.ask(&server, &["image", "export", "web", "-o", &exported])?.ok()?;
    ran(&boot(world.lab(), exported.as_ref())?, &target.kernel, "Release 2")?;
    // What belongs to no version is what it was.
    ensure!(esp_of(exported.as_ref())? == esp_of(&base.image)?, "the ESP was changed");
    drop(server);
    world.finish()
}

#[test]
fn vm_a_boot_that_fails_is_told_with_the_end_of_the_console() -> anyhow::Result<()> {
    require_host()?;
    let cache = Cache::open()?;
    let BootDisks { base, .. } = BootDisks::build(&cache)?;
    let lab = Lab::new(&cache)?;
    let disk = lab.dir().join("broken.img");
    clone_image(&base.image, &disk)?;
    // The kernel finds nothing to start with in the initramfs, and no root.
    let break_it = "sed -i 's/ quiet / quiet rdinit=\\/none /' \"$1/grub/grub.cfg\"";
    fixture::edit(&disk, BootDisks::BOOT.0, break_it, &[])?;
    let error = boot(&lab, &disk).err().context("it booted")?.to_string();
    for part in ["without a complete report", "GRUB starts Linux", "Kernel panic"] {
        ensure!(error.contains(part), "nothing says {part:?}:\n{error}");
    }
    Ok(lab.finish()?)
}
