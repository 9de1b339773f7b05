//! Many files into a directory, beside what installs packages and what copies files.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use vireo_delta::{Bundle, PublicKey, TrustedKeys};
use vireo_testkit::image::clone_image;
use vireo_tree::Root;
use vireo_tree::apply::{ApplyOptions, Committed, stage};

use crate::bench::{Bench, text};
use crate::contest::{Contestant, Sample, hold};
use crate::measured::{argv, run};
use crate::report::Section;

const MAKE: &str = include_str!("../recipes/many-make.sh");
const MANY: &str = include_str!("../recipes/many.sh");

/// When the files were made, in whole seconds, which is what packages know: this and the edition.
const EDITIONS_SECS: u64 = 1_700_000_000;

/// Files in one directory.
const PER_DIR: usize = 100;

/// What is installed: a package's files, all of which change.
struct Workload {
    name: &'static str,
    image_len: u64,
    file_lens: Vec<usize>,
}

/// 5,000 files of up to 39 kB, 98 MB in all: a large package, or many small ones.
fn many() -> Workload {
    let lens = (0..5000_u64).map(|n| (blake3_number(n) % 39_200) as usize + 1);
    Workload { name: "many", image_len: 1 << 30, file_lens: lens.collect() }
}

/// One file of 300 MiB: what it needs of memory is bounded by the program, not by the file.
fn large() -> Workload {
    Workload { name: "large", image_len: 2 << 30, file_lens: vec![300 << 20] }
}

fn blake3_number(seed: u64) -> u64 {
    let hash = blake3::hash(&seed.to_le_bytes());
    hash.as_bytes().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Section>> {
    Ok(vec![
        section(
            bench,
            &many(),
            "5,000 files into a directory",
            "All 5,000 files (98 MB) of a package in a mounted ext4 image change; they are in memory before, \
             on the disk after. Window: from the first file that changed to the last, seen by inotify: a crash \
             within it leaves a mixture. \"vireo apply\" also reads the whole tree twice to prove it and keeps \
             nothing for undo; its engine alone, as the agent uses it, keeps the base's files. Flushes and \
             writes are those of the tree's device.",
        )?,
        section(
            bench,
            &large(),
            "One file of 300 MiB into a directory",
            "The same with a single file of 300 MiB of new, random bytes: what counts is the memory. A \
             program's peak includes pages of files that it has mapped.",
        )?,
    ])
}

fn section(
    bench: &Bench,
    workload: &Workload,
    name: &'static str,
    about: &str,
) -> anyhow::Result<Section> {
    workload.make(bench)?;
    let file = |suffix: &str| format!("{}{suffix}", workload.name);
    let (bundle, package) = (file(".vireo"), file("-2.deb"));
    let own = std::env::current_exe().context("cannot find the running program")?;
    let contestant = |name: &'static str, argv: Vec<OsString>| {
        Contestant::other(name, move |check| apply(bench, workload, argv.clone(), check))
    };
    let ours = argv![
        &bench.vireo,
        "apply",
        &bundle,
        "--to",
        "copy",
        "--trust",
        "key/vireo.pub",
        "--quiet"
    ];
    let script = |script: &str| argv!["bash", "-c", script];
    let dpkg = format!(
        "dpkg --root=\"$PWD/copy\" --log=/dev/null --refuse-unsafe-io -i {package} && sync -f copy"
    );
    let contestants = vec![
        Contestant::ours("vireo's engine: stage, commit, kept for undo", {
            let argv = argv![&own, "engine", &bundle, "copy", "key/vireo.pub"];
            move |check| apply(bench, workload, argv.clone(), check)
        }),
        Contestant::ours("vireo apply --to DIR (tree proven)", move |check| {
            apply(bench, workload, ours.clone(), check)
        }),
        contestant("cp -a, sync", script("cp -a target/usr/. copy/usr/ && sync -f copy")),
        contestant("rsync -a, sync", script("rsync -a target/usr/ copy/usr/ && sync -f copy")),
        contestant(
            "write, fsync, rename each; fsync directories",
            argv![&own, "fsync-each", "target/usr", "copy/usr"],
        ),
        contestant("dpkg -i", script(&dpkg)),
    ];
    let (rows, left_out) = hold(bench, contestants)?;
    workload.clean(bench)?;
    Ok(Section { name, about: about.to_owned(), rows, left_out })
}

impl Workload {
    /// Makes both editions as packages and as images, and the bundle between them.
    fn make(&self, bench: &Bench) -> anyhow::Result<()> {
        for edition in 1..=2_u64 {
            let top = bench.path(&format!("{}-{edition}", self.name));
            for (number, len) in self.file_lens.iter().enumerate() {
                let dir = top.join(format!("usr/lib/many/d{}", number / PER_DIR));
                fs::create_dir_all(&dir).context("cannot make a directory")?;
                let path = dir.join(format!("f{number}"));
                write_bytes(&path, number as u64, edition, *len)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        let mut argv =
            argv!["unshare", "-m", "--propagation", "private", "bash", "-c", MAKE, "many-make.sh"];
        argv.extend(argv![self.name, self.image_len.to_string()]);
        run(bench.dir(), argv)?;
        let [base, target, bundle] = self.files();
        let args = ["capture", "--base", &base, "--target", &target, "--key", "key/vireo.key"];
        // Everything in these trees is replaced, which has to be intended.
        let permit = ["--permit", "mass", "-o", &bundle];
        bench.vireo(&[&args[..], &permit].concat()).map(drop)
    }

    fn files(&self) -> [String; 3] {
        [".img", "-target.img", ".vireo"].map(|suffix| format!("{}{suffix}", self.name))
    }

    fn clean(&self, bench: &Bench) -> anyhow::Result<()> {
        for edition in 1..=2 {
            let top = bench.path(&format!("{}-{edition}", self.name));
            fs::remove_dir_all(&top).context("cannot remove a package's tree")?;
            bench.remove(&format!("{}-{edition}.deb", self.name))?;
        }
        self.files().iter().try_for_each(|name| bench.remove(name))?;
        bench.remove("copy.img")
    }
}

/// Bytes that no compressor makes smaller, with a time by which the editions can be told.
fn write_bytes(path: &Path, number: u64, edition: u64, len: usize) -> std::io::Result<()> {
    let mut bytes = vec![0; len];
    let seed = [number, edition].map(u64::to_le_bytes).concat();
    blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
    fs::write(path, bytes)?;
    File::options()
        .write(true)
        .open(path)?
        .set_modified(UNIX_EPOCH + Duration::from_secs(EDITIONS_SECS + edition))
}

fn apply(
    bench: &Bench,
    workload: &Workload,
    argv: Vec<OsString>,
    check: bool,
) -> anyhow::Result<Sample> {
    let [base, target, _] = workload.files();
    bench.remove("copy.img")?;
    clone_image(&bench.path(&base), &bench.path("copy.img"))?;
    let mut inner = argv!["bash", "-c", MANY, "many.sh", "copy", &bench.vireo];
    inner.extend(bench.meter.wrap_watching("copy/usr", argv)?);
    let mounts = [["ro", target.as_str(), "target"], ["rw", "copy.img", "copy"]];
    let printed = run(bench.dir(), bench.mounted(&mounts, inner))?;
    let words: Vec<&str> = printed.split_whitespace().collect();
    let [flushes, writes, written, digest] = words[..] else {
        bail!("many.sh printed {printed:?}");
    };
    if check {
        let mounts = [["ro", target.as_str(), "target"]];
        let wanted = bench.mounted(&mounts, argv![&bench.vireo, "digest", "target/usr", "--json"]);
        let wanted = serde_json::from_str(&run(bench.dir(), wanted)?)?;
        let wanted: serde_json::Value = wanted;
        let wanted = text(&wanted["digest"])?;
        ensure!(digest == wanted, "the directory is {digest}, not the target's {wanted}");
    }
    let number =
        |text: &str| text.parse().with_context(|| format!("many.sh printed {text:?} for a number"));
    let used = bench.meter.read()?;
    Ok(Sample::of(
        used,
        [
            ("flushes", number(flushes)?),
            ("writes", number(writes)?),
            ("written_bytes", number(written)?),
            ("window_ms", used.window_ms.context("nothing was watched")?),
        ],
    ))
}

/// Applies as the agent does; run in a process of its own, so that its memory can be told.
pub(crate) fn engine(bundle: &Path, dir: &Path, key: &Path) -> anyhow::Result<()> {
    let key = fs::read_to_string(key).context("cannot read the key")?;
    let key: PublicKey = key.trim().parse().context("no key")?;
    let map = vireo_sys::map_sealed(&File::open(bundle).context("cannot open the bundle")?)
        .context("cannot map the bundle")?;
    let release = |bytes: &[u8]| map.release(bytes);
    let bundle = Bundle::open(&map)?.held_by(&release).verify(&TrustedKeys::from_iter([key]))?;
    let root = Root::open(dir)?;
    stage(&root, &bundle, &ApplyOptions::default())?.commit().and_then(Committed::finish)?;
    Ok(())
}

/// The careful way without a journal: each file is written under a temporary name, made durable and
/// renamed; then the directories are made durable.
pub(crate) fn fsync_each(from: &Path, to: &Path) -> anyhow::Result<()> {
    let list = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in list {
        let entry = entry.with_context(|| format!("cannot read {}", from.display()))?;
        let target = to.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            fsync_each(&entry.path(), &target)?;
            continue;
        }
        replace(&entry.path(), &target)
            .with_context(|| format!("cannot replace {}", target.display()))?;
    }
    File::open(to).and_then(|dir| dir.sync_all()).context("cannot sync a directory")
}

fn replace(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let temporary = to.with_added_extension("tmp");
    let metadata = fs::metadata(from)?;
    let mode = metadata.mode() & 0o7777;
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
    std::io::copy(&mut File::open(from)?, &mut file)?;
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, &temporary, &times, AtFlags::empty())?;
    file.sync_all()?;
    fs::rename(&temporary, to)
}
