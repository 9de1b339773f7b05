//! What is true of a guest, seen from outside of everything that is tested.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_testkit::Guest;

use super::case::Probe;
use super::plan::text;

const LOOK: &str = include_str!("look.py");

/// Longest for a look.
const LOOK_DEADLINE: Duration = Duration::from_secs(20);

/// Longest for a probe to answer as it should: services become ready after their job is over.
const PROBE_DEADLINE: Duration = Duration::from_secs(8);

/// Time between two looks.
const POLL: Duration = Duration::from_millis(100);

/// One look at a guest.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// Units by name: whether they are active, and their main process.
    units: BTreeMap<String, (bool, String)>,
    /// Inode numbers of the files that were asked for.
    ids: BTreeMap<String, u64>,
    /// Who holds them: units, or `1` for the first process.
    holders: BTreeMap<String, BTreeSet<String>>,
}

impl Machine {
    /// Looks at `guest`, and who holds the files at `paths`.
    pub(super) fn look<'a>(
        guest: &dyn Guest,
        paths: impl IntoIterator<Item = &'a str>,
    ) -> anyhow::Result<Self> {
        Self::ask(guest, paths.into_iter().map(|path| format!(":{path}")).collect())
    }

    /// Looks again: who holds the same files, whatever is at their paths now.
    pub(super) fn again(&self, guest: &dyn Guest) -> anyhow::Result<Self> {
        Self::ask(guest, self.ids.iter().map(|(path, inode)| format!("{inode}:{path}")).collect())
    }

    fn ask(guest: &dyn Guest, files: Vec<String>) -> anyhow::Result<Self> {
        let mut argv = vec!["python3", "-"];
        argv.extend(files.iter().map(String::as_str));
        let output = guest.exec_with(&argv, LOOK.as_bytes(), LOOK_DEADLINE)?;
        ensure!(output.success(), "cannot look at the guest: {}", output.tail());
        let value: Value = serde_json::from_str(&output.stdout)?;
        let object = |key: &str| value[key].as_object().context("an object");
        let unit = |(name, unit): (&String, &Value)| {
            let up = matches!(text(&unit["ActiveState"]), "active" | "reloading");
            (name.clone(), (up, text(&unit["MainPID"]).to_owned()))
        };
        let names = |(path, list): (&String, &Value)| {
            let list = list.as_array().into_iter().flatten();
            (path.clone(), list.map(|name| text(name).to_owned()).collect())
        };
        Ok(Self {
            units: object("units")?.iter().map(unit).collect(),
            ids: object("ids")?
                .iter()
                .map(|(path, inode)| (path.clone(), inode.as_u64().unwrap_or(0)))
                .collect(),
            holders: object("holders")?.iter().map(names).collect(),
        })
    }

    /// Everybody who holds the file at `path`.
    pub(super) fn holders(&self, path: &str) -> impl Iterator<Item = &str> {
        self.holders.get(path).into_iter().flatten().map(String::as_str)
    }

    /// Everybody who holds one of the files, with the file.
    pub(super) fn all_holders(&self) -> impl Iterator<Item = (&str, &str)> {
        self.holders
            .iter()
            .flat_map(|(path, units)| units.iter().map(move |unit| (path.as_str(), unit.as_str())))
    }

    /// The units that are active.
    pub(super) fn up(&self) -> impl Iterator<Item = &str> {
        self.units.iter().filter(|(_, (up, _))| *up).map(|(name, _)| name.as_str())
    }

    /// The main process of an active unit.
    pub(super) fn main_pid(&self, unit: &str) -> Option<&str> {
        let (up, pid) = self.units.get(unit)?;
        (*up && pid != "0" && !pid.is_empty()).then_some(pid)
    }
}

/// Expects that `probe` answers `wanted` before long.
pub(super) fn answers(guest: &dyn Guest, probe: &Probe, wanted: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let output = guest.exec(&["bash", "-c", probe.script])?;
        let answer = output.stdout.trim();
        if answer == wanted {
            return Ok(());
        }
        ensure!(
            started.elapsed() < PROBE_DEADLINE,
            "`{}` answers {answer:?}, not {wanted:?} {}",
            probe.script,
            output.stderr.trim()
        );
        std::thread::sleep(POLL);
    }
}
