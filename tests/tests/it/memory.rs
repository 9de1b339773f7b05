//! What the agent takes of the memory of a machine that is there for something else, and capturing of an
//! administrator's.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use vireo_model::Ignore;
use vireo_testkit::{Random, Run};
use vireo_tests::{capture_args, measured, require_host, vireo};
use vireo_tree::{Root, ScanOptions, scan};

/// The most that the agent may ever hold while it applies an update, whatever its size, in KiB.
const MEMORY_MAX: u64 = 32 << 10;

/// The most that capturing a change of one large file may hold, in KiB.
const CAPTURE_MEMORY_MAX: u64 = 200 << 10;

/// A base, a target, the bundle between them and a copy of the base to apply it to.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new(
        fill: impl Fn(&Path) -> anyhow::Result<()>,
        change: impl Fn(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let place = Self { dir: tempfile::tempdir().context("cannot make a directory")? };
        fs::create_dir(place.at("base"))?;
        fill(&place.at("base"))?;
        for copy in ["target", "work"] {
            Run::new("cp")
                .args(["-a", "--reflink=auto"])
                .args([place.at("base"), place.at(copy)])
                .text()?;
        }
        change(&place.at("target"))?;
        vireo(["key", "generate", "--out", &place.arg("keys")])?.ok()?;
        let (base, target) = (place.arg("base"), place.arg("target"));
        let (key, bundle) = (place.arg("keys/vireo.key"), place.arg("update.vireo"));
        vireo(capture_args(&base, &target, &key, &bundle))?.ok()?;
        Ok(place)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn arg(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// Has the agent apply the bundle to the copy, and gives the most memory that it had, in KiB.
    fn apply(&self) -> anyhow::Result<u64> {
        fs::create_dir(self.at("state"))?;
        let (work, state) = (self.arg("work"), self.arg("state"));
        let (bundle, trust) = (self.arg("update.vireo"), self.arg("keys/vireo.pub"));
        let args = ["--root", &work, "--state", &state, "apply", &bundle, "--trust", &trust];
        let (ran, memory) = measured("vireo-agent", args)?;
        ran.ok()?;
        let tree = |name| -> anyhow::Result<_> {
            Ok(scan(&Root::open(&self.at(name))?, &Ignore::default(), &ScanOptions::default())?
                .tree)
        };
        ensure!(tree("work")? == tree("target")?, "the update did not make its target");
        Ok(memory)
    }
}

#[test]
fn root_an_update_of_many_files_takes_little_memory() -> anyhow::Result<()> {
    const COUNT: usize = 5_000;
    const LEN: usize = 26_000;
    let path = |tree: &Path, number: usize| tree.join(format!("d{}/f{number}", number % 50));
    require_host()?;
    let place = Place::new(
        |base| {
            let mut random = Random::new(1);
            for number in 0..COUNT {
                let file = path(base, number);
                fs::create_dir_all(file.parent().context("it is in a directory")?)?;
                fs::write(file, random.bytes(LEN))?;
            }
            Ok(())
        },
        |target| {
            // Half of each is new: 65 MB that no compressor makes less of.
            let mut random = Random::new(2);
            for number in 0..COUNT {
                let file = OpenOptions::new().write(true).open(path(target, number))?;
                file.write_all_at(&random.bytes(LEN / 2), 0)?;
            }
            Ok(())
        },
    )?;
    let memory = place.apply()?;
    println!("{COUNT} files, {} bytes each: {memory} KiB", LEN);
    ensure!(memory <= MEMORY_MAX, "{memory} KiB, more than {MEMORY_MAX}");
    Ok(())
}

#[test]
fn root_an_update_of_a_large_file_takes_little_memory() -> anyhow::Result<()> {
    const PIECE: usize = 1 << 20;
    const COUNT: usize = 300;
    let write =
        |file: &Path, pieces: &mut dyn Iterator<Item = (u64, usize)>| -> anyhow::Result<()> {
            let mut file = BufWriter::new(File::create(file)?);
            for (seed, len) in pieces {
                file.write_all(&Random::new(seed).bytes(len))?;
            }
            Ok(file.flush()?)
        };
    require_host()?;
    let place = Place::new(
        |base| write(&base.join("disk"), &mut (0..COUNT as u64).map(|seed| (seed, PIECE))),
        |target| {
            // Every fifth piece is new and longer, so that all behind it is elsewhere.
            let piece =
                |seed| if seed % 5 == 0 { (1_000 + seed, PIECE + 17) } else { (seed, PIECE) };
            write(&target.join("disk"), &mut (0..COUNT as u64).map(piece))
        },
    )?;
    let memory = place.apply()?;
    println!("one file of {COUNT} MiB: {memory} KiB");
    ensure!(memory <= MEMORY_MAX, "{memory} KiB, more than {MEMORY_MAX}");
    Ok(())
}

#[test]
fn a_changed_block_of_a_file_of_gigabytes_is_captured_in_little_memory() -> anyhow::Result<()> {
    const LEN: u64 = 2 << 30;
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let arg = |name: &str| dir.path().join(name).display().to_string();
    for (name, seed) in [("base", 1), ("target", 2)] {
        fs::create_dir(arg(name))?;
        let mut file = BufWriter::new(File::create(dir.path().join(name).join("disk"))?);
        let mut random = Random::new(3);
        for _ in 0..LEN >> 20 {
            file.write_all(&random.bytes(1 << 20))?;
        }
        let file = file.into_inner()?;
        file.write_all_at(&Random::new(seed).bytes(4096), LEN / 2)?;
    }
    vireo(["key", "generate", "--out", &arg("keys")])?.ok()?;
    let (key, bundle) = (arg("keys/vireo.key"), arg("update.vireo"));
    let args = capture_args(&arg("base"), &arg("target"), &key, &bundle);
    let (ran, memory) = measured("vireo", args)?;
    ran.ok()?;
    let len = fs::metadata(&bundle)?.len();
    println!("one block of {} GiB: {memory} KiB, {len} bytes", LEN >> 30);
    ensure!(memory <= CAPTURE_MEMORY_MAX, "{memory} KiB, more than {CAPTURE_MEMORY_MAX}");
    ensure!(len <= 100_000, "{len} bytes for a block of 4096");
    Ok(())
}
