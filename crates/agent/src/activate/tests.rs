use vireo_classify::{ChangedFile, Policy, Process, UnitFacts, plan};
use vireo_model::{ChangeKind, ImagePath};

use super::*;
use crate::testing::FakeMachine;

const LIBRARY: FileId = FileId { dev: 1, ino: 7 };

/// nginx can reload, cron cannot, ssh executes itself anew, dbus is held; all hold the library.
fn machine() -> FakeMachine {
    let can_reload = |name| UnitFacts { can_reload: true, ..UnitFacts::running(name) };
    let mut facts = Facts::new()
        .with_unit(can_reload("nginx.service"))
        .with_unit(can_reload("ssh.service"))
        .with_unit(UnitFacts::running("cron.service"))
        .with_unit(UnitFacts::running("dbus.service"))
        .with_unit(UnitFacts::running("vireo-agent.service"));
    for (pid, unit) in
        [(10, "nginx.service"), (11, "ssh.service"), (12, "cron.service"), (13, "dbus.service")]
    {
        facts = facts.with_process(Process::of_unit(pid, unit, [LIBRARY]));
    }
    FakeMachine::new(facts)
}

fn change(path: &str, replaced: Option<FileId>) -> ChangedFile {
    let path = ImagePath::parse(path.as_bytes()).expect("a valid path");
    ChangedFile { replaced, ..ChangedFile::new(path, ChangeKind::Modified) }
}

/// Activates `changes` on `machine`; gives the calls and the outcome in words.
fn run(machine: &FakeMachine, changes: &[ChangedFile]) -> (String, String) {
    let replaced: BTreeSet<FileId> = changes.iter().filter_map(|change| change.replaced).collect();
    let before = machine.facts(&replaced).expect("facts");
    let plan = plan(changes, &before, &Policy::default());
    let patience = Patience { settle_max: Duration::ZERO, poll_interval: Duration::ZERO };
    let done = activate(&plan, &replaced, &before, machine, machine, patience).expect("it runs");
    let mut words: Vec<String> = Vec::new();
    words.extend(
        done.actions.iter().map(|a| format!("{} {} {}", a.result.as_str(), a.action, a.subject)),
    );
    words.extend(done.pending.iter().map(|p| format!("pending {} {}", p.needs, p.subject)));
    words.extend(done.ill.iter().map(|(unit, _)| format!("ill {unit}")));
    words.extend(done.failed_units.iter().map(|unit| format!("lost {unit}")));
    (machine.calls().join("; "), words.join("; "))
}

#[test]
fn the_order_is_tools_manager_reloads_restarts() {
    let machine = machine();
    let changes = [
        change("/etc/tmpfiles.d/a.conf", None),
        change("/etc/systemd/system/cron.service", None),
        change("/etc/nginx/nginx.conf", None),
        change("/etc/hosts", None),
    ];
    let (calls, outcome) = run(&machine, &changes);
    assert_eq!(
        calls,
        "systemd-tmpfiles --create a.conf; daemon-reload; reload nginx.service; restart cron.service"
    );
    assert_eq!(
        outcome,
        "done systemd-tmpfiles --create a.conf system; done daemon-reload system; \
         done reload nginx.service; done restart cron.service"
    );
}

#[test]
fn a_replaced_library_is_gone_from_all_but_the_held() {
    let machine = machine();
    machine.reload_reexecs("ssh.service");
    let (calls, outcome) = run(&machine, &[change("/usr/lib/libz.so.1", Some(LIBRARY))]);
    assert_eq!(calls, "reload ssh.service; restart cron.service nginx.service");
    assert_eq!(
        outcome,
        "done reload ssh.service; done restart cron.service; done restart nginx.service; \
         pending restart dbus.service"
    );
}

#[test]
fn a_reload_without_proof_is_followed_by_one_restart() {
    let machine = machine();
    let (calls, outcome) = run(&machine, &[change("/usr/lib/libz.so.1", Some(LIBRARY))]);
    assert_eq!(
        calls,
        "reload ssh.service; restart cron.service nginx.service; restart ssh.service"
    );
    assert!(outcome.starts_with("escalated reload ssh.service; "), "{outcome}");
    assert!(outcome.contains("done restart ssh.service"), "{outcome}");
}

#[test]
fn what_a_restart_does_not_prove_is_pending() {
    let machine = machine();
    machine.keeps_files("cron.service");
    let (_, outcome) = run(&machine, &[change("/usr/lib/libz.so.1", Some(LIBRARY))]);
    assert!(outcome.contains("unproven restart cron.service"), "{outcome}");
    assert!(outcome.contains("pending restart cron.service"), "{outcome}");
}

#[test]
fn a_failed_reload_is_not_made_a_restart() {
    let machine = machine();
    machine.breaks("nginx.service");
    let (calls, outcome) = run(&machine, &[change("/etc/nginx/nginx.conf", None)]);
    assert_eq!(calls, "reload nginx.service", "a restart could end a service that still works");
    assert_eq!(outcome, "failed reload nginx.service; ill nginx.service");
}

#[test]
fn one_failed_unit_does_not_stop_the_rest() {
    let machine = machine();
    machine.breaks("cron.service");
    let (_, outcome) = run(&machine, &[change("/usr/lib/libz.so.1", Some(LIBRARY))]);
    assert!(
        outcome.contains("failed restart cron.service; done restart nginx.service"),
        "{outcome}"
    );
    assert!(outcome.ends_with("ill cron.service; lost cron.service"), "{outcome}");
}

#[test]
fn the_agent_itself_is_left_to_its_caller() {
    let machine = machine();
    let itself = FileId { dev: 1, ino: 8 };
    machine.hold(14, "vireo-agent.service", itself);
    let (calls, outcome) = run(&machine, &[change("/usr/bin/vireo-agent", Some(itself))]);
    assert_eq!(calls, "");
    assert_eq!(outcome, "later restart vireo-agent.service");
}

#[test]
fn without_a_service_manager_nothing_is_tried() {
    let machine = FakeMachine::new(Facts::default());
    let (calls, outcome) = run(&machine, &[change("/etc/systemd/system/a.service", None)]);
    assert_eq!((calls.as_str(), outcome.as_str()), ("", ""));
}

/// What a plan has to show for a unit before it counts as activated.
fn with_unit(plan: &mut Plan, unit: &str, change: impl FnOnce(&mut UnitPlan)) {
    let unit = plan.units.iter_mut().find(|entry| entry.unit.as_str() == unit);
    change(unit.expect("it is in the plan"));
}

/// The plan for a changed configuration of nginx, activated on `machine`.
fn reload_nginx(machine: &FakeMachine, change_plan: impl FnOnce(&mut UnitPlan)) -> Activation {
    let before = machine.facts(&BTreeSet::new()).expect("facts");
    let changes = [change("/etc/nginx/nginx.conf", None)];
    let mut plan = plan(&changes, &before, &Policy::default());
    with_unit(&mut plan, "nginx.service", change_plan);
    let patience = Patience { settle_max: Duration::ZERO, poll_interval: Duration::ZERO };
    activate(&plan, &BTreeSet::new(), &before, machine, machine, patience).expect("it runs")
}

fn must_read(unit: &mut UnitPlan) {
    unit.reads = vec!["/etc/nginx/nginx.conf".to_owned()];
    unit.proof.push(Proof::Read);
}

#[test]
fn a_reload_that_reads_nothing_is_followed_by_a_restart() {
    let machine = machine();
    let done = reload_nginx(&machine, must_read);
    assert_eq!(machine.calls(), ["reload nginx.service"], "it was read");
    assert_eq!(done.pending, []);
    machine.ignores_reloads("nginx.service");
    let done = reload_nginx(&machine, must_read);
    assert_eq!(machine.calls()[1..], ["reload nginx.service", "restart nginx.service"]);
    assert_eq!(done.actions[0].detail.as_deref(), Some("it has not read /etc/nginx/nginx.conf"));
    assert_eq!(done.actions[1].result, ActionResult::Done);
}

#[test]
fn what_may_only_be_reloaded_waits_instead() {
    let machine = machine();
    machine.ignores_reloads("nginx.service");
    let done = reload_nginx(&machine, |unit| {
        must_read(unit);
        unit.ceiling = None;
    });
    assert_eq!(machine.calls(), ["reload nginx.service"]);
    assert_eq!(done.actions[0].result, ActionResult::Unproven);
    assert_eq!(done.pending[0].subject, "nginx.service");
    assert!(done.ill.is_empty(), "{:?}", done.ill);
}

#[test]
fn a_probe_asks_for_more_or_says_that_a_unit_is_ill() {
    let machine = machine();
    let probe = |on_failure| vireo_classify::Probe {
        command: vec!["ask".to_owned()],
        user: None,
        expect: Some("0".to_owned()),
        on_failure,
    };
    machine.answers("ask", "1");
    let escalate = probe(vireo_classify::ProbeFailure::Escalate);
    let done = reload_nginx(&machine, |unit| unit.probes = vec![escalate.clone()]);
    assert_eq!(machine.calls(), ["reload nginx.service", "restart nginx.service"]);
    assert_eq!(done.actions[1].result, ActionResult::Unproven);
    let fail = probe(vireo_classify::ProbeFailure::Fail);
    let done = reload_nginx(&machine, |unit| unit.probes = vec![fail.clone()]);
    assert_eq!(done.ill.len(), 1, "{:?}", done.ill);
    assert!(done.ill[0].1.contains("prints \"1\" and not \"0\""), "{:?}", done.ill);
    machine.answers("ask", "0");
    let done = reload_nginx(&machine, |unit| unit.probes = vec![fail, escalate]);
    assert!(done.ill.is_empty() && done.pending.is_empty());
}

#[test]
fn a_unit_that_listens_no_more_is_ill_unless_its_configuration_says_where() {
    let machine = machine();
    machine.listens("cron.service", &["tcp 0.0.0.0:80"]);
    let before = machine.facts(&BTreeSet::from([LIBRARY])).expect("facts");
    let plan = plan(&[change("/usr/lib/libz.so.1", Some(LIBRARY))], &before, &Policy::default());
    let listened = machine.sockets(&units_with(&plan, Proof::Sockets));
    assert_eq!(listened.len(), 1, "{listened:?}");
    let replaced = BTreeSet::new();
    let scene = Scene {
        plan: &plan,
        replaced: &replaced,
        before: &before,
        listened,
        system: &machine,
        services: &machine,
    };
    let acted = [(Unit::new("cron.service"), Job::Restart)];
    let facts = machine.facts(&replaced).expect("facts");
    assert_eq!(scene.shortfalls(&facts, &acted, &replaced_names()), BTreeMap::new());
    machine.listens("cron.service", &["tcp 0.0.0.0:8080"]);
    let found = scene.shortfalls(&facts, &acted, &replaced_names());
    let lost = Shortfall::Late("it does not listen on tcp 0.0.0.0:80 any more".to_owned());
    assert_eq!(found.into_values().collect::<Vec<_>>(), [lost]);
}

fn replaced_names() -> BTreeSet<String> {
    BTreeSet::new()
}

#[test]
fn a_unit_that_ends_after_its_job_is_ill() {
    let machine = machine();
    machine.crashes("nginx.service");
    let done = reload_nginx(&machine, |_| {});
    assert_eq!(done.ill.len(), 1);
    assert_eq!(done.actions[0].result, ActionResult::Failed);
}

/// Two restarts in a row would find the service back before the socket is gone.
#[test]
fn a_socket_and_its_running_service_end_before_either_begins() {
    let service = Unit::new("echo.service");
    let socket = UnitFacts { triggers: vec![service], ..UnitFacts::running("echo.socket") };
    let facts = Facts::new()
        .with_unit(socket)
        .with_unit(UnitFacts::running("echo.service"))
        .with_unit(UnitFacts::running("cron.service"));
    let changes = [
        change("/etc/systemd/system/echo.socket", None),
        change("/etc/systemd/system/cron.service", None),
    ];
    let (calls, outcome) = run(&FakeMachine::new(facts), &changes);
    assert_eq!(
        calls,
        "daemon-reload; restart cron.service; stop echo.socket echo.service; \
         start echo.socket echo.service"
    );
    assert_eq!(
        outcome,
        "done daemon-reload system; done restart cron.service; done restart echo.socket; \
         done restart echo.service"
    );
}

/// boss and what is bound to it, by way of a target that is not among the units; and one that is not.
fn bound_machine() -> FakeMachine {
    let bound = |name, to: &[&str]| UnitFacts {
        bound_to: to.iter().map(|name| Unit::new(*name)).collect(),
        ..UnitFacts::running(name)
    };
    FakeMachine::new(
        Facts::new()
            .with_unit(bound("boss.service", &["sysinit.target"]))
            .with_unit(bound("all.target", &["boss.service"]))
            .with_unit(bound("helper.service", &["all.target"]))
            .with_unit(bound("other.service", &["sysinit.target"]))
            .with_process(Process::of_unit(10, "boss.service", [LIBRARY])),
    )
}

#[test]
fn a_unit_that_goes_down_along_with_another_and_stays_down_is_ill() {
    let changes = [change("/usr/lib/libx.so.1", Some(LIBRARY))];
    let machine = bound_machine();
    machine.drags("boss.service", "helper.service");
    let (_, outcome) = run(&machine, &changes);
    assert_eq!(outcome, "done restart boss.service; ill helper.service; lost helper.service");

    // It ended by itself meanwhile: nothing binds it to what was restarted.
    let machine = bound_machine();
    machine.drags("boss.service", "other.service");
    assert_eq!(run(&machine, &changes).1, "done restart boss.service");
}
