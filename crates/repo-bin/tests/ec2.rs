//! `vireo-repo ec2` as scripts meet it: exit codes and messages. What it does at EC2 is tested in
//! `vireo-ec2`.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use vireo_repo::Repository;
use vireo_repo::testing::{FakeImages, tree};
use vireo_testkit::{Cache, Moto};
use vireo_wire::api::{CreateImage, EnrollRequest};

/// Settings that lead nowhere: nobody listens on that port.
const NOWHERE: &str = "region = \"eu-central-1\"\nendpoint = \"http://127.0.0.1:1\"\n\
                       [images.web]\nlike = \"ami-1\"\n";

/// Runs `vireo-repo ec2 status` with these settings and variables.
fn status(settings: &str, variables: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("ec2.toml");
    fs::write(&file, settings).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vireo-repo"));
    command.args(["ec2", "status", "--data"]).arg(dir.path()).arg("--settings").arg(&file);
    command.env_clear().env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", dir.path());
    command.envs(variables.iter().copied()).output().expect("it runs")
}

#[track_caller]
fn check(settings: &str, variables: &[(&str, &str)], code: i32, words: &[&str]) {
    let output = status(settings, variables);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    for word in words {
        assert!(error.contains(word), "{word}: {error}");
    }
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];

#[test]
fn settings_that_are_none_are_a_usage_error_with_the_key() {
    check("[images.web]\nlikee = \"ami-1\"\n", &KEYS, 2, &["ec2.toml", "likee"]);
}

#[test]
fn a_place_that_is_not_reached_is_something_to_wait_for() {
    check(NOWHERE, &KEYS, 3, &["http://127.0.0.1:1", "region and endpoint"]);
}

#[test]
fn why_a_place_is_not_reached_is_said_once() {
    let output = status(NOWHERE, &KEYS);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error.matches("Connection refused").count(), 1, "{error}");
}

#[test]
fn without_credentials_or_a_region_it_is_refused_with_what_to_set() {
    check(NOWHERE, &[], 5, &["no AWS credentials", "AWS_PROFILE"]);
    check("[images.web]\nlike = \"ami-1\"\n", &KEYS, 5, &["no region", "AWS_REGION"]);
}

const FILES: &[(&str, &[u8])] = &[("/a", b"1")];

/// The one machine image that is there.
const MODEL: &str = r#"[{"ami_id": "ami-like", "state": "available", "public": true,
    "owner_id": "099720109477", "image_location": "amazon/like", "sriov": "simple",
    "root_device_type": "ebs", "root_device_name": "/dev/xvda", "description": "a model",
    "image_type": "machine", "platform": null, "architecture": "arm64", "name": "like",
    "virtualization_type": "hvm", "hypervisor": "xen", "boot_mode": "legacy-bios"}]"#;

/// A repository with the image `web`, settings, and what they lead to.
struct Site {
    dir: tempfile::TempDir,
    moto: Moto,
    repository: Repository,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [images, disk, settings] =
            ["amis.json", "base.img", "ec2.toml"].map(|name| dir.path().join(name));
        fs::write(&images, MODEL).expect("writable");
        let moto = Moto::start(&Cache::open().expect("a cache"), &images).expect("moto starts");
        let text = format!(
            "region = \"eu-central-1\"\nendpoint = \"http://{}\"\n[images.web]\nlike = \"ami-like\"\n",
            moto.address()
        );
        fs::write(settings, text).expect("writable");
        let data = dir.path().join("repo");
        Repository::init(&data, &[], Timestamp::now()).expect("made");
        let clock = Arc::new(Timestamp::now);
        let repository = Repository::open(&data, Box::new(FakeImages::default()), clock);
        let repository = repository.expect("it is a repository");
        fs::write(&disk, FakeImages::disk(&tree(FILES))).expect("writable");
        let web = "web".parse().expect("a name");
        repository.create_image(&web, &disk, &CreateImage::default()).expect("created");
        Self { dir, moto, repository }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The exit code and all that `vireo-repo ec2` says.
    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vireo-repo"));
        command.arg("ec2").args(args).arg("--data").arg(self.path("repo"));
        command.arg("--settings").arg(self.path("ec2.toml"));
        command.env_clear().env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", self.dir.path());
        let output = command.envs(KEYS).output().expect("it runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Asks moto, as somebody else.
    fn ask(&self, form: &str) -> String {
        let mut stream = TcpStream::connect(self.moto.address()).expect("it listens");
        let head = "POST / HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                    Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/eu-central-1/ec2/aws4_request, \
                    SignedHeaders=host, Signature=0";
        let len = form.len();
        write!(stream, "{head}\r\nContent-Length: {len}\r\n\r\n{form}").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    /// How many of `tag` an answer of moto has.
    fn count(&self, action: &str, tag: &str) -> usize {
        self.ask(&format!("Action={action}&Version=2016-11-15")).matches(tag).count()
    }

    /// Makes a snapshot, as a host that is gone has left it.
    fn leave_snapshot(&self) -> String {
        let volume = self
            .ask("Action=CreateVolume&Version=2016-11-15&Size=1&AvailabilityZone=eu-central-1a");
        let volume = text_of(&volume, "volumeId");
        let tag = "TagSpecification.1.ResourceType=snapshot\
                   &TagSpecification.1.Tag.1.Key=vireo%3Aimage&TagSpecification.1.Tag.1.Value=web";
        let form = format!("Action=CreateSnapshot&Version=2016-11-15&VolumeId={volume}&{tag}");
        text_of(&self.ask(&form), "snapshotId")
    }

    /// Launches a machine of `web`; gives its identity.
    fn launch(&self) -> String {
        let answer = self.ask(
            "Action=RunInstances&Version=2016-11-15&ImageId=ami-like&MinCount=1&MaxCount=1\
             &TagSpecification.1.ResourceType=instance\
             &TagSpecification.1.Tag.1.Key=vireo%3Aimage&TagSpecification.1.Tag.1.Value=web",
        );
        text_of(&answer, "instanceId")
    }
}

/// The text of the first such element.
#[track_caller]
fn text_of(answer: &str, tag: &str) -> String {
    let start = format!("<{tag}>");
    let text = answer.split(&start).nth(1).and_then(|rest| rest.split('<').next());
    text.unwrap_or_else(|| panic!("no {tag}: {answer}")).to_owned()
}

#[test]
fn machines_are_listed_with_their_agents_and_one_that_has_one_keeps_its_root() {
    let site = Site::new();
    let [with, without] = [site.launch(), site.launch()];
    let request = EnrollRequest {
        name: "web-1".to_owned(),
        image: "web".parse().expect("a name"),
        tree: tree(FILES).digest(),
        cloud_id: Some(with.clone()),
    };
    site.repository.enroll(&request).expect("enrolled");
    let (code, text) = site.run(&["machines", "web"]);
    assert_eq!(code, Some(0), "{text}");
    let line = |id: &str| text.lines().find(|line| line.starts_with(id)).unwrap_or_default();
    assert!(line(&with).contains("agent yes  on web@1  seen 2"), "{text}");
    assert!(line(&without).ends_with("agent no"), "{text}");

    let (code, text) = site.run(&["replace-root", "web", &with]);
    assert_eq!(code, Some(5), "{text}");
    assert!(text.contains("web-1") && text.contains("--force"), "{text}");
    // What is not refused for the agent's sake gets as far as asking what is published.
    for args in [
        ["replace-root", "web", with.as_str(), "--force"],
        ["replace-root", "web", without.as_str(), "--dry-run"],
    ] {
        let (_, text) = site.run(&args);
        assert!(text.contains("no version of web is published"), "{text}");
    }
}

#[test]
fn a_dry_run_prints_the_calls_and_makes_none_that_changes_something() {
    let site = Site::new();
    let things = || {
        [("DescribeImages", "<imageId>"), ("DescribeSnapshots", "<snapshotId>")]
            .map(|(action, tag)| site.count(action, tag))
    };
    let before = things();
    assert!(before[0] > 0, "it answers");
    let (code, text) = site.run(&["publish", "--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
    for call in ["StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot", "RegisterImage"] {
        assert!(text.contains(&format!("would call {call}")), "{call}: {text}");
    }
    assert!(text.contains("web  not published"), "{text}");
    assert_eq!(things(), before);
}

#[test]
fn a_sweep_removes_what_nobody_uses_once_it_is_old_enough() {
    let site = Site::new();
    let id = site.leave_snapshot();
    let there = || site.count("DescribeSnapshots", &id) > 0;
    for spare in [&["sweep"][..], &["sweep", "--older-than", "4294967295"]] {
        let (code, text) = site.run(spare);
        assert_eq!((code, text.trim(), there()), (Some(0), "nothing to do", true));
    }
    let (code, text) = site.run(&["sweep", "--older-than", "0", "--dry-run"]);
    assert_eq!((code, there()), (Some(0), true), "{text}");
    assert!(text.contains("would call DeleteSnapshot") && text.contains(&id), "{text}");
    let (code, text) = site.run(&["sweep", "--older-than", "0"]);
    assert_eq!((code, there()), (Some(0), false), "{text}");
    assert!(text.contains(&id), "{text}");
    let (code, text) = site.run(&["sweep", "--older-than", "a day"]);
    assert_eq!(code, Some(2), "{text}");
}

/// How long a server may take to say what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// `vireo-repo serve --ec2` with more arguments; what it says, line by line.
fn serve(site: &Site, more: &[&str]) -> (Child, Receiver<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vireo-repo"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--no-worker", "--data"]);
    command.arg(site.path("repo")).arg("--ec2").arg(site.path("ec2.toml")).args(more);
    command.env_clear().env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", site.dir.path());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(KEYS);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    (child, receiver)
}

/// Waits for a line with these words.
#[track_caller]
fn await_line(child: &mut Child, said: &Receiver<String>, words: &str) -> String {
    let mut all = Vec::new();
    loop {
        let Ok(line) = said.recv_timeout(PATIENCE) else {
            child.kill().expect("killed");
            panic!("{words:?} is not said: {all:#?}");
        };
        if line.contains(words) {
            return line;
        }
        all.push(line);
    }
}

#[test]
fn a_server_publishes_what_it_finds_unpublished_and_ends_when_it_is_asked_to() {
    let site = Site::new();
    let (mut child, said) = serve(&site, &[]);
    // There is no EBS direct interface here: the call is made, and refused.
    let line = await_line(&mut child, &said, "StartSnapshot");
    assert!(line.starts_with("ec2 "), "{line}");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it is there");
    assert!(child.wait().expect("it ended").success());
}

#[test]
fn machines_start_from_a_directory_or_from_ec2() {
    let site = Site::new();
    let launch = site.path("launch").display().to_string();
    let (mut child, said) = serve(&site, &["--launch-dir", &launch]);
    await_line(&mut child, &said, "not from both");
    assert_eq!(child.wait().expect("it ended").code(), Some(2));
}
