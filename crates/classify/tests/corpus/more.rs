//! More cases of the same kind, over other services and other kinds of files than the catalogue
//! has, judged by declarations and rules alone unless a case says what was seen.
//!
//! `more.units` has the units. In `more.tsv` a case names its files, ` ; ` between them: a path
//! with `+` (added), `-` (removed) or `=` (metadata only) before it, and after it
//! `@UNIT,...` (who holds the replaced file), `->TARGET` (the link leads there), `<-PATH` (it led
//! there), `!rights` (set-ID bits or capabilities change), `~sl:UNIT` (seen to be read at start,
//! at reload, `r` meanwhile) and `<<base>> <<target>>` (contents, `\n` for a line's end). What is
//! expected is all that the plan does; `check X` and `no check` are about validators.

use std::collections::{BTreeMap, BTreeSet};

use vireo_classify::{
    ActiveState, ChangedFile, Facts, FileId, Host, ManagerAction, Owner, Phase, Plan, Planner,
    Policy, Process, ReadMap, Reboot, Unit, UnitFacts, declarations_of,
};
use vireo_model::ChangeKind;

use crate::lab::{KERNEL, path};

const UNITS: &str = include_str!("more.units");
const CASES: &str = include_str!("more.tsv");

struct Case {
    id: &'static str,
    files: &'static str,
    class: &'static str,
    expected: &'static str,
}

fn cases() -> Vec<Case> {
    let case = |line: &'static str| {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields.len(), 8, "{line:?}");
        Case { id: fields[0], files: fields[2], class: fields[3], expected: fields[4] }
    };
    CASES.lines().skip(1).filter(|line| !line.is_empty()).map(case).collect()
}

fn unit(head: &str, file: &str) -> UnitFacts {
    let mut words = head.split_whitespace();
    let name = words.next().expect("a name");
    let id = Unit::new(name);
    let template = id.instance().map(|_| format!("{}@.{}", id.stem(), id.kind()));
    let fragment = format!("/usr/lib/systemd/system/{}", template.as_deref().unwrap_or(name));
    let found = declarations_of(&id, [file.as_bytes()]);
    let oneshot = file.contains("Type=oneshot");
    let mut unit = UnitFacts {
        can_reload: file.contains("\nExecReload="),
        files: vec![path(&fragment)],
        programs: found.programs,
        declared: found.declared.into_iter().collect(),
        arguments: found.arguments,
        main_pid: u32::from(!oneshot),
        ..UnitFacts::running(name)
    };
    if oneshot {
        (unit.service_type, unit.sub) = ("oneshot".to_owned(), "exited".to_owned());
    }
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("stopped", _) => unit.active = ActiveState::Inactive,
            ("masked", _) => {
                unit.masked = true;
                unit.files = vec![path(&format!("/etc/systemd/system/{name}"))];
                unit.shadowed = vec![path(&fragment)];
            }
            ("refuse-stop", _) => unit.refuse_manual_stop = true,
            ("alias", other) => drop(unit.aliases.insert(Unit::new(other))),
            ("triggers", other) => unit.triggers.push(Unit::new(other)),
            ("triggered-by", other) => unit.triggered_by.push(Unit::new(other)),
            ("user", user) => unit.user = user.to_owned(),
            ("source", from) => unit.source = Some(path(from)),
            ("file", at) => unit.files[0] = path(at),
            ("drop-in", at) => unit.files.push(path(at)),
            ("shadowed", at) => unit.shadowed.push(path(at)),
            other => panic!("{other:?} of {name}"),
        }
    }
    unit
}

fn facts() -> Facts {
    let facts = Facts { kernel_release: KERNEL.to_owned(), ..Facts::new() };
    let blocks = UNITS.split("## ").skip(1);
    let blocks = blocks.map(|block| block.split_once('\n').unwrap_or((block, "")));
    blocks.map(|(head, file)| unit(head, file)).fold(facts, Facts::with_unit)
}

fn owner_of(word: &str) -> Owner {
    match word {
        "1" => Owner::Manager,
        "nobody" => Owner::Nobody,
        word if word.starts_with("session-") => Owner::Session(Unit::new(word)),
        word if word.starts_with("docker-") || word.starts_with("libpod-") => {
            Owner::Foreign(word.to_owned())
        }
        "user@1000.service" => {
            Owner::UserUnit { manager: Unit::new(word), unit: Unit::new("tmux.service") }
        }
        unit => Owner::Unit(Unit::new(unit)),
    }
}

/// What a case changes, and what is known about it.
struct Scene {
    facts: Facts,
    reads: ReadMap,
    changes: Vec<ChangedFile>,
}

impl Scene {
    fn of(case: &Case) -> Self {
        let mut scene = Self { facts: facts(), reads: ReadMap::new(), changes: Vec::new() };
        for (at, file) in case.files.split(" ; ").enumerate() {
            scene.add(FileId { dev: 0x801, ino: at as u64 + 100 }, file);
        }
        scene
    }

    fn add(&mut self, id: FileId, text: &str) {
        let (words, contents) = match text.split_once(" <<") {
            Some((words, contents)) => (words, Some(contents)),
            None => (text, None),
        };
        let mut words = words.split_whitespace();
        let first = words.next().expect("a path");
        let (kind, place) = match first.split_at(1) {
            ("+", rest) => (ChangeKind::Added, rest),
            ("-", rest) => (ChangeKind::Removed, rest),
            ("=", rest) => (ChangeKind::Metadata, rest),
            _ => (ChangeKind::Modified, first),
        };
        let mut change = ChangedFile::new(path(place), kind);
        for word in words {
            if let Some(holders) = word.strip_prefix('@') {
                change.replaced = Some(id);
                for (at, holder) in holders.split(',').enumerate() {
                    let (pid, owner) = (id.ino as u32 * 10 + at as u32, owner_of(holder));
                    let pid = if owner == Owner::Manager { 1 } else { pid };
                    let holds = BTreeSet::from([id]);
                    self.facts.processes.push(Process { pid, owner, holds });
                }
            } else if let Some(target) = word.strip_prefix("->") {
                change.details.links_to = Some(target.as_bytes().to_vec());
            } else if let Some(target) = word.strip_prefix("<-") {
                change.details.led_to = Some(path(target));
            } else if let Some((phases, unit)) =
                word.strip_prefix('~').and_then(|word| word.split_once(':'))
            {
                self.saw(&change, phases, &Unit::new(unit));
            } else {
                assert_eq!(word, "!rights");
                change.privileges = true;
            }
        }
        if let Some(contents) = contents {
            let contents = contents.replace("\\n", "\n");
            let contents = contents.strip_suffix(">>").expect("closing brackets");
            let (before, after) = contents.split_once(">> <<").expect("two contents");
            let before = (kind != ChangeKind::Added).then_some(before.as_bytes());
            let after = (kind != ChangeKind::Removed).then_some(after.as_bytes());
            change = change.with_contents(before, after);
        }
        self.changes.push(change);
    }

    fn saw(&mut self, change: &ChangedFile, phases: &str, unit: &Unit) {
        self.reads.watched(unit, Phase::Start);
        for phase in phases.chars() {
            let phase = match phase {
                's' => Phase::Start,
                'l' => Phase::Reload,
                _ => Phase::Run,
            };
            self.reads.watched(unit, phase);
            self.reads.add_file(&change.path, unit, phase);
        }
    }

    fn plan(&self, policy: &Policy) -> Plan {
        let host = Host {
            manager_version: Some(252),
            loaded_modules: Some(BTreeMap::from([("zfs".to_owned(), 1)])),
            time_zone: Some("/usr/share/zoneinfo/Europe/Berlin".to_owned()),
            present: Some(policy.paths_wanted().into_iter().collect()),
        };
        let planner = Planner::new(policy).with_host(&host).with_reads(&self.reads);
        planner.plan(&self.changes, &self.facts)
    }
}

/// All that a plan does, as the cases write it.
fn done_by(plan: &Plan) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    match plan.system.reboot {
        Reboot::None => {}
        Reboot::Soft => drop(words.insert("soft-reboot".to_owned())),
        Reboot::Full => drop(words.insert("reboot".to_owned())),
    }
    match plan.system.manager {
        ManagerAction::None => {}
        ManagerAction::Reload => drop(words.insert("daemon-reload".to_owned())),
        ManagerAction::Reexec => drop(words.insert("daemon-reexec".to_owned())),
    }
    let managers = plan.system.user_managers.iter();
    words.extend(managers.map(|manager| format!("daemon-reload of {}", manager.unit)));
    words.extend(plan.system.tools.iter().map(|run| format!("run {}", run.command.join(" "))));
    words.extend(plan.system.dead_man.as_ref().map(|_| "guard".to_owned()));
    words.extend(plan.units.iter().map(|unit| format!("{} {}", unit.action.as_str(), unit.unit)));
    words.extend((!plan.unclaimed.is_empty()).then(|| "unclear".to_owned()));
    words.extend((!plan.notes.is_empty()).then(|| "note".to_owned()));
    words
}

fn judge(case: &Case, scene: &Scene, plan: &Plan) -> Result<(), String> {
    let clauses = case.expected.split("; ").filter(|clause| *clause != "none");
    let (about_checks, wanted): (Vec<&str>, Vec<&str>) =
        clauses.partition(|clause| clause.starts_with("check ") || *clause == "no check");
    let wanted: BTreeSet<String> = wanted.into_iter().map(str::to_owned).collect();
    let found = done_by(plan);
    if found != wanted {
        return Err(format!("found {found:?}, expected {wanted:?}"));
    }
    for clause in about_checks {
        let runs =
            |word: &str| plan.checks.iter().any(|check| check.command.join(" ").contains(word));
        let holds = match clause.strip_prefix("check ") {
            Some(word) => runs(word),
            None => plan.checks.is_empty(),
        };
        if !holds {
            return Err(format!("{clause}: found {:?}", plan.checks));
        }
    }
    let class = scene.changes[0].class.to_string();
    if class == case.class {
        Ok(())
    } else {
        Err(format!("class {class}, expected {}", case.class))
    }
}

#[test]
fn every_further_case_gets_its_plan() {
    let policy = Policy::default();
    let cases = cases();
    let ids: BTreeSet<&str> = cases.iter().map(|case| case.id).collect();
    assert_eq!(ids.len(), cases.len(), "each case has a name of its own");
    let mut wrong = Vec::new();
    for case in &cases {
        let scene = Scene::of(case);
        let plan = scene.plan(&policy);
        if let Err(why) = judge(case, &scene, &plan) {
            wrong.push(format!("{}: {why}\n{plan}", case.id));
        }
    }
    println!("{} of {} cases right", cases.len() - wrong.len(), cases.len());
    assert!(wrong.is_empty(), "{} cases are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Whatever a case changes, what must never be restarted unasked is not.
#[test]
fn no_case_restarts_what_must_not_be() {
    const NEVER: &[&str] = &[
        "dbus.service",
        "systemd-logind.service",
        "systemd-networkd.service",
        "NetworkManager.service",
        "networking.service",
        "getty@tty1.service",
        "gdm.service",
        "user@1000.service",
        "docker.service",
        "containerd.service",
        "libvirtd.service",
        "kubelet.service",
        "web.service",
        "wg-quick@wg0.service",
        "openvpn@office.service",
        "openvpn-server@site.service",
        "nftables.service",
        "auditd.service",
    ];
    let policy = Policy::default();
    for case in cases() {
        let plan = Scene::of(&case).plan(&policy);
        for unit in plan.units.iter().filter(|unit| unit.action.as_str() == "restart") {
            assert!(!NEVER.contains(&unit.unit.as_str()), "{}: {}", case.id, unit.unit);
        }
    }
}
