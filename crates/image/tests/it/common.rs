//! What the tests of this crate share: disks made of real file systems, and bundles between them.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use vireo_delta::{
    Bundle, BundleWriter, Permits, SecretKey, Statement, TrustedKeys, Verified, permits_needed,
};
use vireo_image::{
    Access, DiskImage, ImageError, PatchOptions, PatchStep, Patched, RootPartition, patch_with,
    unmounted,
};
use vireo_model::{ChangeSet, Digest, Ignore, Tree};
use vireo_tree::{Root, ScanOptions, scan};

/// A mebibyte, in bytes.
pub(crate) const MIB: u64 = 1 << 20;

/// When every file of the fixtures was changed: whole seconds, which every tool keeps.
const TIME: &str = "@1700000000";

/// Runs a script (bash) with these arguments; its output.
pub(crate) fn sh(script: &str, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "script"]).args(args);
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let output = command.env("LC_ALL", "C").output().context("bash cannot be run")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script}\n{}: {error}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A directory for one test's images.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> anyhow::Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "these tests need root");
        Ok(Self(tempfile::tempdir()?))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Makes the directory `name` by a script that runs in it, all of it with one time.
    pub(crate) fn dir(&self, name: &str, script: &str) -> anyhow::Result<PathBuf> {
        let script = format!(
            "umask 022; mkdir \"$1\"; cd \"$1\"; {script}\nfind . -exec touch -h -d {TIME} {{}} +"
        );
        sh(&script, &[&self.arg(name)])?;
        Ok(self.path(name))
    }

    /// Copies an image, with its holes.
    pub(crate) fn copy(&self, from: &str, to: &str) -> anyhow::Result<PathBuf> {
        sh("cp --sparse=always \"$1\" \"$2\"", &[&self.arg(from), &self.arg(to)])?;
        Ok(self.path(to))
    }

    /// Expects that nothing of this place is attached to a loop device any more.
    pub(crate) fn nothing_attached(&self) -> anyhow::Result<()> {
        // A child that another test is just starting holds copies of handles for a moment.
        for _ in 0..100 {
            let found =
                sh("losetup -l -n -O BACK-FILE | grep -F \"$1/\" || true", &[&self.arg("")])?;
            if found.is_empty() {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        anyhow::bail!("still attached: {}", sh("losetup -l", &[])?)
    }
}

/// One partition: where it begins, its length, and where it is mounted; in MiB.
pub(crate) type Part = (u64, u64, &'static str);

/// Changes an image by a script that runs at the root of its tree, mounted by mount(8) in a
/// namespace of its own: `parts` are mounted in order.
pub(crate) fn edit(image: &Path, parts: &[Part], script: &str) -> anyhow::Result<String> {
    let mut mounts = String::new();
    for (offset, len, at) in parts {
        let window = match len {
            0 => String::new(),
            _ => format!(",offset={},sizelimit={}", offset * MIB, len * MIB),
        };
        mounts.push_str(&format!("mount -o loop{window} \"$1\" \"$root{at}\"\n"));
    }
    let script = format!(
        "root=$(mktemp -d); trap 'umount -R \"$root\" && rmdir \"$root\"' EXIT; {mounts}\ncd \"$root\"\n\
         (set -e; {script}\n)\ncd /"
    );
    let inner = "mount --make-rprivate /; exec bash -euo pipefail -c \"$2\" script \"$1\"";
    let path = image.display().to_string();
    sh("exec unshare -m bash -euc \"$2\" script \"$1\" \"$3\"", &[&path, inner, &script])
}

/// Copies the file system in the file `from` into `disk` at `offset`, in MiB.
pub(crate) fn put(from: &Path, disk: &Path, offset: u64) -> anyhow::Result<()> {
    let (from, disk) = (from.display().to_string(), disk.display().to_string());
    sh(
        "dd if=\"$1\" of=\"$2\" bs=1M seek=\"$3\" conv=notrunc,sparse status=none",
        &[&from, &disk, &offset.to_string()],
    )?;
    Ok(())
}

/// Divides `disk`, made with this length in MiB, as `script` says (sfdisk(8)).
pub(crate) fn divide(disk: &Path, len: u64, script: &str) -> anyhow::Result<()> {
    File::create_new(disk)?.set_len(len * MIB)?;
    let run = "printf \"$2\" | sfdisk -q --no-reread --no-tell-kernel \"$1\"";
    sh(run, &[&disk.display().to_string(), script]).map(drop)
}

/// Makes an ext file system with these options of mke2fs(8) and the content of a directory.
pub(crate) fn ext(image: &Path, len: u64, options: &str, content: &Path) -> anyhow::Result<()> {
    let script = "truncate -s \"$2M\" \"$1\"; mke2fs -q -F $3 -d \"$4\" \"$1\"";
    let (image, content) = (image.display().to_string(), content.display().to_string());
    sh(script, &[&image, &len.to_string(), options, &content]).map(drop)
}

/// The tree in a directory.
pub(crate) fn tree_of(dir: &Path) -> anyhow::Result<Tree> {
    Ok(scan(&Root::open(dir)?, &Ignore::default(), &ScanOptions::default())?.tree)
}

/// The tree that the kernel shows.
pub(crate) fn mounted(image: &Path) -> anyhow::Result<Tree> {
    Ok(vireo_image::read_tree(image, &Ignore::default())?)
}

/// The tree that our own reader shows.
pub(crate) fn read(image: &Path) -> anyhow::Result<Tree> {
    Ok(unmounted::read_tree(image, &Ignore::default())?)
}

/// Expects two trees to be one, and lists where they are not.
pub(crate) fn same(expected: &Tree, found: &Tree) -> anyhow::Result<()> {
    let changes = ChangeSet::between(expected, found).changes;
    let shown: Vec<String> = changes
        .iter()
        .take(8)
        .map(|c| format!("{}\n  expected {:?}\n  found    {:?}", c.path, c.before, c.after))
        .collect();
    ensure!(changes.is_empty(), "{} paths differ:\n{}", changes.len(), shown.join("\n"));
    ensure!(expected.digest() == found.digest());
    Ok(())
}

/// The bundle from one raw image to another, both read through mounts.
pub(crate) fn bundle(base: &Path, target: &Path) -> anyhow::Result<(Vec<u8>, TrustedKeys)> {
    let open = |path| -> anyhow::Result<_> {
        Ok(DiskImage::open(path, RootPartition::Find)?.mount(Access::ReadOnly)?)
    };
    let (base, target) = (open(base)?, open(target)?);
    let ignore = Ignore::default();
    let read = |root: &Root| scan(root, &ignore, &ScanOptions::default());
    let (before, after) = (read(base.root())?, read(target.root())?);
    let changes = ChangeSet::between(&before.tree, &after.tree);
    ensure!(!changes.is_empty(), "base and target are one");
    let mut writer = BundleWriter::new(tempfile::tempfile()?);
    for change in &changes.changes {
        let Some((len, digest)) = change.after.as_ref().and_then(|node| node.content()) else {
            continue;
        };
        let mut content = Vec::new();
        target.root().open_file(&change.path)?.read_to_end(&mut content)?;
        writer.encode(digest, len, false, content.as_slice())?;
    }
    let base_paths = before.tree.len() as u64;
    let permits: Permits = permits_needed(&changes, base_paths);
    let statement = Statement { changes: &changes, ignore: &ignore, permits, base_paths };
    let key = SecretKey::generate()?;
    let mut bytes = Vec::new();
    writer.finish(&statement, &key, &mut bytes)?;
    base.finish()?;
    target.finish()?;
    Ok((bytes, TrustedKeys::from_iter([key.public()])))
}

/// Opens a bundle.
pub(crate) fn open<'a>(
    bytes: &'a [u8],
    keys: &TrustedKeys,
) -> anyhow::Result<Bundle<'a, Verified<'a>>> {
    Ok(Bundle::open(bytes)?.verify(keys)?)
}

/// Patches `base` into `out` by what leads from `from` to `to`, and expects its tree to be `to`'s.
pub(crate) fn patched(base: &Path, out: &Path, from: &Path, to: &Path) -> anyhow::Result<Patched> {
    let (bytes, keys) = bundle(from, to)?;
    let bundle = open(&bytes, &keys)?;
    let patched = patch_with(base, out, &bundle, &PatchOptions::default(), &mut |_| ())?;
    ensure!(patched.tree == bundle.target());
    Ok(patched)
}

/// Patches `base` into `out` with these options: what came of it, and the steps that were begun.
pub(crate) fn patch_by(
    (base, out): (&Path, &Path),
    bundle: &Bundle<'_, Verified<'_>>,
    options: &PatchOptions<'_>,
) -> (Result<Patched, ImageError>, Vec<PatchStep>) {
    let mut steps = Vec::new();
    let done = patch_with(base, out, bundle, options, &mut |step| steps.push(step));
    (done, steps)
}

/// Digest of a whole file.
pub(crate) fn digest_of(file: &Path) -> anyhow::Result<Digest> {
    Ok(Digest::of(&fs::read(file)?))
}
