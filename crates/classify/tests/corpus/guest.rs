//! A Debian 12 with services of many kinds, as facts and a read map that were recorded in the guest that
//! the tests with real systemd boot.
//!
//! `live_recorded_facts_are_what_the_guest_says` in the tests of the whole records both, and fails where the
//! guest is no longer what was recorded: units, what they can, what they read by their files, who holds which
//! file, classes.

use std::collections::BTreeMap;

use serde::Deserialize;
use vireo_classify::{ChangedFile, Class, Facts, FileId, Host, ReadMap};
use vireo_model::ChangeKind;

use crate::lab::{Scenario, changes_of};

const FACTS: &str = include_str!("recorded/facts.json");
const READS: &str = include_str!("recorded/reads.json");

#[derive(Deserialize)]
struct Recorded {
    facts: Facts,
    host: Host,
    files: BTreeMap<String, File>,
}

#[derive(Deserialize)]
struct File {
    id: FileId,
    class: Class,
}

/// The guest with these changes, written as for the [laboratory](crate::lab::lab).
pub(crate) fn guest(changes: &[&str]) -> Scenario {
    let Recorded { facts, host, files } = serde_json::from_str(FACTS).expect("recorded facts");
    let reads = ReadMap::from_json(READS.as_bytes()).expect("a recorded map");
    let changes = changes_of(changes).map(|(path, change)| match files.get(path) {
        Some(file) if change.kind != ChangeKind::Added => {
            ChangedFile { replaced: Some(file.id), class: file.class, ..change }
        }
        _ => {
            assert!(
                change.kind == ChangeKind::Added,
                "{path} was not recorded: add it to paths.txt"
            );
            change
        }
    });
    Scenario::of(facts, host, reads, changes.collect())
}
