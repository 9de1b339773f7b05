use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Mutex;
use std::time::Duration;

use vireo_classify::{Facts, FileId, UnitFacts};
use vireo_delta::{BundleWriter, Permits, SecretKey, Statement};
use vireo_model::{Change, ChangeSet, Digest, Ignore, ImagePath, NodeKind, Tree};
use vireo_tree::apply::UndoOptions;
use vireo_tree::{ScanOptions, scan};

use super::*;
use crate::receipt::{ActionResult, Outcome};
use crate::state::Obligation;
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
        Agent::new(&self.at("base"), state, Box::new(Shared(machine)), Box::new(Shared(machine)))
            .with_patience(patience)
    }
}

/// One machine behind both ports.
#[derive(Debug)]
struct Shared(&'static FakeMachine);

impl SystemView for Shared {
    fn facts(&self, files: &BTreeSet<FileId>) -> Result<Facts, AgentError> {
        self.0.facts(files)
    }
}

impl Services for Shared {
    fn daemon_reload(&self) -> Result<(), crate::ServiceError> {
        self.0.daemon_reload()
    }
    fn daemon_reexec(&self) -> Result<(), crate::ServiceError> {
        self.0.daemon_reexec()
    }
    fn run(&self, job: crate::Job, units: &[Unit]) -> Vec<Result<(), crate::ServiceError>> {
        self.0.run(job, units)
    }
    fn restart_later(&self, unit: &Unit) -> Result<(), crate::ServiceError> {
        self.0.restart_later(unit)
    }
    fn run_tool(&self, command: &[String]) -> Result<(), crate::ServiceError> {
        self.0.run_tool(command)
    }
}

fn leak(machine: FakeMachine) -> &'static FakeMachine {
    Box::leak(Box::new(machine))
}

fn quiet(_: &str) {}

fn outlook<'a>(changes: &'a ChangeSet, staged: &'a Staged<'_>) -> Outlook<'a> {
    let (replaced, settled) = (staged.replaced(), staged.settled());
    Outlook { changes, replaced, settled, wire_len: 0 }
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
    assert_eq!(steps, ["stage", "plan", "commit", "activate"]);
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
    let prepared = agent.prepare(&outlook(&staged.changes(), &staged)).expect("planned");
    let obligation = Obligation {
        position: Position { number: Some(2), tree: bundle.target() },
        plan: prepared.plan,
        replaced: prepared.replaced.into_iter().collect(),
        boot: boot_id().expect("a boot"),
        hold: None,
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
    let prepared = agent.prepare(&outlook(&staged.changes(), &staged)).expect("planned");
    let obligation = Obligation {
        position: Position { number: Some(2), tree: bundle.target() },
        plan: prepared.plan,
        replaced: Vec::new(),
        boot: String::new(),
        hold: None,
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
fn a_link_leads_where_it_says() {
    let link = |at: &str, target: &str| {
        let node =
            vireo_model::Node::new(NodeKind::Symlink { target: target.as_bytes().to_vec() }, 0o777);
        let path = ImagePath::parse(at.as_bytes()).expect("a valid path");
        changed::link_target(&Change { path, before: Some(node), after: None })
            .map(|path| path.to_string())
    };
    assert_eq!(link("/usr/lib/a.so", "a.so.1").as_deref(), Some("/usr/lib/a.so.1"));
    assert_eq!(link("/etc/alternatives/x", "/usr/bin/y").as_deref(), Some("/usr/bin/y"));
    assert_eq!(link("/usr/lib/a/b", "../../../../bin/./c").as_deref(), Some("/bin/c"));
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
