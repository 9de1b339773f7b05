//! What the host must have, and getting it.

use std::env;
use std::path::Path;
use std::time::Duration;

use crate::error::{ErrorKind, TestkitError};
use crate::lab;
use crate::run::{Run, search_path};

/// Debian packages that tests and the demonstration need, each with a program it brings, by which its
/// presence is known, or with the absolute path of a file (`{arch}` is the processor's name).
pub const PACKAGES: &[(&str, &str)] = &[
    ("acl", "setfacl"),
    ("attr", "setfattr"),
    ("binutils", "strip"),
    ("btrfs-progs", "mkfs.btrfs"),
    // For the initramfs of the disks that boot; the other package of it is not static.
    ("busybox-static", "/var/lib/dpkg/info/busybox-static.list"),
    ("cpio", "cpio"),
    ("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"),
    ("dosfstools", "mkfs.vfat"),
    ("dpkg", "dpkg-deb"),
    ("e2fsprogs", "mke2fs"),
    ("fdisk", "sfdisk"),
    // The fuzzing engine is C++ source.
    ("g++", "g++"),
    ("gcc", "gcc"),
    ("gdisk", "sgdisk"),
    ("grub-common", "grub-mkimage"),
    ("grub-efi-amd64-bin", "/usr/lib/grub/x86_64-efi/linux.mod"),
    ("grub-pc-bin", "/usr/lib/grub/i386-pc/linux.mod"),
    ("iproute2", "ip"),
    ("kmod", "depmod"),
    ("libc6-dev", "/usr/lib/{arch}-linux-gnu/libc.a"),
    ("libcap2-bin", "setcap"),
    // Building the crate loopdev-3 takes it.
    ("libclang1-14", "/usr/lib/llvm-14/lib/libclang.so.1"),
    ("mmdebstrap", "mmdebstrap"),
    ("mtools", "mcopy"),
    ("openssh-client", "ssh-keygen"),
    ("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd"),
    // For the server that stands in for EC2; the release's Python has the file.
    ("python3-venv", "/usr/lib/python3.11/ensurepip/__init__.py"),
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("qemu-utils", "qemu-img"),
    ("rsync", "rsync"),
    ("strace", "strace"),
    ("systemd-boot-efi", "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"),
    ("systemd-container", "systemd-nspawn"),
    ("time", "/usr/bin/time"),
    ("user-mode-linux", "linux.uml"),
    ("util-linux", "nsenter"),
    ("xfsprogs", "mkfs.xfs"),
    ("zstd", "zstd"),
];

/// Time for installing packages, another user of the package manager included.
const INSTALL_DEADLINE: Duration = Duration::from_secs(900);

/// How often packages are installed until none is missing. Installing one can remove another that came from
/// elsewhere (a part of qemu from backports beside the release's), which then has to come back.
const INSTALL_ROUNDS: usize = 3;

/// Those of `packages`, given as [`PACKAGES`] is, that are not there. Cost: a few hundred file look-ups.
#[must_use]
pub fn missing<'a>(packages: &[(&'a str, &str)]) -> Vec<&'a str> {
    let path = search_path();
    let there = |brings: &str| {
        if brings.starts_with('/') {
            return Path::new(&brings.replace("{arch}", env::consts::ARCH)).exists();
        }
        env::split_paths(&path).any(|dir| dir.join(brings).is_file())
    };
    packages.iter().filter(|(_, brings)| !there(brings)).map(|(package, _)| *package).collect()
}

/// Installs those of `packages` that are missing with the distribution's package manager, without
/// recommendations, and has `say` tell which. Does nothing, quickly, if none is.
///
/// # Errors
///
/// This is not root, the package manager failed, or something is missing all the same; the message has the
/// command to be tried by hand.
pub fn install(packages: &[(&str, &str)], say: impl Fn(&str)) -> Result<(), TestkitError> {
    for _ in 0..INSTALL_ROUNDS {
        let missing = missing(packages);
        if missing.is_empty() {
            return Ok(());
        }
        say(&format!("installing {}", missing.join(" ")));
        run_apt(&missing)?;
    }
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!("missing packages: apt-get install {}", missing.join(" "));
    Err(TestkitError::new(ErrorKind::Host, message))
}

fn run_apt(packages: &[&str]) -> Result<(), TestkitError> {
    require_root()?;
    let apt = |args: &[&str]| {
        Run::new("env")
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"])
            .args(["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"])
            .args(args)
            .deadline(INSTALL_DEADLINE)
            .text()
    };
    let install = [&["install", "-y", "--no-install-recommends"], packages].concat();
    // Fresh machines have no package lists, or lists that name what the servers no longer have.
    if apt(&install).is_err() {
        apt(&["update"])?;
        apt(&install)?;
    }
    Ok(())
}

/// Everything that keeps guests from being made here, as advice; empty if nothing does.
#[must_use]
pub fn obstacles() -> Vec<String> {
    let mut found = Vec::new();
    found.extend(require_root().err().map(|error| error.to_string()));
    let missing = missing(PACKAGES);
    if !missing.is_empty() {
        found.push(format!("missing packages: apt-get install {}", missing.join(" ")));
    }
    for (device, purpose) in [("/dev/loop-control", "loop devices"), ("/dev/net/tun", "networks")] {
        if !Path::new(device).exists() {
            found.push(format!("{device} is absent: the kernel lacks {purpose}"));
        }
    }
    found.extend(lab::cgroup_root().err().map(|error| error.to_string()));
    found
}

/// Says whether this process is root.
///
/// # Errors
///
/// It is not; the message says what to do.
pub fn require_root() -> Result<(), TestkitError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(TestkitError::new(
        ErrorKind::Host,
        "this needs root (loop devices, mounts, control groups): run it as root",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_sorted_and_named_once() {
        let sorted = PACKAGES.windows(2).all(|pair| pair[0].0 < pair[1].0);
        assert!(sorted, "sorted by name, no doubles");
    }
}
