//! What is known about the machine beside its units and processes: versions, loaded modules, the
//! time zone, which programs are there, which package owns which file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use vireo_classify::{Host, Packages, Policy, parse_modules};

use crate::systemctl;

/// Longest list of dpkg that is read, in bytes: that of the largest package in Debian has some
/// three million.
const MAX_LIST_LEN: u64 = 32 << 20;

/// Where apk keeps what is installed, below the root: now, and from apk-tools 3 on.
const APK: [&str; 2] = ["lib/apk/db/installed", "usr/lib/apk/db/installed"];

/// What `policy` needs to know of the machine with these directories.
pub(crate) fn host_of(proc: &Path, root: &Path, policy: &Policy) -> Host {
    let shown = systemctl::show_manager("Version").ok();
    let modules = fs::read(proc.join("modules")).ok();
    let zone = fs::canonicalize(root.join("etc/localtime")).ok();
    let present = policy.paths_wanted().into_iter().filter(|path| is_there(root, path));
    Host {
        manager_version: shown.and_then(|text| version_in(&text)),
        loaded_modules: modules.map(|text| parse_modules(&text)),
        time_zone: zone.as_deref().and_then(Path::to_str).map(str::to_owned),
        present: Some(present.collect::<BTreeSet<String>>()),
    }
}

/// The number that a version such as `252.39-1~deb12u1` begins with.
fn version_in(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// Whether there is something at `path`, of which the last component may have a `*`.
fn is_there(root: &Path, path: &str) -> bool {
    let path = root.join(path.trim_start_matches('/'));
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return false;
    };
    let Some((start, end)) = name.split_once('*') else {
        return fs::symlink_metadata(&path).is_ok();
    };
    let Ok(entries) = fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        name.len() >= start.len() + end.len()
            && name.starts_with(start.as_bytes())
            && name.ends_with(end.as_bytes())
    })
}

/// The packages that the databases of dpkg and apk below `root` list; none where there is neither.
pub(crate) fn packages_of(root: &Path) -> Packages {
    let mut packages = Packages::new();
    let database = root.join("var/lib/dpkg");
    for entry in fs::read_dir(database.join("info")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_list = name.ends_with(".list");
        if !is_list && !name.ends_with(".conffiles") {
            continue;
        }
        // A hint, the weakest of all: what cannot be read is not known.
        let Some(content) = read_list(&entry.path()) else { continue };
        if is_list {
            packages.add_list(name, &content);
        } else {
            packages.add_conffiles(&content);
        }
    }
    if let Some(status) = read_list(&database.join("status")) {
        packages.add_status(&status);
    }
    if let Some(installed) = APK.iter().find_map(|place| read_list(&root.join(place))) {
        packages.add_apk(&installed);
    }
    packages
}

fn read_list(path: &Path) -> Option<Vec<u8>> {
    let len = fs::metadata(path).ok()?.len();
    if len > MAX_LIST_LEN { None } else { fs::read(path).ok() }
}

#[cfg(test)]
mod tests {
    use vireo_model::ImagePath;

    use super::*;

    #[test]
    fn versions_begin_with_a_number() {
        assert_eq!(version_in("252.39-1~deb12u1"), Some(252));
        assert_eq!(version_in("257"), Some(257));
        assert_eq!(version_in("unknown"), None);
    }

    #[test]
    fn what_is_there_may_have_a_star_in_its_name() {
        let root = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(root.path().join("usr/sbin")).expect("made");
        fs::write(root.path().join("usr/sbin/php-fpm8.2"), "").expect("written");
        for (path, there) in [
            ("/usr/sbin/php-fpm8.2", true),
            ("/usr/sbin/php-fpm", false),
            ("/usr/sbin/php-*8.2", true),
            ("/usr/sbin/php-fpm8.2*8.2", false),
            ("/gone/*", false),
        ] {
            assert_eq!(is_there(root.path(), path), there, "{path}");
        }
    }

    #[test]
    fn the_database_of_dpkg_says_whose_a_file_is() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let info = root.path().join("var/lib/dpkg/info");
        fs::create_dir_all(&info).expect("made");
        fs::write(info.join("app.list"), "/.\n/opt\n/opt/app.conf\n").expect("written");
        fs::write(info.join("app.conffiles"), "/opt/app.conf\n").expect("written");
        fs::write(info.join("app.postinst"), "/opt/other\n").expect("written");
        let packages = packages_of(root.path());
        let path = ImagePath::parse(b"/opt/app.conf").expect("a valid path");
        assert_eq!(packages.owner_of(&path), Some("app"));
        assert!(packages.is_configuration(&path));
        let apk = root.path().join("lib/apk/db");
        fs::create_dir_all(&apk).expect("made");
        fs::write(apk.join("installed"), "P:web\nF:srv\nR:page\n").expect("written");
        let page = ImagePath::parse(b"/srv/page").expect("a valid path");
        assert_eq!(packages_of(root.path()).owner_of(&page), Some("web"));
        assert_eq!(packages_of(Path::new("/nonexistent")), Packages::new());
    }
}
