//! A directory of launchable images, for hosts that run machines with QEMU or libvirt.
//!
//! ```text
//! <dir>/<image>/<version>.img       a raw disk image of its own: machines may be given it, or copies
//! <dir>/<image>/<version>.json      what it is
//! <dir>/<image>/current             symbolic link to the one that new machines start from
//! <dir>/<image>/machines/<name>.json  running machines, kept by whoever launches them
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vireo_model::{Digest, ImageName};
use vireo_sys::{copy, durable};

use crate::error::{CloudError, io_error, record_error};
use crate::{Cloud, Launchable, Machine, Publication};

/// What `<version>.json` says; where it is follows from where that file is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    image: ImageName,
    version: u64,
    tree: Digest,
}

/// Images in a directory.
#[derive(Clone, Debug)]
pub struct Local {
    root: PathBuf,
}

impl Local {
    /// Images in `root`, which is made when something is published.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Path of the link to the disk image that new machines of `image` start from.
    #[must_use]
    pub fn current_path(&self, image: &ImageName) -> PathBuf {
        self.root.join(image.as_str()).join("current")
    }

    /// Copies, so that no machine writes into the repository; sharing blocks where possible.
    fn copy_disk(disk: &Path, to: &Path) -> Result<(), CloudError> {
        let part = durable::sibling(to, ".part");
        let from = File::open(disk).map_err(io_error("open", disk))?;
        let out = File::create(&part).map_err(io_error("create", &part))?;
        copy::clone(&from, &out).map_err(io_error("write", &part))?;
        out.sync_all().map_err(io_error("sync", &part))?;
        durable::rename(&part, to).map_err(io_error("finish", to))
    }

    /// Points `current` at `name`: a link is made beside it and renamed over it.
    fn switch(directory: &Path, name: &str) -> Result<(), CloudError> {
        let staged = directory.join("current.new");
        match fs::remove_file(&staged) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &staged)(error));
            }
            _ => {}
        }
        symlink(name, &staged).map_err(io_error("create", &staged))?;
        let current = directory.join("current");
        durable::rename(&staged, &current).map_err(io_error("switch", &current))
    }
}

impl Record {
    fn at(self, path: &Path) -> Launchable {
        let Self { image, version, tree } = self;
        Launchable { image, version, tree, address: path.display().to_string() }
    }
}

impl Cloud for Local {
    fn publish(&self, publication: &Publication<'_>) -> Result<Launchable, CloudError> {
        let Publication { image, version, tree, disk, earlier: _ } = *publication;
        let directory = self.root.join(image.as_str());
        fs::create_dir_all(&directory).map_err(io_error("create", &directory))?;
        let name = format!("{version}.img");
        let path = directory.join(&name);
        let record = Record { image: image.clone(), version, tree };
        let record_path = directory.join(format!("{version}.json"));
        if read_json::<Record>(&record_path)?.as_ref() != Some(&record) || !path.exists() {
            Self::copy_disk(disk, &path)?;
            let json = serde_json::to_vec_pretty(&record).map_err(record_error(&record_path))?;
            durable::replace(&record_path, &json).map_err(io_error("write", &record_path))?;
        }
        let launchable = record.at(&path);
        if self.current(image)?.as_ref() != Some(&launchable) {
            Self::switch(&directory, &name)?;
        }
        Ok(launchable)
    }

    fn current(&self, image: &ImageName) -> Result<Option<Launchable>, CloudError> {
        let link = self.current_path(image);
        let name = match fs::read_link(&link) {
            Ok(name) => name,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &link)(error)),
        };
        let path = link.with_file_name(name);
        let record = read_json::<Record>(&path.with_extension("json"))?;
        Ok(record.map(|record| record.at(&path)))
    }

    fn machines(&self, image: &ImageName) -> Result<Vec<Machine>, CloudError> {
        let directory = self.root.join(image.as_str()).join("machines");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read", &directory)(error)),
        };
        let mut machines = Vec::new();
        for entry in entries {
            let path = entry.map_err(io_error("read", &directory))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                machines.extend(read_json::<Machine>(&path)?);
            }
        }
        machines.retain(|machine| machine.image == *image);
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(machines)
    }
}

fn read_json<R: DeserializeOwned>(path: &Path) -> Result<Option<R>, CloudError> {
    match fs::read(path) {
        Ok(json) => serde_json::from_slice(&json).map(Some).map_err(record_error(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_directory_keeps_the_contract() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        crate::testing::check_cloud(&Local::new(dir.path().join("images")), dir.path());
    }

    #[test]
    fn current_leads_to_a_copy_of_the_disk() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = dir.path().join("disk");
        fs::write(&disk, "content").expect("writable");
        let local = Local::new(dir.path().join("images"));
        let web: ImageName = "web".parse().expect("a name");
        let version = Publication {
            image: &web,
            version: 1,
            tree: Digest::of(b"1"),
            disk: &disk,
            earlier: &[],
        };
        local.publish(&version).expect("published");
        fs::write(&disk, "changed").expect("writable");
        assert_eq!(fs::read(local.current_path(&web)).expect("readable"), b"content");
    }

    #[test]
    fn machines_are_those_that_the_launcher_wrote_down() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let local = Local::new(dir.path());
        let web: ImageName = "web".parse().expect("a name");
        let machines = dir.path().join("web/machines");
        fs::create_dir_all(&machines).expect("writable");
        for name in ["b", "a"] {
            let json = format!(r#"{{"name":"{name}","image":"web","version":1,"address":null}}"#);
            fs::write(machines.join(name).with_extension("json"), json).expect("writable");
        }
        let names: Vec<String> = local
            .machines(&web)
            .expect("readable")
            .into_iter()
            .map(|machine| machine.name)
            .collect();
        assert_eq!(names, ["a", "b"]);
        fs::write(machines.join("c.json"), "{}").expect("writable");
        assert_eq!(local.machines(&web).expect_err("damaged").kind(), ErrorKind::Corrupt);
    }
}
