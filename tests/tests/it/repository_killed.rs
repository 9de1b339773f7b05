//! `kill -9` of the repository's server in the middle of a push. It works on the images itself here,
//! so that it is the one that is killed; for workers see `builds`.

use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use vireo_testkit::Run;
use vireo_tests::{Moment, Server, start_vireo, vireo};

use crate::repository::Site;

/// Fewest moments at which the server must really have been killed.
const ENOUGH: usize = 10;

/// Longest for a push to end, or for the server to be killed in it.
const PUSH_DEADLINE: Duration = Duration::from_secs(30);

/// Time between two looks.
const POLL: Duration = Duration::from_millis(10);

/// What a push does, roughly in this order: frames and bundle are written and named, the disk is
/// cloned and mounted, patched, checked, named; the version is recorded.
const MOMENTS: &[(&str, u32)] = &[
    ("openat", 1),
    ("rename,renameat,renameat2", 1),
    ("rename,renameat,renameat2", 2),
    ("fsync,fdatasync", 1),
    ("fsync,fdatasync", 3),
    ("copy_file_range", 1),
    ("fsmount", 1),
    ("linkat,link", 1),
    ("syncfs", 1),
    ("syncfs", 2),
    ("renameat", 4),
    ("wait4,waitid", 1),
    ("unlink,unlinkat", 3),
    ("fsync,fdatasync", 8),
];

/// A push that runs while its server is killed.
fn push(site: &Site, server: &Server) -> anyhow::Result<std::process::Child> {
    let (bundle, token) = (site.scene.arg("update.vireo"), site.scene.arg("repo/admin-token"));
    start_vireo(["push", &bundle, "web", "--repo", server.url(), "--token", &format!("@{token}")])
}

/// Waits for the server's end; or, if the push ends before, gives how.
fn wait_killed(
    server: &mut Server,
    push: &mut std::process::Child,
) -> anyhow::Result<Option<ExitStatus>> {
    let started = Instant::now();
    while server.is_alive()? {
        if let Some(status) = push.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > PUSH_DEADLINE {
            bail!("neither the push nor the server ended\n{}", server.log());
        }
        thread::sleep(POLL);
    }
    Ok(None)
}

#[test]
fn root_a_server_killed_in_a_push_has_base_or_target_and_goes_on() -> anyhow::Result<()> {
    let (site, server) = Site::with_image()?;
    let scene = &site.scene;
    let digest = |image: &str| -> anyhow::Result<String> {
        let ran = vireo(["digest", &scene.arg(image)])?.ok()?;
        Ok(ran.output().stdout.trim().to_owned())
    };
    let (base, target) = (digest("base.img")?, digest("target.img")?);
    drop(server);
    let copy = |from: &str, to: &str| -> anyhow::Result<()> {
        let script = "rm -rf \"$2\"; cp -a --sparse=always \"$1\" \"$2\"";
        Run::script("copy", script).args([scene.arg(from), scene.arg(to)]).text()?;
        Ok(())
    };
    copy("repo", "pristine")?;

    let (mut killed, mut published) = (0, 0);
    for (call, nth) in MOMENTS {
        let moment = Moment { call, nth: *nth };
        let mut check = || -> anyhow::Result<()> {
            copy("pristine", "repo")?;
            let mut server = site.serve_alone()?;
            let ambush = moment.ambush(server.pid())?;
            let mut push = push(&site, &server)?;
            match wait_killed(&mut server, &mut push)? {
                Some(status) => ensure!(status.success(), "the push failed: {status}"),
                None => killed += 1,
            }
            push.kill()?;
            push.wait()?;
            drop((ambush, server));
            scene.nothing_attached()?;

            let server = site.serve()?;
            site.is_tidy()?;
            let versions = site.versions(&server)?;
            let newest = versions.last().context("a version")?["tree"].clone();
            ensure!(newest == base.as_str() || newest == target.as_str(), "{versions:?}");
            published += usize::from(newest == target.as_str());
            site.ask(&server, &["image", "verify", "web"])?.ok()?;
            site.push(&server, "update.vireo")?.ok()?.says(&["web@2"])?;
            ensure!(site.versions(&server)?.len() == 2, "one push made two versions");
            site.ask(&server, &["image", "verify", "web@2"])?.ok()?;
            site.fsck()
        };
        check().with_context(|| format!("{moment:?}"))?;
    }
    ensure!(killed >= ENOUGH, "the server was killed only {killed} times");
    ensure!(published < MOMENTS.len(), "every push was complete");
    let server = site.serve()?;
    site.ask(&server, &["image", "export", "web", "-o", &scene.arg("out.img")])?.ok()?;
    scene.is_target(&scene.path("out.img"))?;
    let disks = Run::new("find").arg(scene.path("repo/disks")).args(["-type", "f"]).text()?;
    ensure!(disks.lines().count() == 2, "disks of interrupted pushes stay:\n{disks}");
    scene.nothing_attached()
}

#[test]
fn root_a_push_goes_on_when_its_server_is_back() -> anyhow::Result<()> {
    let (site, server) = Site::with_image()?;
    drop(server);
    let mut server = site.serve_alone()?;
    let address = server.url().trim_start_matches("https://").to_owned();
    let ambush = Moment { call: "fsmount", nth: 1 }.ambush(server.pid())?;
    let mut push = push(&site, &server)?;
    ensure!(wait_killed(&mut server, &mut push)?.is_none(), "the server was not killed");
    drop((ambush, server));
    let mut server = Server::start_at(&site.scene.path("repo"), &address)?;
    let status = wait_killed(&mut server, &mut push)?.context("the server ended")?;
    ensure!(status.success(), "the push failed: {status}");
    ensure!(site.versions(&server)?.len() == 2);
    site.ask(&server, &["image", "verify", "web@2"])?.ok()?;
    site.fsck()
}
