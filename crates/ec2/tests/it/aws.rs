//! A server with EC2's interface: moto for what moto is right about, our own for the rest.
//!
//! Every request goes through it, so that faults can be thrown in and parameters be looked at. What moto
//! drops or lets pass, names taken twice, snapshots that are not complete, is checked here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as At, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use serde_json::{Value, json};
use vireo_testkit::{Cache, Moto};

use crate::ebs::{BLOCK_LEN, Ebs, Refusal, Start, Status};

/// Blocks on a page: small, so that small snapshots have several.
const PAGE: usize = 5;

/// Machines on a page: the fewest that EC2 allows.
const MACHINES: &str = "5";

/// What the tests' own client says in its user agent: its calls are no calls of the adapter.
pub(crate) const OWN_CLIENT: &str = "own-client";

/// The calls of the EBS direct interface.
const DIRECT: [&str; 5] = [
    "StartSnapshot",
    "PutSnapshotBlock",
    "CompleteSnapshot",
    "ListSnapshotBlocks",
    "GetSnapshotBlock",
];

/// A call: its name and, of EC2's, its parameters.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) action: String,
    pub(crate) parameters: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) ebs: Ebs,
    pub(crate) asked: Vec<Asked>,
    /// Every third call of any kind is answered that there were too many, every fifth of the EBS direct
    /// interface with an internal error.
    pub(crate) is_faulty: bool,
    /// Calls since it is.
    calls: usize,
    /// Faults that were thrown in.
    pub(crate) faults: usize,
    /// Every put after so many is refused.
    pub(crate) puts_left: Option<usize>,
    /// Calls of these actions are refused for want of a right.
    pub(crate) denied: BTreeSet<String>,
    /// Answers that do not arrive, though what was asked for is done.
    pub(crate) lost: Option<Lost>,
    /// What moto answered to each token that made a version of a launch template.
    tokens: BTreeMap<String, String>,
    /// Versions of launch templates that were deleted, by their numbers.
    deleted_versions: BTreeSet<String>,
    pub(crate) deprecated: BTreeSet<String>,
    /// Snapshots of volumes that failed.
    pub(crate) failed: BTreeSet<String>,
    names: BTreeMap<String, String>,
    tasks: BTreeMap<String, u32>,
}

/// Answers of one action that are lost: the connection ends instead.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    pub(crate) action: &'static str,
    /// How many arrive before.
    pub(crate) after: usize,
    /// How many are lost then.
    pub(crate) times: usize,
}

impl World {
    /// Whether the answer to this call is to be lost.
    fn loses(&mut self, action: &str) -> bool {
        let Some(lost) = self.lost.as_mut().filter(|lost| lost.action == action) else {
            return false;
        };
        if lost.after > 0 {
            lost.after -= 1;
            return false;
        }
        let is_due = lost.times > 0;
        lost.times = lost.times.saturating_sub(1);
        is_due
    }
}

#[derive(Debug)]
pub(crate) struct Aws {
    pub(crate) address: SocketAddr,
    pub(crate) world: Arc<Mutex<World>>,
    _moto: Arc<Moto>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone, Debug)]
struct Server {
    world: Arc<Mutex<World>>,
    moto: SocketAddr,
    /// Every test has an account of its own.
    account: String,
    client: reqwest::Client,
}

/// The moto of all tests that run: it ends with the last of them.
static MOTO: Mutex<Weak<Moto>> = Mutex::new(Weak::new());

/// Numbers accounts.
static ACCOUNTS: AtomicU32 = AtomicU32::new(1);

fn moto(dir: &Path) -> Arc<Moto> {
    let mut shared = MOTO.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(moto) = shared.upgrade() {
        return moto;
    }
    let images = dir.join("amis.json");
    std::fs::write(&images, models().to_string()).expect("writable");
    let cache = Cache::open().expect("a cache directory");
    let moto = Arc::new(Moto::start(&cache, &images).expect("moto starts"));
    *shared = Arc::downgrade(&moto);
    moto
}

impl Aws {
    /// Starts one with the machine images `ami-like`, `ami-store` (of instance store); `dir` is for files.
    pub(crate) fn start(dir: &Path) -> Self {
        let moto = moto(dir);
        let world = Arc::<Mutex<World>>::default();
        let server = Server {
            world: Arc::clone(&world),
            moto: moto.address(),
            account: format!("{:012}", ACCOUNTS.fetch_add(1, Ordering::Relaxed)),
            client: reqwest::Client::new(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(async move { axum::serve(listener, router(server)).await });
        Self { address, world, _moto: moto, _runtime: runtime }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// Parameters of every call of `action`.
    pub(crate) fn calls_of(&self, action: &str) -> Vec<BTreeMap<String, String>> {
        let world = self.world();
        let calls = world.asked.iter().filter(|asked| asked.action == action);
        calls.map(|asked| asked.parameters.clone()).collect()
    }
}

impl Drop for Aws {
    /// Whatever a test has the adapter do, the documented rights are enough for it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let rights = rights();
        for Asked { action, .. } in &self.world().asked {
            let service = if DIRECT.contains(&action.as_str()) { "ebs" } else { "ec2" };
            let right = format!("{service}:{action}");
            assert!(rights.contains(right.as_str()), "docs/ec2.md does not ask for {right}");
        }
    }
}

/// The actions that the policy allows, and those whose resources the text has to name.
fn rights() -> BTreeSet<&'static str> {
    let text = include_str!("../../../../docs/ec2.md");
    let policy = text.split("```json").nth(1).and_then(|rest| rest.split("```").next());
    let policy: Value = serde_json::from_str(policy.expect("a policy")).expect("JSON");
    assert!(policy["Statement"].as_array().is_some_and(|all| all.len() > 5), "{policy}");
    let (_, rights) = text.split_once("## Rights").expect("a chapter");
    let words = rights.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != ':');
    words.filter(|word| word.starts_with("ec2:") || word.starts_with("ebs:")).collect()
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

fn models() -> Value {
    let model = |id: &str, root: &str| {
        json!({
            "ami_id": id, "state": "available", "public": true, "owner_id": "099720109477",
            "image_location": "amazon/like", "sriov": "simple", "root_device_type": root,
            "root_device_name": "/dev/xvda", "description": "a model", "image_type": "machine",
            "platform": null, "architecture": "arm64", "name": id, "virtualization_type": "hvm",
            "hypervisor": "xen"
        })
    };
    json!([model("ami-like", "ebs"), model("ami-store", "instance-store")])
}

fn router(server: Server) -> Router {
    Router::new()
        .route("/", post(ec2))
        .route("/snapshots", post(start_snapshot))
        .route("/snapshots/completion/{id}", post(complete_snapshot))
        .route("/snapshots/{id}/blocks", get(list_blocks))
        .route("/snapshots/{id}/blocks/{index}", put(put_block).get(get_block))
        .layer(from_fn_with_state(server.clone(), direct))
        .layer(DefaultBodyLimit::max(2 * BLOCK_LEN))
        .with_state(server)
}

// What follows is the EBS direct interface, JSON over HTTP.

/// Notes the calls of the interface, refuses those for which there is no right, and loses answers.
async fn direct(State(server): State<Server>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let action = match (request.method(), path.strip_prefix("/snapshots")) {
        (_, None) => return next.run(request).await,
        (&Method::POST, Some("")) => "StartSnapshot",
        (&Method::POST, Some(_)) => "CompleteSnapshot",
        (&Method::PUT, Some(_)) => "PutSnapshotBlock",
        (_, Some(rest)) if rest.ends_with("/blocks") => "ListSnapshotBlocks",
        _ => "GetSnapshotBlock",
    };
    let denied = {
        let mut world = lock(&server.world);
        world.asked.push(Asked { action: action.to_owned(), parameters: BTreeMap::new() });
        world.denied.contains(action)
    };
    if denied {
        return refusal((403, "AccessDeniedException", "no right to do this".into()));
    }
    let reply = next.run(request).await;
    deliver(&server, action, reply)
}

/// Gives the answer, or ends the connection without it.
fn deliver(server: &Server, action: &str, reply: Response) -> Response {
    if lock(&server.world).loses(action) {
        // Ends the connection's task, without the words of a panic.
        std::panic::resume_unwind(Box::new("the answer is lost"));
    }
    reply
}

fn refusal((status, code, message): Refusal) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = json!({ "Message": message }).to_string();
    (status, [("x-amzn-errortype", code), ("content-type", "application/json")], body)
        .into_response()
}

/// Remembers what was invalid: no test may send such a thing unawares.
fn answer(world: &mut World, outcome: Result<Response, Refusal>) -> Response {
    outcome.unwrap_or_else(|refused| {
        if refused.1 == "ValidationException" {
            world.ebs.invalid.push(refused.2.clone());
        }
        refusal(refused)
    })
}

/// Whether a fault is due at every `nth` call.
fn is_due(world: &mut World, nth: usize) -> bool {
    let due = world.is_faulty && world.calls.is_multiple_of(nth);
    world.faults += usize::from(due);
    due
}

/// A fault, if one is due.
fn fault(world: &mut World) -> Option<Response> {
    world.calls += 1;
    if is_due(world, 3) {
        return Some(refusal((400, "RequestThrottledException", "too many requests".into())));
    }
    if is_due(world, 5) {
        return Some(refusal((500, "InternalServerException", "an internal error".into())));
    }
    None
}

fn header_of(headers: &HeaderMap) -> impl Fn(&str) -> Option<String> {
    |name| headers.get(name)?.to_str().ok().map(str::to_owned)
}

async fn start_snapshot(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> Response {
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |key: &str| asked[key].as_str().map(str::to_owned);
    let start = Start {
        volume_gib: asked["VolumeSize"].as_u64().unwrap_or(0),
        parent: text("ParentSnapshotId"),
        token: text("ClientToken").unwrap_or_default(),
        encrypted: asked["Encrypted"].as_bool(),
    };
    let known = {
        let mut world = lock(&server.world);
        if let Some(fault) = fault(&mut world) {
            return fault;
        }
        let checked = world.ebs.started(&start).and_then(|known| match known {
            Some(known) => Ok(Some(known)),
            None => world.ebs.check_start(&start).map(|()| None),
        });
        match checked {
            Ok(known) => known,
            Err(refused) => return answer(&mut world, Err(refused)),
        }
    };
    let id = match known {
        Some(known) => known,
        // EC2's side of the snapshot is moto's.
        None => {
            let (_, made) = forward(&server, "/snapshots", &headers, body).await;
            let made: Value = serde_json::from_str(&made).unwrap_or_default();
            made["SnapshotId"].as_str().expect("moto makes a snapshot").to_owned()
        }
    };
    let mut world = lock(&server.world);
    let snapshot = world.ebs.start(&id, &start);
    let mut reply = json!({
        "SnapshotId": id, "Status": "pending", "BlockSize": BLOCK_LEN, "VolumeSize": start.volume_gib,
        "Tags": asked["Tags"], "ParentSnapshotId": start.parent, "OwnerId": "123456789012",
        "SseType": if snapshot.encrypted { "sse-kms" } else { "none" }
    });
    if snapshot.encrypted {
        reply["KmsKeyArn"] = json!("arn:aws:kms:eu-central-1:123456789012:key/1");
    }
    (StatusCode::CREATED, reply.to_string()).into_response()
}

async fn put_block(
    State(server): State<Server>,
    At((id, index)): At<(String, u32)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut world = lock(&server.world);
    if let Some(fault) = fault(&mut world) {
        return fault;
    }
    if let Some(left) = world.puts_left {
        if left == 0 {
            return refusal((403, "AccessDeniedException", "no right to put".into()));
        }
        world.puts_left = Some(left - 1);
    }
    let put = world.ebs.put(&id, index, header_of(&headers), &body);
    let reply = put.map(|sum| {
        let headers = [("x-amz-checksum", sum), ("x-amz-checksum-algorithm", "SHA256".to_owned())];
        (StatusCode::CREATED, headers, "{}").into_response()
    });
    answer(&mut world, reply)
}

async fn complete_snapshot(
    State(server): State<Server>,
    At(id): At<String>,
    headers: HeaderMap,
) -> Response {
    {
        let mut world = lock(&server.world);
        if let Some(fault) = fault(&mut world) {
            return fault;
        }
        let completed = world.ebs.complete(&id, header_of(&headers));
        if let Err(refused) = completed {
            return answer(&mut world, Err(refused));
        }
    }
    forward(&server, &format!("/snapshots/completion/{id}"), &headers, Bytes::new()).await;
    (StatusCode::ACCEPTED, json!({ "Status": "completed" }).to_string()).into_response()
}

async fn list_blocks(
    State(server): State<Server>,
    At(id): At<String>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let mut world = lock(&server.world);
    if let Some(fault) = fault(&mut world) {
        return fault;
    }
    // A token that starts with "empty" gets a page without blocks: EBS may answer so.
    let page = query.get("pageToken").map(|token| token.trim_start_matches("empty"));
    let is_empty = query.get("pageToken").is_some_and(|token| token.starts_with("empty"));
    let from = page.or(query.get("startingBlockIndex").map(String::as_str));
    let from: u32 = from.and_then(|from| from.parse().ok()).unwrap_or(0);
    let listed = world.ebs.list(&id, from, if is_empty { 0 } else { PAGE });
    let gib = world.ebs.get(&id).map(|snapshot| snapshot.volume_gib).unwrap_or(0);
    let reply = listed.map(|(blocks, next)| {
        let next =
            next.map(|next| if is_empty { next.to_string() } else { format!("empty{next}") });
        let blocks: Vec<Value> = blocks
            .into_iter()
            .map(|(index, token)| json!({ "BlockIndex": index, "BlockToken": token }))
            .collect();
        let reply = json!({
            "Blocks": blocks, "NextToken": next, "BlockSize": BLOCK_LEN, "VolumeSize": gib,
            "ExpiryTime": 4_000_000_000_u64
        });
        (StatusCode::OK, reply.to_string()).into_response()
    });
    answer(&mut world, reply)
}

async fn get_block(
    State(server): State<Server>,
    At((id, index)): At<(String, u32)>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let mut world = lock(&server.world);
    if let Some(fault) = fault(&mut world) {
        return fault;
    }
    let token = query.get("blockToken").cloned().unwrap_or_default();
    let read = world.ebs.read(&id, index, &token);
    let content = match read {
        Ok(content) => content,
        // Not remembered as invalid: that a token has expired is the server's doing.
        Err(refused) => return refusal(refused),
    };
    let sum = aws_smithy_types::base64::encode(<sha2::Sha256 as sha2::Digest>::digest(&*content));
    let headers = [
        ("x-amz-data-length", BLOCK_LEN.to_string()),
        ("x-amz-checksum", sum),
        ("x-amz-checksum-algorithm", "SHA256".to_owned()),
    ];
    (headers, content.to_vec()).into_response()
}

// What follows is EC2's interface, forms in and XML out.

async fn forward(server: &Server, path: &str, headers: &HeaderMap, body: Bytes) -> (u16, String) {
    let mut request = server.client.post(format!("http://{}{path}", server.moto)).body(body);
    request = request.header("x-moto-account-id", &server.account);
    for name in ["authorization", "content-type", "x-amz-date"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let reply = request.send().await.expect("moto answers");
    let status = reply.status().as_u16();
    (status, reply.text().await.expect("moto answers with text"))
}

async fn ec2(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> Response {
    let parameters = form(&body);
    let action = parameters.get("Action").cloned().unwrap_or_default();
    let agent = header_of(&headers)(header::USER_AGENT.as_str()).unwrap_or_default();
    if agent.contains(OWN_CLIENT) {
        return answer_ec2(&server, &action, &parameters, &headers, body).await;
    }
    {
        let mut world = lock(&server.world);
        world.asked.push(Asked { action: action.clone(), parameters: parameters.clone() });
        world.calls += 1;
        if is_due(&mut world, 3) {
            return error(503, "RequestLimitExceeded", "too many requests");
        }
        if world.denied.contains(&action) {
            return error(403, "UnauthorizedOperation", "you may not do this");
        }
    }
    let reply = answer_ec2(&server, &action, &parameters, &headers, body).await;
    deliver(&server, &action, reply)
}

async fn answer_ec2(
    server: &Server,
    action: &str,
    parameters: &BTreeMap<String, String>,
    headers: &HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(reply) = own(&mut lock(&server.world), action, parameters) {
        return reply;
    }
    let body = match action {
        "DescribeInstances" => with(parameters, "MaxResults", MACHINES),
        _ => body,
    };
    let (status, mut text) = forward(server, "/", headers, body).await;
    let mut world = lock(&server.world);
    if status == 200 {
        after(&mut world, action, parameters, &mut text);
    }
    xml(status, text)
}

/// Calls that moto does not know, and what it lets pass.
fn own(world: &mut World, action: &str, asked: &BTreeMap<String, String>) -> Option<Response> {
    let of = |key: &str| asked.get(key).cloned().unwrap_or_default();
    let done =
        |inner: String| Some(xml(200, format!("<{action}Response>{inner}</{action}Response>")));
    match action {
        "RegisterImage" => {
            if world.names.contains_key(&of("Name")) {
                return Some(error(400, "InvalidAMIName.Duplicate", "the name is taken"));
            }
            let snapshot = of("BlockDeviceMapping.1.Ebs.SnapshotId");
            match world.ebs.snapshots.get(&snapshot).map(|snapshot| snapshot.status) {
                Some(Status::Completed) => None,
                // One that was made of a volume is moto's alone.
                None if snapshot.starts_with("snap-") && !of("Name").is_empty() => None,
                _ => Some(error(400, "InvalidSnapshot.NotFound", "there is no complete snapshot")),
            }
        }
        // Moto makes another version for the same token.
        "CreateLaunchTemplateVersion" => {
            let made = world.tokens.get(&of("ClientToken"))?;
            Some(xml(200, made.clone()))
        }
        // Moto does not know it.
        "DeleteLaunchTemplateVersions" => {
            world.deleted_versions.insert(of("LaunchTemplateVersion.1"));
            done(String::new())
        }
        "EnableImageDeprecation" => {
            if of("DeprecateAt").is_empty() {
                return Some(error(400, "MissingParameter", "DeprecateAt"));
            }
            world.deprecated.insert(of("ImageId"));
            done("<return>true</return>".to_owned())
        }
        "DisableImageDeprecation" => {
            world.deprecated.remove(&of("ImageId"));
            done("<return>true</return>".to_owned())
        }
        "DescribeImageAttribute" => done(format!(
            "<imageId>{}</imageId><uefiData><value>dWVmaQ==</value></uefiData>",
            of("ImageId")
        )),
        "CreateReplaceRootVolumeTask" => {
            let id = format!("replacevol-{}", of("InstanceId").trim_start_matches("i-"));
            world.tasks.insert(id.clone(), 0);
            done(format!(
                "<replaceRootVolumeTask><replaceRootVolumeTaskId>{id}</replaceRootVolumeTaskId><taskState>pending</taskState></replaceRootVolumeTask>"
            ))
        }
        "DescribeReplaceRootVolumeTasks" => {
            let id = of("ReplaceRootVolumeTaskId.1");
            let looks = world.tasks.get_mut(&id)?;
            *looks += 1;
            let state = if *looks < 3 { "in-progress" } else { "succeeded" };
            done(format!(
                "<replaceRootVolumeTaskSet><item><replaceRootVolumeTaskId>{id}</replaceRootVolumeTaskId><taskState>{state}</taskState></item></replaceRootVolumeTaskSet>"
            ))
        }
        _ => None,
    }
}

/// What moto's answers lack.
fn after(world: &mut World, action: &str, asked: &BTreeMap<String, String>, text: &mut String) {
    let of = |key: &str| asked.get(key).cloned().unwrap_or_default();
    match action {
        "RegisterImage" => {
            let id = text.split("<imageId>").nth(1).and_then(|rest| rest.split('<').next());
            world.names.insert(of("Name"), id.unwrap_or_default().to_owned());
        }
        "CreateLaunchTemplateVersion" => {
            world.tokens.insert(of("ClientToken"), text.clone());
        }
        "DescribeLaunchTemplateVersions" => {
            let deleted = |item: &str| {
                let number = item.split("<versionNumber>").nth(1)?.split('<').next()?;
                world.deleted_versions.contains(number).then_some(())
            };
            for item in items(text).into_iter().rev() {
                if deleted(&text[item.clone()]).is_some() {
                    text.replace_range(item, "");
                }
            }
        }
        "DeregisterImage" => world.names.retain(|_, id| *id != of("ImageId")),
        "DeleteSnapshot" => {
            world.ebs.snapshots.remove(&of("SnapshotId"));
        }
        "DescribeImages" => {
            support(text);
            for id in &world.deprecated {
                let tag = format!("<imageId>{id}</imageId>");
                let with =
                    format!("{tag}<deprecationTime>2026-11-23T00:00:00.000Z</deprecationTime>");
                *text = text.replace(&tag, &with);
            }
        }
        "DescribeSnapshots" => {
            let by_status = asked.values().any(|value| value == "status");
            for id in &world.failed {
                fail(text, id, by_status);
            }
            let name = |id: &str| format!("<snapshotId>{id}</snapshotId>");
            for id in world.ebs.look(|id| text.contains(&name(id))) {
                let Some(at) = text.find(&name(&id)) else { continue };
                let rest = text[at..].replacen("<status>completed<", "<status>pending<", 1);
                text.replace_range(at.., &rest);
            }
        }
        _ => {}
    }
}

/// Has the model say what moto's machine images cannot have.
fn support(text: &mut String) {
    let model = "<imageId>ami-like</imageId>";
    for (name, value) in [
        ("enaSupport", "true"),
        ("sriovNetSupport", "simple"),
        ("tpmSupport", "v2.0"),
        ("imdsSupport", "v2.0"),
    ] {
        if !text.contains(&format!("<{name}>")) {
            *text = text.replace(model, &format!("{model}<{name}>{value}</{name}>"));
        }
    }
}

/// Has a list of snapshots say that one failed; if it was asked for by status, it has not that one then.
fn fail(text: &mut String, id: &str, by_status: bool) {
    let id = format!("<snapshotId>{id}</snapshotId>");
    let Some(item) = items(text).into_iter().find(|item| text[item.clone()].contains(&id)) else {
        return;
    };
    let failed = match by_status {
        true => String::new(),
        false => text[item.clone()].replace("<status>completed<", "<status>error<"),
    };
    text.replace_range(item, &failed);
}

/// Where the items of a list are, those within them left out.
fn items(text: &str) -> Vec<Range<usize>> {
    let (mut found, mut depth, mut from, mut at) = (Vec::new(), 0, 0, 0);
    while let Some(next) = text[at..].find("item>") {
        let name = at + next;
        at = name + "item>".len();
        if text[..name].ends_with("</") {
            depth -= 1;
            if depth == 0 {
                found.push(from..at);
            }
        } else {
            if depth == 0 {
                from = name - 1;
            }
            depth += 1;
        }
    }
    found
}

fn xml(status: u16, text: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [("content-type", "text/xml")], text).into_response()
}

fn error(status: u16, code: &str, message: &str) -> Response {
    xml(
        status,
        format!(
            "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>1</RequestID></Response>"
        ),
    )
}

fn form(body: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(body);
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (unescape(key), unescape(value))).collect()
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                bytes.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The same form with another value for `key`.
fn with(parameters: &BTreeMap<String, String>, key: &str, value: &str) -> Bytes {
    let escape = |text: &str| {
        text.bytes()
            .map(|byte| match byte {
                byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect::<String>()
    };
    let mut all = parameters.clone();
    all.insert(key.to_owned(), value.to_owned());
    let pairs: Vec<String> =
        all.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value))).collect();
    pairs.join("&").into()
}
