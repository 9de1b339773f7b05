//! The receipt: what an update did, as people read it and as `vireo.receipt/1`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use vireo_classify::{Action, Plan, Unit};
use vireo_model::Digest;
use vireo_wire::api::ReceiptPost;
use vireo_wire::limits::MAX_RECEIPT_LEN;

use crate::checks::{CheckReport, CheckResult};
use crate::services::Job;

/// Bytes of a report beside its receipt, at most: a digest and one word.
const ENVELOPE_LEN: usize = 256;

/// What one update did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// `vireo.receipt/1`.
    pub schema: String,
    /// Digest of the tree that was there.
    pub base: Digest,
    /// Digest of the tree that is there.
    pub target: Digest,
    /// Number of the version in the repository, if known.
    pub version: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether an earlier attempt was interrupted and this one went on.
    pub resumed: bool,
    /// Number by which it can be undone.
    #[serde(default)]
    pub transaction: Option<u64>,
    /// Numbers of the transactions that it took back; none for an update.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undone: Vec<u64>,
    /// What was found wrong after the update, which is why it was undone by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undone_because: Vec<String>,
    /// What was to be done.
    pub plan: Plan,
    /// The checks of new configuration before the commit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckReport>,
    /// What was done, in order.
    pub actions: Vec<ActionReport>,
    /// Where units needed something else than was planned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deviations: Vec<Deviation>,
    /// What still waits, from what was seen at the end.
    pub pending: Vec<Pending>,
    /// Units that ran before and have failed since, or are down because others were restarted.
    pub failed_units: Vec<Unit>,
    /// The steps of the update with their times, in order.
    pub steps: Vec<Step>,
    /// Time of all steps, in seconds.
    pub seconds: f64,
}

/// How an update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The machine had it already.
    Unchanged,
    /// The files are there and in effect, and that is proven.
    Done,
    /// The files are there; something waits to take effect.
    Pending,
    /// The files are there; an action failed or a unit has failed since.
    Failed,
    /// Something was ill afterwards, or nobody confirmed: the files are the base's again.
    Undone,
}

/// One action and how it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionReport {
    /// What was acted upon: a unit, or `system`.
    pub subject: String,
    /// What was done: `reload`, `restart`, `daemon-reload`, a command.
    pub action: String,
    /// How it went.
    pub result: ActionResult,
    /// How long it took, with the other actions of the same kind.
    pub seconds: f64,
    /// Why it failed, or what it did not do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A unit to which something else was done than was planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deviation {
    /// The unit.
    pub unit: String,
    /// What was planned for it; none if nothing was.
    pub planned: Option<String>,
    /// What was done to it last; none if nothing was.
    pub performed: Option<String>,
}

/// How an action went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActionResult {
    /// It is in effect, and that is proven.
    Done,
    /// Its job ended well but the unit still held a replaced file: a restart followed.
    Escalated,
    /// Its job ended well but there is no proof.
    Unproven,
    /// It failed.
    Failed,
    /// It is left to the very end: the agent itself.
    Later,
}

/// Something that waits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pending {
    /// A unit, a session, a container, or `system`.
    pub subject: String,
    /// What it needs.
    pub needs: String,
    /// Why it was not done.
    pub reason: String,
    /// The unit's main process: as long as that one runs, it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// One step of an update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its name: `stage`, `plan`, `commit`, `activate`.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

impl Receipt {
    /// The schema's name.
    pub const SCHEMA: &'static str = "vireo.receipt/1";

    /// The receipt of an update that the machine had already.
    #[must_use]
    pub fn unchanged(tree: Digest, version: Option<u64>) -> Self {
        Self {
            schema: Self::SCHEMA.to_owned(),
            base: tree,
            target: tree,
            version,
            outcome: Outcome::Unchanged,
            resumed: false,
            transaction: None,
            undone: Vec::new(),
            undone_because: Vec::new(),
            checks: Vec::new(),
            plan: Plan::empty(),
            actions: Vec::new(),
            deviations: Vec::new(),
            pending: Vec::new(),
            failed_units: Vec::new(),
            steps: Vec::new(),
            seconds: 0.0,
        }
    }

    /// The receipt as the repository is to get it: where it would be too long, without the plan's
    /// files, if need be without the plan, and without what was checked and done; a note says so. The
    /// machine keeps all of it.
    pub(crate) fn report(&self) -> Result<ReceiptPost, serde_json::Error> {
        if self.fits()? {
            return self.post();
        }
        let mut short = self.clone();
        let left_out = format!(
            "{} files are left out, they would be too long to report; \
             `vireo-agent status --json` on the machine lists them",
            short.plan.files.len()
        );
        short.plan.files.clear();
        short.plan.notes.push(left_out.clone());
        if !short.fits()? {
            let notes = vec![left_out, "and so is the rest of the plan".to_owned()];
            short.plan = Plan { notes, ..Plan::empty() };
        }
        if !short.fits()? {
            let Self { plan, checks, actions, deviations, .. } = &mut short;
            plan.notes.push(format!(
                "and so are {} checks, {} actions and {} deviations",
                checks.len(),
                actions.len(),
                deviations.len()
            ));
            (*checks, *actions, *deviations) = (Vec::new(), Vec::new(), Vec::new());
        }
        short.post()
    }

    /// Whether it is short enough to be reported as it is. Nothing is kept in memory for that.
    fn fits(&self) -> Result<bool, serde_json::Error> {
        let mut counted = Counted(ENVELOPE_LEN);
        serde_json::to_writer(&mut counted, self)?;
        Ok(counted.0 <= MAX_RECEIPT_LEN)
    }

    fn post(&self) -> Result<ReceiptPost, serde_json::Error> {
        let outcome = self.outcome.as_str().to_owned();
        Ok(ReceiptPost { tree: self.target, outcome, receipt: serde_json::to_value(self)? })
    }

    /// Where what was done to units is not what the plan says of them.
    #[must_use]
    pub(crate) fn compare(&self) -> Vec<Deviation> {
        let planned = self.planned();
        let units = self.plan.units.iter().map(|unit| unit.unit.as_str());
        let mut performed: BTreeMap<&str, &str> = BTreeMap::new();
        for action in &self.actions {
            // Tools and managers are no units.
            if Job::ALL.iter().any(|job| job.as_str() == action.action) {
                performed.insert(&action.subject, &action.action);
            }
        }
        let subjects: BTreeSet<&str> = units.chain(performed.keys().copied()).collect();
        let differing = subjects.into_iter().filter(|it| planned.get(it) != performed.get(it));
        let owned = |verb: Option<&&str>| verb.map(|verb| (*verb).to_owned());
        let deviation = |unit: &str| Deviation {
            unit: unit.to_owned(),
            planned: owned(planned.get(unit)),
            performed: owned(performed.get(unit)),
        };
        differing.map(deviation).collect()
    }

    /// What the plan has done to units.
    fn planned(&self) -> BTreeMap<&str, &str> {
        let acted =
            self.plan.units.iter().filter(|it| !matches!(it.action, Action::Hold | Action::Refuse));
        acted.map(|unit| (unit.unit.as_str(), unit.action.as_str())).collect()
    }

    /// The outcome that actions and what is left add up to.
    #[must_use]
    pub(crate) fn judge(&self) -> Outcome {
        let failed = |action: &ActionReport| action.result == ActionResult::Failed;
        if !self.undone_because.is_empty() && self.failed_units.is_empty() {
            Outcome::Undone
        } else if self.actions.iter().any(failed) || !self.failed_units.is_empty() {
            Outcome::Failed
        } else if self.pending.is_empty() {
            Outcome::Done
        } else {
            Outcome::Pending
        }
    }
}

/// Counts the bytes that are written to it.
struct Counted(usize);

impl std::io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Outcome {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Done => "done",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Undone => "undone",
        }
    }
}

impl ActionResult {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Escalated => "escalated",
            Self::Unproven => "unproven",
            Self::Failed => "failed",
            Self::Later => "later",
        }
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version.map_or(String::new(), |number| format!("version {number}, "));
        let resumed = if self.resumed { ", resumed" } else { "" };
        let (outcome, target) = (self.outcome.as_str(), self.target.short());
        writeln!(f, "{outcome:<9} {version}tree {target}, {:.1} s{resumed}", self.seconds)?;
        for reason in &self.undone_because {
            writeln!(f, "because   {reason}")?;
        }
        for check in self.checks.iter().filter(|check| check.result != CheckResult::Passed) {
            let (result, command) = (check.result.as_str(), check.command.join(" "));
            writeln!(f, "{result:<9} check {command}: {}", check.detail)?;
        }
        for action in &self.actions {
            let ActionReport { subject, action: verb, result, seconds, detail } = action;
            let detail = detail.as_ref().map_or(String::new(), |detail| format!(": {detail}"));
            writeln!(f, "{:<9} {verb} {subject} ({seconds:.1} s){detail}", result.as_str())?;
        }
        let planned = self.planned().len();
        if planned > 0 && self.undone_because.is_empty() {
            let other = self.deviations.iter().filter(|it| it.planned.is_some()).count();
            let as_planned = planned - other.min(planned);
            writeln!(f, "planned   {planned} units, {as_planned} got what was planned")?;
        }
        for Deviation { unit, planned, performed } in &self.deviations {
            let word = |verb: &Option<String>| verb.clone().unwrap_or_else(|| "nothing".to_owned());
            writeln!(f, "deviates  {unit}: planned {}, done {}", word(planned), word(performed))?;
        }
        for unit in &self.failed_units {
            writeln!(f, "failed    {unit} ran before and does not run now; its log says more")?;
        }
        for Pending { subject, needs, reason, .. } in &self.pending {
            writeln!(f, "pending   {subject} needs {needs}: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vireo_classify::{Class, FileEntry, UnitPlan};

    use super::*;

    #[test]
    fn a_receipt_reads_back_and_says_what_was_done() {
        let tree = Digest::from_bytes([0x22; 32]);
        let mut receipt = Receipt::unchanged(tree, Some(7));
        receipt.actions.push(ActionReport {
            subject: "nginx.service".to_owned(),
            action: "reload".to_owned(),
            result: ActionResult::Done,
            seconds: 0.04,
            detail: None,
        });
        receipt.pending.push(Pending {
            subject: "dbus.service".to_owned(),
            needs: "restart".to_owned(),
            reason: "every client would lose its connection".to_owned(),
            pid: None,
        });
        receipt.outcome = receipt.judge();
        assert_eq!(
            receipt.to_string(),
            "\
pending   version 7, tree 222222222222, 0.0 s
done      reload nginx.service (0.0 s)
pending   dbus.service needs restart: every client would lose its connection
"
        );
        let json = serde_json::to_string(&receipt).expect("plain data");
        assert!(json.starts_with(r#"{"schema":"vireo.receipt/1","base":"2222"#), "{json}");
        assert_eq!(serde_json::from_str::<Receipt>(&json).expect("it reads back"), receipt);
    }

    #[test]
    fn a_receipt_that_is_too_long_is_reported_without_its_files_or_without_its_plan() {
        let mut receipt = Receipt::unchanged(Digest::of(b""), Some(7));
        let file = |number: usize| FileEntry {
            path: format!("/usr/share/doc/package-{number}/changelog.Debian.gz"),
            change: "modified".to_owned(),
            class: Class::Content,
        };
        receipt.plan.files = (0..20_000).map(file).collect();
        receipt.plan.units = vec![UnitPlan::new(Unit::new("a.service"), Action::Reload)];
        let report = receipt.report().expect("plain data");
        let len = |report: &ReceiptPost| serde_json::to_vec(report).expect("plain data").len();
        assert!(len(&report) <= MAX_RECEIPT_LEN);
        assert_eq!((report.tree, report.outcome.as_str()), (receipt.target, "unchanged"));
        let short: Receipt = serde_json::from_value(report.receipt).expect("a receipt still");
        assert_eq!(short.plan.units, receipt.plan.units);
        assert!(short.plan.files.is_empty());
        assert!(short.plan.notes[0].starts_with("20000 files are left out"), "{short}");
        assert_eq!(receipt.plan.files.len(), 20_000, "the machine keeps them");

        receipt.plan.unclaimed = (0..40_000).map(|n| format!("/etc/some/{n:030}")).collect();
        let report = receipt.report().expect("plain data");
        assert!(len(&report) <= MAX_RECEIPT_LEN);
        let short: Receipt = serde_json::from_value(report.receipt).expect("a receipt still");
        assert_eq!((short.plan.units.len(), short.plan.notes.len()), (0, 2));

        receipt.plan = Plan::empty();
        let whole = receipt.report().expect("plain data").receipt;
        assert_eq!(serde_json::from_value::<Receipt>(whole).expect("a receipt"), receipt);
    }

    #[test]
    fn a_receipt_that_is_too_long_without_its_plan_is_reported_without_what_was_done() {
        let mut receipt = Receipt::unchanged(Digest::of(b""), Some(7));
        let action = |number: usize| ActionReport {
            subject: format!("a-service-with-a-long-name@{number:08}.service"),
            action: Job::Restart.as_str().to_owned(),
            result: ActionResult::Done,
            seconds: 0.0,
            detail: None,
        };
        receipt.actions = (0..10_000).map(action).collect();
        receipt.failed_units = vec![Unit::new("a.service")];
        let report = receipt.report().expect("plain data");
        assert!(serde_json::to_vec(&report).expect("plain data").len() <= MAX_RECEIPT_LEN);
        let short: Receipt = serde_json::from_value(report.receipt).expect("a receipt still");
        assert!(short.actions.is_empty());
        assert_eq!(short.failed_units, receipt.failed_units);
        let note = short.plan.notes.last().expect("a note");
        assert_eq!(note, "and so are 0 checks, 10000 actions and 0 deviations");
    }

    #[test]
    fn what_was_done_is_compared_with_what_was_planned() {
        let unit = |name: &str, action| UnitPlan::new(Unit::new(name), action);
        let action = |subject: &str, action: &str, result| ActionReport {
            subject: subject.to_owned(),
            action: action.to_owned(),
            result,
            seconds: 0.0,
            detail: None,
        };
        let mut receipt = Receipt::unchanged(Digest::of(b""), None);
        receipt.plan.units = vec![
            unit("a.service", Action::Reload),
            unit("b.service", Action::Reload),
            unit("c.service", Action::Hold),
            unit("d.service", Action::Restart),
        ];
        receipt.actions = vec![
            action("system", "daemon-reload", ActionResult::Done),
            action("a.service", "reload", ActionResult::Done),
            action("b.service", "reload", ActionResult::Escalated),
            action("b.service", "restart", ActionResult::Done),
        ];
        receipt.deviations = receipt.compare();
        let text = receipt.to_string();
        assert!(text.contains("planned   3 units, 1 got what was planned\n"), "{text}");
        assert!(text.contains("deviates  b.service: planned reload, done restart\n"), "{text}");
        assert!(text.contains("deviates  d.service: planned restart, done nothing\n"), "{text}");
        assert_eq!(receipt.deviations.len(), 2, "{text}");
    }

    #[test]
    fn a_failure_weighs_more_than_what_waits() {
        let mut receipt = Receipt::unchanged(Digest::of(b""), None);
        assert_eq!(receipt.judge(), Outcome::Done);
        receipt.failed_units.push(Unit::new("a.service"));
        assert_eq!(receipt.judge(), Outcome::Failed);
    }
}
