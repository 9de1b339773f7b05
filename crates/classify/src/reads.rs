//! The read map: which unit was seen to read which file, and when.
//!
//! `/proc` does not show files that were read and closed, so this is learned: somebody watches
//! the file system while each unit starts and reloads, and adds what was seen here. The map
//! travels with an update and says what its files need on machines where nobody watches.
//!
//! Not here: the watching.

mod written;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vireo_model::ImagePath;

use crate::Unit;
use crate::class::canonical;
use written::Written;

pub use written::{MAX_READ_MAP_LEN, MAX_READ_MAP_PATHS, MAX_READ_MAP_UNITS};

/// From how many readers on a file can be one that most programs read through a library.
const SHARED_READERS_MIN: usize = 8;

/// Part of all watched units, in percent, from which on such a file says nothing about a unit.
/// In a laboratory of some 40 services `openssl.cnf`, `passwd` and `localtime` had 11 to 20
/// readers, the next file 3.
const SHARED_READERS_PERCENT: usize = 20;

/// What a unit did when it read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It started.
    Start,
    /// It reloaded.
    Reload,
    /// Neither: it reads the file anew each time that it needs it. To be added only for a file
    /// that was read again while the unit was left alone.
    Run,
}

impl Phase {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Reload => "reload",
            Self::Run => "run",
        }
    }
}

/// Which units read which files and directories.
///
/// ```
/// use vireo_classify::{Phase, ReadMap, Unit};
/// use vireo_model::ImagePath;
///
/// let nginx = Unit::new("nginx.service");
/// let mut reads = ReadMap::new();
/// for phase in [Phase::Start, Phase::Reload] {
///     reads.watched(&nginx, phase);
///     reads.add_file(&ImagePath::parse(b"/etc/nginx/nginx.conf")?, &nginx, phase);
///     reads.add_directory(&ImagePath::parse(b"/etc/nginx/conf.d")?, &nginx, phase);
/// }
/// let added = ImagePath::parse(b"/etc/nginx/conf.d/new.conf")?;
/// assert!(reads.readers_of(&added).is_none());
/// assert_eq!(reads.listers_of(&added).count(), 1);
/// # Ok::<(), vireo_model::ImagePathError>(())
/// ```
///
/// Written as JSON, [`to_json`](Self::to_json), and read within limits by
/// [`from_json`](Self::from_json); `docs/format/read-map.md` is the normative text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct ReadMap {
    /// In which phases each unit was watched.
    watched: BTreeMap<Unit, BTreeSet<Phase>>,
    files: BTreeMap<Vec<u8>, BTreeMap<Unit, BTreeSet<Phase>>>,
    directories: BTreeMap<Vec<u8>, BTreeMap<Unit, BTreeSet<Phase>>>,
}

impl ReadMap {
    /// The schema's name.
    pub const SCHEMA: &'static str = "vireo.reads/1";

    /// A map that knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `unit` was watched in `phase`, whatever it read: only then does it say
    /// something that a file was not read.
    pub fn watched(&mut self, unit: &Unit, phase: Phase) {
        self.watched.entry(unit.clone()).or_default().insert(phase);
    }

    /// Notes that `unit` read the file at `path` in `phase`. A compiled Python module counts as
    /// its source.
    pub fn add_file(&mut self, path: &ImagePath, unit: &Unit, phase: Phase) {
        let place = source_of(canonical(path));
        self.files.entry(place).or_default().entry(unit.clone()).or_default().insert(phase);
    }

    /// Notes that `unit` listed the directory at `path` in `phase`, so that a file that is new
    /// there is seen.
    pub fn add_directory(&mut self, path: &ImagePath, unit: &Unit, phase: Phase) {
        let place = canonical(path);
        self.directories.entry(place).or_default().entry(unit.clone()).or_default().insert(phase);
    }

    /// What of it units that `keep` names read. What they were seen not to read is left out: a map that is
    /// kept for long may no longer say that.
    ///
    /// ```
    /// use vireo_classify::{Phase, ReadMap, Unit};
    /// use vireo_model::ImagePath;
    ///
    /// let (nginx, path) = (Unit::new("nginx.service"), ImagePath::parse(b"/srv/extra.conf")?);
    /// let mut map = ReadMap::new();
    /// map.watched(&nginx, Phase::Start);
    /// map.add_file(&path, &nginx, Phase::Start);
    /// let read = map.reads_of(|unit| unit.kind() == "service");
    /// assert!(read.readers_of(&path).is_some() && !read.was_watched(&nginx, Phase::Start));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn reads_of(&self, keep: impl Fn(&Unit) -> bool) -> Self {
        let of = |places: &BTreeMap<Vec<u8>, BTreeMap<Unit, BTreeSet<Phase>>>| {
            let kept = places.iter().map(|(place, readers)| {
                let kept = readers.iter().filter(|(unit, _)| keep(unit));
                (place.clone(), kept.map(|(unit, phases)| (unit.clone(), phases.clone())).collect())
            });
            kept.filter(|(_, readers): &(_, BTreeMap<_, _>)| !readers.is_empty()).collect()
        };
        Self {
            watched: BTreeMap::new(),
            files: of(&self.files),
            directories: of(&self.directories),
        }
    }

    /// The units that read anything.
    #[must_use]
    pub fn readers(&self) -> BTreeSet<&Unit> {
        self.files.values().chain(self.directories.values()).flat_map(BTreeMap::keys).collect()
    }

    /// Adds all that `other` knows.
    pub fn merge(&mut self, other: &Self) {
        for (unit, phases) in &other.watched {
            self.watched.entry(unit.clone()).or_default().extend(phases);
        }
        let parts = [(&mut self.files, &other.files), (&mut self.directories, &other.directories)];
        for (mine, others) in parts {
            for (place, readers) in others {
                let mine = mine.entry(place.clone()).or_default();
                for (unit, phases) in readers {
                    mine.entry(unit.clone()).or_default().extend(phases);
                }
            }
        }
    }

    /// The units that were watched.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.watched.keys()
    }

    /// Whether nothing was watched and nothing seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.watched.is_empty() && self.files.is_empty() && self.directories.is_empty()
    }

    /// How many files and directories have a reader.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len() + self.directories.len()
    }

    /// Whether `unit` was watched in `phase`.
    #[must_use]
    pub fn was_watched(&self, unit: &Unit, phase: Phase) -> bool {
        self.watched.get(unit).is_some_and(|phases| phases.contains(&phase))
    }

    /// Who read the file at `path`, and when; none if nobody did.
    #[must_use]
    pub fn readers_of(&self, path: &ImagePath) -> Option<&BTreeMap<Unit, BTreeSet<Phase>>> {
        self.files.get(&source_of(canonical(path)))
    }

    /// Who listed the directory that `path` is in, and when.
    pub fn listers_of(&self, path: &ImagePath) -> impl Iterator<Item = (&Unit, &BTreeSet<Phase>)> {
        let place = canonical(path);
        let end = place.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.directories.get(&place[..end]).into_iter().flatten()
    }

    /// Whether `unit` read a file beside `path` whose name has the same ending, as those have that
    /// are taken from a directory of configuration.
    #[must_use]
    pub fn reads_siblings_of(&self, path: &ImagePath, unit: &Unit) -> bool {
        let place = canonical(path);
        let end = place.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let (directory, name) = place.split_at(end + 1);
        let Some(dot) = name.iter().rposition(|byte| *byte == b'.') else { return false };
        let siblings = self.files.range(directory.to_vec()..);
        let mut siblings = siblings.take_while(|(sibling, _)| sibling.starts_with(directory));
        siblings.any(|(sibling, readers)| {
            let rest = &sibling[directory.len()..];
            !rest.contains(&b'/') && rest.ends_with(&name[dot..]) && readers.contains_key(unit)
        })
    }

    /// Whether so many units read the file at `path` that it says nothing about one of them.
    #[must_use]
    pub fn is_shared(&self, path: &ImagePath) -> bool {
        let readers = self.readers_of(path).map_or(0, BTreeMap::len);
        readers >= SHARED_READERS_MIN && readers * 100 > self.watched.len() * SHARED_READERS_PERCENT
    }
}

/// `/x/__pycache__/a.cpython-311.pyc` is `/x/a.py` (PEP 3147); any other path is itself.
fn source_of(place: Vec<u8>) -> Vec<u8> {
    fn fold(place: &[u8]) -> Option<Vec<u8>> {
        let at = place.iter().rposition(|byte| *byte == b'/')?;
        let directory = place[..at].strip_suffix(b"/__pycache__")?;
        let name = place[at + 1..].strip_suffix(b".pyc")?;
        // Without the optimisation's level, then without the interpreter's tag.
        let end = name.windows(5).rposition(|part| part == b".opt-").unwrap_or(name.len());
        let stem = &name[..name[..end].iter().rposition(|byte| *byte == b'.')?];
        Some([directory, b"/", stem, b".py"].concat())
    }
    fold(&place).unwrap_or(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(text.as_bytes()).expect("a valid path")
    }

    #[test]
    fn compiled_python_counts_as_its_source() {
        for (read, source) in [
            ("/opt/app/__pycache__/a.cpython-311.pyc", "/opt/app/a.py"),
            ("/opt/app/__pycache__/a.b.cpython-311.opt-1.pyc", "/opt/app/a.b.py"),
            ("/opt/app/__pycache__/a.pyc", "/opt/app/__pycache__/a.pyc"),
            ("/opt/app/a.pyc", "/opt/app/a.pyc"),
            ("/lib/python3/__pycache__/os.cpython-311.pyc", "/usr/lib/python3/os.py"),
        ] {
            assert_eq!(source_of(canonical(&path(read))), source.as_bytes(), "{read}");
        }
    }

    #[test]
    fn a_file_that_most_units_read_says_nothing_about_one() {
        let mut reads = ReadMap::new();
        let units: Vec<Unit> = (0..40).map(|n| Unit::new(format!("u{n}.service"))).collect();
        for (n, unit) in units.iter().enumerate() {
            reads.watched(unit, Phase::Start);
            if n < 9 {
                reads.add_file(&path("/etc/passwd"), unit, Phase::Start);
            }
            if n < 8 {
                reads.add_file(&path("/etc/app.conf"), unit, Phase::Start);
            }
        }
        assert!(reads.is_shared(&path("/etc/passwd")));
        assert!(!reads.is_shared(&path("/etc/app.conf")));
        assert!(!reads.is_shared(&path("/etc/nobody")));
    }

    #[test]
    fn maps_are_merged_and_read_back() {
        let (a, b) = (Unit::new("a.service"), Unit::new("b.service"));
        let (mut one, mut two) = (ReadMap::new(), ReadMap::new());
        one.watched(&a, Phase::Start);
        one.add_file(&path("/etc/x"), &a, Phase::Start);
        two.watched(&a, Phase::Reload);
        two.add_file(&path("/etc/x"), &b, Phase::Run);
        two.add_directory(&path("/etc/d"), &b, Phase::Start);
        let mut both = one.clone();
        both.merge(&two);
        two.merge(&one);
        assert_eq!(both, two, "the order does not matter");
        assert!(both.was_watched(&a, Phase::Start) && both.was_watched(&a, Phase::Reload));
        assert_eq!(both.readers_of(&path("/etc/x")).map(BTreeMap::len), Some(2));
        let json = serde_json::to_string(&both).expect("plain data");
        assert_eq!(serde_json::from_str::<ReadMap>(&json).expect("it reads back"), both);
        let other = json.replace("vireo.reads/1", "vireo.reads/2");
        let error = serde_json::from_str::<ReadMap>(&other).expect_err("another schema");
        assert!(error.to_string().contains("vireo.reads/2"), "{error}");
    }
}
