//! `vireo-repo ec2` as scripts meet it: exit codes and messages. What it does at EC2 is tested in
//! `vireo-ec2`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use jiff::Timestamp;
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
    "virtualization_type": "hvm", "hypervisor": "xen"}]"#;

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

    /// Launches a machine of `web`; gives its identity.
    fn launch(&self) -> String {
        let answer = self.ask(
            "Action=RunInstances&Version=2016-11-15&ImageId=ami-like&MinCount=1&MaxCount=1\
             &TagSpecification.1.ResourceType=instance\
             &TagSpecification.1.Tag.1.Key=vireo%3Aimage&TagSpecification.1.Tag.1.Value=web",
        );
        let id = answer.split("<instanceId>").nth(1).and_then(|rest| rest.split('<').next());
        id.unwrap_or_else(|| panic!("no machine: {answer}")).to_owned()
    }
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
