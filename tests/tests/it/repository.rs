//! A repository as its users meet it: the programs, HTTPS on the loopback address, real images.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use vireo_testkit::image::clone_image;
use vireo_testkit::{Run, fixture, oracle};
use vireo_tests::{Ran, Scene, Server, vireo, vireo_repo};

/// A repository in the scene's directory, which trusts the scene's key; not served yet.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) scene: Scene,
}

impl Site {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let site = Self { scene: Scene::new()? };
        vireo_repo(["init", &site.scene.arg("repo")])?.ok()?;
        let key = format!("@{}", site.scene.public().display());
        vireo_repo(["trust", "--data", &site.scene.arg("repo"), &key])?.ok()?;
        Ok(site)
    }

    pub(crate) fn serve(&self) -> anyhow::Result<Server> {
        Server::start(&self.scene.path("repo"))
    }

    /// Serves it by a process that works on the images itself.
    pub(crate) fn serve_alone(&self) -> anyhow::Result<Server> {
        let data = self.scene.path("repo");
        let mut command = std::process::Command::new(vireo_testkit::programs::find("vireo-repo")?);
        command.args(["serve", "--no-worker", "--listen", "127.0.0.1:0", "--data"]).arg(&data);
        Server::spawn(command, &data.with_extension("log"))
    }

    /// Expects that nothing unfinished and no record of a build lies in it.
    pub(crate) fn is_tidy(&self) -> anyhow::Result<()> {
        let left = Run::new("find").arg(self.scene.path("repo")).args([
            "(",
            "-name",
            "*.partial",
            "-o",
            "-name",
            "*.part",
            "-o",
            "-path",
            "*/builds/*",
            ")",
        ]);
        let left = left.text()?;
        ensure!(left.trim().is_empty(), "left behind:\n{left}");
        Ok(())
    }

    /// A served repository with the image `web`, made from the base.
    pub(crate) fn with_image() -> anyhow::Result<(Self, Server)> {
        let site = Self::new()?;
        let server = site.serve()?;
        site.ask(&server, &["image", "create", "web", &site.scene.arg("base.img")])?.ok()?;
        Ok((site, server))
    }

    /// `vireo ARGS` at the server, with the administrator's token.
    pub(crate) fn ask(&self, server: &Server, args: &[&str]) -> anyhow::Result<Ran> {
        let token = format!("@{}", self.scene.arg("repo/admin-token"));
        vireo(args.iter().copied().chain(["--repo", server.url(), "--token", &token]))
    }

    /// The versions of `web`, the oldest first.
    pub(crate) fn versions(&self, server: &Server) -> anyhow::Result<Vec<Value>> {
        let log = self.ask(server, &["log", "web", "--json"])?.ok()?.json("log")?;
        Ok(log["versions"].as_array().context("a list of versions")?.clone())
    }

    pub(crate) fn push(&self, server: &Server, bundle: &str) -> anyhow::Result<Ran> {
        self.ask(server, &["push", &self.scene.arg(bundle), "web"])
    }

    /// Expects that the whole repository is sound.
    pub(crate) fn fsck(&self) -> anyhow::Result<()> {
        let checked = vireo_repo(["fsck", "--data", &self.scene.arg("repo")])?;
        checked.ok()?.says(&["all are whole"])
    }
}

fn digest_of(image: &Path) -> anyhow::Result<String> {
    let ran = vireo(["digest".as_ref(), image.as_os_str()])?.ok()?;
    Ok(ran.output().stdout.trim().to_owned())
}

#[test]
fn root_a_push_makes_the_next_version_and_the_same_again_does_nothing() -> anyhow::Result<()> {
    let (site, server) = Site::with_image()?;
    let scene = &site.scene;
    let (base, target) = (digest_of(&scene.base())?, digest_of(&scene.target())?);
    ensure!(site.versions(&server)?.iter().map(|v| &v["tree"]).eq([&base]));

    let pushed = site.push(&server, "update.vireo")?.ok()?;
    pushed.says(&["web@2", &target])?;
    site.push(&server, "update.vireo")?.ok()?.says(&["web@2", "nothing to do"])?;
    let versions = site.versions(&server)?;
    ensure!(versions.iter().map(|v| &v["tree"]).eq([&base, &target]), "{versions:?}");
    ensure!(versions[1]["signer"] == fs::read_to_string(scene.public())?.trim(), "{versions:?}");

    let (newest, first) = (scene.arg("newest.img"), scene.arg("first.img"));
    site.ask(&server, &["image", "export", "web", "-o", &newest])?.ok()?;
    site.ask(&server, &["image", "export", "web@1", "-o", &first])?.ok()?;
    scene.is_target(newest.as_ref())?;
    let differences = oracle::differences((first.as_ref(), 0), (&scene.base(), 0))?;
    ensure!(differences.is_empty(), "version 1 is not the base:\n{differences}");
    for image in ["web", "web@1", "web@2"] {
        site.ask(&server, &["image", "verify", image])?.ok()?.says(&["as published"])?;
    }
    scene.base_is_whole()?;
    scene.nothing_attached()?;
    drop(server);

    // The same repository as a directory of this host.
    let local = scene.arg("repo");
    vireo(["log", "web", "--repo", &local])?.ok()?.says(&["web@2", "web@1"])?;
    vireo(["image", "verify", "web", "--repo", &local])?.ok()?;
    let again = ["push", &scene.arg("update.vireo"), "web", "--repo", &local];
    vireo(again)?.ok()?.says(&["nothing to do"])?;
    site.fsck()
}

#[test]
fn root_what_a_repository_cannot_take_changes_nothing() -> anyhow::Result<()> {
    let (site, server) = Site::with_image()?;
    let scene = &site.scene;
    let push = |bundle: &str| site.push(&server, bundle);

    // For another base: the target's next.
    clone_image(&scene.target(), &scene.path("third.img"))?;
    fixture::edit(&scene.path("third.img"), 0, "echo 3 > \"$1/etc/server.conf\"", &[])?;
    scene.capture(&scene.target(), &scene.path("third.img"), &scene.path("next.vireo"))?;
    push("next.vireo")?.fails(5, &["image web", "web@1", "capture the change again"])?;

    // Damaged: seen before it is sent, or by its digest.
    let whole = fs::read(scene.bundle())?;
    let mut flipped = whole.clone();
    let at = whole.len() - 100;
    flipped[at] ^= 4;
    fs::write(scene.path("flipped.vireo"), flipped)?;
    push("flipped.vireo")?.fails(5, &["flipped.vireo", "capture it again"])?;
    fs::write(scene.path("cut.vireo"), &whole[..whole.len() / 2])?;
    push("cut.vireo")?.fails(5, &["cut.vireo", "capture it again"])?;

    // By a stranger.
    vireo(["key", "generate", "--out", &scene.arg("others")])?.ok()?;
    let (base, target) = (scene.arg("base.img"), scene.arg("target.img"));
    let (key, out) = (scene.arg("others/vireo.key"), scene.arg("others.vireo"));
    vireo(vireo_tests::capture_args(&base, &target, &key, &out))?.ok()?;
    push("others.vireo")?.fails(5, &["image web", "not trusted", "vireo-repo trust"])?;

    let unknown = site.ask(&server, &["push", &scene.arg("update.vireo"), "mail"])?;
    unknown.fails(1, &["no image mail"])?;
    site.ask(&server, &["log", "mail"])?.fails(1, &["no image mail"])?;
    let out = scene.arg("out.img");
    site.ask(&server, &["image", "export", "web@7", "-o", &out])?.fails(1, &["web", "7"])?;
    ensure!(!Path::new(&out).exists(), "an output was left");
    site.ask(&server, &["image", "create", "web", &base])?.fails(5, &["image web already"])?;

    // What is no image makes none.
    fs::write(scene.path("text.img"), "no image".repeat(1000))?;
    let create = ["image", "create", "mail", &scene.arg("text.img")];
    site.ask(&server, &create)?.fails(5, &["neither a file system that can be read", "ext4"])?;
    site.ask(&server, &["log", "mail"])?.fails(1, &["no image mail"])?;

    ensure!(site.versions(&server)?.len() == 1, "a version was made");
    site.ask(&server, &["image", "verify", "web"])?.ok()?;
    push("update.vireo")?.ok()?.says(&["web@2"])?;
    scene.nothing_attached()?;
    site.fsck()
}

#[test]
fn root_only_the_administrators_token_opens_the_repository() -> anyhow::Result<()> {
    let (site, server) = Site::with_image()?;
    let scene = &site.scene;
    let log = |token: &str| vireo(["log", "web", "--repo", server.url(), "--token", token]);
    let token = fs::read_to_string(scene.path("repo/admin-token"))?;
    let token = token.trim();

    // Another secret; another authority; no token; a token of another kind.
    let last = if token.ends_with('0') { '1' } else { '0' };
    let other = format!("{}{last}", &token[..token.len() - 1]);
    log(&other)?.fails(5, &["token is not known", "admin-token"])?;
    vireo_repo(["init", &scene.arg("elsewhere")])?.ok()?;
    let elsewhere = format!("@{}", scene.arg("elsewhere/admin-token"));
    log(&elsewhere)?.fails(5, &[server.url(), "another repository"])?;
    vireo(["log", "web", "--repo", server.url()])?
        .fails(5, &["asks for a token", "--token @FILE"])?;
    log(&format!("@{}", scene.arg("no-token")))?.fails(1, &["read the token", "no-token"])?;
    log("secret")?.fails(5, &["cannot use the token"])?;
    let repo = scene.arg("repo");
    let made = vireo_repo(["token", "create", "--data", &repo, "--json"])?.ok()?.json("token")?;
    let enrol = made["token"].as_str().context("a token")?;
    let push =
        ["push", &scene.arg("update.vireo"), "web", "--repo", server.url(), "--token", enrol];
    vireo(push)?.fails(5, &["token"])?;
    ensure!(site.versions(&server)?.len() == 1, "a version was made");

    // Nobody there.
    let url = server.url().to_owned();
    drop(server);
    let push = ["push", &scene.arg("update.vireo"), "web", "--repo", &url, "--token", token];
    vireo(push)?.fails(3, &[&url, "is the repository running there?"])
}

/// The files below `dir`.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// The one file below `dir` whose path contains `part`.
fn find(dir: &Path, part: &str) -> anyhow::Result<PathBuf> {
    let mut found = files(dir)?;
    found.retain(|path| path.to_string_lossy().contains(part));
    ensure!(found.len() == 1, "{part} below {}: {found:?}", dir.display());
    Ok(found.remove(0))
}

#[test]
fn root_damage_in_what_is_stored_is_found() -> anyhow::Result<()> {
    let (site, server) = Site::with_image()?;
    site.push(&server, "update.vireo")?.ok()?;
    site.fsck()?;
    let repo = site.scene.path("repo");
    let target = digest_of(&site.scene.target())?;

    // Somebody wrote to the stored image.
    let disk = find(&repo.join("disks"), &target)?;
    fixture::edit(&disk, 0, "echo mine > \"$1/etc/server.conf\"; rm \"$1/data/zero\"", &[])?;
    let verified = site.ask(&server, &["image", "verify", "web"])?.exits(1)?;
    verified.says(&["web@2", &target, "/etc/server.conf", "/data/zero"])?;
    let verified = site.ask(&server, &["image", "verify", "web", "--json"])?.exits(1)?;
    ensure!(verified.json("verify")?["equal"] == false);
    site.ask(&server, &["image", "verify", "web@1"])?.ok()?;

    // A bundle and the disk of the first version lose some bytes.
    let bundle = find(&repo.join("bundles"), "")?;
    let file = fs::File::options().read(true).write(true).open(&bundle)?;
    let at = file.metadata()?.len() - 50;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[!byte[0]], at)?;
    let first = find(&repo.join("disks"), &digest_of(&site.scene.base())?)?;
    fs::File::options().write(true).open(&first)?.set_len(1 << 20)?;
    let path = |path: &Path| path.display().to_string();
    let checked = vireo_repo(["fsck", "--data", &path(&repo)])?.exits(1)?;
    checked.says(&[&path(&bundle), "push its bundle again", &path(&first)])?;
    site.ask(&server, &["image", "verify", "web@1"])?.exits(5)?.says(&["cut short"])
}
