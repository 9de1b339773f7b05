//! A base, a target and the bundle between them, in a directory of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use vireo_capture::CaptureOptions;
use vireo_delta::Permits;
use vireo_testkit::image::{PARTITION_OFFSET, Table, clone_image, partitioned};
use vireo_testkit::{Cache, Key, fixture, leaks, oracle};

use crate::program::vireo;
use crate::require_host;
use crate::snapshot::{Snapshot, digest_of};

/// What the fixture images are made from: they are made anew when it changes.
const RECIPE: &str = include_str!("../../crates/testkit/recipes/fixture.sh");

/// What is in `/dev` belongs to no version; elsewhere device nodes do.
const MOVE_NODES: &str = "mv \"$1/dev\" \"$1/nodes\"";

/// Time for the kernel to let go of what a killed process used.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);

/// A prefix that no lab has: this looks for loop devices alone.
const NO_LAB: &str = "no lab of ours";

/// The fixture's images, keys and the bundle that turns `base.img` into `target.img`.
///
/// The images hold every kind of node and of metadata, and 32 MiB.
#[derive(Debug)]
pub struct Scene {
    dir: TempDir,
    /// Where the file system begins in both images.
    pub offset: u64,
}

impl Scene {
    /// The fixture as unpartitioned images. Cost: about 0.2 s.
    ///
    /// # Errors
    ///
    /// The host lacks something, or making it failed.
    pub fn new() -> anyhow::Result<Self> {
        Self::with(None)
    }

    /// The fixture, with a partition table if there is to be one.
    ///
    /// # Errors
    ///
    /// As [`Scene::new`].
    pub fn with(table: Option<Table>) -> anyhow::Result<Self> {
        require_host()?;
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        let scene = Self { dir, offset: if table.is_some() { PARTITION_OFFSET } else { 0 } };
        let (base, target) = fixture_images()?;
        for (from, to) in [(base, scene.base()), (target, scene.target())] {
            match table {
                None => clone_image(&from, &to)?,
                Some(table) => partitioned(&from, table, &to)?,
            }
        }
        vireo([
            "key".as_ref(),
            "generate".as_ref(),
            "--out".as_ref(),
            scene.path("keys").as_os_str(),
        ])?
        .ok()?;
        scene.capture(&scene.base(), &scene.target(), &scene.bundle())?;
        Ok(scene)
    }

    /// The same scene whose images have been given a partition table by the caller.
    #[must_use]
    pub fn at(mut self, table: Option<Table>) -> Self {
        self.offset = if table.is_some() { PARTITION_OFFSET } else { 0 };
        self
    }

    /// The directory of it all.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `name` in the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text, for command lines.
    #[must_use]
    pub fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The base image.
    #[must_use]
    pub fn base(&self) -> PathBuf {
        self.path("base.img")
    }

    /// The target image.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        self.path("target.img")
    }

    /// The bundle between them, signed by [`Scene::key`].
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.path("update.vireo")
    }

    /// The secret key's file.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.path("keys/vireo.key")
    }

    /// The public key's file.
    #[must_use]
    pub fn public(&self) -> PathBuf {
        self.path("keys/vireo.pub")
    }

    /// Captures another bundle.
    ///
    /// # Errors
    ///
    /// `vireo capture` failed.
    pub fn capture(&self, base: &Path, target: &Path, out: &Path) -> anyhow::Result<()> {
        let text = |path: &Path| path.display().to_string();
        vireo(capture_args(&text(base), &text(target), &text(&self.key()), &text(out)))?.ok()?;
        Ok(())
    }

    /// Arguments of `vireo apply` for the bundle `bundle` and the image or directory `to`, both
    /// names in the directory.
    #[must_use]
    pub fn apply(&self, bundle: &str, to: &str, more: &[&str]) -> Vec<String> {
        let mut args = vec!["apply".to_owned(), self.arg(bundle), "--to".to_owned(), self.arg(to)];
        args.extend(["--trust".to_owned(), self.public().display().to_string()]);
        args.extend(more.iter().map(|word| (*word).to_owned()));
        args
    }

    /// Expects that `vireo ARGS` exits with `code`, that its message says all of `says`, and that
    /// it changes nothing and leaves nothing in the directory.
    ///
    /// # Errors
    ///
    /// One of these is not so.
    pub fn refuses(&self, args: &[String], code: i32, says: &[&str]) -> anyhow::Result<()> {
        let before = Snapshot::of(self.dir())?;
        vireo(args)?.fails(code, says)?;
        before.unchanged().with_context(|| format!("vireo {}", args.join(" ")))?;
        self.nothing_attached()
    }

    /// Expects that the kernel finds no difference between `image` and the target, and nothing to
    /// repair in it.
    ///
    /// # Errors
    ///
    /// It does; the message lists it.
    pub fn is_target(&self, image: &Path) -> anyhow::Result<()> {
        let differences = oracle::differences((image, self.offset), (&self.target(), self.offset))?;
        ensure!(differences.is_empty(), "{} is not the target:\n{differences}", image.display());
        Ok(oracle::check_file_system(image, self.offset)?)
    }

    /// Expects that the base image has every byte it had.
    ///
    /// # Errors
    ///
    /// It has not.
    pub fn base_is_whole(&self) -> anyhow::Result<()> {
        let pristine = fixture_images()?.0;
        ensure!(self.offset == 0, "only unpartitioned images can be compared with the fixture");
        ensure!(digest_of(&self.base())? == digest_of(&pristine)?, "the base image was changed");
        Ok(())
    }

    /// Expects that no loop device shows a file of the directory.
    ///
    /// # Errors
    ///
    /// One does, and still does after five seconds.
    pub fn nothing_attached(&self) -> anyhow::Result<()> {
        Ok(leaks::none(NO_LAB, self.dir(), RELEASE_DEADLINE)?)
    }
}

/// Arguments of `vireo capture`; everything is permitted, because fixtures change everything, and
/// nothing is remembered, because tests leave nothing behind.
#[must_use]
pub fn capture_args(base: &str, target: &str, key: &str, out: &str) -> Vec<String> {
    let mut args = vec!["capture", "--base", base, "--target", target, "--key", key, "-o", out];
    args.extend(["--permit", "setuid", "--permit", "devices", "--permit", "mass", "--no-cache"]);
    args.into_iter().map(str::to_owned).collect()
}

/// Options of a capture that permits everything.
#[must_use]
pub fn permissive() -> CaptureOptions {
    let permits = Permits::SETUID | Permits::DEVICES | Permits::MASS;
    CaptureOptions { permits, ..CaptureOptions::default() }
}

/// The fixture's base and target, from the cache.
fn fixture_images() -> anyhow::Result<(PathBuf, PathBuf)> {
    let cache = Cache::open()?;
    let key = Key::of(RECIPE).and(MOVE_NODES);
    let base = cache.entry("fixture-base", "img", &key, |out| {
        fixture::base_image(out)?;
        fixture::edit(out, 0, MOVE_NODES, &[])
    })?;
    let target = cache.entry("fixture-target", "img", &key, |out| {
        clone_image(&base, out)?;
        fixture::edit(out, 0, "mv \"$1/nodes\" \"$1/dev\"", &[])?;
        fixture::edit_to_target(out)?;
        fixture::edit(out, 0, MOVE_NODES, &[])
    })?;
    Ok((base, target))
}
