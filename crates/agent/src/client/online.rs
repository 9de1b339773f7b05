//! What the agent says to a repository, and what it makes of the answers: over HTTPS, with a server of a
//! few lines.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use vireo_wire::{Secret, TokenKind};

use super::*;
use crate::services::NoServices;
use crate::system::NoSystem;

const INSTANCE: &str = "i-0123456789abcdef";

/// What a request is answered with: a status, a header, a body.
type Answer = (u16, &'static str, Vec<u8>);

/// A repository that answers by a function.
struct Repository {
    url: String,
    /// Its own certificate, PEM.
    ca: String,
    token: Token,
    asked: Arc<Mutex<Vec<String>>>,
}

fn answer(value: &Value) -> Answer {
    (200, "", value.to_string().into_bytes())
}

impl Repository {
    /// Starts one: `respond` is given method and path, and the body. It ends with the tests.
    fn start(respond: impl Fn(&str, &str) -> Answer + Send + 'static) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("made");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("they are there")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key);
        let config = Arc::new(config.expect("it is its key"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let token = Token {
            kind: TokenKind::Enroll,
            ca: Digest::of(made.cert.der()),
            secret: Secret::from_bytes([7; 32]),
        };
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (noted, ca) = (Arc::clone(&asked), made.cert.pem());
        std::thread::spawn(move || {
            let respond = |line: &str, body: &str| {
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
                if line == "GET /v1/ca" {
                    return (200, "", made.cert.pem().into_bytes());
                }
                respond(line, body)
            };
            for stream in listener.incoming().flatten() {
                // Whoever goes away before the answer wants none.
                drop(serve(stream, &config, &respond));
            }
        });
        Self { url, ca, token, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn client(&self) -> Client {
        Client::with_ca(&self.url, &self.ca, &self.token.secret).expect("a certificate")
    }
}

/// Answers one request.
fn serve(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    respond: &dyn Fn(&str, &str) -> Answer,
) -> io::Result<()> {
    let session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(session, stream));
    let (mut first, mut len) = (String::new(), 0);
    stream.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            len = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    let line = first.rsplit_once(' ').map_or("", |(line, _)| line);
    let (status, header, body) = respond(line, &String::from_utf8_lossy(&body));
    let stream = stream.get_mut();
    write!(
        stream,
        "HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\nConnection: close\r\n{header}\r\n",
        body.len()
    )?;
    stream.write_all(&body)?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// A log with versions of these trees.
fn log(trees: &[Digest]) -> Value {
    let versions = (1..).zip(trees).map(|(number, tree): (u64, _)| {
        json!({
            "number": number, "tree": tree, "bundle": null, "signer": null,
            "created": "2026-01-01T00:00:00Z", "wire_bytes": 0, "image_bytes": 0,
        })
    });
    let versions: Vec<Value> = versions.collect();
    json!({"name": "web", "ignore": [], "trusted": [], "versions": versions})
}

/// A machine without services, in a directory of its own.
struct Machine {
    dir: tempfile::TempDir,
    told: Arc<Mutex<Vec<String>>>,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("root")).expect("made");
        fs::write(dir.path().join("root/file"), "content").expect("written");
        Self { dir, told: Arc::default() }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn tree(&self) -> Digest {
        read_tree(&self.root(), &Ignore::nothing()).expect("readable").digest()
    }

    fn state(&self) -> StateDir {
        StateDir::at(&self.dir.path().join("state"))
    }

    fn tell(&self) -> Tell {
        let told = Arc::clone(&self.told);
        Arc::new(move |line| {
            told.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
        })
    }

    fn told(&self) -> String {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    fn session(&self, repository: &Repository) -> Session {
        let enrolment = Enrolment {
            url: repository.url.clone(),
            ca: repository.ca.clone(),
            instance: INSTANCE.parse().expect("an identity"),
            secret: repository.token.secret.clone(),
            image: "web".parse().expect("a name"),
            trusted: Vec::new(),
            ignore: Vec::new(),
        };
        let position = Position { number: Some(1), tree: self.tree() };
        self.state().enroll(&enrolment, &position).expect("written");
        let (system, services) = (Box::new(NoSystem), Box::new(NoServices));
        let agent = Agent::new(&self.root(), self.state(), system, services);
        Session::open(Arc::new(agent), self.tell()).expect("enrolled")
    }
}

#[tokio::test]
async fn a_machine_that_waits_for_another_version_than_the_undone_one_still_shows_itself() {
    let machine = Machine::new();
    let (base, undone) = (machine.tree(), Digest::of(b"undone"));
    let repository = Repository::start(move |line, _| {
        if line.starts_with("GET /v1/images/web") {
            return answer(&log(&[base, undone]));
        }
        answer(&json!({"next": "up_to_date", "version": {"number": 1, "tree": base}}))
    });
    let session = machine.session(&repository);
    let held = Position { number: Some(2), tree: undone };
    machine.state().set_hold(Some(&held)).expect("written");
    let (_stopper, mut stop) = watch::channel(true);
    session.round(&mut stop).await.expect("it waits");
    let asked = repository.asked();
    let next = format!("GET /v1/instances/{INSTANCE}/next?");
    assert!(asked.iter().any(|line| line.starts_with(&next)), "{asked:?}");
    assert_eq!(machine.state().hold().expect("readable"), Some(held));
}

/// Enrols at a repository that takes no machine with a cloud's name for it; gives what it was sent.
async fn enroll_at_an_earlier_one(
    machine: &Machine,
    given: Option<&str>,
) -> (Result<(), AgentError>, Vec<Value>) {
    let tree = machine.tree();
    let sent = Arc::<Mutex<Vec<Value>>>::default();
    let noted = Arc::clone(&sent);
    let ca = Arc::<Mutex<String>>::default();
    let own_ca = Arc::clone(&ca);
    let repository = Repository::start(move |line, body| {
        if line != "POST /v1/enroll" {
            return answer(&log(&[tree]));
        }
        let request: Value = serde_json::from_str(body).expect("JSON");
        noted.lock().expect("not poisoned").push(request.clone());
        if request.get("cloud_id").is_some() {
            let message = "the request is not the expected JSON: unknown field `cloud_id`";
            let refused = json!({"kind": "refused", "message": message});
            return (400, "", refused.to_string().into_bytes());
        }
        let ca = own_ca.lock().expect("not poisoned").clone();
        answer(&json!({
            "instance": INSTANCE, "secret": "00".repeat(32), "ca": ca, "trusted": [], "image": "web",
            "version": {"number": 1, "tree": tree}, "ignore": [],
        }))
    });
    ca.lock().expect("not poisoned").clone_from(&repository.ca);
    let options = EnrollOptions {
        url: repository.url.clone(),
        token: repository.token.clone(),
        image: "web".parse().expect("a name"),
        name: "web-1".to_owned(),
        cloud_id: given.map(str::to_owned),
        found_cloud_id: Some("i-0abc1234".to_owned()),
    };
    let enrolled = enroll(&machine.root(), &machine.state(), &options, &machine.tell()).await;
    let sent = sent.lock().expect("not poisoned").clone();
    (enrolled.map(drop), sent)
}

#[tokio::test]
async fn a_name_that_the_repository_refuses_and_nobody_gave_is_left_out_with_a_word() {
    let machine = Machine::new();
    let (enrolled, sent) = enroll_at_an_earlier_one(&machine, None).await;
    enrolled.expect("enrolled");
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert_eq!(sent[0]["cloud_id"], "i-0abc1234");
    assert!(machine.told().contains("i-0abc1234"), "{}", machine.told());

    let machine = Machine::new();
    let (refused, sent) = enroll_at_an_earlier_one(&machine, Some("i-0def5678")).await;
    assert_eq!(refused.expect_err("somebody gave it").kind(), ErrorKind::Refused);
    assert_eq!(sent.len(), 1, "{sent:?}");
}

#[tokio::test]
async fn an_agent_that_was_replaced_and_cannot_be_restarted_is_told_of() {
    let machine = Machine::new();
    let repository = Repository::start(|_, _| (500, "", Vec::new()));
    let session = machine.session(&repository);
    for restart_self in [false, true] {
        let receipt = Receipt::unchanged(machine.tree(), Some(1));
        let concluded = session.conclude(Applied { receipt, restart_self }).await;
        assert_eq!(concluded.is_stale, restart_self, "no agent of another root can be restarted");
    }
    assert!(machine.told().contains("cannot restart the agent"), "{}", machine.told());
}

#[tokio::test]
async fn a_download_onto_a_full_file_system_asks_for_room() {
    let machine = Machine::new();
    let repository =
        Repository::start(|_, _| (206, "Content-Range: bytes 0-3/4\r\n", b"four".to_vec()));
    let to = machine.dir.path().join("bundle");
    std::os::unix::fs::symlink("/dev/full", machine.dir.path().join("bundle.part")).expect("made");
    let bundle = Digest::of(b"four");
    let full = repository.client().download_bundle(bundle, 4, &to, &|_| ()).await;
    let error = AgentError::from(full.expect_err("it is full"));
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{}", chain(&error));
    assert!(error.to_string().contains("make room"), "{error}");

    let nowhere = machine.dir.path().join("gone/bundle");
    let failed = repository.client().download_bundle(bundle, 4, &nowhere, &|_| ()).await;
    assert_eq!(AgentError::from(failed.expect_err("nowhere")).kind(), ErrorKind::Failed);
}
