//! Builds of a repository: several at a time, each in a confined process of its own, and what is
//! left when that process or its server is killed.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use vireo_testkit::image::clone_image;
use vireo_testkit::{Run, fixture, programs};
use vireo_tests::{Moment, Server, Snapshot, start_vireo, vireo_repo};

use crate::repository::Site;

/// Images that are built at the same time.
const AT_ONCE: usize = 4;

/// Longest for a worker to begin or to end.
const DEADLINE: Duration = Duration::from_secs(20);

/// What a build does in a worker, in this order: the clone, the mount, staging, the commit, unmounting,
/// the check, putting in place.
const MOMENTS: &[(&str, u32)] = &[
    ("copy_file_range", 1),
    ("fsopen", 1),
    ("fsmount", 1),
    ("syncfs", 1),
    ("renameat", 1),
    ("syncfs", 2),
    ("execve", 1),
    ("linkat,link", 1),
];

fn push(site: &Site, server: &Server, bundle: &str, image: &str) -> anyhow::Result<Child> {
    let token = format!("@{}", site.scene.arg("repo/admin-token"));
    start_vireo(["push", &site.scene.arg(bundle), image, "--repo", server.url(), "--token", &token])
}

#[test]
fn root_four_images_are_built_at_a_time() -> anyhow::Result<()> {
    let site = Site::new()?;
    let scene = &site.scene;
    let server = site.serve()?;
    for n in 0..AT_ONCE {
        let [base, target] = ["base", "target"].map(|name| scene.path(&format!("{name}-{n}.img")));
        for (from, to) in [(scene.base(), &base), (scene.target(), &target)] {
            clone_image(&from, to)?;
            fixture::edit(
                to,
                0,
                "echo \"$2\" > \"$1/own\"; touch -d @9 \"$1/own\"",
                &[&n.to_string()],
            )?;
        }
        scene.capture(&base, &target, &scene.path(&format!("{n}.vireo")))?;
        let (name, base) = (format!("image-{n}"), base.display().to_string());
        site.ask(&server, &["image", "create", &name, &base])?.ok()?;
    }
    // Two more that become one and the same tree.
    for name in ["one", "other"] {
        site.ask(&server, &["image", "create", name, &scene.arg("base.img")])?.ok()?;
    }
    let mut pushes = (0..AT_ONCE)
        .map(|n| push(&site, &server, &format!("{n}.vireo"), &format!("image-{n}")))
        .chain(["one", "other"].map(|name| push(&site, &server, "update.vireo", name)))
        .collect::<anyhow::Result<Vec<Child>>>()?;
    for push in &mut pushes {
        let status = push.wait()?;
        ensure!(status.success(), "a push failed: {status}\n{}", server.log());
    }
    for name in ["image-0", "image-1", "image-2", "image-3", "one", "other"] {
        site.ask(&server, &["image", "verify", &format!("{name}@2")])?.ok()?;
    }
    site.fsck()?;
    site.is_tidy()?;
    scene.nothing_attached()
}

#[test]
fn root_a_worker_can_do_nothing_but_build() -> anyhow::Result<()> {
    let order = format!("{{\"parent\":{},\"job\":\"probe\"}}", std::process::id());
    let mut child = std::process::Command::new(programs::find("vireo-repo")?)
        .arg("worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("piped")?, order.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    for word in ["no_sockets", "no_modules", "no_namespaces", "no_new_rights", "can_mount"] {
        ensure!(answer["probed"][word] == true, "{word}: {answer}");
    }
    ensure!(answer["probed"]["excess_rights"] == serde_json::json!([]), "{answer}");
    // This process could.
    std::net::TcpListener::bind("127.0.0.1:0").context("a socket can be made here")?;
    // A job for another parent is not begun.
    let ran = Run::new(programs::find("vireo-repo")?);
    let ran = ran.arg("worker").input("{\"parent\":1,\"job\":\"probe\"}").output()?;
    ensure!(ran.stdout.contains("is gone"), "{ran:?}");
    vireo_repo(["worker"])?.exits(1)?;
    Ok(())
}

#[test]
fn root_a_worker_killed_at_any_step_leaves_server_and_image_as_they_were() -> anyhow::Result<()> {
    let (site, mut server) = Site::with_image()?;
    let mut failed = 0;
    for (call, nth) in MOMENTS {
        let mut check = || -> anyhow::Result<()> {
            let ambush = Moment { call, nth: *nth }.ambush(server.pid())?;
            let pushed = site.push(&server, "update.vireo")?;
            drop(ambush);
            ensure!(server.is_alive()?, "the server went with its worker");
            if pushed.output().code == 0 {
                bail!("the worker was not killed: {pushed:?}");
            }
            pushed.fails(1, &["nothing was changed, try again"])?;
            failed += 1;
            site.scene.nothing_attached()?;
            ensure!(site.versions(&server)?.len() == 1, "a version was published");
            site.ask(&server, &["image", "verify", "web"])?.ok()?;
            Ok(())
        };
        check().with_context(|| format!("{call} {nth}"))?;
    }
    ensure!(failed == MOMENTS.len());
    site.push(&server, "update.vireo")?.ok()?.says(&["web@2"])?;
    site.ask(&server, &["image", "verify", "web@2"])?.ok()?;
    site.is_tidy()?;
    site.fsck()
}

/// A process that does a job for the server.
fn worker_of(server: u32) -> anyhow::Result<Option<u32>> {
    let tasks = fs::read_dir(format!("/proc/{server}/task"))?;
    for task in tasks.filter_map(Result::ok) {
        // A thread may be gone meanwhile.
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if line.ends_with(b"\0worker\0") {
                return Ok(Some(child.parse()?));
            }
        }
    }
    Ok(None)
}

/// Whether the process runs under a filter of system calls (proc(5)).
fn is_confined(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|it| it.trim() == "2"))
}

#[test]
fn root_a_worker_ends_with_its_server_and_the_next_one_cleans_up() -> anyhow::Result<()> {
    let (site, server) = Site::with_image()?;
    let mut push = push(&site, &server, "update.vireo", "web")?;
    let started = Instant::now();
    let worker = loop {
        // From then on it ends with its server.
        if let Some(worker) = worker_of(server.pid())?.filter(|worker| is_confined(*worker)) {
            break worker;
        }
        ensure!(started.elapsed() < DEADLINE, "no worker began\n{}", server.log());
        thread::sleep(Duration::from_millis(1));
    };
    let pid = Pid::from_raw(i32::try_from(worker)?).context("a process number")?;
    // Wherever it is now, it stays there.
    kill_process(pid, Signal::STOP)?;
    drop(server);
    let started = Instant::now();
    while Path::new(&format!("/proc/{worker}/fd/0")).exists() {
        ensure!(started.elapsed() < DEADLINE, "the worker outlives its server");
        thread::sleep(Duration::from_millis(5));
    }
    push.kill()?;
    push.wait()?;
    site.scene.nothing_attached()?;

    let server = site.serve()?;
    site.is_tidy()?;
    ensure!(site.versions(&server)?.len() == 1);
    site.push(&server, "update.vireo")?.ok()?.says(&["web@2"])?;
    site.ask(&server, &["image", "verify", "web@2"])?.ok()?;
    site.is_tidy()
}

#[test]
fn root_what_a_killed_build_left_attached_is_undone_at_the_next_start() -> anyhow::Result<()> {
    let (site, server) = Site::with_image()?;
    drop(server);
    let disks = site.scene.path("repo/disks");
    let partial = disks.join("left.img.partial");
    clone_image(&site.scene.base(), &partial)?;
    let point = site.scene.path("point");
    fs::create_dir(&point)?;
    let device = Run::new("losetup").args(["-f", "--show"]).arg(&partial).text()?;
    Run::new("mount").arg(device.trim()).arg(&point).text()?;

    let server = site.serve()?;
    ensure!(server.log().contains("detached"), "{}", server.log());
    site.is_tidy()?;
    site.scene.nothing_attached()?;
    site.push(&server, "update.vireo")?.ok()?;
    site.fsck()
}

/// A job for a worker of this process.
fn order(job: serde_json::Value) -> String {
    serde_json::json!({ "parent": std::process::id(), "job": job }).to_string()
}

fn start_worker() -> anyhow::Result<Child> {
    let mut command = std::process::Command::new(programs::find("vireo-repo")?);
    command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command.spawn()?)
}

#[test]
fn root_a_worker_whose_server_stops_listening_or_talking_ends_and_leaves_nothing()
-> anyhow::Result<()> {
    let site = Site::new()?;
    let scene = &site.scene;
    let text = fs::read_to_string(scene.public())?;
    let job = serde_json::json!({ "patch": {
        "base": scene.base(), "out": scene.path("out.img"), "bundle": scene.bundle(),
        "trusted": [text.trim()], "grow": "no", "root": "find",
    }});
    let before = Snapshot::of(scene.dir())?;
    // Half an order.
    for part in [0, 1, order(job.clone()).len() - 2] {
        let mut worker = start_worker()?;
        let order = order(job.clone());
        worker.stdin.take().context("piped")?.write_all(&order.as_bytes()[..part])?;
        let output = worker.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1) && said.contains("the job of a worker"),
            "{output:?}"
        );
        before.unchanged()?;
    }
    // An order, and nobody who hears of it: it may be done, but nothing stays attached or half made.
    let mut worker = start_worker()?;
    drop(worker.stdout.take());
    worker.stdin.take().context("piped")?.write_all(order(job).as_bytes())?;
    let started = Instant::now();
    while worker.try_wait()?.is_none() {
        ensure!(started.elapsed() < DEADLINE, "the worker goes on for nobody");
        thread::sleep(Duration::from_millis(5));
    }
    let output = worker.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("Broken pipe"), "it did not come to the answer: {output:?}");
    if scene.path("out.img").exists() {
        scene.is_target(&scene.path("out.img"))?;
        fs::remove_file(scene.path("out.img"))?;
    }
    before.unchanged()?;
    scene.nothing_attached()
}

#[test]
fn root_an_image_that_disappears_is_named_by_worker_and_server() -> anyhow::Result<()> {
    let (site, mut server) = Site::with_image()?;
    let disks = site.scene.path("repo/disks");
    let disk = fs::read_dir(&disks)?.next().context("a disk")??.path();
    let away = site.scene.path("away.img");
    let name = disk.file_name().context("a name")?.to_string_lossy().into_owned();
    // Gone; a directory; of another kind; empty.
    fs::rename(&disk, &away)?;
    let states: [(&str, &[&str]); 4] = [
        ("true", &["No such file"]),
        ("mkdir \"$1\"", &["is not a regular file"]),
        ("head -c 1M /dev/urandom > \"$1\"", &["neither a file system"]),
        (": > \"$1\"", &["neither a file system"]),
    ];
    for (script, says) in states {
        Run::script("put", script).arg(&disk).text()?;
        let says = [&[name.as_str()][..], says].concat();
        for request in
            [&["image", "verify", "web"][..], &["push", &site.scene.arg("update.vireo"), "web"]]
        {
            let ran = site.ask(&server, request)?;
            let code = ran.output().code;
            ensure!(code == 1 || code == 5, "{ran:?}");
            ran.fails(code, &says).with_context(|| script.to_owned())?;
        }
        ensure!(server.is_alive()?);
        site.is_tidy()?;
        Run::script("remove", "rm -rf \"$1\"").arg(&disk).text()?;
    }
    site.scene.nothing_attached()?;
    fs::rename(&away, &disk)?;
    site.ask(&server, &["image", "verify", "web"])?.ok()?;
    site.push(&server, "update.vireo")?.ok()?.says(&["web@2"])?;
    site.fsck()
}
