//! What is slow to make, kept outside the checkout by the content it was made from.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use vireo_model::{Digest, Hasher};

use crate::error::{TestkitError, failed};
use crate::wait;

/// Longest wait for another process that is making the same entry.
const MAKE_DEADLINE: Duration = Duration::from_secs(900);

/// Entries of the same name and another key are removed once they are this old.
const KEEP: Duration = Duration::from_secs(2 * 24 * 3600);

/// A directory of made files, each named by the key of what it was made from.
///
/// Several processes may share it: an entry is made under a lock and appears complete.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// `$VIREO_CACHE`, else `$XDG_CACHE_HOME/vireo`, else `/var/cache/vireo`; made if absent.
    ///
    /// # Errors
    ///
    /// The directory cannot be made.
    pub fn open() -> Result<Self, TestkitError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = set("VIREO_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("vireo")))
            .unwrap_or_else(|| "/var/cache/vireo".into());
        Self::at(dir)
    }

    /// The cache in `dir`; made if absent.
    ///
    /// # Errors
    ///
    /// The directory cannot be made.
    pub fn at(dir: impl Into<PathBuf>) -> Result<Self, TestkitError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(failed("make the cache directory", &dir))?;
        let dir = dir.canonicalize().map_err(failed("resolve", &dir))?;
        Ok(Self { dir })
    }

    /// Where it is: an absolute path without symbolic links.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory `name` inside it, for things without a key; made if absent.
    ///
    /// # Errors
    ///
    /// The directory cannot be made.
    pub fn subdir(&self, name: &str) -> Result<PathBuf, TestkitError> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).map_err(failed("make directory", &path))?;
        Ok(path)
    }

    /// The entry `name-KEY.extension`; if it is absent, `make` makes it at the path it is given.
    ///
    /// # Errors
    ///
    /// Those of `make`; also the directory cannot be written, or another process keeps making
    /// this entry for longer than a quarter of an hour.
    pub fn entry(
        &self,
        name: &str,
        extension: &str,
        key: &Key,
        make: impl FnOnce(&Path) -> Result<(), TestkitError>,
    ) -> Result<PathBuf, TestkitError> {
        let path = self.dir.join(format!("{name}-{}.{extension}", key.short()));
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock(name)?;
        if path.exists() {
            return Ok(path); // another process made it while this one waited
        }
        let partial = path.with_added_extension("partial");
        remove_if_there(&partial)?;
        if let Err(error) = make(&partial) {
            remove_if_there(&partial)?;
            return Err(error);
        }
        fs::rename(&partial, &path).map_err(failed("rename", &partial))?;
        self.prune(name, &path)?;
        Ok(path)
    }

    /// Waits for the lock on the entries called `name`; released when dropped.
    pub(crate) fn lock(&self, name: &str) -> Result<File, TestkitError> {
        let path = self.dir.join(format!("{name}.lock"));
        let file = File::create(&path).map_err(failed("create", &path))?;
        let what = format!("the lock {}", path.display());
        wait::until(&what, MAKE_DEADLINE, || match file.try_lock() {
            Ok(()) => Ok(Some(())),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(TestkitError::io("lock", &path, source)),
        })?;
        Ok(file)
    }

    /// Removes entries called `name` that nothing has made or asked for in a long time.
    fn prune(&self, name: &str, but: &Path) -> Result<(), TestkitError> {
        let prefix = format!("{name}-");
        let oldest = SystemTime::now() - KEEP;
        for entry in fs::read_dir(&self.dir).map_err(failed("list", &self.dir))? {
            let entry = entry.map_err(failed("list", &self.dir))?;
            let ours = entry.file_name().to_string_lossy().starts_with(&prefix);
            let made = entry.metadata().and_then(|metadata| metadata.modified());
            if ours && entry.path() != but && made.is_ok_and(|made| made < oldest) {
                remove_if_there(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn remove_if_there(path: &Path) -> Result<(), TestkitError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TestkitError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// What an entry is made from, as one digest. Every part counts, and so does their order.
#[derive(Clone, Debug)]
pub struct Key {
    parts: Vec<Digest>,
}

impl Key {
    /// A key of `recipe`'s text alone.
    #[must_use]
    pub fn of(recipe: &str) -> Self {
        Self { parts: vec![Digest::of(recipe.as_bytes())] }
    }

    /// The key with `text` added.
    #[must_use]
    pub fn and(mut self, text: &str) -> Self {
        self.parts.push(Digest::of(text.as_bytes()));
        self
    }

    /// The key with the content of `file` added. Cost: reads the file.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn and_file(mut self, file: &Path) -> Result<Self, TestkitError> {
        let mut reader = File::open(file).map_err(failed("open", file))?;
        let mut hasher = Hasher::new();
        io::copy(&mut reader, &mut hasher).map_err(failed("read", file))?;
        self.parts.push(hasher.finish());
        Ok(self)
    }

    /// The key with this ISO week added: what is made from the distribution goes stale.
    #[must_use]
    pub fn and_week(self) -> Self {
        let week = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date().iso_week_date();
        self.and(&format!("{}-W{}", week.year(), week.week()))
    }

    /// 16 hexadecimal digits, as in file names.
    #[must_use]
    pub fn short(&self) -> String {
        let all: Vec<u8> = self.parts.iter().flat_map(|part| *part.as_bytes()).collect();
        Digest::of(&all).to_string()[..16].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_made_once_and_again_for_another_key() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache = Cache::at(dir.path()).expect("the directory is there");
        let get = |recipe: &str| {
            let mut made = false;
            let path = cache.entry("thing", "txt", &Key::of(recipe), |path| {
                made = true;
                fs::write(path, recipe).map_err(failed("write", path))
            });
            (fs::read_to_string(path.expect("it can be made")).ok(), made)
        };
        assert_eq!(get("one"), (Some("one".to_owned()), true));
        assert_eq!(get("one"), (Some("one".to_owned()), false));
        assert_eq!(get("two"), (Some("two".to_owned()), true));
    }

    #[test]
    fn a_failed_recipe_leaves_no_entry() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache = Cache::at(dir.path()).expect("the directory is there");
        let fail = |path: &Path| {
            fs::write(path, "half").map_err(failed("write", path))?;
            Err(TestkitError::new(crate::ErrorKind::Failed, "half way"))
        };
        cache.entry("thing", "txt", &Key::of("r"), fail).expect_err("the recipe fails");
        let whole = cache.entry("thing", "txt", &Key::of("r"), |path| {
            fs::write(path, "whole").map_err(failed("write", path))
        });
        assert_eq!(fs::read_to_string(whole.expect("made")).ok().as_deref(), Some("whole"));
        let names = fs::read_dir(dir.path()).expect("it can be listed").count();
        assert_eq!(names, 2, "the entry and its lock");
    }

    #[test]
    fn every_part_of_a_key_counts() {
        assert_ne!(Key::of("a").and("b").short(), Key::of("ab").short());
        assert_ne!(Key::of("a").and("b").short(), Key::of("b").and("a").short());
    }
}
