//! What the package managers of Debian and Alpine say about files: which package a path belongs
//! to, and which files a package declares to be configuration (`dpkg(1)`, `deb-conffiles(5)`,
//! `apk(5)`).
//!
//! The weakest of hints: the package of a program is often not the package of its unit. Not here:
//! rpm's database, which only librpm is meant to read.

use std::collections::{BTreeMap, BTreeSet};

use vireo_model::ImagePath;

use crate::class::canonical;

/// Most bytes of one line looked at; paths are at most 4096 long.
const MAX_LINE_LEN: usize = 8192;

/// Files by package.
///
/// ```
/// use vireo_classify::Packages;
/// use vireo_model::ImagePath;
///
/// let mut packages = Packages::new();
/// packages.add_list("nginx-common:all.list", b"/.\n/etc\n/lib/systemd/system/nginx.service\n/opt/n.conf\n");
/// packages.add_conffiles(b"/opt/n.conf\n");
/// let path = ImagePath::parse(b"/opt/n.conf")?;
/// assert_eq!(packages.owner_of(&path), Some("nginx-common"));
/// assert!(packages.is_configuration(&path));
/// # Ok::<(), vireo_model::ImagePathError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packages {
    owners: BTreeMap<Vec<u8>, String>,
    configuration: BTreeSet<Vec<u8>>,
    /// The source package of each package, if it has another name.
    sources: BTreeMap<String, String>,
}

impl Packages {
    /// No package at all.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the file list of a package, `/var/lib/dpkg/info/NAME.list` or `NAME:ARCH.list`.
    /// Directories, which packages share, are left out as far as they can be told.
    pub fn add_list(&mut self, file_name: &str, content: &[u8]) {
        let name = file_name.strip_suffix(".list").unwrap_or(file_name);
        let name = name.split_once(':').map_or(name, |(name, _)| name);
        let mut places: Vec<Vec<u8>> = paths_of(content).collect();
        places.sort();
        for (index, place) in places.iter().enumerate() {
            // In order, a directory stands before what is in it.
            let next = places.get(index + 1);
            let is_directory = next
                .and_then(|next| next.strip_prefix(place.as_slice()))
                .is_some_and(|rest| rest.starts_with(b"/"));
            if !is_directory {
                self.owners.insert(place.clone(), name.to_owned());
            }
        }
    }

    /// Adds a package's list of configuration files, `/var/lib/dpkg/info/NAME.conffiles`.
    pub fn add_conffiles(&mut self, content: &[u8]) {
        self.configuration.extend(paths_of(content));
    }

    /// Adds what `/var/lib/dpkg/status` says of source packages and configuration files.
    pub fn add_status(&mut self, content: &[u8]) {
        let (mut package, mut in_conffiles) = (String::new(), false);
        for line in content.split(|byte| *byte == b'\n').filter(|line| line.len() < MAX_LINE_LEN) {
            if line.starts_with(b" ") {
                if in_conffiles {
                    let path = line.trim_ascii().split(|byte| *byte == b' ').next();
                    self.configuration.extend(path.into_iter().flat_map(paths_of));
                }
                continue;
            }
            in_conffiles = line.starts_with(b"Conffiles:");
            let value = |key: &[u8]| {
                let value = line.strip_prefix(key)?.trim_ascii();
                Some(String::from_utf8_lossy(value).into_owned())
            };
            if let Some(name) = value(b"Package:") {
                package = name;
            } else if let Some(source) = value(b"Source:") {
                let source = source.split(' ').next().unwrap_or_default().to_owned();
                self.sources.insert(package.clone(), source);
            }
        }
    }

    /// Adds what Alpine's `/lib/apk/db/installed` says: a block of lines per package, each line a
    /// letter, a colon and a value; `P` the package, `o` its origin, `F` a directory, `R` a file in
    /// it. apk protects what is in `/etc` and declares no other configuration.
    pub fn add_apk(&mut self, content: &[u8]) {
        let (mut package, mut directory) = (String::new(), Vec::new());
        for line in content.split(|byte| *byte == b'\n').filter(|line| line.len() < MAX_LINE_LEN) {
            let [key, b':', value @ ..] = line else { continue };
            let text = || String::from_utf8_lossy(value).into_owned();
            match key {
                b'P' => package = text(),
                b'o' => drop(self.sources.insert(package.clone(), text())),
                b'F' => directory = value.to_vec(),
                b'R' => {
                    let path = [b"/", directory.as_slice(), b"/", value].concat();
                    let owned = paths_of(&path[usize::from(directory.is_empty())..])
                        .map(|path| (path, package.clone()));
                    self.owners.extend(owned);
                }
                _ => {}
            }
        }
    }

    /// The package that the file at `path` belongs to.
    #[must_use]
    pub fn owner_of(&self, path: &ImagePath) -> Option<&str> {
        self.owners.get(&canonical(path)).map(String::as_str)
    }

    /// Whether a package declares the file at `path` to be configuration.
    #[must_use]
    pub fn is_configuration(&self, path: &ImagePath) -> bool {
        self.configuration.contains(&canonical(path))
    }

    /// Whether two files come from packages of one source.
    pub(crate) fn are_related(&self, one: &ImagePath, other: &ImagePath) -> bool {
        let source = |path| {
            let owner = self.owner_of(path)?;
            Some(self.sources.get(owner).map_or(owner, String::as_str))
        };
        source(one).is_some_and(|one| source(other) == Some(one))
    }
}

fn paths_of(content: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines
        .filter(|line| line.len() < MAX_LINE_LEN)
        .filter_map(|line| ImagePath::parse(line).ok())
        .map(|path| canonical(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    #[test]
    fn lists_give_owners_of_files_and_not_of_directories() {
        let mut packages = Packages::new();
        packages.add_list(
            "libssl3:amd64.list",
            b"/.\n/usr\n/usr/lib\n/usr/lib/libssl.so.3\n/usr/lib/x\n\xff\n",
        );
        assert_eq!(packages.owner_of(&path("/lib/libssl.so.3")), Some("libssl3"));
        assert_eq!(packages.owner_of(&path("/usr/lib")), None);
    }

    #[test]
    fn the_database_of_apk_tells_owners_and_origins() {
        let mut packages = Packages::new();
        packages.add_apk(
            b"C:Q1x=\nP:nginx\nV:1.26\no:nginx\nF:\nR:.hidden\nF:usr/sbin\nR:nginx\nZ:Q1y=\n\n\
              P:nginx-openrc\no:nginx\nF:etc/init.d\nR:nginx\na:0:0:755\nF:../up\nR:x\n",
        );
        assert_eq!(packages.owner_of(&path("/usr/sbin/nginx")), Some("nginx"));
        assert_eq!(packages.owner_of(&path("/.hidden")), Some("nginx"));
        assert_eq!(packages.owner_of(&path("/etc/init.d/nginx")), Some("nginx-openrc"));
        assert!(packages.are_related(&path("/usr/sbin/nginx"), &path("/etc/init.d/nginx")));
        assert_eq!(packages.owner_of(&path("/up/x")), None);
    }

    #[test]
    fn the_status_file_tells_sources_and_configuration() {
        let mut packages = Packages::new();
        packages.add_list("redis-tools.list", b"/usr/bin/redis-check-rdb\n");
        packages.add_list("redis-server.list", b"/lib/systemd/system/redis-server.service\n");
        packages.add_status(
            b"Package: redis-tools\nSource: redis (5:7.0)\nConffiles:\n /opt/r.conf 0123 obsolete\n\
              Description: x\n /opt/no.conf\n\nPackage: redis-server\nSource: redis\n",
        );
        assert!(packages.is_configuration(&path("/opt/r.conf")));
        assert!(!packages.is_configuration(&path("/opt/no.conf")));
        let unit = path("/lib/systemd/system/redis-server.service");
        assert!(packages.are_related(&path("/usr/bin/redis-check-rdb"), &unit));
        assert!(!packages.are_related(&path("/usr/bin/other"), &unit));
    }
}
