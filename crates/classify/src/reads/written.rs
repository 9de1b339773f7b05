//! The read map as it is written: JSON, `docs/format/read-map.md`.
//!
//! Nothing of a map is believed before it was checked: it says which services an update restarts.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vireo_model::ImagePath;

use super::{Phase, ReadMap, source_of};
use crate::class::canonical;
use crate::error::ClassifyError;
use crate::{Unit, path_text};

/// Longest text of a map, in bytes; also what a bundle carries at most. Reading it takes some four
/// times as much memory. 40 services had 0.5 MB.
pub const MAX_READ_MAP_LEN: usize = 8 << 20;

/// Most units of a map; a machine with more of them that read files of their own is none we know.
pub const MAX_READ_MAP_UNITS: usize = 4096;

/// Most files and directories of a map.
pub const MAX_READ_MAP_PATHS: usize = 100_000;

/// Longest name of a unit, in bytes: systemd's `UNIT_NAME_MAX` less its NUL.
const MAX_UNIT_NAME_LEN: usize = 255;

impl ReadMap {
    /// Reads a map from its JSON.
    ///
    /// # Errors
    ///
    /// `BadReadMap`, with what is wrong: no such JSON, another schema, a key that this version does
    /// not know, a path twice, a name that no unit can have, or more than the limits allow.
    pub fn from_json(text: &[u8]) -> Result<Self, ClassifyError> {
        if text.len() > MAX_READ_MAP_LEN {
            let why = format!("it has {} bytes, at most {MAX_READ_MAP_LEN} are read", text.len());
            return Err(ClassifyError::read_map(&why));
        }
        serde_json::from_slice(text).map_err(|error| ClassifyError::read_map(&error.to_string()))
    }

    /// The map as JSON, one path a line, always the same for the same map.
    ///
    /// # Errors
    ///
    /// `BadReadMap` for a map that [`from_json`](Self::from_json) would refuse.
    pub fn to_json(&self) -> Result<String, ClassifyError> {
        let written = Written::from(self.clone());
        let text = written.text().map_err(|error| ClassifyError::read_map(&error.to_string()))?;
        Self::from_json(text.as_bytes())?;
        Ok(text)
    }
}

/// The map as it is written.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    schema: String,
    watched: BTreeMap<Unit, BTreeSet<Phase>>,
    files: Vec<WrittenReads>,
    directories: Vec<WrittenReads>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenReads {
    #[serde(with = "path_text")]
    path: ImagePath,
    by: Readers,
}

type Readers = BTreeMap<Unit, BTreeSet<Phase>>;

impl Written {
    /// JSON with one path a line: small, and two maps can be compared with `diff`.
    fn text(&self) -> serde_json::Result<String> {
        let lines = |list: &[WrittenReads]| -> serde_json::Result<String> {
            let lines: Result<Vec<String>, _> = list.iter().map(serde_json::to_string).collect();
            Ok(lines?.join(",\n"))
        };
        Ok(format!(
            "{{\"schema\":{},\n\"watched\":{},\n\"files\":[\n{}\n],\n\"directories\":[\n{}\n]}}\n",
            serde_json::to_string(&self.schema)?,
            serde_json::to_string(&self.watched)?,
            lines(&self.files)?,
            lines(&self.directories)?,
        ))
    }

    fn check(&self) -> Result<(), String> {
        if self.schema != ReadMap::SCHEMA {
            return Err(format!("schema {:?} is not {:?}", self.schema, ReadMap::SCHEMA));
        }
        let paths = self.files.len() + self.directories.len();
        if paths > MAX_READ_MAP_PATHS {
            return Err(format!("{paths} paths are more than {MAX_READ_MAP_PATHS}"));
        }
        if self.watched.len() > MAX_READ_MAP_UNITS {
            let units = self.watched.len();
            return Err(format!("{units} units are more than {MAX_READ_MAP_UNITS}"));
        }
        let reads = self.files.iter().chain(&self.directories);
        let units = self.watched.keys().chain(reads.flat_map(|reads| reads.by.keys()));
        match units.into_iter().find(|unit| !is_unit_name(unit.as_str())) {
            Some(unit) => Err(format!("{:?} is no unit's name", unit.as_str())),
            None => Ok(()),
        }
    }
}

/// The characters that systemd allows, with a type at the end: `unit_name_is_valid` of systemd's
/// `unit-name.c`.
fn is_unit_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    name.len() <= MAX_UNIT_NAME_LEN
        && name.bytes().all(allowed)
        && name.rsplit_once('.').is_some_and(|(id, kind)| !id.is_empty() && !kind.is_empty())
}

impl From<ReadMap> for Written {
    fn from(map: ReadMap) -> Self {
        let written = |reads: BTreeMap<Vec<u8>, _>| {
            let one = |(place, by): (Vec<u8>, _)| {
                ImagePath::parse(&place).ok().map(|path| WrittenReads { path, by })
            };
            reads.into_iter().filter_map(one).collect()
        };
        Self {
            schema: ReadMap::SCHEMA.to_owned(),
            watched: map.watched,
            files: written(map.files),
            directories: written(map.directories),
        }
    }
}

impl TryFrom<Written> for ReadMap {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        written.check()?;
        let files = |path: &ImagePath| source_of(canonical(path));
        Ok(Self {
            watched: written.watched,
            files: read(written.files, files)?,
            directories: read(written.directories, canonical)?,
        })
    }
}

/// The readers by place, each place once.
fn read(
    list: Vec<WrittenReads>,
    place_of: impl Fn(&ImagePath) -> Vec<u8>,
) -> Result<BTreeMap<Vec<u8>, Readers>, String> {
    let mut places = BTreeMap::new();
    for WrittenReads { path, by } in list {
        if by.values().any(BTreeSet::is_empty) || by.is_empty() {
            return Err(format!("nobody is said to read {path}"));
        }
        let place = place_of(&path);
        if ImagePath::parse(&place).is_err() {
            return Err(format!("{path} is too long"));
        }
        if places.insert(place, by).is_some() {
            return Err(format!("{path} stands there twice"));
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn sample() -> ReadMap {
        let nginx = Unit::new("nginx.service");
        let path = |text: &[u8]| ImagePath::parse(text).expect("a valid path");
        let mut map = ReadMap::new();
        map.watched(&nginx, Phase::Start);
        map.watched(&nginx, Phase::Reload);
        map.add_file(&path(b"/etc/nginx/nginx.conf"), &nginx, Phase::Start);
        map.add_file(&path(b"/etc/nginx/nginx.conf"), &nginx, Phase::Reload);
        map.add_file(&path(b"/srv/caf\xe9\\\n"), &nginx, Phase::Run);
        map.add_directory(&path(b"/etc/nginx/conf.d"), &nginx, Phase::Start);
        map
    }

    #[test]
    fn a_map_reads_back_what_it_wrote_and_its_text_is_frozen() {
        let text = sample().to_json().expect("within the limits");
        assert_eq!(
            text,
            r#"{"schema":"vireo.reads/1",
"watched":{"nginx.service":["start","reload"]},
"files":[
{"path":"/etc/nginx/nginx.conf","by":{"nginx.service":["start","reload"]}},
{"path":"/srv/caf\\xe9\\\\\n","by":{"nginx.service":["run"]}}
],
"directories":[
{"path":"/etc/nginx/conf.d","by":{"nginx.service":["start"]}}
]}
"#
        );
        assert_eq!(ReadMap::from_json(text.as_bytes()).expect("its own text"), sample());
        let empty = ReadMap::new().to_json().expect("nothing is allowed");
        assert_eq!(ReadMap::from_json(empty.as_bytes()).expect("its own text"), ReadMap::new());
    }

    #[test]
    fn maps_that_nobody_wrote_are_refused_with_what_is_wrong() {
        let text = sample().to_json().expect("within the limits");
        for (from, to, what) in [
            ("reads/1", "reads/2", "\"vireo.reads/2\" is not"),
            ("\"watched\"", "\"seen\"", "unknown field `seen`"),
            ("\"run\"", "\"exec\"", "unknown variant `exec`"),
            ("[\"run\"]", "[]", "nobody is said to read /srv/"),
            ("nginx.service", "nginx", "\"nginx\" is no unit's name"),
            ("nginx.service", "--now.service;", "is no unit's name"),
            ("/etc/nginx/conf.d", "conf.d", "is no absolute path"),
            ("/etc/nginx/conf.d", "/etc/../conf.d", "is no absolute path"),
        ] {
            let hostile = text.replace(from, to);
            let error = ReadMap::from_json(hostile.as_bytes()).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::BadReadMap);
            assert!(error.to_string().starts_with("the read map cannot be used: "), "{error}");
            assert!(error.to_string().contains(what), "{what}: {error}");
        }
        let line = r#"{"path":"/etc/nginx/nginx.conf","by":{"nginx.service":["start","reload"]}},"#;
        let twice = text.replace(line, &line.repeat(2));
        let error = ReadMap::from_json(twice.as_bytes()).expect_err("twice");
        assert!(error.to_string().contains("stands there twice"), "{error}");
        assert!(ReadMap::from_json(b"\xff").is_err());
        for len in (0..text.len() - 1).step_by(3) {
            assert!(ReadMap::from_json(&text.as_bytes()[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_map_beyond_the_limits_is_refused() {
        let long = ReadMap::from_json(&vec![b' '; MAX_READ_MAP_LEN + 1]).expect_err("too long");
        assert!(long.to_string().contains("bytes, at most 8388608 are read"), "{long}");
        let mut map = ReadMap::new();
        for n in 0..=MAX_READ_MAP_UNITS {
            map.watched(&Unit::new(format!("u{n}.service")), Phase::Start);
        }
        let error = map.to_json().expect_err("too many units");
        assert!(error.to_string().contains("4097 units are more than 4096"), "{error}");
        let line = |n: usize| format!(r#"{{"path":"/{n}","by":{{"a.b":["run"]}}}}"#);
        let lines: Vec<String> = (0..=MAX_READ_MAP_PATHS).map(line).collect();
        let text = format!(
            r#"{{"schema":"vireo.reads/1","watched":{{}},"files":[{}],"directories":[]}}"#,
            lines.join(",")
        );
        let error = ReadMap::from_json(text.as_bytes()).expect_err("too many paths");
        assert!(error.to_string().contains("100001 paths are more than 100000"), "{error}");
    }
}
