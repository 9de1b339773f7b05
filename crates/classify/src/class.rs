//! Classes of files: what kind of thing a path is, as far as activation cares.

use std::fmt;

use serde::{Deserialize, Serialize};
use vireo_model::ImagePath;

use crate::elf::{ElfKind, elf_kind};
use crate::policy::{self, Policy};

/// How many of a file's first bytes [`class_of`] wants: enough for ELF program headers.
pub const HEAD_LEN: usize = 4096;

/// What kind of file a path is. Written in lower-case words joined by `-`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Class {
    /// A service's configuration.
    Config,
    /// A program.
    Binary,
    /// A shared library.
    Library,
    /// A plugin that a running program loads, or an interpreter's module.
    Module,
    /// A program that an interpreter reads.
    Script,
    /// Data that is read anew each time it is needed.
    Content,
    /// A kernel.
    Kernel,
    /// A module of a kernel.
    KernelModule,
    /// An initial RAM file system.
    Initramfs,
    /// The boot loader and its configuration.
    BootLoader,
    /// Firmware for devices.
    Firmware,
    /// A systemd unit, or a link that enables one.
    Unit,
    /// A drop-in that amends a unit.
    UnitDropIn,
    /// What the service manager itself reads: `system.conf`, `fstab`, generators, presets.
    ManagerConfig,
    /// What a tool of the service manager turns into state: tmpfiles, sysusers, sysctl, udev.
    ManagerInput,
    /// A certificate, a key or a store of them.
    Certificate,
    /// Who logs in and how: PAM, sudoers, polkit. Read at each login.
    Auth,
    /// Name service data: passwd, group, hosts, nsswitch. Read at each look-up.
    NameService,
    /// When something runs: cron, at, logrotate. Read by who runs it.
    Schedule,
    /// The package manager's records.
    PackageDatabase,
    /// Languages, messages, character sets.
    Locale,
    /// Time zones.
    TimeZone,
    /// For people to read.
    Documentation,
    /// What a tool derived from other files: `ld.so.cache`, compiled catalogues.
    Cache,
    /// The Vireo agent itself.
    Agent,
    /// Below the root of a container or virtual machine: not this system's.
    Foreign,
}

impl Class {
    /// The class's word, as in plans.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Binary => "binary",
            Self::Library => "library",
            Self::Module => "module",
            Self::Script => "script",
            Self::Content => "content",
            Self::Kernel => "kernel",
            Self::KernelModule => "kernel-module",
            Self::Initramfs => "initramfs",
            Self::BootLoader => "boot-loader",
            Self::Firmware => "firmware",
            Self::Unit => "unit",
            Self::UnitDropIn => "unit-drop-in",
            Self::ManagerConfig => "manager-config",
            Self::ManagerInput => "manager-input",
            Self::Certificate => "certificate",
            Self::Auth => "auth",
            Self::NameService => "name-service",
            Self::Schedule => "schedule",
            Self::PackageDatabase => "package-database",
            Self::Locale => "locale",
            Self::TimeZone => "time-zone",
            Self::Documentation => "documentation",
            Self::Cache => "cache",
            Self::Agent => "agent",
            Self::Foreign => "foreign",
        }
    }

    /// Whether a process that holds such a file runs or has loaded what it says.
    #[must_use]
    pub const fn is_code(self) -> bool {
        matches!(self, Self::Binary | Self::Library | Self::Module | Self::Script)
    }

    /// Whether a running kernel keeps what it started with.
    #[must_use]
    pub const fn is_kernel(self) -> bool {
        matches!(self, Self::Kernel | Self::KernelModule | Self::Initramfs)
    }

    /// Whether units read such a file when they start or reload.
    #[must_use]
    pub const fn is_configuration(self) -> bool {
        matches!(self, Self::Config | Self::Certificate)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The class of the file at `path` with permission bits `mode`, whose first [`HEAD_LEN`] bytes
/// are `head`; without a head (a directory, a link, content not at hand) path and mode decide.
///
/// Places with one meaning come first (`/boot`, unit directories, ...), then the content, then
/// names and places that only suggest a meaning.
#[must_use]
pub fn class_of(path: &ImagePath, mode: u32, head: Option<&[u8]>) -> Class {
    class_under(policy::pack(), path, mode, head)
}

/// The same by the classes of `policy`.
pub(crate) fn class_under(
    policy: &Policy,
    path: &ImagePath,
    mode: u32,
    head: Option<&[u8]>,
) -> Class {
    let place = canonical(path);
    policy
        .class_by_place(&place)
        .or_else(|| head.and_then(|head| class_of_content(&place, mode, head)))
        .or_else(|| policy.class_by_name(&place))
        .unwrap_or(Class::Content)
}

/// `path` as it is called on a system with merged `/usr`: `/lib/x` is `/usr/lib/x`.
pub(crate) fn canonical(path: &ImagePath) -> Vec<u8> {
    let bytes = path.as_bytes();
    let first = path.components().next().unwrap_or_default();
    let merged = matches!(first, b"bin" | b"sbin" | b"lib" | b"lib32" | b"lib64" | b"libx32");
    if merged { [b"/usr", bytes].concat() } else { bytes.to_vec() }
}

fn class_of_content(place: &[u8], mode: u32, head: &[u8]) -> Option<Class> {
    if head.starts_with(b"#!") {
        // Hooks and helpers under /etc are configuration unless they can be run.
        let config = place.starts_with(b"/etc/") && mode & 0o111 == 0;
        return Some(if config { Class::Config } else { Class::Script });
    }
    match elf_kind(head)? {
        ElfKind::Program => Some(Class::Binary),
        ElfKind::Object => Some(Class::Module),
        ElfKind::Shared if names_a_plugin(place) => Some(Class::Module),
        ElfKind::Shared if names_a_library(place) => Some(Class::Library),
        // A static program that is position-independent looks like a library.
        ElfKind::Shared if mode & 0o111 != 0 => Some(Class::Binary),
        ElfKind::Shared => Some(Class::Library),
        ElfKind::Other => None,
    }
}

/// Loaded by name from a directory of plugins, not linked.
fn names_a_plugin(place: &[u8]) -> bool {
    const DIRECTORIES: &[&[u8]] = &[
        b"/security/",
        b"/modules/",
        b"/plugins/",
        b"/engines-",
        b"/ossl-modules/",
        b"/gconv/",
        b"/dist-packages/",
        b"/site-packages/",
        b"/node_modules/",
        b"/gems/",
        b"/lib-dynload/",
        b"/perl/",
        b"/perl5/",
        b"/perl-base/",
        b"/ruby/",
        b"/php/",
        b"/libnss_",
    ];
    DIRECTORIES.iter().any(|part| place.windows(part.len()).any(|at| at == *part))
}

fn names_a_library(place: &[u8]) -> bool {
    let name = place.rsplit(|b| *b == b'/').next().unwrap_or_default();
    name.ends_with(b".so")
        || name.windows(4).any(|at| at == b".so.")
        || name.starts_with(b"ld-linux")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a 64-bit shared object.
    const SHARED: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0";

    #[track_caller]
    fn check(path: &str, head: Option<&[u8]>, expected: Class) {
        let mode = if path.contains("bin/") { 0o755 } else { 0o644 };
        let parsed = ImagePath::parse(path.as_bytes()).expect("a valid path");
        assert_eq!(class_of(&parsed, mode, head), expected, "{path}");
    }

    #[test]
    fn places_with_one_meaning_need_no_content() {
        for (path, class) in [
            ("/boot/vmlinuz-6.1.0-50-cloud-amd64", Class::Kernel),
            ("/vmlinuz", Class::Kernel),
            ("/boot/initrd.img-6.1.0-50-cloud-amd64", Class::Initramfs),
            ("/boot/grub/grub.cfg", Class::BootLoader),
            ("/efi/debian/6.1.0-50/linux", Class::Kernel),
            ("/boot/efi/EFI/Linux/debian-6.1.0-50.efi", Class::Kernel),
            ("/boot/0123abcd/6.1.0-50/initrd.img", Class::Initramfs),
            ("/efi/loader/entries/debian.conf", Class::BootLoader),
            ("/boot/efi/EFI/BOOT/BOOTX64.EFI", Class::BootLoader),
            ("/boot/config-6.1.0-50-cloud-amd64", Class::Documentation),
            ("/lib/modules/6.1.0-50/kernel/fs/xfs/xfs.ko", Class::KernelModule),
            ("/lib/firmware/intel-ucode/06-55-04", Class::Firmware),
            ("/etc/systemd/system/app.service", Class::Unit),
            ("/lib/systemd/system/nginx.service", Class::Unit),
            ("/etc/systemd/system/multi-user.target.wants/x.service", Class::Unit),
            ("/etc/systemd/system/nginx.service.d/x.conf", Class::UnitDropIn),
            ("/etc/systemd/system.conf.d/v.conf", Class::ManagerConfig),
            ("/etc/fstab", Class::ManagerConfig),
            ("/etc/tmpfiles.d/v.conf", Class::ManagerInput),
            ("/usr/lib/sysctl.d/50-default.conf", Class::ManagerInput),
            ("/etc/udev/rules.d/x.rules", Class::ManagerInput),
            ("/etc/ssl/certs/ca-certificates.crt", Class::Certificate),
            ("/etc/nginx/c.pem", Class::Certificate),
            ("/etc/ssh/ssh_host_rsa_key", Class::Certificate),
            ("/etc/cron.d/v", Class::Schedule),
            ("/etc/logrotate.d/x", Class::Schedule),
            ("/var/lib/dpkg/status", Class::PackageDatabase),
            ("/usr/lib/locale/C.utf8/LC_CTYPE", Class::Locale),
            ("/usr/share/zoneinfo/Europe/Berlin", Class::TimeZone),
            ("/usr/share/doc/nginx/changelog.gz", Class::Documentation),
            ("/usr/share/man/man8/nginx.8.gz", Class::Documentation),
            ("/etc/passwd", Class::NameService),
            ("/etc/pam.d/sshd", Class::Auth),
            ("/etc/sudoers.d/v", Class::Auth),
            ("/etc/ld.so.cache", Class::Cache),
            ("/var/lib/docker/overlay2/a/etc/x", Class::Foreign),
            ("/usr/bin/vireo-agent", Class::Agent),
            ("/usr/lib/jvm/java-17-openjdk-amd64/lib/modules", Class::Module),
        ] {
            check(path, None, class);
        }
    }

    #[test]
    fn content_tells_programs_libraries_and_scripts_apart() {
        check("/usr/lib/x86_64-linux-gnu/libssl.so.3", Some(SHARED), Class::Library);
        check("/lib64/ld-linux-x86-64.so.2", Some(SHARED), Class::Library);
        check("/usr/lib/x86_64-linux-gnu/security/pam_unix.so", Some(SHARED), Class::Module);
        check("/usr/lib/nginx/modules/ngx_mail.so", Some(SHARED), Class::Module);
        check("/opt/bin/static-pie", Some(SHARED), Class::Binary);
        check("/usr/sbin/apachectl", Some(b"#!/bin/sh\n"), Class::Script);
        check("/opt/app/loop", Some(b"#!/bin/sh\n"), Class::Script);
        check("/etc/app/template.sh", Some(b"#!/bin/sh\n"), Class::Config);
        check("/srv/app/run", Some(b"#!/usr/bin/python3\n"), Class::Script);
        check("/var/www/html/index.php", Some(b"<?php"), Class::Content);
    }

    #[test]
    fn without_content_names_decide() {
        check("/usr/sbin/nginx", None, Class::Binary);
        check("/usr/lib/x86_64-linux-gnu/libssl.so.3", None, Class::Library);
        check("/usr/lib/python3/dist-packages/yaml/__init__.py", Some(b"import x"), Class::Module);
        check("/opt/app/app.py", Some(b"import x"), Class::Script);
        check("/etc/nginx/nginx.conf", Some(b"user www;"), Class::Config);
        check("/srv/www/index.html", Some(b"<html>"), Class::Content);
        check("/opt/data/x", Some(b""), Class::Content);
    }
}
