//! A package in two versions, as a tree and as Debian packages: what a security update brings.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use vireo_testkit::{Random, Run};

/// Files of each sort.
const FILES: u64 = 12;

/// One file of each sort in so many is the same in both versions.
const SAME: u64 = 6;

/// When the base was made; the target an hour later. Whole seconds: tar(5) has no more.
const BASE_TIME: i64 = 1_700_000_000;
const TARGET_TIME: i64 = BASE_TIME + 3600;

/// Where files are, how their names end, how many bytes they have, and their mode.
const SORTS: [(&str, &str, usize, u32); 4] = [
    ("usr/lib/example", "so.1", 20_000, 0o755),
    ("usr/bin", "tool", 12_000, 0o755),
    ("etc/example", "conf", 300, 0o644),
    ("usr/share/example", "txt", 3_000, 0o644),
];

/// Which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edition {
    /// What is installed.
    Base,
    /// The update: of its 49 files, 40 have other content, one is new and one link leads elsewhere;
    /// two of the base are gone.
    Target,
}

impl Edition {
    fn is_target(self) -> bool {
        self == Self::Target
    }
}

/// Writes the package's files below `root`.
///
/// # Errors
///
/// The system refused.
pub(crate) fn write_package(root: &Path, edition: Edition) -> anyhow::Result<()> {
    for (sort, (dir, ending, len, mode)) in SORTS.into_iter().enumerate() {
        for number in 0..FILES {
            let changed = edition.is_target() && !number.is_multiple_of(SAME);
            let mut content = Random::new(sort as u64 * 100 + number).bytes(len);
            if changed {
                content[len / 2..len / 2 + 100].fill(b'2');
            }
            let path = root.join(dir).join(format!("{number:02}.{ending}"));
            write(&path, &content, mode, if changed { TARGET_TIME } else { BASE_TIME })?;
        }
    }
    let only: &[(&str, i64)] = match edition {
        Edition::Base => {
            &[("usr/share/example/gone/one", BASE_TIME), ("etc/example/gone", BASE_TIME)]
        }
        Edition::Target => &[("usr/share/example/made/one", TARGET_TIME)],
    };
    for (name, time) in only {
        write(&root.join(name), b"only in one of them\n", 0o644, *time)?;
    }
    let link = root.join("usr/lib/example/current");
    symlink(if edition.is_target() { "01.so.1" } else { "00.so.1" }, &link)?;
    set_time(&link, if edition.is_target() { TARGET_TIME } else { BASE_TIME })
}

fn write(path: &Path, content: &[u8], mode: u32, time: i64) -> anyhow::Result<()> {
    let dir = path.parent().context("a path in the package")?;
    fs::create_dir_all(dir)?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    set_time(path, time)
}

fn set_time(path: &Path, seconds: i64) -> anyhow::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Makes the edition a Debian package in `dir` and gives its path.
///
/// # Errors
///
/// `dpkg-deb` failed.
pub(crate) fn debian_package(dir: &Path, edition: Edition) -> anyhow::Result<PathBuf> {
    let version = if edition.is_target() { "2" } else { "1" };
    let tree = dir.join(format!("package-{version}"));
    write_package(&tree, edition)?;
    let control = format!(
        "Package: vireo-example\nVersion: {version}\nArchitecture: all\n\
         Maintainer: Nobody <nobody@example.org>\nDescription: example\n"
    );
    fs::create_dir(tree.join("DEBIAN"))?;
    fs::write(tree.join("DEBIAN/control"), control)?;
    // Debian's policy manual, section 10.7: files in /etc are configuration files.
    let names: Vec<String> =
        (0..FILES).map(|number| format!("/etc/example/{number:02}.conf\n")).collect();
    fs::write(tree.join("DEBIAN/conffiles"), names.concat())?;
    let package = dir.join(format!("vireo-example_{version}.deb"));
    Run::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&tree).arg(&package).text()?;
    fs::remove_dir_all(tree)?;
    Ok(package)
}

/// dpkg, working on the tree `root` with the database in `database`; the action is to be added.
#[must_use]
pub(crate) fn dpkg(root: &Path, database: &Path) -> Vec<String> {
    let (root, database) = (root.display(), database.display());
    let mut words = vec!["dpkg".to_owned(), format!("--instdir={root}")];
    words.push(format!("--admindir={database}"));
    words.extend(["--log=/dev/null", "--no-triggers", "--force-confnew"].map(str::to_owned));
    words
}

/// Makes an empty database for [`dpkg`].
///
/// # Errors
///
/// The system refused.
pub(crate) fn empty_database(dir: &Path) -> anyhow::Result<()> {
    for name in ["info", "updates"] {
        fs::create_dir_all(dir.join(name))?;
    }
    for name in ["status", "available"] {
        fs::write(dir.join(name), "")?;
    }
    Ok(())
}
