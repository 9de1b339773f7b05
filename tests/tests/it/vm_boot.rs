//! A disk with its own boot loader, brought to a new kernel by a push.

use anyhow::{Context as _, ensure};
use vireo_testkit::bootdisk::BootDisks;
use vireo_testkit::image::clone_image;
use vireo_testkit::{Booted, Cache, Firmware, Lab, Run, boot, fixture};
use vireo_tests::{World, require_host};

/// What a machine with an EFI system partition has mounted.
const EFI_MOUNTS: &[&str] = &["/ ext4", "/boot ext4", "/boot/efi vfat"];

/// Expects that a machine ran this kernel, as GRUB was told to, mounted what its `/etc/fstab` says and served this
/// page.
fn ran(machine: &Booted, kernel: &str, page: &str, mounts: &[&str]) -> anyhow::Result<()> {
    ensure!(machine.kernel == kernel, "the kernel {} ran, not {kernel}", machine.kernel);
    ensure!(machine.page.contains(page), "it served {}, not {page}", machine.page);
    let started = format!("GRUB starts Linux {kernel}");
    ensure!(machine.console.contains(&started), "nothing says {started:?}\n{}", machine.console);
    ensure!(machine.mounts == mounts, "{:?}", machine.mounts);
    println!("{kernel}: {} took {:.1?}", machine.accelerator, machine.took);
    Ok(())
}

/// What the next boot loader says.
const NEXT_LOADER: &str = "The GRUB of the update";

/// Puts another GRUB onto the EFI system partition of the disk `$1`: it says `$3` and goes on as the one before. `$2` is
/// a directory for what is made.
const NEXT_GRUB: &str = "set -euo pipefail
  printf 'serial --unit=0 --speed=115200\nterminal_output serial\necho \"%s\"\n' \"$3\" > \"$2/early.cfg\"
  printf 'search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)/grub\nconfigfile $prefix/grub.cfg\n' \
    0b007000-0000-4000-8000-000000000002 >> \"$2/early.cfg\"
  grub-mkimage -O x86_64-efi -p /grub -c \"$2/early.cfg\" -o \"$2/BOOTX64.EFI\" \
    part_gpt ext2 fat search search_fs_uuid configfile normal linux serial terminal echo test gzio
  mcopy -o -i \"$1@@1M\" \"$2/BOOTX64.EFI\" ::/EFI/BOOT/BOOTX64.EFI";

#[test]
fn vm_a_pushed_kernel_and_loader_are_what_starts_the_exported_disk() -> anyhow::Result<()> {
    require_host()?;
    let BootDisks { base, target } = BootDisks::build(&Cache::open()?)?;
    ensure!(base.kernel != target.kernel, "both have {}", base.kernel);
    let work = tempfile::tempdir()?;
    let next = work.path().join("next.img");
    clone_image(&target.image, &next)?;
    let run = Run::script("loader", NEXT_GRUB).arg(&next).arg(work.path()).arg(NEXT_LOADER);
    run.text()?;
    let world = World::between(&base.image, &next)?;
    let server = world.serve()?;
    let machine = boot(world.lab(), &base.image, Firmware::Efi)?;
    ran(&machine, &base.kernel, "Release 1", EFI_MOUNTS)?;
    ensure!(!machine.console.contains(NEXT_LOADER), "{}", machine.console);

    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?.says(&["web@2"])?;
    let exported = world.arg("exported.img");
    world.ask(&server, &["image", "export", "web", "-o", &exported])?.ok()?;
    let machine = boot(world.lab(), exported.as_ref(), Firmware::Efi)?;
    ran(&machine, &target.kernel, "Release 2", EFI_MOUNTS)?;
    ensure!(machine.console.contains(NEXT_LOADER), "{}", machine.console);
    drop(server);
    world.finish()
}

#[test]
fn vm_a_pushed_kernel_is_what_a_bios_starts_from_a_qcow2_image_with_an_mbr() -> anyhow::Result<()> {
    require_host()?;
    let mounts = &["/ ext4", "/boot ext4"];
    let BootDisks { base, target } = BootDisks::build_bios(&Cache::open()?)?;
    let world = World::between(&base.image, &target.image)?;
    let server = world.serve()?;
    let machine = boot(world.lab(), &base.image, Firmware::Bios)?;
    ran(&machine, &base.kernel, "Release 1", mounts)?;

    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?.says(&["web@2"])?;
    let exported = world.arg("exported.qcow2");
    world.ask(&server, &["image", "export", "web", "-o", &exported])?.ok()?;
    let machine = boot(world.lab(), exported.as_ref(), Firmware::Bios)?;
    ran(&machine, &target.kernel, "Release 2", mounts)?;
    drop(server);
    world.finish()
}

/// Expects that systemd-boot started this kernel, with the entry that the update brought.
fn ran_by_systemd_boot(machine: &Booted, kernel: &str, page: &str) -> anyhow::Result<()> {
    let told = |text: &str| machine.console.contains(text);
    let (loader, entry) = ("report loader systemd-boot", format!("started debian-{kernel}.conf"));
    ensure!(told(loader) && told(&entry), "no {loader:?} {entry:?}\n{}", machine.console);
    ensure!(machine.kernel == kernel, "the kernel {} ran, not {kernel}", machine.kernel);
    ensure!(machine.page.contains(page), "it served {}, not {page}", machine.page);
    ensure!(machine.mounts == ["/ ext4", "/efi vfat"], "{:?}", machine.mounts);
    println!("{kernel}: {} took {:.1?}", machine.accelerator, machine.took);
    Ok(())
}

#[test]
fn vm_a_pushed_kernel_on_the_system_partition_is_what_systemd_boot_starts() -> anyhow::Result<()> {
    require_host()?;
    let BootDisks { base, target } = BootDisks::build_systemd(&Cache::open()?)?;
    let world = World::between(&base.image, &target.image)?;
    let server = world.serve()?;
    ran_by_systemd_boot(
        &boot(world.lab(), &base.image, Firmware::Efi)?,
        &base.kernel,
        "Release 1",
    )?;

    world.ask(&server, &["push", &world.arg("update.vireo"), "web"])?.ok()?.says(&["web@2"])?;
    let exported = world.arg("exported.img");
    world.ask(&server, &["image", "export", "web", "-o", &exported])?.ok()?;
    ran_by_systemd_boot(
        &boot(world.lab(), exported.as_ref(), Firmware::Efi)?,
        &target.kernel,
        "Release 2",
    )?;
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
    let error = boot(&lab, &disk, Firmware::Efi).err().context("it booted")?.to_string();
    for part in ["without a complete report", "GRUB starts Linux", "Kernel panic"] {
        ensure!(error.contains(part), "nothing says {part:?}:\n{error}");
    }
    Ok(lab.finish()?)
}
