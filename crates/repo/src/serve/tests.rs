//! The whole way over real HTTPS on loopback, with images that need no root.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use axum::extract::State;
use axum::http::HeaderMap;
use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vireo_delta::{Head, SecretKey, TrustedKeys};
use vireo_model::{Digest, ImageName, Tree};
use vireo_wire::api::{CreateImage, EnrollReply, EnrollRequest, Next, ReceiptPost};
use vireo_wire::{Client, ErrorKind, Progress, Token};

use super::auth::Known;
use super::*;
use crate::fleet::Caller;
use crate::testing::{FakeImages, bundle, tree};

type Files<'a> = &'a [(&'a str, &'a [u8])];

const BASE: Files<'static> = &[("/etc-motd", b"hello"), ("/page", b"one")];
const TARGET: Files<'static> = &[("/etc-motd", b"hello"), ("/page", b"two")];

/// A repository with one image, `web`, served on a port of its own.
struct Site {
    dir: tempfile::TempDir,
    repository: Arc<Repository>,
    /// What its log says.
    log: Arc<Mutex<Vec<Event>>>,
    url: String,
    token: Token,
    key: SecretKey,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), RepoError>>,
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path().join("repo");
        let token = Repository::init(&root, &["localhost".into()], Timestamp::now()).expect("made");
        let clock = Arc::new(Timestamp::now);
        let repository =
            Repository::open(&root, Box::new(FakeImages::default()), clock).expect("opened");
        let log = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&log);
        let note = move |event: &Event| told.lock().expect("not poisoned").push(event.clone());
        let repository = Arc::new(repository.with_observer(Arc::new(note)));
        let addr = "127.0.0.1:0".parse().expect("an address");
        let server = Server::bind(Arc::clone(&repository), addr, &[]).expect("a free port");
        let url = format!("https://{}", server.local_addr());
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        let key = SecretKey::generate().expect("there is a random source");
        let site = Self { dir, repository, log, url, token, key, stop, serving };
        site.create("web").await;
        site
    }

    /// By name, so that looking names up is part of every test.
    async fn client(&self) -> Client {
        let url = self.url.replace("127.0.0.1", "localhost");
        Client::connect(&url, &self.token).await.expect("it serves")
    }

    async fn create(&self, name: &str) {
        let disk = self.file("base.img", &FakeImages::disk(&tree(BASE)));
        let options = CreateImage { trusted: vec![self.key.public()], ..CreateImage::default() };
        let client = self.client().await;
        client.create_image(&image(name), &disk, &options, &|_| ()).await.expect("created");
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).expect("writable");
        path
    }

    fn update(&self) -> Vec<u8> {
        bundle(BASE, TARGET, &self.key)
    }

    async fn enrolled(&self) -> (Client, EnrollReply) {
        let token = self.repository.create_enroll_token(Some(&image("web"))).expect("made");
        let stranger = Client::connect(&self.url, &token).await.expect("it serves");
        let tree = tree(BASE).digest();
        let request =
            EnrollRequest { name: "web-1".into(), image: image("web"), tree, cloud_id: None };
        let reply = stranger.enroll(&request).await.expect("enrolled");
        let client =
            Client::with_ca(&self.url, &reply.ca, &reply.secret).expect("it is a certificate");
        (client, reply)
    }

    async fn end(self) {
        self.stop.send(()).expect("it still runs");
        self.serving.await.expect("it does not panic").expect("it ends well");
    }
}

fn image(name: &str) -> ImageName {
    name.parse().expect("a name")
}

fn quiet(_: Progress) {}

/// A large file that does not compress: three frames and a bit.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..13 << 17).flat_map(|_| next()).collect()
}

fn head(bundle: &[u8], key: &SecretKey) -> Head {
    let trusted: TrustedKeys = [key.public()].into_iter().collect();
    Head::read(bundle, &trusted).expect("a bundle")
}

/// Pushes, and says how many bytes of frames were to be sent at first.
async fn push_counting(client: &Client, name: &str, bundle: &[u8]) -> u64 {
    let first = Mutex::new(None);
    let note = |progress: Progress| {
        first.lock().expect("not poisoned").get_or_insert(progress.total.expect("it is known"));
    };
    client.push_bundle(&image(name), bundle, &note).await.expect("pushed");
    first.into_inner().expect("not poisoned").expect("progress was reported")
}

fn stored_frame(site: &Site, head: &Head, number: usize) -> PathBuf {
    let incoming = site.repository.root().join("incoming").join(head.digest.to_string());
    incoming.join(head.frames[number].digest.to_string())
}

fn frame_bytes<'b>(bundle: &'b [u8], head: &Head, number: usize) -> &'b [u8] {
    let before: u64 = head.frames[..number].iter().map(|frame| frame.len).sum();
    let start = usize::try_from(head.head_len + before).expect("it fits");
    &bundle[start..start + usize::try_from(head.frames[number].len).expect("it fits")]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_created_updated_read_back_and_exported() {
    let site = Site::new().await;
    let (client, web) = (site.client().await, image("web"));
    let update = site.update();
    let reply = client.push_bundle(&web, &update, &quiet).await.expect("pushed");
    assert!(!reply.already);
    assert_eq!(reply.version.number, 2);
    assert_eq!(reply.version.tree, tree(TARGET).digest());
    assert_eq!(reply.version.signer, Some(site.key.public()));
    assert_eq!(reply.version.wire_bytes, update.len() as u64);

    let log = client.log(&web).await.expect("there");
    assert_eq!(log.versions.iter().map(|version| version.number).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(log.trusted, [site.key.public()]);
    assert_eq!(client.images().await.expect("there")[0].newest, reply.version);
    let trees: [Tree; 2] =
        [client.tree(&web, 1).await.expect("there"), client.tree(&web, 2).await.expect("there")];
    assert_eq!(trees, [tree(BASE), tree(TARGET)]);
    assert!(client.verify_image(&web, 2).await.expect("readable").matches());

    let out = site.dir.path().join("out.img");
    client.export_image(&web, 2, &out, &quiet).await.expect("exported");
    assert_eq!(fs::read(&out).expect("readable"), FakeImages::disk(&tree(TARGET)));
    let direct = site.dir.path().join("direct.img");
    site.repository.export(&web, 1, &direct).expect("exported");
    assert_eq!(fs::read(&direct).expect("readable"), FakeImages::disk(&tree(BASE)));
    assert_eq!(site.repository.fsck().expect("readable").findings, []);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pushing_again_says_already_and_pushing_on_another_version_names_both() {
    let site = Site::new().await;
    let (client, web) = (site.client().await, image("web"));
    client.push_bundle(&web, &site.update(), &quiet).await.expect("pushed");
    let again = client.push_bundle(&web, &site.update(), &quiet).await.expect("known");
    assert!(again.already && again.version.number == 2);

    let other = bundle(BASE, &[("/page", b"three")], &site.key);
    let error = client.push_bundle(&web, &other, &quiet).await.expect_err("not the newest");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let conflict = error.conflict().expect("both are named");
    assert_eq!(conflict.bundle_base, tree(BASE).digest());
    assert_eq!(conflict.newest, tree(TARGET).digest());
    assert_eq!(conflict.newest_number, 2);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_pushes_at_once_one_wins() {
    let site = Site::new().await;
    let (client, web) = (site.client().await, image("web"));
    let [one, two] =
        [b"left".as_slice(), b"right"].map(|text| bundle(BASE, &[("/page", text)], &site.key));
    let (left, right) = tokio::join!(
        client.push_bundle(&web, &one, &quiet),
        client.push_bundle(&web, &two, &quiet)
    );
    assert!(left.is_ok() != right.is_ok(), "{left:?} {right:?}");
    let error = left.err().or(right.err()).expect("one lost");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(client.log(&web).await.expect("there").versions.len(), 2);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pushed_is_refused_and_changes_nothing() {
    let site = Site::new().await;
    let (client, web) = (site.client().await, image("web"));
    let stranger = SecretKey::generate().expect("there is a random source");
    let strange = bundle(BASE, TARGET, &stranger);
    let error = client.push_bundle(&web, &strange, &quiet).await.expect_err("not trusted");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("vireo-repo trust"), "{error}");

    let update = site.update();
    let error =
        client.push_bundle(&image("wep"), &update, &quiet).await.expect_err("no such image");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("wep"), "{error}");

    for cut in [0, 100, 300, update.len() - 1] {
        let error = client.push_bundle(&web, &update[..cut], &quiet).await.expect_err("cut");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    }
    let mut flipped = update.clone();
    flipped[300] ^= 1;
    let error = client.push_bundle(&web, &flipped, &quiet).await.expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert_eq!(client.log(&web).await.expect("there").versions.len(), 1);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_push_sends_only_what_is_missing() {
    let site = Site::new().await;
    site.create("db").await;
    let client = site.client().await;
    let content = noise(1);
    let large = bundle(BASE, &[("/page", &content)], &site.key);
    let head = head(&large, &site.key);
    assert!(head.frames.len() > 2, "{} frames show nothing", head.frames.len());
    let all: u64 = head.frames.iter().map(|frame| frame.len).sum();

    // What an earlier push left: one frame whole, one that rotted on the disk.
    for number in [0, 1] {
        let bytes = frame_bytes(&large, &head, number);
        site.repository.put_frame(head.digest, head.frames[number].digest, bytes).expect("kept");
    }
    fs::write(stored_frame(&site, &head, 1), "rotten").expect("writable");

    let rest = all - head.frames[0].len - head.frames[1].len;
    assert_eq!(
        push_counting(&client, "web", &large).await,
        rest,
        "and the rotten one when it shows"
    );
    assert_eq!(client.log(&image("web")).await.expect("there").versions.len(), 2);
    assert!(!stored_frame(&site, &head, 0).exists(), "what arrived is cleared away");

    // Another bundle with the same frames: all of them are in a stored one.
    let other = bundle(BASE, &[("/page", &content), ("/more", b"")], &site.key);
    assert_ne!(self::head(&other, &site.key).digest, head.digest);
    assert_eq!(push_counting(&client, "db", &other).await, 0);
    assert_eq!(site.repository.fsck().expect("readable").findings, []);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_not_what_it_should_be_is_refused() {
    let site = Site::new().await;
    let http = raw_client(&site);
    let (bundle, frame) = (Digest::of(b"bundle"), Digest::of(b"frame"));
    let url = format!("{}/v1/incoming/{bundle}/frames/{frame}", site.url);
    let put =
        |body: Vec<u8>| http.put(&url).bearer_auth(site.token.secret.reveal()).body(body).send();
    for (body, status) in
        [(b"fram".to_vec(), 422), (vec![0; 90 << 20], 413), (b"frame".to_vec(), 204)]
    {
        let response = put(body).await.expect("it answers");
        assert_eq!(response.status().as_u16(), status);
    }
    let missing = site.repository.missing_frames(bundle, &[frame]).expect("readable");
    assert_eq!(missing, [], "the whole one was kept");
    site.end().await;
}

fn raw_client(site: &Site) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(site.repository.ca_pem().as_bytes()).expect("PEM");
    reqwest::Client::builder().no_proxy().tls_certs_only([ca]).build().expect("it can be built")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_its_frames_is_incomplete() {
    let site = Site::new().await;
    let update = site.update();
    let head = head(&update, &site.key);
    let bytes = &update[..usize::try_from(head.head_len).expect("it fits")];
    let error = site
        .repository
        .push_head(&image("web"), bytes, Default::default())
        .expect_err("no frame came");
    assert_eq!(error.kind(), crate::ErrorKind::Incomplete, "{error}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_it_stopped() {
    let site = Site::new().await;
    let client = site.client().await;
    let large = bundle(BASE, &[("/page", &noise(2))], &site.key);
    let digest = head(&large, &site.key).digest;
    client.push_bundle(&image("web"), &large, &quiet).await.expect("pushed");

    let to = site.dir.path().join("fetched.vireo");
    let half = large.len() / 2;
    site.file("fetched.vireo.part", &large[..half]);
    let first = Mutex::new(None);
    let note = |progress: Progress| {
        first.lock().expect("not poisoned").get_or_insert(progress.done);
    };
    client.download_bundle(digest, large.len() as u64, &to, &note).await.expect("fetched");
    assert!(fs::read(&to).expect("readable") == large, "the halves make the whole");
    let first = first.into_inner().expect("not poisoned").expect("something came");
    assert!(first > half as u64, "{first}: the first half was fetched again");
    assert!(!site.dir.path().join("fetched.vireo.part").exists());

    // A longer rest of something else is not built upon.
    site.file("again.vireo.part", &[0; 20 << 20]);
    let to = site.dir.path().join("again.vireo");
    client.download_bundle(digest, large.len() as u64, &to, &quiet).await.expect("fetched");
    assert!(fs::read(&to).expect("readable") == large);

    let absent =
        client.download_bundle(Digest::of(b"x"), 1, Path::new("/nonexistent/x"), &quiet).await;
    assert_eq!(absent.expect_err("no such directory").kind(), ErrorKind::Local);
    let to = site.dir.path().join("absent");
    let absent = client.download_bundle(Digest::of(b"x"), 1, &to, &quiet).await;
    assert_eq!(absent.expect_err("no such bundle").kind(), ErrorKind::NotFound);
    let wrong = client.download_bundle(digest, 5, &to, &quiet).await.expect_err("another length");
    assert_eq!(wrong.kind(), ErrorKind::Protocol, "{wrong}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_enrols_is_woken_by_a_push_and_reports() {
    let site = Site::new().await;
    let (agent, reply) = site.enrolled().await;
    let base = tree(BASE).digest();
    assert_eq!((reply.version.number, reply.version.tree), (1, base));
    assert_eq!(reply.trusted, [site.key.public()]);
    assert!(reply.ignore.contains(&"/tmp/**".to_owned()), "the defaults are in the list");
    let idle = agent.next(&reply.instance, base, Duration::ZERO).await.expect("known");
    assert_eq!(idle, Next::UpToDate { version: reply.version });

    let waiting = {
        let (agent, id) = (agent.clone(), reply.instance.clone());
        tokio::spawn(async move { agent.next(&id, base, Duration::from_secs(60)).await })
    };
    let admin = site.client().await;
    let update = site.update();
    admin.push_bundle(&image("web"), &update, &quiet).await.expect("pushed");
    let next = waiting.await.expect("no panic").expect("known");
    let target = tree(TARGET).digest();
    let digest = head(&update, &site.key).digest;
    let file_len = update.len() as u64;
    assert_eq!(next, Next::Update { bundle: digest, version: 2, base, target, file_len });

    let to = site.dir.path().join("update.vireo");
    agent.download_bundle(digest, file_len, &to, &quiet).await.expect("its image's bundle");
    let receipt = serde_json::json!({ "schema": "vireo.receipt/1" });
    let post = ReceiptPost { tree: target, outcome: "done".into(), receipt };
    agent.send_receipt(&reply.instance, &post).await.expect("kept");
    assert_eq!(admin.last_receipt(&reply.instance).await.expect("there"), post);
    let fleet = admin.instances().await.expect("there");
    assert_eq!(fleet.len(), 1);
    assert_eq!((fleet[0].version, fleet[0].last_outcome.as_deref()), (Some(2), Some("done")));

    let lost = agent.next(&reply.instance, Digest::of(b"x"), Duration::ZERO).await;
    assert_eq!(lost.expect_err("no version").kind(), ErrorKind::Conflict);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_is_too_long_is_refused_and_the_instance_goes_on() {
    let site = Site::new().await;
    let (client, reply) = site.enrolled().await;
    let post = |len: usize| ReceiptPost {
        tree: tree(BASE).digest(),
        outcome: "done".to_owned(),
        receipt: "x".repeat(len).into(),
    };
    // Names and quotes of the message around it.
    let longest = MAX_RECEIPT_LEN - serde_json::to_vec(&post(0)).expect("plain data").len();
    client.send_receipt(&reply.instance, &post(longest)).await.expect("just short enough");
    let refused = client.send_receipt(&reply.instance, &post(longest + 1)).await;
    assert_eq!(refused.expect_err("too long").kind(), ErrorKind::Refused);
    let next = client.next(&reply.instance, tree(BASE).digest(), Duration::ZERO).await;
    assert!(matches!(next, Ok(Next::UpToDate { .. })), "{next:?}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_at_the_servers_side_is_in_its_log_and_what_a_client_did_wrong_is_not() {
    let site = Site::new().await;
    let (agent, reply) = site.enrolled().await;
    let failures = || {
        let log = site.log.lock().expect("not poisoned");
        let failed = |event: &Event| match event {
            Event::Failed { request, .. } => Some(request.clone()),
            _ => None,
        };
        log.iter().filter_map(failed).collect::<Vec<_>>()
    };
    let error = agent.last_receipt(&reply.instance).await.expect_err("none was sent");
    assert_eq!((error.kind(), failures()), (ErrorKind::NotFound, Vec::new()));
    let receipt = serde_json::json!({});
    let post = ReceiptPost { tree: tree(BASE).digest(), outcome: "done".into(), receipt };
    agent.send_receipt(&reply.instance, &post).await.expect("kept");
    let receipts =
        site.repository.root().join("instances").join(reply.instance.as_str()).join("receipts");
    for entry in fs::read_dir(receipts).expect("there") {
        fs::write(entry.expect("readable").path(), "{").expect("written");
    }
    let error = agent.last_receipt(&reply.instance).await.expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Server, "{error}");
    assert_eq!(failures(), [format!("last receipt of {}", reply.instance)]);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_published_wakes_those_who_wait() {
    let site = Site::new().await;
    let app = Arc::new(App::new(Arc::clone(&site.repository)));
    let create = async |name: &str| {
        let disk = site.file("disk.img", &FakeImages::disk(&tree(BASE)));
        let mut packed = Vec::new();
        vireo_wire::disk::pack(&mut fs::File::open(disk).expect("there"), &mut packed)
            .expect("packed");
        let (state, path) = (State(Arc::clone(&app)), axum::extract::Path(name.to_owned()));
        content::create(state, path, Known(Caller::Admin), HeaderMap::new(), packed.into()).await
    };
    assert!(create("web").await.is_err(), "it is there");
    let (state, path) = (State(Arc::clone(&app)), axum::extract::Path("web".to_owned()));
    let no_bundle = Ok(axum::body::Bytes::from_static(b"no bundle"));
    let pushed = images::push(state, path, Known(Caller::Admin), HeaderMap::new(), no_bundle);
    assert!(pushed.await.is_err());
    assert_eq!(*app.published.borrow(), 0);
    assert!(create("db").await.is_ok());
    assert_eq!(*app.published.borrow(), 1);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_does_what_his_token_is_not_for() {
    let site = Site::new().await;
    site.create("db").await;
    let (agent, reply) = site.enrolled().await;
    let enroll = site.repository.create_enroll_token(Some(&image("web"))).expect("made");
    let enroller = Client::connect(&site.url, &enroll).await.expect("it serves");
    let mut unknown = enroll.clone();
    unknown.secret = vireo_wire::Secret::from_bytes([7; 32]);
    let unknown = Client::connect(&site.url, &unknown).await.expect("it serves");
    let (web, db) = (image("web"), image("db"));
    let request = EnrollRequest {
        name: "x".into(),
        image: db.clone(),
        tree: tree(BASE).digest(),
        cloud_id: None,
    };
    let kinds = [
        ("unknown reads", unknown.log(&web).await.err()),
        ("enroller pushes", enroller.push_bundle(&web, &site.update(), &quiet).await.err()),
        ("enroller lists", enroller.images().await.err()),
        ("enroller reads another image", enroller.log(&db).await.err()),
        ("enroller enrols for another image", enroller.enroll(&request).await.err()),
        ("agent pushes", agent.push_bundle(&web, &site.update(), &quiet).await.err()),
        ("agent lists the fleet", agent.instances().await.err()),
        ("agent reads another image", agent.log(&db).await.err()),
        ("agent enrols", agent.enroll(&request).await.err()),
        ("administrator polls", site.client().await.last_receipt(&reply.instance).await.err()),
    ];
    for (what, error) in kinds {
        let expected = if what.starts_with("administrator") {
            ErrorKind::NotFound
        } else {
            ErrorKind::Unauthorised
        };
        assert_eq!(error.map(|error| error.kind()), Some(expected), "{what}");
    }
    assert!(agent.log(&web).await.is_ok(), "an instance reads its own image");
    assert!(enroller.log(&web).await.is_ok(), "and so does who is to enrol for it");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_authority_gets_no_secret() {
    let [site, impostor] = [Site::new().await, Site::new().await];
    let error = Client::connect(&impostor.url, &site.token).await.expect_err("another authority");
    assert_eq!(error.kind(), ErrorKind::Unauthorised, "{error}");
    let client =
        Client::with_ca(&impostor.url, site.repository.ca_pem(), &site.token.secret).expect("PEM");
    let error = client.images().await.expect_err("its certificate is from another authority");
    assert_eq!(error.kind(), ErrorKind::Unauthorised, "{error}");
    site.end().await;
    impostor.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_worked_on_is_busy_and_not_in_conflict() {
    let site = Site::new().await;
    let writes = Arc::new(vireo_store::Durable);
    let store = vireo_store::Store::open(&site.dir.path().join("repo"), writes).expect("opened");
    let held = store.lock_image(&image("db"), std::time::Duration::ZERO).expect("free");
    let disk = site.file("disk.img", &FakeImages::disk(&tree(BASE)));
    let options = CreateImage::default();
    let create = async || {
        let client = site.client().await;
        client.create_image(&image("db"), &disk, &options, &quiet).await
    };
    let error = create().await.expect_err("somebody makes it");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    drop(held);
    create().await.expect("nobody makes it any more");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_created_once_and_only_from_an_image() {
    let site = Site::new().await;
    let client = site.client().await;
    let options = CreateImage::default();
    let disk = site.file("disk.img", &FakeImages::disk(&tree(BASE)));
    let error =
        client.create_image(&image("web"), &disk, &options, &quiet).await.expect_err("there");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let junk = site.file("junk.img", b"junk");
    let error = client.create_image(&image("db"), &junk, &options, &quiet).await.expect_err("junk");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let http = raw_client(&site);
    let url = format!("{}/v1/images/web", site.url);
    let large = vec![0; 200 << 20];
    let late = http.post(url).bearer_auth(site.token.secret.reveal()).body(large).send().await;
    assert_eq!(
        late.expect("the reply is not lost").status().as_u16(),
        409,
        "who does not ask first"
    );
    let url = format!("{}/v1/images/db", site.url);
    let cut =
        http.post(url).bearer_auth(site.token.secret.reveal()).body(vec![0x28, 0xb5]).send().await;
    assert_eq!(cut.expect("it answers").status().as_u16(), 422, "no whole stream");
    assert_eq!(client.images().await.expect("there").len(), 1);
    client
        .create_image(&image("db"), &disk, &options, &quiet)
        .await
        .expect("nothing is in the way");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_long_polls() {
    let site = Site::new().await;
    let (agent, reply) = site.enrolled().await;
    let base = tree(BASE).digest();
    let waiting =
        tokio::spawn(
            async move { agent.next(&reply.instance, base, Duration::from_secs(300)).await },
        );
    tokio::time::sleep(Duration::from_millis(200)).await;
    let ending = tokio::time::timeout(Duration::from_secs(5), site.end());
    ending.await.expect("the poll does not hold the server up");
    assert!(matches!(waiting.await.expect("no panic"), Ok(Next::UpToDate { .. })));
}
