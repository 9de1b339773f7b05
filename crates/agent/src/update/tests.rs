use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::sync::Mutex;
use std::time::Duration;

use vireo_classify::{Facts, FileId, Phase, ReadMap, Unit, UnitFacts};
use vireo_delta::{BundleWriter, Permits, SecretKey, Statement};
use vireo_model::{ChangeSet, Digest, Ignore, ImagePath, Tree};
use vireo_tree::apply::UndoOptions;
use vireo_tree::{ScanOptions, scan};

use super::*;
use crate::receipt::{ActionResult, Outcome};
use crate::state::{Condemned, Obligation};
use crate::system::boot_id;
use crate::testing::FakeMachine;

/// A base and a target directory, and the signed bundle between them.
struct Lab {
    dir: tempfile::TempDir,
    key: SecretKey,
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().expect("not the root")).expect("made");
    fs::write(path, content).expect("written");
    let time = std::time::UNIX_EPOCH + Duration::from_secs(content.len() as u64);
    fs::File::options().write(true).open(path).expect("opens").set_modified(time).expect("set");
}

fn tree(dir: &Path) -> Tree {
    let root = Root::open(dir).expect("a directory");
    scan(&root, &Ignore::default(), &ScanOptions::default()).expect("readable").tree
}

impl Lab {
    /// nginx.conf, a library and a page change; a page comes, a page goes.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (side, text) in [("base", "one"), ("target", "number two")] {
            let at = |name: &str| dir.path().join(side).join(name);
            write(&at("etc/nginx/nginx.conf"), text);
            write(&at("usr/lib/libz.so.1"), text);
            write(&at("srv/www/index.html"), text);
            write(&at("srv/www").join(side), "mine");
            write(&at("etc/same"), "same");
        }
        Self { dir, key: SecretKey::generate().expect("random bytes") }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn trusted(&self) -> TrustedKeys {
        [self.key.public()].into_iter().collect()
    }

    /// The bundle's file.
    fn bundle(&self) -> PathBuf {
        let (base, target) = (tree(&self.at("base")), tree(&self.at("target")));
        let changes = ChangeSet::between(&base, &target);
        let mut writer = BundleWriter::new(Cursor::new(Vec::new()));
        for change in &changes.changes {
            let Some((len, digest)) = change.after.as_ref().and_then(|node| node.content()) else {
                continue;
            };
            let below = change.path.to_string();
            let open = |side: &str| {
                fs::File::open(self.at(side).join(below.trim_start_matches('/'))).expect("opens")
            };
            if below.starts_with("/etc/") {
                // Configuration travels whole, with the base's text, so that it can be merged.
                if let Some((len, digest)) = change.before.as_ref().and_then(|node| node.content())
                {
                    writer.encode_whole(digest, len, open("base")).expect("encoded");
                }
                writer.encode_whole(digest, len, open("target")).expect("encoded");
            } else {
                writer.encode(digest, len, false, open("target")).expect("encoded");
            }
        }
        let mut file = Vec::new();
        let statement = Statement {
            changes: &changes,
            ignore: &Ignore::default(),
            permits: Permits::NONE,
            base_paths: base.len() as u64,
        };
        writer.finish(&statement, &self.key, &mut file).expect("finished");
        let path = self.at("update.vireo");
        fs::write(&path, file).expect("written");
        path
    }

    fn library(&self) -> FileId {
        let stat = fs::metadata(self.at("base/usr/lib/libz.so.1")).expect("it is there");
        FileId { dev: stat.dev(), ino: stat.ino() }
    }

    /// nginx can reload; cron holds the library.
    fn machine(&self) -> FakeMachine {
        let facts = Facts::new()
            .with_unit(UnitFacts { can_reload: true, ..UnitFacts::running("nginx.service") })
            .with_unit(UnitFacts::running("cron.service"));
        let machine = FakeMachine::new(facts);
        machine.hold(7, "cron.service", self.library());
        machine
    }

    fn agent(&self, machine: &'static FakeMachine) -> Agent {
        let state = StateDir::at(&self.at("state"));
        let patience = Patience { settle_max: Duration::ZERO, poll_interval: Duration::ZERO };
        Agent::new(&self.at("base"), state, Box::new(machine), Box::new(machine))
            .with_patience(patience)
    }
}

fn leak(machine: FakeMachine) -> &'static FakeMachine {
    Box::leak(Box::new(machine))
}

fn quiet(_: &str) {}

fn prepared(agent: &Agent, staged: &Staged<'_>) -> Prepared {
    let (changes, view) = (staged.changes(), staged.view().expect("staged"));
    let contents = |path: &ImagePath, most| view.read(path, most);
    let (replaced, settled) = (staged.replaced(), staged.settled());
    let outlook = Outlook {
        changes: &changes,
        replaced,
        settled,
        contents: &contents,
        reads: vireo_classify::ReadMap::new(),
        wire_len: 0,
    };
    agent.prepare(Policy::default(), outlook).expect("planned")
}

#[test]
fn an_update_changes_the_files_and_exactly_the_units_that_need_it() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let said = Mutex::new(Vec::new());
    let say = |line: &str| said.lock().expect("not poisoned").push(line.to_owned());
    let applied = agent.apply(&lab.bundle(), &lab.trusted(), Some(2), &say).expect("applied");

    let receipt = applied.receipt;
    assert_eq!(receipt.outcome, Outcome::Done, "{receipt}");
    assert_eq!(machine.calls(), ["reload nginx.service", "restart cron.service"]);
    assert!(receipt.actions.iter().all(|action| action.result == ActionResult::Done), "{receipt}");
    assert_eq!(tree(&lab.at("base")).digest(), tree(&lab.at("target")).digest());
    let steps: Vec<&str> = receipt.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["stage", "plan", "check", "commit", "activate"]);
    assert_eq!(
        *said.lock().expect("not poisoned"),
        [
            "5 changed files; restart cron.service; reload nginx.service",
            "the files are in place, activating"
        ]
    );
    let position = Position { number: Some(2), tree: receipt.target };
    assert_eq!(agent.state().position().expect("readable"), Some(position));
    assert_eq!(agent.state().obligation().expect("readable"), None);
    assert_eq!(agent.state().last_receipt().expect("readable"), Some(receipt));
}

#[test]
fn a_plan_says_what_apply_does_and_changes_nothing() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let before = tree(&lab.at("base")).digest();
    let plan = agent.plan(&lab.bundle(), &lab.trusted()).expect("planned");
    assert_eq!(tree(&lab.at("base")).digest(), before);
    assert!(machine.calls().is_empty());
    let applied = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied");
    assert_eq!(applied.receipt.plan, plan);
}

#[test]
fn the_same_update_again_is_unchanged() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let bundle = lab.bundle();
    let _ = agent.apply(&bundle, &lab.trusted(), None, &quiet).expect("applied");
    let calls = machine.calls();
    let again = agent.apply(&bundle, &lab.trusted(), None, &quiet).expect("applied");
    assert_eq!(again.receipt.outcome, Outcome::Unchanged);
    assert_eq!(machine.calls(), calls);
}

#[test]
fn damaged_records_of_what_was_do_not_keep_an_update_from_its_end() {
    let lab = Lab::new();
    let agent = lab.agent(leak(lab.machine()));
    for name in ["known.json", "held.json", "edits.json", "unreported.json"] {
        write(&lab.at("state").join(name), "[{");
    }
    let said = Mutex::new(Vec::new());
    let say = |line: &str| said.lock().expect("not poisoned").push(line.to_owned());
    let applied = agent.apply(&lab.bundle(), &lab.trusted(), Some(2), &say).expect("applied");
    assert_eq!(applied.receipt.outcome, Outcome::Done);
    let said = said.into_inner().expect("not poisoned");
    assert!(
        said.iter().any(|line| line.contains("known.json was damaged and is removed")),
        "{said:?}"
    );
    let target = tree(&lab.at("target")).digest();
    assert_eq!(agent.state().version_of(target).expect("readable").number, Some(2));
}

#[test]
fn what_is_refused_changes_nothing() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let bundle = lab.bundle();
    let before = tree(&lab.at("base")).digest();

    let stranger = SecretKey::generate().expect("random bytes");
    let trusted = TrustedKeys::from_iter([stranger.public()]);
    let error = agent.apply(&bundle, &trusted, None, &quiet).expect_err("unknown signer");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");

    let mut bytes = fs::read(&bundle).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = lab.at("damaged.vireo");
    fs::write(&damaged, bytes).expect("written");
    let error = agent.apply(&damaged, &lab.trusted(), None, &quiet).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    fs::write(&damaged, b"").expect("written");
    assert!(agent.apply(&damaged, &lab.trusted(), None, &quiet).is_err(), "empty");
    assert_eq!(tree(&lab.at("base")).digest(), before);

    let elsewhere = Position { number: Some(1), tree: Digest::of(b"another") };
    agent.state().set_position(&elsewhere).expect("written");
    let error = agent.apply(&bundle, &lab.trusted(), None, &quiet).expect_err("another base");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("this machine is on"), "{error}");
    assert_eq!(tree(&lab.at("base")).digest(), before);
    assert!(machine.calls().is_empty());
}

#[test]
fn a_local_edit_in_the_way_is_named_and_kept() {
    let lab = Lab::new();
    let agent = lab.agent(leak(lab.machine()));
    let bundle = lab.bundle();
    write(&lab.at("base/usr/lib/libz.so.1"), "replaced here");
    let error = agent.apply(&bundle, &lab.trusted(), None, &quiet).expect_err("drift");
    assert_eq!(error.kind(), ErrorKind::Refused);
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("/usr/lib/libz.so.1"), "{cause}");
    assert_eq!(fs::read(lab.at("base/usr/lib/libz.so.1")).expect("readable"), b"replaced here");
}

#[test]
fn an_activation_that_was_interrupted_is_resumed_once() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let opened = OpenBundle::open(&lab.bundle()).expect("mapped");
    let bundle = opened.verify(&lab.trusted(), Path::new("x")).expect("verified");
    let root = Root::open(&lab.at("base")).expect("a directory");
    let staged = stage(&root, &bundle, &ApplyOptions::default()).expect("staged");
    let prepared = prepared(&agent, &staged);
    let obligation = Obligation {
        position: Position { number: Some(2), tree: bundle.target() },
        plan: prepared.plan,
        replaced: prepared.replaced.into_iter().collect(),
        boot: boot_id().expect("a boot"),
        hold: None,
        running: Vec::new(),
        checks: Vec::new(),
        actions: Vec::new(),
        undone_because: Vec::new(),
    };
    agent.state().set_obligation(&obligation).expect("written");
    drop(staged.commit().expect("committed"));

    // The agent is killed here, and started again.
    let applied = agent.recover(&quiet).expect("recovered").expect("there was something");
    assert!(applied.receipt.resumed);
    assert_eq!(applied.receipt.outcome, Outcome::Done, "{}", applied.receipt);
    assert_eq!(machine.calls(), ["reload nginx.service", "restart cron.service"]);
    assert_eq!(agent.state().position().expect("readable"), Some(obligation.position));
    assert_eq!(agent.recover(&quiet).expect("recovered"), None, "once");
}

#[test]
fn an_update_interrupted_before_its_commit_is_dropped() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let opened = OpenBundle::open(&lab.bundle()).expect("mapped");
    let bundle = opened.verify(&lab.trusted(), Path::new("x")).expect("verified");
    let before = tree(&lab.at("base")).digest();
    let root = Root::open(&lab.at("base")).expect("a directory");
    let staged = stage(&root, &bundle, &ApplyOptions::default()).expect("staged");
    let prepared = prepared(&agent, &staged);
    let obligation = Obligation {
        position: Position { number: Some(2), tree: bundle.target() },
        plan: prepared.plan,
        replaced: Vec::new(),
        boot: String::new(),
        hold: None,
        running: Vec::new(),
        checks: Vec::new(),
        actions: Vec::new(),
        undone_because: Vec::new(),
    };
    agent.state().set_obligation(&obligation).expect("written");
    drop(staged);

    assert_eq!(agent.recover(&quiet).expect("recovered"), None);
    assert_eq!(agent.state().obligation().expect("readable"), None);
    assert_eq!(tree(&lab.at("base")).digest(), before);
    assert!(machine.calls().is_empty());
    let applied = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied");
    assert_eq!(applied.receipt.outcome, Outcome::Done);
}

#[test]
fn an_undo_brings_back_the_files_and_what_the_units_had() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let before = tree(&lab.at("base"));
    let base = Position { number: Some(1), tree: before.digest() };
    agent.state().set_position(&base).expect("written");
    let library = lab.library();
    let applied = agent.apply(&lab.bundle(), &lab.trusted(), Some(2), &quiet).expect("applied");
    assert_eq!(applied.receipt.transaction, Some(1));
    machine.hold(8, "cron.service", lab.library());
    let calls = machine.calls().len();

    let undone = agent.undo(None, &UndoOptions::default(), &quiet).expect("undone").receipt;
    assert_eq!(undone.outcome, Outcome::Done, "{undone}");
    assert_eq!(undone.undone, [1]);
    assert_eq!(machine.calls()[calls..], ["reload nginx.service", "restart cron.service"]);
    assert_eq!(tree(&lab.at("base")), before);
    assert_eq!(lab.library(), library, "the very inode");
    assert_eq!(agent.state().position().expect("readable"), Some(base));
    let held = agent.state().hold().expect("readable").expect("not to come back by itself");
    assert_eq!(held.number, Some(2));
    let error = agent.undo(None, &UndoOptions::default(), &quiet).expect_err("nothing is left");
    assert_eq!(error.kind(), ErrorKind::Refused);
}

/// A machine that a version brought this many bytes of a read map to, and that learned one itself; both may
/// be damaged. What an undo then does to its units.
fn calls_of_undo(came: &str, learned: &str) -> Vec<String> {
    let lab = Lab::new();
    let facts = Facts::new().with_unit(UnitFacts::running("web.service"));
    let machine = leak(FakeMachine::new(facts));
    let agent = lab.agent(machine);
    drop(agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied"));
    write(&lab.at("state/reads.json"), came);
    write(&lab.at("state/learned.json"), learned);
    let calls = machine.calls().len();
    drop(agent.undo(None, &UndoOptions::default(), &quiet).expect("undone"));
    machine.calls()[calls..].to_vec()
}

#[test]
fn one_damaged_read_map_takes_neither_the_undo_nor_the_other_map_away() {
    let mut map = ReadMap::new();
    let page = ImagePath::parse(b"/srv/www/index.html").expect("a valid path");
    map.add_file(&page, &Unit::new("web.service"), Phase::Start);
    let map = map.to_json().expect("short");
    assert!(calls_of_undo("", "").is_empty());
    for (came, learned) in [(map.as_str(), "{"), ("{", map.as_str())] {
        assert_eq!(calls_of_undo(came, learned), ["restart web.service"], "{came} {learned}");
    }
}

#[test]
fn edited_configuration_is_merged_shown_in_the_plan_and_remembered() {
    let lab = Lab::new();
    let config = lab.at("base/etc/nginx/nginx.conf");
    let lines = |edit: &str, last: &str| format!("{edit}\nb\nc\nd\n{last}\n");
    write(&config, &lines("a", "e"));
    write(&lab.at("target/etc/nginx/nginx.conf"), &lines("a", "e of version 2"));
    let agent = lab.agent(leak(lab.machine()));
    let bundle = lab.bundle();
    write(&config, &lines("a, locally", "e"));

    let plan = agent.plan(&bundle, &lab.trusted()).expect("planned");
    assert_eq!(plan.drift.len(), 1, "{plan}");
    assert!(plan.to_string().contains("edited    /etc/nginx/nginx.conf: merged"), "{plan}");
    let receipt = agent.apply(&bundle, &lab.trusted(), None, &quiet).expect("applied").receipt;
    assert_eq!(receipt.plan, plan);
    assert_eq!(
        fs::read_to_string(&config).expect("readable"),
        lines("a, locally", "e of version 2")
    );
    let edits = agent.state().edits().expect("readable");
    assert_eq!(edits.len(), 1);
    assert_eq!(edits[0].path, "/etc/nginx/nginx.conf");
    let _ = agent.undo(None, &UndoOptions::default(), &quiet).expect("undone");
    assert_eq!(fs::read_to_string(&config).expect("readable"), lines("a, locally", "e"));
    assert_eq!(agent.state().edits().expect("readable"), []);
}

#[test]
fn an_edit_that_conflicts_stays_and_the_new_file_is_put_beside_it() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let bundle = lab.bundle();
    let config = lab.at("base/etc/nginx/nginx.conf");
    write(&config, "edited here");
    let applied = agent.apply(&bundle, &lab.trusted(), None, &quiet).expect("applied");
    assert_eq!(fs::read(&config).expect("readable"), b"edited here");
    let new = fs::read(lab.at("base/etc/nginx/nginx.conf.vireo-new")).expect("beside it");
    assert_eq!(new, fs::read(lab.at("target/etc/nginx/nginx.conf")).expect("readable"));
    let edit = &applied.receipt.plan.drift[0];
    assert_eq!((edit.how.as_str(), edit.beside.is_some()), ("kept", true));
    assert_eq!(machine.calls(), ["restart cron.service"], "what nginx reads has not changed");
}

#[test]
fn an_update_after_which_a_unit_does_not_run_is_undone_and_the_unit_runs_again() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let before = tree(&lab.at("base"));
    let base = Position { number: Some(1), tree: before.digest() };
    agent.state().set_position(&base).expect("written");
    machine.crashes("cron.service");
    let receipt =
        agent.apply(&lab.bundle(), &lab.trusted(), Some(2), &quiet).expect("applied").receipt;
    assert_eq!(tree(&lab.at("base")), before, "the files are the base's");
    assert_eq!(receipt.undone, [1]);
    assert!(receipt.undone_because[0].starts_with("cron.service: it is not active"), "{receipt}");
    // The machine is still broken: it crashes on the base's files, too, and that is said.
    assert_eq!(receipt.outcome, Outcome::Failed, "{receipt}");
    assert_eq!(agent.state().position().expect("readable"), Some(base));
    let held = agent.state().hold().expect("readable").expect("not to come back by itself");
    assert_eq!(held.number, Some(2));
    assert_eq!(agent.state().condemned().expect("readable"), None);
}

#[test]
fn what_is_well_again_on_the_base_makes_an_update_undone() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let before = tree(&lab.at("base"));
    machine.crashes_once("cron.service");
    let receipt =
        agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied").receipt;
    assert_eq!(receipt.outcome, Outcome::Undone, "{receipt}");
    assert_eq!(tree(&lab.at("base")), before);
    let calls = machine.calls();
    assert_eq!(calls[calls.len() - 2..], ["reset-failed cron.service", "start cron.service"]);
    assert!(receipt.to_string().starts_with("undone    "), "{receipt}");
    assert!(receipt.to_string().contains("because   cron.service: "), "{receipt}");
}

#[test]
fn a_site_can_keep_an_update_after_which_a_unit_is_ill() {
    let lab = Lab::new();
    write(
        &lab.at("base/etc/vireo/policy.d/50-site.toml"),
        "version = 1\n[defaults]\non-health-failure = \"keep\"\n",
    );
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    machine.crashes("cron.service");
    // The policy is the machine's own and belongs to no version.
    write(
        &lab.at("target/etc/vireo/policy.d/50-site.toml"),
        "version = 1\n[defaults]\non-health-failure = \"keep\"\n",
    );
    let receipt =
        agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied").receipt;
    assert_eq!(receipt.outcome, Outcome::Failed, "{receipt}");
    assert_eq!(tree(&lab.at("base")).digest(), tree(&lab.at("target")).digest());
}

#[test]
fn a_policy_with_a_mistake_stops_an_update_before_anything_is_touched() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let bundle = lab.bundle();
    write(&lab.at("base/etc/vireo/policy.d/50-site.toml"), "version = 1\n[[unit]]\nholds = 1\n");
    for result in [
        agent.plan(&bundle, &lab.trusted()).map(drop),
        agent.apply(&bundle, &lab.trusted(), None, &quiet).map(drop),
    ] {
        let error = result.expect_err("a mistake");
        let text = crate::client::chain(&error);
        assert!(text.contains("50-site.toml, line 3: unknown field `holds`"), "{text}");
    }
    assert!(!lab.at("base/.vireo").exists() && machine.calls().is_empty());
}

/// Or else nothing that is pushed could ever correct it.
#[test]
fn a_mistake_in_the_versions_policy_is_corrected_by_an_update() {
    const POLICY: &str = "usr/lib/vireo/policy.d/10-app.toml";
    for correction in [Some("version = 1\n"), None] {
        let lab = Lab::new();
        let machine = leak(lab.machine());
        let agent = lab.agent(machine);
        write(&lab.at("base").join(POLICY), "version = 1\nunti = 2\n");
        let corrected = lab.at("target").join(POLICY);
        if let Some(text) = correction {
            write(&corrected, text);
        }
        let bundle = lab.bundle();
        drop(agent.plan(&bundle, &lab.trusted()).expect("planned"));
        drop(agent.apply(&bundle, &lab.trusted(), None, &quiet).expect("applied"));
        assert_eq!(tree(&lab.at("base")).digest(), tree(&lab.at("target")).digest());
    }
}

#[test]
fn a_version_whose_policy_is_no_file_is_refused() {
    const POLICY: &str = "usr/lib/vireo/policy.d/10-app.toml";
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    let policy = lab.at("target").join(POLICY);
    fs::create_dir_all(policy.parent().expect("a directory")).expect("made");
    symlink("nowhere", &policy).expect("linked");
    let bundle = lab.bundle();
    let before = tree(&lab.at("base"));
    for result in [
        agent.plan(&bundle, &lab.trusted()).map(drop),
        agent.apply(&bundle, &lab.trusted(), None, &quiet).map(drop),
    ] {
        let error = result.expect_err("no policy");
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(POLICY), "{error}");
    }
    assert_eq!(tree(&lab.at("base")), before);
}

#[test]
fn a_policy_that_cannot_be_read_is_told_from_one_that_is_no_file() {
    const POLICY: &str = "usr/lib/vireo/policy.d/10-app.toml";
    let lab = Lab::new();
    let agent = lab.agent(leak(lab.machine()));
    write(&lab.at("target").join(POLICY), "version = 1\n");
    let changes = ChangeSet::between(&tree(&lab.at("base")), &tree(&lab.at("target")));
    let unreadable = |_: &ImagePath, _| Err(Root::open(&lab.at("nowhere")).expect_err("not there"));
    let outlook = Outlook {
        changes: &changes,
        replaced: &[],
        settled: &[],
        contents: &unreadable,
        reads: ReadMap::new(),
        wire_len: 0,
    };
    let error = agent.policy_with(Policy::default(), &outlook).expect_err("unreadable");
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().starts_with("cannot read the policy /usr/lib"), "{error}");
}

#[test]
fn a_damaged_stored_read_map_is_named_with_what_mends_it() {
    let lab = Lab::new();
    let agent = lab.agent(leak(lab.machine()));
    write(&lab.at("state/reads.json"), "{");
    let error = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::State);
    assert!(error.to_string().contains("reads.json; what is lost: who reads what"), "{error}");
}

#[test]
fn what_is_beyond_the_limits_of_undoing_goes_with_the_next_update() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine);
    for number in 0..UNDO_COUNT_MAX + 2 {
        write(&lab.at("target/srv/www/index.html"), &"x".repeat(20 + number));
        let bundle = lab.bundle();
        drop(agent.apply(&bundle, &lab.trusted(), None, &quiet).expect("applied"));
    }
    let history = agent.history().expect("readable");
    assert_eq!(history.len(), UNDO_COUNT_MAX);
    let newest = UNDO_COUNT_MAX as u64 + 2;
    assert_eq!(history.first().map(|past| past.number), Some(newest), "the newest stay");
    assert_eq!(history.last().map(|past| past.number), Some(3), "the oldest go");
}

/// Fails the first check.
#[derive(Debug)]
struct Strict;

impl Checker for Strict {
    fn run(
        &self,
        checks: &[vireo_classify::Check],
        staged: &StagedView<'_>,
        _changes: &[vireo_classify::ChangedFile],
    ) -> Result<Vec<CheckReport>, String> {
        let path = ImagePath::parse(b"/etc/nginx/nginx.conf").expect("a valid path");
        let text = staged.read(&path, 100).expect("readable").expect("staged");
        let report = |(number, check): (usize, &vireo_classify::Check)| {
            let detail = format!("{} is wrong", String::from_utf8_lossy(&text));
            let result = if number == 0 { CheckResult::Failed } else { CheckResult::Passed };
            CheckReport { command: check.command.clone(), result, detail, seconds: 0.0 }
        };
        Ok(checks.iter().enumerate().map(report).collect())
    }
}

#[test]
fn a_check_that_fails_refuses_the_update_and_nothing_is_left() {
    let lab = Lab::new();
    let machine = leak(lab.machine());
    let agent = lab.agent(machine).with_checker(Box::new(Strict));
    let before = tree(&lab.at("base"));
    let error = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Refused);
    let text = error.to_string();
    assert!(text.contains("nginx -t -q says: number two is wrong"), "{text}");
    assert!(text.contains("/etc/nginx/nginx.conf"), "{text}");
    assert_eq!(tree(&lab.at("base")), before);
    assert!(machine.calls().is_empty(), "{:?}", machine.calls());
    assert_eq!(agent.state().obligation().expect("readable"), None);
    let left: Vec<_> = fs::read_dir(lab.at("base/.vireo")).expect("there").flatten().collect();
    assert!(
        !left.iter().any(|entry| entry.file_name().to_string_lossy().contains("staged")),
        "{left:?}"
    );
}

#[test]
fn checks_that_cannot_be_run_are_in_the_receipt() {
    let lab = Lab::new();
    let agent = lab.agent(leak(lab.machine()));
    let receipt =
        agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied").receipt;
    assert_eq!(receipt.checks.len(), 1, "{receipt}");
    assert_eq!(receipt.checks[0].result, CheckResult::Skipped);
    assert!(receipt.to_string().contains("skipped   check /usr/sbin/nginx -t -q: "), "{receipt}");
}

/// A lab whose update changes the configuration of sshd, by which the machine is reached.
fn ssh_lab() -> (Lab, &'static FakeMachine) {
    let lab = Lab::new();
    write(&lab.at("base/etc/ssh/sshd_config"), "Port 22\n");
    write(&lab.at("target/etc/ssh/sshd_config"), "Port 22\nUseDNS no\n");
    let facts =
        Facts::new().with_unit(UnitFacts { can_reload: true, ..UnitFacts::running("ssh.service") });
    (lab, leak(FakeMachine::new(facts)))
}

#[test]
fn what_could_cut_the_machine_off_waits_to_be_confirmed_and_is_undone_otherwise() {
    let (lab, machine) = ssh_lab();
    let agent = lab.agent(machine);
    let before = tree(&lab.at("base"));
    let applied = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied");
    assert_eq!(applied.receipt.outcome, Outcome::Pending, "{}", applied.receipt);
    assert_eq!(machine.calls(), ["timer after 480 s", "reload ssh.service", "timer after 60 s"]);
    let guard = agent.state().guard().expect("readable").expect("armed");
    let timers = machine.timers();
    assert_eq!(timers.len(), 1, "{timers:?}");
    let (_, command) = timers.first_key_value().expect("one");
    assert_eq!(command[command.len() - 3..], ["undo", "--unless-confirmed", &guard.nonce]);
    assert!(applied.receipt.to_string().contains(&format!("vireo-agent confirm {}", guard.nonce)));

    assert_eq!(agent.undo_unconfirmed("another", &quiet).expect("looked"), None);
    let undone = agent.undo_unconfirmed(&guard.nonce, &quiet).expect("undone").expect("it waited");
    assert_eq!(undone.receipt.outcome, Outcome::Undone, "{}", undone.receipt);
    assert_eq!(tree(&lab.at("base")), before);
    assert_eq!(agent.state().guard().expect("readable"), None);
    assert!(machine.timers().is_empty());
    assert!(undone.receipt.undone_because[0].contains("/etc/ssh/sshd_config"));
}

#[test]
fn what_was_confirmed_stays() {
    let (lab, machine) = ssh_lab();
    let agent = lab.agent(machine);
    let _ = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied");
    let nonce = agent.state().guard().expect("readable").expect("armed").nonce;
    assert!(!agent.confirm("another").expect("looked"));
    assert!(agent.confirm(&nonce).expect("confirmed"));
    assert!(machine.timers().is_empty());
    assert_eq!(agent.undo_unconfirmed(&nonce, &quiet).expect("looked"), None, "a late timer");
    let receipt = agent.state().last_receipt().expect("readable").expect("there");
    assert_eq!(receipt.outcome, Outcome::Done, "{receipt}");
    assert!(!agent.confirm(&nonce).expect("looked"), "once");
    assert_eq!(tree(&lab.at("base")).digest(), tree(&lab.at("target")).digest());
}

#[test]
fn whoever_sits_beside_the_machine_needs_no_guard() {
    let (lab, machine) = ssh_lab();
    let agent = lab.agent(machine).unguarded();
    let applied = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied");
    assert_eq!(applied.receipt.outcome, Outcome::Done, "{}", applied.receipt);
    assert_eq!(machine.calls(), ["reload ssh.service"]);
}

#[test]
fn the_running_kernel_keeps_its_modules_until_another_runs() {
    let lab = Lab::new();
    let modules = "usr/lib/modules/1.2.3-gone/kernel/a.ko";
    write(&lab.at("base").join(modules), "module");
    write(&lab.at("target/usr/lib/modules/4.5.6/kernel/a.ko"), "module of the next");
    let facts = Facts { kernel_release: "1.2.3-gone".to_owned(), ..Facts::new() };
    let agent = lab.agent(leak(FakeMachine::new(facts)));
    let before = tree(&lab.at("base"));
    let inode = || fs::metadata(lab.at("base").join(modules)).map(|stat| stat.ino()).ok();
    let was = inode();
    let receipt =
        agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied").receipt;
    assert_eq!(receipt.plan.system.keep, ["/usr/lib/modules/1.2.3-gone"], "{}", receipt.plan);
    assert_eq!(inode(), was, "the very file");
    assert!(lab.at("base/usr/lib/modules/4.5.6/kernel/a.ko").exists());

    // That kernel does not run here: at its next start the agent clears up.
    assert_eq!(agent.recover(&quiet).expect("nothing to recover"), None);
    assert_eq!(inode(), None);
    assert_eq!(tree(&lab.at("base")).digest(), tree(&lab.at("target")).digest());
    let _ = agent.undo(None, &UndoOptions::default(), &quiet).expect("undone");
    assert_eq!((inode(), tree(&lab.at("base"))), (was, before));
}

#[test]
fn a_reboot_that_waits_is_said_where_other_tools_look() {
    let lab = Lab::new();
    write(&lab.at("base/boot/vmlinuz-1"), "one");
    write(&lab.at("target/boot/vmlinuz-1"), "two of it");
    for tree in ["base/run", "target/run"] {
        fs::create_dir_all(lab.at(tree)).expect("made");
    }
    let agent = lab.agent(leak(lab.machine()));
    let receipt =
        agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied").receipt;
    assert_eq!(receipt.outcome, Outcome::Pending, "{receipt}");
    assert!(receipt.to_string().contains("pending   system needs reboot"), "{receipt}");
    let mark = fs::read_to_string(lab.at("base/run/reboot-required")).expect("there");
    assert!(mark.contains("restart required"), "{mark}");
}

#[test]
fn who_holds_a_file_of_an_earlier_update_still_waits_after_the_next() {
    let lab = Lab::new();
    let facts = Facts::new().with_unit(UnitFacts::running("dbus.service"));
    let machine = leak(FakeMachine::new(facts));
    let library = lab.library();
    machine.hold(9, "dbus.service", library);
    let agent = lab.agent(machine);
    let first = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied").receipt;
    assert_eq!(first.pending.len(), 1, "{first}");
    write(&lab.at("target/srv/www/third.html"), "the third version");
    let second = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied").receipt;
    assert_eq!(second.pending.len(), 1, "{second}");
    assert_eq!(second.pending[0].subject, "dbus.service");
}

#[test]
fn a_machine_that_is_started_anew_without_a_word_starts_on_the_base() {
    let (lab, machine) = ssh_lab();
    let agent = lab.agent(machine);
    let before = tree(&lab.at("base"));
    let _ = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied");
    let mut guard = agent.state().guard().expect("readable").expect("armed");
    let forward = vireo_tree::apply::Direction::Forward;
    assert!(!agent.recover_files(forward).expect("looked"), "the boot is the same");
    // Timers do not outlive a boot.
    guard.boot = "another".to_owned();
    agent.state().set_guard(Some(&guard)).expect("written");
    assert!(agent.recover_files(forward).expect("undone"));
    assert_eq!(tree(&lab.at("base")), before);
    assert_eq!(agent.state().guard().expect("readable"), None);
}

#[test]
fn an_undo_that_nobody_asked_for_is_tried_again_until_it_is_done() {
    let (lab, machine) = ssh_lab();
    let agent = lab.agent(machine);
    let before = tree(&lab.at("base"));
    let _ = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied");
    let guard = agent.state().guard().expect("readable").expect("armed");
    let again = |words: &[&str]| {
        let timers = machine.timers();
        let timer = timers.iter().find(|(name, _)| name.starts_with("vireo-again-"));
        let (name, command) = timer.expect("it is tried again");
        assert_eq!(command[command.len() - words.len()..], *words);
        machine.clear_timer(name).expect("it is there");
    };

    // Somebody else is at the files.
    let root = Root::open(&lab.at("base")).expect("there");
    let options = UndoOptions::default();
    let other = vireo_tree::apply::stage_undo(&root, guard.transaction, &options).expect("staged");
    let error = agent.undo_unconfirmed(&guard.nonce, &quiet).expect_err("somebody is at it");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    again(&["undo", "--unless-confirmed", &guard.nonce]);
    drop(other);

    // Nobody confirmed, and that is on the disk when the undo fails.
    let condemned = Condemned {
        transaction: guard.transaction,
        boot: "another".to_owned(),
        because: vec!["nobody confirmed".to_owned()],
        revive: Vec::new(),
        ill: Vec::new(),
        actions: Vec::new(),
        checks: Vec::new(),
    };
    agent.state().set_condemned(Some(&condemned)).expect("written");
    agent.state().set_guard(None).expect("removed");
    let other = vireo_tree::apply::stage_undo(&root, guard.transaction, &options).expect("staged");
    assert!(agent.recover(&quiet).is_err());
    drop(other);
    let undone = agent.recover(&quiet).expect("undone").expect("it was condemned");
    assert_eq!(undone.receipt.outcome, Outcome::Undone, "{}", undone.receipt);
    assert_eq!(tree(&lab.at("base")), before);
    assert_eq!(agent.state().condemned().expect("readable"), None);
}

#[test]
fn a_promise_outlives_a_boot_of_a_machine_that_asks_its_repository() {
    let (lab, machine) = ssh_lab();
    let agent = lab.agent(machine);
    let _ = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied");
    let mut guard = agent.state().guard().expect("readable").expect("armed");
    for name in machine.timers().keys() {
        machine.clear_timer(name).expect("timers go with the boot");
    }
    guard.boot = "another".to_owned();
    agent.state().set_guard(Some(&guard)).expect("written");
    let enrolment = serde_json::json!({
        "url": "https://localhost:1", "ca": "", "instance": "i-0123456789abcdef", "secret": "00".repeat(32),
        "image": "web",
        "trusted": [], "ignore": [],
    });
    fs::write(agent.state().path().join("enrolment.json"), enrolment.to_string()).expect("written");
    // Early in the boot, should the agent not come to start.
    let forward = vireo_tree::apply::Direction::Forward;
    assert!(!agent.recover_files(forward).expect("it is left to the agent"));
    assert_eq!(
        machine.timers().keys().collect::<Vec<_>>(),
        [&format!("vireo-guard-{}", guard.nonce)]
    );
    // The agent starts.
    assert_eq!(agent.recover(&quiet).expect("nothing was interrupted"), None);
    assert_eq!(
        machine.timers().keys().collect::<Vec<_>>(),
        [&format!("vireo-confirm-{}", guard.nonce)]
    );
    assert_eq!(
        agent.state().guard().expect("readable").expect("it waits").boot,
        boot_id().expect("known")
    );
    assert!(agent.undo_unconfirmed(&guard.nonce, &quiet).expect("undone").is_some());
}

#[test]
fn modules_that_an_undo_gives_back_stay_and_those_of_an_edit_are_not_lost() {
    let lab = Lab::new();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let modules = format!("usr/lib/modules/{release}/kernel/a.ko");
    write(&lab.at("base").join(&modules), "module");
    write(&lab.at("target/usr/lib/modules/4.5.6/kernel/a.ko"), "module of the next");
    let facts = Facts { kernel_release: release, ..Facts::new() };
    let agent = lab.agent(leak(FakeMachine::new(facts)));
    let before = tree(&lab.at("base"));
    let inode = || fs::metadata(lab.at("base").join(&modules)).map(|stat| stat.ino()).ok();
    let was = inode();
    let _ = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet).expect("applied");
    assert_eq!(inode(), was, "it runs on them");
    assert!(agent.state().kept().expect("readable").is_some());
    // An undo that is refused takes nothing away.
    write(&lab.at("base/srv/www/index.html"), "edited since");
    assert!(agent.undo(None, &UndoOptions::default(), &quiet).is_err());
    assert_eq!(inode(), was);
    let _ = agent.undo(None, &UndoOptions { take: true }, &quiet).expect("undone");
    assert_eq!(inode(), was);
    assert_eq!(agent.state().kept().expect("readable"), None);
    fs::remove_file(lab.at("base/srv/www/index.html.vireo-local")).expect("set aside");
    assert_eq!(tree(&lab.at("base")), before);
}

#[test]
fn no_damaged_record_of_what_was_is_in_the_way_of_an_update_or_of_the_way_back() {
    for name in ["known.json", "held.json", "edits.json", "kept.json", "unreported.json"] {
        for is_directory in [false, true] {
            let (lab, machine) = ssh_lab();
            let agent = lab.agent(machine);
            let before = tree(&lab.at("base"));
            let damage = || {
                let path = lab.at("state").join(name);
                drop(fs::remove_file(&path));
                match is_directory {
                    true => write(&path.join("inside"), ""),
                    false => write(&path, "[{"),
                }
            };
            for by_timer in [false, true] {
                damage();
                let applied = agent.apply(&lab.bundle(), &lab.trusted(), None, &quiet);
                assert_eq!(applied.expect(name).receipt.outcome, Outcome::Pending, "{name}");
                let guard = agent.state().guard().expect("readable").expect("armed");
                damage();
                let undone = match by_timer {
                    true => agent.undo_unconfirmed(&guard.nonce, &quiet).expect(name),
                    false => {
                        agent.undo(None, &UndoOptions::default(), &quiet).map(Some).expect(name)
                    }
                };
                assert!(undone.is_some(), "{name}");
                assert_eq!(tree(&lab.at("base")), before, "{name}");
            }
        }
    }
}
