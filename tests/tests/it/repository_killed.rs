//! `kill -9` of the repository's server in the middle of a push.

use anyhow::{Context as _, ensure};
use vireo_tests::{Moment, vireo};

use crate::repository::Site;

/// Fewest moments at which the server must really have been killed.
const ENOUGH: usize = 8;

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
        let run = vireo_testkit::Run::script("copy", script);
        run.args([scene.arg(from), scene.arg(to)]).text()?;
        Ok(())
    };
    copy("repo", "pristine")?;

    let mut killed = 0;
    let mut published = 0;
    for (call, nth) in MOMENTS {
        let moment = Moment { call, nth: *nth };
        let mut check = || -> anyhow::Result<()> {
            copy("pristine", "repo")?;
            let server = site.serve()?;
            let ambush = moment.ambush(server.pid())?;
            let push = site.push(&server, "update.vireo")?;
            if push.output().code != 0 {
                // The administrator is told that the server has gone, and to try again.
                push.fails(3, &[server.url()])?;
                killed += 1;
            }
            drop((ambush, server));
            scene.nothing_attached()?;

            let server = site.serve()?;
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
    let left = vireo_testkit::Run::new("find").arg(scene.path("repo/disks")).args(["-type", "f"]);
    let left = left.text()?;
    ensure!(left.lines().count() == 2, "disks of interrupted pushes stay:\n{left}");
    scene.nothing_attached()
}
