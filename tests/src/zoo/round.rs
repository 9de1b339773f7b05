//! One update of some cases: applied, judged from outside, taken back.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_testkit::{Guest, Nspawn, Output};

use super::case::{Case, Kind};
use super::machine::{Machine, answers};
use super::plan::{list, operations, parse, reasons, text};
use super::score::Score;
use super::{APPLY, APPLY_DEADLINE, Ground, run_script};
use crate::shell;

/// What must not restart unasked, and so keeps what it holds.
const HELD: [&str; 3] = ["dbus.service", "systemd-logind.service", "user@1000.service"];

/// What executes its program anew when it reloads.
const REEXECS: [&str; 2] = ["ssh.service", "php8.2-fpm.service"];

/// Where the test's own commands are in the guest.
const OWN: &str = "init.scope";

/// The agent's exit code for a refused update.
const REFUSED: i32 = 5;

/// Its exit codes for an update that is there: in effect, not quite, waiting for something, taken back.
const APPLIED: [i32; 4] = [0, 1, 3, 4];

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The case.
    pub id: &'static str,
    /// What is wrong about it.
    pub errors: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.errors.is_empty() { "right" } else { "WRONG" };
        write!(f, "{word} {}", self.id)?;
        self.errors.iter().try_for_each(|error| write!(f, "\n      {error}"))
    }
}

/// A guest that updates are tried on, one after the other, and the score so far.
#[derive(Debug)]
pub struct Zoo<'a> {
    ground: &'a Ground,
    guest: Nspawn<'a>,
    /// What has been counted.
    pub score: Score,
}

/// What an attempt to apply an update left.
struct Applied {
    output: Output,
    receipt: Option<Value>,
    before: Machine,
    after: Machine,
}

impl<'a> Zoo<'a> {
    /// A zoo in a guest that runs.
    ///
    /// # Errors
    ///
    /// The guest cannot be used.
    pub fn new(ground: &'a Ground, guest: Nspawn<'a>) -> anyhow::Result<Self> {
        Ok(Self { ground, guest, score: Score::default() })
    }

    /// Applies an update with these cases' changes, judges each, and takes the update back.
    ///
    /// # Errors
    ///
    /// The guest cannot be used any more, or is not what it was.
    pub fn run(&mut self, round: &[Case]) -> anyhow::Result<Vec<Verdict>> {
        let guest = &self.guest;
        let broken = round[0].kind == Kind::Broken;
        for case in round {
            run_script(guest, case.prepare).with_context(|| case.id)?;
        }
        let mut verdicts: Vec<Verdict> =
            round.iter().map(|case| Verdict { id: case.id, errors: Vec::new() }).collect();
        let mut note = |at: usize, result: anyhow::Result<()>| {
            verdicts[at].errors.extend(result.err().map(|error| format!("{error:#}")));
        };
        for (at, case) in round.iter().enumerate() {
            note(at, self.probe(case, |probe| probe.base));
        }
        let applied = self.apply(round, !broken)?;
        let needed: Vec<BTreeSet<String>> = round
            .iter()
            .map(|case| self.needed(case, &applied.before))
            .collect::<Result<_, _>>()?;
        let asked = match (&applied.receipt, applied.output.code) {
            (Some(_), _) if broken && !applied.is_there() => BTreeSet::from(["undone".to_owned()]),
            (Some(receipt), _) => {
                let mut asked = operations(receipt);
                // The commands by which the test works in the guest are nobody's service.
                asked.remove(&format!("hold {OWN}"));
                asked
            }
            (None, REFUSED) => BTreeSet::from(["refuse".to_owned()]),
            (None, _) => BTreeSet::new(),
        };
        for (at, case) in round.iter().enumerate() {
            note(at, self.is_asked_for(case, &needed[at], &asked, &applied));
            note(at, self.probe(case, |probe| Some(probe.target)));
        }
        note(0, applied.has_come_about(broken));
        let told = applied.output.tail();
        for missing in round.iter().flat_map(|case| case.says).filter(|it| !told.contains(**it)) {
            note(0, Err(anyhow::anyhow!("it does not say {missing:?} but {told}")));
        }
        let all: BTreeSet<String> = needed.iter().flatten().cloned().collect();
        let along: BTreeSet<&str> = round.iter().flat_map(|case| case.along).copied().collect();
        for (unit, problem) in applied.side_effects(&all, &along, round[0].kind) {
            let concerns =
                |wants: &BTreeSet<String>| wants.iter().any(|want| unit_of(want) == unit);
            let at = needed.iter().position(concerns).unwrap_or(0);
            note(at, Err(anyhow::anyhow!("{unit}: {problem}")));
        }
        for problem in self.unneeded(round, &all, &asked, &applied) {
            note(problem.0, Err(anyhow::anyhow!("not needed: {}", problem.1)));
        }
        self.count(round, &needed, &asked)?;
        if applied.is_there() {
            let back = self.take_back(round, &applied.before);
            verdicts[0].errors.extend(back.err().map(|error| format!("{error:#}")));
        }
        Ok(verdicts)
    }

    /// The operations that a case needs, those of the holders of its files included.
    fn needed(&self, case: &Case, before: &Machine) -> anyhow::Result<BTreeSet<String>> {
        let mut needed = case.wants.clone();
        if !case.for_holders {
            return Ok(needed);
        }
        for path in case.paths() {
            for holder in before.holders(&self.ground.real_path(path)?) {
                needed.extend(match holder {
                    OWN => None,
                    "1" => Some("daemon-reexec".to_owned()),
                    unit if HELD.contains(&unit) => Some(format!("hold {unit}")),
                    unit if REEXECS.contains(&unit) => Some(format!("reload {unit}")),
                    unit => match unit.strip_suffix('!') {
                        Some(manager) => Some(format!("daemon-reexec in {manager}")),
                        None => Some(format!("restart {unit}")),
                    },
                });
            }
        }
        Ok(needed)
    }

    fn apply(&self, round: &[Case], rivals: bool) -> anyhow::Result<Applied> {
        self.ground.deliver(&self.guest, round)?;
        let mut paths = Vec::new();
        for path in round.iter().flat_map(Case::paths) {
            paths.push(self.ground.real_path(path)?);
        }
        let before = Machine::look(&self.guest, paths.iter().map(String::as_str))?;
        let rivals = if rivals { "1" } else { "0" };
        let key = self.ground.public_key();
        let argv = ["bash", "-s", "/run/update.vireo", &key, rivals];
        let output = self.guest.exec_with(&argv, APPLY.as_bytes(), APPLY_DEADLINE)?;
        let receipt = APPLIED.contains(&output.code).then(|| parse(&output.stdout));
        let receipt = receipt.transpose().with_context(|| output.tail())?;
        let after = before.again(&self.guest)?;
        Ok(Applied { output, receipt, before, after })
    }

    fn probe(
        &self,
        case: &Case,
        wanted: impl Fn(&super::Probe) -> Option<&'static str>,
    ) -> anyhow::Result<()> {
        for probe in &case.probes {
            if let Some(wanted) = wanted(probe) {
                answers(&self.guest, probe, wanted)?;
            }
        }
        Ok(())
    }

    /// Expects that each operation that the case needs was asked for, for its files.
    fn is_asked_for(
        &self,
        case: &Case,
        needed: &BTreeSet<String>,
        asked: &BTreeSet<String>,
        applied: &Applied,
    ) -> anyhow::Result<()> {
        let missing: Vec<&String> = needed.difference(asked).collect();
        let others =
            asked.iter().filter(|other| missing.iter().any(|m| unit_of(m) == unit_of(other)));
        let others: Vec<&String> = others.collect();
        ensure!(missing.is_empty(), "missing: {missing:?}, instead: {others:?}");
        let Some(receipt) = applied.receipt.as_ref().filter(|_| case.kind != Kind::Broken) else {
            return Ok(());
        };
        let paths: Vec<String> =
            case.paths().map(|path| self.ground.real_path(path)).collect::<Result<_, _>>()?;
        for operation in needed {
            let reasons = reasons(receipt, operation);
            let mine = paths.iter().any(|path| reasons.contains(path.as_str()));
            ensure!(mine, "{operation} is for {reasons:?} alone");
        }
        Ok(())
    }

    /// The operations that no case needs, each with the case whose file it is for.
    fn unneeded(
        &self,
        round: &[Case],
        needed: &BTreeSet<String>,
        asked: &BTreeSet<String>,
        applied: &Applied,
    ) -> Vec<(usize, String)> {
        let Some(receipt) = &applied.receipt else { return Vec::new() };
        let for_case = |operation: &String| {
            let reasons = reasons(receipt, operation);
            let mine = |case: &Case| {
                case.paths().any(|path| {
                    self.ground.real_path(path).is_ok_and(|path| reasons.contains(path.as_str()))
                })
            };
            let at = round.iter().position(mine).unwrap_or(0);
            (at, format!("{operation} for {:?}", reasons.iter().take(3).collect::<Vec<_>>()))
        };
        asked.difference(needed).map(for_case).collect()
    }

    fn count(
        &mut self,
        round: &[Case],
        needed: &[BTreeSet<String>],
        asked: &BTreeSet<String>,
    ) -> anyhow::Result<()> {
        let all: BTreeSet<String> = needed.iter().flatten().cloned().collect();
        let row = self.score.0.entry(round[0].kind).or_default();
        row.cases += round.len();
        row.needed += all.len();
        row.count(0, &all, asked);
        if round[0].kind == Kind::Broken || asked.is_empty() && !all.is_empty() {
            return Ok(()); // There was no moment to ask the others in.
        }
        // Restarts come last: if there was none yet, the others saw what the agent saw.
        let early = shell(&self.guest, "cd /run; diff rival.pids.before rival.pids.after || true")?;
        let restarts = asked.iter().filter_map(|operation| operation.strip_prefix("restart "));
        let late: Vec<&str> = restarts.filter(|unit| early.contains(&format!("={unit}"))).collect();
        ensure!(late.is_empty(), "{}: the others were asked too late: {late:?}", names(round));
        for (tool, name) in [(1, "needrestart"), (2, "checkrestart")] {
            let said = |when: &str| -> anyhow::Result<BTreeSet<String>> {
                let text = shell(&self.guest, &format!("cat /run/rival.{name}.{when} || true"))?;
                Ok(text.lines().map(str::to_owned).collect())
            };
            let (before, after) = (said("before")?, said("after")?);
            // They name units; any operation on the right unit counts. What they said before
            // counts only where it is right.
            let named: BTreeSet<String> = after
                .iter()
                .flat_map(|unit| {
                    let of_unit: BTreeSet<String> =
                        all.iter().filter(|need| unit_of(need) == unit).cloned().collect();
                    let none = of_unit.is_empty() && !before.contains(unit);
                    of_unit.into_iter().chain(none.then(|| format!("restart {unit}")))
                })
                .collect();
            row.count(tool, &all, &named);
        }
        Ok(())
    }

    /// Undoes the update and expects the guest as it was.
    fn take_back(&self, round: &[Case], before: &Machine) -> anyhow::Result<()> {
        let undone =
            self.guest.exec_with(&["vireo-agent", "undo", "--json"], &[], APPLY_DEADLINE)?;
        ensure!(APPLIED.contains(&undone.code), "undo: exit {}\n{}", undone.code, undone.tail());
        for case in round {
            self.probe(case, |probe| probe.undone)
                .with_context(|| format!("{} undone", case.id))?;
        }
        for case in round {
            run_script(&self.guest, case.clean).with_context(|| case.id)?;
        }
        let after = Machine::look(&self.guest, [])?;
        let up: BTreeSet<&str> = after.up().collect();
        let gone = |unit: &&str| !up.contains(unit) && !unit.starts_with("vireo-");
        let down: Vec<&str> = before.up().filter(gone).collect();
        ensure!(down.is_empty(), "down after undoing: {down:?}\n{}", undone.stdout);
        Ok(())
    }
}

impl Applied {
    /// Whether the update is there, and was not undone by the agent itself.
    fn is_there(&self) -> bool {
        self.receipt.as_ref().is_some_and(|receipt| text(&receipt["outcome"]) != "undone")
    }

    /// Expects that the update was applied, or refused if its configuration is broken.
    fn has_come_about(&self, broken: bool) -> anyhow::Result<()> {
        let Output { code, .. } = self.output;
        ensure!(
            code == REFUSED && broken || self.receipt.is_some(),
            "exit code {code}: {}",
            self.output.tail()
        );
        let Some(receipt) = self.receipt.as_ref().filter(|_| !broken) else { return Ok(()) };
        let outcome = text(&receipt["outcome"]);
        let well =
            |action: &&Value| matches!(text(&action["result"]), "done" | "escalated" | "later");
        let failed: Vec<&Value> =
            list(&receipt["actions"]).filter(|action| !well(action)).collect();
        ensure!(
            matches!(outcome, "done" | "pending"),
            "outcome {outcome}: {failed:?}, failed units: {}",
            receipt["failed_units"]
        );
        Ok(())
    }

    /// What happened to units beyond what was needed.
    fn side_effects(
        &self,
        needed: &BTreeSet<String>,
        along: &BTreeSet<&str>,
        kind: Kind,
    ) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut note = |unit: &str, problem| problems.push((unit.to_owned(), problem));
        let wants = |verb: &str, unit: &str| needed.contains(&format!("{verb} {unit}"));
        let up: BTreeSet<&str> = self.after.up().collect();
        let own = |unit: &str| unit.starts_with("vireo-");
        for unit in self.before.up().filter(|unit| !wants("stop", unit) && !own(unit)) {
            if !up.contains(unit) {
                note(unit, "is down".to_owned());
                continue;
            }
            let (pid, now) = (self.before.main_pid(unit), self.after.main_pid(unit));
            let renewed = pid != now;
            let to_be = wants("restart", unit) || along.contains(unit);
            if pid.is_some() && renewed != to_be {
                let should = if to_be { "" } else { "not " };
                note(unit, format!("process {pid:?}, now {now:?}; it should {should}be another"));
            }
        }
        for (path, unit) in self.after.all_holders() {
            let held = wants("hold", unit.trim_end_matches('!')) || unit == OWN;
            if !held && kind != Kind::Nothing {
                note(unit, format!("still holds the former {path}"));
            }
        }
        problems
    }
}

/// The unit that an operation is about; process 1 for those of the service manager.
fn unit_of(operation: &str) -> &str {
    match operation {
        "daemon-reexec" => "1",
        "reboot" => operation,
        _ => operation.rsplit(' ').next().unwrap_or_default(),
    }
}

fn names(round: &[Case]) -> String {
    round.iter().map(|case| case.id).collect::<Vec<_>>().join(" ")
}
